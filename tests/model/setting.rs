//! What one run of the checker is about.

use crate::bugs::Bug;
use crate::state::{Budget, Tick};

/// How long a lease lasts.
pub(crate) const LEASE: Tick = 2;
/// How far clocks may be apart: what the nodes are told.
pub(crate) const SKEW: Tick = 1;
/// Longer than the model runs.
pub(crate) const FOR_EVER: Tick = 100;

/// What an orphan means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Retake,
    Hold,
    Reconcile,
}

/// The bounds of the model, and what is set on its nodes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub(crate) name: &'static str,
    pub(crate) policy: Policy,
    pub(crate) answer_unrecorded: bool,
    /// Whether a duplicate of a run in flight waits and claims again.
    pub(crate) waits: bool,
    /// How many requests are sent.
    pub(crate) attempts: usize,
    /// For how long time goes on.
    pub(crate) ticks: Tick,
    pub(crate) adversary: Budget,
    /// How far the clock of the second node is ahead of the first one's.
    pub(crate) offset: Tick,
    pub(crate) retention: Tick,
    pub(crate) bug: Bug,
}

impl Setting {
    pub(crate) const ADVERSARY: Budget = Budget {
        faults: 1,
        crashes: 1,
        odds: 1,
        leaves: 1,
        jumps: 0,
    };

    /// An adversary who only lets time go by.
    pub(crate) const NOBODY: Budget = Budget {
        faults: 0,
        crashes: 0,
        odds: 0,
        leaves: 0,
        jumps: 0,
    };

    pub(crate) const fn of(name: &'static str, policy: Policy) -> Self {
        Self {
            name,
            policy,
            answer_unrecorded: false,
            waits: false,
            attempts: 2,
            ticks: 4,
            adversary: Self::ADVERSARY,
            offset: SKEW,
            retention: FOR_EVER,
            bug: Bug::None,
        }
    }

    pub(crate) const fn against(self, adversary: Budget) -> Self {
        Self { adversary, ..self }
    }
}
