//! Everything that can happen within the bounds, for each of several settings.

use stateright::{Checker, Model, Path};

use crate::adversary::Action;
use crate::checked::{Checked, Look};
use crate::properties::{self, SAME_ANSWER};
use crate::setting::{Policy, Setting};
use crate::state::{Budget, State};
use crate::witness::Seen;

const THREADS: usize = 2;

#[test]
fn with_retake_every_property_holds() {
    exhaust(
        Setting::of("one of each", Policy::Retake),
        &[
            Seen::ClaimCameBack,
            Seen::CrashedWhileRunning,
            Seen::Disconnected,
            Seen::LateClaimApplied,
            Seen::LateCompletionApplied,
            Seen::LateEndRefused,
            Seen::LateFinisherGotRecordedAnswer,
            Seen::LateFinisherRefused,
            Seen::LateReleaseApplied,
            Seen::LateRenewalApplied,
            Seen::LeaseLapsedBeforeStart,
            Seen::LivingHolderKeptItsLease,
            Seen::RecordedInBackground,
            Seen::ReleasedAndRunAgain,
            Seen::Renewed,
            Seen::Replayed,
            Seen::TakenOver,
            Seen::TakenOverAndRunAgain,
            Seen::Undone,
            Seen::Withheld,
        ],
    );
}

#[test]
fn with_hold_every_property_holds() {
    exhaust(
        Setting::of("one of each", Policy::Hold),
        &[
            Seen::ClaimCameBack,
            Seen::CrashedWhileRunning,
            Seen::Disconnected,
            Seen::LateClaimApplied,
            Seen::LateCompletionApplied,
            Seen::LateReleaseApplied,
            Seen::LateRenewalApplied,
            Seen::LeaseLapsedBeforeStart,
            Seen::OrphanHeld,
            Seen::RecordedInBackground,
            Seen::ReleasedAndRunAgain,
            Seen::Replayed,
            Seen::Withheld,
        ],
    );
}

#[test]
fn with_reconcile_every_property_holds() {
    let setting = Setting {
        adversary: Budget {
            leaves: 0,
            ..Setting::ADVERSARY
        },
        ..Setting::of("one of each", Policy::Reconcile)
    };
    exhaust(
        setting,
        &[
            Seen::CrashedWhileRunning,
            Seen::EffectFenced,
            Seen::LateCompletionApplied,
            Seen::Reconciled,
            Seen::TakenOverAndRunAgain,
        ],
    );
}

/// Claims that are given back, and ends that are tried again.
#[test]
fn two_lost_or_repeated_messages_break_nothing() {
    let setting = |policy| Setting {
        adversary: Budget {
            faults: 2,
            ..Setting::NOBODY
        },
        ..Setting::of("two faults", policy)
    };
    let seen = [Seen::ClaimCameBack, Seen::GaveBack, Seen::LateClaimApplied];
    exhaust(setting(Policy::Retake), &seen);
    exhaust(setting(Policy::Hold), &seen);
}

/// Nobody crashes, and yet there is an orphan whose attempt did nothing: its claim came late.
#[test]
fn a_claim_that_comes_late_can_leave_a_key_held_for_nothing() {
    let setting = Setting {
        adversary: Budget {
            faults: 1,
            leaves: 1,
            ..Setting::NOBODY
        },
        ..Setting::of("a late claim", Policy::Hold)
    };
    exhaust(setting, &[Seen::OrphanHeldThoughNothingWasDone]);
}

/// Each waits for the others' runs.
#[test]
fn three_requests_at_once_break_nothing() {
    for policy in [Policy::Retake, Policy::Hold] {
        let setting = Setting {
            attempts: 3,
            ticks: 2,
            waits: true,
            adversary: Budget {
                faults: 1,
                odds: 1,
                ..Setting::NOBODY
            },
            ..Setting::of("three at once", policy)
        };
        let seen = [
            Seen::Replayed,
            Seen::SharedAnAnswer,
            Seen::SharedAnEndWithoutAnswer,
            Seen::WaitedAndGotIn,
        ];
        exhaust(setting, &seen);
    }
}

/// The last finds what two have left that were stopped past their leases.
#[test]
fn three_requests_after_each_other_break_nothing() {
    for policy in [Policy::Retake, Policy::Reconcile] {
        let setting = Setting {
            attempts: 3,
            ticks: 7,
            adversary: Setting::NOBODY,
            ..Setting::of("three after each other", policy)
        };
        exhaust(setting, &[Seen::TakenOverTwice, Seen::Renewed]);
    }
}

/// One of which is released, or leaves no outcome, or is not known to the ledger.
#[test]
fn three_requests_with_reconcile_do_the_work_once() {
    let setting = Setting {
        attempts: 3,
        adversary: Budget {
            odds: 2,
            ..Setting::NOBODY
        },
        ..Setting::of("three, and a ledger", Policy::Reconcile)
    };
    let seen = [
        Seen::EffectFenced,
        Seen::Reconciled,
        Seen::ReleasedAndRunAgain,
    ];
    exhaust(setting, &seen);
}

#[test]
fn a_clock_that_goes_back_breaks_nothing_within_the_skew() {
    for policy in [Policy::Retake, Policy::Hold, Policy::Reconcile] {
        let setting = Setting {
            adversary: Budget {
                crashes: 1,
                jumps: 2,
                ..Setting::NOBODY
            },
            ..Setting::of("a clock that goes back", policy)
        };
        exhaust(setting, &[Seen::ClockWentBack, Seen::Renewed]);
    }
}

#[test]
fn records_that_expire_break_nothing() {
    let setting = Setting {
        retention: 4,
        ticks: 5,
        adversary: Budget {
            faults: 1,
            ..Setting::NOBODY
        },
        ..Setting::of("answers expire", Policy::Retake)
    };
    let seen = [
        Seen::ExpiredKeyWasUsedAgain,
        Seen::LateClaimApplied,
        Seen::Swept,
    ];
    exhaust(setting, &seen);
    let setting = Setting {
        retention: 5,
        ticks: 6,
        adversary: Budget {
            crashes: 1,
            ..Setting::NOBODY
        },
        ..Setting::of("orphans expire", Policy::Hold)
    };
    let seen = [
        Seen::ExpiredOrphanWasUsedAgain,
        Seen::OrphanHeld,
        Seen::Swept,
    ];
    exhaust(setting, &seen);
}

/// The one hole that is left open by default: with `Retake`, another answer can follow one that
/// was given before it was recorded.
#[test]
fn an_answer_given_unrecorded_is_the_only_hole_and_only_with_retake() {
    let setting = |policy| Setting {
        answer_unrecorded: true,
        adversary: Budget {
            leaves: 0,
            ..Setting::ADVERSARY
        },
        ..Setting::of("answers given unrecorded", policy)
    };
    let seen = [Seen::AnsweredUnrecorded, Seen::RecordedInBackground];
    counterexample(setting(Policy::Retake), SAME_ANSWER);
    let others = Look::NotAt(SAME_ANSWER);
    exhaust_looking(setting(Policy::Retake), others, &seen);
    exhaust(setting(Policy::Hold), &seen);
    exhaust(setting(Policy::Reconcile), &seen);
}

#[test]
#[ignore = "takes minutes"]
fn wider_bounds_break_nothing() {
    for policy in [Policy::Retake, Policy::Hold, Policy::Reconcile] {
        let crash = Budget {
            crashes: 1,
            ..Setting::NOBODY
        };
        let crash_and_fault = Budget { faults: 1, ..crash };
        for (name, attempts, ticks, adversary) in [
            ("two, for long", 2, 8, crash_and_fault),
            ("three, a crash and a fault", 3, 3, crash_and_fault),
            ("three, a crash, for long", 3, 7, crash),
        ] {
            let setting = Setting {
                attempts,
                ticks,
                adversary,
                ..Setting::of(name, policy)
            };
            exhaust(setting, &[Seen::CrashedWhileRunning, Seen::Replayed]);
        }
    }
}

/// Goes through all states, and finds every property in each of them.
pub(crate) fn exhaust(setting: Setting, seen: &[Seen]) {
    exhaust_looking(setting, Look::AtAll, seen);
}

fn exhaust_looking(setting: Setting, look: Look, seen: &[Seen]) {
    let checker = Checked::new(setting, look)
        .checker()
        .threads(THREADS)
        .spawn_bfs()
        .join();
    println!(
        "{}, {:?}: {} states, up to {} steps deep",
        setting.name,
        setting.policy,
        checker.unique_state_count(),
        checker.max_depth()
    );
    if let Some(path) = checker.discoveries().into_values().next() {
        let broken: Vec<_> = properties::broken(checker.model(), path.last_state()).collect();
        panic!("{setting:?} breaks {broken:?}:\n{}", told(&path));
    }
    assert!(checker.is_done(), "the checker stopped before the end");
    for it in seen {
        assert!(
            checker.model().witness.has(*it),
            "{setting:?} never comes by {it:?}"
        );
    }
}

/// Finds out how `property` is broken.
pub(crate) fn counterexample(setting: Setting, property: &'static str) {
    let checker = Checked::new(setting, Look::OnlyAt(property))
        .checker()
        .threads(THREADS)
        .spawn_bfs()
        .join();
    let states = checker.unique_state_count();
    let Some(path) = checker.discoveries().into_values().next() else {
        panic!("in {states} states of {setting:?}, {property} all the same");
    };
    println!(
        "{:?} breaks {property:?}, after {states} states:\n{}",
        setting.bug,
        told(&path)
    );
}

fn told(path: &Path<State, Action>) -> String {
    let actions = path.clone().into_actions();
    actions
        .iter()
        .map(|action| format!("    {action:?}\n"))
        .collect()
}
