//! What was promised, held against what happened.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::Path;
use std::time::Duration;

use http::StatusCode;

use crate::Result;
use crate::clients::{Last, Told, key_of};
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

/// A count of something that should not be, and what accounts for each case.
#[derive(Debug, Default)]
struct Count {
    cases: Vec<String>,
    unaccounted: Vec<String>,
}

impl Count {
    fn add(&mut self, case: String, is_accounted_for: bool) {
        match is_accounted_for {
            true => self.cases.push(case),
            false => self.unaccounted.push(case),
        }
    }

    fn total(&self) -> usize {
        self.cases.len() + self.unaccounted.len()
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.total())?;
        match (self.cases.len(), self.unaccounted.len()) {
            (0, _) => Ok(()),
            (_, 0) => f.write_str(" (all accounted for)"),
            (_, open) => write!(f, " ({open} not accounted for)"),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    table: Vec<(String, String)>,
    duplicates: Count,
    lost: Count,
    differing: Count,
    stuck: Count,
    /// Answers that tell of a charge that was not made.
    invented: Count,
    /// Runs that began though nothing allowed it, whether they did harm or not.
    begun: Count,
}

/// The charges in the ledger, by the key that the clients gave each payment.
pub(crate) fn effects_in(ledger: &Path) -> Result<HashMap<String, Vec<String>>> {
    let ledger = rusqlite::Connection::open(ledger)?;
    let mut charges = ledger.prepare("SELECT description, id FROM charges WHERE NOT declined")?;
    let mut effects: HashMap<String, Vec<String>> = HashMap::new();
    let mut rows = charges.query([])?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(1)?;
        effects
            .entry(row.get(0)?)
            .or_default()
            .push(format!("ch_{id:016}"));
    }
    Ok(effects)
}

pub(crate) fn judge(evidence: &Evidence<'_>) -> Verdict {
    let mut verdict = Verdict::default();
    let mut slowest = Duration::ZERO;
    let mut held = 0;
    for (payment, last) in evidence.last.iter().enumerate() {
        let case = Case::of(evidence, payment);
        verdict.hear(&case, *last, evidence.storm);
        held += usize::from(*last == Last::Held);
        slowest = slowest.max(case.recovery());
    }
    verdict.table = table(evidence, held, slowest);
    verdict
}

/// One payment.
struct Case<'a> {
    key: String,
    told: &'a Told,
    attempts: &'a [Noted],
    effects: &'a [String],
    harms: &'a [Harm],
}

impl<'a> Case<'a> {
    fn of(evidence: &'a Evidence<'_>, payment: usize) -> Self {
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

    /// What was done to the process of an attempt between its claim and `until`.
    fn harm(&self, attempt: &Noted, until: u64) -> Option<&Harm> {
        self.harms.iter().find(|harm| {
            harm.pid == attempt.pid
                && harm.from < until
                && harm
                    .until
                    .is_none_or(|end| end > attempt.token.min(attempt.began))
        })
    }

    /// Why each attempt after the first one could begin; `None` for one that should not have.
    fn takeovers(&self, storm: &Storm) -> Vec<Option<String>> {
        let pairs = self.attempts.windows(2);
        let why = pairs.map(|pair| {
            let [before, after] = pair else { return None };
            if before.ended.is_some_and(is_released) {
                return Some("released".to_owned());
            }
            let lapsed = before.token + micros(storm.lease) + micros(storm.clock_skew);
            let harm = self.harm(before, after.token)?;
            let what = match harm.until {
                None => "was killed",
                Some(_) => "was stopped past its lease",
            };
            let is_allowed = after.token > lapsed && storm.orphan != OnOrphan::Hold;
            is_allowed.then(|| format!("{} {what}", harm.pid))
        });
        why.collect()
    }

    /// From the harm to a holder to the first word about what that meant.
    fn recovery(&self) -> Duration {
        let heard = [self.told.answered, self.told.held];
        let Some(heard) = heard.into_iter().flatten().min() else {
            return Duration::ZERO;
        };
        let harms = self
            .attempts
            .iter()
            .filter_map(|attempt| self.harm(attempt, heard));
        let waited = harms.map(|harm| Duration::from_micros(heard - harm.from));
        waited.max().unwrap_or_default()
    }
}

impl Verdict {
    fn hear(&mut self, case: &Case<'_>, last: Last, storm: &Storm) {
        let key = &case.key;
        let takeovers = case.takeovers(storm);
        let is_accounted_for = takeovers.iter().all(Option::is_some);
        let why = takeovers
            .iter()
            .map(|why| why.as_deref().unwrap_or("for no reason"));
        let why = why.collect::<Vec<_>>().join(", ");
        if !is_accounted_for {
            self.begun.add(
                format!("{key} begun again: {why}; {:?}", case.attempts),
                false,
            );
        }
        for effect in case.effects.iter().skip(1) {
            let is_allowed = is_accounted_for && storm.orphan == OnOrphan::Retake;
            self.duplicates.add(
                format!("{key} charged again as {effect}: {why}"),
                is_allowed,
            );
        }
        if case.told.answers.len() > 1 {
            let answers = case.told.answers.iter();
            let answers: Vec<_> = answers
                .map(|(status, body)| (status, charge_in(body)))
                .collect();
            self.differing
                .add(format!("{key} was answered {answers:?}: {why}"), false);
        }
        if last == Last::Stuck {
            self.stuck
                .add(format!("{key} is stuck: {:?}", case.attempts), false);
        }
        let told: Vec<_> = case
            .told
            .answers
            .iter()
            .map(|(_, body)| charge_in(body))
            .collect();
        for invented in told.iter().filter(|id| !case.effects.contains(id)) {
            self.invented
                .add(format!("{key} was answered with {invented}"), false);
        }
        let is_lost = told.is_empty() && !case.effects.is_empty();
        if is_lost {
            let harm = case
                .attempts
                .iter()
                .find_map(|attempt| case.harm(attempt, u64::MAX));
            let is_allowed = harm.is_some() && last == Last::Held && storm.orphan == OnOrphan::Hold;
            let how = match harm {
                Some(harm) if harm.until.is_none() => format!("{} was killed", harm.pid),
                Some(harm) => format!("{} was stopped past its lease", harm.pid),
                None => format!("for no reason: {:?}", case.attempts),
            };
            self.lost.add(
                format!("{key} is held as outcome-unknown: {how}"),
                is_allowed,
            );
        } else if last == Last::Held && !case.told.answers.is_empty() {
            self.lost
                .add(format!("{key} was answered, and is held now"), false);
        }
    }

    fn counts(&self) -> [&Count; 6] {
        [
            &self.duplicates,
            &self.lost,
            &self.differing,
            &self.stuck,
            &self.invented,
            &self.begun,
        ]
    }

    /// Whether there is nothing that the orphan policy does not account for.
    pub(crate) fn is_fine(&self) -> bool {
        self.counts()
            .iter()
            .all(|count| count.unaccounted.is_empty())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for count in self.counts() {
            for case in &count.cases {
                writeln!(f, "{case}")?;
            }
        }
        for count in self.counts() {
            for case in &count.unaccounted {
                writeln!(f, "NOT ACCOUNTED FOR {case}")?;
            }
        }
        writeln!(f)?;
        for (what, count) in &self.table {
            writeln!(f, "| {what:<48} | {count:>9} |")?;
        }
        if self.invented.total() + self.begun.total() > 0 {
            writeln!(f, "invented {} · begun again {}", self.invented, self.begun)?;
        }
        writeln!(
            f,
            "duplicates {} · lost {} · differing {} · stuck {}",
            self.duplicates, self.lost, self.differing, self.stuck
        )
    }
}

fn table(evidence: &Evidence<'_>, held: usize, slowest: Duration) -> Vec<(String, String)> {
    let attempts: usize = evidence.attempts.values().map(Vec::len).sum();
    let effects: usize = evidence.effects.values().map(Vec::len).sum();
    let mut rows = vec![
        (
            "orphan policy".to_owned(),
            evidence.storm.orphan.name().to_owned(),
        ),
        row("payments, each with a key of its own", evidence.last.len()),
        row("requests sent for them", evidence.sent),
    ];
    rows.extend(
        evidence
            .answers
            .iter()
            .map(|(what, count)| row(&format!("  {what}"), *count)),
    );
    rows.extend([
        row("attempts whose handler began", attempts),
        row("charges made", effects),
        row("keys held as outcome-unknown in the end", held),
    ]);
    rows.extend(evidence.blows.iter().map(|(what, count)| row(what, *count)));
    rows.push((
        "longest from harm to a word about it, s".to_owned(),
        format!("{:.1}", slowest.as_secs_f64()),
    ));
    rows.push((
        "the storm, s".to_owned(),
        format!("{:.0}", evidence.took.as_secs_f64()),
    ));
    rows
}

fn row(what: &str, count: usize) -> (String, String) {
    (what.to_owned(), count.to_string())
}

/// Whether the recording policy gives the key back after such an answer.
fn is_released(status: u16) -> bool {
    StatusCode::from_u16(status).is_ok_and(|status| status.is_server_error())
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
