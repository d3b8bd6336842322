//! Futures and bodies that make others wait, so that a run has many points to be dropped at.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::Frame;
use tokio::task::yield_now;

/// Is pending `times` times.
pub(crate) async fn pause(times: usize) {
    for _ in 0..times {
        yield_now().await;
    }
}

/// Counts the bytes of bodies that are still in memory.
#[derive(Clone, Default)]
pub(crate) struct Alive(Arc<AtomicUsize>);

impl Alive {
    /// How many chunks are.
    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    fn chunk(&self, text: &str) -> Bytes {
        self.0.fetch_add(1, Ordering::SeqCst);
        Bytes::from_owner(Chunk {
            text: text.to_owned(),
            alive: self.clone(),
        })
    }

    /// A body of these chunks and one trailer, which is pending before each of them.
    pub(crate) fn body(&self, chunks: &[&str]) -> axum::body::Body {
        let mut trailers = HeaderMap::new();
        trailers.insert("checksum", HeaderValue::from_static("42"));
        let mut frames: VecDeque<_> = chunks
            .iter()
            .map(|chunk| Frame::data(self.chunk(chunk)))
            .collect();
        frames.push_back(Frame::trailers(trailers));
        axum::body::Body::new(Paced {
            frames,
            was_pending: false,
        })
    }
}

struct Chunk {
    text: String,
    alive: Alive,
}

impl Drop for Chunk {
    fn drop(&mut self) {
        self.alive.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        self.text.as_bytes()
    }
}

struct Paced {
    frames: VecDeque<Frame<Bytes>>,
    was_pending: bool,
}

impl http_body::Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.was_pending = !self.was_pending;
        if self.was_pending {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(self.frames.pop_front().map(Ok))
    }
}
