//! Stores against the conformance suite, and the executor without HTTP.
//!
//! Time is mostly Tokio's, paused: it moves on when every task waits, so nothing there takes as
//! long as it says.

mod alive;
mod broken;
mod classes;
mod clocked;
mod conformance;
mod ends;
mod errors;
mod faults;
mod given_back;
mod heartbeat;
mod orphans;
mod runs;
mod support;
mod tiered;
