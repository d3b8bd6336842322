//! A run of the handler under a key, from its lease to its response.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::work::Work;
use crate::body::FromBuffered;
use crate::executor::{Held, Run};
use crate::key::IdempotencyKey;
use crate::settings::Shared;
use crate::store::Store;

pin_project! {
    /// The handler under its lease. Not an `async fn`: that would keep each part of the request
    /// twice, in what is boxed for each run.
    pub(super) struct HandlerRun<F, RB, E, St>
    where
        St: Store,
    {
        shared: Arc<Shared<St>>,
        #[pin]
        run: Run<Work<F, RB, St>, Result<Response<RB>, E>, St>,
    }
}

impl<F, RB, E, St: Store> HandlerRun<F, RB, E, St> {
    pub(super) fn begin<S, B>(
        shared: Arc<Shared<St>>,
        inner: S,
        mut request: Request<B>,
        held: Held,
        key: IdempotencyKey,
    ) -> Self
    where
        S: Service<Request<B>, Future = F>,
    {
        request.extensions_mut().insert(held.attempt(key.clone()));
        let work = Work::begin(Arc::clone(&shared), inner, request);
        let run = shared.executor.under_lease(held, key, work);
        Self { shared, run }
    }
}

impl<F, RB, E, St> Future for HandlerRun<F, RB, E, St>
where
    F: Future<Output = Result<Response<RB>, E>>,
    RB: FromBuffered + Send + 'static,
    E: Send + 'static,
    St: Store,
{
    type Output = Result<Response<RB>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let settled = ready!(this.run.poll(cx));
        Poll::Ready(this.shared.settled(settled))
    }
}
