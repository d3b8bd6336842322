//! What has to hold in every state.

use stateright::Property;
use tower_idempotency::record::Decision;
use tower_idempotency::testing::attempt::State as At;

use crate::checked::Checked;
use crate::node::owner_id;
use crate::setting::{LEASE, Policy, SKEW};
use crate::state::{ATTEMPTS, Attempt, Id, Phase, Record, State, Tick};

pub(crate) const ONE_OWNER: &str = "no two attempts own the record at once";
pub(crate) const FENCED: &str = "only the owner of a record writes it";
pub(crate) const UNCHANGED: &str = "a completed record is not changed before it expires";
pub(crate) const SAME_ANSWER: &str = "all clients that get an answer get the same";
pub(crate) const HELD: &str =
    "with Hold, a handler that may have done its work is not started again";
pub(crate) const LAPSED: &str =
    "a handler starts beside another only after a lease of theirs lapsed";
pub(crate) const NOT_STUCK: &str = "no key is stuck";
pub(crate) const NOT_BY_ITSELF: &str = "no request is kept out by its own lease";
pub(crate) const LIVING: &str = "no node takes a lease from an attempt that is alive on it";
pub(crate) const SHARED: &str =
    "one that waited for a run on its node which told its end does not run";
pub(crate) const ONE_EFFECT: &str = "with Reconcile, the work is done once";

/// A property, and whether a state has it.
type Named = (&'static str, fn(&Checked, &State) -> bool);

const ALL: [Named; 11] = [
    (ONE_OWNER, each_live_lease_is_the_records),
    (FENCED, |_, state| !state.broken.written_by_stranger),
    (UNCHANGED, |_, state| !state.broken.completed_changed),
    (SAME_ANSWER, answers_are_the_same),
    (HELD, |_, state| !state.broken.started_under_hold),
    (LAPSED, |_, state| !state.broken.started_beside_a_live_lease),
    (NOT_STUCK, is_free_in_the_end),
    (NOT_BY_ITSELF, |_, state| !state.broken.kept_out_by_itself),
    (LIVING, |_, state| !state.broken.taken_from_the_living),
    (SHARED, |_, state| !state.broken.started_after_waiting),
    (ONE_EFFECT, |_, state| {
        state.ledger.effects.count_ones() <= 1
    }),
];

/// One for the checker, which takes its time for each.
pub(crate) fn all() -> Vec<Property<Checked>> {
    vec![Property::always(
        "all of them",
        |checked: &Checked, state| broken(checked, state).next().is_none(),
    )]
}

/// Which of the properties that are looked at a state does not have.
pub(crate) fn broken(checked: &Checked, state: &State) -> impl Iterator<Item = &'static str> {
    ALL.iter()
        .filter(|(name, _)| checked.looks_at(name))
        .filter(move |(_, holds)| !holds(checked, state))
        .map(|(name, _)| *name)
}

/// Whoever was given a lease that is alive by its own clock, and has not ended its run, owns the
/// record. There is one record, so two of them cannot be.
fn each_live_lease_is_the_records(checked: &Checked, state: &State) -> bool {
    (0..ATTEMPTS as Id).all(|id| {
        let attempt = state.attempt(id);
        !counts_on_its_lease(attempt)
            || !checked.is_live(state, attempt)
            || matches!(
                state.record,
                Record::InProgress(holding) if holding.owner == owner_id(state, id)
            )
    })
}

fn counts_on_its_lease(attempt: &Attempt) -> bool {
    matches!(
        attempt.phase,
        Phase::Granted | Phase::At(At::AskingFirst { .. } | At::Running | At::AskingAfter)
    )
}

/// As long as the key was not forgotten in between.
fn answers_are_the_same(_: &Checked, state: &State) -> bool {
    let uses_of = |answer: Id| state.attempt(answer).uses;
    let given = || state.attempts.iter().filter_map(|attempt| attempt.got);
    given().all(|one| given().all(|other| one == other || uses_of(one) != uses_of(other)))
}

/// If nothing more is done, then within the time that a lease takes to lapse, whatever the
/// clocks, a claim is let through or answered; an orphan that is held, when its record expires.
fn is_free_in_the_end(checked: &Checked, state: &State) -> bool {
    let lapsed = state.time + SKEW + LEASE + SKEW + 1;
    let serves = |now: Tick| {
        matches!(
            checked.would_serve(state, now),
            Decision::Acquire { .. } | Decision::Replay
        )
    };
    if serves(lapsed) {
        return true;
    }
    let Record::InProgress(holding) = state.record else {
        return false;
    };
    checked.setting.policy == Policy::Hold
        && checked.would_serve(state, lapsed) == Decision::Orphaned
        && holding.expires <= state.time + SKEW + checked.setting.retention
        && serves(holding.expires.max(lapsed))
}
