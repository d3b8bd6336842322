//! How many bytes are buffered for work that has not begun.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::handle::Runs;

/// The room that there is for buffered bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Room<'a> {
    runs: &'a Arc<Runs>,
    max: usize,
}

impl<'a> Room<'a> {
    pub(super) const fn new(runs: &'a Arc<Runs>, max: usize) -> Self {
        Self { runs, max }
    }

    /// Whether so many bytes more would fit in now. They are not taken: who announces bytes has
    /// not sent them yet, and must not keep others out for nothing.
    pub(crate) fn has(self, bytes: usize) -> bool {
        let buffered = self.runs.buffered.load(Ordering::Relaxed);
        bytes <= self.max.saturating_sub(buffered)
    }

    /// Takes room for so many bytes more, for which there was some a moment ago.
    pub(crate) fn take(self, bytes: usize, taken: &mut Taken) {
        if bytes > 0 {
            self.runs.buffered.fetch_add(bytes, Ordering::Relaxed);
            taken.of.get_or_insert_with(|| Arc::clone(self.runs));
            taken.bytes += bytes;
        }
    }
}

/// Room that was taken. It is given back when this is dropped.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    bytes: usize,
    of: Option<Arc<Runs>>,
}

impl Taken {
    pub(crate) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if let Some(runs) = &self.of {
            runs.buffered.fetch_sub(self.bytes, Ordering::Relaxed);
        }
    }
}
