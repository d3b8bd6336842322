//! Requests dropped at every point where they wait: nothing done is lost, and no key is stuck.

mod door;
mod dropping;
mod fixture;
mod scenario;
mod stores;

use tokio::task::JoinSet;
use tower_idempotency::store::{SharedStore, Store};

use self::door::Door;
use self::dropping::{When, drop_after};
use self::fixture::{Fixture, Time};
use self::scenario::Scenario;
use self::stores::Stores;
use crate::dynamo::Dynamo;

/// Runs longer than this wait for something that never comes.
const MOST_POINTS: usize = 500;

/// Drops a request of `scenario` at each point in turn, until one gets its answer before. Gives
/// the number of points.
async fn sweep<St: Store>(
    scenario: Scenario,
    door: Door,
    time: Time,
    stores: impl Fn() -> Stores<St>,
) -> usize {
    for first in (0..MOST_POINTS).step_by(time.at_once()) {
        let mut drops = JoinSet::new();
        for polls in first..first + time.at_once() {
            for when in [When::AtOnce, When::OnceWoken] {
                let stores = stores();
                drops.spawn(async move {
                    let fixture = Fixture::new(stores, scenario, door, time).await;
                    let answer = drop_after(polls, when, fixture.request()).await;
                    let told = format!("{scenario:?} by {door:?}, dropped {when:?} after {polls}");
                    let has_answer = answer.is_some();
                    fixture.check(answer, &told).await;
                    has_answer.then_some(polls)
                });
            }
        }
        if let Some(points) = drops.join_all().await.into_iter().flatten().min() {
            return points;
        }
    }
    panic!("{scenario:?} had no answer after {MOST_POINTS} polls");
}

/// Sweeps all scenarios, and prints how many points each had. Fewer than `at_least` in all, and
/// something does not wait any more that did. How often one looks at a run elsewhere is left to
/// chance, so there is room for that.
async fn sweep_all<St: Store>(
    name: &str,
    door: Door,
    time: Time,
    at_least: usize,
    stores: impl Fn() -> Stores<St>,
) {
    let can_fail = stores().can_fail();
    let mut all = 0;
    for scenario in Scenario::ALL {
        if !scenario.is_for(door) || scenario.needs_failures() && !can_fail {
            continue;
        }
        let points = sweep(scenario, door, time, &stores).await;
        println!("{name:<24} {door:<10?} {scenario:<20?} {points:>4} points");
        let least = scenario.least_points(door);
        assert!(points >= least, "{scenario:?} waits only {points} times");
        all += points;
    }
    println!("{name:<24} {door:<10?} {:<20} {all:>4} points", "in all");
    assert!(all >= at_least, "only {all} points in all");
}

#[tokio::test(start_paused = true)]
async fn a_request_on_memory_may_be_dropped_anywhere() {
    sweep_all("memory", Door::Layer, Time::Paused, 104, stores::memory).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_on_a_store_that_yields_may_be_dropped_anywhere() {
    let stores = stores::yielding;
    sweep_all("yielding memory", Door::Layer, Time::Paused, 123, stores).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_on_two_tiers_may_be_dropped_anywhere() {
    let stores = stores::tiered;
    sweep_all("two tiers", Door::Layer, Time::Paused, 146, stores).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_on_three_tiers_may_be_dropped_anywhere() {
    let stores = stores::tiered_twice;
    sweep_all("three tiers", Door::Layer, Time::Paused, 188, stores).await;
}

#[tokio::test(start_paused = true)]
async fn a_request_on_a_shared_store_may_be_dropped_anywhere() {
    sweep_all("shared", Door::Layer, Time::Paused, 148, stores::shared).await;
}

/// On real time and real sockets, where no two runs wait equally often.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_on_dynamodb_may_be_dropped_anywhere() {
    let dynamo = Dynamo::in_memory().await;
    let far = SharedStore::new(dynamo.store());
    let stores = || stores::over(far.clone(), |faults| faults);
    sweep_all("dynamodb", Door::Layer, Time::Real, 106, stores).await;
}

#[tokio::test(start_paused = true)]
async fn work_of_an_executor_may_be_dropped_anywhere() {
    let door = Door::Executor;
    sweep_all("memory", door, Time::Paused, 26, stores::memory).await;
    sweep_all("shared", door, Time::Paused, 54, stores::shared).await;
    sweep_all("two tiers", door, Time::Paused, 52, stores::tiered).await;
}
