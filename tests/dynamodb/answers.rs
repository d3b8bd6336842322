//! Answers of all sizes, whole and damaged.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use axum::body::Body;
use http::{Request, Response, StatusCode};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::{Attribute, Claim, DynamoDbStore, Fenced, Store};
use tower_idempotency::{IdempotencyLayer, StoreErrorKind};

use crate::support::{
    Claimer, Dynamo, Item, LEASE, RETENTION, SKEW, START, TABLE, completes, completion, noise,
    renewal,
};
use crate::wire::Fault;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_around_the_item_limit_come_back() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await.max_inline_answer(usize::MAX);
    for size in [
        399_990, 399_991, 399_992, 400_000, 409_600, 800_000, 800_001,
    ] {
        let first = Claimer::new();
        let lease = first.acquires(&store).await;
        completes(&store, &lease, noise(size)).await;
        let answer = first.other().is_answered(&store).await;
        assert!(answer == noise(size), "{size} bytes came back other");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_longest_keys_leave_room_for_the_largest_item() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await.id_prefix("p".repeat(1_900));
    let store = store.max_inline_answer(usize::MAX);
    let long = "/x".repeat(5_000);
    let mut first = Claimer::new();
    first.key = tower_idempotency::IdempotencyKey::from_parts(&tower_idempotency::KeyParts {
        namespace: &long,
        scope: Some(&long),
        method: "POST",
        target: &long,
        key: &"k".repeat(255),
    })
    .expect("the key is valid");
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(399_991)).await;
    let answer = first.other().is_answered(&store).await;
    assert!(answer == noise(399_991));
    assert_eq!(dynamo.items().await.len(), 1, "in one item");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn eight_mebibytes_come_back() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    let answer = bytes::Bytes::from(noise(8 << 20));
    completes(&store, &lease, answer.clone()).await;
    dynamo.wire.calls();
    assert!(first.other().is_answered(&store).await == answer);
    // Up to 100 chunks come with one call.
    let calls = ["PutItem", "BatchGetItem", "BatchGetItem"];
    assert_eq!(dynamo.wire.calls(), calls);

    // A completion whose answer was lost is made again, and one that comes late is told.
    completes(&store, &lease, answer.clone()).await;
    let mut stranger = lease.holder();
    stranger.owner = first.other().owner;
    match store.complete(&stranger, &completion("late"), START).await {
        Ok(Fenced::LeaseLost(Some(recorded))) => assert!(*recorded.payload() == answer),
        other => panic!("not told the answer but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_that_compresses_well_stays_in_one_item() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, vec![7; 8 << 20]).await;
    dynamo.item().await;
    assert!(first.other().is_answered(&store).await == vec![7; 8 << 20]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_over_the_limit_is_too_large_for_good() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let lease = Claimer::new().acquires(&store).await;
    let answer = vec![7; DynamoDbStore::MAX_ANSWER + 1];
    let error = store
        .complete(&lease.holder(), &completion(answer), START)
        .await;
    let error = error.expect_err("it is too large");
    assert_eq!(error.kind(), StoreErrorKind::TooLarge);
    assert!(!error.may_have_been_applied());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_batch_leaves_out_is_asked_for_again() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(1_000_000)).await;
    dynamo.wire.calls();
    dynamo.wire.fail_next("BatchGetItem", Fault::LeavesOut);
    assert!(first.other().is_answered(&store).await == noise(1_000_000));
    let calls = dynamo.wire.calls();
    assert_eq!(calls, ["PutItem", "BatchGetItem", "BatchGetItem"]);

    // One part that DynamoDB never hands out is no damage: it is there, and may come later.
    dynamo.wire.fail_always("BatchGetItem", Fault::LeavesOutAll);
    let error = first.other().claims(&store).await;
    let error = error.expect_err("it is not whole");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_a_read_does_not_see_yet_is_read_again() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(300_000)).await;
    dynamo.wire.calls();
    dynamo.wire.fail_next("BatchGetItem", Fault::LagsBehind);
    assert!(first.other().is_answered(&store).await == noise(300_000));
    let calls = dynamo.wire.calls();
    assert_eq!(calls, ["PutItem", "BatchGetItem", "BatchGetItem"]);
}

/// What stood in one item, or in chunks of 400,000 bytes, before records had small heads.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_with_large_heads_and_large_chunks_are_still_read() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let inline = store.clone().max_inline_answer(usize::MAX);
    let first = Claimer::new();
    let lease = first.acquires(&inline).await;
    completes(&inline, &lease, noise(390_000)).await;
    dynamo.item().await;
    assert!(first.other().is_answered(&store).await == noise(390_000));
    store.remove(&lease.key).await.expect("a removal succeeds");

    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(900_000)).await;
    let (chunks, mut records): (Vec<_>, Vec<_>) =
        dynamo.items().await.into_iter().partition(is_chunk);
    for chunk in &chunks {
        let delete = dynamo.client().delete_item().table_name(TABLE);
        let deleted = delete.key("id", chunk["id"].clone()).send().await;
        deleted.expect("a removal succeeds");
    }
    let mut chunk = chunks[0].clone();
    let id = chunk["id"].as_s().expect("a string").clone();
    let (set, _) = id.rsplit_once('#').expect("a chunk is numbered");
    for (number, data) in noise(900_000).chunks(400_000).enumerate() {
        let id = AttributeValue::S(format!("{set}#{number}"));
        let data = AttributeValue::B(Blob::new(data));
        chunk.extend([("id".to_owned(), id), ("data".to_owned(), data)]);
        dynamo.put(chunk.clone()).await;
    }
    let count = AttributeValue::N("3".to_owned());
    records[0].insert("chunks".to_owned(), count);
    dynamo.put(records[0].clone()).await;
    assert!(first.other().is_answered(&store).await == noise(900_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chunks_go_by_time_to_live_and_after_their_record() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let lease = Claimer::new().acquires(&store).await;
    completes(&store, &lease, noise(500_000)).await;
    let expirations = |chunk: bool| {
        let number = |item: &Item| -> u64 {
            let number = item["expiration"].as_n().expect("a number");
            number.parse().expect("a whole number")
        };
        move |items: &[Item]| -> Vec<u64> {
            let of_kind = |item: &&Item| is_chunk(item) == chunk;
            items.iter().filter(of_kind).map(number).collect()
        }
    };
    let items = dynamo.items().await;
    let [record] = expirations(false)(&items)[..] else {
        panic!("one record");
    };
    let chunks = expirations(true)(&items);
    assert_eq!(chunks.len(), 8);
    assert!(chunks.iter().all(|&chunk| chunk > record), "{chunks:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_lost_its_lease_does_not_touch_the_chunks_of_its_successor() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let late = first.acquires(&store).await;
    let second = first.other().after(LEASE + SKEW + Duration::from_millis(1));
    let successor = second.acquires(&store).await;
    completes(&store, &successor, noise(900_000)).await;
    let fenced = store
        .complete(&late.holder(), &completion(vec![1; 30 << 20]), START)
        .await;
    assert!(matches!(fenced, Ok(Fenced::LeaseLost(Some(_)))));
    let mut other = noise(900_000);
    other.reverse();
    for attempt in [&late, &successor] {
        let fenced = store
            .complete(&attempt.holder(), &completion(other.clone()), START)
            .await;
        match fenced {
            Ok(Fenced::LeaseLost(Some(recorded))) => assert!(*recorded.payload() == noise(900_000)),
            fenced => panic!("not told the answer but {fenced:?}"),
        }
    }
    assert!(second.other().is_answered(&store).await == noise(900_000));
}

fn is_chunk(item: &Item) -> bool {
    !item.contains_key("status")
}

/// Completes a record with `payload`, lets `damage` at its items, and says what a claim and a
/// look then meet with.
async fn damaged(payload: Vec<u8>, damage: impl Fn(&mut Item) -> bool) {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, payload).await;
    let mut left_alone = true;
    for mut item in dynamo.items().await {
        let id = item["id"].clone();
        if damage(&mut item) {
            dynamo.put(item).await;
        } else {
            let delete = dynamo.client().delete_item().table_name(TABLE);
            let deleted = delete.key("id", id).send().await;
            deleted.expect("a removal succeeds");
        }
        left_alone = false;
    }
    assert!(!left_alone);
    let claimed = first.other().claims(&store).await;
    let looked = store.get(&lease.key, START).await;
    for error in [claimed.map(drop), looked.map(drop)] {
        let error = error.expect_err("the damage is noticed");
        assert_eq!(error.kind(), StoreErrorKind::Damaged, "{error}");
    }
    // Whoever is late still learns that the lease is lost.
    let mut late = lease.holder();
    late.owner = first.other().owner;
    let fenced = store.renew(&late, renewal(), START).await;
    assert!(matches!(fenced, Ok(Fenced::LeaseLost(None))), "{fenced:?}");

    // When time to live may delete it, it is forgotten.
    let margin = Duration::from_secs(60 * 60 + 1);
    let expired = first.other().after(RETENTION + margin);
    assert!(matches!(
        expired.claims(&store).await,
        Ok(Claim::Acquired(_))
    ));
}

type Change = fn(&mut Vec<u8>);

fn change_data(item: &mut Item, change: Change) {
    let mut data = item["data"].as_b().expect("binary").clone().into_inner();
    change(&mut data);
    item.insert("data".to_owned(), AttributeValue::B(Blob::new(data)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_missing_is_a_fault_of_the_store() {
    damaged(noise(900_000), |item| {
        let id = item["id"].as_s().expect("a string");
        !id.ends_with("#1")
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_changed_or_cut_is_a_fault_of_the_store() {
    let changes: [Change; 2] = [|data| data[1_000] ^= 1, |data| data.truncate(1_000)];
    for change in changes {
        damaged(noise(900_000), |item| {
            if is_chunk(item) {
                change_data(item, change);
            }
            true
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_changed_or_cut_is_a_fault_of_the_store() {
    let changes: [Change; 4] = [
        |data| {
            let last = data.len() - 2;
            data[last] ^= 1;
        },
        |data| {
            data.pop();
        },
        |data| data.truncate(5),
        |data| data[0] = 7,
    ];
    // As it is, and compressed.
    for payload in [noise(500), vec![7; 5_000]] {
        for change in changes {
            damaged(payload.clone(), |item| {
                change_data(item, change);
                true
            })
            .await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attribute_that_is_missing_or_of_another_type_is_a_fault_of_the_store() {
    let needed = [
        Attribute::Status,
        Attribute::Data,
        Attribute::Validation,
        Attribute::Claim,
        Attribute::ExpiresAt,
        Attribute::Format,
        Attribute::Owner,
    ];
    for attribute in needed.map(Attribute::default_name) {
        damaged(noise(500), |item| item.remove(attribute).is_some()).await;
        damaged(noise(500), |item| {
            let other = AttributeValue::Bool(true);
            item.insert(attribute.to_owned(), other).is_some()
        })
        .await;
    }
    damaged(noise(900_000), |item| {
        let many = AttributeValue::N("1025".to_owned());
        if !is_chunk(item) {
            item.insert("chunks".to_owned(), many);
        }
        true
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_of_a_later_format_is_named_and_never_taken_over() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    first.acquires(&store).await;
    let mut item = dynamo.item().await;
    item.insert("format".to_owned(), AttributeValue::N("3".to_owned()));
    dynamo.put(item).await;
    let long_after = Claimer {
        now: first.now.plus(RETENTION * 10),
        ..first.other()
    };
    let error = long_after.claims(&store).await;
    let error = error.expect_err("it is not known");
    assert_eq!(error.kind(), StoreErrorKind::Newer);
    let error = first.claims(&store).await.expect_err("it is not known");
    assert_eq!(error.kind(), StoreErrorKind::Newer);
    assert!(error.to_string().contains("is of format 3"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_whose_record_is_of_a_later_format_never_runs() {
    let dynamo = Dynamo::in_memory().await;
    let runs = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&runs);
    let service = service_fn(move |_: Request<Body>| {
        counted.fetch_add(1, Ordering::Relaxed);
        async { Ok::<_, Infallible>(Response::new(Body::from("charged"))) }
    });
    let service = IdempotencyLayer::new(dynamo.store().await).layer(service);
    let post = || {
        let request = Request::post("/charges")
            .header("idempotency-key", "k")
            .body(Body::from("x"))
            .expect("a valid request");
        async {
            let answered = service.clone().oneshot(request).await;
            answered.expect("the service does not fail")
        }
    };
    assert_eq!(post().await.status(), StatusCode::OK);
    let mut item = dynamo.item().await;
    item.insert("format".to_owned(), AttributeValue::N("3".to_owned()));
    dynamo.put(item.clone()).await;
    for _ in 0..2 {
        let refused = post().await;
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["idempotency-refused"], "record-newer");
        assert!(refused.headers().contains_key("retry-after"));
    }
    assert_eq!(runs.load(Ordering::Relaxed), 1);
    assert_eq!(dynamo.item().await, item);
}
