//! Which answers expire next.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::protocol::clock::Timestamp;
use crate::protocol::key::Prefix;

/// So many are kept in one block of memory, which is never moved.
const BLOCK: usize = 128;

/// The beginnings of keys, in the order in which their answers expire.
///
/// Nearly all answers of a store are kept for the same time, and so come in that order; the few
/// others are sorted into it.
#[derive(Debug, Default)]
pub(super) struct Expiring {
    in_order: Blocks,
    others: BinaryHeap<Reverse<Next>>,
}

type Next = (Timestamp, Prefix);

impl Expiring {
    pub(super) fn push(&mut self, expires_at: Timestamp, prefix: Prefix) {
        match self.in_order.back() {
            Some((last, _)) if expires_at < *last => {
                self.others.push(Reverse((expires_at, prefix)));
            }
            _ => self.in_order.push((expires_at, prefix)),
        }
    }

    /// Returns the next one.
    pub(super) fn peek(&self) -> Option<Next> {
        match (self.in_order.front(), self.others.peek()) {
            (Some(in_order), Some(Reverse(other))) => Some(*in_order.min(other)),
            (in_order, None) => in_order.copied(),
            (None, Some(Reverse(other))) => Some(*other),
        }
    }

    /// Takes the next one, if its time has come at `now`.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<Next> {
        let next = self.peek().filter(|next| next.0 <= now)?;
        if self.in_order.front() == Some(&next) {
            self.in_order.pop();
        } else {
            self.others.pop();
            let capacity = self.others.capacity();
            if capacity > BLOCK && self.others.len() < capacity / 8 {
                self.others.shrink_to(capacity / 4);
            }
        }
        Some(next)
    }
}

/// A queue that grows by a block at a time, and never moves what is in it.
#[derive(Debug, Default)]
struct Blocks {
    blocks: VecDeque<Vec<Next>>,
    /// How many of the first block were taken.
    taken: usize,
}

impl Blocks {
    fn push(&mut self, next: Next) {
        match self.blocks.back_mut() {
            Some(block) if block.len() < BLOCK => block.push(next),
            Some(_) => {
                let mut block = Vec::with_capacity(BLOCK);
                block.push(next);
                self.blocks.push_back(block);
            }
            // A store with few answers has no whole block in each shard.
            None => self.blocks.push_back(vec![next]),
        }
    }

    fn front(&self) -> Option<&Next> {
        self.blocks.front()?.get(self.taken)
    }

    fn back(&self) -> Option<&Next> {
        self.blocks.back()?.last()
    }

    fn pop(&mut self) {
        let Some(block) = self.blocks.front() else {
            return;
        };
        self.taken += 1;
        if self.taken == block.len() {
            self.blocks.pop_front();
            self.taken = 0;
            let capacity = self.blocks.capacity();
            if capacity > BLOCK && self.blocks.len() < capacity / 8 {
                self.blocks.shrink_to(capacity / 4);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::key::RecordKey;

    fn prefix() -> Prefix {
        RecordKey::from_bytes([0; 32]).prefix()
    }

    fn all_until(expiring: &mut Expiring, now: u64) -> Vec<u64> {
        let next = || expiring.pop(Timestamp::from_micros(now));
        std::iter::from_fn(next)
            .map(|(at, _)| at.as_micros())
            .collect()
    }

    #[test]
    fn they_come_in_the_order_in_which_they_expire() {
        let mut expiring = Expiring::default();
        for micros in [5, 7, 3, 7, 9, 1, 8] {
            expiring.push(Timestamp::from_micros(micros), prefix());
        }
        assert_eq!(all_until(&mut expiring, 0), [0; 0]);
        assert_eq!(all_until(&mut expiring, 7), [1, 3, 5, 7, 7]);
        assert_eq!(all_until(&mut expiring, 7), [0; 0]);
        assert_eq!(all_until(&mut expiring, 100), [8, 9]);
    }

    proptest! {
        #[test]
        fn they_come_as_out_of_a_sorted_list(
            rounds in prop::collection::vec((prop::collection::vec(0..2_000_u64, 0..400), 0..2_000_u64), 1..8),
        ) {
            let mut expiring = Expiring::default();
            let mut sorted: Vec<u64> = Vec::new();
            for (pushed, now) in rounds {
                // Most in order, as in a store; some not.
                let mut pushed = pushed;
                let in_order = pushed.len() * 3 / 4;
                pushed[..in_order].sort_unstable();
                for micros in pushed {
                    expiring.push(Timestamp::from_micros(micros), prefix());
                    sorted.push(micros);
                }
                sorted.sort_unstable();
                prop_assert_eq!(expiring.peek().map(|next| next.0.as_micros()), sorted.first().copied());
                let due = sorted.partition_point(|micros| *micros <= now);
                prop_assert_eq!(all_until(&mut expiring, now), sorted.drain(..due).collect::<Vec<_>>());
            }
        }
    }
}
