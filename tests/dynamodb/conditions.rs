//! What writes leave as it is, and what they change.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use tower_idempotency::StoreErrorKind;
use tower_idempotency::store::{Fenced, Release, Store};

use crate::support::{Claimer, Dynamo, LEASE, RETENTION, START, completes, renewal};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_later_format_is_not_replaced_however_old_it_is() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, "answer").await;
    let mut item = dynamo.item().await;
    item.insert("format".to_owned(), AttributeValue::N("3".to_owned()));
    dynamo.put(item.clone()).await;
    let late = first.other().after(RETENTION + Duration::from_secs(1));
    let error = late.claims(&store).await.expect_err("it is not known");
    assert_eq!(error.kind(), StoreErrorKind::Newer);
    assert_eq!(dynamo.item().await, item);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn powertools_sees_when_a_lease_ends_that_was_renewed_or_given_up() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let holder = Claimer::new().acquires(&store).await.holder();
    let now = START.plus(Duration::from_secs(10));
    let told = async || dynamo.item().await["in_progress_expiration"].clone();
    let renewed = store.renew(&holder, renewal(), now).await;
    assert_eq!(renewed.expect("a renewal succeeds"), Fenced::Applied);
    let millis = now.plus(LEASE).as_micros().div_ceil(1_000);
    assert_eq!(told().await, AttributeValue::N(millis.to_string()));
    let orphan = Release::orphan(RETENTION, Some(504));
    let released = store.release(&holder, orphan, now).await;
    assert_eq!(released.expect("a release succeeds"), Fenced::Applied);
    assert_eq!(told().await, AttributeValue::N("0".to_owned()));
}
