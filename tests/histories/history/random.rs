//! Chance that can be had again.

use std::time::Duration;

/// SplitMix64.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// The chance of one thing of many: it depends on `about` alone, and not on what else was
    /// left to chance before.
    pub(crate) fn about<const N: usize>(seed: u64, about: [u64; N]) -> Self {
        let mut state = Self(seed);
        for word in about {
            state = Self(state.next() ^ word);
        }
        state
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// True `percent` times of a hundred.
    pub(crate) fn happens(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// Up to `longest`, most of them much shorter.
    pub(crate) fn duration(&mut self, longest: Duration) -> Duration {
        let share = self.below(1_000) as f64 / 1_000.0;
        longest.mul_f64(share * share * share)
    }
}
