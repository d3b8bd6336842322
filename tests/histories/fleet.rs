//! Three executors over a simulated store, under one seed: the same seed gives the same trace.
//!
//! Time is paused and everything runs on one thread; the crate's random numbers follow from the
//! seed. What is left to chance about the store and the clients is drawn from it, too. The trace has
//! each event and each step of each attempt, with the node and the time.

mod sea;
mod trace;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use tokio::runtime::{self, Handle};
use tokio::task::JoinSet;
use tokio::time::sleep;
use tower_idempotency::testing::{Living, TokioClock, seed_random};
use tower_idempotency::{Answer, Executor, Fingerprint, IdempotencyKey, Orphan, Timestamp};
use tracing::{Instrument, info_span};

use self::sea::{Link, Sea};
use self::trace::Trace;

const NODES: usize = 3;
const REQUESTS: u32 = 2_000;
const KEYS: u32 = 400;
/// A node dies so often.
const DEATHS: u32 = 12;
const PARTITIONS: u32 = 12;
const LEASE: Duration = Duration::from_secs(2);
const START: Timestamp = Timestamp::from_micros(1_790_000_000_000_000);

/// A node from its start to its death.
#[derive(Clone)]
struct Node {
    executor: Executor<Link>,
    lives: Arc<AtomicBool>,
}

type Policy = Orphan<Answer>;

/// How often the work of each key had its effect.
type Effects = Arc<Mutex<HashMap<u32, u32>>>;

impl Node {
    fn start(sea: &Arc<Sea>, number: usize, clock: TokioClock, policy: &Policy) -> Self {
        let lives = Arc::new(AtomicBool::new(true));
        let link = Link::new(Arc::clone(sea), number, Arc::clone(&lives));
        let executor = Executor::new(link)
            .clock(clock)
            .lease(LEASE)
            .clock_skew(Duration::from_millis(200))
            .store_timeout(Duration::from_millis(500))
            .wait_for_in_flight(Duration::from_millis(700))
            .orphan(policy.clone())
            .living(Living::of_another_process())
            .heartbeat_on(Handle::current());
        Self { executor, lives }
    }

    /// Runs the work of a key, as often as a client tries.
    async fn request(self, key: u32, seed: u64, effects: Effects) {
        let mut rng = Rng::with_seed(seed);
        let name = IdempotencyKey::new("/work", &format!("key-{key}")).expect("it is valid");
        for _ in 0..=rng.u32(0..3) {
            let takes = Duration::from_millis(rng.u64(1..400));
            let fails = rng.u32(0..10) == 0;
            let (effects, lives) = (Arc::clone(&effects), Arc::clone(&self.lives));
            let work = move || async move {
                sleep(takes).await;
                if !lives.load(Ordering::SeqCst) {
                    std::future::pending::<()>().await;
                }
                if fails {
                    return Err("as planned");
                }
                let mut effects = effects.lock().expect("nobody panics");
                *effects.entry(key).or_default() += 1;
                Ok(key)
            };
            let fingerprint = Fingerprint::of(["work"]);
            if self.executor.run(&name, fingerprint, work).await.is_ok() {
                return;
            }
            sleep(Duration::from_millis(rng.u64(50..800))).await;
        }
    }
}

/// What a seed leads to: its trace, and how often each work had its effect.
fn played(seed: u64, policy: &Policy) -> (Vec<String>, Vec<u32>) {
    seed_random(seed);
    let trace = Trace::begin();
    let mut runtime = runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let effects = Effects::default();
    runtime.block_on(play(seed, policy, &effects));
    drop(runtime);
    let effects = effects.lock().expect("nobody panics");
    (trace.end(), effects.values().copied().collect())
}

async fn play(seed: u64, policy: &Policy, effects: &Effects) {
    let mut rng = Rng::with_seed(seed);
    let sea = Arc::new(Sea::new(rng.u64(..)));
    let clock = TokioClock::starting_at(START);
    let nodes: Vec<_> = (0..NODES)
        .map(|number| Node::start(&sea, number, clock, policy))
        .collect();
    let nodes = Arc::new(Mutex::new(nodes));
    let mut requests = JoinSet::new();
    for request in 0..REQUESTS {
        sleep(Duration::from_millis(rng.u64(0..30))).await;
        let number = rng.usize(0..NODES);
        let node = nodes.lock().expect("nobody panics")[number].clone();
        let (key, seed) = (rng.u32(0..KEYS), rng.u64(..));
        let lives = Arc::clone(&node.lives);
        let asking = node.request(key, seed, Arc::clone(effects));
        requests.spawn(asking.instrument(info_span!("node", number)));
        if request % (REQUESTS / DEATHS) == 7 {
            // What it has begun goes no further; another takes its place.
            lives.store(false, Ordering::SeqCst);
            let next = Node::start(&sea, number, clock, policy);
            nodes.lock().expect("nobody panics")[number] = next;
        }
        if request % (REQUESTS / PARTITIONS) == 99 {
            sea.cut_off(number, Duration::from_millis(rng.u64(500..4_000)));
        }
    }
    // Those of nodes that died never end.
    let _ = tokio::time::timeout(Duration::from_secs(60), async {
        while requests.join_next().await.is_some() {}
    })
    .await;
}

#[test]
fn the_same_seed_gives_the_same_trace_of_a_whole_fleet() {
    for policy in [Orphan::Retake, Orphan::Hold] {
        let (first, effects) = played(1, &policy);
        let (second, _) = played(1, &policy);
        let (other, _) = played(2, &policy);
        let differs = first.iter().zip(&second).position(|(one, two)| one != two);
        if let Some(at) = differs {
            panic!("line {at}: {} and {}", first[at], second[at]);
        }
        assert_eq!(first.len(), second.len());
        assert!(first.len() > REQUESTS as usize, "{} lines", first.len());
        assert_ne!(first, other);
        assert!(effects.len() as u32 > KEYS / 2, "{}", effects.len());
        // An effect without a record may be followed by another one, where the policy lets it.
        let doubled = effects.iter().filter(|times| **times > 1).count();
        match policy {
            Orphan::Hold => assert_eq!(doubled, 0),
            _ => println!("{doubled} of {} works were done again", effects.len()),
        }
        println!("{} events and steps", first.len());
    }
}
