//! A body that was read into memory, wholly or in part.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body, Frame, SizeHint};

/// A body that can be made again from one that was read.
///
/// The layer reads request bodies to take their fingerprint, and response bodies to record them,
/// and puts them back for the handler and the client. It is implemented for
/// `axum::body::Body` (feature `axum`), `tonic::body::Body` (feature `tonic`),
/// [`BoxBody`](http_body_util::combinators::BoxBody) and
/// [`UnsyncBoxBody`](http_body_util::combinators::UnsyncBoxBody), and easily for every other
/// body that hides what is in it. For those that cannot hold anything else, such as hyper's
/// `Incoming`, there is [`GuardedBody`](crate::GuardedBody).
pub trait FromBuffered: Body<Data = Bytes> + Unpin + Sized {
    /// Makes a body that gives what `buffered` gives.
    fn from_buffered(buffered: BufferedBody<Self>) -> Self;
}

impl<E: Send + Sync + 'static> FromBuffered for http_body_util::combinators::BoxBody<Bytes, E> {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        Self::new(buffered)
    }
}

impl<E: Send + 'static> FromBuffered for http_body_util::combinators::UnsyncBoxBody<Bytes, E> {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        Self::new(buffered)
    }
}

#[cfg(feature = "axum")]
impl FromBuffered for axum::body::Body {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        Self::new(buffered)
    }
}

#[cfg(feature = "tonic")]
impl FromBuffered for tonic::body::Body {
    fn from_buffered(buffered: BufferedBody<Self>) -> Self {
        Self::new(buffered)
    }
}

/// What was read of a body of type `B`, and what is left of it.
pub struct BufferedBody<B: Body> {
    chunks: Chunks,
    trailers: Option<HeaderMap>,
    rest: Rest<B>,
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
        let mut chunks = Chunks::default();
        chunks.push(body);
        Self {
            chunks,
            trailers,
            rest: Rest::Nothing,
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
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
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

/// Bytes as they came, without a copy. Most bodies are one chunk.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    first: Bytes,
    more: VecDeque<Bytes>,
}

impl Chunks {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Bytes> {
        std::iter::once(&self.first).chain(&self.more)
    }

    pub(crate) fn length(&self) -> usize {
        self.iter().map(Bytes::len).sum()
    }

    /// All bytes in one piece; a copy only if there are several chunks.
    pub(crate) fn contiguous(&self) -> Bytes {
        if self.more.is_empty() {
            return self.first.clone();
        }
        let mut all = BytesMut::with_capacity(self.length());
        for chunk in self.iter() {
            all.extend_from_slice(chunk);
        }
        all.freeze()
    }

    fn push(&mut self, chunk: Bytes) {
        if self.first.is_empty() {
            self.first = chunk;
        } else if !chunk.is_empty() {
            self.more.push_back(chunk);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        if self.first.is_empty() {
            return None;
        }
        let next = self.more.pop_front().unwrap_or_default();
        Some(std::mem::replace(&mut self.first, next))
    }

    fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

/// Reads a body up to a limit.
#[derive(Debug)]
pub(crate) struct Collector {
    chunks: Chunks,
    trailers: Option<HeaderMap>,
    length: usize,
    limit: usize,
}

/// Why a [`Collector`] stopped.
#[derive(Debug)]
pub(crate) enum Stop<E> {
    /// The body is all there.
    End,
    /// The body is longer than the limit; what was read so far is there.
    TooLarge,
    /// The body broke off; what was read so far is there.
    Error(E),
}

impl Collector {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            chunks: Chunks::default(),
            trailers: None,
            length: 0,
            limit,
        }
    }

    pub(crate) fn poll<B>(&mut self, body: &mut B, cx: &mut Context<'_>) -> Poll<Stop<B::Error>>
    where
        B: Body<Data = Bytes> + Unpin,
    {
        loop {
            if body.is_end_stream() {
                return Poll::Ready(Stop::End);
            }
            let announced = usize::try_from(body.size_hint().lower()).unwrap_or(usize::MAX);
            if announced > self.limit - self.length {
                return Poll::Ready(Stop::TooLarge);
            }
            let frame = match ready!(Pin::new(&mut *body).poll_frame(cx)) {
                None => return Poll::Ready(Stop::End),
                Some(Err(error)) => return Poll::Ready(Stop::Error(error)),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => {
                    let too_large = data.len() > self.limit - self.length;
                    self.length = self.limit.min(self.length + data.len());
                    self.chunks.push(data);
                    if too_large {
                        return Poll::Ready(Stop::TooLarge);
                    }
                }
                Err(frame) => {
                    if let Ok(trailers) = frame.into_trailers() {
                        self.trailers.get_or_insert_default().extend(trailers);
                    }
                }
            }
        }
    }

    pub(crate) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_ref()
    }

    /// The body again.
    pub(crate) fn into_body<B: FromBuffered>(self, rest: Rest<B>) -> B {
        B::from_buffered(BufferedBody {
            chunks: self.chunks,
            trailers: self.trailers,
            rest,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::future::poll_fn;

    use http_body_util::{BodyExt, combinators::UnsyncBoxBody};

    use super::*;

    type TestBody = UnsyncBoxBody<Bytes, &'static str>;

    /// A body of these frames, one at a time.
    struct Frames(VecDeque<Result<Frame<Bytes>, &'static str>>);

    impl Body for Frames {
        type Data = Bytes;
        type Error = &'static str;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
            Poll::Ready(self.0.pop_front())
        }
    }

    fn data(text: &'static str) -> Result<Frame<Bytes>, &'static str> {
        Ok(Frame::data(Bytes::from_static(text.as_bytes())))
    }

    fn trailers() -> Result<Frame<Bytes>, &'static str> {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", http::HeaderValue::from_static("0"));
        Ok(Frame::trailers(trailers))
    }

    fn body<const N: usize>(frames: [Result<Frame<Bytes>, &'static str>; N]) -> TestBody {
        TestBody::new(Frames(frames.into()))
    }

    async fn collect(body: &mut TestBody, limit: usize) -> (Collector, Stop<&'static str>) {
        let mut collector = Collector::new(limit);
        let stop = poll_fn(|cx| collector.poll(body, cx)).await;
        (collector, stop)
    }

    async fn read(mut body: TestBody) -> (String, bool, Option<&'static str>) {
        let (mut text, mut has_trailers) = (String::new(), false);
        while let Some(frame) = body.frame().await {
            match frame {
                Err(error) => return (text, has_trailers, Some(error)),
                Ok(frame) => match frame.into_data() {
                    Ok(data) => text.push_str(std::str::from_utf8(&data).expect("text")),
                    Err(_) => has_trailers = true,
                },
            }
        }
        (text, has_trailers, None)
    }

    #[tokio::test]
    async fn a_whole_body_comes_back_with_its_trailers() {
        let mut original = body([data("ab"), data(""), data("cde"), trailers()]);
        let (collector, stop) = collect(&mut original, 5).await;
        assert!(matches!(stop, Stop::End));
        assert_eq!(collector.chunks().contiguous(), "abcde");
        let again: TestBody = collector.into_body(Rest::Nothing);
        assert_eq!(
            (again.size_hint().lower(), again.size_hint().exact()),
            (5, None)
        );
        assert!(!again.is_end_stream());
        assert_eq!(read(again).await, ("abcde".into(), true, None));
    }

    #[tokio::test]
    async fn a_whole_body_without_trailers_says_how_long_it_is() {
        let mut original = body([data("ab"), data("cde")]);
        let (collector, _) = collect(&mut original, 5).await;
        let again: TestBody = collector.into_body(Rest::Nothing);
        assert_eq!(again.size_hint().exact(), Some(5));
        assert_eq!(read(again).await, ("abcde".into(), false, None));
    }

    #[tokio::test]
    async fn a_body_over_the_limit_keeps_what_was_read_and_goes_on() {
        let mut original = body([data("ab"), data("cd"), data("ef"), trailers()]);
        let (collector, stop) = collect(&mut original, 3).await;
        assert!(matches!(stop, Stop::TooLarge));
        let again: TestBody = collector.into_body(Rest::Body(original));
        assert_eq!(read(again).await, ("abcdef".into(), true, None));
    }

    #[tokio::test]
    async fn a_body_that_announces_too_much_is_not_read_at_all() {
        let mut announced = TestBody::new(
            http_body_util::Full::new(Bytes::from_static(b"abcd"))
                .map_err(|never: Infallible| match never {}),
        );
        let (collector, stop) = collect(&mut announced, 3).await;
        assert!(matches!(stop, Stop::TooLarge));
        assert_eq!(collector.chunks().length(), 0);
    }

    #[tokio::test]
    async fn an_error_comes_after_what_was_read_before_it() {
        let mut original = body([data("ab"), Err("broken"), data("cd")]);
        let (collector, stop) = collect(&mut original, 10).await;
        let Stop::Error(error) = stop else {
            panic!("the error is lost")
        };
        let again: TestBody = collector.into_body(Rest::Error(error));
        assert_eq!(read(again).await, ("ab".into(), false, Some("broken")));
    }

    #[tokio::test]
    async fn an_empty_body_ends_at_once() {
        let mut original = body([]);
        let (collector, stop) = collect(&mut original, 0).await;
        assert!(matches!(stop, Stop::End));
        let again: TestBody = collector.into_body(Rest::Nothing);
        assert!(again.is_end_stream());
        assert_eq!(again.size_hint().exact(), Some(0));
    }
}
