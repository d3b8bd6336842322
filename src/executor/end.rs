//! From the end of a run to its record.

use std::fmt;
use std::panic::resume_unwind;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use tokio::time::{Instant, sleep};
use tracing::{Instrument, Span, debug, error, warn};

use super::begin::{Held, jittered};
use super::faults::log_fault;
use super::living::{Flags, Noted};
use super::run::Panic;
use super::wait::{SharedEnd, What};
use super::{Conflict, Executor, after};
use crate::clock::Timestamp;
use crate::error::{StoreError, StoreErrorKind};
use crate::key::IdempotencyKey;
use crate::policy::{Effects, End, Orphan, Reconciled};
use crate::record::{Completed, Lease, Owner};
use crate::response::Answer;
use crate::store::{Completion, Fenced, Release, Store};

/// The first pause before an end is tried again that the store did not take.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

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

/// An answer in its recorded form, and what it counts as.
pub(crate) struct Recordable {
    payload: Bytes,
    recorded: Recorded,
}

impl Recordable {
    /// A response that is stored, in its recorded form.
    pub(crate) const fn response(payload: Bytes) -> Self {
        Self {
            payload,
            recorded: Recorded::Stored,
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
            recorded: match answer {
                Answer::NotStored { .. } => Recorded::NotStored,
                _ => Recorded::Stored,
            },
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

/// What became of the key after its work ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Recorded {
    /// The lease was lost while the work ran, and nobody has recorded an answer in its place yet.
    /// An answer that would have been recorded is refused with 409 `lease-lost`, for the key may
    /// get another one.
    LeaseLost,
    /// The key is completed, without the response: retries are refused with 409
    /// `response-not-stored`.
    NotStored,
    /// The store did not take the answer yet; it is tried again in the background, under the
    /// lease. The client gets it all the same, or is refused with 503 `not-recorded`; see
    /// [`answer_unrecorded`](crate::IdempotencyLayer::answer_unrecorded).
    Pending,
    /// The key is released, because nothing was done, or because the orphan policy lets an unknown
    /// outcome run again: the next request runs.
    Released,
    /// The answer is recorded: retries get it.
    Stored,
    /// The outcome is not known, and the key is held: retries are refused with 409
    /// `outcome-unknown`.
    Unknown,
}

impl Recorded {
    /// A short name for logs and metrics, such as `stored`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::LeaseLost => "lease-lost",
            Self::NotStored => "not-stored",
            Self::Pending => "pending",
            Self::Released => "released",
            Self::Stored => "stored",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for Recorded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The business system has to be asked what became of a run.
pub(super) struct Asking {
    /// The status that it ended with, if it did with one.
    status: Option<u16>,
}

/// A write that ends a lease.
pub(super) struct Write {
    /// When the attempt ended. What is tried again says the same.
    pub(super) now: Timestamp,
    pub(super) change: Change,
}

/// What a write makes of the record.
pub(super) enum Change {
    Complete(Completion, Recorded),
    Release(Release),
}

impl<St: Store> Executor<St> {
    /// What came of a run whose lease ended so. If that was a panic, it goes on.
    #[inline]
    pub(super) fn settled<V>(
        &self,
        outcome: Result<V, Panic>,
        is_answer: bool,
        ended: Ended,
        created_at: Timestamp,
    ) -> Settled<V> {
        let value = outcome.unwrap_or_else(|panic| resume_unwind(panic));
        let (recorded, expires_at) = match ended {
            Ended::As(recorded, expires_at) => (recorded, expires_at),
            Ended::Superseded(completed) => return Settled::Superseded(completed),
        };
        if is_answer && let Some(conflict) = self.withholds(recorded) {
            return Settled::Withheld(conflict, recorded);
        }
        Settled::Value {
            value,
            recorded,
            created_at,
            expires_at,
        }
    }

    /// Why an answer is kept from the one who waits for it, if it is: one that is not recorded is
    /// not yet the answer to the key.
    fn withholds(&self, recorded: Recorded) -> Option<Conflict> {
        match recorded {
            Recorded::LeaseLost => Some(Conflict::LeaseLost),
            Recorded::Pending if !self.shared.settings.answer_unrecorded => {
                Some(Conflict::NotRecorded)
            }
            _ => None,
        }
    }

    /// Whether somebody in this process waits for the end of the run of `owner`.
    pub(crate) fn is_awaited(&self, owner: Owner) -> bool {
        let is_awaited = self.heart().with(owner, |noted| noted.is_awaited());
        is_awaited.unwrap_or_default()
    }

    /// What those get who wait for a run whose lease ended so; `None` when they have to ask the
    /// store.
    fn shared_end(&self, lease: &Lease, write: &Write, ended: &Ended, told: Told) -> Option<What> {
        match (ended, &write.change) {
            (Ended::Superseded(completed), _) => Some(What::Recorded(completed.clone())),
            (Ended::As(Recorded::LeaseLost, _), _) => None,
            (Ended::As(Recorded::Pending, _), Change::Complete(..))
                if !self.shared.settings.answer_unrecorded =>
            {
                None
            }
            (Ended::As(..), Change::Complete(completion, _)) => Some(What::Recorded(
                completion.record(lease.identity, lease.created_at, write.now),
            )),
            (Ended::As(..), Change::Release(release)) => Some(match told.response {
                Some(response) => What::Response(response),
                None => What::Nothing {
                    class: match (release, &self.shared.settings.orphan) {
                        // The business system was asked, and has said so.
                        (Release::Free, Orphan::Reconcile(_)) => End::NothingDone,
                        _ => told.class,
                    },
                },
            }),
        }
    }

    /// Ends an attempt whose lease ended so, and gives its end to those who wait for it.
    #[inline]
    pub(super) fn leave(&self, held: &mut Held, write: &Write, ended: &Ended, told: Option<Told>) {
        let Held { lease, alive, .. } = held;
        alive.leave(|| {
            let what = self.shared_end(lease, write, ended, told?)?;
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

    /// How the lease ends by what came of its run.
    #[inline]
    pub(super) fn write_for(&self, lease: &Lease, ending: Ending) -> Result<Write, Asking> {
        Ok(match ending {
            Ending::Final { answer, retention } => self.record(lease, answer, retention),
            Ending::NotBegun | Ending::NothingDone { .. } => self.releasing(Release::Free),
            Ending::Unknown { status, .. } => match &self.shared.settings.orphan {
                Orphan::Retake => self.releasing(Release::Free),
                Orphan::Hold => self.releasing(self.as_orphan(status)),
                Orphan::Reconcile(_) => return Err(Asking { status }),
            },
        })
    }

    /// How the lease ends of a run whose outcome the business system knows, or does not.
    pub(super) async fn asked_write(
        &self,
        key: &IdempotencyKey,
        lease: &Lease,
        Asking { status }: Asking,
    ) -> Write {
        let reconciled = match &self.shared.settings.orphan {
            Orphan::Reconcile(reconcile) => self.ask(reconcile, key, lease).await,
            Orphan::Retake | Orphan::Hold => Reconciled::Unknown,
        };
        match reconciled {
            Reconciled::Completed(answer) => self.record(lease, answer.into(), None),
            Reconciled::NotExecuted => self.releasing(Release::Free),
            Reconciled::Unknown => self.releasing(self.as_orphan(status)),
        }
    }

    /// How an attempt ends whose outcome nobody knows: its retention counts from here.
    pub(super) fn as_orphan(&self, first_status: Option<u16>) -> Release {
        Release::orphan(self.shared.settings.retention, first_status)
    }

    fn releasing(&self, release: Release) -> Write {
        Write {
            now: self.now(),
            change: Change::Release(release),
        }
    }

    fn record(&self, lease: &Lease, answer: Recordable, retention: Option<Duration>) -> Write {
        let now = self.now();
        let completion = self.completion(lease, answer.payload, retention, now);
        Write {
            now,
            change: Change::Complete(completion, answer.recorded),
        }
    }

    /// Gives a key back whose work was not begun. Those who wait for it claim it again.
    pub(super) async fn undo(&self, held: Held) {
        let release = self.releasing(self.undoing(&held.lease));
        self.end(held, release, None).await;
    }

    pub(super) async fn end(&self, held: Held, write: Write, told: Option<Told>) -> Ended {
        let (mut held, mut write) = (held, write);
        let mut tried = self.try_end(&held.lease, &write).await;
        if let Err(error) = &tried
            && error.kind() == StoreErrorKind::TooLarge
            && let Some(smaller) = Self::not_stored(&write)
        {
            write = smaller;
            tried = self.try_end(&held.lease, &write).await;
        }
        let error = match tried {
            Ok(ended) => {
                self.leave(&mut held, &write, &ended, told);
                drop(held);
                return ended;
            }
            Err(error) => error,
        };
        let ended = Ended::As(Recorded::Pending, None);
        if let Some(told) = told
            && let Some(what) = self.shared_end(&held.lease, &write, &ended, told)
        {
            held.alive.tell(|| SharedEnd::of(&held.lease, what));
        }
        self.end_in_background(held, write, &error);
        ended
    }

    /// The same end for a store that will never take its answer: one whose response is not stored.
    fn not_stored(write: &Write) -> Option<Write> {
        let Change::Complete(completion, _) = &write.change else {
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
        let completion = Completion {
            payload: answer.encode(),
            ..completion.clone()
        };
        Some(Write {
            now: write.now,
            change: Change::Complete(completion, Recorded::NotStored),
        })
    }

    /// Ends a lease, if the store can do that at once.
    #[inline]
    pub(super) fn try_end_now(&self, lease: &Lease, write: &Write) -> Option<Ended> {
        let store = &self.shared.store;
        let fenced = match &write.change {
            Change::Complete(completion, _) => {
                store.try_complete(&lease.holder(), completion, write.now)?
            }
            Change::Release(_) => return None,
        };
        self.ended(lease, write, fenced).ok()
    }

    async fn try_end(&self, lease: &Lease, write: &Write) -> Result<Ended, StoreError> {
        let store = &self.shared.store;
        let (holder, now) = (lease.holder(), write.now);
        let fenced = match &write.change {
            Change::Complete(completion, _) => {
                self.bounded(store.complete(&holder, completion, now)).await
            }
            Change::Release(release) => self.bounded(store.release(&holder, *release, now)).await,
        };
        self.ended(lease, write, fenced)
    }

    /// What a write made of a lease.
    fn ended(
        &self,
        lease: &Lease,
        write: &Write,
        fenced: Result<Fenced, StoreError>,
    ) -> Result<Ended, StoreError> {
        let ended = match (fenced, &write.change) {
            (Ok(Fenced::Applied), Change::Complete(completion, recorded)) => {
                Ended::As(*recorded, Some(write.now.plus(completion.retention)))
            }
            (Ok(Fenced::Applied), Change::Release(Release::Free)) => {
                Ended::As(Recorded::Released, None)
            }
            (Ok(Fenced::Applied), Change::Release(Release::Orphan { retention, .. })) => {
                Ended::As(Recorded::Unknown, Some(write.now.plus(*retention)))
            }
            (Ok(Fenced::LeaseLost(completed)), _) => {
                self.shared.runs.lease_lost();
                warn!(record = %lease.key, "a run ended after it had lost its lease");
                match completed {
                    Some(completed) if *completed.identity() == lease.identity => {
                        Ended::Superseded(completed.by_clock(write.now))
                    }
                    _ => Ended::As(Recorded::LeaseLost, None),
                }
            }
            (Err(error), _) => {
                log_fault(
                    &lease.key,
                    &error,
                    "the store did not take the end of a run",
                );
                return Err(error);
            }
        };
        if let Ended::As(recorded, _) = &ended {
            debug!(record = %lease.key, %recorded, "a run ended");
        }
        Ok(ended)
    }

    /// Goes on trying, under the lease, until the store takes it, the lease is lost, or the
    /// record would have expired.
    ///
    /// A fault that does not pass by itself, such as a missing table, is not tried for that long:
    /// the store does not renew the lease either, so it lapses, and the orphan policy decides.
    fn end_in_background(&self, held: Held, write: Write, error: &StoreError) {
        self.shared.runs.completion_retried();
        let passes = error.kind().is_passing();
        let executor = self.clone();
        let retrying = async move {
            let settings = &executor.shared.settings;
            let kept_for = match &write.change {
                Change::Complete(completion, _) => completion.retention,
                Change::Release(_) => settings.retention,
            };
            let gives_up = after(match passes {
                true => kept_for,
                false => settings.lease.saturating_add(settings.clock_skew),
            });
            let longest_pause = LONGEST_PAUSE.min(settings.lease / 3);
            let mut pause = FIRST_PAUSE.min(longest_pause);
            loop {
                sleep(jittered(pause)).await;
                if executor.try_end(&held.lease, &write).await.is_ok() {
                    break;
                }
                if Instant::now() >= gives_up {
                    error!(
                        record = %held.lease.key,
                        "the store never took the end of a run; the orphan policy decides about its key"
                    );
                    break;
                }
                pause = longest_pause.min(pause * 2);
            }
            drop(held);
        };
        tokio::spawn(retrying.instrument(Span::current()));
    }
}

/// How a lease ended.
pub(super) enum Ended {
    As(Recorded, Option<Timestamp>),
    Superseded(Completed),
}
