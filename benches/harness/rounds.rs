//! Lanes of a case, timed in turns.

use std::time::{Duration, Instant};

use super::report::Measured;

/// What one lane does in one turn.
const TURN: Duration = Duration::from_micros(500);
const MOST_IN_A_TURN: usize = 4096;

/// Something that can be timed.
pub(crate) trait Batch {
    /// Does it `count` times, and says how long that took; what has to be made ready for it, and
    /// what is checked after it, is not timed.
    fn run(&mut self, count: usize) -> Duration;
}

/// A piece of code alone, as a unit to measure others in.
pub(crate) struct Alone<F>(pub(crate) F);

impl<F: FnMut()> Batch for Alone<F> {
    fn run(&mut self, count: usize) -> Duration {
        let start = now();
        for _ in 0..count {
            (self.0)();
        }
        start.elapsed()
    }
}

/// Lanes that are measured in the same rounds.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    /// How long the lanes take turns before any counts. 50 ms as it is made.
    pub(crate) warm_up: Duration,
    pub(crate) lanes: Vec<Lane>,
}

pub(crate) struct Lane {
    name: String,
    base: String,
    batch: Box<dyn Batch>,
    count: usize,
    ns: Vec<f64>,
}

impl Case {
    pub(crate) fn new(name: &'static str) -> Self {
        Self {
            name,
            warm_up: Duration::from_millis(50),
            lanes: Vec::new(),
        }
    }

    /// A lane whose ratio is taken to the lane `base`, of the same round.
    pub(crate) fn lane(mut self, name: &str, base: &str, batch: impl Batch + 'static) -> Self {
        self.lanes.push(Lane {
            name: name.to_owned(),
            base: base.to_owned(),
            batch: Box::new(batch),
            count: 1,
            ns: Vec::new(),
        });
        self
    }

    pub(crate) fn measure(mut self, rounds: usize) -> Measured {
        for lane in &mut self.lanes {
            lane.find_count();
        }
        let mut random = Random::default();
        let start = now();
        while start.elapsed() < self.warm_up {
            self.round(&mut random);
        }
        for lane in &mut self.lanes {
            lane.ns.clear();
        }
        for _ in 0..rounds {
            self.round(&mut random);
        }
        let lanes = self.lanes.into_iter();
        Measured::new(
            self.name,
            lanes.map(|lane| (lane.name, lane.base, lane.ns)).collect(),
        )
    }

    /// Each lane once, in an order that chance gives: so none always follows the same neighbour,
    /// and none always meets with what else the machine does at regular intervals.
    fn round(&mut self, random: &mut Random) {
        let mut order: Vec<usize> = (0..self.lanes.len()).collect();
        for last in (1..order.len()).rev() {
            order.swap(last, random.below(last as u64 + 1) as usize);
        }
        for turn in order {
            self.lanes[turn].take_turn();
        }
    }
}

impl Lane {
    /// How many make a turn.
    fn find_count(&mut self) {
        while self.count < MOST_IN_A_TURN {
            // The shortest of three: if something else had the processor, turns would become so short
            // that caches which are cold at their beginning decided.
            let took = (0..3).map(|_| self.batch.run(self.count)).min();
            let took = took.unwrap_or_default();
            if took >= TURN / 2 {
                let each = took.as_nanos() / self.count as u128;
                let count = usize::try_from(TURN.as_nanos() / each.max(1));
                self.count = count.map_or(1, |count| count.clamp(1, MOST_IN_A_TURN));
                return;
            }
            self.count *= 2;
        }
    }

    fn take_turn(&mut self) {
        let took = self.batch.run(self.count);
        self.ns.push(took.as_nanos() as f64 / self.count as f64);
    }
}

/// Numbers that are the same in each run: the generator of Knuth's MMIX.
#[derive(Default)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        // The upper bits are the random ones.
        (self.0 >> 33) % bound
    }
}

#[expect(clippy::disallowed_methods, reason = "time is what is measured here")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
