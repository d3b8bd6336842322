//! How a history goes.

use std::time::Duration;

/// What an orphan means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Policy {
    Retake,
    Hold,
    Reconcile,
}

/// How a history goes.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) seed: u64,
    pub(crate) policy: Policy,
    pub(crate) answer_unrecorded: bool,
    pub(crate) nodes: usize,
    pub(crate) keys: usize,
    pub(crate) clients: usize,
    pub(crate) requests_each: usize,
    /// Of a hundred calls to the store, so many fail.
    pub(crate) faults: u64,
    /// Nothing waits for as long as chance in the product says.
    pub(crate) is_calm: bool,
    pub(crate) lease: Duration,
    pub(crate) skew: Duration,
    /// Whether the store of record is seen through, call by call.
    pub(crate) is_exact: bool,
    /// Whether clocks jump by hours. Only where there is one node: between nodes, nothing is
    /// promised then.
    pub(crate) clocks_jump: bool,
    /// Whether a handler that blocks does so with its thread. Otherwise its node polls nothing
    /// meanwhile but what has lost its client, and the heartbeat.
    pub(crate) blocks_threads: bool,
}

impl Plan {
    /// The least that a handler takes which blocks its thread: longer than its lease lasts
    /// without a heartbeat.
    pub(crate) fn past_a_lease(&self) -> Duration {
        self.lease + self.skew
    }

    /// How late a call to the store is applied at most.
    pub(crate) fn latest(&self) -> Duration {
        self.lease * 2
    }
}
