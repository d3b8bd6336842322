//! What the heartbeat costs: the processor's time for keeping many runs in flight, and how long
//! another run takes meanwhile. Needs Linux.
//!
//! ```text
//! cargo bench --bench heartbeat
//! ```
//!
//! `RUNS` in the environment says how many runs are in flight, 100,000 if it says nothing, `LEASE`
//! for how many seconds each has its lease, 30, and `SECONDS` how long each part takes, 30.

use std::convert::Infallible;
use std::future::pending;
use std::time::{Duration, Instant};
use std::{fs, io};

use tokio::runtime::Builder;
use tokio::task::yield_now;
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, Ran};

/// How often another run begins.
const EVERY: Duration = Duration::from_millis(1);

fn main() -> io::Result<()> {
    let runs = from_environment("RUNS", 100_000);
    let lease = Duration::from_secs(from_environment("LEASE", 30));
    let part = Duration::from_secs(from_environment("SECONDS", 30));
    let runtime = Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let executor = Executor::new(MemoryStore::with_capacity(4 << 30))
            .lease(lease)
            .max_runs(usize::MAX);
        println!("{:>9} runs, lease {lease:?}", "");
        for runs in [0, runs] {
            start(&executor, runs, lease).await;
            // Until it is as it stays: each was renewed once.
            sleep(lease * 2 / 5).await;
            let before = processor_time()?;
            sleep(part).await;
            let share = (processor_time()? - before).as_secs_f64() / part.as_secs_f64();
            let mut took = tokio::spawn(others(executor.clone(), part)).await?;
            took.sort_unstable();
            let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
            println!(
                "{runs:>9} in flight: {share:.4} of a core; another run: p50 {:?}, p99 {:?}, p99.9 {:?}, most {:?}",
                at(0.5),
                at(0.99),
                at(0.999),
                at(1.0),
            );
        }
        Ok(())
    })
}

fn from_environment(name: &str, otherwise: u64) -> u64 {
    let said = std::env::var(name).ok();
    said.and_then(|said| said.parse().ok()).unwrap_or(otherwise)
}

fn key(kind: &str, number: u64) -> IdempotencyKey {
    IdempotencyKey::new("charge", &format!("{kind}-{number}")).expect("a valid key")
}

/// Runs that do not end. They begin evenly within a third of the lease, so that their renewals are
/// as far from each other as they can be.
async fn start(executor: &Executor<MemoryStore>, runs: u64, lease: Duration) {
    let began = tokio::time::Instant::now();
    for number in 0..runs {
        let executor = executor.clone();
        tokio::spawn(async move {
            let never = || pending::<Result<u32, Infallible>>();
            let key = key("long", number);
            executor.run(&key, Fingerprint::of(["x"]), never).await
        });
        if number % 50 == 0 {
            sleep_until(began + lease.mul_f64(number as f64 / runs as f64 / 3.0)).await;
        }
    }
    while executor.handle().in_flight() < usize::try_from(runs).unwrap_or(usize::MAX) {
        sleep(EVERY).await;
    }
}

/// How long other runs take, each of which waits once.
async fn others(executor: Executor<MemoryStore>, part: Duration) -> Vec<Duration> {
    let mut took = Vec::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let began = now();
    while began.elapsed() < part {
        ticks.tick().await;
        let key = key(
            "short",
            took.len() as u64 + executor.handle().in_flight() as u64 * 1_000_000,
        );
        let begins = now();
        let run = || async {
            yield_now().await;
            Ok::<u32, Infallible>(1)
        };
        let ran = executor.run(&key, Fingerprint::of(["x"]), run).await;
        took.push(begins.elapsed());
        assert!(matches!(ran, Ok(Ran::Executed(1))), "{ran:?}");
    }
    took
}

/// What all threads of this process have had of the processor.
fn processor_time() -> io::Result<Duration> {
    let mut nanos = 0;
    for thread in fs::read_dir("/proc/self/task")? {
        let said = fs::read_to_string(thread?.path().join("schedstat"))?;
        let first = said.split(' ').next().and_then(|said| said.parse().ok());
        nanos += first.unwrap_or(0);
    }
    Ok(Duration::from_nanos(nanos))
}

#[expect(clippy::disallowed_methods, reason = "real time is measured")]
fn now() -> Instant {
    Instant::now()
}
