//! Two processes of the example `payments`, on one DynamoDB and one list of charges.

use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_idempotency::{Clock, SystemClock};

use crate::payments::{Answer, Fleet, Node, Relay};
use crate::support::{SKEW, eventually};

/// How long `tok_slow` takes.
const SLOW: Duration = Duration::from_secs(2);
const IN_USE: &str = "idempotency_key_in_use";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_charge_on_one_node_is_replayed_by_the_other() {
    let fleet = Fleet::new().await;
    let (here, there) = fleet.two_nodes(&[]).await;
    let first = here.api.charge("order-1", "tok_visa").await;
    first.is_charge();
    assert!(!first.is_replayed(), "{first:?}");
    // The second time from the memory of the node.
    for node in [&there, &there, &here] {
        replays(node, "order-1", "tok_visa", &first).await;
    }
    assert_eq!(there.api.charged().await, ["order-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_of_both_nodes_with_the_same_keys_get_the_same_answers() {
    let fleet = Fleet::new().await;
    let (here, there) = fleet.two_nodes(&["--wait", "20"]).await;
    let orders: Vec<_> = (10..26).map(|n| format!("order-{n}")).collect();
    let mut clients = JoinSet::new();
    for order in orders.iter().cycle().take(orders.len() * 4) {
        for node in [&here, &there] {
            let (api, order) = (node.api.clone(), order.clone());
            clients.spawn(async move { (api.charge(&order, "tok_visa").await, order) });
        }
    }
    let answers = clients.join_all().await;
    for order in &orders {
        let of_order = answers.iter().filter(|(_, asked)| asked == order);
        let (replays, first): (Vec<_>, Vec<_>) = of_order
            .map(|(answer, _)| answer)
            .partition(|answer| answer.is_replayed());
        let [first] = first[..] else {
            panic!("it ran more than once, or never: {first:?}");
        };
        first.is_charge();
        assert_eq!(replays.len(), 7);
        for replay in replays {
            assert_eq!((replay.status, &replay.body), (first.status, &first.body));
        }
    }
    assert_eq!(here.api.charged().await, orders);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_in_flight_on_one_node_is_refused_by_the_other_and_then_replayed() {
    let fleet = Fleet::new().await;
    let (here, there) = fleet.two_nodes(&[]).await;
    let api = here.api.clone();
    let first = tokio::spawn(async move { api.charge("order-1", "tok_slow").await });
    is_claimed(&fleet).await;
    let duplicate = there.api.charge("order-1", "tok_slow").await;
    assert!(duplicate.is_conflict(IN_USE), "{duplicate:?}");
    assert!(duplicate.headers.contains_key("retry-after"));
    assert_eq!(duplicate.headers["stripe-should-retry"], "true");
    let first = first.await.expect("no panic");
    first.is_charge();
    replays(&there, "order-1", "tok_slow", &first).await;
    assert_eq!(there.api.charged().await, ["order-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_did_not_charge_is_run_again_if_retaken() {
    is_run_again_once("retake").await;
}

/// What a killed node did not charge is charged by the other one.
async fn is_run_again_once(orphan: &str) {
    let (fleet, left) = node_killed_in_a_charge(orphan).await;
    let (answer, after) = when_the_lease_is_over(&fleet, &left).await;
    answer.is_charge();
    assert!(!answer.is_replayed(), "{answer:?}");
    assert!(after > SKEW + SLOW, "it began {after:?} after the lease");
    replays(&left, "order-1", "tok_slow", &answer).await;
    assert_eq!(left.api.charged().await, ["order-1"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_left_is_refused_for_good_if_held() {
    let (fleet, left) = node_killed_in_a_charge("hold").await;
    let (mut answer, after) = when_the_lease_is_over(&fleet, &left).await;
    assert!(after > SKEW, "{after:?} after the lease");
    for _ in 0..3 {
        assert!(answer.is_conflict("outcome_unknown"), "{answer:?}");
        assert_eq!(answer.headers["stripe-should-retry"], "false");
        sleep(Duration::from_millis(500)).await;
        answer = left.api.charge("order-1", "tok_slow").await;
    }
    assert!(left.api.charged().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_did_not_charge_is_run_again_if_reconciled() {
    is_run_again_once("reconcile").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_node_charged_without_recording_it_is_found_if_reconciled() {
    let fleet = Fleet::new().await;
    let flags = ["--lease", "1", "--orphan", "reconcile"];
    let relay = Relay::to(&fleet.dynamo.url).await;
    let mut holder = fleet.node_at(&relay.url, &flags).await;
    let left = fleet.node(&flags).await;
    let api = holder.api.clone();
    let charging = tokio::spawn(async move { api.try_charge("order-1", "tok_slow").await });
    is_claimed(&fleet).await;
    // It hears that it may, and charges, and cannot tell the DynamoDB any more.
    sleep(SLOW / 4).await;
    relay.cut().await;
    eventually(async || left.api.charged().await == ["order-1"]).await;
    holder.kill();
    charging.abort();

    let (answer, after) = when_the_lease_is_over(&fleet, &left).await;
    assert!(after > SKEW, "{after:?} after the lease");
    answer.is_charge();
    replays(&left, "order-1", "tok_slow", &answer).await;
    assert_eq!(left.api.charged().await, ["order-1"]);
}

/// Gives the node that is left of two. The lease of the other one is not over yet.
async fn node_killed_in_a_charge(orphan: &str) -> (Fleet, Node) {
    let fleet = Fleet::new().await;
    let flags = ["--lease", "1", "--orphan", orphan];
    let (mut holder, left) = fleet.two_nodes(&flags).await;
    let api = holder.api.clone();
    let charging = tokio::spawn(async move { api.try_charge("order-1", "tok_slow").await });
    is_claimed(&fleet).await;
    holder.kill();
    let broken = charging.await.expect("no panic");
    assert!(broken.is_err(), "it was answered before the kill");
    assert!(left.api.charged().await.is_empty());
    let refused = left.api.charge("order-1", "tok_slow").await;
    assert!(refused.is_conflict(IN_USE), "{refused:?}");
    (fleet, left)
}

/// The first answer to the lost order that does not say that it is in progress, and how long
/// after the end of the lease it came.
async fn when_the_lease_is_over(fleet: &Fleet, left: &Node) -> (Answer, Duration) {
    let deadline = fleet.dynamo.deadline().await;
    for _ in 0..300 {
        let answer = left.api.charge("order-1", "tok_slow").await;
        if !answer.is_conflict(IN_USE) {
            return (answer, SystemClock.now().since(deadline));
        }
        sleep(Duration::from_millis(100)).await;
    }
    panic!("the lease does not end");
}

async fn is_claimed(fleet: &Fleet) {
    eventually(async || !fleet.dynamo.items().await.is_empty()).await;
}

async fn replays(node: &Node, order: &str, source: &str, first: &Answer) {
    let replay = node.api.charge(order, source).await;
    assert!(replay.is_replayed(), "{replay:?}");
    assert_eq!((replay.status, &replay.body), (first.status, &first.body));
}
