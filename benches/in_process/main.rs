//! What the layer costs, in one process and without sockets.
//!
//! ```text
//! cargo bench --bench in_process [-- FILTER]
//! ```
//!
//! prints a table for each case whose name contains FILTER, and writes the same as JSON lines to
//! `target/bench/in_process.jsonl`. `ROUNDS` in the environment says how many rounds there are;
//! the default is 100.

mod cases;
mod contestants;
mod crowd;
mod dynamodb;
#[path = "../harness/mod.rs"]
mod harness;

use std::io;
use std::path::Path;

use self::cases::Bench;

fn main() -> io::Result<()> {
    // Cargo says `--bench`.
    let filter = std::env::args()
        .skip(1)
        .find(|word| !word.starts_with("--"));
    let rounds = std::env::var("ROUNDS").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(100);
    let mut bench = Bench::new(rounds, filter.unwrap_or_default());
    bench.pass_through();
    bench.replays();
    bench.first_runs();
    bench.body_sizes();
    bench.answer_sizes();
    bench.crowds();
    bench.on_dynamodb();
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("target");
    bench.finish(&target.join("bench/in_process.jsonl"))
}
