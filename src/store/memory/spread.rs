//! A hash table in parts: when it grows, one part of it moves, and never all of it at once.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use foldhash::fast::RandomState;
use std::hash::BuildHasher;

use crate::protocol::key::{Prefix, RecordKey};

/// A table with this many records is spread over [`PARTS`]: as many as fill 2,048 slots, so that the
/// move takes the place of a growth.
const SPREAD_AT: usize = 1_792;
const PARTS: usize = 128;
/// A part with no more room than this is left as it is.
const SHRINK_FLOOR: usize = 28;

pub(super) trait Keyed {
    fn key(&self) -> &RecordKey;
}

#[derive(Debug)]
pub(super) struct Spread<T> {
    hasher: RandomState,
    /// One, or [`PARTS`].
    parts: Box<[HashTable<T>]>,
}

impl<T: Keyed> Spread<T> {
    /// An empty table, for hashes that `hasher` makes of the beginnings of keys.
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            hasher,
            parts: Box::new([HashTable::new()]),
        }
    }

    /// Returns the number of the part that a hash belongs to.
    pub(super) fn part_of(&self, hash: u64) -> usize {
        // A part itself goes by the lowest and the highest bits.
        (hash >> 32) as usize & (self.parts.len() - 1)
    }

    pub(super) fn find(&self, hash: u64, key: &RecordKey) -> Option<&T> {
        self.parts[self.part_of(hash)].find(hash, |record| record.key() == key)
    }

    pub(super) fn find_mut(&mut self, hash: u64, key: &RecordKey) -> Option<&mut T> {
        let part = self.part_of(hash);
        self.parts[part].find_mut(hash, |record| record.key() == key)
    }

    /// Adds a record, and returns the one that had its key.
    pub(super) fn insert(&mut self, hash: u64, record: T) -> Option<T> {
        if self.parts.len() == 1 && self.parts[0].len() >= SPREAD_AT {
            self.spread();
        }
        let part = self.part_of(hash);
        let hash_of = |record: &T| self.hasher.hash_one(record.key().prefix());
        let is_it = |there: &T| there.key() == record.key();
        match self.parts[part].entry(hash, is_it, hash_of) {
            Entry::Occupied(mut there) => Some(std::mem::replace(there.get_mut(), record)),
            Entry::Vacant(room) => {
                room.insert(record);
                None
            }
        }
    }

    pub(super) fn remove(&mut self, hash: u64, key: &RecordKey) -> Option<T> {
        let part = self.part_of(hash);
        let found = self.parts[part].find_entry(hash, |record| record.key() == key);
        Some(found.ok()?.remove().0)
    }

    /// Removes a record whose key begins so, if it `is_it`.
    pub(super) fn remove_where(&mut self, prefix: Prefix, is_it: impl Fn(&T) -> bool) -> Option<T> {
        let hash = self.hasher.hash_one(prefix);
        let part = self.part_of(hash);
        let is_it = |record: &T| record.key().prefix() == prefix && is_it(record);
        let found = self.parts[part].find_entry(hash, is_it).ok()?;
        Some(found.remove().0)
    }

    /// Removes the records of one part that are not to `stay`.
    pub(super) fn retain_in(&mut self, part: usize, stay: impl FnMut(&mut T) -> bool) {
        self.parts[part].retain(stay);
    }

    pub(super) fn part_len(&self, part: usize) -> usize {
        self.parts[part].len()
    }

    pub(super) fn parts(&self) -> usize {
        self.parts.len()
    }

    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(HashTable::len).sum()
    }

    #[cold]
    fn spread(&mut self) {
        let parts = (0..PARTS).map(|_| HashTable::with_capacity(SPREAD_AT / PARTS));
        let parts = parts.collect();
        let whole = std::mem::replace(&mut self.parts, parts);
        let hash_of = |record: &T| self.hasher.hash_one(record.key().prefix());
        for record in whole.into_iter().flatten() {
            let hash = hash_of(&record);
            let part = self.part_of(hash);
            self.parts[part].insert_unique(hash, record, hash_of);
        }
    }

    /// Gives room back that a part does not need any more.
    pub(super) fn shrink(&mut self, part: usize) {
        let hash_of = |record: &T| self.hasher.hash_one(record.key().prefix());
        let Some(part) = self.parts.get_mut(part) else {
            return;
        };
        let capacity = part.capacity();
        if capacity > SHRINK_FLOOR && part.len() < capacity / 8 {
            part.shrink_to(part.len() * 2, hash_of);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    impl Keyed for (RecordKey, u32) {
        fn key(&self) -> &RecordKey {
            &self.0
        }
    }

    fn key(number: u64) -> RecordKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        RecordKey::from_bytes(bytes)
    }

    #[derive(Clone, Copy, Debug)]
    enum Step {
        /// So many records with successive keys.
        Insert(u64, u64),
        Remove(u64, u64),
        RemoveWhere(u64, u64),
        /// Keeps a part of the records of each part.
        Retain(u32),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let range = || (0..6_000_u64, 0..2_000_u64);
        let step = prop_oneof![
            4 => range().prop_map(|(from, count)| Step::Insert(from, count)),
            2 => range().prop_map(|(from, count)| Step::Remove(from, count)),
            2 => range().prop_map(|(from, count)| Step::RemoveWhere(from, count)),
            1 => (2..5_u32).prop_map(Step::Retain),
        ];
        prop::collection::vec(step, 1..20)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn it_holds_what_a_plain_map_holds_however_it_grows_and_shrinks(steps in steps()) {
            let hasher = RandomState::default();
            let mut spread = Spread::new(hasher.clone());
            let mut plain = HashMap::new();
            let hash = |key: &RecordKey| hasher.hash_one(key.prefix());
            let mut value = 0;
            for step in steps {
                match step {
                    Step::Insert(from, count) => for key in (from..from + count).map(key) {
                        value += 1;
                        let before = spread.insert(hash(&key), (key, value));
                        prop_assert_eq!(before.map(|before| before.1), plain.insert(key, value));
                    },
                    Step::Remove(from, count) => for key in (from..from + count).map(key) {
                        let removed = spread.remove(hash(&key), &key).map(|removed| removed.1);
                        prop_assert_eq!(removed, plain.remove(&key));
                    },
                    Step::RemoveWhere(from, count) => for key in (from..from + count).map(key) {
                        let removed = spread.remove_where(key.prefix(), |record| record.1 % 2 == 0);
                        let expected = plain.get(&key).copied().filter(|value| value % 2 == 0);
                        prop_assert_eq!(removed.map(|removed| removed.1), expected);
                        if expected.is_some() {
                            plain.remove(&key);
                        }
                    },
                    Step::Retain(one_of) => {
                        for part in 0..spread.parts() {
                            spread.retain_in(part, |record| record.1 % one_of == 0);
                            spread.shrink(part);
                        }
                        plain.retain(|_, value| *value % one_of == 0);
                    }
                }
                prop_assert_eq!(spread.len(), plain.len());
            }
            for (key, value) in &plain {
                prop_assert_eq!(spread.find(hash(key), key), Some(&(*key, *value)));
                prop_assert_eq!(spread.find_mut(hash(key), key), Some(&mut (*key, *value)));
            }
        }
    }

    #[test]
    fn no_part_of_a_large_table_has_much_of_it() {
        let hasher = RandomState::default();
        let mut spread = Spread::new(hasher.clone());
        for key in (0..64_000).map(key) {
            spread.insert(hasher.hash_one(key.prefix()), (key, 0));
        }
        assert_eq!(spread.parts(), PARTS);
        let most = (0..PARTS).map(|part| spread.part_len(part)).max();
        assert!(most < Some(700), "{most:?} of 64,000");
    }

    #[test]
    fn what_a_rush_took_is_given_back() {
        let hasher = RandomState::default();
        let mut spread = Spread::new(hasher.clone());
        for key in (0..64_000).map(key) {
            spread.insert(hasher.hash_one(key.prefix()), (key, 0));
        }
        for key in (0..64_000).map(key) {
            spread.remove_where(key.prefix(), |_| true);
        }
        for part in 0..spread.parts() {
            spread.shrink(part);
        }
        let room: usize = spread.parts.iter().map(HashTable::capacity).sum();
        assert!(room <= PARTS * SHRINK_FLOOR, "{room}");
    }
}
