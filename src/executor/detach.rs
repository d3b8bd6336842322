//! A run that outlives its request.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};

use tokio::runtime::Handle;
use tracing::{Instrument, Span};

use super::handle::Runs;
use crate::runtime;

/// A future of which only its output matters.
pub(crate) type BoxFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A future that is polled in place as long as somebody wants its output, and handed to the
/// runtime to be finished when it is dropped before that.
///
/// It is not handed over when it panicked, or while its [`Stage`] says that nothing would be
/// lost.
pub(crate) struct Detached<T: Send + 'static> {
    future: Option<BoxFuture<T>>,
    /// `None`: the key is held from the start.
    stage: Option<Arc<Stage>>,
    /// True while the future is being polled, and for ever if that panicked.
    in_poll: bool,
    /// Where it goes on when it is dropped: known when it did not end with its first poll.
    context: Option<(Handle, Span)>,
    runs: Arc<Runs>,
}

impl<T: Send + 'static> Detached<T> {
    pub(crate) fn new(runs: Arc<Runs>, stage: Option<Arc<Stage>>, future: BoxFuture<T>) -> Self {
        Self {
            future: Some(future),
            stage,
            in_poll: false,
            context: None,
            runs,
        }
    }
}

impl<T: Send + 'static> Future for Detached<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        self.in_poll = true;
        let Some(future) = &mut self.future else {
            panic!("`ResponseFuture` polled after completion");
        };
        let polled = future.as_mut().poll(cx);
        self.in_poll = false;
        if polled.is_ready() {
            self.future = None;
        } else if self.context.is_none() {
            self.context = current();
        }
        polled
    }
}

impl<T: Send + 'static> Drop for Detached<T> {
    fn drop(&mut self) {
        let Some(future) = self.future.take() else {
            return;
        };
        let wanted = self.stage.as_ref().is_none_or(|stage| stage.leave());
        if !wanted || self.in_poll {
            return;
        }
        if let Some((runtime, span)) = self.context.take().or_else(current) {
            self.runs.detached();
            let detached = DETACHED.scope((), async move { drop(future.await) });
            runtime.spawn(detached.instrument(span));
        }
    }
}

tokio::task_local! {
    static DETACHED: ();
}

/// Whether what is being polled was handed to the runtime, so that nobody waits for its output.
pub(crate) fn is_detached() -> bool {
    DETACHED.try_with(|()| ()).is_ok()
}

fn current() -> Option<(Handle, Span)> {
    let runtime = runtime::current().ok()?;
    Some((runtime, Span::current()))
}

/// How far a future that begins with a claim has come, for the one who may have to hand it over.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    may_hold: AtomicBool,
    left: AtomicBool,
}

impl Stage {
    /// Of a future that holds the key from the start, but has not begun the work.
    pub(crate) const fn holding() -> Self {
        Self {
            may_hold: AtomicBool::new(true),
            left: AtomicBool::new(false),
        }
    }

    /// From here on the key may be ours: a claim is on its way, or was granted.
    pub(crate) fn may_hold(&self) {
        self.may_hold.store(true, Ordering::SeqCst);
    }

    /// The key is another's: nothing is lost if the future is dropped.
    pub(crate) fn holds_nothing(&self) {
        self.may_hold.store(false, Ordering::SeqCst);
    }

    /// Whether the one who wanted the output has gone.
    pub(crate) fn is_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }

    /// Notes that nobody wants the output any more. Returns whether the future has to be
    /// finished all the same.
    fn leave(&self) -> bool {
        self.left.store(true, Ordering::SeqCst);
        self.may_hold.load(Ordering::SeqCst)
    }
}
