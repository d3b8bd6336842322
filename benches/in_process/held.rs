//! First runs and replays while many keys are held.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::{Builder, Runtime};

use crate::harness::load::{self, Contestant, Load, Make, Setup};
use crate::harness::rounds::{Batch, Random};

/// How many keys are sent at once to a contestant that is being filled.
const CHUNK: u64 = 4096;

/// A contestant that holds at least `keys` keys and at most about twice as many.
///
/// First runs add to it. When they have doubled it, it is made anew. So each first run has its share
/// of what it takes to grow.
pub(crate) struct Held {
    runtime: Runtime,
    make: Make,
    setup: Arc<Setup>,
    contestant: Box<dyn Contestant>,
    load: Load,
    keys: u64,
    /// The number of the next key that is fresh, and how many keys are held.
    next: u64,
    random: Random,
}

/// Which keys are sent.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Fresh,
    /// Of those that are held from the beginning.
    Known,
}

impl Held {
    /// For several lanes, since to fill it takes long.
    pub(crate) fn shared(make: Make, keys: u64) -> Rc<RefCell<Self>> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let setup = Arc::new(Setup::new());
        let contestant = made(&runtime, make, &setup);
        let mut held = Self {
            runtime,
            make,
            setup,
            contestant,
            load: Load::new(load::Keys::Fresh),
            keys,
            next: 0,
            random: Random::default(),
        };
        held.fill();
        Rc::new(RefCell::new(held))
    }

    pub(crate) fn calls(held: &Rc<RefCell<Self>>, number: Number) -> impl Batch + use<> {
        Calls {
            held: Rc::clone(held),
            number,
        }
    }

    fn fill(&mut self) {
        while self.next < self.keys {
            let end = self.keys.min(self.next + CHUNK);
            self.send(self.next..end);
            self.next = end;
        }
        assert_eq!(self.setup.runs_so_far(), self.keys, "each key is new");
    }

    fn empty(&mut self) {
        self.setup = Arc::new(Setup::new());
        self.contestant = made(&self.runtime, self.make, &self.setup);
        self.next = 0;
    }

    fn send(&mut self, numbers: impl Iterator<Item = u64>) -> Duration {
        let items = numbers.map(|number| self.load.item(number)).collect();
        self.contestant.call_all(&self.runtime, &self.load, items)
    }
}

struct Calls {
    held: Rc<RefCell<Held>>,
    number: Number,
}

impl Batch for Calls {
    fn run(&mut self, count: usize) -> Duration {
        let mut held = self.held.borrow_mut();
        let count = count as u64;
        if held.next >= 2 * held.keys {
            held.empty();
            held.fill();
        }
        let before = held.setup.runs_so_far();
        let (numbers, expected): (Vec<u64>, u64) = match self.number {
            Number::Fresh => {
                let first = held.next;
                held.next += count;
                ((first..held.next).collect(), count)
            }
            Number::Known => {
                let keys = held.keys;
                let number = |_| held.random.below(keys);
                ((0..count).map(number).collect(), 0)
            }
        };
        let took = held.send(numbers.into_iter());
        let runs = held.setup.runs_so_far() - before;
        assert_eq!(runs, expected, "how often the handler ran");
        took
    }
}

fn made(runtime: &Runtime, make: Make, setup: &Arc<Setup>) -> Box<dyn Contestant> {
    let _inside = runtime.enter();
    make(setup)
}
