//! What happened, in one order for all.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;
use tower_idempotency::record::Owner;
use tower_idempotency::store::Completion;
use tower_idempotency::testing::{Call, Fault};
use tower_idempotency::{Answer, Fingerprint, Timestamp};

/// Something that happened to a key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Event {
    /// Microseconds since the history began.
    pub(crate) at: u64,
    pub(crate) key: usize,
    pub(crate) what: What,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum What {
    /// A client asks a node. Two requests with the same `content` are the same request.
    Sent {
        request: usize,
        node: usize,
        content: u64,
        /// Whether its node lets duplicates wait for the run in flight.
        waits: bool,
        /// After the faults, to see what became of the key.
        is_probe: bool,
    },
    /// The client goes before it has an answer.
    Left {
        request: usize,
    },
    Answered {
        request: usize,
        reply: Reply,
    },
    /// The handler begins.
    Started {
        run: usize,
        request: usize,
        token: u64,
    },
    /// The handler does what must not be done twice; if its token is too old, it is refused.
    Effect {
        run: usize,
        is_refused: bool,
    },
    /// The handler ends.
    Ended {
        run: usize,
        how: End,
    },
    /// The business system is asked what became of a run.
    Asked {
        token: u64,
        has_effect: bool,
    },
    /// The node dies, with all that it is doing.
    Crashed {
        node: usize,
    },
    /// A call to the store meets with a fault.
    Failed {
        node: usize,
        call: Call,
        fault: Injected,
    },
    /// The store of record did this, and said so.
    Stored(Stored),
    /// The driver gave up.
    Stuck(String),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Answers(u16),
    Panics,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Injected {
    Store(Fault),
    /// Below the SDK.
    Wire(&'static str),
}

impl End {
    /// Whether the handler says by it that nothing was done.
    pub(crate) fn says_nothing_done(self) -> bool {
        self == Self::Answers(400)
    }

    /// Whether it says nothing of what was done.
    pub(crate) fn is_unknown(self) -> bool {
        matches!(self, Self::Panics | Self::Answers(408 | 500 | 504))
    }
}

/// The body of what a run answers: its response with `status`.
pub(crate) fn body_of_run(key: usize, run: usize, status: u16, content: u64) -> String {
    match status {
        201 => format!("order {key} run {run} content {content}"),
        status => format!("order {key} run {run} failed {status} content {content}"),
    }
}

/// What a client gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reply {
    /// 0: the connection broke off, for the handler panicked.
    pub(crate) status: u16,
    /// What the layer says of it, as `executed: stored`.
    pub(crate) outcome: String,
    pub(crate) body: String,
}

impl Reply {
    /// Whether it says to ask again soon.
    pub(crate) fn is_for_now(&self) -> bool {
        self.status == 503 || self.outcome == "refused: in-progress"
    }
}

/// A call to the store of record, and what it gave.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Stored {
    Claim {
        owner: Id,
        content: Id,
        now: u64,
        takes_over: bool,
        /// Those of whom the store heard that they are alive in the claimer's process.
        alive: Vec<Id>,
        gave: Claimed,
    },
    Renew {
        owner: Id,
        deadline: u64,
        gave: Written,
    },
    Complete {
        owner: Id,
        body: String,
        gave: Written,
    },
    /// A completion is on its way.
    Completing { owner: Id, body: String },
    /// A release is on its way.
    Releasing { owner: Id },
    Release {
        owner: Id,
        is_free: bool,
        gave: Written,
    },
}

impl Stored {
    /// Who called.
    pub(crate) const fn owner(&self) -> Id {
        match self {
            Self::Claim { owner, .. }
            | Self::Renew { owner, .. }
            | Self::Completing { owner, .. }
            | Self::Complete { owner, .. }
            | Self::Releasing { owner }
            | Self::Release { owner, .. } => *owner,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    Acquired {
        token: u64,
        attempt: u32,
        deadline: u64,
    },
    Completed {
        body: String,
    },
    InProgress,
    Orphaned,
    Reused,
    Failed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Applied,
    LeaseLost,
    Failed,
}

/// An owner or a fingerprint, short enough to be read.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Id(pub(crate) u32);

impl Id {
    pub(crate) fn of_owner(owner: Owner) -> Self {
        Self::of(owner.as_bytes())
    }

    pub(crate) fn of_content(fingerprint: Fingerprint) -> Self {
        Self::of(fingerprint.as_bytes())
    }

    fn of(bytes: &[u8]) -> Self {
        Self(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// The text of the answer in a completion.
pub(crate) fn body_of(completion: &Completion) -> String {
    recorded(&completion.payload)
}

pub(crate) fn recorded(payload: &bytes::Bytes) -> String {
    match Answer::decode(payload) {
        Ok(Answer::Response(stored)) => String::from_utf8_lossy(&stored.body).into_owned(),
        other => format!("{other:?}"),
    }
}

/// Where everybody writes what happened.
#[derive(Clone, Debug)]
pub(crate) struct History {
    began: Instant,
    events: Arc<Mutex<Vec<Event>>>,
}

impl History {
    pub(crate) fn new() -> Self {
        Self {
            began: Instant::now(),
            events: Arc::default(),
        }
    }

    /// Notes what happened to `key`.
    pub(crate) fn note(&self, key: usize, what: What) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        // Under the lock, so that time goes one way.
        let at = micros(self.began.elapsed());
        events.push(Event { at, key, what });
    }

    pub(crate) fn events(&self) -> Vec<Event> {
        let events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        events.clone()
    }
}

fn micros(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_micros()).expect("no history is so long")
}

/// A timestamp as a history has it.
pub(crate) const fn moment(timestamp: Timestamp) -> u64 {
    timestamp.as_micros().saturating_sub(EPOCH.as_micros())
}

/// When all histories begin, by the nodes' clocks.
pub(crate) const EPOCH: Timestamp = Timestamp::from_millis(1_790_000_000_000);
