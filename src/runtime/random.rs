//! Chance.

use std::cell::Cell;

/// Returns a random number. Those of one thread differ: they follow one number that the operating
/// system gave, mixed. To ask the system each time would be most of the price.
///
/// # Errors
///
/// When the operating system has no randomness to give.
pub(crate) fn random_u64() -> Result<u64, getrandom::Error> {
    let (last, left) = LAST.get();
    let (next, left) = match left.checked_sub(1) {
        Some(left) => (last.wrapping_add(1), left),
        None => (getrandom::u64()?, DRAWN_AT_ONCE),
    };
    LAST.set((next, left));
    Ok(mixed(next))
}

/// How many numbers follow one that the operating system gave.
const DRAWN_AT_ONCE: u64 = 4096;

thread_local! {
    /// The last number, before it was mixed, and how many may follow it.
    static LAST: Cell<(u64, u64)> = const { Cell::new((0, 0)) };
}

/// Makes all later random numbers of this thread follow from `seed`.
#[cfg(feature = "test-util")]
pub fn seed_random(seed: u64) {
    LAST.set((mixed(seed), u64::MAX));
}

/// Another number for each number, one that looks like chance: the mixer of SplitMix64.
const fn mixed(number: u64) -> u64 {
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;
    use std::thread;

    use super::*;

    /// The numbers that others publish for SplitMix64 with the seed 1234567.
    #[test]
    fn numbers_are_mixed_as_by_split_mix_64() {
        const PUBLISHED: [u64; 3] = [
            6_457_827_717_110_365_317,
            3_203_168_211_198_807_973,
            9_817_491_932_198_370_423,
        ];
        let step = 0x9e37_79b9_7f4a_7c15_u64;
        let number = |times: u64| mixed(step.wrapping_mul(times).wrapping_add(1_234_567));
        assert_eq!([1, 2, 3].map(number), PUBLISHED);
    }

    #[test]
    fn numbers_differ_on_a_thread_and_between_threads() {
        // More than the successors of one drawn number.
        const MANY: usize = 10_000;
        let draw = || (0..MANY).map(|_| random_u64().expect("there is randomness"));
        let threads = [0, 1].map(|_| thread::spawn(move || draw().collect::<Vec<_>>()));
        let mut numbers = HashSet::new();
        for thread in threads {
            numbers.extend(thread.join().expect("it does not panic"));
        }
        assert_eq!(numbers.len(), 2 * MANY);
    }
}
