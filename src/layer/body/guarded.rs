//! A wrapper for bodies that cannot be made from buffered bytes.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use http_body::{Body, Frame, SizeHint};

use super::{BufferedBody, FromBuffered};

/// A body of type `B` as it came, or one that was read and made again.
///
/// For services whose body type cannot hold anything else, such as hyper's `Incoming` or
/// `Full<Bytes>`. [`IdempotencyLayer::for_any_body`](crate::IdempotencyLayer::for_any_body)
/// puts bodies into it.
///
/// After its end a body that was made again has no more frames, however often it is asked; one that
/// is as it came does what it does by itself.
pub struct GuardedBody<B: Body + Unpin>(Kind<B>);

enum Kind<B: Body + Unpin> {
    AsItCame(B),
    // Boxed, for what is left of a buffered body is itself such a body.
    Buffered(Pin<Box<BufferedBody<GuardedBody<B>>>>),
}

impl<B: Body + Unpin> GuardedBody<B> {
    /// Wraps a body.
    pub const fn new(body: B) -> Self {
        Self(Kind::AsItCame(body))
    }
}

/// An empty body.
impl<B: Body + Unpin> Default for GuardedBody<B> {
    fn default() -> Self {
        Self::from_buffered(BufferedBody::whole(Bytes::new(), None))
    }
}

impl<B: Body + Unpin> From<B> for GuardedBody<B> {
    fn from(body: B) -> Self {
        Self::new(body)
    }
}

impl<B: Body + Unpin> FromBuffered for GuardedBody<B> {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        Self(Kind::Buffered(Box::pin(buffered)))
    }
}

impl<B: Body + Unpin> Body for GuardedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        match &mut self.0 {
            Kind::AsItCame(body) => Pin::new(body)
                .poll_frame(cx)
                .map_ok(|frame| frame.map_data(|mut data| data.copy_to_bytes(data.remaining()))),
            Kind::Buffered(body) => body.as_mut().poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.0 {
            Kind::AsItCame(body) => body.is_end_stream(),
            Kind::Buffered(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.0 {
            Kind::AsItCame(body) => body.size_hint(),
            Kind::Buffered(body) => body.size_hint(),
        }
    }
}

impl<B: Body + Unpin> fmt::Debug for GuardedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Kind::AsItCame(_) => "GuardedBody::AsItCame",
            Kind::Buffered(_) => "GuardedBody::Buffered",
        })
    }
}
