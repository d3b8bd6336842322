//! The behaviours, by what they are about.
//!
//! Each takes a key that nobody else uses, in a store that is under test. `Err` says which promise
//! the store breaks, or what it would have to be able to do.

#![expect(
    clippy::missing_errors_doc,
    reason = "they all fail for the reason that stands above"
)]

mod answers;
mod claims;
mod completions;
mod dropped;
mod handles;
mod orphans;
mod races;
mod renewals;
mod takeovers;
mod tells;
mod times;

pub use self::answers::*;
pub use self::claims::*;
pub use self::completions::*;
pub use self::dropped::*;
pub use self::handles::*;
pub use self::orphans::*;
pub use self::races::*;
pub use self::renewals::*;
pub use self::takeovers::*;
pub use self::tells::*;
pub use self::times::*;
