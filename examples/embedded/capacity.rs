//! The limits of DynamoDB as token buckets: one for each table, and one for each partition.
//!
//! As DynamoDB describes it: a table takes the units that it is provisioned with, and keeps what
//! it does not use for five minutes; a partition takes 1,000 write units and 3,000 read units a
//! second, whatever its table has left
//! (<https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/burst-adaptive-capacity.html>).
//! A call is let through while anything is left, and may run up a debt. Partitions are as many as
//! the units need, and never split; a real one may split where it is hot, so this is the worse
//! case.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::units::Units;

/// What a partition takes in a second.
const PARTITION: Units = Units {
    writes: 1_000.0,
    reads: 3_000.0,
};

/// For how long a table keeps what it does not use.
const BURST: Duration = Duration::from_secs(300);
/// For how long a partition does.
const SECOND: Duration = Duration::from_secs(1);

/// What each table takes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capacity {
    /// In a second.
    pub(crate) units: Units,
    /// For how long a table keeps what it does not use. Nothing is kept at first.
    pub(crate) burst: Duration,
    /// Whether the table is on demand: only the code of the refusal differs.
    pub(crate) is_on_demand: bool,
}

impl Capacity {
    /// A provisioned table of so many write units and as many read units a second.
    pub(crate) fn of(units: u32) -> Self {
        Self {
            units: Units {
                writes: units.into(),
                reads: units.into(),
            },
            burst: BURST,
            is_on_demand: false,
        }
    }

    fn partitions(&self) -> usize {
        let needed = self.units.writes / PARTITION.writes + self.units.reads / PARTITION.reads;
        (needed.ceil() as usize).max(1)
    }

    fn throttled(&self, access: Access, by_partition: bool) -> Throttled {
        let access = match access {
            Access::Read => "Read",
            Access::Write => "Write",
        };
        let (code, limit) = match (self.is_on_demand, by_partition) {
            (false, false) => (PROVISIONED, "ProvisionedThroughputExceeded"),
            (false, true) => (PROVISIONED, "KeyRangeThroughputExceeded"),
            (true, false) => (ON_DEMAND, "MaxOnDemandThroughputExceeded"),
            (true, true) => (ON_DEMAND, "KeyRangeThroughputExceeded"),
        };
        Throttled {
            code,
            reason: format!("Table{access}{limit}"),
        }
    }
}

const PROVISIONED: &str = "ProvisionedThroughputExceededException";
const ON_DEMAND: &str = "ThrottlingException";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    Read,
    Write,
}

/// Why a call was refused, in DynamoDB's words.
#[derive(Debug)]
pub(crate) struct Throttled {
    pub(crate) code: &'static str,
    /// One of those of `ThrottlingReason`.
    pub(crate) reason: String,
}

/// What a call asks for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Asked<'a> {
    pub(crate) table: &'a str,
    /// None: it is not about one partition.
    pub(crate) partition_key: Option<&'a str>,
    pub(crate) access: Access,
}

/// The limits of all tables. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Limits(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// None: nothing is refused.
    capacity: Option<Capacity>,
    /// Since when it is in force.
    since: Instant,
    tables: HashMap<String, Table>,
    throttled: HashMap<String, usize>,
}

/// The buckets of a table, and those of its partitions.
#[derive(Debug)]
struct Table {
    all: Buckets,
    partitions: Vec<Buckets>,
}

#[derive(Clone, Debug)]
struct Buckets {
    writes: Bucket,
    reads: Bucket,
}

/// What is left of a limit; less than nothing is a debt.
#[derive(Clone, Debug)]
struct Bucket {
    rate: f64,
    most: f64,
    left: f64,
    filled: Instant,
}

impl Limits {
    pub(crate) fn new(capacity: Option<Capacity>) -> Self {
        Self(Arc::new(Mutex::new(State {
            capacity,
            since: Instant::now(),
            tables: HashMap::new(),
            throttled: HashMap::new(),
        })))
    }

    /// Changes the capacity. What is left of the one before is forgotten.
    #[allow(dead_code, reason = "the tests alone begin without limits")]
    pub(crate) fn set(&self, capacity: Option<Capacity>) {
        let mut state = self.state();
        state.capacity = capacity;
        state.since = Instant::now();
        state.tables.clear();
    }

    /// How many calls of an operation were refused so far; of a batch, how many of its keys.
    #[allow(dead_code, reason = "the tests alone ask")]
    pub(crate) fn throttled(&self, operation: &str) -> usize {
        let state = self.state();
        state.throttled.get(operation).copied().unwrap_or(0)
    }

    /// Lets a call through that takes `units` as far as can be told beforehand, or refuses it.
    pub(crate) fn admit(
        &self,
        operation: &str,
        asked: Asked<'_>,
        units: f64,
    ) -> Result<(), Throttled> {
        let mut state = self.state();
        let Some(capacity) = state.capacity else {
            return Ok(());
        };
        let now = Instant::now();
        let buckets = state.table(&capacity, asked.table).buckets(asked);
        // The table's own is the first.
        let over = buckets.into_iter().flatten().position(|bucket| {
            bucket.fill(now);
            bucket.left <= 0.0
        });
        if let Some(over) = over {
            *state.throttled.entry(operation.to_owned()).or_default() += 1;
            return Err(capacity.throttled(asked.access, over > 0));
        }
        state.take(asked, units);
        Ok(())
    }

    /// Takes what a call needed beyond what it was let through with; less than nothing gives back.
    pub(crate) fn take(&self, asked: Asked<'_>, units: f64) {
        self.state().take(asked, units);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn table(&mut self, capacity: &Capacity, name: &str) -> &mut Table {
        let since = self.since;
        let table = self.tables.entry(name.to_owned());
        table.or_insert_with(|| Table::new(capacity, since))
    }

    fn take(&mut self, asked: Asked<'_>, units: f64) {
        if let Some(capacity) = self.capacity {
            let buckets = self.table(&capacity, asked.table).buckets(asked);
            for bucket in buckets.into_iter().flatten() {
                bucket.left -= units;
            }
        }
    }
}

impl Table {
    fn new(capacity: &Capacity, since: Instant) -> Self {
        Self {
            all: Buckets::new(capacity.units, capacity.burst, since),
            partitions: vec![Buckets::new(PARTITION, SECOND, since); capacity.partitions()],
        }
    }

    fn buckets(&mut self, asked: Asked<'_>) -> [Option<&mut Bucket>; 2] {
        let partition = asked.partition_key.map(|key| {
            let mut hasher = DefaultHasher::new();
            key.hash(&mut hasher);
            let number = hasher.finish() % self.partitions.len() as u64;
            &mut self.partitions[number as usize]
        });
        [Some(&mut self.all), partition].map(|buckets| {
            buckets.map(|buckets| match asked.access {
                Access::Read => &mut buckets.reads,
                Access::Write => &mut buckets.writes,
            })
        })
    }
}

impl Buckets {
    fn new(units: Units, kept: Duration, since: Instant) -> Self {
        let bucket = |rate: f64| Bucket {
            rate,
            most: rate * kept.as_secs_f64(),
            left: 0.0,
            filled: since,
        };
        Self {
            writes: bucket(units.writes),
            reads: bucket(units.reads),
        }
    }
}

impl Bucket {
    fn fill(&mut self, now: Instant) {
        let gained = self.rate * now.duration_since(self.filled).as_secs_f64();
        self.left = (self.left + gained).min(self.most);
        self.filled = now;
    }
}
