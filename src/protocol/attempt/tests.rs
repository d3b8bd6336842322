//! Any events in any order, and many attempts at one record.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::{KeyParts, RecordKey};
use crate::protocol::record::{
    ClaimRequest, Decision, Holder, Identity, Lease, Owner, Record, Renewal, decide, is_owned_by,
};

const LEASE: Duration = Duration::from_secs(30);
const SKEW: Duration = Duration::from_secs(2);
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
const KEY: RecordKey = RecordKey::from_bytes([7; 32]);
const IDENTITY: Identity = Identity::of_work(Fingerprint::from_bytes([9; 32]));

fn terms() -> impl Strategy<Value = Terms> {
    let orphans = prop_oneof![
        Just(Orphans::Retake),
        Just(Orphans::Hold),
        Just(Orphans::Reconcile)
    ];
    (orphans, any::<bool>()).prop_map(|(orphans, answer_unrecorded)| Terms {
        orphans,
        answer_unrecorded,
        lease: LEASE,
        clock_skew: SKEW,
    })
}

fn held() -> impl Strategy<Value = HeldUntil> {
    (0_u64..4, 0_u64..4, any::<bool>()).prop_map(|(deadline, now, is_left)| HeldUntil {
        deadline: Timestamp::from_micros(deadline),
        now: Timestamp::from_micros(now),
        is_left,
    })
}

fn said() -> impl Strategy<Value = Said> {
    prop_oneof![
        any::<bool>().prop_map(|is_stored| Said::Completed { is_stored }),
        Just(Said::NotExecuted),
        Just(Said::Unknown)
    ]
}

fn written() -> impl Strategy<Value = Written> {
    prop_oneof![
        Just(Written::Applied),
        any::<bool>().prop_map(|is_superseded| Written::LeaseLost { is_superseded }),
        (any::<bool>(), any::<bool>(), 0_u64..200_000).prop_map(|(is_too_large, passes, tried)| {
            Written::Failed(Fault {
                is_too_large,
                passes,
                tried_for: Duration::from_secs(tried),
                retention: RETENTION,
            })
        })
    ]
}

fn end() -> impl Strategy<Value = End> {
    prop_oneof![Just(End::Final), Just(End::NothingDone), Just(End::Unknown)]
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (1_u32..4, held(), any::<bool>()).prop_map(|(number, held, has_earlier)| Event::Granted(
            Granted {
                number,
                held,
                has_earlier
            }
        )),
        Just(Event::Found),
        (any::<bool>(), any::<bool>())
            .prop_map(|(waits, is_left)| Event::InProgress { waits, is_left }),
        any::<bool>().prop_map(|maybe_applied| Event::ClaimFailed { maybe_applied }),
        Just(Event::WaitOver),
        (
            prop_oneof![
                Just(Look::Released),
                Just(Look::Nothing),
                Just(Look::NoAnswer)
            ],
            0_u64..1_000
        )
            .prop_map(|(found, looked_for)| Event::Looked {
                found,
                looked_for: Duration::from_secs(looked_for)
            }),
        (
            prop_oneof![
                Just(Earlier::Nothing),
                Just(Earlier::Found),
                Just(Earlier::Orphan)
            ],
            held()
        )
            .prop_map(|(found, held)| Event::Earlier { found, held }),
        (said(), held()).prop_map(|(said, held)| Event::Asked { said, held }),
        said().prop_map(Event::AskedAfter),
        held().prop_map(Event::Renewed),
        Just(Event::NotRenewed),
        (end(), any::<bool>()).prop_map(|(end, is_stored)| Event::Ended { end, is_stored }),
        Just(Event::NotBegun),
        written().prop_map(Event::Written),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_a_client_is_answered_once_and_only_a_holder_writes(
        terms in terms(),
        events in vec(event(), 1..40),
    ) {
        let mut state = State::CLAIMING;
        let mut gives = 0;
        for event in events {
            let before = state;
            let step = state.on(event, &terms);
            gives += u32::from(step.give.is_some());
            match step.then {
                Action::Write(write) | Action::Retry { write, .. } => {
                    prop_assert!(state.holds(), "{write:?} in {state:?}");
                }
                Action::Run => prop_assert_eq!(state, State::Running),
                _ => {}
            }
            if let Action::Retry { after, .. } | Action::Look { after } = step.then {
                prop_assert!(after <= LEASE / 3, "{after:?}");
            }
            if before == State::Over {
                prop_assert_eq!(step, Step::nothing());
            }
            if state == State::Over {
                prop_assert_eq!(gives, 1, "{:?} from {:?}", event, before);
            }
        }
        prop_assert!(gives <= 1);
    }

    #[test]
    fn pauses_grow_and_trying_ends(terms in terms(), passes in any::<bool>()) {
        let mut state = State::Ending { write: Write::Free, is_answer: false };
        let mut tried_for = Duration::ZERO;
        let mut pause = Duration::ZERO;
        let failed = |tried_for| Event::Written(Written::Failed(Fault {
            is_too_large: false,
            passes,
            tried_for,
            retention: RETENTION,
        }));
        let mut step = state.on(failed(tried_for), &terms);
        while let Action::Retry { after, .. } = step.then {
            prop_assert!(after >= pause);
            pause = after;
            tried_for += after;
            step = state.on(failed(tried_for), &terms);
        }
        prop_assert_eq!(step.then, Action::Abandon);
        let longest = if passes { RETENTION } else { LEASE + SKEW };
        prop_assert!(tried_for >= longest && tried_for < longest + pause);
    }

    #[test]
    fn work_begins_under_a_live_lease_and_with_hold_never_after_an_unknown_outcome(
        terms in terms(),
        moves in vec((0..3_usize, 0..6_u8, 0..20_u64), 1..120),
    ) {
        let mut world = World::new(terms);
        for (who, what, seconds) in moves {
            world.moves(who, what, seconds);
            let (state, then, lease) = &world.attempts[who];
            if *then != Action::Run || !world.has_begun {
                continue;
            }
            prop_assert_eq!(*state, State::Running);
            let lease = lease.as_ref().expect("it was granted");
            prop_assert!(world.is_owned(&lease.holder()) && lease.deadline > world.now);
            prop_assert!(terms.orphans != Orphans::Hold || !world.is_unknown, "{world:?}");
        }
    }
}

const RETAKE: Terms = Terms {
    orphans: Orphans::Retake,
    answer_unrecorded: false,
    lease: LEASE,
    clock_skew: SKEW,
};
const HOLD: Terms = Terms {
    orphans: Orphans::Hold,
    ..RETAKE
};
const RECONCILE: Terms = Terms {
    orphans: Orphans::Reconcile,
    ..RETAKE
};
const COMPLETE: Write = Write::Complete { is_stored: true };

/// A lease that is alive, of a client that waits.
const ALIVE: HeldUntil = HeldUntil {
    deadline: Timestamp::from_micros(2),
    now: Timestamp::from_micros(1),
    is_left: false,
};
/// One that lapses at this very moment.
const LAPSED: HeldUntil = HeldUntil {
    deadline: Timestamp::from_micros(1),
    ..ALIVE
};
const LEFT: HeldUntil = HeldUntil {
    is_left: true,
    ..ALIVE
};

/// What a state does with an event: what is given, what is done, and the state after it.
fn after(terms: &Terms, state: State, event: Event) -> (Option<Give>, Action, State) {
    let mut state = state;
    let step = state.on(event, terms);
    (step.give, step.then, state)
}

fn undoing(write: Write, give: Give) -> (Option<Give>, Action, State) {
    let state = State::Undoing { write, give };
    (None, Action::Write(write), state)
}

fn ending(write: Write, is_answer: bool) -> (Option<Give>, Action, State) {
    let state = State::Ending { write, is_answer };
    (None, Action::Write(write), state)
}

const RUN: (Option<Give>, Action, State) = (None, Action::Run, State::Running);

fn refused(refusal: Refusal) -> Give {
    Give::Refusal(refusal)
}

fn failed() -> Event {
    Event::Written(Written::Failed(Fault {
        is_too_large: false,
        passes: true,
        tried_for: Duration::ZERO,
        retention: RETENTION,
    }))
}

#[test]
fn before_the_work_the_lease_has_to_be_alive_and_somebody_has_to_wait() {
    let earlier = State::LookingEarlier { number: 1 };
    let looked = |terms, found, held| after(terms, earlier, Event::Earlier { found, held });
    let asking = State::AskingFirst { number: 2 };
    let renewing = |number| (None, Action::Renew, State::Renewing { number });
    let not_executed = |held| {
        let said = Said::NotExecuted;
        after(&RECONCILE, asking, Event::Asked { said, held })
    };

    assert_eq!(looked(&RETAKE, Earlier::Nothing, ALIVE), RUN);
    assert_eq!(looked(&RETAKE, Earlier::Orphan, ALIVE), RUN);
    assert_eq!(looked(&HOLD, Earlier::Orphan, ALIVE), RUN);
    let asks = (None, Action::Ask, State::AskingFirst { number: 1 });
    assert_eq!(looked(&RECONCILE, Earlier::Orphan, ALIVE), asks);
    assert_eq!(looked(&RETAKE, Earlier::Nothing, LAPSED), renewing(1));
    let left = undoing(Write::Free, refused(Refusal::Left));
    assert_eq!(looked(&RETAKE, Earlier::Nothing, LEFT), left);
    let found = undoing(Write::Free, Give::Found);
    assert_eq!(looked(&RETAKE, Earlier::Found, ALIVE), found);

    assert_eq!(not_executed(ALIVE), RUN);
    assert_eq!(not_executed(LAPSED), renewing(2));
    let left = undoing(Write::Orphan, refused(Refusal::Left));
    assert_eq!(not_executed(LEFT), left);

    let renewing = State::Renewing { number: 2 };
    assert_eq!(after(&RETAKE, renewing, Event::Renewed(ALIVE)), RUN);
    assert_eq!(after(&RETAKE, renewing, Event::Renewed(LEFT)), left);
    let lost = undoing(Write::Orphan, refused(Refusal::Store));
    assert_eq!(after(&RETAKE, renewing, Event::NotRenewed), lost);
}

#[test]
fn the_end_of_the_work_decides_what_is_written() {
    let ends = |terms, end| {
        let is_stored = end == End::Final;
        after(terms, State::Running, Event::Ended { end, is_stored })
    };
    let not_begun = after(&HOLD, State::Running, Event::NotBegun);
    assert_eq!(not_begun, ending(Write::Free, false));
    assert_eq!(ends(&HOLD, End::Final), ending(COMPLETE, true));
    assert_eq!(ends(&HOLD, End::NothingDone), ending(Write::Free, false));
    assert_eq!(ends(&RETAKE, End::Unknown), ending(Write::Free, false));
    assert_eq!(ends(&HOLD, End::Unknown), ending(Write::Orphan, false));
    let asks = (None, Action::Ask, State::AskingAfter);
    assert_eq!(ends(&RECONCILE, End::Unknown), asks);
}

#[test]
fn an_answer_that_is_not_recorded_is_given_only_where_that_is_set() {
    let unrecorded = Terms {
        answer_unrecorded: true,
        ..RETAKE
    };
    let gives = |terms: &Terms, write, is_answer, event| {
        after(terms, State::Ending { write, is_answer }, event).0
    };
    let lost = Event::Written(Written::LeaseLost {
        is_superseded: false,
    });
    let pending = Some(Give::Own(Recorded::Pending));
    let withheld = |refusal, recorded| Some(Give::Withheld(refusal, recorded));
    let not_recorded = withheld(Refusal::NotRecorded, Recorded::Pending);
    assert_eq!(gives(&RETAKE, COMPLETE, true, failed()), not_recorded);
    assert_eq!(gives(&unrecorded, COMPLETE, true, failed()), pending);
    assert_eq!(gives(&RETAKE, Write::Free, false, failed()), pending);
    let lease_lost = withheld(Refusal::LeaseLost, Recorded::LeaseLost);
    assert_eq!(gives(&unrecorded, COMPLETE, true, lost), lease_lost);
    let own = Some(Give::Own(Recorded::LeaseLost));
    assert_eq!(gives(&RETAKE, Write::Free, false, lost), own);

    for (recorded, write, terms, shared) in [
        (Recorded::LeaseLost, Write::Free, &unrecorded, false),
        (Recorded::Pending, COMPLETE, &RETAKE, false),
        (Recorded::Pending, COMPLETE, &unrecorded, true),
        (Recorded::Pending, Write::Free, &RETAKE, true),
        (Recorded::Stored, COMPLETE, &RETAKE, true),
    ] {
        assert_eq!(
            is_shared(write, recorded, terms),
            shared,
            "{recorded} {write:?}"
        );
    }
}

#[test]
fn an_answer_that_is_too_large_completes_the_key_without_it_once() {
    let too_large = |passes| {
        Event::Written(Written::Failed(Fault {
            is_too_large: true,
            passes,
            tried_for: Duration::ZERO,
            retention: RETENTION,
        }))
    };
    let smaller = Write::Complete { is_stored: false };
    let of = |write| State::Ending {
        write,
        is_answer: true,
    };
    let first = after(&RETAKE, of(COMPLETE), too_large(false));
    assert_eq!(first, ending(smaller, true));
    let (_, then, _) = after(&RETAKE, of(smaller), too_large(false));
    assert!(matches!(then, Action::Retry { write, .. } if write == smaller));
    let (_, then, _) = after(&RETAKE, of(Write::Free), too_large(false));
    assert!(matches!(then, Action::Retry { .. }));
}

#[test]
fn pauses_double_from_their_first_one_to_a_third_of_the_lease() {
    let terms = Terms {
        lease: Duration::from_secs(3),
        ..RETAKE
    };
    let millis =
        |pauses: Vec<Duration>| -> Vec<_> { pauses.iter().map(Duration::as_millis).collect() };
    let mut state = State::Ending {
        write: Write::Free,
        is_answer: false,
    };
    let mut pauses = Vec::new();
    while let Action::Retry { after, .. } = state.on(failed(), &terms).then
        && pauses.len() < 6
    {
        pauses.push(after);
    }
    assert_eq!(millis(pauses), [100, 200, 400, 800, 1_000, 1_000]);

    let mut state = State::Claiming { is_second: true };
    let mut event = Event::ClaimFailed {
        maybe_applied: false,
    };
    let mut pauses = Vec::new();
    while let Action::Look { after } = state.on(event, &terms).then
        && pauses.len() < 7
    {
        pauses.push(after);
        event = Event::Looked {
            found: Look::Nothing,
            looked_for: Duration::ZERO,
        };
    }
    assert_eq!(millis(pauses), [0, 50, 100, 200, 400, 800, 1_000]);
}

#[test]
fn a_lease_is_held_from_its_grant_to_its_end() {
    let holds = [
        State::AskingFirst { number: 1 },
        State::LookingEarlier { number: 1 },
        State::Renewing { number: 1 },
        State::Running,
        State::AskingAfter,
        State::Settling,
    ];
    let does_not = [
        State::CLAIMING,
        State::Waiting,
        State::Looking { looks: 1 },
        State::Over,
    ];
    assert!(holds.into_iter().all(State::holds));
    assert!(!does_not.into_iter().any(State::holds));
}

/// A record, three attempts at it, and one clock.
#[derive(Debug)]
struct World {
    terms: Terms,
    now: Timestamp,
    record: Option<Record>,
    attempts: [(State, Action, Option<Lease>); 3],
    /// Whether the last move was that work began.
    has_begun: bool,
    /// Whether an outcome is unknown.
    is_unknown: bool,
}

impl World {
    fn new(terms: Terms) -> Self {
        Self {
            terms,
            now: Timestamp::from_micros(1_790_000_000_000_000),
            record: None,
            attempts: [const { (State::CLAIMING, Action::Claim, None) }; 3],
            has_begun: false,
            is_unknown: false,
        }
    }

    /// Time goes on, and one of the attempts does what it was told to; what it tells the machine is
    /// what the record decides.
    fn moves(&mut self, who: usize, what: u8, seconds: u64) {
        self.now = self.now.plus(Duration::from_secs(seconds));
        self.has_begun = false;
        let (mut state, action, lease) = self.attempts[who].clone();
        let mut lease = lease;
        let event = match action {
            Action::Claim => self.claim(who, &mut lease),
            Action::Wait => Event::WaitOver,
            Action::Ask if matches!(state, State::AskingFirst { .. }) => Event::Asked {
                said: Said::NotExecuted,
                held: self.held(lease.as_ref()),
            },
            Action::Ask => Event::AskedAfter(Said::Unknown),
            Action::Renew => match self.renew(&mut lease) {
                true => Event::Renewed(self.held(lease.as_ref())),
                false => Event::NotRenewed,
            },
            Action::Run => match what {
                0 => Event::Ended {
                    end: End::Final,
                    is_stored: true,
                },
                1 => Event::Ended {
                    end: End::NothingDone,
                    is_stored: false,
                },
                2 => Event::Ended {
                    end: End::Unknown,
                    is_stored: false,
                },
                _ => {
                    self.renew(&mut lease);
                    self.attempts[who].2 = lease;
                    return;
                }
            },
            Action::Write(write) | Action::Retry { write, .. } => self.write(write, lease.as_ref()),
            Action::Look { .. } | Action::LookEarlier | Action::Abandon | Action::Nothing => {
                // Another request comes.
                self.attempts[who] = (State::CLAIMING, Action::Claim, None);
                return;
            }
        };
        self.is_unknown |= matches!(
            event,
            Event::Ended {
                end: End::Unknown,
                ..
            }
        );
        let then = state.on(event, &self.terms).then;
        self.has_begun = then == Action::Run;
        self.attempts[who] = (state, then, lease);
    }

    fn claim(&mut self, who: usize, lease: &mut Option<Lease>) -> Event {
        let parts = KeyParts {
            namespace: "",
            scope: None,
            method: "POST",
            target: "/",
            key: "k",
        };
        let mut owner = [who as u8; 16];
        owner[..8].copy_from_slice(&self.now.as_micros().to_le_bytes());
        let owner = Owner::from_bytes(owner);
        let mut request = ClaimRequest::new(&KEY, &parts, IDENTITY, owner, self.now);
        request.take_over = self.terms.orphans != Orphans::Hold;
        match decide(self.record.as_ref().map(Into::into), &request) {
            Decision::Acquire {
                token,
                attempt,
                created_at,
            } => {
                let granted = request.lease(token, attempt, created_at);
                self.record = Some(Record::InProgress(granted.clone()));
                *lease = Some(granted);
                Event::Granted(Granted {
                    number: attempt,
                    held: self.held(lease.as_ref()),
                    has_earlier: false,
                })
            }
            Decision::InProgress => Event::InProgress {
                waits: true,
                is_left: false,
            },
            _ => Event::Found,
        }
    }

    fn renew(&mut self, lease: &mut Option<Lease>) -> bool {
        let Some(held) = lease else { return false };
        let is_owned = self.is_owned(&held.holder());
        if is_owned {
            held.renew(Renewal::new(LEASE, RETENTION), self.now);
            self.record = Some(Record::InProgress(held.clone()));
        }
        is_owned
    }

    fn write(&mut self, write: Write, lease: Option<&Lease>) -> Event {
        let is_owned = lease.is_some_and(|lease| self.is_owned(&lease.holder()));
        let Some(lease) = lease.filter(|_| is_owned) else {
            return Event::Written(Written::LeaseLost {
                is_superseded: false,
            });
        };
        self.record = match write {
            Write::Complete { .. } => None,
            Write::Free => None,
            Write::Orphan => Some(Record::InProgress(Lease {
                deadline: Timestamp::EPOCH,
                ..lease.clone()
            })),
        };
        Event::Written(Written::Applied)
    }

    fn is_owned(&self, holder: &Holder) -> bool {
        is_owned_by(self.record.as_ref().map(Into::into), holder)
    }

    fn held(&self, lease: Option<&Lease>) -> HeldUntil {
        HeldUntil {
            deadline: lease.map_or(Timestamp::EPOCH, |lease| lease.deadline),
            now: self.now,
            is_left: false,
        }
    }
}
