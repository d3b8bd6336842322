//! What a call of the DynamoDB store takes of the processor beside a call of the SDK alone that
//! sends and gets as many bytes. No server is asked: the client's connector answers at once.
//!
//! ```text
//! cargo run --release --locked --manifest-path benches/store_calls/Cargo.toml
//! cargo run --release --locked --manifest-path benches/store_calls/Cargo.toml -- instructions
//! ```
//!
//! The first prints microseconds, the second instructions as valgrind counts them. `ROUNDS` in the
//! environment says in how many rounds the time is taken, 300 if it says nothing.

mod calls;
mod wire;

use std::process::Command;

use rustix::time::{ClockId, clock_gettime};
use tokio::runtime::{Builder, Runtime};

use self::calls::{Call, Calls};

/// How many calls are timed at a time.
const BATCH: u64 = 40;
/// The difference of two counts leaves out what comes before the first call.
const FEW: u64 = 100;
const MANY: u64 = 300;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Lane {
    Bare,
    Ours,
}

const LANES: [Lane; 2] = [Lane::Bare, Lane::Ours];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        [] => print_times(),
        ["instructions"] => print_instructions(),
        ["run", lane, call, count] => {
            let runtime = runtime();
            let calls = runtime.block_on(Calls::new(call_named(call)));
            let lane = match lane {
                "bare" => Lane::Bare,
                _ => Lane::Ours,
            };
            let count = count.parse().expect("a number of calls");
            run(&runtime, &calls, lane, count);
            // To free what there is now would be counted, and is no call's.
            std::process::exit(0);
        }
        _ => panic!("`instructions`, or nothing"),
    }
}

fn runtime() -> Runtime {
    let mut builder = Builder::new_current_thread();
    builder.enable_time().build().expect("a runtime starts")
}

fn call_named(name: &str) -> Call {
    let named = Call::ALL.into_iter().find(|call| call.name() == name);
    named.expect("a call of this name")
}

fn run(runtime: &Runtime, calls: &Calls, lane: Lane, count: u64) {
    runtime.block_on(async {
        for _ in 0..count {
            match lane {
                Lane::Bare => calls.bare().await,
                Lane::Ours => calls.ours().await,
            }
        }
    });
}

/// The lanes take turns, so that what else the machine does meets both. Of each the least is
/// printed, and the median of what ours took more than bare in the same round.
fn print_times() {
    let rounds = std::env::var("ROUNDS").ok();
    let rounds: usize = rounds.map_or(300, |rounds| rounds.parse().expect("a number of rounds"));
    let runtime = runtime();
    print_head("µs", &format!(" {:>10}", "median"));
    for call in Call::ALL {
        let calls = runtime.block_on(Calls::new(call));
        let mut took: [Vec<f64>; 2] = Default::default();
        for _ in 0..rounds {
            for (lane, took) in LANES.into_iter().zip(&mut took) {
                let began = processor_time();
                run(&runtime, &calls, lane, BATCH);
                took.push((processor_time() - began) / BATCH as f64 * 1e6);
            }
        }
        let beside = (0..rounds).map(|round| took[1][round] - took[0][round]);
        let beside = median(beside.collect());
        let least = took.map(|took| took.into_iter().fold(f64::INFINITY, f64::min));
        print_row(&calls, least, format!(" {beside:>10.1}"));
    }
}

fn print_head(unit: &str, rest: &str) {
    let (sent, got) = ("bytes sent", "received");
    let (bare, ours, beside) = ("bare", "ours", "beside");
    println!("{unit:<20} {sent:>10} {got:>10} {bare:>10} {ours:>10} {beside:>10}{rest}");
}

fn print_row(calls: &Calls, [bare, ours]: [f64; 2], rest: String) {
    let (sent, received) = calls.sizes();
    let beside = ours - bare;
    let name = calls.name();
    println!("{name:<20} {sent:>10} {received:>10} {bare:>10.1} {ours:>10.1} {beside:>10.1}{rest}");
}

fn print_instructions() {
    let runtime = runtime();
    print_head("instructions", "");
    for call in Call::ALL {
        let counts = LANES.map(|lane| {
            let [few, many] = [FEW, MANY].map(|count| instructions(lane, call, count));
            (many - few) as f64 / (MANY - FEW) as f64
        });
        let calls = runtime.block_on(Calls::new(call));
        print_row(&calls, counts, String::new());
    }
}

fn instructions(lane: Lane, call: Call, count: u64) -> u64 {
    let own = std::env::current_exe().expect("the path of this program");
    let lane = format!("{lane:?}").to_lowercase();
    let counted = Command::new("valgrind")
        .args([
            "--tool=cachegrind",
            "--cache-sim=no",
            "--cachegrind-out-file=/dev/null",
        ])
        .arg(own)
        .args(["run", &lane, call.name(), &count.to_string()])
        .output()
        .expect("valgrind runs");
    let told = String::from_utf8_lossy(&counted.stderr);
    let line = told.lines().find(|line| line.contains("refs:"));
    let number = line.and_then(|line| line.rsplit(' ').next());
    let number = number.map(|number| number.replace(',', ""));
    number
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("valgrind says: {told}"))
}

fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}

/// What this thread has had of the processor, in seconds.
fn processor_time() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}
