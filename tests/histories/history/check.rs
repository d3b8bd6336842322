//! Holds a history against what one node without faults could have done.

use std::collections::HashMap;

use super::event::{Claimed, End, Event, Id, Reply, Stored, What, Written};
use super::plan::{Plan, Policy};
use super::rule::{Rule, Violation};
use super::spec::Spec;

/// Everything in `events` that must not be.
pub(crate) fn check(plan: &Plan, events: &[Event]) -> Vec<Violation> {
    let mut found = Vec::new();
    for key in 0..plan.keys {
        let mut checker = Checker::new(plan, key);
        for event in events.iter().filter(|event| event.key == key) {
            checker.see(event);
        }
        checker.at_the_end();
        found.append(&mut checker.found);
    }
    found
}

struct Request {
    node: usize,
    content: u64,
    is_probe: bool,
    is_over: bool,
    /// Before it was sent.
    was_answered: bool,
    run: Option<usize>,
}

struct Run {
    node: usize,
    content: u64,
    owner: Option<Id>,
    ended: Option<End>,
    has_effect: bool,
    is_crashed: bool,
    /// What it answered that was given before it was recorded.
    pending: Option<String>,
}

struct Checker<'a> {
    plan: &'a Plan,
    key: usize,
    found: Vec<Violation>,
    spec: Spec,
    requests: HashMap<usize, Request>,
    runs: HashMap<usize, Run>,
    /// Who got which token last, and whether its work began. Once a key was given back, a token
    /// may come again from a clock that is behind.
    leases: HashMap<u64, (Id, bool)>,
    /// Bodies of all answers of which the store said that it has them.
    recorded: Vec<String>,
    /// Bodies of all answers that the store may have.
    in_doubt: Vec<String>,
    /// All answers of requests that were carried out, with the node that gave them.
    given: Vec<(String, usize)>,
    failures: usize,
}

impl<'a> Checker<'a> {
    fn new(plan: &'a Plan, key: usize) -> Self {
        Self {
            plan,
            key,
            found: Vec::new(),
            spec: Spec::new(plan),
            requests: HashMap::new(),
            runs: HashMap::new(),
            leases: HashMap::new(),
            recorded: Vec::new(),
            in_doubt: Vec::new(),
            given: Vec::new(),
            failures: 0,
        }
    }

    fn fail(&mut self, rule: Rule, told: impl Into<String>) {
        self.found.push(Violation {
            key: self.key,
            rule,
            told: told.into(),
        });
    }

    fn see(&mut self, event: &Event) {
        match &event.what {
            What::Sent {
                request,
                node,
                content,
                is_probe,
            } => {
                let sent = Request {
                    node: *node,
                    content: *content,
                    is_probe: *is_probe,
                    is_over: false,
                    was_answered: self.spec.is_completed_for(*content),
                    run: None,
                };
                self.requests.insert(*request, sent);
            }
            What::Left { request } => {
                if let Some(request) = self.requests.get_mut(request) {
                    request.is_over = true;
                }
            }
            What::Answered { request, reply } => self.see_answer(*request, reply),
            What::Started {
                run,
                request,
                token,
            } => self.see_start(*run, *request, *token),
            What::Effect { run, is_refused } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.has_effect |= !is_refused;
                }
            }
            What::Ended { run, how } => {
                if let Some(run) = self.runs.get_mut(run) {
                    run.ended = Some(*how);
                }
            }
            What::Crashed { node } => {
                for run in self.runs.values_mut().filter(|run| run.node == *node) {
                    run.is_crashed = true;
                }
                self.failures += 1;
            }
            What::Failed { .. } => self.failures += 1,
            What::Asked { .. } => {}
            What::Stored(stored) => self.see_store(stored),
            What::Stuck(told) => self.fail(Rule::NoKeyIsStuck, told.clone()),
        }
    }

    fn see_store(&mut self, stored: &Stored) {
        if let Err(told) = self.spec.step(stored) {
            self.fail(Rule::StoreKeepsToItsSpec, told);
        }
        match stored {
            Stored::Claim {
                owner,
                gave: Claimed::Acquired { token, .. },
                ..
            } => {
                let lease = self.leases.entry(*token).or_insert((*owner, false));
                if lease.0 != *owner {
                    *lease = (*owner, false);
                }
            }
            Stored::Completing { body, .. } if !self.plan.is_exact => {
                self.in_doubt.push(body.clone());
            }
            Stored::Complete {
                body,
                gave: Written::Applied,
                ..
            } => {
                if self.recorded.iter().any(|recorded| recorded != body) {
                    let told = format!("{body:?} is recorded, and {:?} was", self.recorded);
                    self.fail(Rule::OneAnswer, told);
                }
                self.recorded.push(body.clone());
            }
            _ => {}
        }
    }

    fn see_start(&mut self, run: usize, request: usize, token: u64) {
        let lease = self.leases.get_mut(&token);
        let (owner, is_second) = match lease {
            Some((owner, has_begun)) => (Some(*owner), std::mem::replace(has_begun, true)),
            None => (None, false),
        };
        if owner.is_none() || is_second {
            self.fail(
                Rule::EachStartHasItsLease,
                format!("run {run} with token {token}, a second one: {is_second}"),
            );
        }
        if let Some(owner) = owner
            && let Err(told) = self.spec.may_start(owner)
        {
            self.fail(Rule::EachStartHasItsLease, format!("run {run}: {told}"));
        }
        let again = self.runs.iter().find(|(_, earlier)| {
            self.plan.policy == Policy::Hold && earlier.ended != Some(NOTHING_DONE)
        });
        if let Some((earlier, _)) = again {
            let told = format!("run {run}, and run {earlier} has not said that nothing was done");
            self.fail(Rule::DoneOnce, told);
        }
        let Some(sent) = self.requests.get_mut(&request) else {
            return self.fail(Rule::AnswersAreTrue, format!("nobody sent {request}"));
        };
        sent.run = Some(run);
        let started = Run {
            node: sent.node,
            content: sent.content,
            owner,
            ended: None,
            has_effect: false,
            is_crashed: false,
            pending: None,
        };
        if let Some(owner) = owner {
            self.spec.learn(owner, started.content);
        }
        self.runs.insert(run, started);
    }

    fn see_answer(&mut self, number: usize, reply: &Reply) {
        let Some(request) = self.requests.get_mut(&number) else {
            return self.fail(Rule::AnswersAreTrue, format!("nobody sent {number}"));
        };
        request.is_over = true;
        let (node, content, is_probe) = (request.node, request.content, request.is_probe);
        let run = request.run.and_then(|run| self.runs.get_mut(&run));
        let ended = run.as_ref().and_then(|run| run.ended);
        let has_run = run.is_some();
        let told = format!("request {number} got {reply:?}");
        let is_recorded = self.recorded.contains(&reply.body);
        if reply.status == 201 {
            if !reply.body.ends_with(&format!("content {content}")) {
                self.fail(Rule::AnswersAreTrue, told.clone());
            }
            self.given.push((reply.body.clone(), node));
        }
        let is_true = match (reply.outcome.as_str(), reply.status) {
            ("executed: stored", 201) => ended == Some(End::Answers(201)) && is_recorded,
            ("executed: pending", 201) => {
                if let Some(run) = self
                    .requests
                    .get(&number)
                    .and_then(|request| self.runs.get_mut(&request.run?))
                {
                    run.pending = Some(reply.body.clone());
                }
                self.plan.answer_unrecorded && ended == Some(End::Answers(201))
            }
            ("executed: pending", 503) => {
                !self.plan.answer_unrecorded && ended == Some(End::Answers(201))
            }
            ("executed: lease-lost", 409) => ended == Some(End::Answers(201)),
            ("executed: released" | "executed: pending" | "executed: lease-lost", 400) => {
                ended == Some(NOTHING_DONE)
            }
            ("executed: pending" | "executed: lease-lost", status @ (408 | 500)) => {
                ended == Some(End::Answers(status))
            }
            // The outcome is unknown, and the policy decides.
            ("executed: released", status @ (408 | 500)) => {
                self.plan.policy != Policy::Hold && ended == Some(End::Answers(status))
            }
            ("executed: unknown", status @ (408 | 500)) => {
                self.plan.policy != Policy::Retake && ended == Some(End::Answers(status))
            }
            ("executed: stored", status @ (408 | 500)) => {
                self.plan.policy == Policy::Reconcile && ended == Some(End::Answers(status))
            }
            ("panicked", 0) => ended == Some(End::Panics),
            ("replayed", 201) => return self.see_replay(node, reply, is_probe, &told),
            _ => return self.see_refusal(number, reply, has_run, is_probe, &told),
        };
        if !is_true {
            self.fail(Rule::AnswersAreTrue, told.clone());
        }
        if is_probe && reply.status != 201 {
            self.fail(Rule::NoKeyIsStuck, told);
        }
    }

    fn see_replay(&mut self, node: usize, reply: &Reply, is_probe: bool, told: &str) {
        let is_recorded =
            self.recorded.contains(&reply.body) || self.in_doubt.contains(&reply.body);
        // What a client of this node was given, or would have been if it had not left; or what
        // the business system says. In the end, all that counts is recorded.
        let is_known_here = self.plan.answer_unrecorded
            && !is_probe
            && self.runs.iter().any(|(number, run)| {
                let is_given = run.node == node && run.ended == Some(End::Answers(201));
                let is_found = self.plan.policy == Policy::Reconcile && run.has_effect;
                (is_given || is_found) && is_of_run(&reply.body, *number)
            });
        if !is_recorded && !is_known_here {
            self.fail(Rule::ReplaysAreOfRecords, told);
        }
    }

    fn see_refusal(
        &mut self,
        number: usize,
        reply: &Reply,
        has_run: bool,
        is_probe: bool,
        told: &str,
    ) {
        let Request {
            content,
            was_answered,
            ..
        } = self.requests[&number];
        let is_exact = self.plan.is_exact;
        let reason = reply.outcome.strip_prefix("refused: ");
        if has_run {
            return self.fail(Rule::RefusalsHaveReasons, format!("{told}, and it ran"));
        }
        let has_reason = match (reason, reply.status) {
            (Some("in-progress"), 409) => !(is_probe || is_exact && self.leases.is_empty()),
            (Some("key-reused" | "outcome-unknown"), _) if was_answered => false,
            (Some("key-reused"), 422) => !is_exact || self.spec.was_claimed_for_other(content),
            (Some("outcome-unknown"), 409) => match self.plan.policy {
                Policy::Retake => false,
                Policy::Hold => {
                    let is_lost = |run: &Run| run.ended != Some(NOTHING_DONE);
                    self.failures > 0 || self.runs.values().any(is_lost)
                }
                Policy::Reconcile => !is_probe,
            },
            // The business system had an answer, and the store did not take it.
            (Some("lease-lost"), 409) => self.plan.policy == Policy::Reconcile && !is_probe,
            (Some("not-recorded"), 503) => {
                self.plan.policy == Policy::Reconcile && !self.plan.answer_unrecorded && !is_probe
            }
            (Some("store-unavailable"), 503) => !is_exact || !is_probe && self.failures > 0,
            _ => false,
        };
        if !has_reason {
            let rule = match is_probe {
                true => Rule::NoKeyIsStuck,
                false => Rule::RefusalsHaveReasons,
            };
            self.fail(rule, told);
        }
    }

    fn at_the_end(&mut self) {
        let open = self.requests.iter().filter(|(_, request)| !request.is_over);
        let open: Vec<_> = open.map(|(number, _)| *number).collect();
        if !open.is_empty() {
            self.fail(Rule::EveryoneIsAnswered, format!("requests {open:?}"));
        }
        self.one_answer();
        self.done_once();
    }

    fn one_answer(&mut self) {
        let Some(recorded) = self.recorded.first().cloned() else {
            return;
        };
        for (body, _) in std::mem::take(&mut self.given) {
            // The admitted case: it was given before it was recorded, and then it never was.
            let excuse = self.plan.answer_unrecorded
                && self
                    .runs
                    .iter()
                    .any(|(number, run)| is_of_run(&body, *number) && self.lost_its_lease(run));
            if body != recorded && !excuse {
                let told = format!("{body:?} was given, and {recorded:?} is recorded");
                self.fail(Rule::OneAnswer, told);
            }
        }
    }

    fn done_once(&mut self) {
        let mut done: Vec<_> = self.runs.iter().filter(|(_, run)| run.has_effect).collect();
        done.sort_by_key(|(number, _)| **number);
        let mut found = Vec::new();
        for (place, (number, run)) in done.iter().enumerate() {
            let is_told = self.recorded.iter().any(|body| is_of_run(body, **number));
            let excuse = run.ended != Some(End::Answers(201)) || self.lost_its_lease(run);
            if !is_told && !excuse && run.ended.is_some() {
                found.push((Rule::NoEffectIsLost, format!("of run {number}")));
            }
            let is_last = place + 1 == done.len();
            if !is_last && (self.plan.policy != Policy::Retake || !excuse) {
                let told = format!("after run {number} it was done again");
                found.push((Rule::DoneOnce, told));
            }
        }
        for (rule, told) in found {
            self.fail(rule, told);
        }
    }

    /// Whether the key went to another attempt, or may go to it.
    fn lost_its_lease(&self, run: &Run) -> bool {
        run.is_crashed || run.owner.is_some_and(|owner| self.spec.lapsed(owner))
    }
}

/// The one end that says so.
const NOTHING_DONE: End = End::Answers(400);

fn is_of_run(body: &str, run: usize) -> bool {
    body.contains(&format!("run {run} "))
}
