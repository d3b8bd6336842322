//! The protocol without I/O: who may run, and what becomes of an attempt.
#![cfg_attr(
    not(feature = "test-util"),
    allow(unreachable_pub, reason = "only the model drives it from outside")
)]

pub mod attempt;
mod recorded;

pub use self::recorded::Recorded;
