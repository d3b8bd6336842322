//! Faults of the store, as operators hear of them.

use tracing::{error, warn};

use crate::protocol::error::StoreError;
use crate::protocol::key::RecordKey;

/// Logs what a store failed with, and what came of it: as an error if somebody has to mend
/// something, else as a warning.
pub(super) fn log_fault(record: &RecordKey, error: &StoreError, what: &'static str) {
    let kind = error.kind();
    match kind.needs_mending() {
        true => error!(%record, %error, ?kind, "{what}"),
        false => warn!(%record, %error, ?kind, "{what}"),
    }
}
