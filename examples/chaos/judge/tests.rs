//! Nothing wrong goes unseen.

use bytes::Bytes;
use clap::Parser;
use http::StatusCode;

use super::{Evidence, judge};
use crate::Flags;
use crate::clients::{Last, Told};
use crate::fleet::Harm;
use crate::journal::{Ended, Noted};
use crate::storm::Storm;

/// When the first attempt claims; a lease is 2 s, and the skew of clocks half a second.
const CLAIMED: u64 = 1_000_000;
const LAPSED: u64 = CLAIMED + 2_500_001;
const KILLED: Harm = Harm {
    pid: 1,
    from: CLAIMED + 10,
    until: None,
};
const STOPPED: Harm = Harm {
    until: Some(LAPSED + 500_000),
    ..KILLED
};

fn storm(orphan: &str) -> Storm {
    Flags::parse_from(["chaos", "--orphan", orphan]).storm
}

fn attempt(pid: u32, token: u64, ended: Option<u16>) -> Noted {
    let ended = ended.map(|status| Ended {
        status,
        at: token + ENDS_AFTER,
    });
    Noted {
        token,
        began: token,
        pid,
        has_blocked: false,
        ended,
    }
}

/// How long after its claim an attempt ends.
const ENDS_AFTER: u64 = 100;

/// One payment, of which everything but what is given here went well.
struct Story {
    orphan: &'static str,
    attempts: Vec<Noted>,
    effects: Vec<&'static str>,
    answers: Vec<&'static str>,
    last: Last,
    harms: Vec<Harm>,
}

impl Story {
    fn under(orphan: &'static str) -> Self {
        Self {
            orphan,
            attempts: vec![attempt(1, CLAIMED, Some(200))],
            effects: vec!["ch_1"],
            answers: vec!["ch_1"],
            last: Last::Answered,
            harms: Vec::new(),
        }
    }

    /// The first attempt charged, and so did another one after `harm`.
    fn doubled(orphan: &'static str, harm: Option<Harm>, second_claimed: u64) -> Self {
        Self {
            attempts: vec![
                attempt(1, CLAIMED, None),
                attempt(2, second_claimed, Some(200)),
            ],
            effects: vec!["ch_1", "ch_2"],
            answers: vec!["ch_2"],
            harms: harm.into_iter().collect(),
            ..Self::under(orphan)
        }
    }

    /// Whether all is accounted for, and the last line.
    fn verdict(self) -> (bool, String) {
        let storm = storm(self.orphan);
        let answer = |id: &&str| {
            let body = Bytes::from(format!(r#"{{"id":"{id}"}}"#));
            (StatusCode::OK, body)
        };
        let told = Told {
            answers: self.answers.iter().map(answer).collect(),
            ..Told::default()
        };
        let effects: Vec<_> = self.effects.iter().map(|id| (*id).to_owned()).collect();
        let verdict = judge(&Evidence {
            storm: &storm,
            took: std::time::Duration::ZERO,
            sent: 1,
            blows: Default::default(),
            answers: Default::default(),
            told: [(0, told)].into(),
            last: vec![self.last],
            harms: self.harms,
            attempts: [("payment-0".to_owned(), self.attempts)].into(),
            effects: [("payment-0".to_owned(), effects)].into(),
        });
        let text = verdict.to_string();
        let line = text.lines().last().unwrap_or_default();
        (verdict.is_fine(), line.to_owned())
    }

    #[track_caller]
    fn passes_with(self, line: &str) {
        assert_eq!(self.verdict(), (true, line.to_owned()));
    }

    #[track_caller]
    fn fails_with(self, line: &str) {
        assert_eq!(self.verdict(), (false, line.to_owned()));
    }
}

#[test]
fn a_payment_that_is_made_and_answered_is_fine() {
    for orphan in ["retake", "hold", "reconcile"] {
        Story::under(orphan).passes_with("duplicates 0 · lost 0 · differing 0 · stuck 0");
    }
}

#[test]
fn a_second_charge_is_accounted_for_by_a_lost_holder_under_retake_alone() {
    for harm in [KILLED, STOPPED] {
        Story::doubled("retake", Some(harm), LAPSED)
            .passes_with("duplicates 1 (all accounted for) · lost 0 · differing 0 · stuck 0");
        for orphan in ["hold", "reconcile"] {
            Story::doubled(orphan, Some(harm), LAPSED)
                .fails_with("duplicates 1 (1 not accounted for) · lost 0 · differing 0 · stuck 0");
        }
    }
}

#[test]
fn a_second_charge_is_not_accounted_for_without_harm_or_too_soon() {
    let elsewhere = Harm { pid: 7, ..KILLED };
    let too_late = Harm {
        from: LAPSED + 1,
        ..KILLED
    };
    let long_ago = Harm {
        from: 1,
        until: Some(CLAIMED - 1),
        ..KILLED
    };
    let told = "duplicates 1 (1 not accounted for) · lost 0 · differing 0 · stuck 0";
    for harm in [None, Some(elsewhere), Some(too_late), Some(long_ago)] {
        Story::doubled("retake", harm, LAPSED).fails_with(told);
    }
    Story::doubled("retake", Some(KILLED), LAPSED - 1).fails_with(told);
}

#[test]
fn an_attempt_may_follow_one_that_was_released() {
    Story {
        attempts: vec![
            attempt(1, CLAIMED, Some(404)),
            attempt(1, CLAIMED + ENDS_AFTER, Some(200)),
        ],
        ..Story::under("hold")
    }
    .passes_with("duplicates 0 · lost 0 · differing 0 · stuck 0");
}

/// A timeout within answered for the first attempt, and the second one claimed so much later.
fn after_a_timeout(orphan: &'static str, status: u16, later: u64) -> Story {
    Story {
        attempts: vec![
            attempt(1, CLAIMED, Some(status)),
            attempt(1, CLAIMED + later, Some(200)),
        ],
        ..Story::under(orphan)
    }
}

#[test]
fn an_attempt_may_follow_a_timeout_unless_the_key_is_held() {
    let fine = "duplicates 0 · lost 0 · differing 0 · stuck 0";
    for status in [408, 504, 500] {
        after_a_timeout("retake", status, ENDS_AFTER).passes_with(fine);
        after_a_timeout("reconcile", status, ENDS_AFTER).passes_with(fine);
        after_a_timeout("hold", status, ENDS_AFTER).fails_with(fine);
        // While the first one still ran.
        after_a_timeout("retake", status, ENDS_AFTER - 1).fails_with(fine);
        // Its claim was sent then, and came to the store afterwards.
        let mut late = after_a_timeout("retake", status, 1);
        late.attempts[1].began = CLAIMED + ENDS_AFTER;
        late.passes_with(fine);
    }
}

#[test]
fn a_second_charge_after_a_timeout_is_accounted_for_under_retake_alone() {
    let doubled = |orphan, status| Story {
        effects: vec!["ch_1", "ch_2"],
        answers: vec!["ch_2"],
        ..after_a_timeout(orphan, status, ENDS_AFTER)
    };
    doubled("retake", 504)
        .passes_with("duplicates 1 (all accounted for) · lost 0 · differing 0 · stuck 0");
    let open = "duplicates 1 (1 not accounted for) · lost 0 · differing 0 · stuck 0";
    doubled("reconcile", 504).fails_with(open);
    doubled("hold", 504).fails_with(open);
    // An answer that says that it was charged is no timeout.
    doubled("retake", 200).fails_with(open);
}

#[test]
fn a_charge_that_a_timeout_hid_is_lost_under_hold_alone() {
    let hidden = |orphan, status| Story {
        attempts: vec![attempt(1, CLAIMED, Some(status))],
        answers: vec![],
        last: Last::Held,
        ..Story::under(orphan)
    };
    hidden("hold", 504)
        .passes_with("duplicates 0 · lost 1 (all accounted for) · differing 0 · stuck 0");
    let open = "duplicates 0 · lost 1 (1 not accounted for) · differing 0 · stuck 0";
    hidden("retake", 504).fails_with(open);
    hidden("reconcile", 504).fails_with(open);
    hidden("hold", 200).verdict_has("lost 1");
}

#[test]
fn a_handler_that_blocked_its_thread_accounts_for_nothing() {
    let blocked = |orphan, last, attempts: &[Noted]| {
        let mut attempts = attempts.to_vec();
        attempts[0].has_blocked = true;
        Story {
            attempts,
            last,
            ..Story::doubled(orphan, None, LAPSED)
        }
    };
    let runs_on = attempt(1, CLAIMED, None);
    let both = [runs_on, attempt(2, LAPSED, Some(200))];
    for orphan in ["retake", "hold", "reconcile"] {
        blocked(orphan, Last::Answered, &both).verdict_has("duplicates 1 (1 not accounted for)");
    }
    Story {
        effects: vec![],
        answers: vec![],
        ..blocked("hold", Last::Held, &[runs_on])
    }
    .fails_with("duplicates 0 · lost 0 · differing 0 · stuck 0");
}

#[test]
fn an_attempt_that_nothing_allowed_is_seen_although_it_charged_nothing() {
    Story {
        attempts: vec![
            attempt(1, CLAIMED, Some(200)),
            attempt(2, LAPSED, Some(500)),
        ],
        ..Story::under("retake")
    }
    .fails_with("duplicates 0 · lost 0 · differing 0 · stuck 0");
}

#[test]
fn answers_may_not_differ() {
    for orphan in ["retake", "hold", "reconcile"] {
        Story {
            answers: vec!["ch_1", "ch_2"],
            effects: vec!["ch_1", "ch_2"],
            ..Story::doubled(orphan, Some(KILLED), LAPSED)
        }
        .verdict_has("differing 1 (1 not accounted for)");
    }
}

#[test]
fn an_answer_without_a_charge_is_seen() {
    Story {
        effects: vec![],
        ..Story::under("retake")
    }
    .fails_with("duplicates 0 · lost 0 · differing 0 · stuck 0");
}

#[test]
fn a_charge_without_an_answer_is_lost_unless_it_is_held_for_a_lost_holder() {
    let unanswered = |orphan, last, harms| Story {
        attempts: vec![attempt(1, CLAIMED, None)],
        answers: vec![],
        last,
        harms,
        ..Story::under(orphan)
    };
    unanswered("hold", Last::Held, vec![STOPPED])
        .passes_with("duplicates 0 · lost 1 (all accounted for) · differing 0 · stuck 0");
    let open = "duplicates 0 · lost 1 (1 not accounted for) · differing 0 · stuck 0";
    unanswered("hold", Last::Held, vec![]).verdict_has("lost 1");
    unanswered("retake", Last::Held, vec![KILLED]).fails_with(open);
    unanswered("reconcile", Last::Held, vec![KILLED]).fails_with(open);
}

#[test]
fn a_key_that_is_held_without_a_charge_needs_a_lost_holder_too() {
    let held = |attempts, harms| Story {
        attempts,
        effects: vec![],
        answers: vec![],
        last: Last::Held,
        harms,
        ..Story::under("hold")
    };
    let told = "duplicates 0 · lost 0 · differing 0 · stuck 0";
    held(vec![], vec![KILLED]).passes_with(told);
    held(vec![], vec![]).fails_with(told);
    held(vec![attempt(2, CLAIMED, None)], vec![KILLED]).fails_with(told);
}

#[test]
fn a_key_that_nobody_answers_for_is_stuck() {
    Story {
        last: Last::Stuck,
        ..Story::under("retake")
    }
    .fails_with("duplicates 0 · lost 0 · differing 0 · stuck 1 (1 not accounted for)");
}

impl Story {
    #[track_caller]
    fn verdict_has(self, part: &str) {
        let (is_fine, line) = self.verdict();
        assert!(!is_fine && line.contains(part), "{line}");
    }
}
