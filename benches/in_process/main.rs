//! What the layer costs, in one process and without sockets.
//!
//! ```text
//! cargo bench --bench in_process [-- FILTER]
//! ```
//!
//! prints a table for each case whose name contains FILTER, and writes the same as JSON lines to
//! `target/bench/in_process.jsonl`. `ROUNDS` in the environment says how many rounds there are;
//! the default is 100. `MOST_KEYS` says how many keys the case "keys held" goes up to; the default
//! is 1,000,000, and 10,000,000 need 20 GB of memory.
//!
//! The lane "ours again" is a second instance of "ours", with a store and keys of its own. Its ratio
//! to "ours" would be 1 if there were no noise. A difference from another lane that is no larger
//! than its distance from 1 means nothing.

mod cases;
mod contestants;
mod crowd;
mod dynamodb;
mod flight;
#[path = "../harness/mod.rs"]
mod harness;
mod held;
mod waiters;

use std::io;
use std::path::Path;
use std::str::FromStr;

use self::cases::Bench;

fn main() -> io::Result<()> {
    // Cargo says `--bench`.
    let filter = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"));
    let rounds = from_environment("ROUNDS").unwrap_or(100);
    let mut bench = Bench::new(rounds, filter.unwrap_or_default());
    bench.pass_through();
    bench.replays();
    bench.first_runs();
    bench.body_sizes();
    bench.answer_sizes();
    bench.crowds();
    bench.keys_held(from_environment("MOST_KEYS").unwrap_or(1_000_000));
    bench.runs_in_flight();
    bench.waiters();
    bench.on_dynamodb();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    bench.finish(&target.join("bench/in_process.jsonl"))
}

fn from_environment<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}
