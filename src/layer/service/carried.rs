//! What the layers outside keep around a future, carried along with a run.

use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use crate::executor::BoxFuture;

/// A run, as [`carry_context`](crate::IdempotencyLayer::carry_context) gets and gives it.
pub type RunFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The application's hook.
#[derive(Clone)]
pub(crate) struct Carry(Arc<dyn Fn(RunFuture) -> RunFuture + Send + Sync>);

impl Carry {
    pub(crate) fn new(carry: impl Fn(RunFuture) -> RunFuture + Send + Sync + 'static) -> Self {
        Self(Arc::new(carry))
    }
}

impl fmt::Debug for Carry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Carry").finish_non_exhaustive()
    }
}

/// A run that the application's hook has put something around.
///
/// The run itself stays here, so that a hook which panics, or drops what it was given, loses
/// nothing: the run then goes on without the context.
pub(super) struct Carried<T> {
    run: Arc<Mutex<Progress<T>>>,
    /// `None` when nothing is around the run, or nothing any more.
    around: Option<RunFuture>,
}

enum Progress<T> {
    Running(BoxFuture<T>),
    /// `None`: it was given away.
    Done(Option<T>),
}

impl<T: Send + 'static> Carried<T> {
    /// Calls the hook.
    pub(super) fn new(Carry(carry): &Carry, run: BoxFuture<T>) -> Self {
        let run = Arc::new(Mutex::new(Progress::Running(run)));
        let polled = Polled(Arc::clone(&run));
        let around = catch_unwind(AssertUnwindSafe(|| carry(Box::pin(polled))));
        if around.is_err() {
            tracing::error!(
                "the hook that carries context along panicked; the run goes on without it"
            );
        }
        Self {
            run,
            around: around.ok(),
        }
    }
}

impl<T: Send + 'static> Future for Carried<T> {
    type Output = T;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        if let Some(around) = &mut self.around {
            ready!(around.as_mut().poll(cx));
            self.around = None;
        }
        let mut progress = locked(&self.run);
        if progress.poll(cx).is_pending() {
            return Poll::Pending;
        }
        match &mut *progress {
            Progress::Done(done) => match done.take() {
                Some(done) => Poll::Ready(done),
                None => panic!("a run polled after completion"),
            },
            Progress::Running(_) => Poll::Pending,
        }
    }
}

/// Polls a run that is kept elsewhere.
struct Polled<T>(Arc<Mutex<Progress<T>>>);

impl<T: Send + 'static> Future for Polled<T> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        locked(&self.0).poll(cx)
    }
}

impl<T> Progress<T> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Self::Running(run) = self {
            let done = ready!(run.as_mut().poll(cx));
            *self = Self::Done(Some(done));
        }
        Poll::Ready(())
    }
}

/// A run that panics poisons its lock, and is not polled again.
fn locked<T>(run: &Mutex<Progress<T>>) -> MutexGuard<'_, Progress<T>> {
    run.lock().unwrap_or_else(PoisonError::into_inner)
}
