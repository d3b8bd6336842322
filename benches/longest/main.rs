//! The longest that a single run takes over a `MemoryStore`: while the store grows to many keys, and
//! when it is full and all that it holds has expired. Needs Linux.
//!
//! ```text
//! cargo bench --bench longest
//! ```
//!
//! Each is measured three times, each time in a process of its own, so that its memory is fresh, and
//! the best of the three counts: in the others something else had the processor. A run is a claim and
//! a completion, of an answer with 200 bytes, and both are timed together. `KEYS` in the environment
//! says how many keys are held, `1000,10000,100000,1000000` if it says nothing; 10,000,000 take
//! 7 GB.

use std::convert::Infallible;
use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::process::Command;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};
use std::{env, fs};

use tower_idempotency::store::MemoryStore;
use tower_idempotency::testing::ManualClock;
use tower_idempotency::{Executor, Fingerprint, IdempotencyKey, Ran, RunError};

const TIMES: usize = 3;
const RETENTION: Duration = Duration::from_secs(60 * 60);
/// Says to a process which of the measurements it is.
const CHILD: &str = "LONGEST_OF";

fn main() -> Result<(), Box<dyn Error>> {
    if let Ok(keys) = env::var(CHILD) {
        return measure(keys.parse()?);
    }
    let said = env::var("KEYS").unwrap_or_else(|_| "1000,10000,100000,1000000".to_owned());
    println!(
        "| keys held | longest while they come | p99.99 | bytes each, of them weighed | longest when all have expired |"
    );
    println!("|--:|--:|--:|--:|--:|");
    for keys in said.split(',') {
        let mut best: Option<[u64; 5]> = None;
        for _ in 0..TIMES {
            let figures = in_a_process(keys.trim())?;
            best = Some(match best {
                None => figures,
                Some(best) => std::array::from_fn(|at| best[at].min(figures[at])),
            });
        }
        let [growing, most, resident, weighed, expired] = best.unwrap_or_default();
        let [growing, most, expired] = [growing, most, expired].map(Duration::from_nanos);
        println!("| {keys} | {growing:.2?} | {most:.2?} | {resident}, {weighed} | {expired:.2?} |");
    }
    Ok(())
}

fn in_a_process(keys: &str) -> Result<[u64; 5], Box<dyn Error>> {
    let output = Command::new(env::current_exe()?)
        .env(CHILD, keys)
        .output()?;
    let said = String::from_utf8(output.stdout)?;
    let figures: Result<Vec<u64>, _> = said.split_whitespace().map(str::parse).collect();
    figures?
        .try_into()
        .map_err(|_| String::from_utf8_lossy(&output.stderr).into())
}

/// Prints nanoseconds, and bytes for each key.
fn measure(keys: u64) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    let _runtime = runtime.enter();
    let one = MemoryStore::new();
    run(&Executor::new(one.clone()), 0)?;
    // Full when as many keys are held.
    let store = MemoryStore::with_capacity(keys * one.weight());
    let clock = ManualClock::new();
    let executor = Executor::new(store.clone())
        .retention(RETENTION)
        .clock(clock.clone());
    let idle = resident()?;
    // Other than zero, so that the pages are there, and are not counted.
    let mut took = vec![1; usize::try_from(keys)?];
    let timed = resident()? - idle;
    for number in 0..keys {
        took[usize::try_from(number)?] = run(&executor, number)?;
    }
    let each = (resident()?.saturating_sub(idle + timed)) / keys;
    let weighed = store.weight() / keys;
    took.sort_unstable();
    let most = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    let is_full = run(&executor, keys).is_err();
    assert!(is_full, "{} keys are held", store.len());
    clock.advance(RETENTION * 2);
    let mut expired = 0;
    for number in 0..keys {
        expired = expired.max(run(&executor, keys + number)?);
    }
    println!("{} {} {each} {weighed} {expired}", most(1.0), most(0.9999));
    // To free it all takes long.
    std::process::exit(0);
}

/// Makes a run, and returns how long it took in nanoseconds.
fn run(executor: &Executor<MemoryStore>, number: u64) -> Result<u64, RunError<Infallible>> {
    let key = IdempotencyKey::new("charge", &number.to_string()).expect("a valid key");
    let value = "a".repeat(200);
    let begins = now();
    let ran = at_once(
        executor.run(&key, Fingerprint::from_bytes([1; 32]), || async {
            Ok::<_, Infallible>(value)
        }),
    );
    let took = begins.elapsed();
    assert!(!matches!(ran, Ok(Ran::Replayed(_))), "a new key runs");
    drop(ran?);
    Ok(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX))
}

/// The output of a future that has nothing to wait for.
fn at_once<F: Future>(future: F) -> F::Output {
    let mut context = Context::from_waker(Waker::noop());
    match pin!(future).poll(&mut context) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

/// The resident memory of this process in bytes.
fn resident() -> Result<u64, Box<dyn Error>> {
    let status = fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(kilobytes.ok_or("VmRSS is not told")?.parse::<u64>()? * 1024)
}

#[expect(clippy::disallowed_methods, reason = "real time is measured")]
fn now() -> Instant {
    Instant::now()
}
