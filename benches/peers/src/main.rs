//! The layer beside its peers, in the same rounds.
//!
//! ```text
//! cargo run --release --ignore-rust-version --manifest-path benches/peers/Cargo.toml [-- FILTER]
//! ```
//!
//! prints a table for each case whose name contains FILTER, and writes the same as JSON lines to
//! `target/bench/peers.jsonl`. `ROUNDS` in the environment says how many rounds there are; the
//! default is 100.
//!
//! The peers do not promise what this crate promises, nor the same as each other; see
//! `contestants.rs`.

mod contestants;
#[path = "../../harness/mod.rs"]
mod harness;

use std::hint::black_box;
use std::io;
use std::path::Path;

use self::contestants::{
    axum, axum_idempotent, bare, floor, idempotent, ours, ours_axum, rustango, session,
};
use self::harness::load::{Calls, Keys, Load, Make, Setup};
use self::harness::report::Report;
use self::harness::rounds::{Alone, Case};

fn main() -> io::Result<()> {
    let filter = std::env::args().nth(1).unwrap_or_default();
    let rounds = std::env::var("ROUNDS").ok();
    let rounds = rounds.and_then(|rounds| rounds.parse().ok()).unwrap_or(100);
    let mut report = Report::new();
    let get = Load::new(Keys::None).get().body(0);
    let get_with_key = Load {
        keys: Keys::Unguarded,
        ..get.clone()
    };
    for (name, load) in [
        ("pass-through, POST without a key", Load::new(Keys::None)),
        ("pass-through, GET", get),
        ("pass-through, GET with a key", get_with_key),
        ("first run", Load::new(Keys::Fresh)),
        ("replay, 1 key", Load::new(Keys::Known(1))),
        ("replay, 1,000 keys", Load::new(Keys::Known(1_000))),
    ] {
        if name.contains(&filter) {
            compare(&mut report, name, &load, rounds);
        }
    }
    let target = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    report.finish(&target.join("bench/peers.jsonl"))
}

fn compare(report: &mut Report, name: &'static str, load: &Load, rounds: usize) {
    let is_guarded = !matches!(load.keys, Keys::None | Keys::Unguarded);
    let without_key = Load {
        keys: match is_guarded {
            true => Keys::None,
            false => load.keys,
        },
        ..load.clone()
    };
    let with_session = Load {
        cookie: Some(session),
        ..load.clone()
    };
    let unguarded = |make: Make| Calls::new(make, Setup::new(), without_key.clone());
    let guarded = |make: Make| Calls::guarding(make, Setup::new(), load.clone());
    let request = without_key.clone();
    let request = move || drop(black_box(request.request(request.item(0))));
    let mut case = Case::new(name)
        .lane("request alone", "bare", Alone(request))
        .lane("bare", "bare", unguarded(bare))
        .lane("floor", "bare", guarded(floor))
        .lane("ours", "floor", guarded(ours))
        .lane("ours again", "ours", guarded(ours))
        .lane("idempotent", "ours", guarded(idempotent))
        .lane("axum", "bare", unguarded(axum))
        .lane("ours, axum", "axum", guarded(ours_axum))
        .lane("rustango", "ours, axum", guarded(rustango));
    // It takes each request for one to be guarded, whether it has a key or not.
    if is_guarded {
        let calls = Calls::guarding(axum_idempotent, Setup::new(), with_session);
        case = case.lane("axum-idempotent", "ours", calls);
    }
    let measured = case.measure(rounds);
    report.add(&measured);
    if is_guarded {
        let what = format!("{name}: ours to the best peer");
        report.hold(&measured, &what, 0.5, |round| {
            let to = |ours, peer| round.ns(ours) / round.ns(peer);
            to("ours", "idempotent")
                .max(to("ours", "axum-idempotent"))
                .max(to("ours, axum", "rustango"))
        });
    }
}
