//! Items of the format before, which are read, held, ended and taken over as those of today, and
//! fields of a later version, which stay.

use std::time::Duration;

use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::AttributeValue;
use tower_idempotency::record::{Extras, Lease, Record};
use tower_idempotency::store::{Claim, Fenced, Release, Store};
use tower_idempotency::{RecordKey, Timestamp};

use crate::support::{
    Claimer, Dynamo, Item, LEASE, RETENTION, SKEW, START, completes, completion, orphan, renewal,
};

fn number(number: u64) -> AttributeValue {
    AttributeValue::N(number.to_string())
}

fn string(text: &str) -> AttributeValue {
    AttributeValue::S(text.to_owned())
}

fn binary(bytes: impl Into<Vec<u8>>) -> AttributeValue {
    AttributeValue::B(Blob::new(bytes))
}

const CREATED: Timestamp = Timestamp::from_micros(1_789_999_000_000_007);
const STARTED: Timestamp = Timestamp::from_micros(1_789_999_999_000_009);
const TOKEN: u64 = 1_789_999_999_000_011;

/// The second attempt at a key, as format 1 has it: number by number.
fn in_progress(claimer: &Claimer) -> Item {
    let key_parts = [
        ("target", string("/v1/charges")),
        ("key", string("5d0f3b1c")),
    ];
    let key_parts = key_parts.map(|(name, value)| (name.to_owned(), value));
    let attributes = [
        ("id", string(&claimer.key.record_key().to_string())),
        ("format", number(1)),
        ("status", string("INPROGRESS")),
        ("validation", binary(claimer.identity.to_bytes())),
        ("owner", binary(claimer.owner.as_bytes())),
        ("token", number(TOKEN)),
        ("attempt", number(2)),
        ("created_at", number(CREATED.as_micros())),
        ("started_at", number(STARTED.as_micros())),
        ("deadline", number(START.plus(LEASE).as_micros())),
        ("in_progress_expiration", number(1_790_000_030_124)),
        ("expires_at", number(START.plus(RETENTION).as_micros())),
        ("expiration", number(1_790_090_001)),
        ("key_parts", AttributeValue::M(key_parts.into())),
    ];
    attributes
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

/// The lease that [`in_progress`] is.
fn lease(claimer: &Claimer, record: Option<Record>) -> Lease {
    let Some(Record::InProgress(lease)) = record else {
        panic!("not in progress but {record:?}");
    };
    assert_eq!(lease.owner, claimer.owner);
    assert_eq!(lease.identity, claimer.identity);
    assert_eq!(lease.token.as_u64(), TOKEN);
    assert_eq!(lease.attempt, 2);
    assert_eq!(lease.created_at, CREATED);
    assert_eq!(lease.started_at, STARTED);
    assert_eq!(lease.deadline, START.plus(LEASE));
    assert_eq!(lease.expires_at, START.plus(RETENTION));
    assert_eq!(lease.first_status, None);
    lease
}

/// A completed record in format 1, its answer the byte `x`.
fn completed(claimer: &Claimer) -> Item {
    let mut item = in_progress(claimer);
    item.remove("deadline");
    item.remove("in_progress_expiration");
    item.insert("status".to_owned(), string("COMPLETED"));
    // Plain, CRC-32, length, and the answer.
    let data = [0, 0x83, 0x16, 0xdc, 0x8c, 1, 0, 0, 0, b'x'];
    item.insert("data".to_owned(), binary(data));
    item
}

/// Turns an item of today into one of the format before.
pub(crate) fn older(mut item: Item) -> Item {
    let claim = item.remove("claim").expect("the item is of today");
    let claim = claim.as_b().expect("binary").as_ref();
    let part = |at: std::ops::Range<usize>| {
        let part = claim[at].iter();
        number(part.fold(0, |number, &byte| number << 8 | u64::from(byte)))
    };
    let attributes = [
        ("format", number(1)),
        ("token", part(0..8)),
        ("attempt", part(8..12)),
        ("created_at", part(12..20)),
        ("started_at", part(20..28)),
    ];
    item.extend(attributes.map(|(name, value)| (name.to_owned(), value)));
    item
}

async fn seen(dynamo: &Dynamo, key: &RecordKey) -> Option<Record> {
    let seen = dynamo.elsewhere().get(key, START).await;
    seen.expect("a look succeeds")
        .map(|seen| seen.by_clock(START))
}

fn lapsed() -> Duration {
    LEASE + SKEW + Duration::from_micros(1)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_written_today() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    first.acquires(&store).await;
    let second = first.other().after(lapsed());
    let lease = second.acquires(&store).await;
    let item = dynamo.item().await;
    let mut names: Vec<&str> = item.keys().map(String::as_str).collect();
    names.sort_unstable();
    let expected = [
        "claim",
        "deadline",
        "expiration",
        "expires_at",
        "format",
        "id",
        "in_progress_expiration",
        "key_parts",
        "owner",
        "status",
        "validation",
    ];
    assert_eq!(names, expected);
    assert_eq!(item["format"], number(2));
    let token = lease.token.as_u64().to_be_bytes();
    let attempt = 2_u32.to_be_bytes();
    let [created_at, started_at] = [START, second.now].map(|time| time.as_micros().to_be_bytes());
    let claim = [&token[..], &attempt, &created_at, &started_at].concat();
    assert_eq!(item["claim"], binary(claim));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_record_in_progress_is_held_by_its_owner_alone() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let key = first.key.record_key();
    dynamo.put(in_progress(&first)).await;
    lease(&first, seen(&dynamo, key).await);
    match first.claims(&store).await {
        Ok(Claim::Acquired(own)) => {
            lease(&first, Some(Record::InProgress(own.by_clock(START))));
        }
        other => panic!("not its own but {other:?}"),
    }
    match first.other().claims(&store).await {
        Ok(Claim::InProgress { lease: held, .. }) => {
            lease(&first, Some(Record::InProgress(held.by_clock(START))));
        }
        other => panic!("not in progress but {other:?}"),
    }
    let reused = first.other().for_another_request().claims(&store).await;
    assert!(matches!(reused, Ok(Claim::Reused)));
    assert_eq!(dynamo.item().await, in_progress(&first));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_orphan_is_taken_over_and_its_holder_told() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    dynamo.put(in_progress(&first)).await;
    let late = lease(&first, seen(&dynamo, first.key.record_key()).await);
    let second = first.other().after(lapsed());
    let stays = second.clone().without_taking_over().claims(&store).await;
    assert!(matches!(stays, Ok(Claim::Orphaned(_))), "{stays:?}");
    let successor = second.acquires(&store).await;
    assert_eq!(successor.attempt, 3);
    assert_eq!(successor.created_at, CREATED);
    assert!(successor.token.as_u64() > TOKEN);
    let item = dynamo.item().await;
    assert_eq!(item["format"], number(2));
    assert!(!item.contains_key("token"), "{item:?}");

    let renewed = store.renew(&late.holder(), renewal(), START).await;
    assert!(matches!(renewed, Ok(Fenced::LeaseLost(None))));
    completes(&store, &successor, "x").await;
    let fenced = store
        .complete(&late.holder(), &completion("late"), START)
        .await;
    assert!(
        matches!(fenced, Ok(Fenced::LeaseLost(Some(_)))),
        "{fenced:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_lease_that_was_renewed_is_not_taken_over() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    dynamo.put(in_progress(&first)).await;
    let held = lease(&first, seen(&dynamo, first.key.record_key()).await);
    let second = first.other().after(lapsed());
    // Between the claim that sees it and the one that would take it over.
    let (waits, goes_on) = dynamo.wire.hold_second("PutItem");
    let claims = tokio::spawn({
        let (store, second) = (store.clone(), second.clone());
        async move { second.claims(&store).await }
    });
    waits.await.expect("it sees an orphan");
    let renewed = dynamo.elsewhere();
    let renewed = renewed.renew(&held.holder(), renewal(), second.now).await;
    assert!(matches!(renewed, Ok(Fenced::Applied)));
    goes_on.send(()).expect("it waits");
    let claimed = claims.await.expect("it does not panic");
    assert!(
        matches!(claimed, Ok(Claim::InProgress { .. })),
        "{claimed:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_record_is_renewed_and_ended_by_its_holder_and_keeps_its_format() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let key = first.key.record_key();
    dynamo.put(in_progress(&first)).await;
    let held = lease(&first, seen(&dynamo, key).await);
    let later = START.plus(Duration::from_secs(10));
    let renewed = store.renew(&held.holder(), renewal(), later).await;
    assert!(matches!(renewed, Ok(Fenced::Applied)));
    let Some(Record::InProgress(renewed)) = seen(&dynamo, key).await else {
        panic!("it is in progress");
    };
    assert_eq!(renewed.deadline, later.plus(LEASE));
    assert_eq!(renewed.token.as_u64(), TOKEN);

    let released = store.release(&held.holder(), orphan(), later).await;
    assert!(matches!(released, Ok(Fenced::Applied)));
    let claimed = first.other().without_taking_over().claims(&store).await;
    assert!(matches!(claimed, Ok(Claim::Orphaned(_))), "{claimed:?}");

    completes(&store, &held, "x").await;
    assert_eq!(dynamo.item().await["format"], number(1));
    assert_eq!(first.other().is_answered(&store).await, "x");

    dynamo.put(in_progress(&first)).await;
    let freed = store.release(&held.holder(), Release::Free, later).await;
    assert!(matches!(freed, Ok(Fenced::Applied)));
    assert!(dynamo.items().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_answer_is_replayed_and_once_expired_replaced_in_one_call() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    dynamo.put(completed(&first)).await;
    match first.other().claims(&store).await {
        Ok(Claim::Completed(recorded)) => {
            let recorded = recorded.by_clock(START);
            assert_eq!(recorded.payload, "x");
            assert_eq!(recorded.created_at, CREATED);
            assert_eq!(recorded.expires_at, START.plus(RETENTION));
        }
        other => panic!("not answered but {other:?}"),
    }
    let reused = first.other().for_another_request().claims(&store).await;
    assert!(matches!(reused, Ok(Claim::Reused)));
    dynamo.wire.calls();
    let lease = first.other().after(RETENTION).acquires(&store).await;
    assert_eq!(lease.attempt, 1);
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    assert_eq!(dynamo.item().await["format"], number(2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_of_a_wrong_length_is_a_fault_of_the_store() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    first.acquires(&store).await;
    let item = dynamo.item().await;
    for length in [0, 27, 29] {
        let mut item = item.clone();
        item.insert("claim".to_owned(), binary(vec![1; length]));
        dynamo.put(item).await;
        let error = first.claims(&store).await.expect_err("it is damaged");
        assert_eq!(error.kind(), tower_idempotency::StoreErrorKind::Damaged);
        assert!(error.to_string().contains("`claim`"), "{error}");
    }
}

/// The only item, with extras of a later version: a trace, a secret and a field that is not known
/// here.
async fn put_extras(dynamo: &Dynamo) -> Extras {
    let later = Extras::from_bytes(&[9, 2, b'h', b'i']).expect("they are well formed");
    let extras = later.with_trace([7; 16], [8; 8]).with_secret_id(3);
    let mut item = dynamo.item().await;
    item.insert("extras".to_owned(), binary(extras.as_bytes()));
    item.insert("of_a_later_version".to_owned(), number(1));
    dynamo.put(item).await;
    extras
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_later_version_adds_stays_with_the_record_until_it_is_claimed_anew() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let key = first.key.record_key();
    let held = first.acquires(&store).await;
    let extras = put_extras(&dynamo).await;
    let is_kept = async || {
        let item = dynamo.item().await;
        assert_eq!(item["extras"], binary(extras.as_bytes()));
        assert_eq!(item["of_a_later_version"], number(1));
        match seen(&dynamo, key).await {
            Some(Record::InProgress(lease)) => lease.extras,
            Some(Record::Completed(completed)) => completed.extras,
            None => panic!("there is no record"),
        }
    };
    assert_eq!(is_kept().await, extras);
    let renewed = store.renew(&held.holder(), renewal(), START).await;
    assert!(matches!(renewed, Ok(Fenced::Applied)));
    assert_eq!(is_kept().await, extras);
    let released = store.release(&held.holder(), orphan(), START).await;
    assert!(matches!(released, Ok(Fenced::Applied)));
    assert_eq!(is_kept().await, extras);
    completes(&store, &held, "x").await;
    assert_eq!(is_kept().await, extras);
    assert_eq!(first.other().is_answered(&store).await, "x");

    first.other().after(RETENTION).acquires(&store).await;
    let item = dynamo.item().await;
    assert!(!item.contains_key("extras"), "{item:?}");
    assert!(!item.contains_key("of_a_later_version"), "{item:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn extras_that_are_damaged_are_a_fault_of_the_store() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let held = first.acquires(&store).await;
    completes(&store, &held, "x").await;
    for damage in [binary([1]), binary([3, 0]), string("x")] {
        let mut item = dynamo.item().await;
        item.insert("extras".to_owned(), damage);
        dynamo.put(item).await;
        let error = first.claims(&store).await.expect_err("it is damaged");
        assert_eq!(error.kind(), tower_idempotency::StoreErrorKind::Damaged);
        assert!(error.to_string().contains("`extras`"), "{error}");
    }
}
