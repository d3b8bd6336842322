//! The checker finds what is wrong in histories that were made by hand.

use std::time::Duration;

use super::check::check;
use super::event::{Claimed, End, Event, Id, Reply, Stored, What, Written};
use super::plan::{Plan, Policy};
use super::rule::Rule;

const LEASE: u64 = 3_000_000;
const SKEW: u64 = 200_000;

fn plan(policy: Policy) -> Plan {
    Plan {
        seed: 0,
        policy,
        answer_unrecorded: false,
        nodes: 2,
        keys: 1,
        clients: 1,
        requests_each: 1,
        faults: 0,
        is_calm: false,
        lease: Duration::from_micros(LEASE),
        skew: Duration::from_micros(SKEW),
        is_exact: true,
    }
}

/// The rules that a history breaks.
fn broken_by(policy: Policy, happened: &[What]) -> Vec<Rule> {
    let events: Vec<_> = happened
        .iter()
        .map(|what| Event {
            at: 0,
            key: 0,
            what: what.clone(),
        })
        .collect();
    let mut rules: Vec<_> = check(&plan(policy), &events)
        .into_iter()
        .map(|violation| violation.rule)
        .collect();
    rules.dedup();
    rules
}

fn sent(request: usize, content: u64) -> What {
    What::Sent {
        request,
        node: request % 2,
        content,
        is_probe: false,
    }
}

fn claim(owner: u32, content: u32, now: u64, gave: Claimed) -> What {
    What::Stored(Stored::Claim {
        owner: Id(owner),
        content: Id(content),
        now,
        takes_over: true,
        alive: Vec::new(),
        gave,
    })
}

fn acquires(owner: u32, now: u64, attempt: u32) -> What {
    let gave = Claimed::Acquired {
        token: now,
        attempt,
        deadline: now + LEASE,
    };
    claim(owner, 0, now, gave)
}

fn renews(owner: u32, deadline: u64) -> What {
    What::Stored(Stored::Renew {
        owner: Id(owner),
        deadline,
        gave: Written::Applied,
    })
}

fn completes(owner: u32, run: usize, gave: Written) -> What {
    What::Stored(Stored::Complete {
        owner: Id(owner),
        body: body(run),
        gave,
    })
}

fn frees(owner: u32) -> What {
    What::Stored(Stored::Release {
        owner: Id(owner),
        is_free: true,
        gave: Written::Applied,
    })
}

fn starts(run: usize, request: usize, token: u64) -> What {
    What::Started {
        run,
        request,
        token,
    }
}

fn has_effect(run: usize) -> What {
    What::Effect {
        run,
        is_refused: false,
    }
}

fn ends(run: usize, status: u16) -> What {
    What::Ended {
        run,
        how: End::Answers(status),
    }
}

fn body(run: usize) -> String {
    format!("order 0 run {run} content 0")
}

fn gets(request: usize, status: u16, outcome: &str, body: &str) -> What {
    What::Answered {
        request,
        reply: Reply {
            status,
            outcome: outcome.to_owned(),
            body: body.to_owned(),
        },
    }
}

/// Request 0 is carried out at the time 10, as run 0 of owner 1.
fn first() -> Vec<What> {
    vec![
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        has_effect(0),
        ends(0, 201),
        completes(1, 0, Written::Applied),
        gets(0, 201, "executed: stored", &body(0)),
    ]
}

fn first_and(then: &[What]) -> Vec<What> {
    [first(), then.to_vec()].concat()
}

#[test]
fn a_history_that_may_be_breaks_no_rule() {
    let replayed = Claimed::Completed { body: body(0) };
    let history = first_and(&[
        sent(1, 0),
        claim(2, 0, 20, replayed),
        gets(1, 201, "replayed", &body(0)),
        sent(2, 1),
        claim(3, 1, 30, Claimed::Reused),
        gets(2, 422, "refused: key-reused", ""),
    ]);
    for policy in [Policy::Retake, Policy::Hold, Policy::Reconcile] {
        assert_eq!(broken_by(policy, &history), []);
    }
}

#[test]
fn a_takeover_of_a_lapsed_lease_breaks_no_rule_and_of_a_live_one_does() {
    let then = |now: u64| {
        vec![
            sent(0, 0),
            acquires(1, 10, 1),
            starts(0, 0, 10),
            renews(1, 20 + LEASE),
            // One that comes late.
            renews(1, 15 + LEASE),
            sent(1, 0),
            acquires(2, now, 2),
            starts(1, 1, now),
            has_effect(1),
            ends(1, 201),
            completes(2, 1, Written::Applied),
            gets(1, 201, "executed: stored", &body(1)),
            What::Left { request: 0 },
        ]
    };
    let lapsed = 20 + LEASE + SKEW + 1;
    assert_eq!(broken_by(Policy::Retake, &then(lapsed)), []);
    let broken = broken_by(Policy::Retake, &then(lapsed - 1));
    assert_eq!(broken, [Rule::StoreKeepsToItsSpec]);
    let broken = broken_by(Policy::Hold, &then(lapsed));
    assert_eq!(broken, [Rule::DoneOnce]);
}

#[test]
fn a_takeover_of_a_run_that_is_alive_in_the_claimers_process_is_found() {
    let then = |gave| {
        let claim = What::Stored(Stored::Claim {
            owner: Id(2),
            content: Id(0),
            now: 10 + 100 * LEASE,
            takes_over: true,
            alive: vec![Id(1)],
            gave,
        });
        let refused = gets(1, 409, "refused: in-progress", "");
        let history = [sent(0, 0), acquires(1, 10, 1), starts(0, 0, 10), sent(1, 0)];
        let end = [
            has_effect(0),
            ends(0, 201),
            completes(1, 0, Written::Applied),
            gets(0, 201, "executed: stored", &body(0)),
        ];
        [&history[..], &[claim, refused], &end].concat()
    };
    assert_eq!(broken_by(Policy::Retake, &then(Claimed::InProgress)), []);
    let taken_over = Claimed::Acquired {
        token: 11,
        attempt: 2,
        deadline: 10 + 101 * LEASE,
    };
    let broken = broken_by(Policy::Retake, &then(taken_over));
    assert!(broken.contains(&Rule::StoreKeepsToItsSpec), "{broken:?}");
}

#[test]
fn a_second_run_after_an_answer_is_found() {
    let then = [sent(1, 0), acquires(2, 20, 1), starts(1, 1, 20)];
    let broken = broken_by(Policy::Retake, &first_and(&then));
    assert!(broken.contains(&Rule::StoreKeepsToItsSpec), "{broken:?}");
}

#[test]
fn a_start_without_a_lease_is_found() {
    let history = [sent(0, 0), starts(0, 0, 10), What::Left { request: 0 }];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::EachStartHasItsLease]);
    let then = [sent(1, 0), starts(1, 1, 10), What::Left { request: 1 }];
    let broken = broken_by(Policy::Retake, &first_and(&then));
    assert_eq!(broken, [Rule::EachStartHasItsLease]);
}

#[test]
fn a_start_whose_lease_has_gone_to_another_is_found() {
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        acquires(2, 11 + LEASE + SKEW, 2),
        starts(0, 0, 10),
        What::Left { request: 0 },
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::EachStartHasItsLease]);
}

#[test]
fn two_answers_to_one_key_are_found() {
    let mut history = first();
    history.insert(5, completes(1, 7, Written::Applied));
    let broken = broken_by(Policy::Retake, &history);
    assert!(broken.contains(&Rule::OneAnswer), "{broken:?}");
    // One that only its client knows.
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        ends(0, 201),
        gets(0, 201, "executed: stored", &body(0)),
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::AnswersAreTrue]);
}

#[test]
fn an_answer_of_a_late_finisher_is_found() {
    let now = 11 + LEASE + SKEW;
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        has_effect(0),
        sent(1, 0),
        acquires(2, now, 2),
        starts(1, 1, now),
        has_effect(1),
        ends(1, 201),
        completes(2, 1, Written::Applied),
        gets(1, 201, "executed: stored", &body(1)),
        ends(0, 201),
        completes(1, 0, Written::LeaseLost),
        gets(0, 201, "executed: lease-lost", &body(0)),
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert!(broken.contains(&Rule::OneAnswer), "{broken:?}");
}

#[test]
fn a_late_finisher_that_overwrites_is_found() {
    let now = 11 + LEASE + SKEW;
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        sent(1, 0),
        acquires(2, now, 2),
        completes(1, 0, Written::Applied),
        What::Left { request: 0 },
        What::Left { request: 1 },
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::StoreKeepsToItsSpec]);
}

#[test]
fn a_replay_of_what_is_not_recorded_or_of_another_request_is_found() {
    let then = [sent(1, 0), gets(1, 201, "replayed", &body(5))];
    let broken = broken_by(Policy::Retake, &first_and(&then));
    assert!(broken.contains(&Rule::ReplaysAreOfRecords), "{broken:?}");
    let then = [sent(1, 1), gets(1, 201, "replayed", &body(0))];
    let broken = broken_by(Policy::Retake, &first_and(&then));
    assert_eq!(broken, [Rule::AnswersAreTrue]);
}

#[test]
fn a_refusal_without_a_reason_is_found() {
    for (status, outcome) in [
        (409, "refused: in-progress"),
        (422, "refused: key-reused"),
        (409, "refused: outcome-unknown"),
        (503, "refused: store-unavailable"),
        (503, "refused: too-many-runs"),
        (200, "executed: stored"),
    ] {
        let history = [sent(0, 0), gets(0, status, outcome, "")];
        let broken = broken_by(Policy::Retake, &history);
        assert_eq!(broken.len(), 1, "{outcome}: {broken:?}");
    }
    // The key is its own.
    let then = [sent(1, 0), gets(1, 422, "refused: key-reused", "")];
    let broken = broken_by(Policy::Retake, &first_and(&then));
    assert_eq!(broken, [Rule::RefusalsHaveReasons]);
}

#[test]
fn a_refusal_of_a_request_that_ran_is_found() {
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        gets(0, 409, "refused: in-progress", ""),
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::RefusalsHaveReasons]);
}

#[test]
fn an_effect_that_is_lost_is_found() {
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        has_effect(0),
        ends(0, 201),
        frees(1),
        What::Left { request: 0 },
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::NoEffectIsLost]);
}

#[test]
fn work_that_is_done_twice_is_found() {
    let now = 11 + LEASE + SKEW;
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        has_effect(0),
        sent(1, 0),
        acquires(2, now, 2),
        starts(1, 1, now),
        has_effect(1),
        ends(1, 201),
        completes(2, 1, Written::Applied),
        gets(1, 201, "executed: stored", &body(1)),
        What::Left { request: 0 },
    ];
    assert_eq!(broken_by(Policy::Retake, &history), []);
    let broken = broken_by(Policy::Reconcile, &history);
    assert_eq!(broken, [Rule::DoneOnce]);
}

#[test]
fn a_request_without_an_answer_is_found() {
    let broken = broken_by(Policy::Retake, &[sent(0, 0)]);
    assert_eq!(broken, [Rule::EveryoneIsAnswered]);
}

#[test]
fn a_key_that_is_stuck_is_found() {
    let probe = What::Sent {
        request: 1,
        node: 0,
        content: 0,
        is_probe: true,
    };
    for (status, outcome) in [
        (409, "refused: in-progress"),
        (409, "refused: outcome-unknown"),
        (503, "refused: store-unavailable"),
    ] {
        let then = [probe.clone(), gets(1, status, outcome, "")];
        let broken = broken_by(Policy::Reconcile, &first_and(&then));
        assert_eq!(broken, [Rule::NoKeyIsStuck], "{outcome}");
    }
    let stuck = What::Stuck("1 run in flight".to_owned());
    let broken = broken_by(Policy::Retake, &first_and(&[stuck]));
    assert_eq!(broken, [Rule::NoKeyIsStuck]);
}
