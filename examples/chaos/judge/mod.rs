//! What was promised, held against what happened.

mod case;
#[cfg(test)]
mod tests;
mod verdict;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::Duration;

use self::case::Case;
pub(crate) use self::verdict::Verdict;
use crate::Result;
use crate::clients::{Last, Told};
use crate::fleet::Harm;
use crate::hand::Blows;
use crate::journal::Noted;
use crate::storm::{OnOrphan, Storm};

/// All that is known of a storm.
pub(crate) struct Evidence<'a> {
    pub(crate) storm: &'a Storm,
    pub(crate) took: Duration,
    pub(crate) sent: usize,
    pub(crate) blows: Blows,
    pub(crate) answers: BTreeMap<String, usize>,
    pub(crate) told: HashMap<usize, Told>,
    /// What came of asking for each payment once more.
    pub(crate) last: Vec<Last>,
    pub(crate) harms: Vec<Harm>,
    /// By key.
    pub(crate) attempts: HashMap<String, Vec<Noted>>,
    /// The charges that were made for each payment, by its key.
    pub(crate) effects: HashMap<String, Vec<String>>,
}

/// The charges in the ledger, by the key that the clients gave each payment.
pub(crate) fn effects_in(ledger: &Path) -> Result<HashMap<String, Vec<String>>> {
    let ledger = rusqlite::Connection::open(ledger)?;
    let mut charges = ledger.prepare("SELECT description, id FROM charges WHERE NOT declined")?;
    let mut effects: HashMap<String, Vec<String>> = HashMap::new();
    let mut rows = charges.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(1)?;
        let of_key = effects.entry(row.get(0)?).or_default();
        of_key.push(format!("ch_{id:016}"));
    }
    Ok(effects)
}

pub(crate) fn judge(evidence: &Evidence<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    for (payment, last) in evidence.last.iter().enumerate() {
        let case = Case::of(evidence, payment);
        hear(&mut verdict, &case, *last, evidence.storm);
        verdict.slowest = verdict.slowest.max(case.recovery());
    }
    verdict.tell(evidence);
    verdict
}

fn hear(verdict: &mut Verdict, case: &Case<'_>, last: Last, storm: &Storm) {
    let key = &case.key;
    let (is_accounted_for, why) = case.begun_again(storm);
    if !is_accounted_for {
        let case = format!("{key} was begun again: {why}; {:?}", case.attempts);
        verdict.begun.add(case, false);
    }
    for effect in case.effects.iter().skip(1) {
        let is_allowed = is_accounted_for && storm.orphan == OnOrphan::Retake;
        let case = format!("{key} was charged again as {effect}: {why}");
        verdict.duplicates.add(case, is_allowed);
    }
    let answers = case.charges_told();
    if case.told.answers.len() > 1 {
        let case = format!("{key} was answered with {answers:?}: {why}");
        verdict.differing.add(case, false);
    }
    for answer in answers.iter().filter(|id| !case.effects.contains(id)) {
        let case = format!("{key} was answered with {answer}, which was not made");
        verdict.invented.add(case, false);
    }
    let is_allowed = storm.orphan == OnOrphan::Hold && answers.is_empty();
    match last {
        Last::Answered => {}
        Last::Stuck => {
            let case = format!("{key} is stuck: {:?}", case.attempts);
            verdict.stuck.add(case, false);
        }
        Last::Held => {
            let holder = case.lost_holder();
            let is_allowed = is_allowed && holder.is_some();
            let holder = holder.unwrap_or_else(|| format!("for no reason: {:?}", case.attempts));
            verdict
                .held
                .add(format!("{key} is held: {holder}"), is_allowed);
        }
    }
    if answers.is_empty() && !case.effects.is_empty() {
        let holder = case.lost_holder().unwrap_or_else(|| "no holder".to_owned());
        let is_allowed = is_allowed && last == Last::Held;
        let case = format!("{key} is held as outcome-unknown: {holder}");
        verdict.lost.add(case, is_allowed);
    }
}
