//! Which answers expire next.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use crate::clock::Timestamp;
use crate::key::Prefix;

/// The beginnings of keys, in the order in which their answers expire.
///
/// Nearly all answers of a store are kept for the same time, and so come in that order; the few
/// others are sorted into it.
#[derive(Debug, Default)]
pub(super) struct Expiring {
    in_order: VecDeque<(Timestamp, Prefix)>,
    others: BinaryHeap<Reverse<(Timestamp, Prefix)>>,
}

impl Expiring {
    pub(super) fn push(&mut self, expires_at: Timestamp, prefix: Prefix) {
        match self.in_order.back() {
            Some((last, _)) if expires_at < *last => {
                self.others.push(Reverse((expires_at, prefix)));
            }
            _ => self.in_order.push_back((expires_at, prefix)),
        }
    }

    /// Takes the next one, if its time has come at `now`.
    pub(super) fn pop(&mut self, now: Timestamp) -> Option<(Timestamp, Prefix)> {
        let in_order = self.in_order.front().map(|next| next.0);
        let other = self.others.peek().map(|Reverse(next)| next.0);
        let next = in_order.into_iter().chain(other).min()?;
        if next > now {
            None
        } else if in_order == Some(next) {
            self.in_order.pop_front()
        } else {
            self.others.pop().map(|Reverse(next)| next)
        }
    }

    pub(super) fn shrink_to(&mut self, capacity: usize) {
        self.in_order.shrink_to(capacity);
        self.others.shrink_to(capacity);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::RecordKey;

    fn all_until(expiring: &mut Expiring, now: u64) -> Vec<u64> {
        let next = || expiring.pop(Timestamp::from_micros(now));
        std::iter::from_fn(next)
            .map(|(at, _)| at.as_micros())
            .collect()
    }

    #[test]
    fn they_come_in_the_order_in_which_they_expire() {
        let prefix = RecordKey::from_bytes([0; 32]).prefix();
        let mut expiring = Expiring::default();
        for micros in [5, 7, 3, 7, 9, 1, 8] {
            expiring.push(Timestamp::from_micros(micros), prefix);
        }
        assert_eq!(all_until(&mut expiring, 0), [0; 0]);
        assert_eq!(all_until(&mut expiring, 7), [1, 3, 5, 7, 7]);
        assert_eq!(all_until(&mut expiring, 7), [0; 0]);
        assert_eq!(all_until(&mut expiring, 100), [8, 9]);
    }
}
