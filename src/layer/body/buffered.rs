//! A body that was read into memory, wholly or in part.

use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Full};

use super::chunks::Chunks;

/// A body that can be made again from one that was read.
///
/// The layer reads request bodies to take their fingerprint, and response bodies to record them,
/// and puts them back for the handler and the client. It is implemented for
/// `axum::body::Body` (feature `axum`), `tonic::body::Body` (feature `tonic`),
/// [`BoxBody`](http_body_util::combinators::BoxBody) and
/// [`UnsyncBoxBody`](http_body_util::combinators::UnsyncBoxBody), and easily for every other
/// body that hides what is in it. For those that cannot hold anything else, such as hyper's
/// `Incoming`, there is [`GuardedBody`](crate::GuardedBody).
#[diagnostic::on_unimplemented(
    message = "the idempotency layer cannot make a body of type `{Self}` from one that it has read",
    label = "this body cannot hold what was read of another",
    note = "for hyper's `Incoming`, `Full<Bytes>` and others that cannot hold anything else, use `IdempotencyLayer::for_any_body()`",
    note = "for a body that hides what is in it, implement `tower_idempotency::FromBuffered`"
)]
pub trait FromBuffered: Body<Data = Bytes> + Unpin + Sized {
    /// Makes a body that gives what `buffered` gives.
    fn from_buffered(buffered: BufferedBody<Self>) -> Self;
}

impl<E: Send + Sync + 'static> FromBuffered for http_body_util::combinators::BoxBody<Bytes, E> {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        match buffered.into_whole() {
            Ok(whole) => Self::new(whole.map_err(|never| match never {})),
            Err(buffered) => Self::new(buffered),
        }
    }
}

impl<E: Send + 'static> FromBuffered for http_body_util::combinators::UnsyncBoxBody<Bytes, E> {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        match buffered.into_whole() {
            Ok(whole) => Self::new(whole.map_err(|never| match never {})),
            Err(buffered) => Self::new(buffered),
        }
    }
}

#[cfg(feature = "axum")]
impl FromBuffered for axum::body::Body {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        match buffered.into_whole() {
            Ok(whole) => Self::new(whole),
            Err(buffered) => Self::new(buffered),
        }
    }
}

#[cfg(feature = "tonic")]
impl FromBuffered for tonic::body::Body {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        match buffered.into_whole() {
            Ok(whole) => Self::new(whole),
            Err(buffered) => Self::new(buffered),
        }
    }
}

/// What was read of a body of type `B`, and what is left of it.
///
/// After its end it has no more frames, however often it is asked, as the bodies of hyper and
/// http-body-util.
pub struct BufferedBody<B: Body> {
    pub(super) chunks: Chunks,
    pub(super) trailers: Option<Box<HeaderMap>>,
    pub(super) rest: Rest<B>,
}

/// How a body goes on after what was read of it.
pub(crate) enum Rest<B: Body> {
    Nothing,
    Body(B),
    Error(B::Error),
}

impl<B: Body> BufferedBody<B> {
    /// A body of these bytes and trailers.
    pub(crate) fn whole(body: Bytes, trailers: Option<HeaderMap>) -> Self {
        Self {
            chunks: body.into(),
            trailers: trailers.map(Box::new),
            rest: Rest::Nothing,
        }
    }

    /// The same as a plain body, if it is one: of one chunk, which nobody counts.
    fn into_whole(self) -> Result<Full<Bytes>, Self> {
        match (&self.rest, &self.trailers) {
            (Rest::Nothing, None) => match self.chunks.into_whole() {
                Ok(bytes) => Ok(Full::new(bytes)),
                Err(chunks) => Err(Self {
                    chunks,
                    trailers: None,
                    rest: Rest::Nothing,
                }),
            },
            _ => Err(self),
        }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for BufferedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        // `B` is Unpin, but its error need not be: nothing here is pinned in place.
        let this = &mut *self;
        if let Some(chunk) = this.chunks.pop() {
            return Poll::Ready(Some(Ok(Frame::data(chunk))));
        }
        if let Rest::Body(body) = &mut this.rest {
            return Pin::new(body).poll_frame(cx);
        }
        if let Some(trailers) = this.trailers.take() {
            return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
        }
        Poll::Ready(match std::mem::replace(&mut this.rest, Rest::Nothing) {
            Rest::Error(error) => Some(Err(error)),
            Rest::Nothing | Rest::Body(_) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.chunks.is_empty()
            && self.trailers.is_none()
            && match &self.rest {
                Rest::Nothing => true,
                Rest::Body(body) => body.is_end_stream(),
                Rest::Error(_) => false,
            }
    }

    fn size_hint(&self) -> SizeHint {
        let buffered = self.chunks.length() as u64;
        match &self.rest {
            Rest::Nothing if self.trailers.is_none() => SizeHint::with_exact(buffered),
            // HTTP/1 has room for trailers only after a body of unannounced length.
            Rest::Nothing | Rest::Error(_) => {
                let mut hint = SizeHint::new();
                hint.set_lower(buffered);
                hint
            }
            Rest::Body(body) => {
                let rest = body.size_hint();
                let mut hint = SizeHint::new();
                hint.set_lower(rest.lower().saturating_add(buffered));
                if let Some(upper) = rest.upper() {
                    hint.set_upper(upper.saturating_add(buffered));
                }
                hint
            }
        }
    }
}

// The body is moved only when it is Unpin, and the error never is pinned.
impl<B: Body + Unpin> Unpin for BufferedBody<B> {}

impl<B: Body> fmt::Debug for BufferedBody<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferedBody")
            .field("buffered", &self.chunks.length())
            .field("trailers", &self.trailers.is_some())
            .field("is_whole", &matches!(self.rest, Rest::Nothing))
            .finish()
    }
}
