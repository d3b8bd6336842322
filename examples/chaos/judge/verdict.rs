//! The counts, and the table.

use std::fmt;
use std::time::Duration;

use super::Evidence;

/// A count of something that should not be, and what accounts for each case.
#[derive(Debug, Default)]
pub(super) struct Count {
    accounted_for: Vec<String>,
    open: Vec<String>,
}

impl Count {
    pub(super) fn add(&mut self, case: String, is_accounted_for: bool) {
        match is_accounted_for {
            true => self.accounted_for.push(case),
            false => self.open.push(case),
        }
    }

    fn total(&self) -> usize {
        self.accounted_for.len() + self.open.len()
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.total())?;
        match (self.accounted_for.len(), self.open.len()) {
            (_, open @ 1..) => write!(f, " ({open} not accounted for)"),
            (1.., _) => f.write_str(" (all accounted for)"),
            _ => Ok(()),
        }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Verdict {
    table: Vec<(String, String)>,
    /// Charges after the first one for a payment.
    pub(super) duplicates: Count,
    /// Payments that were charged, and whose clients are never told.
    pub(super) lost: Count,
    /// Payments that clients were told different things about.
    pub(super) differing: Count,
    /// Payments that nobody answers for.
    pub(super) stuck: Count,
    /// Answers that tell of a charge that was not made.
    pub(super) invented: Count,
    /// Attempts that nothing allowed, whether they did harm or not.
    pub(super) begun: Count,
    /// Payments that are answered with `outcome-unknown` in the end.
    pub(super) held: Count,
    /// The longest from a harm to a holder until its key went on.
    pub(super) slowest: Duration,
}

impl Verdict {
    /// Whether there is nothing that the orphan policy does not account for.
    pub(crate) fn is_fine(&self) -> bool {
        let mut counts = self.counts().into_iter();
        counts.all(|(_, count)| count.open.is_empty())
    }

    fn counts(&self) -> [(&'static str, &Count); 7] {
        [
            ("duplicates", &self.duplicates),
            ("lost", &self.lost),
            ("differing", &self.differing),
            ("stuck", &self.stuck),
            ("invented", &self.invented),
            ("begun", &self.begun),
            ("held", &self.held),
        ]
    }

    pub(super) fn tell(&mut self, evidence: &Evidence<'_>) {
        let attempts: usize = evidence.attempts.values().map(Vec::len).sum();
        let all = || evidence.attempts.values().flatten();
        let blocked = all().filter(|attempt| attempt.has_blocked).count();
        let timed_out = all().filter(|attempt| attempt.is_timed_out()).count();
        let effects: usize = evidence.effects.values().map(Vec::len).sum();
        let slowest = self.slowest.as_secs_f64();
        let mut rows = vec![
            row("orphan policy", evidence.storm.orphan.name()),
            row("payments, each with a key of its own", evidence.last.len()),
            row("requests sent for them", evidence.sent),
        ];
        let answers = evidence.answers.iter();
        rows.extend(answers.map(|(what, count)| row(&format!("– {what}"), count)));
        rows.push(row("attempts whose handler began", attempts));
        rows.push(row("charges made", effects));
        if let Some(units) = evidence.storm.capacity {
            rows.push(row("units a second that the store takes", units));
        }
        let blows = evidence.blows.iter();
        rows.extend(blows.map(|(what, count)| row(what, count)));
        rows.push(row("handlers that blocked past their lease", blocked));
        rows.push(row(
            "handlers that a timeout within answered for",
            timed_out,
        ));
        rows.push(row("the storm, in seconds", evidence.took.as_secs()));
        rows.push(row(
            "longest from harm until its key went on, in seconds",
            format!("{slowest:.1}"),
        ));
        rows.push(row(
            "answers with a charge that was not made",
            &self.invented,
        ));
        rows.push(row("attempts that nothing allowed", &self.begun));
        rows.push(row("keys held as outcome-unknown in the end", &self.held));
        self.table = rows;
    }
}

fn row(what: &str, count: impl fmt::Display) -> (String, String) {
    (what.to_owned(), count.to_string())
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (_, count) in self.counts() {
            for case in &count.accounted_for {
                writeln!(f, "{case}")?;
            }
        }
        for (name, count) in self.counts() {
            for case in &count.open {
                writeln!(f, "NOT ACCOUNTED FOR, {name}: {case}")?;
            }
        }
        writeln!(f, "\n| | |\n|---|--:|")?;
        for (what, count) in &self.table {
            writeln!(f, "| {what} | {count} |")?;
        }
        writeln!(
            f,
            "\nduplicates {} · lost {} · differing {} · stuck {}",
            self.duplicates, self.lost, self.differing, self.stuck
        )
    }
}
