//! The rules that a history is held to.

use std::fmt;

/// Something that must not be in a history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Violation {
    pub(crate) key: usize,
    pub(crate) rule: Rule,
    pub(crate) told: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Rule {
    /// The store of record did not do what it is to do by its description.
    StoreKeepsToItsSpec,
    /// The handler began without the lease, or twice under it.
    EachStartHasItsLease,
    /// The lease of a run that was alive went to another run in its own process.
    TheLivingKeepTheirLeases,
    /// Two answers to one key.
    OneAnswer,
    /// An answer that nobody has given, or that belongs to another request.
    AnswersAreTrue,
    /// A replay of what was not recorded.
    ReplaysAreOfRecords,
    /// The end of a run was shared with a request that did not wait for it, or not as it was.
    SharedEndsWereWaitedFor,
    /// What became of the key is not what the end of its run, and the policy, make of it.
    EndsKeepTheirClass,
    /// A refusal of a request that ran, or for no reason.
    RefusalsHaveReasons,
    /// Work was done that the key does not tell of, and nothing excuses it.
    NoEffectIsLost,
    /// The work was done again without an excuse.
    DoneOnce,
    /// A request without an answer whose client waited.
    EveryoneIsAnswered,
    /// The key did not come free after the faults.
    NoKeyIsStuck,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {}: {:?}: {}", self.key, self.rule, self.told)
    }
}
