//! What is recorded, and what an orphan means.

mod grpc;
mod orphan;
mod recording;

pub use self::orphan::{Orphan, Orphaned, Reconcile, Reconciled};
pub use self::recording::{Recording, RecordingOverride, When};
