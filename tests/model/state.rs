//! What there is: the time, the record, the attempts and the messages that came adrift.

use tower_idempotency::record::{FencingToken, Held, Holder, Identity, Lease, Owner};
use tower_idempotency::testing::attempt::{self, State as At};
use tower_idempotency::{Fingerprint, RecordKey, Timestamp};

/// How many attempts at the key there may be: requests of clients, retries among them.
pub(crate) const ATTEMPTS: usize = 3;
/// The first tick. Ticks are microseconds since the epoch, and the epoch is long ago.
pub(crate) const START: Tick = 8;
/// The deadline of an attempt that ended without an outcome.
pub(crate) const EPOCH: Tick = 0;

pub(crate) const KEY: RecordKey = RecordKey::from_bytes([7; 32]);
pub(crate) const IDENTITY: Identity = Identity::of_work(Fingerprint::from_bytes([9; 32]));

/// A moment of the model: a whole microsecond of the crate's time.
pub(crate) type Tick = u8;
/// An attempt by its number. It is its owner id, too, and its answer is told by it.
pub(crate) type Id = u8;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    /// True time.
    pub(crate) time: Tick,
    /// Whether the second node's clock is ahead.
    pub(crate) is_ahead: bool,
    /// How often the key was forgotten because its record had expired.
    pub(crate) uses: u8,
    pub(crate) record: Record,
    pub(crate) attempts: [Attempt; ATTEMPTS],
    /// Messages of which their senders have no answer, or copies: the store may apply each at any
    /// time, or never. Sorted, so that equal states are equal.
    pub(crate) late: Vec<Message>,
    pub(crate) ledger: Ledger,
    pub(crate) left: Budget,
    pub(crate) broken: Broken,
}

/// The record as the store holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Record {
    Absent,
    InProgress(Holding),
    Completed {
        answer: Id,
        expires: Tick,
        /// Until when it was promised. The same, but for a bug.
        promised: Tick,
    },
}

/// A lease, without what is the same in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Holding {
    pub(crate) owner: Id,
    pub(crate) token: Tick,
    pub(crate) number: u8,
    pub(crate) deadline: Tick,
    pub(crate) expires: Tick,
}

/// A request, and what the node that it was sent to does about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Attempt {
    pub(crate) phase: Phase,
    pub(crate) node: u8,
    /// When the call under way was sent, by the clock of its node.
    pub(crate) called_at: Tick,
    /// The answer that it completes with.
    pub(crate) answer: Id,
    /// How many claims it has sent.
    pub(crate) claims: u8,
    /// Whether it found another's run in flight.
    pub(crate) has_waited: bool,
    /// The run on its node whose end it waits for.
    pub(crate) waits_for: Option<Id>,
    /// Whether it claimed again although the run that it waited for, on its node, had an end for it.
    pub(crate) has_waited_in_vain: bool,
    /// Whether nobody waits for its answer any more.
    pub(crate) is_left: bool,
    /// Of the lease that it was given.
    pub(crate) number: u8,
    pub(crate) token: Tick,
    /// The last deadline that the store told it.
    pub(crate) deadline: Tick,
    /// Which use of the key it was let into.
    pub(crate) uses: u8,
    pub(crate) fate: Fate,
    /// The recorded, or to be recorded, answer that its client got.
    pub(crate) got: Option<Id>,
}

/// Where a node stands with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Phase {
    /// Its request was not sent yet.
    Idle,
    /// Only of a store that looks first and writes later: it has looked.
    Inserting(Holding),
    /// The lease is on its way to the node.
    Granted,
    /// As the crate's own machine says.
    At(At),
    /// A look has found the lease, which is being released.
    Releasing,
}

/// What became of the handler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Fate {
    NotStarted,
    /// It runs, or its node died under it.
    Started,
    /// It gave an answer to record.
    Answered,
    /// It gave an answer that the recording policy releases.
    Released,
    /// It panicked, or the service failed.
    NoOutcome,
}

/// A fenced write that ends a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Write {
    Complete { answer: Id, now: Tick },
    Free,
    Orphan,
}

impl Write {
    /// What a write of the crate's machine says to the store.
    pub(crate) fn of(write: attempt::Write, attempt: &Attempt) -> Self {
        match write {
            attempt::Write::Complete { .. } => Self::Complete {
                answer: attempt.answer,
                now: attempt.called_at,
            },
            attempt::Write::Free => Self::Free,
            attempt::Write::Orphan => Self::Orphan,
        }
    }
}

/// A call of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Message {
    pub(crate) owner: Id,
    pub(crate) call: Call,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Call {
    Claim { now: Tick },
    Renew { deadline: Tick },
    End(Write),
}

/// The business system: keeps each effect, and the highest fencing token that it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    pub(crate) highest: Tick,
    /// A bit for each attempt.
    pub(crate) effects: u8,
}

/// What the adversary may still do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Budget {
    /// Calls whose answer is lost, or that come late or twice.
    pub(crate) faults: u8,
    pub(crate) crashes: u8,
    /// Handlers that give no answer to record, and ledgers that do not know.
    pub(crate) odds: u8,
    /// Clients that hang up.
    pub(crate) leaves: u8,
    /// Steps of the second node's clock, which is ahead at first.
    pub(crate) jumps: u8,
}

/// What must not happen, and has happened: of properties that one state does not show.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Broken {
    pub(crate) written_by_stranger: bool,
    pub(crate) completed_changed: bool,
    pub(crate) started_under_hold: bool,
    pub(crate) started_beside_a_live_lease: bool,
    pub(crate) kept_out_by_itself: bool,
    pub(crate) taken_from_the_living: bool,
    pub(crate) started_after_waiting: bool,
}

impl State {
    pub(crate) fn new(left: Budget) -> Self {
        Self {
            time: START,
            is_ahead: true,
            uses: 0,
            record: Record::Absent,
            attempts: [Attempt::IDLE; ATTEMPTS],
            late: Vec::new(),
            ledger: Ledger::default(),
            left,
            broken: Broken::default(),
        }
    }

    pub(crate) fn attempt(&self, id: Id) -> &Attempt {
        &self.attempts[usize::from(id)]
    }

    pub(crate) fn attempt_mut(&mut self, id: Id) -> &mut Attempt {
        &mut self.attempts[usize::from(id)]
    }

    pub(crate) fn set_adrift(&mut self, message: Message) {
        let at = self.late.partition_point(|other| *other < message);
        self.late.insert(at, message);
    }
}

impl Attempt {
    /// Whether the crate's machine says that it has a lease, or one is on its way to it.
    pub(crate) fn holds(&self) -> bool {
        match self.phase {
            Phase::Granted => true,
            Phase::At(at) => at.holds(),
            Phase::Idle | Phase::Inserting(_) | Phase::Releasing => false,
        }
    }

    /// Whether it is done, or its node died.
    pub(crate) fn has_ended(&self) -> bool {
        self.phase == Phase::At(At::Over)
    }

    pub(crate) const IDLE: Self = Self {
        phase: Phase::Idle,
        node: 0,
        called_at: EPOCH,
        answer: Id::MAX,
        claims: 0,
        has_waited: false,
        waits_for: None,
        has_waited_in_vain: false,
        is_left: false,
        number: 0,
        token: 0,
        deadline: EPOCH,
        uses: 0,
        fate: Fate::NotStarted,
        got: None,
    };

    /// Ends it, and forgets what makes no difference any more.
    pub(crate) fn is_over(&mut self) {
        let has_lease_to_lapse =
            matches!(self.fate, Fate::Started | Fate::Answered | Fate::NoOutcome);
        *self = Self {
            phase: Phase::At(At::Over),
            node: if has_lease_to_lapse { self.node } else { 0 },
            deadline: if has_lease_to_lapse {
                self.deadline
            } else {
                EPOCH
            },
            uses: self.uses,
            fate: self.fate,
            got: self.got,
            ..Self::IDLE
        };
    }
}

impl Record {
    /// The record's lease as the crate knows it, if it is in progress.
    pub(crate) fn lease(&self) -> Option<Lease> {
        match self {
            Self::InProgress(holding) => Some(holding.lease()),
            _ => None,
        }
    }

    /// The record as the crate knows it. `lease` is what [`lease`](Self::lease) gave.
    pub(crate) fn held<'a>(&self, lease: Option<&'a Lease>) -> Option<Held<'a>> {
        match (self, lease) {
            (Self::Completed { expires, .. }, _) => Some(Held::Completed {
                identity: IDENTITY,
                expires_at: at(*expires),
            }),
            (_, lease) => lease.map(Held::InProgress),
        }
    }
}

impl Holding {
    pub(crate) const NONE: Self = Self {
        owner: Id::MAX,
        token: 0,
        number: 0,
        deadline: EPOCH,
        expires: EPOCH,
    };

    pub(crate) fn lease(&self) -> Lease {
        let holder = Holder::new(KEY, owner(self.owner), IDENTITY);
        // When it began decides nothing.
        let mut lease = Lease::new(&holder, FencingToken::from_u64(self.token.into()));
        lease.attempt = self.number.into();
        lease.deadline = at(self.deadline);
        lease.expires_at = at(self.expires);
        lease
    }
}

pub(crate) fn owner(id: Id) -> Owner {
    Owner::from_bytes([id; 16])
}

pub(crate) fn at(tick: Tick) -> Timestamp {
    Timestamp::from_micros(tick.into())
}

pub(crate) fn tick(timestamp: Timestamp) -> Tick {
    Tick::try_from(timestamp.as_micros()).expect("times are bounded")
}
