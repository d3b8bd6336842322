//! Stores with one mistake each, and the behaviours of the suite that they break.

mod mistake;
mod store;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, Weak};

use tower_idempotency::testing::ManualClock;
use tower_idempotency::testing::conformance::{Capabilities, NotKept, Suite, behaviours};

use self::mistake::Mistake;
use self::mistake::Mistake as M;
use self::store::{BrokenStore, LARGEST, Records};

/// Each mistake, the behaviour that names what it breaks, and those that cannot be kept with it.
const MISTAKES: &[(Mistake, &str, &[&str])] = &[
    (
        M::ChecksThenInserts,
        "of_many_claims_one_gets_the_lease",
        &[
            "of_many_claims_one_takes_an_orphan_over",
            "of_many_claims_one_gets_a_key_that_expires",
            "of_completion_and_takeover_one_wins",
            "of_completion_and_claim_at_expiry_one_wins",
            "of_renewal_and_takeover_one_wins",
            "of_many_claims_through_two_handles_one_gets_the_lease",
        ],
    ),
    (
        M::LocksThenInserts,
        "a_claim_that_was_dropped_half_way_can_be_made_again",
        &[],
    ),
    (
        M::RepeatedClaimIsInProgress,
        "a_claim_repeated_by_its_owner_gets_the_same_lease",
        &["a_claim_that_was_dropped_half_way_can_be_made_again"],
    ),
    (
        M::RepeatedClaimGetsANewToken,
        "a_claim_repeated_by_its_owner_gets_the_same_lease",
        &[],
    ),
    (
        M::ReplaysToAnotherCaller,
        "another_caller_with_the_key_is_refused",
        &["callers_are_compared_before_requests"],
    ),
    (
        M::ComparesTheRequestFirst,
        "callers_are_compared_before_requests",
        &[],
    ),
    (
        M::ReplaysAnotherRequest,
        "another_request_with_the_key_is_refused",
        &[],
    ),
    (
        M::TrustsAnUnknownRecipe,
        "a_record_of_an_unknown_recipe_is_in_progress_or_not_compared",
        &[],
    ),
    (
        M::IgnoresAcceptedRecipes,
        "a_record_is_compared_by_a_recipe_that_is_accepted",
        &[],
    ),
    (
        M::TellsTheWrongStart,
        "a_key_that_is_held_is_in_progress_for_others",
        &[],
    ),
    (
        M::IgnoresTakeOver,
        "an_orphan_is_held_for_those_who_may_not_take_over",
        &[
            "a_renewal_moves_the_expiry_of_the_record",
            "an_orphaning_release_leaves_an_orphan_at_once",
            "an_orphan_keeps_the_status_it_ended_with",
            "a_repeated_orphaning_release_is_applied",
            "a_renewal_after_an_orphaning_release_frees_nothing",
            "an_orphans_retention_counts_from_its_end",
            "another_handle_sees_the_same_records",
        ],
    ),
    (
        M::IgnoresTheSkew,
        "a_lease_lapses_only_after_the_clock_skew",
        &[],
    ),
    (
        M::IgnoresTheLiving,
        "a_lease_of_a_living_holder_does_not_lapse",
        &[],
    ),
    (
        M::KeepsTheToken,
        "a_takeover_gets_a_higher_token",
        &[
            "an_orphaning_release_leaves_an_orphan_at_once",
            "an_orphan_is_forgotten_when_its_retention_ends",
            "tokens_grow_when_time_runs_back",
        ],
    ),
    (
        M::TakesTheTokenFromTheClock,
        "tokens_grow_when_time_runs_back",
        &["an_orphaning_release_leaves_an_orphan_at_once"],
    ),
    (
        M::CountsNoAttempts,
        "a_takeover_is_the_next_attempt",
        &[
            "an_orphaning_release_leaves_an_orphan_at_once",
            "a_renewal_after_an_orphaning_release_frees_nothing",
        ],
    ),
    (M::ForgetsTheAge, "a_takeover_keeps_the_age_of_the_key", &[]),
    (
        M::NeverTakesOver,
        "a_lapsed_lease_is_taken_over",
        &[
            "a_record_is_compared_by_a_recipe_that_is_accepted",
            "a_takeover_is_the_next_attempt",
            "a_takeover_gets_a_higher_token",
            "a_takeover_keeps_the_age_of_the_key",
            "an_orphan_is_held_for_those_who_may_not_take_over",
            "a_renewed_lease_lives_longer",
            "a_renewal_after_a_takeover_is_refused",
            "only_the_owner_renews",
            "a_completion_after_a_takeover_is_refused",
            "a_release_after_a_takeover_is_refused",
            "an_orphaning_release_leaves_an_orphan_at_once",
            "an_orphan_keeps_the_status_it_ended_with",
            "a_renewal_after_an_orphaning_release_frees_nothing",
            "of_many_claims_one_takes_an_orphan_over",
            "of_completion_and_takeover_one_wins",
            "of_renewal_and_takeover_one_wins",
            "a_release_never_frees_a_successors_lease",
            "time_that_runs_back_within_the_skew_changes_nothing",
            "tokens_grow_when_time_runs_back",
            "another_handle_sees_the_same_records",
        ],
    ),
    (
        M::TakesOverWhenTimeRunsBack,
        "time_that_runs_back_within_the_skew_changes_nothing",
        &["tokens_grow_when_time_runs_back"],
    ),
    (
        M::ShortensTheLease,
        "a_claim_gets_the_lease_it_asked_for",
        &[
            "a_key_that_is_held_is_in_progress_for_others",
            "a_lapsed_lease_is_taken_over",
            "a_lease_lapses_only_after_the_clock_skew",
        ],
    ),
    (M::NeverWakes, "a_waiter_if_there_is_one_sees_the_end", &[]),
    (
        M::CompletesWithoutACondition,
        "only_the_owner_completes",
        &[
            "an_owner_completes_once",
            "a_completion_after_a_takeover_is_refused",
            "a_completion_after_a_release_is_refused",
            "a_completion_after_a_removal_is_refused",
            "of_completion_and_takeover_one_wins",
            "of_completion_and_claim_at_expiry_one_wins",
            "of_many_completions_by_one_owner_one_is_recorded",
            "another_handle_sees_the_same_records",
        ],
    ),
    (
        M::CompletesTwice,
        "an_owner_completes_once",
        &[
            "a_completion_after_a_takeover_is_refused",
            "of_many_completions_by_one_owner_one_is_recorded",
        ],
    ),
    (
        M::RefusesARepeatedCompletion,
        "a_completion_repeated_by_its_owner_is_applied",
        &["a_completion_that_was_dropped_half_way_can_be_made_again"],
    ),
    (
        M::CompletesAfterLooking,
        "of_completion_and_takeover_one_wins",
        &[
            "of_completion_and_claim_at_expiry_one_wins",
            "of_many_completions_by_one_owner_one_is_recorded",
        ],
    ),
    (
        M::DeletesThenInserts,
        "a_completion_that_was_dropped_half_way_can_be_made_again",
        &[
            "of_completion_and_claim_at_expiry_one_wins",
            "of_completion_and_takeover_one_wins",
            "of_many_completions_by_one_owner_one_is_recorded",
        ],
    ),
    (
        M::RefusesALapsedOwner,
        "a_lapsed_lease_that_nobody_took_can_be_completed",
        &[],
    ),
    (
        M::TellsLosersNothing,
        "a_completion_after_a_takeover_is_refused",
        &[
            "a_completion_repeated_by_its_owner_is_applied",
            "a_completion_that_was_dropped_half_way_can_be_made_again",
            "an_owner_completes_once",
            "of_many_completions_by_one_owner_one_is_recorded",
        ],
    ),
    (
        M::ReleasesWithoutAFence,
        "only_the_owner_releases",
        &[
            "a_release_after_a_takeover_is_refused",
            "a_repeated_release_changes_nothing",
            "a_release_never_frees_a_successors_lease",
        ],
    ),
    (
        M::ReleasesAfterLooking,
        "a_release_never_frees_a_successors_lease",
        &[],
    ),
    (
        M::ReleasesWhatIsCompleted,
        "a_release_after_completion_removes_nothing",
        &["a_release_after_a_takeover_is_refused"],
    ),
    (
        M::FreesAnOrphan,
        "an_orphaning_release_leaves_an_orphan_at_once",
        &[
            "an_orphan_keeps_the_status_it_ended_with",
            "a_repeated_orphaning_release_is_applied",
            "a_renewal_after_an_orphaning_release_frees_nothing",
            "an_orphans_retention_counts_from_its_end",
            "tokens_grow_when_time_runs_back",
            "another_handle_sees_the_same_records",
        ],
    ),
    (
        M::OrphansWhatIsReleased,
        "a_released_key_can_be_claimed",
        &["a_completion_after_a_release_is_refused"],
    ),
    (
        M::ForgetsTheStatus,
        "an_orphan_keeps_the_status_it_ended_with",
        &["a_renewal_after_an_orphaning_release_frees_nothing"],
    ),
    (
        M::CountsAnOrphansRetentionFromItsClaim,
        "an_orphans_retention_counts_from_its_end",
        &[],
    ),
    (
        M::RenewsWithoutAFence,
        "only_the_owner_renews",
        &[
            "a_renewal_after_a_takeover_is_refused",
            "of_renewal_and_takeover_one_wins",
        ],
    ),
    (
        M::RenewsAfterLooking,
        "of_renewal_and_takeover_one_wins",
        &[],
    ),
    (
        M::RenewsWhatIsCompleted,
        "a_renewal_after_completion_does_not_reopen_the_key",
        &[],
    ),
    (
        M::RenewsBackwards,
        "a_renewal_never_moves_a_deadline_back",
        &[],
    ),
    (
        M::RenewsNothing,
        "a_renewed_lease_lives_longer",
        &[
            "a_renewal_never_moves_a_deadline_back",
            "a_renewal_moves_the_expiry_of_the_record",
            "a_lapsed_lease_that_nobody_took_can_be_renewed",
            "of_renewal_and_takeover_one_wins",
        ],
    ),
    (
        M::RefusesToRenewALapsedLease,
        "a_lapsed_lease_that_nobody_took_can_be_renewed",
        &["a_renewal_after_an_orphaning_release_frees_nothing"],
    ),
    (
        M::RenewsTheLeaseAlone,
        "a_renewal_moves_the_expiry_of_the_record",
        &[],
    ),
    (
        M::FreesARenewedOrphan,
        "a_renewal_after_an_orphaning_release_frees_nothing",
        &[],
    ),
    (
        M::ForgetsWhatIsHeld,
        "a_live_lease_outlives_its_records_expiry",
        &["a_lease_of_a_living_holder_does_not_lapse"],
    ),
    (
        M::KeepsAnswersForEver,
        "an_answer_is_forgotten_when_it_expires",
        &[
            "tokens_grow_over_the_lives_of_a_record",
            "of_many_claims_one_gets_a_key_that_expires",
        ],
    ),
    (M::HoldsAnswersBack, "a_completed_key_gives_its_answer", &[]),
    (
        M::ReadsAReplica,
        "an_answer_once_given_is_given_to_all",
        &[
            "a_completed_key_gives_its_answer",
            "a_completion_that_was_dropped_half_way_can_be_made_again",
            "a_record_is_compared_by_a_recipe_that_is_accepted",
            "a_release_after_a_takeover_is_refused",
            "a_release_after_completion_removes_nothing",
            "an_answer_is_forgotten_when_it_expires",
            "an_answer_of_a_mebibyte_comes_back",
            "an_answer_of_any_size_and_bytes_comes_back",
            "of_completion_and_claim_at_expiry_one_wins",
            "of_completion_and_takeover_one_wins",
            "of_many_completions_by_one_owner_one_is_recorded",
        ],
    ),
    (
        M::KeepsOrphansForEver,
        "an_orphan_is_forgotten_when_its_retention_ends",
        &["an_orphans_retention_counts_from_its_end"],
    ),
    (
        M::FailsOnLargeAnswers,
        "an_answer_of_a_mebibyte_comes_back",
        &[],
    ),
    (
        M::CutsAnswersAt16Bits,
        "an_answer_of_any_size_and_bytes_comes_back",
        &[
            "a_completion_that_was_dropped_half_way_can_be_made_again",
            "an_answer_of_a_mebibyte_comes_back",
        ],
    ),
    (
        M::WritesWhatItRefuses,
        "an_answer_that_is_too_large_is_refused_and_changes_nothing",
        &[],
    ),
    (M::GetShowsWhatHasExpired, "get_hides_what_has_expired", &[]),
    (
        M::GetShowsAnswersOnly,
        "get_shows_what_is_there",
        &["a_live_lease_outlives_its_records_expiry"],
    ),
    (
        M::RemoveSaysFalse,
        "remove_says_whether_there_was_a_record",
        &[],
    ),
    (
        M::RemovesOnlyAnswers,
        "remove_forgets_a_key",
        &[
            "a_completion_after_a_removal_is_refused",
            "remove_says_whether_there_was_a_record",
        ],
    ),
    (
        M::GoesByTheCallersClock,
        "a_clock_of_its_own_is_all_it_goes_by",
        &[],
    ),
    (M::KeepsTheStart, "a_lapsed_lease_is_taken_over", &[]),
    (
        M::EachHandleApart,
        "another_handle_sees_the_same_records",
        &[
            "of_many_claims_through_two_handles_one_gets_the_lease",
            "records_survive_their_store",
        ],
    ),
    (M::ForgetsWhenClosed, "records_survive_their_store", &[]),
];

#[tokio::test(start_paused = true)]
async fn each_mistake_is_caught_by_the_behaviour_that_names_it() {
    let mut wrong = Vec::new();
    for (mistake, named, others) in MISTAKES {
        let broken = broken(*mistake).await;
        let expected = others.iter().chain([named]).copied().collect();
        if broken != expected {
            wrong.push((mistake, broken));
        }
    }
    assert!(wrong.is_empty(), "these break others: {wrong:#?}");
}

#[tokio::test(start_paused = true)]
async fn the_store_without_a_mistake_breaks_nothing() {
    assert_eq!(broken(M::None).await, BTreeSet::new());
}

#[test]
fn each_behaviour_is_broken_by_some_mistake() {
    let caught: BTreeSet<_> = MISTAKES
        .iter()
        .flat_map(|(_, named, others)| others.iter().chain([named]))
        .copied()
        .collect();
    let all = behaviours::<BrokenStore>();
    let names = all.iter().map(|behaviour| behaviour.name());
    assert_eq!(caught, names.collect());
}

#[tokio::test(start_paused = true)]
#[should_panic(
    expected = "only_the_owner_completes is broken: a completion by a stranger is refused, with \
                what is recorded in its place: expected LeaseLost(None), got Applied"
)]
async fn a_broken_promise_is_told_with_what_was_expected_and_what_came() {
    let suite = suite(M::CompletesWithoutACondition);
    suite.keeps("only_the_owner_completes").await;
}

#[tokio::test(start_paused = true)]
#[should_panic(expected = "there is no behaviour all_is_well")]
async fn a_behaviour_that_does_not_exist_is_not_kept() {
    suite(M::None).keeps("all_is_well").await;
}

#[tokio::test(start_paused = true)]
async fn all_tells_of_every_broken_promise() {
    let all = tokio::spawn(async { suite(M::EachHandleApart).all().await });
    let panic = all.await.expect_err("the store is broken").into_panic();
    let message = panic.downcast_ref::<String>().expect("it is a text");
    let names = message.lines().filter_map(|line| line.split(' ').next());
    let broken = broken(M::EachHandleApart).await;
    assert_eq!(names.collect::<BTreeSet<_>>(), broken);
}

#[tokio::test(start_paused = true)]
async fn what_a_store_cannot_do_is_skipped_and_nothing_else() {
    let can = Capabilities::all();
    for (capabilities, skipped) in [
        (
            can,
            &["a_clock_of_its_own_is_all_it_goes_by", TOO_LARGE][..],
        ),
        (
            can.largest_answer(LARGEST),
            &["a_clock_of_its_own_is_all_it_goes_by"],
        ),
        (
            can.largest_answer(100_000).persists(false).shares(false),
            &[
                "a_clock_of_its_own_is_all_it_goes_by",
                "an_answer_of_a_mebibyte_comes_back",
                "another_handle_sees_the_same_records",
                "of_many_claims_through_two_handles_one_gets_the_lease",
                "records_survive_their_store",
            ],
        ),
    ] {
        let suite = suite(M::None).capabilities(capabilities);
        let mut found = BTreeSet::new();
        for behaviour in behaviours() {
            if let Err(NotKept::Skipped { .. }) = suite.run(&behaviour).await {
                found.insert(behaviour.name());
            }
        }
        assert_eq!(found, skipped.iter().copied().collect(), "{capabilities:?}");
    }
}

const TOO_LARGE: &str = "an_answer_that_is_too_large_is_refused_and_changes_nothing";

/// Returns the names of the behaviours that a store with this mistake breaks.
async fn broken(mistake: Mistake) -> BTreeSet<&'static str> {
    let suite = suite(mistake);
    let mut broken = BTreeSet::new();
    for behaviour in behaviours() {
        if let Err(NotKept::Broken { .. }) = suite.run(&behaviour).await {
            broken.insert(behaviour.name());
        }
    }
    broken
}

fn suite(mistake: Mistake) -> Suite<BrokenStore> {
    let can = Capabilities::all().largest_answer(LARGEST);
    if mistake == M::GoesByTheCallersClock {
        let clock = ManualClock::new();
        let store = BrokenStore::with_clock(mistake, clock.clone());
        return Suite::of(store).clock_is_set_by(move |now| clock.set(now));
    }
    let records = Records::default();
    let last = Mutex::new(Weak::new());
    let make_store = move || {
        let records = match mistake {
            M::EachHandleApart => Records::default(),
            // Those that an open handle has, if there is one.
            M::ForgetsWhenClosed => {
                let mut last = last.lock().expect("nothing panics");
                let records = last.upgrade().unwrap_or_default();
                *last = Arc::downgrade(&records);
                records
            }
            _ => Arc::clone(&records),
        };
        std::future::ready(BrokenStore::new(mistake, records))
    };
    Suite::made_by(make_store, can)
}
