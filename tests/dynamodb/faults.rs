//! Answers that are lost, throttling, and a DynamoDB that is not there.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::{ConfigBag, ResolveCachedIdentity, RuntimeComponents};
use aws_smithy_runtime_api::client::identity::{
    IdentityFuture, ResolveIdentity, SharedIdentityResolver,
};
use tokio::net::TcpListener;
use tower_idempotency::record::Lease;
use tower_idempotency::store::{Claim, DynamoDbStore, Fenced, Release, Store};
use tower_idempotency::{StoreError, StoreErrorKind};

use crate::support::{
    Claimer, Dynamo, LEASE, SKEW, START, TABLE, completes, completion, config, noise, orphan,
    renewal,
};
use crate::wire::{Fault, Wire};

/// The ends of an attempt, and the operation that each is.
#[derive(Clone, Copy, Debug)]
enum End {
    Complete,
    Free,
    Orphan,
}

const ENDS: [(End, &str); 3] = [
    (End::Complete, "UpdateItem"),
    (End::Free, "DeleteItem"),
    (End::Orphan, "UpdateItem"),
];

impl End {
    async fn on(self, store: &DynamoDbStore, lease: &Lease) -> Result<Fenced, StoreError> {
        match self {
            Self::Complete => {
                store
                    .complete(&lease.holder(), &completion("answer"), START)
                    .await
            }
            Self::Free => store.release(&lease.holder(), Release::Free, START).await,
            Self::Orphan => store.release(&lease.holder(), orphan(), START).await,
        }
    }

    /// Whether it is what the next claimer finds.
    async fn is_found(self, store: &DynamoDbStore, claimer: &Claimer) -> bool {
        let next = claimer.other().without_taking_over().claims(store).await;
        match (self, next) {
            (Self::Complete, Ok(Claim::Completed(completed))) => completed.payload() == "answer",
            (Self::Free, Ok(Claim::Acquired(lease))) => lease.by_clock(START).attempt == 1,
            (Self::Orphan, Ok(Claim::Orphaned(_))) => true,
            _ => false,
        }
    }
}

fn is_doubtful(error: &StoreError) -> bool {
    error.kind() == StoreErrorKind::Unavailable && error.may_have_been_applied()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_is_found_by_the_sdks_own_retry() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = dynamo.retrying();
    let first = Claimer::new();
    dynamo.wire.fail_next("PutItem", Fault::AnswerLost);
    let lease = first.acquires(&store).await;
    assert_eq!(dynamo.wire.calls(), ["PutItem", "PutItem"]);
    assert_eq!(lease.owner, first.owner);
    completes(&store, &lease, "answer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_claim_whose_answer_is_lost_is_in_doubt_and_found_by_the_next_try() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for fault in [Fault::AnswerLost, Fault::AnswerCut] {
        let first = Claimer::new();
        dynamo.wire.fail_next("PutItem", fault);
        let error = first.claims(&store).await.expect_err("its answer is lost");
        assert!(is_doubtful(&error), "{error:?}");
        let in_flight = first.other().claims(&store).await;
        assert!(matches!(in_flight, Ok(Claim::InProgress { .. })));
        let lease = first.acquires(&store).await;
        assert_eq!((lease.owner, lease.attempt), (first.owner, 1));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_orphan_whose_new_lease_is_lost_on_the_way_is_found_again() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    first.acquires(&store).await;
    let second = first.other().after(LEASE + SKEW + Duration::from_millis(1));
    dynamo
        .wire
        .fail_next("PutItem", Fault::Answered(503, "ServiceUnavailable"));
    let error = second.claims(&store).await.expect_err("as planned");
    assert!(is_doubtful(&error), "{error:?}");

    // The first write is refused, and the second one's answer is lost.
    let store = dynamo.retrying();
    dynamo.wire.calls();
    let (wire, racing) = (dynamo.wire.clone(), second.clone());
    wire.fail_second("PutItem", Fault::AnswerLost);
    let lease = racing.acquires(&store).await;
    assert_eq!((lease.owner, lease.attempt), (second.owner, 2));
    assert_eq!(dynamo.wire.calls().len(), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_whose_answer_is_lost_is_found_by_the_sdks_own_retry() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = dynamo.retrying();
    for (end, operation) in ENDS {
        let first = Claimer::new();
        let lease = first.acquires(&store).await;
        dynamo.wire.calls();
        dynamo.wire.fail_next(operation, Fault::AnswerLost);
        let fenced = end.on(&store, &lease).await;
        assert!(matches!(fenced, Ok(Fenced::Applied)), "{end:?}: {fenced:?}");
        assert_eq!(dynamo.wire.calls()[..2], [operation, operation]);
        assert!(end.is_found(&store, &first).await, "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_whose_answer_is_lost_is_in_doubt_and_can_be_repeated() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for (end, operation) in ENDS {
        let first = Claimer::new();
        let lease = first.acquires(&store).await;
        dynamo.wire.fail_next(operation, Fault::AnswerLost);
        let error = end
            .on(&store, &lease)
            .await
            .expect_err("its answer is lost");
        assert!(is_doubtful(&error), "{end:?}: {error:?}");
        let fenced = end.on(&store, &lease).await;
        assert!(matches!(fenced, Ok(Fenced::Applied)), "{end:?}: {fenced:?}");
        assert!(end.is_found(&store, &first).await, "{end:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_chunk_that_is_not_written_completes_nothing() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    dynamo.wire.fail_next("PutItem", Fault::AnswerLost);
    let large = completion(noise(900_000));
    let error = store.complete(&lease.holder(), &large, START).await;
    let error = error.expect_err("a part is not known to be there");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(!error.may_have_been_applied(), "the record is as it was");
    let in_flight = first.other().claims(&store).await;
    assert!(matches!(in_flight, Ok(Claim::InProgress { .. })));
    completes(&store, &lease, noise(900_000)).await;
    assert!(first.other().is_answered(&store).await == noise(900_000));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn throttling_is_waited_out() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = dynamo.retrying();
    for code in [
        "ProvisionedThroughputExceededException",
        "ThrottlingException",
    ] {
        for _ in 0..2 {
            dynamo.wire.fail_next("PutItem", Fault::Answered(400, code));
        }
        Claimer::new().acquires(&store).await;
        assert_eq!(dynamo.wire.calls().len(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_throttled_to_the_end_was_not_applied() {
    let dynamo = Dynamo::in_memory().await;
    let once = dynamo.store().await;
    let throttled = Fault::Answered(400, "ProvisionedThroughputExceededException");
    dynamo.wire.fail_always("PutItem", throttled);
    for store in [&once, &dynamo.retrying()] {
        let error = Claimer::new().claims(store).await.expect_err("throttled");
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(!error.may_have_been_applied(), "{error}");
        assert!(error.to_string().contains("throttled PutItem"), "{error}");
    }
    assert!(dynamo.items().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_try_in_doubt_stays_in_doubt_whatever_comes_after_it() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = dynamo.retrying();
    let throttled = Fault::Answered(400, "ThrottlingException");
    let first = Claimer::new();
    dynamo.wire.fail_next("PutItem", Fault::AnswerLost);
    dynamo.wire.fail_always("PutItem", throttled);
    let error = first.claims(&store).await.expect_err("throttled at last");
    assert!(is_doubtful(&error), "{error:?}");
    dynamo.wire.heal();
    let lease = first.acquires(&store).await;
    assert_eq!(lease.owner, first.owner);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_answer_in_time_is_in_doubt() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = dynamo.hasty();
    dynamo.wire.fail_always("PutItem", Fault::Hangs);
    let error = Claimer::new().claims(&store).await.expect_err("no answer");
    assert!(is_doubtful(&error), "{error:?}");
    assert!(error.to_string().contains("in time"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failure_of_dynamodbs_own_is_in_doubt() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let failed = Fault::Answered(500, "InternalServerError");
    dynamo.wire.fail_next("PutItem", failed);
    let error = Claimer::new().claims(&store).await.expect_err("it failed");
    assert!(is_doubtful(&error), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_someone_has_to_mend_is_told() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for (code, says) in [
        ("AccessDeniedException", "refused PutItem"),
        ("InvalidSignatureException", "refused PutItem"),
        ("MissingAuthenticationTokenException", "refused PutItem"),
        ("UnknownOperationException", "for invalid"),
        ("ResourceNotFoundException", "does not exist"),
        ("ValidationException", "for invalid"),
    ] {
        dynamo.wire.fail_next("PutItem", Fault::Answered(400, code));
        let error = Claimer::new().claims(&store).await.expect_err("refused");
        assert_eq!(error.kind(), StoreErrorKind::Unusable, "{code}");
        assert!(!error.may_have_been_applied(), "{code}");
        let text = error.to_string();
        assert!(text.contains(says) && text.contains(TABLE), "{text}");
        assert!(std::error::Error::source(&error).is_some());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_expired_or_were_rotated_are_a_passing_fault() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for (code, message) in [
        ("ExpiredTokenException", "the security token is expired"),
        ("UnrecognizedClientException", "the token is invalid"),
        (
            "InvalidSignatureException",
            "Signature expired: 20261125T140000Z is now earlier than 20261125T141000Z",
        ),
        (
            "InvalidSignatureException",
            "Signature not yet current: 20261125T143000Z is still later than 20261125T142000Z",
        ),
    ] {
        let answered = Fault::Says(400, code, message);
        dynamo.wire.fail_next("PutItem", answered);
        let error = Claimer::new().claims(&store).await.expect_err("refused");
        assert_eq!(error.kind(), StoreErrorKind::Unavailable, "{code}");
        assert!(!error.may_have_been_applied(), "{code}");
        let text = error.to_string();
        assert!(
            text.contains("credentials") && text.contains(TABLE),
            "{text}"
        );
    }
}

/// Gives credentials so often, and then finds nobody to ask for them.
#[derive(Debug)]
struct CredentialsFor(AtomicU32);

impl ResolveCachedIdentity for CredentialsFor {
    fn resolve_cached_identity<'a>(
        &'a self,
        resolver: SharedIdentityResolver,
        components: &'a RuntimeComponents,
        config: &'a ConfigBag,
    ) -> IdentityFuture<'a> {
        let left = |left: u32| left.checked_sub(1);
        let left = self
            .0
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, left);
        IdentityFuture::new(async move {
            match left {
                Ok(_) => resolver.resolve_identity(components, config).await,
                Err(_) => Err(io::Error::from(io::ErrorKind::ConnectionRefused).into()),
            }
        })
    }
}

/// A store whose client makes up to 3 tries, and has credentials for so many of them.
fn with_credentials_for(dynamo: &Dynamo, tries: u32) -> DynamoDbStore {
    let client = dynamo.client_with(|config| {
        let retries = RetryConfig::standard().with_initial_backoff(Duration::from_millis(1));
        config
            .retry_config(retries)
            .identity_cache(CredentialsFor(AtomicU32::new(tries)))
    });
    DynamoDbStore::new(client, TABLE)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credentials_that_cannot_be_had_are_a_passing_fault() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    let store = with_credentials_for(&dynamo, 0);
    let error = Claimer::new().claims(&store).await;
    let error = error.expect_err("it cannot be signed");
    assert_eq!(error.kind(), StoreErrorKind::Unavailable);
    assert!(!error.may_have_been_applied(), "{error:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_whose_answer_is_lost_stays_in_doubt_if_there_are_no_credentials_to_repeat_it() {
    let dynamo = Dynamo::in_memory().await;
    let plain = dynamo.store().await;
    dynamo.wire.fail_next("PutItem", Fault::AnswerLost);
    let first = Claimer::new();
    let error = first.claims(&with_credentials_for(&dynamo, 1)).await;
    let error = error.expect_err("its answer is lost");
    assert!(is_doubtful(&error), "{error:?}");
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    let in_flight = first.other().claims(&plain).await;
    assert!(matches!(in_flight, Ok(Claim::InProgress { .. })));

    for (end, operation) in ENDS {
        let lease = Claimer::new().acquires(&plain).await;
        dynamo.wire.fail_next(operation, Fault::AnswerLost);
        let error = end.on(&with_credentials_for(&dynamo, 1), &lease).await;
        let error = error.expect_err("its answer is lost");
        assert!(is_doubtful(&error), "{end:?}: {error:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_is_missing_is_told() {
    let dynamo = Dynamo::in_memory().await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE);
    let lease = {
        let elsewhere = Dynamo::in_memory().await;
        Claimer::new().acquires(&elsewhere.store().await).await
    };
    let claimed = Claimer::new().claims(&store).await.map(drop);
    let holder = lease.holder();
    let renewed = store.renew(&holder, renewal(), START).await.map(drop);
    let completed = store
        .complete(&holder, &completion("answer"), START)
        .await
        .map(drop);
    let released = store.release(&holder, Release::Free, START).await.map(drop);
    let looked = store.get(&lease.key, START).await.map(drop);
    let removed = store.remove(&lease.key).await.map(drop);
    for result in [claimed, renewed, completed, released, looked, removed] {
        let error = result.expect_err("there is no table");
        assert_eq!(error.kind(), StoreErrorKind::Unusable);
        assert!(error.to_string().contains("does not exist"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_is_down_was_not_reached() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    drop(listener);
    for retries in [
        RetryConfig::disabled(),
        RetryConfig::standard().with_initial_backoff(Duration::from_millis(1)),
    ] {
        let settings = config(&url).http_client(Wire::new()).retry_config(retries);
        let store = DynamoDbStore::new(Client::from_conf(settings.build()), TABLE);
        let error = Claimer::new()
            .claims(&store)
            .await
            .expect_err("nobody is there");
        assert_eq!(error.kind(), StoreErrorKind::Unavailable);
        assert!(!error.may_have_been_applied(), "{error:?}");
        assert!(
            error.to_string().contains("could not be reached"),
            "{error}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_holder_that_renews_in_the_middle_of_a_takeover_keeps_its_lease() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    let second = first.other().after(LEASE + SKEW + Duration::from_millis(1));
    let (held, go_on) = dynamo.wire.hold_second("PutItem");
    let taking = tokio::spawn({
        let store = store.clone();
        let second = second.clone();
        async move { second.claims(&store).await }
    });
    held.await.expect("the takeover is on its way");
    let renewed = store.renew(&lease.holder(), renewal(), second.now).await;
    assert!(matches!(renewed, Ok(Fenced::Applied)));
    go_on.send(()).expect("it waits");
    let claim = taking.await.expect("it does not panic");
    assert!(matches!(claim, Ok(Claim::InProgress { .. })), "{claim:?}");
    completes(&store, &lease, "answer").await;
}

/// Some emulators do not send it along, whatever they are asked.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_item_that_does_not_come_with_a_refusal_is_read() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let silent = Fault::Answered(400, "ConditionalCheckFailedException");
    for (end, operation) in ENDS {
        let first = Claimer::new();
        let lease = first.acquires(&store).await;
        dynamo.wire.fail_next("PutItem", silent);
        let in_flight = first.other().claims(&store).await;
        assert!(matches!(in_flight, Ok(Claim::InProgress { .. })));
        dynamo.wire.fail_next(operation, silent);
        let fenced = end.on(&store, &lease).await;
        assert!(
            matches!(fenced, Ok(Fenced::LeaseLost(None))),
            "{end:?}: {fenced:?}"
        );
    }
    let first = Claimer::new();
    let lease = first.acquires(&store).await;
    completes(&store, &lease, "answer").await;
    dynamo.wire.fail_next("PutItem", silent);
    assert_eq!(first.other().is_answered(&store).await, "answer");
    dynamo.wire.fail_next("UpdateItem", silent);
    completes(&store, &lease, "answer").await;
}
