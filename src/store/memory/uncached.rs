//! In the place of the cache, where no store has one: without the feature `moka`.

use super::compact::Compact;
use crate::protocol::key::RecordKey;

/// There is none.
#[derive(Debug)]
pub(super) enum Cached {}

impl Cached {
    pub(super) fn get(&self, _: &RecordKey) -> Option<Compact> {
        match *self {}
    }

    pub(super) fn insert(&self, _: RecordKey, _: Compact) {
        match *self {}
    }

    pub(super) fn remove(&self, _: &RecordKey) -> Option<Compact> {
        match *self {}
    }

    pub(super) fn weighted_size(&self) -> u64 {
        match *self {}
    }

    pub(super) fn entry_count(&self) -> u64 {
        match *self {}
    }

    pub(super) fn run_pending_tasks(&self) {
        match *self {}
    }
}
