//! tmp
mod clock;
mod digest;
mod error;
mod fingerprint;
mod key;
mod response;
pub use response::*;
pub mod record;
pub mod store;
pub use clock::{Clock, SystemClock, Timestamp};
pub use error::{StoreError, StoreErrorKind};
pub use fingerprint::Fingerprint;
pub use key::*;
