//! What those who run something see: the attempt, its result, or why there is none.

use std::fmt;
use std::time::Duration;

use crate::clock::Timestamp;
use crate::error::StoreError;
use crate::fingerprint::Fingerprint;
use crate::key::IdempotencyKey;
use crate::record::{FencingToken, Lease};

/// One attempt at a key, as its handler sees it: in the extensions of the request, or as an
/// extractor (feature `axum`).
#[derive(Clone, Debug)]
pub struct Attempt {
    key: IdempotencyKey,
    fingerprint: Fingerprint,
    token: FencingToken,
    number: u32,
    created_at: Timestamp,
}

impl Attempt {
    pub(super) fn new(key: IdempotencyKey, lease: &Lease) -> Self {
        Self {
            key,
            fingerprint: lease.identity.request,
            token: lease.token,
            number: lease.attempt,
            created_at: lease.created_at,
        }
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
#[derive(Debug)]
#[non_exhaustive]
pub enum RunError<E> {
    /// The work is being done.
    InProgress {
        /// When to try again.
        retry_after: Duration,
    },
    /// A run before this one left no outcome, and the orphan policy does not let it run again.
    OutcomeUnknown,
    /// The key was used with another fingerprint.
    KeyReused,
    /// The work was done, but its lease was lost meanwhile: the key has gone to another run, whose
    /// result is the key's. Ask again for that.
    LeaseLost,
    /// The work was done, but the store did not take its result yet, and
    /// [it is not given before](crate::Executor::answer_unrecorded). Ask again for it.
    NotRecorded,
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
    Work(E),
}

impl<E: fmt::Display> fmt::Display for RunError<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InProgress { .. } => f.write_str("the work is in progress"),
            Self::OutcomeUnknown => f.write_str("a run before left no outcome"),
            Self::KeyReused => f.write_str("the idempotency key was used for other work"),
            Self::LeaseLost => f.write_str("the work was done, but its lease was lost meanwhile"),
            Self::NotRecorded => f.write_str("the work was done, but is not recorded yet"),
            Self::TooManyRuns => f.write_str("too many runs are in flight"),
            Self::ShuttingDown => f.write_str("the executor was shut down"),
            Self::Store(_) => f.write_str("the store failed, and the work was not done"),
            Self::Result(_) => f.write_str("the result of the work cannot be kept as JSON"),
            Self::Work(error) => error.fmt(f),
        }
    }
}

impl<E: std::error::Error + 'static> std::error::Error for RunError<E> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Store(error) => Some(error),
            Self::Result(error) => Some(error),
            Self::Work(error) => error.source(),
            _ => None,
        }
    }
}

impl<E> From<Conflict> for RunError<E> {
    fn from(conflict: Conflict) -> Self {
        match conflict {
            Conflict::InProgress { retry_after } => Self::InProgress { retry_after },
            Conflict::OutcomeUnknown { .. } | Conflict::OutcomeUnknownYet { .. } => {
                Self::OutcomeUnknown
            }
            Conflict::Reused | Conflict::CallerDiffers | Conflict::SettingsChanged => {
                Self::KeyReused
            }
            Conflict::LeaseLost => Self::LeaseLost,
            Conflict::NotRecorded => Self::NotRecorded,
            Conflict::NothingDone => Self::InProgress {
                retry_after: Duration::from_secs(1),
            },
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
    /// The run that was waited for did nothing, and there is nothing of it to share.
    NothingDone,
    TooManyRuns,
    ShuttingDown,
    /// The one who asked has gone before the work began, so it did not begin.
    Left,
    Store(StoreError),
}
