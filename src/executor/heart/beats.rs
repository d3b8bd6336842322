//! The leases that a heart renews, and when each is due.
//!
//! A slab of entries, spread over shards. Each shard has a wheel of lists of what is due within the
//! next two thirds of a lease, and chains by which an owner is found: to add, to move and to remove
//! an entry costs the same however many there are.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::executor::living::{Living, Noted};
use crate::executor::wait::SharedEnd;
use crate::protocol::clock::Timestamp;
use crate::protocol::record::{Holder, Lease, Owner};
use crate::runtime::Instant;

/// A lease is renewed when a third of it has passed, so that two renewals may fail.
pub(super) const BEATS_PER_LEASE: u32 = 3;
/// Ticks between two renewals of a lease.
const TICKS_PER_BEAT: u64 = 128;
const SHORTEST_TICK: Duration = Duration::from_millis(1);
const LONGEST_INTERVAL: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The lists of a wheel. Nothing is due later than in so many ticks.
const WHEEL: u64 = 256;
/// How much earlier than it has to be a lease is renewed, at the most: by chance, so that leases
/// which were granted together drift apart.
const SPREAD: u64 = TICKS_PER_BEAT / 8;
/// So many are taken at a time under the lock of a shard.
const BATCH: usize = 32;
/// A table with less room than this is left as it is.
const SHRINK_FLOOR: usize = 256;
const NIL: u32 = u32::MAX;

#[derive(Debug)]
pub(in crate::executor) struct Beats {
    shards: Box<[Shard]>,
    /// In microseconds.
    tick: u64,
    /// From one renewal of a lease to the next, in microseconds.
    interval: u64,
    living: Living,
    is_awake: AtomicBool,
    /// Something is due before the heart would look.
    pub(super) sooner: Notify,
}

/// On cache lines of its own.
#[derive(Debug)]
#[repr(align(64))]
struct Shard(Mutex<Table>);

#[derive(Debug)]
struct Table {
    entries: Vec<Entry>,
    free: u32,
    len: usize,
    /// By owner. A power of two of them.
    chains: Vec<u32>,
    /// By tick.
    wheel: [u32; WHEEL as usize],
    /// What was due up to this tick was taken.
    cursor: u64,
    /// The wall time of the cursor; past all times while the heart sleeps.
    cursor_at: Timestamp,
    wakes_at: u64,
}

#[derive(Debug)]
struct Entry {
    owner: Owner,
    /// `None`: there is nothing to renew.
    holder: Option<Holder>,
    /// When the run has had its time, and its lease may lapse.
    ends_at: Option<Instant>,
    /// In the wheel.
    next: u32,
    before: u32,
    /// In the chain of the owner.
    next_in_chain: u32,
    before_in_chain: u32,
    /// How early the next renewal is.
    chance: u64,
    noted: Noted,
    state: State,
    /// The list of the wheel that it is in, when it is due.
    list: u8,
    /// Whether the end of the run is under way to the store.
    is_ending: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Free,
    /// It is in the wheel.
    Due,
    /// The run has had its time.
    Over,
    /// It is alive, and not renewed: its lease was lost, or it has none.
    Unrenewed,
}

/// Where an entry is. It may be another's by now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Position {
    shard: u32,
    index: u32,
}

/// A lease that has to be renewed.
#[derive(Debug)]
pub(super) struct Due {
    pub(super) place: Position,
    pub(super) holder: Holder,
}

impl Beats {
    /// The heart looks at the wheels at least once in so many ticks while there is anything in
    /// them.
    pub(super) const LONGEST_SLEEP: u64 = TICKS_PER_BEAT / 2;
    /// Enough that two threads seldom want the same one.
    pub(super) const SHARDS: usize = 16;

    pub(super) fn new(lease: Duration, living: Living) -> Self {
        // Longer ones do as well as if they were without end.
        let interval = (lease / BEATS_PER_LEASE).min(LONGEST_INTERVAL);
        let per_beat = u32::try_from(TICKS_PER_BEAT).unwrap_or(1);
        Self {
            shards: (0..Self::SHARDS).map(|_| Shard(Mutex::default())).collect(),
            tick: micros((interval / per_beat).max(SHORTEST_TICK)),
            interval: micros(interval),
            living,
            is_awake: AtomicBool::new(false),
            sooner: Notify::new(),
        }
    }

    /// Adds a lease that is held at `now`.
    ///
    /// The next renewal is due two thirds of the lease before its deadline, which is at once when
    /// it took so long to get it.
    pub(super) fn enter(self: &Arc<Self>, lease: &Lease, now: Timestamp) -> Alive {
        let shard = shard_of(lease.owner);
        let mut table = self.lock(shard);
        let left = lease.deadline.as_micros().saturating_sub(now.as_micros());
        let until = left.saturating_sub(2 * self.interval).min(self.interval);
        // By the key, so that a history of a test can happen again.
        let [first, ..] = *lease.key.as_bytes();
        let early = self.tick * SPREAD * u64::from(first) / 256;
        let at = self.tick_in(&table, until.saturating_sub(early), now);
        let index = table.insert(lease.owner, Some(lease.holder()));
        table.link(index, at);
        let is_sooner = at < table.wakes_at;
        drop(table);
        if is_sooner {
            self.sooner.notify_one();
        }
        self.alive(shard, index)
    }

    /// Adds an attempt that has no lease.
    pub(super) fn enter_without_lease(self: &Arc<Self>, owner: Owner) -> Alive {
        let shard = shard_of(owner);
        let index = self.lock(shard).insert(owner, None);
        self.alive(shard, index)
    }

    fn alive(self: &Arc<Self>, shard: usize, index: u32) -> Alive {
        Alive {
            beats: Arc::clone(self),
            place: Position {
                shard: shard as u32,
                index,
            },
        }
    }

    /// The tick that is `micros` after `now`.
    fn tick_in(&self, table: &Table, micros: u64, now: Timestamp) -> u64 {
        // A wall clock that jumps makes a renewal come early, and never late.
        let since_cursor = now.as_micros().saturating_sub(table.cursor_at.as_micros());
        let since_cursor = since_cursor.min(Self::LONGEST_SLEEP * self.tick);
        let ticks = (micros + since_cursor) / self.tick;
        table.cursor + ticks.clamp(1, WHEEL - 1)
    }

    pub(super) fn is_awake(&self) -> bool {
        self.is_awake.load(Ordering::SeqCst)
    }

    /// Wakes the heart, and returns whether it was asleep.
    pub(super) fn wake(&self) -> bool {
        !self.is_awake.swap(true, Ordering::SeqCst)
    }

    /// The tick at which a heart begins that wakes now.
    pub(super) fn latest_tick(&self) -> u64 {
        let cursors = (0..Self::SHARDS).map(|shard| self.lock(shard).cursor);
        cursors.max().unwrap_or_default()
    }

    pub(super) const fn tick(&self) -> Duration {
        Duration::from_micros(self.tick)
    }

    /// Takes some of what is due up to the tick `target`, and returns whether that was all of it in
    /// this shard.
    ///
    /// What is taken is due again after the usual time.
    pub(super) fn take(
        &self,
        shard: usize,
        target: u64,
        now: Instant,
        wall: Timestamp,
        taken: &mut Vec<Due>,
    ) -> bool {
        let mut table = self.lock(shard);
        let again = (self.interval / self.tick).max(2);
        while table.cursor < target {
            let tick = table.cursor + 1;
            let list = list_of(tick);
            loop {
                let index = table.wheel[usize::from(list)];
                if index == NIL {
                    break;
                }
                if taken.len() == BATCH {
                    return false;
                }
                table.unlink(index);
                let entry = &mut table.entries[index as usize];
                let Some(holder) = entry.holder else {
                    continue;
                };
                if entry.ends_at.is_some_and(|ends_at| ends_at <= now) {
                    entry.state = State::Over;
                    continue;
                }
                taken.push(Due {
                    place: Position {
                        shard: shard as u32,
                        index,
                    },
                    holder,
                });
                entry.chance = another(entry.chance);
                let early = (entry.chance >> 56) * SPREAD.min(again / 8) / 256;
                let ahead = target - table.cursor + again - early;
                let at = table.cursor + ahead.min(WHEEL - 1);
                table.link(index, at);
            }
            table.cursor = tick;
        }
        table.cursor_at = wall;
        true
    }

    /// Makes a lease due in `after`, if its run is still there.
    pub(super) fn due_in(&self, due: &Due, after: Duration, now: Timestamp) {
        let mut table = self.lock(due.place.shard as usize);
        let at = self.tick_in(&table, micros(after), now);
        let Some(entry) = table.entry(due) else {
            return;
        };
        if entry.state != State::Due {
            return;
        }
        table.unlink(due.place.index);
        table.link(due.place.index, at);
        let is_sooner = at < table.wakes_at;
        drop(table);
        if is_sooner {
            self.sooner.notify_one();
        }
    }

    /// Stops the renewals of a lease that was lost. Returns whether its run did not know: not when
    /// its own end is under way, which finds no lease either and will say so.
    pub(super) fn lost(&self, due: &Due) -> bool {
        let mut table = self.lock(due.place.shard as usize);
        let Some(entry) = table.entry(due) else {
            return false;
        };
        if entry.state != State::Due {
            return false;
        }
        let is_news = !entry.is_ending;
        entry.state = State::Unrenewed;
        table.unlink(due.place.index);
        is_news
    }

    /// The tick at which the heart has to look again; `None` when it renews nothing any more.
    pub(super) fn next(&self) -> Option<u64> {
        let mut next: Option<u64> = None;
        for shard in 0..Self::SHARDS {
            let mut table = self.lock(shard);
            let wakes_at = table.next();
            table.wakes_at = wakes_at;
            if table.len > 0 {
                next = Some(next.map_or(wakes_at, |next| next.min(wakes_at)));
            }
        }
        next
    }

    /// How many leases there are.
    pub(super) fn len(&self) -> usize {
        (0..Self::SHARDS).map(|shard| self.lock(shard).len).sum()
    }

    /// Lets the heart sleep, unless it is needed. Returns whether it sleeps.
    pub(super) fn sleep(&self) -> bool {
        for shard in 0..Self::SHARDS {
            let mut table = self.lock(shard);
            table.cursor_at = Timestamp::from_micros(u64::MAX);
            table.wakes_at = 0;
            if table.len == 0 && table.entries.capacity() > SHRINK_FLOOR {
                table.forget_room();
            }
        }
        self.is_awake.store(false, Ordering::SeqCst);
        // One that came in between saw the heart awake. It is woken by whoever sees this first.
        self.len() == 0 || !self.wake()
    }

    /// Whether the attempt of `owner` is alive, so that its lease has not lapsed.
    pub(in crate::executor) fn contains(&self, owner: Owner) -> bool {
        let mut table = self.lock(shard_of(owner));
        let entry = table.of(owner);
        entry.is_some_and(|entry| entry.state != State::Over)
    }

    /// What is known of the attempt of `owner`; `None` when it is not here.
    pub(in crate::executor) fn with<T>(
        &self,
        owner: Owner,
        look: impl FnOnce(&mut Noted) -> T,
    ) -> Option<T> {
        let mut table = self.lock(shard_of(owner));
        table.of(owner).map(|entry| look(&mut entry.noted))
    }

    fn lock(&self, shard: usize) -> MutexGuard<'_, Table> {
        // No code that can panic runs while a table is changed, so a poisoned one is whole.
        self.shards[shard % Self::SHARDS]
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn insert(&mut self, owner: Owner, holder: Option<Holder>) -> u32 {
        let index = self.free;
        let index = match self.entries.get_mut(index as usize) {
            Some(entry) => {
                self.free = entry.next;
                // Field by field, so that it is written in its place.
                entry.owner = owner;
                entry.holder = holder;
                entry.ends_at = None;
                entry.chance = chance_of(holder.as_ref());
                entry.state = State::Unrenewed;
                entry.is_ending = false;
                index
            }
            None => self.push(owner, holder),
        };
        self.link_in_chain(index);
        self.len += 1;
        index
    }

    #[cold]
    fn push(&mut self, owner: Owner, holder: Option<Holder>) -> u32 {
        let index = self.entries.len() as u32;
        self.entries.push(Entry {
            owner,
            holder,
            ends_at: None,
            next: NIL,
            before: NIL,
            next_in_chain: NIL,
            before_in_chain: NIL,
            chance: chance_of(holder.as_ref()),
            noted: Noted::default(),
            state: State::Unrenewed,
            list: 0,
            is_ending: false,
        });
        if self.entries.len() > self.chains.len() {
            // Nothing is free, or it would have been taken; the new one is not in a chain yet.
            self.chains = vec![NIL; self.entries.len().next_power_of_two()];
            for index in 0..index {
                self.link_in_chain(index);
            }
        }
        index
    }

    fn link_in_chain(&mut self, index: u32) {
        let owner = self.entries[index as usize].owner;
        let chain = chain_of(owner, self.chains.len());
        let next = std::mem::replace(&mut self.chains[chain], index);
        let entry = &mut self.entries[index as usize];
        (entry.next_in_chain, entry.before_in_chain) = (next, NIL);
        if next != NIL {
            self.entries[next as usize].before_in_chain = index;
        }
    }

    fn remove(&mut self, index: u32) -> Noted {
        let entry = &self.entries[index as usize];
        let (next, before) = (entry.next_in_chain, entry.before_in_chain);
        let state = entry.state;
        let chain = chain_of(entry.owner, self.chains.len());
        match before {
            NIL => self.chains[chain] = next,
            before => self.entries[before as usize].next_in_chain = next,
        }
        if next != NIL {
            self.entries[next as usize].before_in_chain = before;
        }
        if state == State::Due {
            self.unlink(index);
        }
        let entry = &mut self.entries[index as usize];
        entry.state = State::Free;
        let noted = std::mem::take(&mut entry.noted);
        entry.next = self.free;
        self.free = index;
        self.len -= 1;
        noted
    }

    fn link(&mut self, index: u32, at: u64) {
        let list = list_of(at);
        let next = self.wheel[usize::from(list)];
        self.wheel[usize::from(list)] = index;
        let entry = &mut self.entries[index as usize];
        (entry.list, entry.next, entry.before) = (list, next, NIL);
        entry.state = State::Due;
        if next != NIL {
            self.entries[next as usize].before = index;
        }
    }

    fn unlink(&mut self, index: u32) {
        let entry = &self.entries[index as usize];
        let (list, next, before) = (entry.list, entry.next, entry.before);
        match before {
            NIL => self.wheel[usize::from(list)] = next,
            before => self.entries[before as usize].next = next,
        }
        if next != NIL {
            self.entries[next as usize].before = before;
        }
    }

    /// The entry of a lease, if it is still there.
    fn entry(&mut self, due: &Due) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(due.place.index as usize)?;
        (entry.state != State::Free && entry.owner == due.holder.owner).then_some(entry)
    }

    fn of(&mut self, owner: Owner) -> Option<&mut Entry> {
        let mut index = match self.chains.len() {
            0 => NIL,
            chains => self.chains[chain_of(owner, chains)],
        };
        while index != NIL {
            let entry = &self.entries[index as usize];
            if entry.owner == owner {
                return self.entries.get_mut(index as usize);
            }
            index = entry.next_in_chain;
        }
        None
    }

    /// The tick at which something is due, or else the last one that may be slept until.
    fn next(&self) -> u64 {
        let ticks = self.cursor + 1..self.cursor + Beats::LONGEST_SLEEP;
        ticks
            .clone()
            .find(|&tick| self.wheel[usize::from(list_of(tick))] != NIL)
            .unwrap_or(ticks.end)
    }

    fn forget_room(&mut self) {
        (self.entries, self.chains, self.free) = (Vec::new(), Vec::new(), NIL);
    }
}

impl Default for Table {
    fn default() -> Self {
        Self {
            entries: Vec::new(),
            free: NIL,
            len: 0,
            chains: Vec::new(),
            wheel: [NIL; WHEEL as usize],
            cursor: 0,
            cursor_at: Timestamp::from_micros(u64::MAX),
            wakes_at: 0,
        }
    }
}

/// An attempt that is alive, and whose lease is renewed. It is no longer when this is dropped.
#[derive(Debug)]
pub(in crate::executor) struct Alive {
    beats: Arc<Beats>,
    place: Position,
}

impl Alive {
    /// Where it is known to be alive.
    pub(in crate::executor) fn living(&self) -> Living {
        self.beats.living
    }

    /// Ends it. Those who wait for its end get `end`; without one they have to ask the store.
    pub(in crate::executor) fn leave(&mut self, end: impl FnOnce() -> Option<SharedEnd>) {
        let index = std::mem::replace(&mut self.place.index, NIL);
        let mut noted = self.table().remove(index);
        if let Some(tell) = noted.take_tell()
            && let Some(end) = end()
        {
            tell.send_replace(Some(end));
        }
    }

    /// Gives `end` to those who wait, although the attempt goes on: its record is missing yet.
    pub(in crate::executor) fn tell(&self, end: impl FnOnce() -> SharedEnd) {
        let tell = self.table().entries[self.place.index as usize]
            .noted
            .take_tell();
        if let Some(tell) = tell {
            tell.send_replace(Some(end()));
        }
    }

    /// Gives the run time until `ends_at`: after that its lease is no longer renewed, and it does
    /// not count as alive.
    pub(in crate::executor) fn may_run_until(&self, ends_at: Instant) {
        self.table().entries[self.place.index as usize].ends_at = Some(ends_at);
    }

    /// From here on, the end of the run is under way to the store. Its time is no longer limited:
    /// the work is done, only its record is missing.
    pub(in crate::executor) fn end_is_under_way(&self) {
        let mut table = self.table();
        let soon = table.cursor + 1;
        let entry = &mut table.entries[self.place.index as usize];
        (entry.is_ending, entry.ends_at) = (true, None);
        if entry.state == State::Over {
            table.link(self.place.index, soon);
            drop(table);
            self.beats.sooner.notify_one();
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.beats.lock(self.place.shard as usize)
    }
}

impl Drop for Alive {
    fn drop(&mut self) {
        if self.place.index != NIL {
            self.table().remove(self.place.index);
        }
    }
}

fn shard_of(owner: Owner) -> usize {
    usize::from(owner.as_bytes()[6]) % Beats::SHARDS
}

/// The first bytes of an owner are as good as random.
fn chain_of(owner: Owner, chains: usize) -> usize {
    let [a, b, c, d, ..] = *owner.as_bytes();
    u32::from_le_bytes([a, b, c, d]) as usize & (chains - 1)
}

fn chance_of(holder: Option<&Holder>) -> u64 {
    let chance = holder.and_then(|holder| holder.key.as_bytes().last_chunk());
    chance.copied().map_or(0, u64::from_le_bytes)
}

/// Another number, whose first bits look like chance.
const fn another(number: u64) -> u64 {
    number
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407)
}

fn list_of(tick: u64) -> u8 {
    (tick % WHEEL) as u8
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
