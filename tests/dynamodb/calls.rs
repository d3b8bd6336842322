//! What each event costs: calls and write units.

use std::time::Duration;

use tower_idempotency::record::{Record, Renewal};
use tower_idempotency::store::{Claim, Fenced, Release, Store};
use tower_idempotency::{Answer, StoredResponse, Timestamp};

use crate::embedded::units::Units;
use crate::support::{
    Claimer, Dynamo, LEASE, RETENTION, SKEW, START, completes, completion, noise, orphan, renewal,
};

fn lapsed() -> Duration {
    LEASE + SKEW + Duration::from_micros(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_first_request_takes_two_calls() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let lease = Claimer::new().acquires(&store).await;
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    completes(&store, &lease, "answer").await;
    assert_eq!(dynamo.wire.calls(), ["UpdateItem"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_comes_second_takes_one_call() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    dynamo.wire.calls();

    let in_flight = first.other().claims(&store).await;
    assert!(matches!(in_flight, Ok(Claim::InProgress { .. })));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    let reused = first.other().for_another_request().claims(&store).await;
    assert!(matches!(reused, Ok(Claim::Reused)));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    let stays = first.other().without_taking_over().after(lapsed());
    assert!(matches!(
        stays.claims(&store).await,
        Ok(Claim::Orphaned { .. })
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    first.acquires(&store).await;
    assert_eq!(dynamo.wire.calls(), ["PutItem"], "its own claim again");

    completes(&store, &lease, "answer").await;
    dynamo.wire.calls();
    assert_eq!(first.other().is_answered(&store).await, "answer");
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    let reused = first.other().for_another_request().claims(&store).await;
    assert!(matches!(reused, Ok(Claim::Reused)));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_takes_two_calls_and_an_expired_answer_one() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    first.acquires(&store).await;
    dynamo.wire.calls();
    let second = first.other().after(lapsed());
    let lease = second.acquires(&store).await;
    assert_eq!(lease.attempt, 2);
    assert_eq!(dynamo.wire.calls(), ["PutItem", "PutItem"]);

    completes(&store, &lease, "answer").await;
    dynamo.wire.calls();
    let just_expired = Claimer {
        now: START.plus(RETENTION),
        ..second.other()
    };
    just_expired.acquires(&store).await;
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_else_takes_one_call() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for release in [orphan(), Release::Free] {
        let lease = Claimer::new().acquires(&store).await;
        dynamo.wire.calls();
        let renewed = store
            .renew(&lease.holder(), renewal(), START.plus(LEASE))
            .await;
        assert!(matches!(renewed, Ok(Fenced::Applied)));
        assert_eq!(dynamo.wire.calls(), ["UpdateItem"]);
        let released = store.release(&lease.holder(), release, START).await;
        assert!(matches!(released, Ok(Fenced::Applied)));
        assert_eq!(dynamo.wire.calls().len(), 1);
        let seen = store.get(&lease.key, START).await.expect("a look succeeds");
        assert_eq!(seen.is_some(), release != Release::Free);
        assert_eq!(dynamo.wire.calls(), ["GetItem"]);
        store.remove(&lease.key).await.expect("a removal succeeds");
        assert_eq!(dynamo.wire.calls(), ["DeleteItem"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_answer_takes_one_call_for_each_part_and_one_to_read_them_all() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    dynamo.wire.calls();
    completes(&store, &lease, noise(1_000_000)).await;
    let calls = dynamo.wire.calls();
    assert_eq!(calls, [vec!["PutItem"; 16], vec!["UpdateItem"]].concat());
    assert!(first.other().is_answered(&store).await == noise(1_000_000));
    assert_eq!(dynamo.wire.calls(), ["PutItem", "BatchGetItem"]);
    let seen = store.get(&lease.key, START).await;
    let seen = seen.map(|seen| seen.map(|record| record.by_clock(START)));
    assert!(matches!(seen, Ok(Some(Record::Completed(_)))));
    assert_eq!(dynamo.wire.calls(), ["GetItem", "BatchGetItem"]);
}

/// What a first request takes, with this answer.
async fn write_units(payload: bytes::Bytes) -> f64 {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    dynamo.wire.units();
    let lease = Claimer::new().acquires(&store).await;
    completes(&store, &lease, payload).await;
    dynamo.wire.units().writes
}

fn response(body: String) -> bytes::Bytes {
    let mut response = StoredResponse::new(http::StatusCode::CREATED, body);
    for (name, value) in [
        ("content-type", "application/json"),
        ("request-id", "req_8tnRhQqYxEzmfF"),
        ("location", "/v1/charges/ch_3MmlLrLkdIwHu7ix0snN0B15"),
    ] {
        let value = http::HeaderValue::from_static(value);
        response.headers.append(name, value);
    }
    Answer::Response(response).encode()
}

/// A list of charges as Stripe's API writes them.
fn charges(bytes: usize) -> String {
    let mut list = String::from("{\"object\":\"list\",\"url\":\"/v1/charges\",\"data\":[");
    let mut id = noise(usize::from(u16::MAX)).into_iter();
    while list.len() < bytes {
        let mut random = |length: usize| -> String {
            let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789";
            let bytes = id.by_ref().take(length);
            bytes
                .map(|byte| char::from(alphabet[usize::from(byte) % alphabet.len()]))
                .collect()
        };
        let charge = serde_json::json!({
            "id": format!("ch_{}", random(24)), "object": "charge", "amount": random(2).as_bytes()[0],
            "amount_captured": 1099, "application": null, "balance_transaction": format!("txn_{}", random(24)),
            "billing_details": { "address": { "city": null, "country": null, "line1": null }, "email": null, "name": random(12) },
            "captured": true, "created": 1_679_090_539, "currency": "usd", "customer": format!("cus_{}", random(14)),
            "disputed": false, "livemode": false, "metadata": { "order": random(10) }, "paid": true,
            "outcome": { "network_status": "approved_by_network", "risk_level": "normal", "risk_score": 32 },
            "payment_method_details": { "card": { "brand": "visa", "fingerprint": random(16), "last4": "4242" }, "type": "card" },
            "receipt_url": format!("https://pay.stripe.com/receipts/payment/{}", random(60)), "status": "succeeded",
        });
        list.push_str(&charge.to_string());
        list.push(',');
    }
    list.truncate(bytes - 2);
    list.push_str("]}");
    list
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_200_bytes_takes_two_write_units() {
    assert_eq!(write_units(response(charges(200))).await, 2.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_of_10_kilobytes_of_json_takes_at_most_four_write_units() {
    let units = write_units(response(charges(10_000))).await;
    assert!(units <= 4.0, "{units}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replay_of_100_kilobytes_takes_two_write_units_and_25_read_units_at_most() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, noise(100_000)).await;
    dynamo.wire.units();
    assert!(first.other().is_answered(&store).await == noise(100_000));
    let Units { writes, reads } = dynamo.wire.units();
    assert!(writes <= 2.0 && reads <= 25.0, "{writes} and {reads}");
    // Each claim is billed, and each read at half the price of one that sees every write.
    assert!(writes >= 1.0 && reads >= 12.0, "{writes} and {reads}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_that_is_refused_costs_what_the_head_costs_whatever_the_answer() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    dynamo.wire.units();
    for size in [200, 10_000, 380_000, 2_000_000] {
        let first = Claimer::new();
        let lease = first.acquires(&store).await;
        completes(&store, &lease, noise(size)).await;
        dynamo.wire.units();
        for _ in 0..3 {
            let reused = first.other().for_another_request().claims(&store).await;
            assert!(matches!(reused, Ok(Claim::Reused)));
        }
        assert_eq!(dynamo.wire.units(), Units::writes(3.0), "{size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_in_chunks_takes_hardly_more_than_its_size() {
    for size in [10_000, 100_000, 4 << 20] {
        let units = write_units(noise(size).into()).await;
        let ideal = size.div_ceil(1_024) as f64;
        assert!(units <= 1.01 * ideal + 3.0, "{units} for {size} bytes");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_compression_does_not_make_cheaper_is_stored_as_it_is() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await.max_inline_answer(usize::MAX);
    for (payload, encoding) in [
        (vec![7; 200], 0),
        (noise(5_000), 0),
        (charges(5_000).into_bytes(), 1),
    ] {
        let lease = Claimer::new().acquires(&store).await;
        completes(&store, &lease, payload).await;
        let item = dynamo.item().await;
        let data = item["data"].as_b().expect("binary").as_ref();
        assert_eq!(data[0], encoding, "{} bytes", data.len());
        store.remove(&lease.key).await.expect("a removal succeeds");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_times_for_powertools_and_for_time_to_live_are_rounded_up_with_a_margin_for_the_latter()
{
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let lease = Claimer::new().acquires(&store).await;
    let number = |item: &crate::support::Item, name: &str| -> u64 {
        let number = item[name].as_n().expect("a number");
        number.parse().expect("a whole number")
    };
    let item = dynamo.item().await;
    assert_eq!(number(&item, "in_progress_expiration"), 1_790_000_030_124);
    assert_eq!(number(&item, "deadline"), 1_790_000_030_123_456);
    assert_eq!(number(&item, "expiration"), 1_790_090_001);
    assert_eq!(number(&item, "expires_at"), 1_790_086_400_123_456);

    // A lease that outlives its record takes the item with it.
    let late = Renewal::new(Duration::from_secs(30 * 60 * 60), Duration::ZERO);
    store
        .renew(&lease.holder(), late, START)
        .await
        .expect("a renewal succeeds");
    let item = dynamo.item().await;
    assert_eq!(number(&item, "expiration"), 1_790_111_601);

    let mut completion = completion("answer");
    completion.retention = Timestamp::from_millis(1_790_000_001_001).since(START);
    let completed = store.complete(&lease.holder(), &completion, START).await;
    assert!(matches!(completed, Ok(Fenced::Applied)));
    let item = dynamo.item().await;
    assert_eq!(number(&item, "expiration"), 1_790_003_602);
    assert_eq!(number(&item, "expires_at"), 1_790_000_001_001_000);
    assert!(!item.contains_key("in_progress_expiration"));
    assert!(!item.contains_key("deadline"));
    assert_eq!(item["status"].as_s().map(String::as_str), Ok("COMPLETED"));
}
