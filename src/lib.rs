//! tmp
#[cfg(feature = "axum")]
mod axum;
mod body;
mod clock;
mod digest;
mod error;
mod executor;
mod fields;
mod fingerprint;
mod key;
mod layer;
mod outcome;
mod policy;
mod problem;
pub mod record;
mod request;
mod response;
mod service;
mod settings;
pub mod store;
#[cfg(feature = "test-util")]
pub mod testing;

#[cfg(feature = "axum")]
pub use crate::axum::{NotGuarded, original_path};
pub use body::{
    AnyBody, AnyBodyFuture, AnyBodyLayer, BufferedBody, FromBuffered, GuardedBody, WrapResponse,
};
pub use clock::{Clock, SystemClock, Timestamp};
pub use error::{StoreError, StoreErrorKind};
pub use executor::{Attempt, Executor, Handle, Ran, Recorded, RunError, Stats};
pub use fields::{Field, InvalidPointer};
pub use fingerprint::Fingerprint;
pub use key::{
    IDEMPOTENCY_KEY, IdempotencyKey, InvalidKey, KeyParts, KeySyntax, MAX_KEY_LENGTH, RecordKey,
};
pub use layer::IdempotencyLayer;
pub use outcome::{
    EXPOSED_HEADERS, IDEMPOTENCY_EXPIRES, IDEMPOTENCY_FIRST_SEEN, IDEMPOTENCY_UNPROTECTED,
    IDEMPOTENT_REPLAYED, Outcome,
};
pub use policy::{Orphan, Orphaned, Reconcile, Reconciled, Recording, RecordingOverride, When};
pub use problem::{Refusal, RefusalReason};
pub use request::{FingerprintSource, KeyFunction, KeySource};
pub use response::{Answer, DamagedAnswer, StoredResponse};
pub use service::{Idempotency, ResponseFuture};
