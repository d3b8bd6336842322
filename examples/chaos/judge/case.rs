//! One payment: what was asked, tried, made and told.

use std::time::Duration;

use super::Evidence;
use crate::clients::{Told, key_of};
use crate::fleet::Harm;
use crate::journal::{Ended, Noted};
use crate::storm::{OnOrphan, Storm};

pub(super) struct Case<'a> {
    pub(super) key: String,
    pub(super) told: &'a Told,
    pub(super) attempts: &'a [Noted],
    pub(super) effects: &'a [String],
    harms: &'a [Harm],
}

impl<'a> Case<'a> {
    pub(super) fn of(evidence: &'a Evidence<'_>, payment: usize) -> Self {
        const NOTHING: &Told = &Told {
            answers: Vec::new(),
            answered: None,
            held: None,
        };
        let key = key_of(payment);
        Self {
            told: evidence.told.get(&payment).unwrap_or(NOTHING),
            attempts: evidence.attempts.get(&key).map_or(&[], Vec::as_slice),
            effects: evidence.effects.get(&key).map_or(&[], Vec::as_slice),
            harms: &evidence.harms,
            key,
        }
    }

    /// The charges that clients were told of.
    pub(super) fn charges_told(&self) -> Vec<String> {
        let answers = self.told.answers.iter();
        answers.map(|(_, body)| charge_in(body)).collect()
    }

    /// Whether each attempt after the first one was allowed to begin, and why each began.
    pub(super) fn begun_again(&self, storm: &Storm) -> (bool, String) {
        let mut is_accounted_for = true;
        let mut reasons = Vec::new();
        for pair in self.attempts.windows(2) {
            let why = self.takeover(&pair[0], &pair[1], storm);
            is_accounted_for &= why.is_some();
            reasons.push(why.unwrap_or_else(|| "for no reason".to_owned()));
        }
        (is_accounted_for, reasons.join(", "))
    }

    fn takeover(&self, before: &Noted, after: &Noted, storm: &Storm) -> Option<String> {
        match before.ended.filter(|ended| after.began >= ended.at) {
            Some(ended) if is_nothing_done(ended.status) => {
                return Some("the attempt before did nothing".to_owned());
            }
            Some(ended) if is_unknown(ended.status) => {
                return (storm.orphan != OnOrphan::Hold).then(|| unknown_by(ended));
            }
            _ => {}
        }
        let lapsed = before.token + micros(storm.lease) + micros(storm.clock_skew);
        let harm = self.harm(before, after.token)?;
        let is_allowed = after.token > lapsed && storm.orphan != OnOrphan::Hold;
        is_allowed.then(|| told_of(harm))
    }

    /// What was done to the process that holds the key, or to its handler.
    pub(super) fn lost_holder(&self) -> Option<String> {
        let Some(last) = self.attempts.last() else {
            // The one who claimed it did not get as far as to begin.
            let killed = self.harms.iter().any(|harm| harm.until.is_none());
            return killed.then(|| "its holder was killed before it began".to_owned());
        };
        let unknown = last.ended.filter(|ended| is_unknown(ended.status));
        let harm = || self.harm(last, u64::MAX).map(told_of);
        unknown.map(unknown_by).or_else(harm)
    }

    /// The longest from a harm to the holder until another attempt, or a word about the outcome.
    pub(super) fn recovery(&self) -> Duration {
        let heard = [self.told.answered, self.told.held];
        let heard = heard.into_iter().flatten().min().unwrap_or(0);
        let next = self.attempts.iter().skip(1).map(|attempt| attempt.token);
        let ends = next.chain([heard]).map(|end| end.min(heard));
        let waits = self.attempts.iter().zip(ends).filter_map(|(attempt, end)| {
            let harm = self.harm(attempt, end)?;
            Some(Duration::from_micros(end.saturating_sub(harm.from)))
        });
        waits.max().unwrap_or_default()
    }

    /// What was done to the process of an attempt between its claim and `until`.
    fn harm(&self, attempt: &Noted, until: u64) -> Option<&Harm> {
        self.harms.iter().find(|harm| {
            harm.pid == attempt.pid
                && harm.from < until
                && harm.until.is_none_or(|end| end > attempt.token)
        })
    }
}

fn told_of(harm: &Harm) -> String {
    let what = match harm.until {
        None => "was killed",
        Some(_) => "was stopped past its lease",
    };
    format!("process {} {what}", harm.pid)
}

fn unknown_by(ended: Ended) -> String {
    let what = match ended.status {
        408 | 504 => "by a timeout within",
        _ => "by a failure",
    };
    format!("its outcome is unknown {what}, as {}", ended.status)
}

/// Whether nobody can tell from such an answer what was done.
fn is_unknown(status: u16) -> bool {
    matches!(status, 408 | 500..=599)
}

/// Whether such an answer gives the key back under every policy.
fn is_nothing_done(status: u16) -> bool {
    matches!(status, 400..=499) && status != 402 && !is_unknown(status)
}

/// The id of the charge that an answer tells of.
fn charge_in(body: &[u8]) -> String {
    let charge: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let id = charge
        .as_ref()
        .and_then(|charge| charge.get("id")?.as_str());
    id.unwrap_or_default().to_owned()
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
