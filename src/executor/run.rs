//! Work under its lease, from its first poll to the end of the lease.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::pin::Pin;
use std::task::{Context, Poll};

use pin_project_lite::pin_project;

use super::Executor;
use super::begin::Held;
use super::end::{End, Ended, Finished, Settled, Write};
use super::heart::Beating;
use crate::key::IdempotencyKey;
use crate::store::Store;

type Panic = Box<dyn Any + Send>;

pin_project! {
    /// Work that runs under a lease, and that gives its lease back by what came of it.
    ///
    /// The lease is renewed from the first poll on that does not end the work. When the work
    /// panics, the panic goes on after the key has been seen to.
    #[project = RunProjection]
    pub(crate) enum Run<W, V, St>
    where
        St: Store,
    {
        Working {
            #[pin]
            work: W,
            leased: Option<Leased<St>>,
        },
        /// The store, or the business system, has to be waited for.
        Ending { ending: Pin<Box<dyn Future<Output = Settled<V>> + Send>> },
    }
}

/// What work runs under.
pub(crate) struct Leased<St: Store> {
    executor: Executor<St>,
    held: Held,
    key: IdempotencyKey,
    beating: Option<Beating<St>>,
}

impl<W, V, St: Store> Run<W, V, St> {
    pub(super) const fn new(
        executor: Executor<St>,
        held: Held,
        key: IdempotencyKey,
        work: W,
    ) -> Self {
        Self::Working {
            work,
            leased: Some(Leased {
                executor,
                held,
                key,
                beating: None,
            }),
        }
    }
}

impl<W, V, St> Future for Run<W, V, St>
where
    W: Future<Output = Finished<V>>,
    V: Send + 'static,
    St: Store,
{
    type Output = Settled<V>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let (work, leased) = match self.as_mut().project() {
            RunProjection::Working { work, leased } => (work, leased),
            RunProjection::Ending { ending } => return ending.as_mut().poll(cx),
        };
        let Some(held) = leased else {
            // Polled again after it was ready: there is nothing left to give.
            return Poll::Pending;
        };
        let (outcome, end) = match catch_unwind(AssertUnwindSafe(|| work.poll(cx))) {
            Ok(Poll::Ready(Finished { value, end })) => (Ok(value), end),
            Ok(Poll::Pending) => {
                held.keep();
                return Poll::Pending;
            }
            Err(panic) => (Err(panic), End::Unknown),
        };
        let Some(leased) = leased.take() else {
            return Poll::Pending;
        };
        let settling = Settling::new(leased, outcome, end);
        if let Some(ended) = settling.ended_now() {
            return Poll::Ready(settling.settled(ended));
        }
        let mut ending = Box::pin(settling.settle());
        let polled = ending.as_mut().poll(cx);
        self.set(Self::Ending { ending });
        polled
    }
}

impl<St: Store> Leased<St> {
    /// Renews the lease from now on.
    fn keep(&mut self) {
        if self.beating.is_none() {
            let shared = &self.executor.shared;
            let (lease, settings) = (&self.held.lease, &shared.settings);
            let beating = shared
                .heart
                .keep(lease, settings.lease, settings.max_execution);
            self.beating = Some(beating);
        }
    }
}

/// A run that has ended, and whose lease has not.
struct Settling<V, St: Store> {
    leased: Leased<St>,
    outcome: Result<V, Panic>,
    is_answer: bool,
    /// `None` when the business system has to be asked what became of the work.
    write: Option<Write>,
}

impl<V, St: Store> Settling<V, St> {
    fn new(leased: Leased<St>, outcome: Result<V, Panic>, end: End) -> Self {
        if let Some(beating) = &leased.beating {
            beating.end_is_under_way();
        }
        Self {
            is_answer: matches!(end, End::Record { .. }),
            write: leased.executor.write_for(end),
            leased,
            outcome,
        }
    }

    /// Ends the lease, if that can be done without waiting.
    fn ended_now(&self) -> Option<Ended> {
        let Leased { executor, held, .. } = &self.leased;
        executor.try_end_now(&held.lease, self.write.as_ref()?)
    }

    async fn settle(self) -> Settled<V> {
        let Leased {
            executor,
            held,
            key,
            beating,
        } = self.leased;
        let created_at = held.lease.created_at;
        let write = match self.write {
            Some(write) => write,
            None => executor.asked_write(&key, &held.lease).await,
        };
        let ended = executor.end(held, write, beating).await;
        let value = self.outcome.unwrap_or_else(|panic| resume_unwind(panic));
        executor.settled(value, self.is_answer, ended, created_at)
    }

    fn settled(self, ended: Ended) -> Settled<V> {
        let Leased { executor, held, .. } = self.leased;
        let value = self.outcome.unwrap_or_else(|panic| resume_unwind(panic));
        executor.settled(value, self.is_answer, ended, held.lease.created_at)
    }
}
