//! Mistakes that projects of this kind have made, each of which the checker has to find.

use crate::checks::{counterexample, exhaust};
use crate::properties::{
    FENCED, HELD, LAPSED, LIVING, NOT_BY_ITSELF, NOT_STUCK, ONE_EFFECT, ONE_OWNER, SAME_ANSWER,
    SHARED, UNCHANGED,
};
use crate::setting::{Policy, SKEW, Setting};
use crate::state::Budget;

/// A mistake in the store, the node or the ledger.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Bug {
    #[default]
    None,
    /// No write asks who owns the record.
    NoFence,
    /// A key is given back by whoever says so.
    ReleaseWithoutOwnership,
    /// An answer is written over whatever is there.
    LateFinisherOverwrites,
    /// The record expires with the lease.
    RecordAsShortAsLease,
    /// The lease lasts as long as the record.
    LeaseAsLongAsRecord,
    /// A lease counts as lapsed at its deadline, by anybody's clock.
    IgnoreSkew,
    /// A claim looks first, and writes later.
    CheckThenInsert,
    /// A claim without an answer is made again by another owner.
    NewOwnerOnRetry,
    /// A run that lost its lease gives its own answer.
    AnswerAfterLostLease,
    /// The store makes room by forgetting a record in progress.
    EvictLock,
    /// A renewal that comes late takes back what a later one was granted.
    RenewalGoesBack,
    /// A client that hangs up takes its run's lock with it, but not its effect.
    ReleaseOnDisconnect,
    /// A run whose answer the store did not take frees the key.
    FreeWhenNotRecorded,
    /// A claim that took a lost run's key over and did not start frees the key.
    UndoForgetsTheLostRun,
    /// A node takes a lapsed lease over from a run of its own that is alive.
    ForgetsTheLiving,
    /// Those who waited for a run claim the key again when it has ended.
    WaitersClaimAgain,
    /// The ledger says that a run did nothing, and lets it do it later.
    AskDoesNotFence,
}

const RETAKE: Setting = Setting {
    adversary: Setting::NOBODY,
    ..Setting::of("a seeded bug", Policy::Retake)
};
const HOLD: Setting = Setting {
    policy: Policy::Hold,
    ..RETAKE
};
const RECONCILE: Setting = Setting {
    policy: Policy::Reconcile,
    ..RETAKE
};

const LOSES_A_MESSAGE: Budget = Budget {
    faults: 1,
    ..Setting::NOBODY
};
const HANGS_UP: Budget = Budget {
    leaves: 1,
    ..Setting::NOBODY
};

/// One of them takes the key over, and hangs up.
const THREE_OF_RECONCILE: Setting = Setting {
    attempts: 3,
    ticks: 3,
    ..RECONCILE.against(HANGS_UP)
};
/// One of them is released, and its release is repeated.
const THREE_OF_HOLD: Setting = Setting {
    attempts: 3,
    ticks: 0,
    ..HOLD.against(Budget {
        odds: 1,
        ..LOSES_A_MESSAGE
    })
};

/// One of them does nothing, and another waits for it.
const WAITING: Setting = Setting {
    waits: true,
    ticks: 0,
    ..RETAKE.against(Budget {
        odds: 1,
        ..Setting::NOBODY
    })
};

const CAUGHT: [(Bug, Setting, &str); 25] = [
    (Bug::NoFence, RETAKE, ONE_OWNER),
    (Bug::NoFence, RETAKE, FENCED),
    (Bug::NoFence, THREE_OF_HOLD, HELD),
    (Bug::ReleaseWithoutOwnership, RETAKE, ONE_OWNER),
    (Bug::ReleaseWithoutOwnership, THREE_OF_HOLD, HELD),
    (Bug::LateFinisherOverwrites, RETAKE, UNCHANGED),
    (Bug::LateFinisherOverwrites, RETAKE, SAME_ANSWER),
    (Bug::RecordAsShortAsLease, RETAKE, UNCHANGED),
    (Bug::LeaseAsLongAsRecord, RETAKE, NOT_STUCK),
    (Bug::IgnoreSkew, RETAKE, ONE_OWNER),
    (Bug::IgnoreSkew, RETAKE, LAPSED),
    (Bug::CheckThenInsert, HOLD, ONE_OWNER),
    (Bug::CheckThenInsert, HOLD, HELD),
    (
        Bug::NewOwnerOnRetry,
        HOLD.against(LOSES_A_MESSAGE),
        NOT_BY_ITSELF,
    ),
    (Bug::AnswerAfterLostLease, RETAKE, SAME_ANSWER),
    (Bug::EvictLock, RETAKE, ONE_OWNER),
    (Bug::EvictLock, HOLD, HELD),
    (
        Bug::RenewalGoesBack,
        RETAKE.against(LOSES_A_MESSAGE),
        ONE_OWNER,
    ),
    (
        Bug::RenewalGoesBack,
        RETAKE.against(LOSES_A_MESSAGE),
        LAPSED,
    ),
    (Bug::ReleaseOnDisconnect, HOLD.against(HANGS_UP), HELD),
    (
        Bug::FreeWhenNotRecorded,
        HOLD.against(LOSES_A_MESSAGE),
        HELD,
    ),
    (Bug::UndoForgetsTheLostRun, THREE_OF_RECONCILE, ONE_EFFECT),
    (Bug::AskDoesNotFence, RECONCILE, ONE_EFFECT),
    (Bug::ForgetsTheLiving, RETAKE, LIVING),
    (Bug::WaitersClaimAgain, WAITING, SHARED),
];

#[test]
fn each_seeded_bug_is_caught() {
    for (bug, setting, property) in CAUGHT {
        counterexample(Setting { bug, ..setting }, property);
    }
}

#[test]
fn without_a_bug_nothing_is_caught() {
    for setting in [
        RETAKE.against(LOSES_A_MESSAGE),
        HOLD.against(LOSES_A_MESSAGE),
        HOLD.against(HANGS_UP),
        RECONCILE,
        THREE_OF_HOLD,
        THREE_OF_RECONCILE,
        WAITING,
    ] {
        exhaust(setting, &[]);
    }
}

#[test]
fn clocks_further_apart_than_they_may_be_are_caught() {
    let setting = Setting {
        offset: SKEW + 1,
        ..RETAKE
    };
    counterexample(setting, ONE_OWNER);
}
