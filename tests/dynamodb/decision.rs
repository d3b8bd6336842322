//! DynamoDB's verdict against the function that decides claims.

use std::ops::Range;
use std::time::Duration;

use aws_sdk_dynamodb::types::AttributeValue;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tokio::runtime::Runtime;
use tower_idempotency::record::{CallerDigest, Completed, Decision, Held, Lease, RecipeId, decide};
use tower_idempotency::store::{Claim, Completion, DynamoDbStore, Fenced, Release, Store};
use tower_idempotency::{Fingerprint, StoreError, Timestamp};

use crate::formats::older;
use crate::support::{Claimer, Dynamo, LEASE, SKEW, START, TABLE};

/// What there is before the claim; times from the start of the test's clock.
#[derive(Clone, Debug)]
enum Before {
    Nothing,
    InProgress(Attempt),
    Completed { attempt: Attempt, expires: Duration },
}

/// Claimed so long after the start, as so many attempts, until so long after the start.
#[derive(Clone, Copy, Debug)]
struct Attempt {
    claimed: Duration,
    attempts: u32,
    deadline: Option<Duration>,
    expires: Duration,
}

/// Whose claim it is, beside what it asks for.
#[derive(Clone, Copy, Debug)]
enum Drawing {
    Same,
    OtherCaller,
    OtherRecipe,
}

#[derive(Clone, Copy, Debug)]
struct Drawn {
    now: Duration,
    same_owner: bool,
    same_request: bool,
    identity: Drawing,
    take_over: bool,
    /// The record is of the format before.
    is_older: bool,
}

/// Few moments, and the microseconds around them, so that times meet.
fn moment() -> impl Strategy<Value = Duration> {
    within(2..8)
}

/// Mostly after the moment of the claim.
fn expiry() -> impl Strategy<Value = Duration> {
    within(4..16)
}

fn within(seconds: Range<u64>) -> impl Strategy<Value = Duration> {
    let around = prop_oneof![Just(0_u64), Just(1), Just(999), Just(1_000)];
    (seconds, around)
        .prop_map(|(seconds, micros)| Duration::from_secs(seconds) + Duration::from_micros(micros))
}

fn attempt() -> impl Strategy<Value = Attempt> {
    let deadline = prop_oneof![
        1 => Just(None),
        6 => moment().prop_map(Some),
    ];
    (moment(), 1_u32..3, deadline, expiry()).prop_map(|(claimed, attempts, deadline, expires)| {
        Attempt {
            claimed,
            attempts,
            deadline,
            expires,
        }
    })
}

fn before() -> impl Strategy<Value = Before> {
    prop_oneof![
        1 => Just(Before::Nothing),
        6 => attempt().prop_map(Before::InProgress),
        4 => (attempt(), expiry()).prop_map(|(attempt, expires)| Before::Completed { attempt, expires }),
    ]
}

fn drawn() -> impl Strategy<Value = Drawn> {
    // The clock skew of 2 s goes on top of a deadline.
    let now = (moment(), prop_oneof![Just(Duration::ZERO), Just(SKEW)]);
    let rarely = prop::bool::weighted(0.2);
    let mostly = prop::bool::weighted(0.8);
    let identity = prop_oneof![
        6 => Just(Drawing::Same),
        1 => Just(Drawing::OtherCaller),
        1 => Just(Drawing::OtherRecipe),
    ];
    let claim = (rarely, mostly, identity);
    (now, claim, any::<bool>(), any::<bool>()).prop_map(
        |((now, skew), (same_owner, same_request, identity), take_over, is_older)| Drawn {
            now: now + skew,
            same_owner,
            same_request,
            identity,
            take_over,
            is_older,
        },
    )
}

/// The record that [`Before`] stands for, as it was written.
enum Written {
    Nothing,
    InProgress(Lease),
    Completed(Completed),
}

async fn write(store: &DynamoDbStore, first: &Claimer, before: &Before) -> Written {
    let attempt = match before {
        Before::Nothing => return Written::Nothing,
        Before::InProgress(attempt) | Before::Completed { attempt, .. } => attempt,
    };
    let lease = in_progress(store, first, attempt).await;
    let Before::Completed { expires, .. } = before else {
        return Written::InProgress(lease);
    };
    let (created_at, expires_at) = (lease.created_at, START.plus(*expires));
    let completed = Completed::new(lease.identity, "answer".into(), created_at, expires_at);
    let completion = Completion::new(completed.payload.clone(), *expires);
    let fenced = store.complete(&lease.holder(), &completion, START).await;
    assert!(matches!(fenced, Ok(Fenced::Applied)), "{fenced:?}");
    Written::Completed(completed)
}

async fn in_progress(store: &DynamoDbStore, first: &Claimer, attempt: &Attempt) -> Lease {
    for _ in 1..attempt.attempts {
        let lease = first.other().acquires(store).await;
        let orphaned = leave_orphan(store, &lease).await;
        assert!(matches!(orphaned, Ok(Fenced::Applied)), "{orphaned:?}");
    }
    let claimer = Claimer {
        now: START.plus(attempt.claimed),
        retention: attempt.expires.saturating_sub(attempt.claimed),
        lease: attempt
            .deadline
            .map_or(LEASE, |deadline| deadline.saturating_sub(attempt.claimed)),
        ..first.clone()
    };
    let mut lease = claimer.acquires(store).await;
    if attempt.deadline.is_none() {
        let orphaned = leave_orphan(store, &lease).await;
        assert!(matches!(orphaned, Ok(Fenced::Applied)), "{orphaned:?}");
        lease.deadline = Timestamp::EPOCH;
    }
    lease
}

async fn leave_orphan(store: &DynamoDbStore, lease: &Lease) -> Result<Fenced, StoreError> {
    let orphan = Release::orphan(lease.expires_at.since(START), None);
    store.release(&lease.holder(), orphan, START).await
}

/// Whether the store gave what was decided, down to the microsecond.
fn agrees(decision: Decision, claim: &Claim, before: &Written, claimer: &Claimer) -> bool {
    let now = claimer.now;
    match (decision, claim, before) {
        (
            Decision::Acquire {
                token,
                attempt,
                created_at,
            },
            Claim::Acquired(lease),
            _,
        ) => {
            let lease = lease.clone().by_clock(now);
            lease.token == token
                && lease.attempt == attempt
                && lease.created_at == created_at
                && lease.owner == claimer.owner
                && lease.deadline == claimer.now.plus(claimer.lease)
        }
        (Decision::Own, Claim::Acquired(lease), Written::InProgress(held)) => {
            lease.clone().by_clock(now) == *held
        }
        (Decision::Replay, Claim::Completed(given), Written::Completed(held)) => {
            given.clone().by_clock(now) == *held
        }
        (Decision::InProgress, Claim::InProgress { lease, .. }, Written::InProgress(held)) => {
            lease.clone().by_clock(now) == *held
        }
        (Decision::Orphaned, Claim::Orphaned(lease), Written::InProgress(held)) => {
            lease.clone().by_clock(now) == *held
        }
        (Decision::CallerDiffers, Claim::CallerDiffers, _)
        | (Decision::Reused, Claim::Reused, _) => true,
        (Decision::SettingsChanged { recorded }, Claim::SettingsChanged { recorded: given }, _) => {
            recorded == *given
        }
        _ => false,
    }
}

/// How many calls the claim should have taken.
fn calls_for(decision: Decision, before: &Written) -> usize {
    match (decision, before) {
        (Decision::Acquire { .. }, Written::InProgress(_)) => 2,
        _ => 1,
    }
}

async fn check(dynamo: &Dynamo, store: &DynamoDbStore, before: &Before, drawn: Drawn) {
    let first = Claimer::new();
    let written = write(store, &first, before).await;
    if drawn.is_older && !matches!(before, Before::Nothing) {
        let read = dynamo.client().get_item().table_name(TABLE);
        let id = AttributeValue::S(first.key.record_key().to_string());
        let read = read.key("id", id).send().await.expect("a read succeeds");
        dynamo.put(older(read.item.expect("it is there"))).await;
    }
    dynamo.wire.calls();
    let mut claimer = Claimer {
        now: START.plus(drawn.now),
        take_over: drawn.take_over,
        ..first.other()
    };
    if drawn.same_owner {
        claimer.owner = first.owner;
    }
    if !drawn.same_request {
        claimer.identity.request = Fingerprint::of(["amount=1300"]);
    }
    match drawn.identity {
        Drawing::Same => {}
        Drawing::OtherCaller => claimer.identity.caller = CallerDigest::from_bytes([1; 16]),
        Drawing::OtherRecipe => claimer.identity.recipe = RecipeId::from_bytes(*b"recipe 2"),
    }
    let decision = decide_by(&written, &claimer);
    let claim = claimer.claims(store).await.expect("a claim succeeds");
    assert!(
        agrees(decision, &claim, &written, &claimer),
        "decided {decision:?}, given {claim:?}"
    );
    assert_eq!(dynamo.wire.calls().len(), calls_for(decision, &written));
}

fn decide_by(written: &Written, claimer: &Claimer) -> Decision {
    let held = match written {
        Written::Nothing => None,
        Written::InProgress(lease) => Some(Held::InProgress(lease)),
        Written::Completed(completed) => Some(Held::Completed {
            identity: completed.identity,
            expires_at: completed.expires_at,
        }),
    };
    let parts = claimer.key.parts();
    decide(held, &claimer.request(&parts))
}

#[test]
fn dynamodb_gives_what_is_decided() {
    let runtime = Runtime::new().expect("a runtime starts");
    let dynamo = runtime.block_on(Dynamo::in_memory());
    let store = runtime.block_on(dynamo.store());
    let mut runner = TestRunner::new(Config {
        cases: 400,
        failure_persistence: None,
        ..Config::default()
    });
    let cases = (before(), drawn());
    let result = runner.run(&cases, |(before, drawn)| {
        runtime.block_on(check(&dynamo, &store, &before, drawn));
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{failure}");
    }
}
