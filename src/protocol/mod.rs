//! The protocol without I/O: who may run, and what becomes of an attempt.
#![cfg_attr(
    not(feature = "test-util"),
    allow(unreachable_pub, reason = "only the model drives it from outside")
)]

pub mod attempt;
pub(crate) mod clock;
pub(crate) mod end;
pub(crate) mod error;
pub(crate) mod fingerprint;
pub(crate) mod key;
pub mod record;
mod recorded;

pub use self::recorded::Recorded;
