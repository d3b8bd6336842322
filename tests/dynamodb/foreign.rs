//! Items that AWS Lambda Powertools wrote, with the id of a record.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use tower_idempotency::store::{Claim, Store};
use tower_idempotency::{RecordKey, StoreErrorKind, Timestamp};

use crate::support::{Claimer, Dynamo, Item, START};

/// As its persistence layer for DynamoDB writes them.
pub(crate) fn item(
    key: &RecordKey,
    status: &str,
    expires: Timestamp,
    lease: Option<Timestamp>,
) -> Item {
    let string = |text: &str| AttributeValue::S(text.to_owned());
    let number = |number: u64| AttributeValue::N(number.to_string());
    let mut item = Item::from([
        ("id".to_owned(), string(&key.to_string())),
        ("status".to_owned(), string(status)),
        ("expiration".to_owned(), number(expires.as_millis() / 1_000)),
    ]);
    if let Some(lease) = lease {
        let lease = number(lease.as_millis());
        item.insert("in_progress_expiration".to_owned(), lease);
    }
    if status == "COMPLETED" {
        item.insert("data".to_owned(), string("{\"paid\":true}"));
        item.insert("validation".to_owned(), string("c0ffee"));
    }
    item
}

fn later(seconds: u64) -> Timestamp {
    START.plus(Duration::from_secs(seconds))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_not_over_is_a_fault_that_is_named() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for (status, expires, lease) in [
        ("COMPLETED", later(60), None),
        ("INPROGRESS", later(60), Some(later(10))),
        // Powertools would take these over; here, nobody knows what became of their work.
        ("INPROGRESS", later(60), Some(Timestamp::EPOCH)),
        ("INPROGRESS", later(60), None),
        ("INPROGRESS", Timestamp::EPOCH, Some(later(10))),
    ] {
        let claimer = Claimer::new();
        dynamo
            .put(item(claimer.key.record_key(), status, expires, lease))
            .await;
        let claimed = claimer.claims(&store).await;
        let looked = store.get(claimer.key.record_key(), START).await;
        for error in [claimed.map(drop), looked.map(drop)] {
            let error = error.expect_err("it is none of ours");
            assert_eq!(error.kind(), StoreErrorKind::Damaged);
            let says = error.to_string();
            assert!(says.contains("was not written by this store"), "{says}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_is_over_is_as_good_as_none() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for (status, lease) in [
        ("COMPLETED", None),
        ("INPROGRESS", Some(Timestamp::EPOCH)),
        ("INPROGRESS", None),
    ] {
        let claimer = Claimer::new();
        dynamo
            .put(item(claimer.key.record_key(), status, START, lease))
            .await;
        let now = later(1);
        let looked = store.get(claimer.key.record_key(), now).await;
        assert!(matches!(looked, Ok(None)), "{looked:?}");
        let lease = claimer
            .clone()
            .after(Duration::from_secs(1))
            .acquires(&store)
            .await;
        assert_eq!(lease.attempt, 1);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_many_replaces_an_item_that_is_over() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for _ in 0..20 {
        let claimer = Claimer::new();
        dynamo
            .put(item(claimer.key.record_key(), "COMPLETED", START, None))
            .await;
        let claimer = claimer.after(Duration::from_secs(1));
        let mut racing = tokio::task::JoinSet::new();
        for _ in 0..8 {
            let (store, claimer) = (store.clone(), claimer.other());
            racing.spawn(async move { claimer.claims(&store).await });
        }
        let claims = racing.join_all().await;
        let won = |claim: &&Result<Claim, _>| matches!(claim, Ok(Claim::Acquired(_)));
        assert_eq!(claims.iter().filter(won).count(), 1, "{claims:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_without_a_time_is_never_over() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let claimer = Claimer::new();
    let mut item = item(claimer.key.record_key(), "COMPLETED", START, None);
    item.remove("expiration");
    dynamo.put(item).await;
    let late = claimer.after(Duration::from_secs(1 << 32));
    let error = late.claims(&store).await.expect_err("it is none of ours");
    assert_eq!(error.kind(), StoreErrorKind::Damaged);
    assert!(matches!(
        store.remove(late.key.record_key()).await,
        Ok(true)
    ));
    late.acquires(&store).await;
}
