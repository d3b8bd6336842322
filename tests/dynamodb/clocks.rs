//! Two nodes over DynamoDB whose clocks are as far apart as they may be.

use std::time::Duration;

use tower_idempotency::Clock;
use tower_idempotency::store::DynamoDbStore;
use tower_idempotency::testing::ManualClock;

use crate::support::{Dynamo, SKEW, START, eventually};
use crate::work::{Node, Work, is_executed, is_in_progress, is_replayed, node};

const TICK: Duration = Duration::from_micros(1);
/// So long that no heartbeat comes by itself.
const LEASE: Duration = Duration::from_secs(60 * 60);
const RETENTION: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_ahead_takes_no_lease_that_is_alive_for_its_holder() {
    let dynamo = Dynamo::in_memory().await;
    let clocks = Clocks::new();
    let (behind, ahead) = clocks.nodes(&dynamo.store().await, LEASE);
    let lost = Work::slow();
    let first = lost.spawned(&behind, "1").await;
    clocks.advance(LEASE);
    let work = Work::default();
    is_in_progress(&work.under(&ahead, "1").await);
    clocks.advance(TICK);
    is_executed(&work.under(&ahead, "1").await);
    lost.end();
    is_replayed(&first.await.expect("no panic"));
    assert_eq!(behind.handle().stats().leases_lost, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_takes_a_lease_later_still() {
    let dynamo = Dynamo::in_memory().await;
    let clocks = Clocks::new();
    let (behind, ahead) = clocks.nodes(&dynamo.store().await, LEASE);
    let lost = Work::slow();
    let first = lost.spawned(&ahead, "1").await;
    clocks.advance(LEASE + 2 * SKEW);
    let work = Work::default();
    is_in_progress(&work.under(&behind, "1").await);
    clocks.advance(TICK);
    is_executed(&work.under(&behind, "1").await);
    lost.end();
    is_replayed(&first.await.expect("no panic"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_behind_keeps_its_lease_and_completes() {
    let lease = Duration::from_millis(300);
    let dynamo = Dynamo::in_memory().await;
    let clocks = Clocks::new();
    let (behind, ahead) = clocks.nodes(&dynamo.store().await, lease);
    let (work, again) = (Work::slow(), Work::default());
    let first = work.spawned(&behind, "1").await;
    for _ in 0..3 {
        clocks.advance(lease + SKEW);
        let renewed = clocks.behind.now().plus(lease);
        eventually(async || dynamo.deadline().await == renewed).await;
        is_in_progress(&again.under(&ahead, "1").await);
    }
    work.end();
    is_executed(&first.await.expect("no panic"));
    is_replayed(&again.under(&ahead, "1").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_is_replayed_until_a_clock_says_that_it_has_expired() {
    let dynamo = Dynamo::in_memory().await;
    let clocks = Clocks::new();
    let (behind, ahead) = clocks.nodes(&dynamo.store().await, LEASE);
    let work = Work::default();
    is_executed(&work.under(&behind, "1").await);
    clocks.advance(RETENTION - SKEW - TICK);
    for node in [&ahead, &behind] {
        is_replayed(&work.under(node, "1").await);
    }
    clocks.advance(TICK);
    is_executed(&work.under(&ahead, "1").await);
    // The other one still has the old answer, and finds the new one after it.
    for _ in 0..2 {
        is_replayed(&work.under(&behind, "1").await);
        clocks.advance(SKEW);
    }
    assert_eq!(work.runs(), 2);
}

/// The clocks of two nodes, one of which is ahead by the skew that they allow for.
struct Clocks {
    behind: ManualClock,
    ahead: ManualClock,
}

impl Clocks {
    fn new() -> Self {
        Self {
            behind: ManualClock::starting_at(START),
            ahead: ManualClock::starting_at(START.plus(SKEW)),
        }
    }

    /// The one that is behind, and the one that is ahead.
    fn nodes(&self, store: &DynamoDbStore, lease: Duration) -> (Node, Node) {
        let node = |clock: &ManualClock| {
            let node = node(store).clock(clock.clone());
            node.lease(lease).retention(RETENTION).clock_skew(SKEW)
        };
        (node(&self.behind), node(&self.ahead))
    }

    fn advance(&self, duration: Duration) {
        self.behind.advance(duration);
        self.ahead.advance(duration);
    }
}
