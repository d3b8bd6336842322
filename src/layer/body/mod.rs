//! Bodies: read into memory up to a limit, and made whole again.

mod any;
mod buffered;
mod chunks;
mod collector;
mod drain;
mod guarded;
mod patience;

pub use self::any::{AnyBody, AnyBodyFuture, AnyBodyLayer, WrapResponse};
pub(crate) use self::buffered::Rest;
pub use self::buffered::{BufferedBody, FromBuffered};
pub(crate) use self::chunks::Chunks;
pub(crate) use self::collector::{Collector, Stop};
pub(crate) use self::drain::Drain;
pub use self::guarded::GuardedBody;
pub(crate) use self::patience::{Limits, Patience};
