//! What the checker came by: a model in which nothing happens has every property.

use std::sync::atomic::{AtomicU64, Ordering};

/// Something that can happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    AnsweredUnrecorded,
    ClaimCameBack,
    ClockWentBack,
    CrashedWhileRunning,
    Disconnected,
    EffectFenced,
    ExpiredKeyWasUsedAgain,
    ExpiredOrphanWasUsedAgain,
    GaveBack,
    LateClaimApplied,
    LateCompletionApplied,
    LateEndRefused,
    LateFinisherGotRecordedAnswer,
    LateFinisherRefused,
    LateReleaseApplied,
    LateRenewalApplied,
    LeaseLapsedBeforeStart,
    LivingHolderKeptItsLease,
    OrphanHeld,
    OrphanHeldThoughNothingWasDone,
    RecordedInBackground,
    Reconciled,
    ReleasedAndRunAgain,
    Renewed,
    Replayed,
    SharedAnAnswer,
    SharedAnEndWithoutAnswer,
    Swept,
    TakenOver,
    TakenOverAndRunAgain,
    TakenOverTwice,
    Undone,
    WaitedAndGotIn,
    Withheld,
}

/// All that was seen so far, by all threads of the checker.
#[derive(Debug, Default)]
pub(crate) struct Witness(AtomicU64);

impl Witness {
    pub(crate) fn note(&self, seen: Seen) {
        let bit = 1_u64 << seen as u32;
        // Read first: it is noted already almost always, and a write would stop other threads.
        if self.0.load(Ordering::Relaxed) & bit == 0 {
            self.0.fetch_or(bit, Ordering::Relaxed);
        }
    }

    pub(crate) fn has(&self, seen: Seen) -> bool {
        self.0.load(Ordering::Relaxed) & 1_u64 << seen as u32 != 0
    }
}
