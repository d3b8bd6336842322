//! What stays of what has expired, and what a sweep deletes.

use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use tower_idempotency::Timestamp;
use tower_idempotency::record::Renewal;
use tower_idempotency::store::{DynamoDbStore, Store};

use crate::support::{Claimer, Dynamo, Item, LEASE, RETENTION, START, completes, noise, scanned};

const MARGIN: Duration = Duration::from_secs(60 * 60);

fn later(duration: Duration) -> Timestamp {
    START.plus(duration + Duration::from_secs(2))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_has_expired_is_swept_with_its_chunks_in_every_layout() {
    let dynamo = Dynamo::in_memory().await;
    let client = dynamo.client();
    for (table, store) in [
        ("plain", DynamoDbStore::new(client.clone(), "plain")),
        (
            "sorted",
            DynamoDbStore::new(client.clone(), "sorted").sort_key("sk", "idempotency"),
        ),
        (
            "fixed",
            DynamoDbStore::new(client.clone(), "fixed")
                .fixed_sort_key("sk", "record")
                .id_prefix("idempotency#"),
        ),
    ] {
        store.create_table().await.expect("the table is made");
        let lease = Claimer::new().acquires(&store).await;
        completes(&store, &lease, noise(1_500_000)).await;
        Claimer::new().acquires(&store).await;
        let living = Claimer::new().after(2 * MARGIN).acquires(&store).await;
        let before = scanned(&client, table).await.len();

        let swept = store.sweep(later(RETENTION)).await;
        assert_eq!(
            swept.expect("it is swept"),
            0,
            "nobody is behind by a margin"
        );
        let swept = store.sweep(later(RETENTION + MARGIN)).await;
        assert_eq!(swept.expect("it is swept"), 2, "the chunks go after it");
        let swept = store.sweep(later(RETENTION + 2 * MARGIN)).await;
        let swept = swept.expect("it is swept");
        assert_eq!(swept as usize, before - 3, "all but the one that lives");
        assert_eq!(scanned(&client, table).await.len(), 1);
        let seen = store.get(&living.key, START).await;
        assert!(seen.expect("a look succeeds").is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_whose_lease_is_renewed_is_not_swept() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let lease = Claimer::new().acquires(&store).await;
    let long = later(RETENTION + 2 * MARGIN);
    let renewal = Renewal::new(long.since(START) + LEASE, Duration::ZERO);
    let renewed = store.renew(&lease.holder(), renewal, START).await;
    renewed.expect("a renewal succeeds");
    assert_eq!(store.sweep(long).await.expect("it is swept"), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_of_others_are_not_swept() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await.id_prefix("idempotency#");
    for id in ["order-1".to_owned(), "0123456789abcdef".repeat(4)] {
        let item = Item::from([
            ("id".to_owned(), AttributeValue::S(id)),
            ("expiration".to_owned(), AttributeValue::N("1".to_owned())),
        ]);
        dynamo.put(item).await;
    }
    let swept = store.sweep(later(RETENTION)).await;
    assert_eq!(swept.expect("it is swept"), 0);
    assert_eq!(dynamo.items().await.len(), 2);
}

/// Between its being found and its being deleted, a record may be claimed anew.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_claimed_under_a_sweep_stays() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, "answer").await;
    let now = later(RETENTION + MARGIN);
    let (held, go_on) = dynamo.wire.hold_next("DeleteItem");
    let sweeping = tokio::spawn({
        let store = store.clone();
        async move { store.sweep(now).await }
    });
    held.await.expect("the sweep is on its way");
    let again = Claimer {
        now,
        ..first.other()
    };
    again.acquires(&store).await;
    go_on.send(()).expect("it waits");
    let swept = sweeping.await.expect("no panic");
    assert_eq!(swept.expect("it is swept"), 0);
    let seen = store.get(again.key.record_key(), now).await;
    assert!(seen.expect("a look succeeds").is_some());
}
