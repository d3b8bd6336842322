//! Work on nodes with memory over DynamoDB, while the way to DynamoDB fails.

use std::time::Duration;

use tower_idempotency::store::DynamoDbStore;
use tower_idempotency::{Clock, Fingerprint, RunError, StoreErrorKind, SystemClock, Timestamp};

use crate::foreign;
use crate::support::{Dynamo, TABLE};
use crate::wire::Fault;
use crate::work::{Node, Result, Work, is_executed, is_in_progress, is_replayed, key, node};

const THROTTLED: Fault = Fault::Answered(400, "ProvisionedThroughputExceededException");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn work_whose_claim_loses_its_answer_runs_once() {
    for (retries, fault) in [
        (false, Fault::AnswerLost),
        (true, Fault::AnswerLost),
        (false, Fault::AnswerCut),
    ] {
        let dynamo = Dynamo::in_memory().await;
        let (here, there) = (here(&dynamo, retries).await, node(&dynamo.elsewhere()));
        let work = Work::default();
        dynamo.wire.fail_next("PutItem", fault);
        is_executed(&work.under(&here, "1").await);
        assert_eq!(dynamo.wire.calls(), ["PutItem", "PutItem", "UpdateItem"]);
        is_replayed(&work.under(&there, "1").await);
        assert_eq!(work.runs(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_whose_completion_loses_its_answer_is_recorded_once() {
    for (retries, fault) in [
        (false, Fault::AnswerLost),
        (true, Fault::AnswerLost),
        (false, Fault::AnswerCut),
    ] {
        let dynamo = Dynamo::in_memory().await;
        let (here, there) = (here(&dynamo, retries).await, node(&dynamo.elsewhere()));
        let work = Work::default();
        dynamo.wire.fail_next("UpdateItem", fault);
        is_executed(&work.under(&here, "1").await);
        is_replayed(&work.under(&there, "1").await);
        here.handle().idle().await;
        let calls = ["PutItem", "UpdateItem", "UpdateItem"];
        assert_eq!(dynamo.wire.calls(), calls, "retries: {retries}");
        is_replayed(&work.under(&here, "1").await);
        is_replayed(&work.under(&there, "1").await);
        let stats = here.handle().stats();
        assert_eq!(stats.completions_retried, u64::from(!retries));
        assert_eq!(stats.leases_lost, 0);
        assert_eq!(work.runs(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_whose_release_loses_its_answer_is_free() {
    for retries in [false, true] {
        let dynamo = Dynamo::in_memory().await;
        let (here, there) = (here(&dynamo, retries).await, node(&dynamo.elsewhere()));
        let work = Work::default();
        dynamo.wire.fail_next("DeleteItem", Fault::AnswerLost);
        fails(&here).await;
        here.handle().idle().await;
        let calls = ["PutItem", "DeleteItem", "DeleteItem"];
        assert_eq!(dynamo.wire.calls()[..3], calls, "retries: {retries}");
        assert_eq!(here.handle().stats().leases_lost, 0);
        is_executed(&work.under(&there, "1").await);
        is_replayed(&work.under(&here, "1").await);
        assert_eq!(work.runs(), 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_release_that_is_made_again_leaves_the_next_run_alone() {
    let dynamo = Dynamo::in_memory().await;
    let (here, there) = (here(&dynamo, false).await, node(&dynamo.elsewhere()));
    let work = Work::slow();
    dynamo.wire.fail_next("DeleteItem", Fault::AnswerLost);
    fails(&here).await;
    // The key is free, and taken, before the first node has tried again.
    let next = work.spawned(&there, "1").await;
    here.handle().idle().await;
    let again = Work::default();
    is_in_progress(&again.under(&here, "1").await);
    work.end();
    is_executed(&next.await.expect("no panic"));
    is_replayed(&again.under(&here, "1").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_dynamodb_nothing_runs() {
    for retries in [false, true] {
        let dynamo = Dynamo::in_memory().await;
        let here = here(&dynamo, retries).await;
        let work = Work::default();
        dynamo.wire.go_down();
        for _ in 0..2 {
            let refused = work.under(&here, "1").await;
            is_refused(&refused, StoreErrorKind::Unavailable);
        }
        dynamo.wire.heal();
        dynamo.wire.fail_always("PutItem", THROTTLED);
        let refused = work.under(&here, "1").await;
        is_refused(&refused, StoreErrorKind::Unavailable);
        assert_eq!(work.runs(), 0);
        assert!(dynamo.items().await.is_empty());
        dynamo.wire.heal();
        is_executed(&work.under(&here, "1").await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_dynamodb_does_not_take_is_given_here_and_recorded_once_it_does() {
    for throttled in [false, true] {
        let dynamo = Dynamo::in_memory().await;
        let (here, there) = (here(&dynamo, true).await, node(&dynamo.elsewhere()));
        let work = Work::slow();
        let first = work.spawned(&here, "1").await;
        match throttled {
            false => dynamo.wire.go_down(),
            true => dynamo.wire.fail_always("UpdateItem", THROTTLED),
        }
        dynamo.wire.calls();
        work.end();
        is_executed(&first.await.expect("no panic"));

        let again = Work::default();
        for _ in 0..3 {
            is_replayed(&again.under(&here, "1").await);
        }
        is_in_progress(&again.under(&there, "1").await);
        // All that was sent meanwhile is the completion, again and again.
        let calls = dynamo.wire.calls();
        assert!(calls.iter().all(|call| call == "UpdateItem"), "{calls:?}");
        assert_eq!(here.handle().in_flight(), 1);

        dynamo.wire.heal();
        here.handle().idle().await;
        is_replayed(&again.under(&there, "1").await);
        assert_eq!(here.handle().stats().completions_retried, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_table_nothing_runs() {
    let dynamo = Dynamo::in_memory().await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE);
    let (here, work) = (node(&store), Work::default());
    for _ in 0..2 {
        let refused = work.under(&here, "1").await;
        is_refused(&refused, StoreErrorKind::Unusable);
    }
    assert_eq!(work.runs(), 0);
    store.create_table().await.expect("the table is made");
    is_executed(&work.under(&here, "1").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_of_powertools_in_the_place_of_a_record_runs_nothing_until_it_is_over() {
    for status in ["COMPLETED", "INPROGRESS"] {
        let dynamo = Dynamo::in_memory().await;
        let (here, work) = (here(&dynamo, false).await, Work::default());
        let tomorrow = SystemClock.now().plus(Duration::from_secs(24 * 60 * 60));
        let theirs = |expires| foreign::item(key().record_key(), status, expires, None);
        dynamo.put(theirs(tomorrow)).await;
        for _ in 0..2 {
            let refused = work.under(&here, "1").await;
            is_refused(&refused, StoreErrorKind::Damaged);
        }
        assert_eq!(work.runs(), 0);
        assert_eq!(dynamo.item().await, theirs(tomorrow), "it is as it was");

        dynamo.put(theirs(Timestamp::EPOCH)).await;
        is_executed(&work.under(&here, "1").await);
        is_replayed(&work.under(&here, "1").await);
    }
}

/// A node whose calls meet with the faults of the wire, and whose SDK retries or does not.
async fn here(dynamo: &Dynamo, retries: bool) -> Node {
    let store = dynamo.store().await;
    node(&if retries { dynamo.retrying() } else { store })
}

/// A run that fails, which releases the key.
async fn fails(node: &Node) {
    let failing = || async { Err::<u32, _>("failed") };
    let failed = node.run(&key(), Fingerprint::of(["1"]), failing).await;
    let is_failed = matches!(
        failed,
        Err(RunError::Work {
            error: "failed",
            ..
        })
    );
    assert!(is_failed, "{failed:?}");
}

#[track_caller]
fn is_refused(result: &Result, kind: StoreErrorKind) {
    match result {
        Err(RunError::Store(error)) => assert_eq!(error.kind(), kind, "{error}"),
        other => panic!("the store did not fail but {other:?}"),
    }
}
