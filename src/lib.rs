#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod executor;
mod format;
mod layer;
mod protocol;
mod runtime;
pub mod store;
#[cfg(feature = "test-util")]
pub mod testing;

pub use crate::executor::orphan::{Orphan, Orphaned, Reconcile, Reconciled};
pub use crate::executor::{Attempt, AttemptEnded, Executor, Handle, Ran, RunError, Stats};
pub use crate::format::answer::{Answer, DamagedAnswer, StoredResponse, UNSTORED_HEADERS};
pub use crate::format::answer::{Summary, SummaryTooLong};
pub use crate::layer::IdempotencyLayer;
#[cfg(feature = "axum")]
pub use crate::layer::axum::NotGuarded;
pub use crate::layer::body::{
    AnyBody, AnyBodyFuture, AnyBodyLayer, BufferedBody, FromBuffered, GuardedBody, WrapResponse,
};
pub use crate::layer::fields::{Field, InvalidPointer};
pub use crate::layer::outcome::{
    EXPOSED_HEADERS, IDEMPOTENCY_EXPIRES, IDEMPOTENCY_FIRST_SEEN, IDEMPOTENCY_REFUSED,
    IDEMPOTENCY_UNPROTECTED, IDEMPOTENT_REPLAYED, Outcome,
};
pub use crate::layer::problem::{Refusal, RefusalReason};
pub use crate::layer::recording::{CapturedResponse, Recording, RecordingOverride};
pub use crate::layer::request::{
    CREDENTIAL_HEADERS, CallerSource, FingerprintSource, KeySource, Naming, OPERATION_HEADERS,
    QuerySource, Recipe, UNIDENTIFYING_COOKIES, original_path,
};
pub use crate::layer::service::{Idempotency, ResponseFuture, RunFuture};
pub use crate::protocol::clock::Timestamp;
pub use crate::protocol::end::End;
pub use crate::protocol::error::{StoreError, StoreErrorKind};
pub use crate::protocol::fingerprint::Fingerprint;
pub use crate::protocol::key::{
    IDEMPOTENCY_KEY, IdempotencyKey, InvalidKey, KeyParts, KeySyntax, MAX_KEY_LENGTH, RecordKey,
};
pub use crate::protocol::{Recorded, record};
pub use crate::runtime::{Clock, SystemClock};
