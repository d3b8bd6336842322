//! What an attempt is told that ends after it has lost its lease.

use std::time::Duration;

use tower_idempotency::StoreErrorKind;
use tower_idempotency::store::{Fenced, Store};

use crate::support::{
    Claimer, Dynamo, LEASE, RETENTION, SKEW, START, completes, completion, noise, renewal,
};
use crate::wire::Fault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_another_request_is_not_told() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let late = first.acquires(&store).await.holder();
    let anew = first.other().for_another_request();
    let anew = anew.after(RETENTION + LEASE + SKEW);
    let successor = anew.acquires(&store).await;
    completes(&store, &successor, "of another").await;
    let fenced = store.complete(&late, &completion("late"), START).await;
    assert!(matches!(fenced, Ok(Fenced::LeaseLost(None))), "{fenced:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_renewal_that_was_overtaken_is_told_from_one_that_lost_its_lease() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let holder = first.acquires(&store).await.holder();
    let second = Duration::from_secs(1);
    for now in [START.plus(second), START] {
        let renewed = store.renew(&holder, renewal(), now).await;
        assert_eq!(renewed.expect("a renewal succeeds"), Fenced::Applied);
        assert_eq!(dynamo.deadline().await, START.plus(second + LEASE));
    }
    let later = first.other().after(second + LEASE + SKEW + second);
    later.acquires(&store).await;
    let renewed = store.renew(&holder, renewal(), START).await;
    assert!(
        matches!(renewed, Ok(Fenced::LeaseLost(None))),
        "{renewed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_cannot_be_read_now_is_a_passing_fault() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let late = first.acquires(&store).await.holder();
    let second = first.other().after(LEASE + SKEW + Duration::from_secs(1));
    let successor = second.acquires(&store).await;
    completes(&store, &successor, noise(900_000)).await;
    dynamo.wire.fail_always("BatchGetItem", Fault::LeavesOutAll);
    let fenced = store.complete(&late, &completion("late"), START).await;
    let error = fenced.expect_err("the answer cannot be had");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
}
