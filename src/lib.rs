#![doc = include_str!("../README.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

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
mod leb128;
mod misuse;
mod outcome;
mod policy;
mod problem;
mod protocol;
pub mod record;
mod request;
mod response;
mod scratch;
mod service;
mod settings;
pub mod store;
#[cfg(feature = "test-util")]
pub mod testing;

#[cfg(feature = "axum")]
pub use crate::axum::NotGuarded;
pub use crate::body::{
    AnyBody, AnyBodyFuture, AnyBodyLayer, BufferedBody, FromBuffered, GuardedBody, WrapResponse,
};
pub use crate::clock::{Clock, SystemClock, Timestamp};
pub use crate::error::{StoreError, StoreErrorKind};
pub use crate::executor::{Attempt, AttemptEnded, Executor, Handle, Ran, RunError, Stats};
pub use crate::fields::{Field, InvalidPointer};
pub use crate::fingerprint::Fingerprint;
pub use crate::key::{
    IDEMPOTENCY_KEY, IdempotencyKey, InvalidKey, KeyParts, KeySyntax, MAX_KEY_LENGTH, RecordKey,
};
pub use crate::layer::IdempotencyLayer;
pub use crate::outcome::{
    EXPOSED_HEADERS, IDEMPOTENCY_EXPIRES, IDEMPOTENCY_FIRST_SEEN, IDEMPOTENCY_REFUSED,
    IDEMPOTENCY_UNPROTECTED, IDEMPOTENT_REPLAYED, Outcome,
};
pub use crate::policy::{
    CapturedResponse, End, Orphan, Orphaned, Reconcile, Reconciled, Recording, RecordingOverride,
    Summary, SummaryTooLong,
};
pub use crate::problem::{Refusal, RefusalReason};
pub use crate::protocol::Recorded;
pub use crate::request::{
    CREDENTIAL_HEADERS, CallerSource, FingerprintSource, KeySource, Naming, OPERATION_HEADERS,
    QuerySource, Recipe, UNIDENTIFYING_COOKIES, original_path,
};
pub use crate::response::{Answer, DamagedAnswer, StoredResponse, UNSTORED_HEADERS};
pub use crate::service::{Idempotency, ResponseFuture, RunFuture};
