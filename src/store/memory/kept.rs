//! The answers of a store of record.

use std::hash::BuildHasher;
use std::mem;

use foldhash::fast::RandomState;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::MemoryStore;
use super::expiring::Expiring;
use crate::clock::Timestamp;
use crate::key::RecordKey;
use crate::record::Completed;

/// A table with less room than this is left as it is.
const SHRINK_FLOOR: usize = 256;

/// Answers that are kept until they expire.
#[derive(Debug, Default)]
pub(super) struct Kept {
    answers: HashTable<Answer>,
    hasher: RandomState,
    /// Has an answer that was removed, or took another's place, until the time that it had.
    expiring: Expiring,
}

#[derive(Debug)]
struct Answer {
    key: RecordKey,
    completed: Completed,
}

impl Kept {
    pub(super) fn get(&self, key: &RecordKey) -> Option<&Completed> {
        let hash = self.hasher.hash_one(key.prefix());
        let answer = self.answers.find(hash, |answer| answer.key == *key)?;
        Some(&answer.completed)
    }

    /// Gives back what was there before.
    pub(super) fn insert(&mut self, key: RecordKey, completed: Completed) -> Option<Completed> {
        self.expiring.push(completed.expires_at, key.prefix());
        let hash_of = |answer: &Answer| self.hasher.hash_one(answer.key.prefix());
        let hash = self.hasher.hash_one(key.prefix());
        match self
            .answers
            .entry(hash, |answer| answer.key == key, hash_of)
        {
            Entry::Occupied(mut there) => {
                Some(mem::replace(&mut there.get_mut().completed, completed))
            }
            Entry::Vacant(room) => {
                room.insert(Answer { key, completed });
                None
            }
        }
    }

    pub(super) fn remove(&mut self, key: &RecordKey) -> Option<Completed> {
        let hash = self.hasher.hash_one(key.prefix());
        let found = self.answers.find_entry(hash, |answer| answer.key == *key);
        let (answer, _) = found.ok()?.remove();
        Some(answer.completed)
    }

    /// Forgets up to `most` answers that have expired, and says what they were weighed at.
    pub(super) fn forget_expired(&mut self, now: Timestamp, most: usize) -> u64 {
        let mut freed = 0;
        for _ in 0..most {
            let Some((expires_at, prefix)) = self.expiring.pop(now) else {
                break;
            };
            // Of two with one prefix that expire at one time, either: the other's turn comes.
            let found = self
                .answers
                .find_entry(self.hasher.hash_one(prefix), |answer| {
                    answer.key.prefix() == prefix && answer.completed.expires_at == expires_at
                });
            if let Ok(found) = found {
                let (answer, _) = found.remove();
                freed += weight_of(&answer.completed);
            }
        }
        if freed > 0 {
            self.shrink_if_due();
        }
        freed
    }

    /// What a rush has left behind is given back, at a price that those paid who came in it.
    fn shrink_if_due(&mut self) {
        let capacity = self.answers.capacity();
        if capacity > SHRINK_FLOOR && self.answers.len() < capacity / 8 {
            let hash_of = |answer: &Answer| self.hasher.hash_one(answer.key.prefix());
            self.answers.shrink_to(capacity / 4, hash_of);
            self.expiring.shrink_to(capacity / 4);
        }
    }
}

pub(super) fn weight_of(completed: &Completed) -> u64 {
    completed.payload.len() as u64 + MemoryStore::OVERHEAD
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::fingerprint::Fingerprint;
    use crate::record::Identity;

    const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn key(number: u64) -> RecordKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        RecordKey::from_bytes(bytes)
    }

    fn answer(lifetime: Duration) -> Completed {
        Completed {
            identity: Identity::of_work(Fingerprint::from_bytes([9; 32])),
            payload: Bytes::from_static(b"payload"),
            created_at: START,
            expires_at: START.plus(lifetime),
        }
    }

    #[test]
    fn an_answer_that_took_anothers_place_outlives_it() {
        let [short, long] = [1, 2].map(Duration::from_secs);
        let mut kept = Kept::default();
        assert_eq!(kept.insert(key(1), answer(short)), None);
        assert_eq!(kept.insert(key(1), answer(long)), Some(answer(short)));
        assert_eq!(kept.forget_expired(START.plus(short), 9), 0);
        assert_eq!(kept.get(&key(1)), Some(&answer(long)));
        let weight = weight_of(&answer(long));
        assert_eq!(kept.forget_expired(START.plus(long), 9), weight);
        assert_eq!(kept.get(&key(1)), None);
    }

    #[test]
    fn no_more_are_forgotten_at_once_than_was_asked_for() {
        let mut kept = Kept::default();
        for number in 0..5 {
            kept.insert(key(number), answer(Duration::ZERO));
        }
        let weight = weight_of(&answer(Duration::ZERO));
        assert_eq!(kept.forget_expired(START, 2), weight * 2);
        assert_eq!(kept.forget_expired(START, 9), weight * 3);
    }

    #[test]
    fn the_room_that_a_rush_took_is_given_back() {
        let (many, few) = (Duration::from_secs(1), Duration::from_secs(2));
        let mut kept = Kept::default();
        for number in 0..10_000 {
            let lifetime = if number % 100 == 0 { few } else { many };
            kept.insert(key(number), answer(lifetime));
        }
        let before = kept.answers.capacity();
        kept.forget_expired(START.plus(many), usize::MAX);
        assert_eq!(kept.answers.len(), 100);
        assert!(kept.answers.capacity() <= before / 2);
        assert_eq!(kept.get(&key(100)), Some(&answer(few)));
    }
}
