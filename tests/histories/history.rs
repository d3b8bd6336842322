//! Histories of many clients on several nodes, under faults, and whether they may be.
//!
//! `SEED` begins with another seed than 1, and `HISTORIES` says how many follow it.

mod business;
mod check;
mod event;
mod hand_made;
mod plan;
mod random;
mod rule;
mod spec;
mod stores;
mod watched;
mod world;

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime;
use tokio::task::JoinSet;

use self::check::check;
use self::event::{Claimed, Event, Stored, What};
use self::plan::{Plan, Policy};
use self::random::Random;
use self::rule::Violation;
use self::stores::Kind;
use self::world::World;
use crate::dynamo::Dynamo;

/// What is left to chance about the plan itself.
fn plan(seed: u64, nodes: usize) -> Plan {
    let mut random = Random::about(seed, [0]);
    let policies = [Policy::Retake, Policy::Hold, Policy::Reconcile];
    Plan {
        seed,
        policy: policies[random.below(3) as usize],
        answer_unrecorded: random.happens(50),
        nodes,
        keys: 4,
        clients: 8,
        requests_each: 4,
        faults: [5, 15, 30][random.below(3) as usize],
        is_calm: false,
        lease: Duration::from_secs(3),
        skew: Duration::from_millis(200),
        is_exact: true,
        clocks_jump: false,
        blocks_threads: false,
    }
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(otherwise, |given| given.parse().expect("a number"))
}

fn seeds(otherwise: u64) -> std::ops::Range<u64> {
    let first = from_environment("SEED", 1);
    first..first + from_environment("HISTORIES", otherwise)
}

/// A history on paused time.
fn on_paused_time(plan: &Plan, kind: &Kind) -> Vec<Event> {
    let mut runtime = runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let history = runtime.block_on(World::run(plan.clone(), kind.clone()));
    history.events()
}

/// Panics with all that has to be known to see it again.
fn must_be_right(test: &str, plan: &Plan, events: &[Event]) {
    let violations = check(plan, events);
    let Some(first) = violations.first() else {
        return;
    };
    panic!("{}", told(test, plan, events, first, &violations));
}

fn told(
    test: &str,
    plan: &Plan,
    events: &[Event],
    first: &Violation,
    violations: &[Violation],
) -> String {
    let mut told = format!("seed {}: {plan:?}\n", plan.seed);
    for event in events.iter().filter(|event| event.key == first.key) {
        let _ = writeln!(told, "{:>12} {:?}", event.at, event.what);
    }
    for violation in violations {
        let _ = writeln!(told, "{violation}");
    }
    let seed = plan.seed;
    let _ = write!(
        told,
        "to see it again: SEED={seed} HISTORIES=1 cargo test --test histories {test}"
    );
    told
}

fn each_history(test: &str, nodes: usize, wants: &[&str], kind: impl Fn() -> Kind) {
    let seeds = seeds(200);
    println!("{test}: seeds {seeds:?}");
    let mut answers = BTreeMap::<_, usize>::new();
    for seed in seeds {
        let plan = plan(seed, nodes);
        let history = on_paused_time(&plan, &kind());
        must_be_right(test, &plan, &history);
        for event in history {
            if let What::Answered { reply, .. } = event.what {
                *answers.entry((reply.outcome, reply.status)).or_default() += 1;
            }
        }
    }
    println!("{test}: {answers:?}");
    // Of fewer histories, nobody can say what is in them.
    if std::env::var_os("HISTORIES").is_none() {
        for wanted in ["executed: stored", "executed: released", "panicked"]
            .iter()
            .chain(["replayed", "refused: in-progress", "refused: key-reused"].iter())
            .chain(["refused: outcome-unknown"].iter())
            .chain(wants.iter())
        {
            let is_there = answers.keys().any(|(outcome, _)| outcome == wanted);
            assert!(is_there, "nobody got {wanted:?}");
        }
        // Ends that were shared.
        for status in [400, 408, 500, 504] {
            let is_there = answers.contains_key(&("replayed".to_owned(), status));
            assert!(is_there, "nobody shared a {status}");
        }
    }
}

/// A node alone, whose clock jumps by hours: whoever is alive in it needs no clock.
fn each_history_of_jumping_clocks(test: &str, kind: impl Fn() -> Kind) {
    for seed in seeds(100) {
        let plan = Plan {
            clocks_jump: true,
            ..plan(seed, 1)
        };
        let history = on_paused_time(&plan, &kind());
        must_be_right(test, &plan, &history);
    }
}

#[test]
fn histories_of_a_clock_that_jumps_by_hours_are_right() {
    let test = "histories_of_a_clock_that_jumps_by_hours_are_right";
    each_history_of_jumping_clocks(test, Kind::memory);
    each_history_of_jumping_clocks(test, Kind::remote);
}

/// Where nothing fails, only a heart that stops while its node polls nothing could lose a lease.
#[test]
fn a_handler_that_blocks_its_node_loses_no_lease() {
    let test = "a_handler_that_blocks_its_node_loses_no_lease";
    for seed in seeds(60) {
        let plan = Plan {
            is_calm: true,
            faults: 0,
            policy: Policy::Retake,
            ..plan(seed, 3)
        };
        let history = on_paused_time(&plan, &Kind::remote());
        must_be_right(test, &plan, &history);
        let takes_over = |event: &&Event| match &event.what {
            What::Stored(Stored::Claim { gave, .. }) => {
                matches!(gave, Claimed::Acquired { attempt, .. } if *attempt > 1)
            }
            What::Answered { reply, .. } => reply.outcome == "executed: lease-lost",
            _ => false,
        };
        assert_eq!(history.iter().find(takes_over), None, "seed {seed}");
    }
}

/// On real time: handlers block their threads for longer than a lease, at times all threads that
/// there are.
#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn histories_of_blocked_threads_are_right() {
    for seed in seeds(6) {
        let plan = Plan {
            is_exact: false,
            blocks_threads: true,
            clients: 4,
            requests_each: 3,
            lease: Duration::from_millis(150),
            skew: Duration::from_millis(40),
            ..plan(seed, 3)
        };
        let history = World::run(plan.clone(), Kind::remote()).await;
        let events = history.events();
        must_be_right("histories_of_blocked_threads_are_right", &plan, &events);
    }
}

/// What only a store out of reach brings.
const OF_FAULTS: [&str; 3] = [
    "executed: lease-lost",
    "executed: pending",
    "refused: store-unavailable",
];

#[test]
fn histories_on_memory_are_right() {
    each_history("histories_on_memory_are_right", 1, &[], Kind::memory);
}

#[test]
fn histories_on_a_remote_store_are_right() {
    each_history(
        "histories_on_a_remote_store_are_right",
        3,
        &OF_FAULTS,
        Kind::remote,
    );
}

#[test]
fn histories_on_two_tiers_are_right() {
    each_history("histories_on_two_tiers_are_right", 3, &OF_FAULTS, || {
        Kind::tiered(1)
    });
}

#[test]
fn histories_on_three_tiers_are_right() {
    each_history("histories_on_three_tiers_are_right", 3, &OF_FAULTS, || {
        Kind::tiered(2)
    });
}

/// What chance in the product does not touch: nothing waits for another node or is tried again.
#[test]
fn a_seed_gives_the_same_history_again() {
    for seed in seeds(30) {
        let plan = Plan {
            is_calm: true,
            ..plan(seed, 3)
        };
        for kind in [Kind::memory, Kind::remote, || Kind::tiered(1)] {
            let [first, second] = [(), ()].map(|()| on_paused_time(&plan, &kind()));
            for key in 0..plan.keys {
                let of_key = |events: &[Event]| told_alike(events, key);
                assert_eq!(of_key(&first), of_key(&second), "seed {seed}, key {key}");
            }
        }
    }
}

/// What happened to a key, with its owners, which are random, numbered as they came.
fn told_alike(events: &[Event], key: usize) -> Vec<String> {
    let mut owners = Vec::new();
    let of_key = events.iter().filter(|event| event.key == key);
    of_key
        .map(|event| {
            let mut told = format!("{event:?}");
            if let What::Stored(stored) = &event.what {
                let owner = stored.owner();
                let known = owners.iter().position(|known| *known == owner);
                let number = known.unwrap_or_else(|| {
                    owners.push(owner);
                    owners.len() - 1
                });
                told = told.replace(&format!("{owner:?}"), &format!("owner {number}"));
            }
            told
        })
        .collect()
}

/// On real time, so that no two are the same; a seed says only what is left to chance here.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn histories_on_dynamodb_are_right() {
    let dynamo = Arc::new(Dynamo::in_memory().await);
    let mut histories = JoinSet::new();
    for seed in seeds(8) {
        let kind = Kind::dynamo(&dynamo);
        let plan = Plan {
            is_exact: false,
            clients: 4,
            requests_each: 3,
            lease: Duration::from_millis(400),
            skew: Duration::from_millis(40),
            ..plan(seed, 3)
        };
        histories.spawn(async move {
            let history = World::run(plan.clone(), kind).await;
            (plan, history.events())
        });
    }
    for (plan, events) in histories.join_all().await {
        must_be_right("histories_on_dynamodb_are_right", &plan, &events);
    }
}
