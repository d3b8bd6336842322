//! Work under its lease, from its first poll to the end of the lease.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use pin_project_lite::pin_project;

use super::begin::Held;
use super::end::{Ending, Finished, GoingOn, Settled};
use super::{Attempt, Executor, after};
use crate::protocol::attempt::{Action, Event, State};
use crate::protocol::key::IdempotencyKey;
use crate::protocol::record::Lease;
use crate::store::Store;

pub(super) type Panic = Box<dyn Any + Send>;

/// What can run under a lease.
///
/// It drops what it does not need any more before it says that it has finished: its record may
/// have to be waited for.
pub(crate) trait Work<St: Store>: Future<Output = Finished<Self::Value>> {
    /// What comes of it.
    type Value: Send + 'static;
    /// What the one gets who waits for it.
    type Given;

    /// The executor whose lease it is.
    fn executor(&self) -> &Executor<St>;

    /// What is given to the one who waits, when the lease has ended so.
    fn give(&self, settled: Settled<Self::Value>) -> Self::Given;

    /// Drops what a panic has left of it. Returns its end, where that was known before.
    fn abandon(self: Pin<&mut Self>) -> Option<Ending>;
}

pin_project! {
    /// Work that runs under a lease, and that gives its lease back by what came of it.
    ///
    /// When the work panics, the panic goes on after the key has been seen to.
    pub(crate) struct Run<W, St>
    where
        W: Work<St>,
        St: Store,
    {
        #[pin]
        work: W,
        leased: Option<Leased>,
        // The store, or the business system, has to be waited for.
        ending: Option<Pin<Box<dyn Future<Output = Settled<W::Value>> + Send>>>,
    }
}

/// What work runs under.
struct Leased {
    held: Held,
    key: IdempotencyKey,
}

impl<W: Work<St>, St: Store> Run<W, St> {
    pub(crate) fn new(held: Held, key: IdempotencyKey, work: W) -> Self {
        if let Some(max) = work.executor().shared.settings.max_execution {
            held.alive.may_run_until(after(max));
        }
        Self {
            work,
            leased: Some(Leased { held, key }),
            ending: None,
        }
    }
}

impl<W: Work<St>, St: Store> Run<W, St> {
    /// What its work sees of the attempt that it is; `None` when it has ended.
    pub(crate) fn attempt(&self) -> Option<Attempt> {
        let Leased { held, key } = self.leased.as_ref()?;
        Some(self.work.executor().attempt(held, key.clone()))
    }

    /// The work, and the lease that it runs under; `None` when that has ended.
    pub(crate) fn work(self: Pin<&mut Self>) -> (Pin<&mut W>, Option<&Lease>) {
        let this = self.project();
        let leased = this.leased.as_ref();
        (this.work, leased.map(|leased| &leased.held.lease))
    }
}

impl<W: Work<St>, St: Store> Future for Run<W, St> {
    type Output = W::Given;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        if let Some(ending) = this.ending {
            let settled = ready!(ending.as_mut().poll(cx));
            return Poll::Ready(this.work.give(settled));
        }
        let Some(leased) = this.leased else {
            panic!("a run polled after completion");
        };
        let owner = leased.held.lease.owner;
        let polled = catch_unwind(AssertUnwindSafe(|| this.work.as_mut().poll(cx)));
        let (outcome, mut ending) = match polled {
            Ok(Poll::Ready(Finished { value, ending })) => (Ok(value), ending),
            Ok(Poll::Pending) => return Poll::Pending,
            Err(panic) => {
                let known = this.work.as_mut().abandon();
                let ending = known.unwrap_or_else(|| {
                    let class = this.work.executor().effects(owner).end_of_failure();
                    Ending::without_response(class)
                });
                (Err(panic), ending)
            }
        };
        let executor = this.work.executor();
        let mut state = State::Running;
        let lease = &leased.held.lease;
        let step = executor.step(&mut state, ending.event(), &lease.key);
        let told = ending.told();
        let mut left = ending.left();
        let created_at = lease.created_at;
        let ready = match step.then {
            Action::Write(write) => Some(executor.ready(lease, write, &mut left)),
            _ => None,
        };
        if let Some(ready) = &ready
            && let Some(answered) = executor.write_now(lease, ready)
            && let event = Event::Written(answered.written)
            && let Some(give) = executor.step(&mut state, event, &lease.key).give
        {
            // Where it is, for it is large.
            let finish = ready.finished(lease, give, answered);
            executor.leave(&mut leased.held, ready, &finish, told);
            *this.leased = None;
            let settled = finish.settle(outcome, created_at);
            return Poll::Ready(this.work.give(settled));
        }
        leased.held.alive.end_is_under_way();
        let Some(leased) = this.leased.take() else {
            return Poll::Pending;
        };
        let going_on = GoingOn {
            state,
            step,
            ready,
            left,
            told,
        };
        let settling = settle(executor.clone(), leased, outcome, going_on);
        let ending = this.ending.insert(Box::pin(settling));
        let settled = ready!(ending.as_mut().poll(cx));
        Poll::Ready(this.work.give(settled))
    }
}

/// Ends the lease of work that has ended.
async fn settle<V, St: Store>(
    executor: Executor<St>,
    leased: Leased,
    outcome: Result<V, Panic>,
    going_on: GoingOn,
) -> Settled<V> {
    let Leased { held, key } = leased;
    let created_at = held.lease.created_at;
    let mut going_on = going_on;
    if going_on.step.then == Action::Ask {
        let asked = executor.ask(&key, &held.lease).await;
        going_on.left.answer = asked.answer;
        let event = Event::AskedAfter(asked.said);
        going_on.step = executor.step(&mut going_on.state, event, &held.lease.key);
    }
    let finish = executor.finish(held, going_on).await;
    finish.settle(outcome, created_at)
}
