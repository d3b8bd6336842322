//! The checker finds what is wrong in histories that were made by hand.

use std::time::Duration;

use super::check::check;
use super::event::{Claimed, End, Event, Id, Reply, Stored, What, Written, body_of_run};
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
        clocks_jump: false,
        blocks_threads: false,
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
        waits: true,
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

fn releases(owner: u32, is_free: bool) -> What {
    What::Stored(Stored::Release {
        owner: Id(owner),
        is_free,
        gave: Written::Applied,
    })
}

fn frees(owner: u32) -> What {
    releases(owner, true)
}

fn asks(token: u64, has_effect: bool) -> What {
    What::Asked { token, has_effect }
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
    body_of_run(0, run, 201, 0)
}

fn failure(run: usize, status: u16) -> String {
    body_of_run(0, run, status, 0)
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
        ends(0, 201),
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
    assert_eq!(broken, [Rule::EndsKeepTheirClass, Rule::NoEffectIsLost]);
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
        waits: true,
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

/// Request 0 runs on node 0, and ends with `status` before its lease is released.
fn failed_with(status: u16) -> Vec<What> {
    vec![
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        ends(0, status),
    ]
}

#[test]
fn a_shared_end_is_that_of_a_run_that_was_waited_for() {
    for (policy, status, is_free, outcome) in [
        (Policy::Retake, 504, true, "executed: released"),
        (Policy::Hold, 504, false, "executed: unknown"),
        (Policy::Hold, 400, true, "executed: released"),
    ] {
        let shares = |waiting: What, told: &str| {
            let mut history = failed_with(status);
            history.insert(3, waiting);
            history.push(releases(1, is_free));
            history.push(gets(0, status, outcome, &failure(0, status)));
            history.push(gets(2, status, "replayed", told));
            broken_by(policy, &history)
        };
        let shared = failure(0, status);
        assert_eq!(shares(sent(2, 0), &shared), []);
        // Another run's, or another response of it.
        let found = [Rule::SharedEndsWereWaitedFor];
        assert_eq!(shares(sent(2, 0), &failure(1, status)), found);
        assert_eq!(shares(sent(2, 0), &failure(0, 408)), found);
        let [mut elsewhere, mut never_waits] = [sent(2, 0), sent(2, 0)];
        if let What::Sent { node, .. } = &mut elsewhere {
            *node = 1;
        }
        if let What::Sent { waits, .. } = &mut never_waits {
            *waits = false;
        }
        assert_eq!(shares(elsewhere, &shared), found);
        assert_eq!(shares(never_waits, &shared), found);
        let of_another_request = shares(sent(2, 1), &shared);
        assert!(of_another_request.contains(&Rule::SharedEndsWereWaitedFor));
    }
}

#[test]
fn a_shared_end_of_a_run_that_was_over_before_is_found() {
    let mut history = failed_with(500);
    history.extend([
        frees(1),
        gets(0, 500, "executed: released", &failure(0, 500)),
        sent(2, 0),
        gets(2, 500, "replayed", &failure(0, 500)),
    ]);
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::SharedEndsWereWaitedFor]);
    // Nor is it shared before it is there.
    let history = [
        sent(0, 0),
        acquires(1, 10, 1),
        starts(0, 0, 10),
        sent(2, 0),
        gets(2, 500, "replayed", &failure(0, 500)),
        What::Left { request: 0 },
    ];
    let broken = broken_by(Policy::Retake, &history);
    assert_eq!(broken, [Rule::SharedEndsWereWaitedFor]);
}

#[test]
fn an_unknown_outcome_is_told_under_retake_to_those_alone_who_waited_for_it() {
    let then = |how, waits_from: usize| {
        let mut history = vec![
            sent(0, 0),
            acquires(1, 10, 1),
            starts(0, 0, 10),
            What::Ended { run: 0, how },
            frees(1),
            What::Left { request: 0 },
        ];
        history.insert(waits_from, sent(2, 0));
        history.push(gets(2, 409, "refused: outcome-unknown", ""));
        broken_by(Policy::Retake, &history)
    };
    assert_eq!(then(End::Panics, 3), []);
    assert_eq!(then(End::Panics, 6), [Rule::RefusalsHaveReasons]);
    assert_eq!(then(End::Answers(400), 3), [Rule::RefusalsHaveReasons]);
}

#[test]
fn a_lease_that_ends_otherwise_than_its_run_is_found() {
    let end = |policy, status, asked: Option<bool>, last: What| {
        let mut history = failed_with(status);
        history.extend(asked.map(|has_effect| asks(10, has_effect)));
        history.extend([last, What::Left { request: 0 }]);
        broken_by(policy, &history)
    };
    let (free, orphan) = (frees(1), releases(1, false));
    let found = [Rule::EndsKeepTheirClass];
    for policy in [Policy::Retake, Policy::Hold, Policy::Reconcile] {
        assert_eq!(end(policy, 400, None, free.clone()), []);
        assert_eq!(end(policy, 400, None, orphan.clone()), found);
        // A final answer is not given up.
        assert_eq!(end(policy, 201, None, free.clone()), found);
    }
    for status in [408, 500, 504] {
        assert_eq!(end(Policy::Retake, status, None, free.clone()), []);
        assert_eq!(end(Policy::Retake, status, None, orphan.clone()), found);
        assert_eq!(end(Policy::Hold, status, None, orphan.clone()), []);
        assert_eq!(end(Policy::Hold, status, None, free.clone()), found);
        let reconcile = Policy::Reconcile;
        assert_eq!(end(reconcile, status, None, orphan.clone()), []);
        assert_eq!(end(reconcile, status, None, free.clone()), found);
        assert_eq!(end(reconcile, status, Some(false), free.clone()), []);
        assert_eq!(end(reconcile, status, Some(true), free.clone()), found);
        let completes = completes(1, 0, Written::Applied);
        assert_eq!(end(reconcile, status, Some(true), completes.clone()), []);
        assert_eq!(
            end(reconcile, status, Some(false), completes.clone()),
            found
        );
        assert_eq!(end(Policy::Hold, status, None, completes), found);
    }
}

#[test]
fn hold_begins_again_after_nothing_done_alone() {
    for (status, is_free) in [(400, true), (408, false), (500, false), (504, false)] {
        let mut history = failed_with(status);
        history.extend([
            releases(1, is_free),
            sent(1, 0),
            acquires(2, 20, if is_free { 1 } else { 2 }),
            starts(1, 1, 20),
            What::Left { request: 0 },
            What::Left { request: 1 },
        ]);
        let broken = broken_by(Policy::Hold, &history);
        assert_eq!(broken.contains(&Rule::DoneOnce), status != 400, "{status}");
    }
}

#[test]
fn a_takeover_within_the_process_of_a_living_run_is_found() {
    let now = 11 + LEASE + SKEW;
    let then = |request| {
        let history = [
            sent(0, 0),
            acquires(1, 10, 1),
            starts(0, 0, 10),
            sent(request, 0),
            acquires(2, now, 2),
            starts(1, request, now),
            What::Left { request: 0 },
            What::Left { request },
        ];
        broken_by(Policy::Retake, &history)
    };
    // On the other node.
    assert_eq!(then(1), []);
    assert_eq!(then(2), [Rule::TheLivingKeepTheirLeases]);
}

#[test]
fn a_probe_on_real_time_may_be_repeated_until_it_is_answered() {
    let probe = |request| What::Sent {
        request,
        node: 0,
        content: 0,
        waits: true,
        is_probe: true,
    };
    let real_time = Plan {
        is_exact: false,
        ..plan(Policy::Retake)
    };
    let broken = |then: &[What]| {
        let events = first_and(then).into_iter();
        let events: Vec<_> = events
            .map(|what| Event {
                at: 0,
                key: 0,
                what,
            })
            .collect();
        let found = check(&real_time, &events).into_iter();
        found.map(|violation| violation.rule).collect::<Vec<_>>()
    };
    let answered = gets(2, 201, "replayed", &body(0));
    for (status, outcome) in [(409, "refused: in-progress"), (503, "executed: pending")] {
        let refused = gets(1, status, outcome, "");
        let repeated = [probe(1), refused.clone(), probe(2), answered.clone()];
        assert_eq!(broken(&repeated), []);
        assert_eq!(broken(&[probe(1), refused]), [Rule::NoKeyIsStuck]);
    }
}
