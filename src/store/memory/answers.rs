//! The answers of a store of record.

use foldhash::fast::RandomState;

use super::compact::Compact;
use super::expiry_queue::Expiring;
use super::spread::{Keyed, Spread};
use super::{MemoryStore, NEVER};
use crate::protocol::clock::Timestamp;
use crate::protocol::key::RecordKey;

/// Answers that are kept until they expire.
#[derive(Debug)]
pub(super) struct Kept {
    answers: Spread<Answer>,
    /// Has an answer that was removed, or took another's place, until the time that it had.
    expiring: Expiring,
}

#[derive(Debug)]
struct Answer {
    key: RecordKey,
    completed: Compact,
}

impl Keyed for Answer {
    fn key(&self) -> &RecordKey {
        &self.key
    }
}

impl Kept {
    pub(super) fn new(hasher: RandomState) -> Self {
        Self {
            answers: Spread::new(hasher),
            expiring: Expiring::default(),
        }
    }

    pub(super) fn get(&self, hash: u64, key: &RecordKey) -> Option<&Compact> {
        Some(&self.answers.find(hash, key)?.completed)
    }

    /// Gives back what was there before.
    pub(super) fn insert(
        &mut self,
        hash: u64,
        key: RecordKey,
        completed: Compact,
    ) -> Option<Compact> {
        self.expiring.push(completed.expires_at, key.prefix());
        let before = self.answers.insert(hash, Answer { key, completed })?;
        Some(before.completed)
    }

    pub(super) fn remove(&mut self, hash: u64, key: &RecordKey) -> Option<Compact> {
        Some(self.answers.remove(hash, key)?.completed)
    }

    pub(super) fn parts(&self) -> usize {
        self.answers.parts()
    }

    /// Gives room back that a part does not need any more.
    pub(super) fn shrink(&mut self, part: usize) {
        self.answers.shrink(part);
    }

    pub(super) fn len(&self) -> usize {
        self.answers.len()
    }

    /// Returns a time before which no answer expires: the time at which the next one does, unless
    /// that was removed.
    pub(super) fn expires_from(&self) -> Timestamp {
        self.expiring.peek().map_or(NEVER, |next| next.0)
    }

    /// Forgets up to `most` answers that have expired, and says how many it looked at and what
    /// they were weighed at.
    pub(super) fn forget_expired(&mut self, now: Timestamp, most: usize) -> (usize, u64) {
        let mut freed = 0;
        for looked_at in 0..most {
            let Some((expires_at, prefix)) = self.expiring.pop(now) else {
                return (looked_at, freed);
            };
            // Of two with one prefix that expire at one time, either: the other's turn comes.
            let is_it = |answer: &Answer| answer.completed.expires_at == expires_at;
            if let Some(answer) = self.answers.remove_where(prefix, is_it) {
                freed += weight_of(&answer.completed);
            }
        }
        (most, freed)
    }
}

pub(super) fn weight_of(completed: &Compact) -> u64 {
    completed.payload.len() as u64 + MemoryStore::OVERHEAD
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;
    use std::time::Duration;

    use bytes::Bytes;

    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::record::Identity;

    const START: Timestamp = Timestamp::from_millis(1_790_000_000_000);

    fn key(number: u64) -> RecordKey {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        RecordKey::from_bytes(bytes)
    }

    fn answer(lifetime: Duration) -> Compact {
        Compact {
            identity: Identity::of_work(Fingerprint::from_bytes([9; 32])),
            payload: Bytes::from_static(b"payload"),
            created_at: START,
            expires_at: START.plus(lifetime),
        }
    }

    /// Answers, and what makes the hashes that they are found by.
    fn kept() -> (Kept, impl Fn(u64) -> u64) {
        let hasher = RandomState::default();
        let kept = Kept::new(hasher.clone());
        (kept, move |number| hasher.hash_one(key(number).prefix()))
    }

    #[test]
    fn an_answer_that_took_anothers_place_outlives_it() {
        let [short, long] = [1, 2].map(Duration::from_secs);
        let (mut kept, hash) = kept();
        assert_eq!(kept.insert(hash(1), key(1), answer(short)), None);
        let before = kept.insert(hash(1), key(1), answer(long));
        assert_eq!(before, Some(answer(short)));
        assert_eq!(kept.forget_expired(START.plus(short), 9), (1, 0));
        assert_eq!(kept.get(hash(1), &key(1)), Some(&answer(long)));
        let weight = weight_of(&answer(long));
        assert_eq!(kept.forget_expired(START.plus(long), 9), (1, weight));
        assert_eq!(kept.get(hash(1), &key(1)), None);
    }

    #[test]
    fn no_more_are_forgotten_at_once_than_was_asked_for() {
        let (mut kept, hash) = kept();
        for number in 0..5 {
            kept.insert(hash(number), key(number), answer(Duration::ZERO));
        }
        let weight = weight_of(&answer(Duration::ZERO));
        assert_eq!(kept.forget_expired(START, 2), (2, weight * 2));
        assert_eq!(kept.forget_expired(START, 9), (3, weight * 3));
    }
}
