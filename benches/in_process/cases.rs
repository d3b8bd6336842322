//! What is timed.

use std::hint::black_box;
use std::io;
use std::path::Path;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::contestants::{
    axum, axum_layered, bare, floor, floor_axum, ours, ours_axum, ours_near, ours_shared,
    ours_tiered,
};
use crate::crowd::{self, Crowd};
use crate::dynamodb::{ours_dynamodb, ours_memory_over_dynamodb};
use crate::flight;
use crate::harness::load::{Calls, Keys, Load, Make, Setup, bytes};
use crate::harness::report::Report;
use crate::harness::rounds::{Alone, Case};
use crate::held::{Held, Number};
use crate::waiters::Waiters;

const KB: usize = 1024;
const MB: usize = 1024 * KB;

pub(crate) struct Bench {
    rounds: usize,
    filter: String,
    report: Report,
}

impl Bench {
    pub(crate) fn new(rounds: usize, filter: String) -> Self {
        Self {
            rounds,
            filter,
            report: Report::new(),
        }
    }

    fn is_wanted(&self, case: &str) -> bool {
        case.contains(&self.filter)
    }

    pub(crate) fn pass_through(&mut self) {
        let no_key = Load::new(Keys::None);
        let get = no_key.clone().get().body(0);
        let get_with_key = Load {
            // The key is not looked at.
            keys: Keys::Unguarded,
            ..get.clone()
        };
        for (name, load) in [
            ("pass-through, POST without a key", no_key),
            ("pass-through, GET", get),
            ("pass-through, GET with a key", get_with_key),
        ] {
            if !self.is_wanted(name) {
                continue;
            }
            let calls = |make| Calls::guarding(make, Setup::new(), load.clone());
            let request = load.clone();
            let measured = Case::new(name)
                .lane(
                    "request alone",
                    "bare",
                    Alone(move || {
                        drop(black_box(request.request(request.item(1))));
                    }),
                )
                .lane("bare", "bare", Calls::new(bare, Setup::new(), load.clone()))
                .lane("floor", "bare", calls(floor))
                .lane("ours", "bare", calls(ours))
                .lane("ours again", "ours", calls(ours))
                .lane("axum", "bare", Calls::new(axum, Setup::new(), load.clone()))
                .lane(
                    "axum, empty layer",
                    "axum",
                    Calls::new(axum_layered, Setup::new(), load.clone()),
                )
                .lane("ours, axum", "axum, empty layer", calls(ours_axum))
                .measure(self.rounds);
            self.report.add(&measured);
            for (lane, bare) in [
                ("floor", "bare"),
                ("ours", "bare"),
                ("ours, axum", "axum, empty layer"),
            ] {
                let what = format!("{name}: {lane} to {bare}");
                self.report.hold(&measured, &what, 1.03, |round| {
                    round.ns(lane) / round.ns(bare)
                });
            }
        }
    }

    pub(crate) fn replays(&mut self) {
        for (name, keys) in [
            ("replay, 1 key", 1),
            ("replay, 1,000 keys", 1_000),
            ("replay, 100,000 keys", 100_000),
        ] {
            if !self.is_wanted(name) {
                continue;
            }
            let bound = (keys == 1_000).then_some(1.25);
            let load = Load::new(Keys::Known(keys));
            self.against_the_floor(Case::new(name), name, Setup::new, &load, bound, 1);
        }
    }

    pub(crate) fn first_runs(&mut self) {
        let load = Load::new(Keys::Fresh);
        let name = "first run, nothing expires";
        if self.is_wanted(name) {
            let setup = Setup::new;
            self.against_the_floor(Case::new(name), name, setup, &load, Some(1.6), 1);
        }
        // A burst of upkeep each second or so: many rounds, and the ratio of means counts.
        let name = "first run, as many expire as come";
        if self.is_wanted(name) {
            let setup = || Setup {
                retention: Duration::from_secs(1),
                ..Setup::new()
            };
            let case = Case {
                warm_up: Duration::from_secs(3),
                ..Case::new(name)
            };
            self.against_the_floor(case, name, setup, &load, Some(1.6), 10);
        }
    }

    fn against_the_floor(
        &mut self,
        case: Case,
        name: &str,
        setup: fn() -> Setup,
        load: &Load,
        bound: Option<f64>,
        times_rounds: usize,
    ) {
        let calls = |make| Calls::guarding(make, setup(), load.clone());
        let load_of_bare = Load {
            keys: Keys::None,
            ..load.clone()
        };
        let bare_calls = |make: Make| Calls::new(make, setup(), load_of_bare.clone());
        let measured = case
            .lane("bare", "bare", bare_calls(bare))
            .lane("floor", "bare", calls(floor))
            .lane("ours", "floor", calls(ours))
            .lane("ours again", "ours", calls(ours))
            .lane("ours, near tier alone", "floor", calls(ours_near))
            .lane("ours, tiered", "floor", calls(ours_tiered))
            .lane("ours, SharedStore", "floor", calls(ours_shared))
            .lane("axum", "bare", bare_calls(axum))
            .lane("floor, axum", "axum", calls(floor_axum))
            .lane("ours, axum", "floor, axum", calls(ours_axum))
            .measure(self.rounds * times_rounds);
        self.report.add(&measured);
        if let Some(bound) = bound {
            for lane in ["ours", "ours, near tier alone"] {
                let what = format!("{name}: {lane} to floor");
                self.report.hold(&measured, &what, bound, |round| {
                    round.ns(lane) / round.ns("floor")
                });
            }
        }
    }

    pub(crate) fn body_sizes(&mut self) {
        let name = "body sizes, replay of 1,000 keys";
        if !self.is_wanted(name) {
            return;
        }
        let mut case = Case::new(name);
        for (size, length) in [
            ("0", 0),
            ("1 KB", KB),
            ("16 KB", 16 * KB),
            ("64 KB", 64 * KB),
            ("256 KB", 256 * KB),
            ("1 MB", MB),
        ] {
            let hash = format!("SHA-256, {size}");
            let (floor_lane, ours_lane) = (format!("floor, {size}"), format!("ours, {size}"));
            let body = bytes(length);
            let load = Load::new(Keys::Known(1_000)).body(length);
            let calls = |make| Calls::guarding(make, Setup::new(), load.clone());
            case = case
                .lane(
                    &hash,
                    &hash,
                    Alone(move || {
                        black_box(Sha256::digest(&body));
                    }),
                )
                .lane(&floor_lane, &hash, calls(floor))
                .lane(&ours_lane, &floor_lane, calls(ours))
                .lane(&format!("ours again, {size}"), &ours_lane, calls(ours));
        }
        let measured = case.measure(self.rounds);
        self.report.add(&measured);
        for who in ["floor", "ours"] {
            let what = format!("slope over body size, 16 KB to 1 MB: {who} to SHA-256");
            self.report.hold(&measured, &what, 1.05, |round| {
                let slope =
                    |who| round.ns(&format!("{who}, 1 MB")) - round.ns(&format!("{who}, 16 KB"));
                slope(who) / slope("SHA-256")
            });
        }
    }

    pub(crate) fn answer_sizes(&mut self) {
        let sizes = [
            ("200 B", 200),
            ("10 KB", 10 * KB),
            ("300 KB", 300 * KB),
            ("1 MB", MB),
            ("8 MB", 8 * MB),
        ];
        for (name, keys) in [
            ("answer sizes, replay of 16 keys", Keys::Known(16)),
            ("answer sizes, first run", Keys::Fresh),
        ] {
            if !self.is_wanted(name) {
                continue;
            }
            let mut case = Case::new(name);
            for (size, length) in sizes {
                let (floor_lane, ours_lane) = (format!("floor, {size}"), format!("ours, {size}"));
                let setup = || Setup {
                    answer: bytes(length),
                    ..Setup::new()
                };
                let calls = |make| Calls::guarding(make, setup(), Load::new(keys));
                case = case
                    .lane(&floor_lane, "floor, 200 B", calls(floor))
                    .lane(&ours_lane, &floor_lane, calls(ours))
                    .lane(&format!("ours again, {size}"), &ours_lane, calls(ours));
            }
            let measured = case.measure(self.rounds);
            self.report.add(&measured);
            if keys == Keys::Fresh {
                continue;
            }
            for who in ["floor", "ours"] {
                let what = format!("replay of an answer of 300 KB to one of 200 B: {who}");
                self.report.hold(&measured, &what, 1.05, |round| {
                    round.ns(&format!("{who}, 300 KB")) / round.ns(&format!("{who}, 200 B"))
                });
            }
        }
    }

    pub(crate) fn crowds(&mut self) {
        for (name, keys, to_bare) in [
            ("64 tasks on one key", crowd::Keys::One, 1.25),
            ("64 tasks on distinct keys", crowd::Keys::Distinct, 2.0),
        ] {
            if !self.is_wanted(name) {
                continue;
            }
            let measured = Case::new(name)
                .lane("bare", "bare", Crowd::bare(keys))
                .lane("floor", "bare", Crowd::floor(keys))
                .lane("ours", "floor", Crowd::ours(keys))
                .lane("ours again", "ours", Crowd::ours(keys))
                .lane("ours, waiting", "floor", Crowd::ours_waiting(keys))
                .lane("ours, tiered", "floor", Crowd::ours_tiered(keys))
                .measure(self.rounds * 2);
            self.report.add(&measured);
            // The floor allocates and shares between threads what any such layer has to. What is on
            // top of it is what this layer can be held to.
            for (lane, base, bound) in [
                ("ours", "floor", 2.0),
                ("floor", "bare", to_bare),
                ("ours", "bare", to_bare),
            ] {
                let what = format!("{name}: {lane} to {base}");
                self.report.hold(&measured, &what, bound, |round| {
                    round.ns(lane) / round.ns(base)
                });
            }
        }
    }

    /// How the cost of a first run and of a replay grows with the keys that are held.
    pub(crate) fn keys_held(&mut self, most: u64) {
        let name = "keys held";
        if !self.is_wanted(name) {
            return;
        }
        let mut case = Case::new(name);
        for (size, keys) in [
            ("1,000", 1_000),
            ("10,000", 10_000),
            ("100,000", 100_000),
            ("1,000,000", 1_000_000),
            ("10,000,000", 10_000_000),
        ] {
            if keys > most {
                continue;
            }
            let [floor, ours, again] = [floor, ours, ours].map(|make| Held::shared(make, keys));
            for (path, number) in [("first run", Number::Fresh), ("replay", Number::Known)] {
                let floor_lane = format!("floor, {path}, {size}");
                let ours_lane = format!("ours, {path}, {size}");
                let again_lane = format!("ours again, {path}, {size}");
                let calls = |held| Held::calls(held, number);
                case = case
                    .lane(&floor_lane, &format!("floor, {path}, 1,000"), calls(&floor))
                    .lane(&ours_lane, &floor_lane, calls(&ours))
                    .lane(&again_lane, &ours_lane, calls(&again));
            }
        }
        let measured = case.measure(self.rounds);
        self.report.add(&measured);
    }

    /// What another run costs while so many are in flight.
    pub(crate) fn runs_in_flight(&mut self) {
        let name = "runs in flight";
        if !self.is_wanted(name) {
            return;
        }
        let mut case = Case::new(name);
        for (size, runs) in [
            ("10", 10),
            ("100", 100),
            ("1,000", 1_000),
            ("10,000", 10_000),
            ("100,000", 100_000),
        ] {
            let (floor_lane, ours_lane) = (format!("floor, {size}"), format!("ours, {size}"));
            case = case
                .lane(&floor_lane, "floor, 10", flight::floor(runs))
                .lane(&ours_lane, &floor_lane, flight::ours(runs))
                .lane(
                    &format!("ours again, {size}"),
                    &ours_lane,
                    flight::ours(runs),
                );
        }
        let measured = case.measure(self.rounds);
        self.report.add(&measured);
    }

    /// What each of so many costs that wait for one run. The floor refuses them, so the base is a
    /// service without a layer, whose handler makes them wait.
    pub(crate) fn waiters(&mut self) {
        let name = "waiters";
        if !self.is_wanted(name) {
            return;
        }
        let mut case = Case::new(name);
        for (size, waiters) in [
            ("10", 10),
            ("100", 100),
            ("1,000", 1_000),
            ("10,000", 10_000),
        ] {
            let (bare_lane, ours_lane) = (format!("bare, {size}"), format!("ours, {size}"));
            case = case
                .lane(&bare_lane, "bare, 10", Waiters::bare(waiters))
                .lane(&ours_lane, &bare_lane, Waiters::ours(waiters))
                .lane(
                    &format!("ours again, {size}"),
                    &ours_lane,
                    Waiters::ours(waiters),
                );
        }
        let measured = case.measure(self.rounds);
        self.report.add(&measured);
    }

    pub(crate) fn on_dynamodb(&mut self) {
        for (name, keys) in [
            ("on DynamoDB, first run", Keys::Fresh),
            ("on DynamoDB, replay of 16 keys", Keys::Known(16)),
        ] {
            if !self.is_wanted(name) {
                continue;
            }
            let load = Load::new(keys);
            let calls = |make| Calls::guarding(make, Setup::new(), load.clone());
            let measured = Case::new(name)
                .lane("ours", "ours", calls(ours))
                .lane("ours again", "ours", calls(ours))
                .lane("ours, DynamoDB", "ours", calls(ours_dynamodb))
                .lane(
                    "ours, memory over DynamoDB",
                    "ours",
                    calls(ours_memory_over_dynamodb),
                )
                .measure(self.rounds);
            self.report.add(&measured);
        }
    }

    pub(crate) fn finish(self, file: &Path) -> io::Result<()> {
        self.report.finish(file)
    }
}
