//! The life of one attempt, from its first claim to the last write under its lease.
//!
//! A pure state machine: events go in, steps come out. It does no I/O, has no clock and draws no
//! random numbers; times are in the events. The executor drives it, the model in `tests/model`
//! checks it in every order of events, and both take each decision from here.
//!
//! Answers, errors and leases stay with the driver: the machine says which of them is given.

use std::time::Duration;

use super::recorded::Recorded;
use crate::protocol::clock::Timestamp;
use crate::protocol::end::End;

/// The settings that an attempt is decided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// What becomes of a key whose attempt left no outcome.
    pub orphans: Orphans,
    /// Whether the client gets an answer that the store did not take.
    pub answer_unrecorded: bool,
    /// How long a lease lasts.
    pub lease: Duration,
    /// How far apart clocks may be.
    pub clock_skew: Duration,
}

/// What becomes of a key whose attempt left no outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Orphans {
    /// The next request runs.
    Retake,
    /// Nobody runs until the record expires.
    Hold,
    /// The business system is asked.
    Reconcile,
}

/// Where an attempt is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// A claim is under way.
    Claiming {
        /// Whether it repeats one that may have been applied.
        is_second: bool,
    },
    /// Another attempt holds the key, and this one waits for its end.
    Waiting,
    /// A claim without an answer may have been granted: the attempt looks for its lease, to release
    /// it.
    Looking {
        /// How many looks there were.
        looks: u32,
    },
    /// The business system is asked about an attempt before this one.
    AskingFirst {
        /// Which attempt at the key this is, from 1.
        number: u32,
    },
    /// The record under an earlier naming of the key is looked at.
    LookingEarlier {
        /// As above.
        number: u32,
    },
    /// The lease may have lapsed before the work began, and is renewed.
    Renewing {
        /// As above.
        number: u32,
    },
    /// The work may begin, or runs.
    Running,
    /// The business system is asked about this attempt.
    AskingAfter,
    /// The end of the attempt is on its way to the store.
    Ending {
        /// What is written.
        write: Write,
        /// Whether the client waits for an answer to the key, and not for something else.
        is_answer: bool,
    },
    /// The store did not take the end of the attempt, which is tried again in the background.
    Retrying {
        /// What is written.
        write: Write,
        /// How many tries there were.
        tries: u32,
        /// Whether the fault passes by itself, so that waiting helps.
        passes: bool,
    },
    /// The key is released, because the work was not begun.
    Undoing {
        /// What is written.
        write: Write,
        /// What the client gets then.
        give: Give,
    },
    /// What the business system knows of an attempt before this one is on its way to the store.
    Settling,
    /// Nothing is left to be done.
    Over,
}

/// A write that ends a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Write {
    /// The key is completed.
    Complete {
        /// With its answer; else retries are told that it is not stored.
        is_stored: bool,
    },
    /// The record goes.
    Free,
    /// The record stays as an orphan.
    Orphan,
}

/// What happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The claim got the lease.
    Granted(Granted),
    /// The claim found an answer or a reason to refuse, or the wait an end to share: the client
    /// gets what was found.
    Found,
    /// The claim found another attempt.
    InProgress {
        /// Whether the client waits for its end.
        waits: bool,
        /// Whether the client has gone.
        is_left: bool,
    },
    /// The claim failed.
    ClaimFailed {
        /// Whether it may have been applied.
        maybe_applied: bool,
    },
    /// The wait is over, and nothing is shared.
    WaitOver,
    /// A look for a lease came to this.
    Looked {
        /// What it found.
        found: Look,
        /// For how long it has been looked.
        looked_for: Duration,
    },
    /// The record under the earlier naming was looked at.
    Earlier {
        /// What it says.
        found: Earlier,
        /// The lease meanwhile.
        held: HeldUntil,
    },
    /// The business system answered, or did not, before the work.
    Asked {
        /// What it said.
        said: Said,
        /// The lease meanwhile.
        held: HeldUntil,
    },
    /// The business system answered, or did not, after the work.
    AskedAfter(Said),
    /// A renewal before the work begins was applied.
    Renewed(HeldUntil),
    /// That renewal was not applied, for a reason that the driver knows.
    NotRenewed,
    /// The work has ended.
    Ended {
        /// As this.
        end: End,
        /// Whether the answer of a final end can be stored.
        is_stored: bool,
    },
    /// The work was not begun after all.
    NotBegun,
    /// A write that ends the lease was answered.
    Written(Written),
}

/// A lease as it was granted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Granted {
    /// Which attempt at the key it is for, from 1.
    pub number: u32,
    /// The lease.
    pub held: HeldUntil,
    /// Whether the key had an earlier name.
    pub has_earlier: bool,
}

/// A lease whose work has not begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldUntil {
    /// When it lapses, as far as the driver knows.
    pub deadline: Timestamp,
    /// What the same clock shows.
    pub now: Timestamp,
    /// Whether the client has gone.
    pub is_left: bool,
}

/// What a look for a lease found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// The claim was granted, and the key is released again.
    Released,
    /// The claim has not arrived, or another attempt holds the key.
    Nothing,
    /// The store did not answer.
    NoAnswer,
}

/// What the record under an earlier naming says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Earlier {
    /// There is none that counts.
    Nothing,
    /// It has an answer, or refuses the request.
    Found,
    /// It is an orphan that may be taken over.
    Orphan,
}

/// What the business system says of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Said {
    /// It was carried out.
    Completed {
        /// Whether its answer can be stored.
        is_stored: bool,
    },
    /// It was not carried out, and will not be.
    NotExecuted,
    /// It cannot tell.
    Unknown,
}

/// What became of a fenced write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// It was applied.
    Applied,
    /// The attempt does not own the record any more.
    LeaseLost {
        /// Whether an answer to the same request is recorded in its place.
        is_superseded: bool,
    },
    /// The store failed.
    Failed(Fault),
}

/// A write that failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whether the store never takes an answer of that size.
    pub is_too_large: bool,
    /// Whether the fault passes by itself.
    pub passes: bool,
    /// For how long the write has been tried.
    pub tried_for: Duration,
    /// How long what is written would be kept.
    pub retention: Duration,
}

/// What comes of an event: what the client gets, if it gets something now, and what is done next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub struct Step {
    /// What the client gets.
    pub give: Option<Give>,
    /// What is done next.
    pub then: Action,
}

/// What a driver does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Claims the key, as the same owner as before.
    Claim,
    /// Waits for the end of the attempt that holds the key.
    Wait,
    /// Looks after a pause whether its claim was granted, and releases the key if it was.
    Look {
        /// The pause, before chance makes it longer or shorter.
        after: Duration,
    },
    /// Looks at the record under the earlier naming.
    LookEarlier,
    /// Asks the business system.
    Ask,
    /// Renews the lease.
    Renew,
    /// Begins the work.
    Run,
    /// Makes a write that ends the lease.
    Write(Write),
    /// Makes it again after a pause.
    Retry {
        /// What is written.
        write: Write,
        /// The pause, before chance makes it longer or shorter.
        after: Duration,
    },
    /// Says that the store never took the write.
    Abandon,
    /// Nothing any more.
    Nothing,
}

/// What a client gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Give {
    /// What the claim, the wait or the record under the earlier naming found: an answer, or a reason
    /// to refuse.
    Found,
    /// What the business system knows.
    Reconciled,
    /// The outcome of its own attempt, and what became of the key.
    Own(Recorded),
    /// A refusal in the place of its own outcome, and what became of the key.
    Withheld(Refusal, Recorded),
    /// The answer that is recorded in the place of its own.
    Superseding,
    /// A refusal.
    Refusal(Refusal),
}

/// Why a client gets no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Another attempt holds the key.
    InProgress,
    /// Nobody waits for an answer.
    Left,
    /// The key may get another answer.
    LeaseLost,
    /// The store did not take the answer yet.
    NotRecorded,
    /// The business system could not say what became of an attempt.
    OutcomeUnknown,
    /// The store failed, with an error that the driver knows.
    Store,
}

/// The first pause between two looks for a lease.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// For so many leases it is looked, at the most, whether a claim without an answer was granted.
const MOST_LEASES_LOOKED: u32 = 20;
/// The first pause before a write is tried again that the store did not take.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

impl State {
    /// An attempt whose first claim is under way.
    pub const CLAIMING: Self = Self::Claiming { is_second: false };

    #[cfg_attr(
        not(feature = "test-util"),
        allow(dead_code, reason = "what drives it knows it by the lease that it has")
    )]
    /// Whether the attempt has a lease, as far as it knows. Until it has none, the lease is renewed,
    /// and nobody in its process takes it over.
    pub const fn holds(self) -> bool {
        !matches!(
            self,
            Self::Claiming { .. } | Self::Waiting | Self::Looking { .. } | Self::Over
        )
    }

    /// Says what comes of an event. One that cannot happen in this state changes nothing.
    // Where the state and the kind of event are known, hardly anything is left of it.
    #[inline(always)]
    pub fn on(&mut self, event: Event, terms: &Terms) -> Step {
        match (*self, event) {
            (Self::Claiming { .. }, Event::Granted(granted)) => self.granted(granted, terms),
            (Self::Running, Event::Ended { end, is_stored }) => self.ended(end, is_stored, terms),
            (Self::Ending { write, is_answer }, Event::Written(written)) => {
                self.written(write, is_answer, written, terms)
            }
            (_, event) => self.on_other(event, terms),
        }
    }

    /// What happens to few attempts.
    fn on_other(&mut self, event: Event, terms: &Terms) -> Step {
        match (*self, event) {
            (Self::Claiming { .. } | Self::Waiting, Event::Found) => self.over(Give::Found),
            (Self::Claiming { .. }, Event::InProgress { waits, is_left }) => {
                self.in_progress(waits, is_left)
            }
            (Self::Claiming { is_second }, Event::ClaimFailed { maybe_applied }) => {
                self.claim_failed(is_second, maybe_applied)
            }
            (Self::Waiting, Event::WaitOver) => self.go(Self::CLAIMING, Action::Claim),
            (Self::Looking { looks }, Event::Looked { found, looked_for }) => {
                self.looked(looks, found, looked_for, terms)
            }
            (Self::LookingEarlier { number }, Event::Earlier { found, held }) => {
                self.found_earlier(number, found, held, terms)
            }
            (Self::AskingFirst { number }, Event::Asked { said, held }) => match said {
                Said::NotExecuted => self.may_begin(number, held),
                Said::Completed { is_stored } => {
                    self.go(Self::Settling, Action::Write(Write::Complete { is_stored }))
                }
                Said::Unknown => self.undo(number, Give::Refusal(Refusal::OutcomeUnknown)),
            },
            (Self::Renewing { number }, Event::Renewed(held)) => self.may_begin(number, held),
            (Self::Renewing { number }, Event::NotRenewed) => {
                self.undo(number, Give::Refusal(Refusal::Store))
            }
            (Self::Running, Event::NotBegun) => self.end(Write::Free, false),
            (Self::AskingAfter, Event::AskedAfter(said)) => {
                let write = match said {
                    Said::Completed { is_stored } => Write::Complete { is_stored },
                    Said::NotExecuted => Write::Free,
                    Said::Unknown => Write::Orphan,
                };
                self.end(write, false)
            }
            (
                Self::Retrying {
                    write,
                    tries,
                    passes,
                },
                Event::Written(written),
            ) => self.retried(write, tries, passes, written, terms),
            (Self::Undoing { write, give }, Event::Written(written)) => match written {
                Written::Failed(fault) => self.retry(write, fault.passes, give, terms),
                Written::Applied | Written::LeaseLost { .. } => self.over(give),
            },
            (Self::Settling, Event::Written(written)) => self.over(match written {
                Written::Applied => Give::Reconciled,
                Written::LeaseLost {
                    is_superseded: true,
                } => Give::Superseding,
                Written::LeaseLost { .. } => Give::Refusal(Refusal::LeaseLost),
                // The next request asks again.
                Written::Failed(_) if terms.answer_unrecorded => Give::Reconciled,
                Written::Failed(_) => Give::Refusal(Refusal::NotRecorded),
            }),
            _ => Step::nothing(),
        }
    }

    fn granted(&mut self, granted: Granted, terms: &Terms) -> Step {
        let Granted {
            number,
            held,
            has_earlier,
        } = granted;
        if held.is_left {
            self.undo(number, Give::Refusal(Refusal::Left))
        } else if held.has_lapsed() {
            // Stopped for so long before its work began: another may have begun.
            self.undo(number, Give::Refusal(Refusal::InProgress))
        } else if number > 1 && terms.orphans == Orphans::Reconcile {
            self.go(Self::AskingFirst { number }, Action::Ask)
        } else if has_earlier {
            self.go(Self::LookingEarlier { number }, Action::LookEarlier)
        } else {
            self.go(Self::Running, Action::Run)
        }
    }

    fn in_progress(&mut self, waits: bool, is_left: bool) -> Step {
        match (waits, is_left) {
            (_, true) => self.over(Give::Refusal(Refusal::Left)),
            (true, false) => self.go(Self::Waiting, Action::Wait),
            (false, false) => self.over(Give::Refusal(Refusal::InProgress)),
        }
    }

    fn claim_failed(&mut self, is_second: bool, maybe_applied: bool) -> Step {
        match (is_second, maybe_applied) {
            // The owner tells: if the first claim was applied, this one gets its lease.
            (false, true) => self.go(Self::Claiming { is_second: true }, Action::Claim),
            (false, false) => self.over(Give::Refusal(Refusal::Store)),
            (true, _) => {
                *self = Self::Looking { looks: 0 };
                let after = Duration::ZERO;
                Step::giving(Give::Refusal(Refusal::Store), Action::Look { after })
            }
        }
    }

    /// It is looked until the key is released, or until a lease would have lapsed, since the claim
    /// may still be under way. Where a lapsed lease is held for good, it is looked until the store
    /// has answered.
    fn looked(&mut self, looks: u32, found: Look, looked_for: Duration, terms: &Terms) -> Step {
        let lapses = terms.lease.saturating_add(terms.clock_skew);
        let gives_up = match terms.orphans {
            Orphans::Hold => terms.lease.saturating_mul(MOST_LEASES_LOOKED),
            Orphans::Retake | Orphans::Reconcile => lapses,
        };
        let is_done = match found {
            Look::Released => true,
            Look::Nothing => looked_for >= lapses,
            Look::NoAnswer => false,
        };
        if is_done || looked_for >= gives_up {
            *self = Self::Over;
            return Step::nothing();
        }
        let looks = looks.saturating_add(1);
        let after = doubled(FIRST_LOOK, looks - 1).min(terms.lease / 3);
        self.go(Self::Looking { looks }, Action::Look { after })
    }

    fn found_earlier(
        &mut self,
        number: u32,
        found: Earlier,
        held: HeldUntil,
        terms: &Terms,
    ) -> Step {
        match found {
            Earlier::Found => self.undo(number, Give::Found),
            Earlier::Orphan if terms.orphans == Orphans::Reconcile => {
                self.go(Self::AskingFirst { number }, Action::Ask)
            }
            Earlier::Nothing | Earlier::Orphan => self.may_begin(number, held),
        }
    }

    /// Begins the work under a lease that was granted a while ago.
    fn may_begin(&mut self, number: u32, held: HeldUntil) -> Step {
        if held.has_lapsed() {
            // Only the store can tell whether it was renewed.
            self.go(Self::Renewing { number }, Action::Renew)
        } else if held.is_left {
            self.undo(number, Give::Refusal(Refusal::Left))
        } else {
            self.go(Self::Running, Action::Run)
        }
    }

    #[inline]
    fn ended(&mut self, end: End, is_stored: bool, terms: &Terms) -> Step {
        match (end, terms.orphans) {
            (End::Final, _) => self.end(Write::Complete { is_stored }, true),
            (End::NothingDone, _) | (End::Unknown, Orphans::Retake) => self.end(Write::Free, false),
            (End::Unknown, Orphans::Hold) => self.end(Write::Orphan, false),
            (End::Unknown, Orphans::Reconcile) => self.go(Self::AskingAfter, Action::Ask),
        }
    }

    fn end(&mut self, write: Write, is_answer: bool) -> Step {
        self.go(Self::Ending { write, is_answer }, Action::Write(write))
    }

    fn written(&mut self, write: Write, is_answer: bool, written: Written, terms: &Terms) -> Step {
        let recorded = match written {
            Written::Applied => write.recorded(),
            Written::LeaseLost {
                is_superseded: true,
            } => return self.over(Give::Superseding),
            Written::LeaseLost { .. } => Recorded::LeaseLost,
            Written::Failed(fault) => {
                if fault.is_too_large && write == (Write::Complete { is_stored: true }) {
                    let smaller = Write::Complete { is_stored: false };
                    return self.end(smaller, is_answer);
                }
                let give = own(Recorded::Pending, is_answer, terms);
                return self.retry(write, fault.passes, give, terms);
            }
        };
        self.over(own(recorded, is_answer, terms))
    }

    fn retry(&mut self, write: Write, passes: bool, give: Give, terms: &Terms) -> Step {
        let tries = 1;
        *self = Self::Retrying {
            write,
            tries,
            passes,
        };
        let after = retry_after(tries, terms);
        Step::giving(give, Action::Retry { write, after })
    }

    /// A fault that does not pass by itself, such as a missing table, is not tried for as long as the
    /// record would be kept: the store does not renew the lease either, so it lapses, and the orphan
    /// policy decides.
    fn retried(
        &mut self,
        write: Write,
        tries: u32,
        passes: bool,
        written: Written,
        terms: &Terms,
    ) -> Step {
        let Written::Failed(fault) = written else {
            *self = Self::Over;
            return Step::nothing();
        };
        let gives_up = match passes {
            true => fault.retention,
            false => terms.lease.saturating_add(terms.clock_skew),
        };
        if fault.tried_for >= gives_up {
            *self = Self::Over;
            return Step::then(Action::Abandon);
        }
        let tries = tries.saturating_add(1);
        *self = Self::Retrying {
            write,
            tries,
            passes,
        };
        let after = retry_after(tries, terms);
        Step::then(Action::Retry { write, after })
    }

    fn undo(&mut self, number: u32, give: Give) -> Step {
        let write = Write::undoing(number);
        self.go(Self::Undoing { write, give }, Action::Write(write))
    }

    fn over(&mut self, give: Give) -> Step {
        *self = Self::Over;
        Step::giving(give, Action::Nothing)
    }

    fn go(&mut self, state: Self, then: Action) -> Step {
        *self = state;
        Step::then(then)
    }
}

/// What a client gets of its own attempt. An answer that is not recorded is not yet the answer to
/// the key.
fn own(recorded: Recorded, is_answer: bool, terms: &Terms) -> Give {
    match recorded {
        Recorded::LeaseLost if is_answer => Give::Withheld(Refusal::LeaseLost, recorded),
        Recorded::Pending if is_answer && !terms.answer_unrecorded => {
            Give::Withheld(Refusal::NotRecorded, recorded)
        }
        recorded => Give::Own(recorded),
    }
}

fn retry_after(tries: u32, terms: &Terms) -> Duration {
    let longest = LONGEST_RETRY.min(terms.lease / 3);
    doubled(FIRST_RETRY, tries - 1).min(longest)
}

fn doubled(pause: Duration, times: u32) -> Duration {
    pause.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
}

impl Write {
    /// Releases a key whose work was not begun, by which attempt at the key it was. What an attempt
    /// before may have left behind stays as it was.
    pub const fn undoing(number: u32) -> Self {
        match number {
            1 => Self::Free,
            _ => Self::Orphan,
        }
    }

    /// What has become of the key when this was applied.
    pub const fn recorded(self) -> Recorded {
        match self {
            Self::Complete { is_stored: true } => Recorded::Stored,
            Self::Complete { is_stored: false } => Recorded::NotStored,
            Self::Free => Recorded::Released,
            Self::Orphan => Recorded::Unknown,
        }
    }
}

/// Whether those who wait for an attempt in its process are told its end. If not, they claim the key
/// again.
pub const fn is_shared(write: Write, recorded: Recorded, terms: &Terms) -> bool {
    match (recorded, write) {
        (Recorded::LeaseLost, _) => false,
        (Recorded::Pending, Write::Complete { .. }) => terms.answer_unrecorded,
        _ => true,
    }
}

impl HeldUntil {
    /// Whether the lease has lapsed by the clock of the attempt itself, without a skew.
    pub const fn has_lapsed(self) -> bool {
        self.deadline.as_micros() <= self.now.as_micros()
    }
}

impl Step {
    /// Gives nothing, and goes on so.
    pub const fn then(then: Action) -> Self {
        Self { give: None, then }
    }

    const fn giving(give: Give, then: Action) -> Self {
        Self {
            give: Some(give),
            then,
        }
    }

    const fn nothing() -> Self {
        Self::then(Action::Nothing)
    }
}

#[cfg(test)]
mod tests;
