//! Discarding what a client still sends of a request that is refused.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Version;
use http::header::EXPECT;
use http::request::Parts;
use http_body::Body;

use super::patience::{Limits, Patience};

/// So many bytes are discarded at the most.
const MOST: u64 = 16 << 20;
/// For so long they are waited for in all, and for so long each.
const LIMITS: Limits = Limits {
    idle: Duration::from_millis(500),
    total: Duration::from_secs(5),
};

/// Reads on and throws away.
///
/// A server that answers over HTTP/1.1 and closes the connection while its client still sends
/// resets it, and a client that writes all of its request before it reads never sees the answer.
#[derive(Debug)]
pub(crate) struct Drain<B> {
    body: B,
    discarded: u64,
    patience: Patience,
}

impl<B: Body<Data = Bytes> + Unpin> Drain<B> {
    /// `None` if there is nothing to gain: over HTTP/2 a request can be ended by itself, a client
    /// that waits for `100 Continue` sends nothing, and one that has too much to send is reset in
    /// any case.
    pub(crate) fn new(parts: &Parts, body: B, has_begun: bool) -> Option<Self> {
        let is_on_one_connection = parts.version < Version::HTTP_2;
        let waits = !has_begun && parts.headers.contains_key(EXPECT);
        let is_needed = is_on_one_connection
            && !waits
            && !body.is_end_stream()
            && body.size_hint().lower() <= MOST;
        is_needed.then(|| Self {
            body,
            discarded: 0,
            patience: Patience::default(),
        })
    }

    /// Ready when there is nothing more to discard, or when it was enough.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.discarded <= MOST {
            match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    let length = frame.data_ref().map_or(0, Bytes::len);
                    self.discarded += length as u64;
                }
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(()),
                Poll::Pending => {
                    let come = usize::try_from(self.discarded).unwrap_or(usize::MAX);
                    return self.patience.poll(LIMITS, come, cx);
                }
            }
        }
        Poll::Ready(())
    }
}
