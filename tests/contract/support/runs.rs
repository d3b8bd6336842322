//! What a test shares with its handler.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use tokio::sync::Semaphore;

use super::body::{Body, text};

pub(crate) type Running = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// Counts the runs of a handler.
#[derive(Clone, Debug, Default)]
pub(crate) struct Runs {
    count: Arc<AtomicUsize>,
    gate: Gate,
}

impl Runs {
    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::SeqCst)
    }

    /// A handler that answers its first run with `run 1`, its second with `run 2`, and so on.
    pub(crate) fn numbered(
        &self,
    ) -> impl Fn(Request<Body>) -> Running + Clone + Send + Sync + 'static {
        self.answering(|_, number| text(format!("run {number}")))
    }

    /// [`numbered`](Self::numbered), after each run has passed the gate.
    pub(crate) fn gated(
        &self,
    ) -> impl Fn(Request<Body>) -> Running + Clone + Send + Sync + 'static {
        let gate = self.gate.clone();
        self.running(move |_, number| {
            let gate = gate.clone();
            async move {
                gate.pass().await;
                text(format!("run {number}"))
            }
        })
    }

    /// A handler that answers at once. It is given the number of its run.
    pub(crate) fn answering(
        &self,
        answer: impl Fn(Request<Body>, usize) -> Response<Body> + Clone + Send + Sync + 'static,
    ) -> impl Fn(Request<Body>) -> Running + Clone + Send + Sync + 'static {
        self.running(move |request, number| std::future::ready(answer(request, number)))
    }

    /// A handler that is given the number of its run.
    pub(crate) fn running<Fut>(
        &self,
        run: impl Fn(Request<Body>, usize) -> Fut + Clone + Send + Sync + 'static,
    ) -> impl Fn(Request<Body>) -> Running + Clone + Send + Sync + 'static
    where
        Fut: Future<Output = Response<Body>> + Send + 'static,
    {
        let count = Arc::clone(&self.count);
        move |request| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            Box::pin(run(request, number))
        }
    }

    pub(crate) fn gate(&self) -> &Gate {
        &self.gate
    }
}

/// Holds up whoever passes until the test opens it.
#[derive(Clone, Debug)]
pub(crate) struct Gate(Arc<(Semaphore, Semaphore)>);

impl Gate {
    /// For the one held up.
    pub(crate) async fn pass(&self) {
        let (arrived, open) = &*self.0;
        arrived.add_permits(1);
        open.acquire().await.expect("it is never closed").forget();
    }

    /// Waits until one more has arrived.
    pub(crate) async fn arrived(&self) {
        let (arrived, _) = &*self.0;
        arrived
            .acquire()
            .await
            .expect("it is never closed")
            .forget();
    }

    /// Lets one more pass.
    pub(crate) fn open(&self) {
        self.0.1.add_permits(1);
    }

    /// Lets everyone pass from now on.
    pub(crate) fn open_for_good(&self) {
        self.0.1.add_permits(100_000);
    }
}

impl Default for Gate {
    fn default() -> Self {
        Self(Arc::new((Semaphore::new(0), Semaphore::new(0))))
    }
}
