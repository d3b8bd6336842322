//! What those who run something see: the attempt, its result, or why there is none.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::Extensions;

use super::living::{Flags, Living};
use crate::protocol::clock::Timestamp;
use crate::protocol::end::End;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::{IdempotencyKey, RecordKey};
use crate::protocol::record::{FencingToken, Lease, Owner};

/// One attempt at a key, as its handler sees it: in the extensions of the request, or as an
/// extractor (feature `axum`).
#[derive(Clone, Debug)]
pub struct Attempt {
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    token: FencingToken,
    number: u32,
    created_at: Timestamp,
    owner: Owner,
    living: Living,
    /// The address of the store that its lease is in; `None` when it has no lease.
    store: Option<usize>,
    /// The attempt of a layer further out that its request runs under, too.
    outer: Option<Arc<Self>>,
}

impl Attempt {
    pub(super) fn new(key: IdempotencyKey, lease: &Lease, living: Living, store: usize) -> Self {
        Self {
            key,
            fingerprint: lease.identity.request,
            token: lease.token,
            number: lease.attempt,
            created_at: lease.created_at,
            owner: lease.owner,
            living,
            store: Some(store),
            outer: None,
        }
    }

    /// An attempt that no record knows of, with a token as a first attempt has it.
    pub(super) fn unprotected(
        key: IdempotencyKey,
        fingerprint: Fingerprint,
        now: Timestamp,
        owner: Owner,
        living: Living,
    ) -> Self {
        Self {
            key,
            fingerprint,
            token: FencingToken::from_u64(now.as_micros()),
            number: 1,
            created_at: now,
            owner,
            living,
            store: None,
            outer: None,
        }
    }

    /// Puts it into a request that goes on to its handler. An attempt that is there already stays
    /// known.
    pub(crate) fn put_into(self, extensions: &mut Extensions) {
        if let Some(outer) = extensions.insert(self)
            && let Some(attempt) = extensions.get_mut::<Self>()
        {
            attempt.outer = Some(Arc::new(outer));
        }
    }

    /// The attempt at the record `key` that its request runs under: this one, or one further out.
    pub(super) fn at(&self, key: &RecordKey) -> Option<&Self> {
        let mut attempt = self;
        loop {
            if attempt.key.record_key() == key {
                return Some(attempt);
            }
            attempt = attempt.outer.as_deref()?;
        }
    }

    pub(super) const fn owner(&self) -> Owner {
        self.owner
    }

    pub(super) const fn store(&self) -> Option<usize> {
        self.store
    }

    /// The key.
    pub const fn key(&self) -> &IdempotencyKey {
        &self.key
    }

    /// The fencing token, which grows from attempt to attempt; see [`FencingToken`] for how far
    /// that goes.
    pub const fn token(&self) -> FencingToken {
        self.token
    }

    /// The fingerprint of the request.
    pub const fn fingerprint(&self) -> Fingerprint {
        self.fingerprint
    }

    /// When the key was first claimed, since it was last forgotten.
    pub const fn created_at(&self) -> Timestamp {
        self.created_at
    }

    /// Which attempt this is, counted from 1. More than 1: those before it left no outcome.
    pub const fn number(&self) -> u32 {
        self.number
    }
}

/// The point of no return.
impl Attempt {
    /// Says that the work begins now to have effects, such as a call of a payment provider. Call
    /// it right before the first of them, and go on only when it returns `Ok`.
    ///
    /// No status can say whether the work had begun; this can. An attempt that ends afterwards
    /// with a 4xx is [final](End::Final), and one that ends with a 5xx, a panic or an error is
    /// [unknown](End::Unknown); so is one with 408, 424 or 499, which are not the handler's word. In
    /// an attempt that [announces](Self::announce_effects) this call, every end before it but 2xx
    /// and 3xx is [nothing done](End::NothingDone), and the next request runs.
    ///
    /// ```
    /// # #[cfg(feature = "axum")] {
    /// use axum::http::StatusCode;
    /// use tower_idempotency::Attempt;
    ///
    /// async fn charge(attempt: Attempt) -> Result<&'static str, StatusCode> {
    ///     attempt.announce_effects();
    ///     // Until here, a 500, a panic and a timeout leave the key free.
    ///     let card = look_up().await.map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?;
    ///     attempt.begin_effects().map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    ///     // From here on, they leave an unknown outcome.
    ///     ask_provider(card).await.map_err(|_| StatusCode::BAD_GATEWAY)
    /// }
    /// # async fn look_up() -> Result<u8, ()> { Ok(1) }
    /// # async fn ask_provider(_: u8) -> Result<&'static str, ()> { Ok("charged") }
    /// # let _ = charge;
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// When the attempt has ended already, by a timeout around the handler or because its response
    /// was returned, and its end may have been taken for *nothing done*: a task that was left behind
    /// must not begin.
    pub fn begin_effects(&self) -> Result<(), AttemptEnded> {
        match self.living.set(self.owner, Flags::HAS_BEGUN_EFFECTS) {
            true => Ok(()),
            false => Err(AttemptEnded),
        }
    }

    /// Announces that this attempt will say when its effects [begin](Self::begin_effects): what
    /// happens before that is *nothing done*. Where all handlers do so,
    /// [`announces_effects`](crate::IdempotencyLayer::announces_effects) says it once.
    pub fn announce_effects(&self) {
        // Once it has ended, it makes no difference.
        let _ = self.living.set(self.owner, Flags::ANNOUNCES_EFFECTS);
    }
}

/// An attempt must not begin its effects, because it has ended already; see
/// [`Attempt::begin_effects`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttemptEnded;

impl fmt::Display for AttemptEnded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the attempt has ended; its work must not begin any more")
    }
}

impl std::error::Error for AttemptEnded {}

/// The result of [`Executor::run`](crate::Executor::run).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ran<T> {
    /// The work was done now.
    Executed(T),
    /// The work was done before, with this result.
    Replayed(T),
}

impl<T> Ran<T> {
    /// The result, whenever the work was done.
    pub fn into_inner(self) -> T {
        match self {
            Self::Executed(value) | Self::Replayed(value) => value,
        }
    }
}

/// Why [`Executor::run`](crate::Executor::run) has no result.
///
/// A consumer of a queue, whose messages carry their keys, does with its message:
///
/// | result | |
/// |---|---|
/// | `Ok` | acknowledge it |
/// | an error that [is retryable](Self::is_retryable) | leave it in the queue, for [`retry_after`](Self::retry_after) at least |
/// | [`OutcomeUnknown`](Self::OutcomeUnknown) that is held | dead letter: a person, or a job that knows the business system, has to say what became of it |
/// | [`KeyReused`](Self::KeyReused), [`CallerDiffers`](Self::CallerDiffers), [`KeyOfRequest`](Self::KeyOfRequest) | dead letter: two messages, or a message and a request, have one key |
/// | [`NotStored`](Self::NotStored), [`Result`](Self::Result) | acknowledge it: the work is done, and its result cannot be had again |
/// | [`Work`](Self::Work) that is not retryable | by its error: the outcome is final, or is held as unknown |
/// | [`Store`](Self::Store) that is not retryable | stop: the store has to be mended, and the message is not done |
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError<E> {
    /// The work is being done.
    InProgress {
        /// When to try again.
        retry_after: Duration,
    },
    /// A run before this one left its outcome unknown, and the orphan policy does not let it run
    /// again.
    OutcomeUnknown {
        /// When the key was first claimed.
        first_seen: Timestamp,
        /// When to ask again, where the policy is to [ask](crate::Orphan::Reconcile) for the
        /// outcome, and nobody could say it yet. `None`: the key is
        /// [held](crate::Orphan::Hold), until its retention ends or an operator removes it.
        retry_after: Option<Duration>,
    },
    /// The key was used with another fingerprint.
    KeyReused,
    /// The key belongs to another caller: to a request over HTTP in the same namespace.
    CallerDiffers,
    /// The key is the one of a request over HTTP that is in flight: a handler that runs steps of
    /// its work by an executor takes a key of its own for each, by
    /// [`IdempotencyKey::derive`].
    KeyOfRequest,
    /// The key was recorded under settings that this process does not know. Another may.
    SettingsChanged,
    /// The run that this call [waited for](crate::Executor::wait_for_in_flight) ended without a
    /// result, and its end is of this class. One who waits shares the end that it waited for, and
    /// does not run in its place; the next call does.
    Ended(End),
    /// The work was done, but its lease was lost meanwhile: the key has gone to another run, whose
    /// result is the key's. Ask again for that.
    LeaseLost,
    /// The work was done, but the store did not take its result yet, and
    /// [it is not given before](crate::Executor::answer_unrecorded). Ask again for it.
    NotRecorded,
    /// The work ended before, with an error that was [classified](crate::Executor::classify_error)
    /// as final, or with a result that is not stored. It is not done again.
    NotStored,
    /// There are as many runs in flight as may be.
    TooManyRuns,
    /// The executor was shut down.
    ShuttingDown,
    /// The store failed, and the work was not done.
    Store(StoreError),
    /// The result cannot be written as JSON, or not be read back. The work was done; it will not
    /// be done again.
    Result(serde_json::Error),
    /// The work itself failed.
    Work {
        /// What it failed with.
        error: E,
        /// Whether the next call with the key runs, or may learn the outcome: not if the error is
        /// [final](End::Final), nor if the outcome is unknown and [held](crate::Orphan::Hold).
        is_retryable: bool,
    },
}

impl<E> RunError<E> {
    /// Whether the same call, with the same key, may get a result later. It does no harm in any
    /// case: the key guards the work.
    pub fn is_retryable(&self) -> bool {
        self.retry_after().is_some()
    }

    /// When to make the same call again, with the same key; `None` when it is of no use.
    pub fn retry_after(&self) -> Option<Duration> {
        const SOON: Option<Duration> = Some(Duration::from_secs(1));
        match self {
            Self::InProgress { retry_after } => Some(*retry_after),
            Self::OutcomeUnknown { retry_after, .. } => *retry_after,
            Self::Ended(End::NothingDone | End::Unknown)
            | Self::LeaseLost
            | Self::NotRecorded
            | Self::SettingsChanged
            | Self::ShuttingDown
            | Self::TooManyRuns
            | Self::Work {
                is_retryable: true, ..
            } => SOON,
            Self::Store(error) => match error.kind() {
                // Another process may be able to read it.
                StoreErrorKind::Newer => error.retry_after().or(SOON),
                kind if kind.is_passing() => error.retry_after().or(SOON),
                _ => None,
            },
            Self::CallerDiffers
            | Self::Ended(End::Final)
            | Self::KeyOfRequest
            | Self::KeyReused
            | Self::NotStored
            | Self::Result(_)
            | Self::Work {
                is_retryable: false,
                ..
            } => None,
        }
    }
}

impl<E: fmt::Display> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProgress { .. } => f.write_str("the work is in progress"),
            Self::OutcomeUnknown {
                retry_after: None, ..
            } => f.write_str("a run before left its outcome unknown, and the key is held"),
            Self::OutcomeUnknown { .. } => {
                f.write_str("a run before left its outcome unknown, and nobody could say it yet")
            }
            Self::KeyReused => f.write_str("the idempotency key was used for other work"),
            Self::CallerDiffers => f.write_str("the idempotency key belongs to another caller"),
            Self::KeyOfRequest => f.write_str(
                "the idempotency key is that of a request in flight; derive one for this step",
            ),
            Self::SettingsChanged => {
                f.write_str("the idempotency key was recorded under other settings")
            }
            Self::Ended(end) => write!(
                f,
                "the run that was waited for ended without a result: {end}"
            ),
            Self::LeaseLost => f.write_str("the work was done, but its lease was lost meanwhile"),
            Self::NotRecorded => f.write_str("the work was done, but is not recorded yet"),
            Self::NotStored => {
                f.write_str("the work was done before, and its result is not stored")
            }
            Self::TooManyRuns => f.write_str("too many runs are in flight"),
            Self::ShuttingDown => f.write_str("the executor was shut down"),
            Self::Store(_) => f.write_str("the store failed, and the work was not done"),
            Self::Result(_) => f.write_str("the result of the work cannot be kept as JSON"),
            Self::Work { error, .. } => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RunError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Result(error) => Some(error),
            Self::Work { error, .. } => error.source(),
            _ => None,
        }
    }
}

impl<E> From<Conflict> for RunError<E> {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::InProgress { retry_after, .. } => Self::InProgress { retry_after },
            Conflict::OutcomeUnknown { first_seen, .. } => Self::OutcomeUnknown {
                first_seen,
                retry_after: None,
            },
            Conflict::OutcomeUnknownYet { first_seen } => Self::OutcomeUnknown {
                first_seen,
                retry_after: Some(Duration::from_secs(1)),
            },
            Conflict::Reused => Self::KeyReused,
            Conflict::CallerDiffers => Self::CallerDiffers,
            Conflict::SettingsChanged => Self::SettingsChanged,
            Conflict::LeaseLost => Self::LeaseLost,
            Conflict::NotRecorded => Self::NotRecorded,
            Conflict::Ended { class, .. } => Self::Ended(class),
            Conflict::KeyOfRequest => Self::KeyOfRequest,
            Conflict::TooManyRuns => Self::TooManyRuns,
            // Nobody is there to see it.
            Conflict::ShuttingDown | Conflict::Left => Self::ShuttingDown,
            Conflict::Store(error) => Self::Store(error),
        }
    }
}

/// Why a claimer neither runs nor gets an answer.
#[derive(Debug)]
pub(crate) enum Conflict {
    InProgress {
        retry_after: Duration,
        /// Whose lease it is, where that is known.
        owner: Option<Owner>,
    },
    /// For good, or until an operator sees to it.
    OutcomeUnknown {
        first_seen: Timestamp,
        first_status: Option<u16>,
    },
    /// The next request asks again.
    OutcomeUnknownYet {
        first_seen: Timestamp,
    },
    /// The key belongs to another caller.
    CallerDiffers,
    Reused,
    /// The record was made by a recipe that is not known here.
    SettingsChanged,
    /// The work was done; another run has the say about its outcome.
    LeaseLost,
    /// The work was done; its answer is withheld until the store has it.
    NotRecorded,
    /// The run that was waited for ended without an answer to share, and the next request runs.
    Ended {
        class: End,
        first_seen: Timestamp,
    },
    /// Work that is not an HTTP request has the key of one that is in flight.
    KeyOfRequest,
    TooManyRuns,
    ShuttingDown,
    /// The one who asked has gone before the work began, so it did not begin.
    Left,
    Store(StoreError),
}

impl Conflict {
    /// Another attempt has begun, or may have: nothing more is known of it.
    pub(super) const fn in_progress() -> Self {
        Self::InProgress {
            retry_after: Duration::from_secs(1),
            owner: None,
        }
    }
}
