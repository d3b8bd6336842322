//! Bodies: read into memory up to a limit, and made whole again.

mod any;
mod buffered;
mod guarded;

pub use self::any::{AnyBody, AnyBodyFuture, AnyBodyLayer, WrapResponse};
pub use self::buffered::{BufferedBody, FromBuffered};
pub(crate) use self::buffered::{Chunks, Collector, Rest, Stop};
pub use self::guarded::GuardedBody;
