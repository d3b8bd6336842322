//! Bodies that both stacks and the client have in common.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use http_body::{Frame, SizeHint};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(crate) type Body = UnsyncBoxBody<Bytes, BoxError>;

pub(crate) fn boxed<B>(body: B) -> Body
where
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    Body::new(body.map_err(Into::into))
}

pub(crate) fn empty() -> Body {
    whole(Bytes::new())
}

/// A body whose length is known.
pub(crate) fn whole(bytes: impl Into<Bytes>) -> Body {
    Body::new(Full::new(bytes.into()).map_err(|never: Infallible| match never {}))
}

/// A response with status 200 and this body.
pub(crate) fn text(body: impl Into<Bytes>) -> http::Response<Body> {
    http::Response::new(whole(body))
}

/// A body of these chunks, whose length is not known, and these trailers.
pub(crate) fn frames<const N: usize>(
    chunks: [&'static str; N],
    trailers: Option<HeaderMap>,
) -> Body {
    let (sender, body) = channel();
    for chunk in chunks {
        sender.chunk(chunk);
    }
    if let Some(trailers) = trailers {
        sender.trailers(trailers);
    }
    body
}

/// A body that gives what is sent, as it is sent, and ends when its sender is dropped.
pub(crate) fn channel() -> (BodySender, Body) {
    let (sender, receiver) = mpsc::unbounded_channel();
    (BodySender(sender), Body::new(Frames(receiver)))
}

/// A body that says how long it is before it has come.
pub(crate) fn announced(length: u64, body: Body) -> Body {
    Body::new(Announced { length, body })
}

struct Announced {
    length: u64,
    body: Body,
}

impl http_body::Body for Announced {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        let polled = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let chunk = polled
            .as_ref()
            .and_then(|frame| frame.as_ref().ok()?.data_ref());
        self.length -= chunk.map_or(0, |chunk| chunk.len() as u64);
        Poll::Ready(polled)
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.length)
    }
}

type Item = Result<Frame<Bytes>, BoxError>;

pub(crate) struct BodySender(UnboundedSender<Item>);

impl BodySender {
    pub(crate) fn chunk(&self, chunk: &'static str) {
        self.send(Ok(Frame::data(Bytes::from_static(chunk.as_bytes()))));
    }

    pub(crate) fn trailers(&self, trailers: HeaderMap) {
        self.send(Ok(Frame::trailers(trailers)));
    }

    pub(crate) fn fail(&self, message: &'static str) {
        self.send(Err(message.into()));
    }

    fn send(&self, item: Item) {
        // Nobody may be left to read it.
        let _ = self.0.send(item);
    }
}

struct Frames(UnboundedReceiver<Item>);

impl http_body::Body for Frames {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Item>> {
        self.0.poll_recv(cx)
    }
}

/// All of a response's body, as text.
pub(crate) async fn read_body(response: http::Response<Body>) -> String {
    let body = response.into_body().collect().await.expect("whole");
    String::from_utf8_lossy(&body.to_bytes()).into_owned()
}
