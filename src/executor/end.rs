//! From the end of a run to its record.

use std::panic::resume_unwind;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tracing::{Instrument, Span, debug, error, warn};

use super::begin::{Held, jittered};
use super::living::{Flags, Noted};
use super::orphan::Orphan;
use super::run::Panic;
use super::store_faults::log_fault;
use super::wait::{SharedEnd, What};
use super::{Conflict, Executor};
use crate::format::answer::Answer;
use crate::protocol::Recorded;
use crate::protocol::attempt::{
    Action, Event, Fault, Give, Refusal, State, Step, Write, Written, is_shared,
};
use crate::protocol::clock::Timestamp;
use crate::protocol::end::{Effects, End};
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::record::{Completed, Lease, Owner};
use crate::runtime::{self, sleep};
use crate::store::{Completion, Fenced, Release, Store};

/// What a run ended with.
pub(crate) struct Finished<V> {
    /// For the one who waits for it.
    pub(super) value: V,
    pub(super) ending: Ending,
}

/// The end of a run, and so what becomes of the key.
pub(crate) enum Ending {
    /// It completes with this answer, for this long or else for the retention that was set.
    Final {
        answer: Recordable,
        retention: Option<Duration>,
    },
    /// Its work was not begun. It is released, and those who wait for it claim it again.
    NotBegun,
    /// It is released: the next request runs.
    NothingDone {
        /// The response as it would be recorded, for those who wait for this run.
        shared: Option<Bytes>,
    },
    /// The orphan policy decides.
    Unknown {
        /// The status of the response, if there is one.
        status: Option<u16>,
        /// As for [`Ending::NothingDone`].
        shared: Option<Bytes>,
    },
}

impl Ending {
    /// The end of a run that left no response.
    pub(crate) fn without_response(class: End) -> Self {
        match class {
            End::Final => Self::Final {
                // The status that servers make of an error.
                answer: Answer::NotStored {
                    status: StatusCode::INTERNAL_SERVER_ERROR,
                    summary: None,
                }
                .into(),
                retention: None,
            },
            End::NothingDone => Self::NothingDone { shared: None },
            End::Unknown => Self::Unknown {
                status: None,
                shared: None,
            },
        }
    }

    /// What has happened, as the protocol sees it.
    pub(super) const fn event(&self) -> Event {
        let (end, is_stored) = match self {
            Self::NotBegun => return Event::NotBegun,
            Self::Final { answer, .. } => (End::Final, answer.is_stored),
            Self::NothingDone { .. } => (End::NothingDone, false),
            Self::Unknown { .. } => (End::Unknown, false),
        };
        Event::Ended { end, is_stored }
    }

    /// What is there to be written.
    pub(super) fn left(self) -> Left {
        let (answer, retention, status) = match self {
            Self::NotBegun | Self::NothingDone { .. } => (None, None, None),
            Self::Final { answer, retention } => (Some(answer), retention, None),
            Self::Unknown { status, .. } => (None, None, status),
        };
        Left {
            answer,
            retention,
            status,
            is_given_unrecorded: true,
        }
    }

    /// Takes what those get who wait for the run in this process. An answer that completes the key
    /// is in its record.
    /// `None`: nothing, and so they claim it again.
    pub(super) fn told(&mut self) -> Option<Told> {
        Some(match self {
            Self::NotBegun => return None,
            Self::Final { .. } => Told {
                class: End::Final,
                response: None,
            },
            Self::NothingDone { shared } => Told {
                class: End::NothingDone,
                response: shared.take(),
            },
            Self::Unknown { shared, .. } => Told {
                class: End::Unknown,
                response: shared.take(),
            },
        })
    }
}

/// The end of a run, for those who wait for it in this process.
#[derive(Debug)]
pub(super) struct Told {
    class: End,
    /// The response in its recorded form; `None` when there is none, or when it was too large.
    response: Option<Bytes>,
}

/// What an attempt leaves to be written, whatever it is that is written.
#[derive(Default)]
pub(super) struct Left {
    pub(super) answer: Option<Recordable>,
    /// For how long the answer is kept; `None`: for the retention that was set.
    pub(super) retention: Option<Duration>,
    /// The status that an attempt without an answer ended with.
    pub(super) status: Option<u16>,
    /// Whether the client may get the answer also if the store does not take it.
    pub(super) is_given_unrecorded: bool,
}

/// An answer in its recorded form.
pub(crate) struct Recordable {
    payload: Bytes,
    /// Whether it has the response.
    pub(super) is_stored: bool,
}

impl Recordable {
    /// A response that is stored, in its recorded form.
    pub(crate) const fn response(payload: Bytes) -> Self {
        Self {
            payload,
            is_stored: true,
        }
    }

    pub(crate) fn into_payload(self) -> Bytes {
        self.payload
    }
}

impl From<Answer> for Recordable {
    fn from(answer: Answer) -> Self {
        Self {
            payload: answer.encode(),
            is_stored: !matches!(answer, Answer::NotStored { .. }),
        }
    }
}

impl<V> Finished<V> {
    pub(crate) fn new(value: V, ending: Ending) -> Self {
        Self { value, ending }
    }

    pub(crate) fn recorded(value: V, answer: Answer) -> Self {
        Self::new(
            value,
            Ending::Final {
                answer: answer.into(),
                retention: None,
            },
        )
    }
}

/// What the one who waited for a run gets.
pub(crate) enum Settled<V> {
    /// Its own value.
    Value {
        value: V,
        recorded: Recorded,
        created_at: Timestamp,
        expires_at: Option<Timestamp>,
    },
    /// The lease was lost, and this is the answer that was recorded in its place.
    Superseded(Completed),
    /// Its value is kept from it, for the key may get another answer.
    Withheld(Conflict, Recorded),
}

/// A write that ends a lease, ready for the store.
pub(super) struct Ready {
    /// When the attempt ended. What is tried again says the same.
    pub(super) now: Timestamp,
    pub(super) write: Write,
    change: Change,
}

/// What a write makes of the record.
enum Change {
    Complete(Completion),
    Release(Release),
}

impl Ready {
    /// Until when the record is kept once it is written.
    fn expires_at(&self) -> Option<Timestamp> {
        match &self.change {
            Change::Complete(completion) => Some(self.now.plus(completion.retention)),
            Change::Release(Release::Orphan { retention, .. }) => Some(self.now.plus(*retention)),
            Change::Release(Release::Free) => None,
        }
    }

    fn completed(&self, lease: &Lease) -> Option<Completed> {
        match &self.change {
            Change::Complete(completion) => {
                Some(completion.record(lease.identity, lease.created_at, self.now))
            }
            Change::Release(_) => None,
        }
    }

    /// What came of a write that is given up to the client, or that the store has answered.
    #[inline]
    pub(super) fn finished(&self, lease: &Lease, give: Give, answered: Answered) -> Finish {
        let recorded = match give {
            Give::Own(recorded) | Give::Withheld(_, recorded) => Some(recorded),
            _ => None,
        };
        if let Some(recorded) = recorded
            && recorded != Recorded::Pending
        {
            debug!(record = %lease.key, %recorded, "a run ended");
        }
        Finish {
            expires_at: match answered.written {
                Written::Applied => self.expires_at(),
                _ => None,
            },
            completed: match give {
                Give::Reconciled => self.completed(lease).map(Box::new),
                _ => answered.superseding,
            },
            give,
        }
    }
}

/// A lease whose end is under way.
pub(super) struct GoingOn {
    pub(super) state: State,
    pub(super) step: Step,
    /// The first write, where it is ready.
    pub(super) ready: Option<Ready>,
    pub(super) left: Left,
    pub(super) told: Option<Told>,
}

/// How a lease ended.
pub(super) struct Finish {
    pub(super) give: Give,
    /// The answer that was recorded, or that another recorded in its place. Boxed, because few have
    /// it, and all are moved.
    completed: Option<Box<Completed>>,
    expires_at: Option<Timestamp>,
}

impl Finish {
    /// The answer that the key has now.
    pub(super) fn completed(self) -> Option<Completed> {
        self.completed.map(|completed| *completed)
    }

    /// What the one gets who waited for a run. If that was a panic, it goes on.
    #[inline]
    pub(super) fn settle<V>(self, outcome: Result<V, Panic>, created_at: Timestamp) -> Settled<V> {
        let value = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        let (refusal, recorded) = match self.give {
            Give::Own(recorded) => {
                return Settled::Value {
                    value,
                    recorded,
                    created_at,
                    expires_at: self.expires_at,
                };
            }
            Give::Withheld(refusal, recorded) => (refusal, recorded),
            _ => match self.completed {
                Some(completed) => return Settled::Superseded(*completed),
                None => (Refusal::LeaseLost, Recorded::LeaseLost),
            },
        };
        let conflict = match refusal {
            Refusal::NotRecorded => Conflict::NotRecorded,
            _ => Conflict::LeaseLost,
        };
        Settled::Withheld(conflict, recorded)
    }
}

/// What the store said to a write.
pub(super) struct Answered {
    pub(super) written: Written,
    /// The answer that another recorded in its place, boxed as in [`Finish`].
    superseding: Option<Box<Completed>>,
}

impl<St: Store> Executor<St> {
    /// Whether somebody in this process waits for the end of the run of `owner`.
    pub(crate) fn is_awaited(&self, owner: Owner) -> bool {
        let is_awaited = self.heart().with(owner, |noted| noted.is_awaited());
        is_awaited.unwrap_or_default()
    }

    /// What those get who wait for a run whose lease ended so; `None` when they have to ask the
    /// store.
    fn shared_end(
        &self,
        lease: &Lease,
        ready: &Ready,
        finish: &Finish,
        told: Told,
    ) -> Option<What> {
        let recorded = match finish.give {
            Give::Own(recorded) | Give::Withheld(_, recorded) => recorded,
            _ => {
                let completed = finish.completed.as_deref();
                return completed.cloned().map(What::Recorded);
            }
        };
        if !is_shared(ready.write, recorded, &self.terms()) {
            return None;
        }
        if let Some(completed) = ready.completed(lease) {
            return Some(What::Recorded(completed));
        }
        Some(match told.response {
            Some(response) => What::Response(response),
            None => What::Nothing {
                class: match (ready.write, &self.shared.settings.orphan) {
                    // The business system was asked, and has said so.
                    (Write::Free, Orphan::Reconcile(_)) => End::NothingDone,
                    _ => told.class,
                },
            },
        })
    }

    /// Ends an attempt whose lease ended so, and gives its end to those who wait for it.
    #[inline]
    pub(super) fn leave(
        &self,
        held: &mut Held,
        ready: &Ready,
        finish: &Finish,
        told: Option<Told>,
    ) {
        let Held { lease, alive, .. } = held;
        alive.leave(|| {
            let what = self.shared_end(lease, ready, finish, told?)?;
            Some(SharedEnd::of(lease, what))
        });
    }

    /// What the attempt of `owner` has said of its effects. It can say no more after that.
    pub(crate) fn effects(&self, owner: Owner) -> Effects {
        let said = self.heart().with(owner, Noted::judge).unwrap_or_default();
        if said.contains(Flags::HAS_BEGUN_EFFECTS) {
            Effects::Begun
        } else if self.shared.settings.announces_effects || said.contains(Flags::ANNOUNCES_EFFECTS)
        {
            Effects::Announced
        } else {
            Effects::Untold
        }
    }

    /// The class of a run that ended with an error. Where its effects had not begun, nothing was
    /// done, also by an error which is called unknown in general.
    pub(crate) fn class_of_error<E: 'static>(&self, owner: Owner, error: &E) -> End {
        match self.shared.settings.error_classes.class(error) {
            Some(end @ (End::Final | End::NothingDone)) => end,
            Some(End::Unknown) | None => self.effects(owner).end_of_failure(),
        }
    }

    /// How an attempt ends whose outcome nobody knows: its retention counts from here.
    pub(super) fn as_orphan(&self, first_status: Option<u16>) -> Release {
        Release::orphan(self.shared.settings.retention, first_status)
    }

    /// What a write says to the store.
    #[inline]
    pub(super) fn ready(&self, lease: &Lease, write: Write, left: &mut Left) -> Ready {
        let now = self.now();
        let answer = match write {
            Write::Complete { .. } => left.answer.take(),
            Write::Free | Write::Orphan => None,
        };
        let change = match (answer, write) {
            (Some(answer), _) => {
                let settings = &self.shared.settings;
                Change::Complete(Completion {
                    payload: answer.payload,
                    retention: left.retention.unwrap_or(settings.retention),
                    age: now.since(lease.created_at),
                    is_given_unrecorded: left.is_given_unrecorded && settings.answer_unrecorded,
                })
            }
            (None, Write::Free) => Change::Release(Release::Free),
            (None, _) => Change::Release(self.as_orphan(left.status)),
        };
        Ready { now, write, change }
    }

    /// The same for a store that will never take its answer: one whose response is not stored.
    fn not_stored(ready: &Ready) -> Option<Recordable> {
        let Change::Complete(completion) = &ready.change else {
            return None;
        };
        let status = match Answer::decode(&completion.payload) {
            Ok(Answer::Response(response)) => response.status,
            // The result of work has no status of its own.
            Ok(Answer::Value(_)) => StatusCode::OK,
            Ok(Answer::NotStored { .. }) | Err(_) => return None,
        };
        let answer = Answer::NotStored {
            status,
            summary: None,
        };
        Some(answer.into())
    }

    /// Ends a lease: writes, and goes on in the background with what the store does not take.
    pub(super) async fn finish(&self, held: Held, going_on: GoingOn) -> Finish {
        let mut held = held;
        let GoingOn {
            mut state,
            mut step,
            ready: mut first,
            mut left,
            told,
        } = going_on;
        let mut now = None;
        loop {
            let Action::Write(write) = step.then else {
                // There is nothing to be written: the lease lapses.
                return Finish {
                    give: step.give.unwrap_or(Give::Refusal(Refusal::LeaseLost)),
                    completed: None,
                    expires_at: None,
                };
            };
            let first = first.take();
            let mut ready = first.unwrap_or_else(|| self.ready(&held.lease, write, &mut left));
            // What is made smaller ended at the same time.
            ready.now = *now.get_or_insert(ready.now);
            let said = self.write(&held.lease, &ready).await;
            let smaller = match &said {
                Err(error) if error.kind() == StoreErrorKind::TooLarge => Self::not_stored(&ready),
                _ => None,
            };
            let is_too_large = smaller.is_some();
            left.answer = smaller;
            let answered = self.answered(&held.lease, &ready, said, is_too_large, Duration::ZERO);
            let event = Event::Written(answered.written);
            step = self.step(&mut state, event, &held.lease.key);
            let Some(give) = step.give else { continue };
            let finish = ready.finished(&held.lease, give, answered);
            if let Action::Retry { after, .. } = step.then {
                if let Some(told) = told
                    && let Some(what) = self.shared_end(&held.lease, &ready, &finish, told)
                {
                    held.alive.tell(|| SharedEnd::of(&held.lease, what));
                }
                self.finish_in_background(held, ready, state, after);
            } else {
                self.leave(&mut held, &ready, &finish, told);
            }
            return finish;
        }
    }

    /// Ends a lease, if the store can do that at once.
    #[inline]
    pub(super) fn write_now(&self, lease: &Lease, ready: &Ready) -> Option<Answered> {
        let Change::Complete(completion) = &ready.change else {
            return None;
        };
        let store = &self.shared.store;
        let said = store.try_complete(&lease.holder(), completion, ready.now)?;
        // What failed is tried again, with time to wait.
        said.ok().map(|fenced| self.fenced(lease, ready, fenced))
    }

    async fn write(&self, lease: &Lease, ready: &Ready) -> Result<Fenced, StoreError> {
        let store = &self.shared.store;
        let (holder, now) = (lease.holder(), ready.now);
        match &ready.change {
            Change::Complete(completion) => {
                self.bounded(store.complete(&holder, completion, now)).await
            }
            Change::Release(release) => self.bounded(store.release(&holder, *release, now)).await,
        }
    }

    /// What the store said to a write, as the protocol sees it.
    fn answered(
        &self,
        lease: &Lease,
        ready: &Ready,
        said: Result<Fenced, StoreError>,
        is_too_large: bool,
        tried_for: Duration,
    ) -> Answered {
        let error = match said {
            Ok(fenced) => return self.fenced(lease, ready, fenced),
            Err(error) => error,
        };
        log_fault(
            &lease.key,
            &error,
            "the store did not take the end of a run",
        );
        let retention = match &ready.change {
            Change::Complete(completion) => completion.retention,
            Change::Release(_) => self.shared.settings.retention,
        };
        Answered {
            written: Written::Failed(Fault {
                is_too_large,
                passes: error.kind().is_passing(),
                tried_for,
                retention,
            }),
            superseding: None,
        }
    }

    /// The same of a write that the store has answered.
    #[inline]
    fn fenced(&self, lease: &Lease, ready: &Ready, fenced: Fenced) -> Answered {
        let Fenced::LeaseLost(completed) = fenced else {
            return Answered {
                written: Written::Applied,
                superseding: None,
            };
        };
        self.shared.runs.lease_lost();
        warn!(record = %lease.key, "a run ended after it had lost its lease");
        let superseding = completed
            .filter(|completed| *completed.identity() == lease.identity)
            .map(|completed| Box::new(completed.by_clock(ready.now)));
        Answered {
            written: Written::LeaseLost {
                is_superseded: superseding.is_some(),
            },
            superseding,
        }
    }

    /// Goes on trying, under the lease, for as long as the protocol says.
    fn finish_in_background(&self, held: Held, ready: Ready, state: State, after: Duration) {
        self.shared.runs.completion_retried();
        let executor = self.clone();
        let retrying = async move {
            let (mut state, mut after) = (state, after);
            let began = runtime::now();
            loop {
                sleep(jittered(after)).await;
                let said = executor.write(&held.lease, &ready).await;
                let answered = executor.answered(&held.lease, &ready, said, false, began.elapsed());
                let event = Event::Written(answered.written);
                match executor.step(&mut state, event, &held.lease.key).then {
                    Action::Retry { after: next, .. } => after = next,
                    Action::Abandon => {
                        error!(
                            record = %held.lease.key,
                            "the store never took the end of a run; the orphan policy decides about its key"
                        );
                        break;
                    }
                    _ => break,
                }
            }
            drop(held);
        };
        runtime::spawn(retrying.instrument(Span::current()));
    }
}
