//! What the conditions of writes keep from being overwritten.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use tower_idempotency::StoreErrorKind;

use crate::support::{Claimer, Dynamo, RETENTION, completes};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_a_later_format_is_not_replaced_however_old_it_is() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, "answer").await;
    let mut item = dynamo.item().await;
    item.insert("format".to_owned(), AttributeValue::N("2".to_owned()));
    dynamo.put(item.clone()).await;
    let late = first.other().after(RETENTION + Duration::from_secs(1));
    let error = late.claims(&store).await.expect_err("it is not known");
    assert_eq!(error.kind(), StoreErrorKind::Newer);
    assert_eq!(dynamo.item().await, item);
}
