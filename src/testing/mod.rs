//! For tests: a suite that every store has to pass, a store that fails on purpose, one that has a
//! clock of its own, clocks, and the protocol of an attempt.
//!
//! Behind the feature `test-util`, and not covered by semantic versioning.
#![allow(
    clippy::disallowed_methods,
    reason = "it works on whatever runtime its tests have made"
)]

mod clocked;
mod clocks;
pub mod conformance;
mod faults;

pub use self::clocked::ClockedStore;
pub use self::clocks::{ManualClock, TokioClock};
pub use self::faults::{Call, Fault, FaultStore};
pub use crate::executor::Living;
pub use crate::protocol::attempt;
pub use crate::runtime::seed_random;
