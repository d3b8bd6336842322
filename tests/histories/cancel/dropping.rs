//! Polls a future by hand, and drops it.

use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::door::{Reply, Replying};

/// When a future is dropped that is to be polled no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum When {
    /// Before what it waits for has gone on.
    AtOnce,
    /// When what it waits for has come, and it does not know.
    OnceWoken,
}

/// Nothing takes so long, by its own clock.
const TOO_LONG: Duration = Duration::from_secs(60 * 60);

/// Polls `request` so many times, each time when it was woken, and drops it; or gives its answer
/// if it comes before.
pub(crate) async fn drop_after(polls: usize, when: When, mut request: Replying) -> Option<Reply> {
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    for poll in 1..=polls {
        if let Poll::Ready(reply) = polled(&mut request, &mut Context::from_waker(&waker)) {
            return Some(reply);
        }
        if poll < polls || when == When::OnceWoken {
            let awaited = timeout(TOO_LONG, woken.0.notified());
            awaited.await.expect("whoever waits is woken");
        }
    }
    None
}

/// The answer of a request that nobody drops.
pub(crate) async fn answer(mut request: Replying) -> Reply {
    poll_fn(|cx| polled(&mut request, cx)).await
}

fn polled(request: &mut Replying, cx: &mut Context<'_>) -> Poll<Reply> {
    catch_unwind(AssertUnwindSafe(|| request.as_mut().poll(cx)))
        .unwrap_or(Poll::Ready(Reply::Panicked))
}

#[derive(Default)]
struct Woken(Notify);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.notify_one();
    }
}
