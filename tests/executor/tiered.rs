//! A near tier over an authority: what it costs, and whom it believes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::task::JoinSet;
use tower_idempotency::store::{MemoryStore, Store, Tiered};
use tower_idempotency::testing::{Call, Fault, FaultStore};
use tower_idempotency::{Answer, Executor, Fingerprint, Orphan, Ran, Reconciled, RunError};

use crate::support::{LEASE, RETENTION, SKEW, Work, elsewhere, eventually, fingerprint, key, on};

type Far = std::sync::Arc<FaultStore<MemoryStore>>;
type Node = Executor<Tiered<MemoryStore, Far>>;

/// A process with memory of its own over what all of them share.
fn node(far: &Far) -> Node {
    on(MemoryStore::new().over(Far::clone(far)))
}

fn shared() -> Far {
    std::sync::Arc::new(FaultStore::new(MemoryStore::new()))
}

/// All calls to the far tier so far.
fn calls(far: &Far) -> Vec<(Call, usize)> {
    let kinds = [
        Call::Claim,
        Call::Renew,
        Call::Complete,
        Call::Release,
        Call::Get,
        Call::Remove,
    ];
    let counts = kinds.into_iter().map(|call| (call, far.count(call)));
    counts.filter(|(_, count)| *count > 0).collect()
}

const FIRST: [(Call, usize); 2] = [(Call::Claim, 1), (Call::Complete, 1)];

#[tokio::test(start_paused = true)]
async fn a_first_request_is_two_calls_and_replays_here_are_none() {
    let (far, work) = (shared(), Work::quick());
    let here = node(&far);
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    assert_eq!(calls(&far), FIRST);
    for _ in 0..3 {
        assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    }
    assert_eq!(calls(&far), FIRST);
}

#[tokio::test(start_paused = true)]
async fn a_replay_elsewhere_is_one_call_and_then_none() {
    let (far, work) = (shared(), Work::quick());
    let (here, there) = (node(&far), node(&far));
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    for _ in 0..3 {
        assert!(matches!(work.under(&there).await, Ok(Ran::Replayed(1))));
    }
    assert_eq!(calls(&far), [(Call::Claim, 2), (Call::Complete, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_in_flight_is_no_call_here_and_one_elsewhere() {
    let (far, work) = (shared(), Work::slow());
    let (here, there) = (node(&far), node(&far));
    let first = work.spawned(&here).await;
    for _ in 0..3 {
        let duplicate = work.under(&here).await;
        assert!(matches!(duplicate, Err(RunError::InProgress { .. })));
    }
    assert_eq!(calls(&far), [(Call::Claim, 1)]);
    let duplicate = work.under(&there).await;
    assert!(matches!(duplicate, Err(RunError::InProgress { .. })));
    assert_eq!(calls(&far), [(Call::Claim, 2)]);
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_of_a_long_run_here_is_no_call_either() {
    let (far, work) = (shared(), Work::slow());
    let here = node(&far);
    let first = work.spawned(&here).await;
    tokio::time::sleep(LEASE * 3).await;
    let duplicate = work.under(&here).await;
    assert!(matches!(duplicate, Err(RunError::InProgress { .. })));
    assert_eq!(far.count(Call::Claim), 1);
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_duplicates_at_once_cost_what_one_request_costs() {
    let (far, work) = (shared(), Work::quick());
    let here = node(&far).wait_for_in_flight(Duration::from_secs(60));
    let mut all = JoinSet::new();
    for _ in 0..64 {
        let (work, here) = (work.clone(), here.clone());
        all.spawn(async move { work.under(&here).await });
    }
    for result in all.join_all().await {
        assert!(
            matches!(result, Ok(Ran::Executed(1) | Ran::Replayed(1))),
            "{result:?}"
        );
    }
    assert_eq!(work.begun(), 1);
    assert_eq!(calls(&far), FIRST);
}

#[tokio::test(start_paused = true)]
async fn duplicates_here_of_an_answer_from_elsewhere_ask_once() {
    let (far, work) = (shared(), Work::quick());
    let (here, there) = (node(&far), node(&far));
    assert!(matches!(work.under(&there).await, Ok(Ran::Executed(1))));
    far.fail_always(Call::Claim, Fault::Delayed(Duration::from_secs(1)));
    let mut all = JoinSet::new();
    for _ in 0..20 {
        let (work, here) = (work.clone(), here.clone());
        all.spawn(async move { work.under(&here).await });
    }
    for result in all.join_all().await {
        assert!(matches!(result, Ok(Ran::Replayed(1))), "{result:?}");
    }
    assert_eq!(far.count(Call::Claim), 2);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_waits_for_the_claim_here_but_not_for_its_run() {
    let (far, work) = (shared(), Work::slow());
    let here = node(&far);
    let second = Duration::from_secs(1);
    far.fail_always(Call::Claim, Fault::Delayed(second));
    let first = tokio::spawn({
        let (work, here) = (work.clone(), here.clone());
        async move { work.under(&here).await }
    });
    tokio::time::sleep(second / 2).await;
    let asked = tokio::time::Instant::now();
    let duplicate = work.under(&here).await;
    assert!(
        matches!(duplicate, Err(RunError::InProgress { .. })),
        "{duplicate:?}"
    );
    assert!(asked.elapsed() <= second, "{:?}", asked.elapsed());
    assert_eq!(far.count(Call::Claim), 1);
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_reused_is_no_call_here_and_one_elsewhere() {
    let (far, work) = (shared(), Work::slow());
    let (here, there) = (node(&far), node(&far));
    let other = async |node: &Node| {
        let inputs = Fingerprint::of(["amount=1300"]);
        node.run(&key(), inputs, || Work::quick().run()).await
    };
    let first = work.spawned(&here).await;
    assert!(matches!(other(&here).await, Err(RunError::KeyReused)));
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert!(matches!(other(&here).await, Err(RunError::KeyReused)));
    assert_eq!(calls(&far), FIRST);
    assert!(matches!(other(&there).await, Err(RunError::KeyReused)));
    assert_eq!(far.count(Call::Claim), 2);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_is_only_being_asked_for_is_not_yet_anothers() {
    let (far, work) = (shared(), Work::quick());
    let (here, there) = (node(&far), node(&far));
    assert!(matches!(work.under(&there).await, Ok(Ran::Executed(1))));
    let second = Duration::from_secs(1);
    far.fail_always(Call::Claim, Fault::Delayed(second));
    let other = tokio::spawn({
        let here = here.clone();
        let inputs = Fingerprint::of(["amount=1300"]);
        async move { here.run(&key(), inputs, || Work::quick().run()).await }
    });
    tokio::time::sleep(second / 2).await;
    let retry = work.under(&here).await;
    assert!(matches!(retry, Ok(Ran::Replayed(1))), "{retry:?}");
    let other = other.await.expect("no panic");
    assert!(matches!(other, Err(RunError::KeyReused)), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_key_that_was_asked_for_without_an_answer_is_nobodys() {
    let (far, work) = (shared(), Work::quick());
    let (here, there) = (node(&far), node(&far));
    assert!(matches!(work.under(&there).await, Ok(Ran::Executed(1))));
    far.fail_next(Call::Claim, Fault::RequestLost);
    far.fail_next(Call::Claim, Fault::RequestHangs);
    let other = tokio::spawn({
        let here = here.clone();
        let inputs = Fingerprint::of(["amount=1300"]);
        async move { here.run(&key(), inputs, || Work::quick().run()).await }
    });
    // The retry is there when the time for the other's second claim is over.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let retry = tokio::spawn({
        let (work, here) = (work.clone(), here.clone());
        async move { work.under(&here).await }
    });
    let retry = retry.await.expect("no panic");
    assert!(matches!(retry, Ok(Ran::Replayed(1))), "{retry:?}");
    let other = other.await.expect("no panic");
    assert!(matches!(other, Err(RunError::Store(_))), "{other:?}");
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_that_waits_here_is_woken_without_a_call() {
    let (far, work) = (shared(), Work::slow());
    let here = node(&far).wait_for_in_flight(Duration::from_secs(60));
    let first = work.spawned(&here).await;
    let waiting = tokio::spawn({
        let (work, here) = (work.clone(), here.clone());
        async move { work.under(&here).await }
    });
    tokio::time::sleep(Duration::from_secs(5)).await;
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert!(matches!(waiting.await, Ok(Ok(Ran::Replayed(1)))));
    assert_eq!(calls(&far), FIRST);
}

#[tokio::test(start_paused = true)]
async fn a_duplicate_that_waits_elsewhere_gets_the_answer() {
    let (far, work) = (shared(), Work::slow());
    let here = node(&far);
    let there = elsewhere(&node(&far).wait_for_in_flight(Duration::from_secs(60)));
    let first = work.spawned(&here).await;
    let waiting = tokio::spawn({
        let (work, there) = (work.clone(), there.clone());
        async move { work.under(&there).await }
    });
    tokio::time::sleep(Duration::from_secs(20)).await;
    let looks = far.count(Call::Get);
    assert!(
        (10..40).contains(&looks),
        "more and more rarely, not {looks} times"
    );
    work.end_one();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(1)))));
    assert!(matches!(waiting.await, Ok(Ok(Ran::Replayed(1)))));
}

#[tokio::test(start_paused = true)]
async fn a_deletion_is_seen_at_once_where_it_is_made_and_soon_elsewhere() {
    let (far, work) = (shared(), Work::quick());
    let there = node(&far);
    let store = MemoryStore::new()
        .over(Far::clone(&far))
        .near_lifetime(Duration::from_secs(60));
    let here = on(store);
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    let removed = there.store().remove(key().record_key()).await;
    assert!(removed.expect("a removal succeeds"));
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(2))));
    let removed = here.store().remove(key().record_key()).await;
    assert!(removed.expect("a removal succeeds"));
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(3))));
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_not_served_past_its_expiry() {
    let (far, work) = (shared(), Work::quick());
    let short = Duration::from_secs(30);
    let here = node(&far).retention(short);
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    tokio::time::sleep(short).await;
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(2))));
}

#[tokio::test(start_paused = true)]
async fn a_far_tier_out_of_reach_refuses_and_is_asked_again() {
    let (far, work) = (shared(), Work::quick());
    let here = node(&far);
    for fault in [Fault::Refused, Fault::RequestHangs] {
        far.fail_always(Call::Claim, fault);
        let refused = work.under(&here).await;
        assert!(
            matches!(refused, Err(RunError::Store(_))),
            "{fault:?}: {refused:?}"
        );
        far.heal();
    }
    assert_eq!(work.begun(), 0);
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
}

#[tokio::test(start_paused = true)]
async fn while_a_completion_is_under_way_this_process_has_the_answer() {
    let (far, work) = (shared(), Work::quick());
    let (here, there) = (node(&far), node(&far));
    far.fail_always(Call::Complete, Fault::Refused);
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    tokio::time::sleep(LEASE * 5).await;
    assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    let elsewhere = work.under(&there).await;
    assert!(
        matches!(elsewhere, Err(RunError::InProgress { .. })),
        "{elsewhere:?}"
    );
    far.heal();
    eventually(|| here.handle().in_flight() == 0).await;
    assert!(matches!(work.under(&there).await, Ok(Ran::Replayed(1))));
    assert_eq!(work.begun(), 1);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_withheld_is_withheld_from_all() {
    let (far, work) = (shared(), Work::quick());
    let here = node(&far).answer_unrecorded(false);
    for fault in [Fault::Refused, Fault::AnswerLost] {
        far.fail_always(Call::Complete, fault);
        let first = work.under(&here).await;
        assert!(matches!(first, Err(RunError::NotRecorded)), "{first:?}");
        let duplicate = work.under(&here).await;
        assert!(
            matches!(duplicate, Err(RunError::InProgress { .. })),
            "{duplicate:?}"
        );
        far.heal();
        eventually(|| here.handle().in_flight() == 0).await;
        let retry = work.under(&here).await.expect("it is recorded");
        assert_eq!(retry, Ran::Replayed(retry.into_inner()));
        let removed = here.store().remove(key().record_key()).await;
        assert!(removed.expect("the store answers"));
    }
    assert_eq!(work.begun(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_reconciled_answer_that_is_not_recorded_is_not_kept_near() {
    let (far, stuck) = (shared(), Work::slow());
    let asked = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&asked);
    let here = node(&far).orphan(Orphan::reconcile(move |_| {
        counter.fetch_add(1, Ordering::SeqCst);
        async { Reconciled::Completed(Answer::value(&42).expect("42 is JSON")) }
    }));
    let _lost = stuck.spawned(&elsewhere(&node(&far))).await;
    far.fail_always(Call::Renew, Fault::Refused);
    tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
    far.fail_next(Call::Complete, Fault::Refused);
    for times in 1..=2 {
        // Nobody tries again to record it, so the next request has to ask.
        let found = Work::quick().under(&here).await;
        assert!(matches!(found, Ok(Ran::Replayed(42))), "{found:?}");
        assert_eq!(asked.load(Ordering::SeqCst), times);
        tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
    }
    let elsewhere = Work::quick().under(&node(&far)).await;
    assert!(matches!(elsewhere, Ok(Ran::Replayed(42))), "{elsewhere:?}");
}

#[tokio::test(start_paused = true)]
async fn an_orphan_elsewhere_is_taken_over_here() {
    let (far, stuck) = (shared(), Work::slow());
    let (here, there) = (node(&far), elsewhere(&node(&far)));
    let lost = stuck.spawned(&there).await;
    far.fail_always(Call::Renew, Fault::Refused);
    tokio::time::sleep(LEASE + SKEW + Duration::from_secs(1)).await;
    far.heal();
    let answer = || async { Ok::<u32, &str>(77) };
    let taken_over = here.run(&key(), fingerprint(), answer).await;
    assert!(
        matches!(taken_over, Ok(Ran::Executed(77))),
        "{taken_over:?}"
    );
    stuck.end_one();
    let late = lost.await;
    assert!(matches!(late, Ok(Ok(Ran::Replayed(77)))), "{late:?}");
    assert!(matches!(stuck.under(&there).await, Ok(Ran::Replayed(77))));
}

#[tokio::test(start_paused = true)]
async fn an_orphan_here_is_held_for_all() {
    let far = shared();
    let (here, there) = (
        node(&far).orphan(Orphan::Hold),
        node(&far).orphan(Orphan::Hold),
    );
    let fails = || async { Err::<u32, _>("no outcome") };
    let lost = here.run(&key(), fingerprint(), fails).await;
    assert!(
        matches!(
            lost,
            Err(RunError::Work {
                error: "no outcome",
                ..
            })
        ),
        "{lost:?}"
    );
    for node in [&here, &there] {
        let held = Work::quick().under(node).await;
        assert!(
            matches!(held, Err(RunError::OutcomeUnknown { .. })),
            "{held:?}"
        );
    }
    tokio::time::sleep(RETENTION).await;
    assert!(matches!(
        Work::quick().under(&there).await,
        Ok(Ran::Executed(1))
    ));
}

#[tokio::test(start_paused = true)]
async fn a_near_tier_that_fails_is_a_miss() {
    let far = shared();
    let near = std::sync::Arc::new(FaultStore::new(MemoryStore::new()));
    let here = on(Tiered::new(std::sync::Arc::clone(&near), Far::clone(&far)));
    let work = Work::quick();
    for call in [Call::Claim, Call::Complete, Call::Release, Call::Get] {
        near.fail_always(call, Fault::Refused);
    }
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    assert_eq!(calls(&far), [(Call::Claim, 2), (Call::Complete, 1)]);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_cannot_be_kept_near_is_asked_for_again() {
    let far = shared();
    let near = std::sync::Arc::new(FaultStore::new(MemoryStore::new()));
    let here = on(Tiered::new(std::sync::Arc::clone(&near), Far::clone(&far)));
    let work = Work::quick();
    near.fail_always(Call::Complete, Fault::Refused);
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    for _ in 0..2 {
        let replay = work.under(&here).await;
        assert!(matches!(replay, Ok(Ran::Replayed(1))), "{replay:?}");
    }
    assert_eq!(calls(&far), [(Call::Claim, 3), (Call::Complete, 1)]);
}

#[tokio::test(start_paused = true)]
async fn a_key_that_the_near_tier_does_not_let_go_is_a_miss() {
    let far = shared();
    let near = std::sync::Arc::new(FaultStore::new(MemoryStore::new()));
    let here = on(Tiered::new(std::sync::Arc::clone(&near), Far::clone(&far)));
    for fault in [Fault::Refused, Fault::RequestHangs] {
        far.inner()
            .remove(key().record_key())
            .await
            .expect("memory does not fail");
        near.inner()
            .remove(key().record_key())
            .await
            .expect("memory does not fail");
        near.fail_next(Call::Complete, fault);
        near.fail_next(Call::Release, fault);
        let work = Work::quick();
        assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let claims = far.count(Call::Claim);
        for _ in 0..2 {
            let replay = work.under(&here).await;
            assert!(matches!(replay, Ok(Ran::Replayed(1))), "{replay:?}");
        }
        assert_eq!(far.count(Call::Claim), claims + 1, "kept near from then on");
        assert_eq!(work.begun(), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn a_request_of_another_meets_no_key_that_the_near_tier_did_not_let_go() {
    let far = shared();
    let near = std::sync::Arc::new(FaultStore::new(MemoryStore::new()));
    let here = on(Tiered::new(std::sync::Arc::clone(&near), Far::clone(&far)));
    near.fail_next(Call::Release, Fault::Refused);
    let key = key();
    let failed = here.run(&key, fingerprint(), || async { Err::<u32, _>("declined") });
    assert!(matches!(failed.await, Err(RunError::Work { .. })));
    let other = Fingerprint::of(["another request"]);
    let ran = here.run(&key, other, || async { Ok::<_, &str>(2) }).await;
    assert!(matches!(ran, Ok(Ran::Executed(2))), "{ran:?}");
}

#[tokio::test(start_paused = true)]
async fn a_near_tier_that_takes_a_claim_and_does_not_say_so_is_a_miss() {
    let far = shared();
    let near = std::sync::Arc::new(FaultStore::new(MemoryStore::new()));
    let here = on(Tiered::new(std::sync::Arc::clone(&near), Far::clone(&far)));
    near.fail_next(Call::Claim, Fault::AnswerHangs);
    let work = Work::quick();
    assert!(matches!(
        work.under(&node(&far)).await,
        Ok(Ran::Executed(1))
    ));
    for claims in [2, 3, 3] {
        assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
        assert_eq!(far.count(Call::Claim), claims);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_silent_near_tier_is_passed_over() {
    let far = shared();
    let near = std::sync::Arc::new(FaultStore::new(MemoryStore::new()));
    let here = on(Tiered::new(std::sync::Arc::clone(&near), Far::clone(&far)));
    for call in [
        Call::Claim,
        Call::Renew,
        Call::Complete,
        Call::Release,
        Call::Get,
    ] {
        near.fail_always(call, Fault::RequestHangs);
    }
    let work = Work::quick();
    let start = tokio::time::Instant::now();
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    // It is waited for once to claim, and once to let the key go.
    assert!(
        start.elapsed() <= Duration::from_millis(100),
        "{:?}",
        start.elapsed()
    );
    let (start, claims) = (tokio::time::Instant::now(), near.count(Call::Claim));
    for _ in 0..20 {
        assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(near.count(Call::Claim), claims);
    near.heal();
    tokio::time::sleep(Duration::from_secs(1)).await;
    let asked = far.count(Call::Claim);
    for _ in 0..2 {
        assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    }
    assert_eq!(far.count(Call::Claim), asked + 1, "it is a near tier again");
}

#[tokio::test(start_paused = true)]
async fn a_small_near_tier_forgets_and_asks() {
    let far = shared();
    let here = on(MemoryStore::with_capacity(1).over(Far::clone(&far)));
    let work = Work::quick();
    assert!(matches!(work.under(&here).await, Ok(Ran::Executed(1))));
    for _ in 0..3 {
        assert!(matches!(work.under(&here).await, Ok(Ran::Replayed(1))));
    }
    assert_eq!(work.begun(), 1);
}
