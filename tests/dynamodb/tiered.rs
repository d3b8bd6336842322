//! Memory stacked over DynamoDB: what each event costs, end to end.

use std::convert::Infallible;
use std::time::Duration;

use tokio::task::JoinSet;
use tower_idempotency::store::{MemoryStore, Release, Store};
use tower_idempotency::testing::conformance;
use tower_idempotency::{Fingerprint, Ran, RunError};

use crate::support::{Claimer, Dynamo, START, completion, noise, renewal};
use crate::work::{Node, Work, key, node};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tiers_over_dynamodb_conform() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    conformance::all(MemoryStore::new().over(store.clone())).await;
    let tiered = MemoryStore::new().over(store);
    conformance::all(MemoryStore::new().over(tiered)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_cost_two_calls_then_none_here_and_one_elsewhere() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let (here, there, work) = (node(&store), node(&store), Work::default());
    dynamo.wire.calls();
    assert!(matches!(
        work.under(&here, "1").await,
        Ok(Ran::Executed(17))
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem", "UpdateItem"]);

    assert!(matches!(
        work.under(&here, "1").await,
        Ok(Ran::Replayed(17))
    ));
    assert!(matches!(
        work.under(&here, "2").await,
        Err(RunError::KeyReused)
    ));
    assert_eq!(dynamo.wire.calls(), [""; 0]);

    assert!(matches!(
        work.under(&there, "2").await,
        Err(RunError::KeyReused)
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    assert!(matches!(
        work.under(&there, "1").await,
        Ok(Ran::Replayed(17))
    ));
    assert_eq!(dynamo.wire.calls(), ["PutItem"]);
    assert!(matches!(
        work.under(&there, "1").await,
        Ok(Ran::Replayed(17))
    ));
    assert_eq!(dynamo.wire.calls(), [""; 0]);
    assert_eq!(work.runs(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_duplicate_in_flight_costs_no_call_here_and_one_elsewhere() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let (here, there) = (node(&store), node(&store));
    let work = Work::slow();
    let first = work.spawned(&here, "1").await;
    dynamo.wire.calls();
    for (node, calls) in [(&here, 0), (&there, 1)] {
        let duplicate = work.under(node, "1").await;
        assert!(matches!(duplicate, Err(RunError::InProgress { .. })));
        assert_eq!(dynamo.wire.calls(), vec!["PutItem"; calls]);
    }
    work.end();
    assert!(matches!(first.await, Ok(Ok(Ran::Executed(17)))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_duplicates_at_once_cost_what_one_request_costs() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let here = node(&store).wait_for_in_flight(Duration::from_secs(60));
    let work = Work::default();
    dynamo.wire.calls();
    let mut all = JoinSet::new();
    for _ in 0..64 {
        let (work, here) = (work.clone(), here.clone());
        all.spawn(async move { work.under(&here, "1").await });
    }
    for result in all.join_all().await {
        assert!(
            matches!(result, Ok(Ran::Executed(17) | Ran::Replayed(17))),
            "{result:?}"
        );
    }
    assert_eq!(work.runs(), 1);
    assert_eq!(dynamo.wire.calls(), ["PutItem", "UpdateItem"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn duplicates_of_an_answer_in_chunks_read_it_once() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let (here, there) = (node(&store), node(&store));
    // Six bits of each byte are noise, so that it cannot be made small.
    let letter = |byte: u8| char::from(b'0' + byte % 64);
    let long: String = noise(900_000).into_iter().map(letter).collect();
    let run = |node: &Node| {
        let (node, long) = (node.clone(), long.clone());
        async move {
            let work = || async { Ok::<_, Infallible>(long) };
            node.run(&key(), Fingerprint::of(["1"]), work).await
        }
    };
    let first = run(&here).await;
    assert!(matches!(first, Ok(Ran::Executed(_))));
    dynamo.wire.calls();
    let mut duplicates = JoinSet::new();
    for _ in 0..16 {
        duplicates.spawn(run(&there));
    }
    for answer in duplicates.join_all().await {
        assert!(matches!(answer, Ok(Ran::Replayed(answer)) if answer == long));
    }
    assert_eq!(dynamo.wire.calls(), ["PutItem", "BatchGetItem"]);
}

#[tokio::test]
async fn what_waits_for_memory_over_dynamodb_is_small() {
    let dynamo = Dynamo::in_memory().await;
    let store = MemoryStore::new().over(dynamo.elsewhere());
    let (claimer, answer) = (Claimer::new(), completion("answer"));
    let parts = claimer.key.parts();
    let request = claimer.request(&parts);
    let lease = claimer.acquires(&dynamo.store().await).await;
    let holder = lease.holder();
    let sizes = [
        size_of_val(&store.claim(&request)),
        size_of_val(&store.renew(&holder, renewal(), START)),
        size_of_val(&store.complete(&holder, &answer, START)),
        size_of_val(&store.release(&holder, Release::Free, START)),
        size_of_val(&store.get(&holder.key, START)),
    ];
    assert!(sizes.iter().all(|size| *size < 2_048), "{sizes:?}");
}
