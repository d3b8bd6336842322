//! Bytes to write to whose memory is there already.

use std::cell::Cell;

/// A thread keeps no more than this between two uses.
const KEPT: usize = 16 << 10;

thread_local! {
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// Calls `write` with an empty vector, whose memory is used again by the next call on this thread.
/// A call within `write` gets another vector.
pub(crate) fn with<R>(write: impl FnOnce(&mut Vec<u8>) -> R) -> R {
    let mut bytes = take();
    let written = write(&mut bytes);
    keep(bytes);
    written
}

/// Calls `write` with an empty string in the same memory.
pub(crate) fn with_text<R>(write: impl FnOnce(&mut String) -> R) -> R {
    // Nothing is in it that had to be checked.
    let mut text = String::from_utf8(take()).unwrap_or_default();
    let written = write(&mut text);
    keep(text.into_bytes());
    written
}

fn take() -> Vec<u8> {
    SCRATCH.try_with(Cell::take).unwrap_or_default()
}

fn keep(mut bytes: Vec<u8>) {
    bytes.clear();
    if bytes.capacity() > KEPT {
        bytes.shrink_to(KEPT);
    }
    // While the thread ends there is no place for it; it is dropped.
    let _ = SCRATCH.try_with(|scratch| scratch.set(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity() -> usize {
        with(|bytes| bytes.capacity())
    }

    #[test]
    fn memory_is_kept_and_what_was_written_is_not() {
        with(|bytes| bytes.extend_from_slice(&[1; 1000]));
        assert!(capacity() >= 1000);
        assert!(with(|bytes| bytes.is_empty()));
    }

    #[test]
    fn a_string_has_the_memory_of_bytes() {
        with(|bytes| bytes.extend_from_slice(&[0xff; 1000]));
        with_text(|text| {
            assert_eq!(text, "");
            assert!(text.capacity() >= 1000);
            text.push('a');
        });
        assert!(with(|bytes| bytes.is_empty() && bytes.capacity() >= 1000));
    }

    #[test]
    fn much_memory_is_given_back() {
        with(|bytes| bytes.extend_from_slice(&[1; 10 * KEPT]));
        assert_eq!(capacity(), KEPT);
    }

    #[test]
    fn a_use_within_a_use_has_bytes_of_its_own() {
        let inner = with(|outer| {
            outer.push(1);
            let inner = with(|inner| {
                inner.push(2);
                inner.clone()
            });
            assert_eq!(*outer, [1]);
            inner
        });
        assert_eq!(inner, [2]);
        assert!(with(|bytes| bytes.is_empty()));
    }
}
