//! Reading a body into memory.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Body;

use super::buffered::{BufferedBody, FromBuffered, Rest};
use super::chunks::Chunks;
use crate::executor::Room;

/// Reads a body up to a limit.
#[derive(Debug)]
pub(crate) struct Collector {
    chunks: Chunks,
    // Boxed, for few bodies have any, and each is moved with it.
    trailers: Option<Box<HeaderMap>>,
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
    /// There is no room left for it among the bodies that are buffered; what was read so far is
    /// there.
    Full,
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

    /// Reads on, as far as there is `room`, which is taken if the rest has to be waited for.
    pub(crate) fn poll<B>(
        &mut self,
        body: &mut B,
        room: Option<Room<'_>>,
        cx: &mut Context<'_>,
    ) -> Poll<Stop<B::Error>>
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
            // Not begun to be read if its end would find no room.
            if self.length == 0 && room.is_some_and(|room| !room.has(announced)) {
                return Poll::Ready(Stop::Full);
            }
            let frame = match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Stop::Error(error)),
                Poll::Ready(None) => return Poll::Ready(Stop::End),
                Poll::Pending => {
                    room.into_iter().for_each(|room| self.take_room(room));
                    return Poll::Pending;
                }
            };
            match frame.into_data() {
                Ok(data) => {
                    let length = data.len();
                    let too_large = length > self.limit - self.length;
                    self.length = self.limit.min(self.length + length);
                    self.chunks.push(data);
                    if too_large {
                        return Poll::Ready(Stop::TooLarge);
                    }
                    if room.is_some_and(|room| !room.has(self.untaken())) {
                        return Poll::Ready(Stop::Full);
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

    /// Takes room for what was read, for it goes on to be kept.
    pub(crate) fn take_room(&mut self, room: Room<'_>) {
        let untaken = self.untaken();
        room.take(untaken, &mut self.chunks.taken);
    }

    /// How many bytes were read for which no room is taken yet: most requests that are answered by
    /// the layer itself are read and answered in one go.
    const fn untaken(&self) -> usize {
        self.length - self.chunks.taken.bytes()
    }

    /// How many bytes were read, up to the limit.
    pub(crate) const fn length(&self) -> usize {
        self.length
    }

    pub(crate) fn chunks(&self) -> &Chunks {
        &self.chunks
    }

    pub(crate) fn trailers(&self) -> Option<&HeaderMap> {
        self.trailers.as_deref()
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
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::future::poll_fn;

    use http_body::Frame;
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
        let stop = poll_fn(|cx| collector.poll(body, None, cx)).await;
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
