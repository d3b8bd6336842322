//! Holds a history against what one node without faults could have done.

use std::collections::{HashMap, HashSet};

use tower_idempotency::testing::{Call, Fault};

use super::event::{Claimed, End, Event, Id, Injected, Reply, Stored, What, Written, body_of_run};
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
    waits: bool,
    is_probe: bool,
    is_over: bool,
    /// How many events of the key there were before it.
    sent_at: usize,
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
    /// How many events of the key there were when its node knew that its lease had ended.
    over_at: Option<usize>,
    /// Whether the business system was asked at its end, and what it knew.
    asked: Option<bool>,
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
    /// Writes whose answer the node does not hear.
    unheard: HashSet<(usize, Call)>,
    /// On real time, what was last told to a probe of a node that is to be repeated: a store, too,
    /// may be slow for a while.
    open: HashMap<(usize, u64), String>,
    /// Events of the key so far.
    seen: usize,
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
            unheard: HashSet::new(),
            open: HashMap::new(),
            seen: 0,
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
        self.seen += 1;
        match &event.what {
            What::Sent {
                request,
                node,
                content,
                waits,
                is_probe,
            } => {
                let sent = Request {
                    node: *node,
                    content: *content,
                    waits: *waits,
                    is_probe: *is_probe,
                    is_over: false,
                    sent_at: self.seen,
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
            What::Failed { node, call, fault } => {
                self.failures += 1;
                let is_heard = matches!(
                    fault,
                    Injected::Store(Fault::Delayed(_) | Fault::Repeated(_))
                );
                if !is_heard {
                    self.unheard.insert((*node, *call));
                }
            }
            What::Asked { token, has_effect } => self.see_asked(*token, *has_effect),
            What::Stored(stored) => self.see_store(stored),
            What::Stuck(told) => self.fail(Rule::NoKeyIsStuck, told.clone()),
        }
    }

    fn see_store(&mut self, stored: &Stored) {
        if let Err(told) = self.spec.step(stored) {
            self.fail(Rule::StoreKeepsToItsSpec, told);
        }
        self.see_end(stored);
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

    /// What becomes of a lease follows from the end of its run.
    fn see_end(&mut self, stored: &Stored) {
        let gave = match stored {
            Stored::Complete { gave, .. } | Stored::Release { gave, .. } => *gave,
            _ => return,
        };
        let owner = stored.owner();
        let run = self.runs.iter_mut();
        let Some((number, run)) = run
            .map(|(number, run)| (*number, run))
            .find(|(_, run)| run.owner == Some(owner))
        else {
            // What was claimed, and not run: by one who had gone, or asked only.
            if matches!(stored, Stored::Complete { .. }) && self.plan.policy != Policy::Reconcile {
                self.fail(
                    Rule::EndsKeepTheirClass,
                    format!("{stored:?} without a run"),
                );
            }
            return;
        };
        if gave == Written::Failed {
            return;
        }
        let call = match stored {
            Stored::Complete { .. } => Call::Complete,
            _ => Call::Release,
        };
        if !self.unheard.remove(&(run.node, call)) {
            run.over_at.get_or_insert(self.seen);
        }
        let is_right = match (stored, run.ended) {
            (Stored::Complete { body, .. }, Some(End::Answers(201))) => is_of_run(body, number),
            (Stored::Complete { .. }, Some(end)) => end.is_unknown() && run.asked == Some(true),
            (Stored::Release { is_free, .. }, Some(end)) if end.says_nothing_done() => *is_free,
            (Stored::Release { is_free, .. }, Some(end)) if end.is_unknown() => {
                let is_to_be_free = match self.plan.policy {
                    Policy::Retake => true,
                    Policy::Hold => false,
                    Policy::Reconcile => run.asked == Some(false),
                };
                *is_free == is_to_be_free
            }
            _ => false,
        };
        if !is_right {
            let told = format!("{stored:?}, and run {number} ended with {:?}", run.ended);
            self.fail(Rule::EndsKeepTheirClass, told);
        }
    }

    fn see_asked(&mut self, token: u64, has_effect: bool) {
        let Some((owner, _)) = self.leases.get(&token) else {
            return;
        };
        let run = self.runs.values_mut().find(|run| run.owner == Some(*owner));
        // One that asks before it runs asks about another.
        if let Some(run) = run.filter(|run| run.ended.is_some()) {
            run.asked = Some(has_effect);
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
            let has_done_nothing = earlier.ended.is_some_and(End::says_nothing_done);
            self.plan.policy == Policy::Hold && !has_done_nothing
        });
        if let Some((earlier, _)) = again {
            let told = format!("run {run}, and run {earlier} has not said that nothing was done");
            self.fail(Rule::DoneOnce, told);
        }
        let Some(sent) = self.requests.get_mut(&request) else {
            return self.fail(Rule::AnswersAreTrue, format!("nobody sent {request}"));
        };
        sent.run = Some(run);
        let node = sent.node;
        let before = owner.and_then(|owner| self.spec.taken_from(owner));
        let living = self.runs.iter().find(|(_, earlier)| {
            let is_alive = earlier.ended.is_none() && !earlier.is_crashed;
            is_alive && earlier.node == node && before.is_some() && earlier.owner == before
        });
        if self.plan.is_exact
            && let Some((living, _)) = living
        {
            let told = format!("run {run} has that of run {living}, which goes on");
            self.fail(Rule::TheLivingKeepTheirLeases, told);
        }
        let Some(sent) = self.requests.get(&request) else {
            return;
        };
        let started = Run {
            node: sent.node,
            content: sent.content,
            owner,
            ended: None,
            has_effect: false,
            is_crashed: false,
            over_at: None,
            asked: None,
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
        let own = request.run;
        let run = own.and_then(|run| self.runs.get_mut(&run));
        let has_run = run.is_some();
        let ended = run.and_then(|run| {
            // Whoever waited for it was told before.
            run.over_at.get_or_insert(self.seen);
            run.ended
        });
        let is_own = own.is_some_and(|run| is_of_run(&reply.body, run));
        let told = format!("request {number} got {reply:?}");
        if is_probe && !self.plan.is_exact {
            self.open.remove(&(node, content));
            if reply.is_for_now() {
                self.open.insert((node, content), told);
                return;
            }
        }
        let is_recorded = self.recorded.contains(&reply.body);
        if !reply.body.is_empty() && !reply.body.ends_with(&format!("content {content}")) {
            self.fail(Rule::AnswersAreTrue, told.clone());
        }
        if reply.status == 201 {
            self.given.push((reply.body.clone(), node));
        }
        let is_executed = reply.outcome.starts_with("executed: ");
        if is_executed && !reply.body.is_empty() && !is_own {
            self.fail(Rule::AnswersAreTrue, told.clone());
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
                ended == Some(End::Answers(400))
            }
            ("executed: pending" | "executed: lease-lost", status @ (408 | 500 | 504)) => {
                ended == Some(End::Answers(status))
            }
            // The outcome is unknown, and the policy decides.
            ("executed: released", status @ (408 | 500 | 504)) => {
                self.plan.policy != Policy::Hold && ended == Some(End::Answers(status))
            }
            ("executed: unknown", status @ (408 | 500 | 504)) => {
                self.plan.policy != Policy::Retake && ended == Some(End::Answers(status))
            }
            ("executed: stored", status @ (408 | 500 | 504)) => {
                self.plan.policy == Policy::Reconcile && ended == Some(End::Answers(status))
            }
            ("panicked", 0) => ended == Some(End::Panics),
            ("replayed", 201) => return self.see_replay(node, reply, is_probe, &told),
            ("replayed", _) => return self.see_shared(number, reply, &told),
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

    /// A response that is no recorded one is that of a run in the same process, for which this
    /// request waited: it was sent before that run had ended its lease, and did not run itself.
    fn see_shared(&mut self, number: usize, reply: &Reply, told: &str) {
        let is_shared = self.waited_for(number).any(|(run, ended)| {
            let content = self.runs[&run].content;
            let is_its_response = ended == End::Answers(reply.status)
                && reply.body == body_of_run(self.key, run, reply.status, content);
            is_its_response && (ended.says_nothing_done() || ended.is_unknown())
        });
        if !is_shared {
            self.fail(Rule::SharedEndsWereWaitedFor, told);
        }
    }

    /// The runs that a request may have waited for, and got the end of.
    fn waited_for(&self, number: usize) -> impl Iterator<Item = (usize, End)> {
        let request = &self.requests[&number];
        let could_wait = request.waits && !request.is_probe && request.run.is_none();
        let runs = self.runs.iter().filter(move |(_, run)| {
            could_wait
                && run.node == request.node
                && run.content == request.content
                && run.over_at.is_none_or(|over| over > request.sent_at)
        });
        runs.filter_map(|(number, run)| Some((*number, run.ended?)))
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
                // There was no response to share: a panic, or one that nobody read for others.
                Policy::Retake => self.waited_for(number).any(|(_, end)| end.is_unknown()),
                Policy::Hold => {
                    let is_lost = |run: &Run| !run.ended.is_some_and(End::says_nothing_done);
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
        for told in std::mem::take(&mut self.open).into_values() {
            self.fail(Rule::NoKeyIsStuck, told);
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

fn is_of_run(body: &str, run: usize) -> bool {
    body.contains(&format!("run {run} "))
}
