//! What was measured, as tables and as JSON lines.

use std::fmt::{self, Write as _};
use std::fs;
use std::io;
use std::path::Path;

/// A case with the time of each lane in each round.
pub(crate) struct Measured {
    case: &'static str,
    lanes: Vec<(String, String, Vec<f64>)>,
}

/// One round of a case.
pub(crate) struct Round<'a> {
    measured: &'a Measured,
    at: usize,
}

impl Round<'_> {
    /// What one call cost the lane in this round, in nanoseconds.
    pub(crate) fn ns(&self, lane: &str) -> f64 {
        self.measured.lane(lane)[self.at]
    }
}

impl Measured {
    pub(crate) fn new(case: &'static str, lanes: Vec<(String, String, Vec<f64>)>) -> Self {
        Self { case, lanes }
    }

    fn lane(&self, name: &str) -> &[f64] {
        let lane = self.lanes.iter().find(|(lane, ..)| lane == name);
        let (.., ns) = lane.expect("the case has this lane");
        ns
    }

    /// What `of` finds in each round.
    fn spread(&self, of: impl Fn(&Round<'_>) -> f64) -> Spread {
        let rounds = self.lanes.first().map_or(0, |(.., ns)| ns.len());
        Spread::of((0..rounds).map(|at| of(&Round { measured: self, at })))
    }

    fn ratio(&self, lane: &str, base: &str) -> Spread {
        self.spread(|round| round.ns(lane) / round.ns(base))
    }

    /// Bursts, such as the upkeep of a cache, are no median; so there is a mean as well.
    fn ratio_of_means(&self, lane: &str, base: &str) -> f64 {
        trimmed_mean(self.lane(lane)) / trimmed_mean(self.lane(base))
    }
}

/// Without the slowest twentieth, in which the machine did something else.
fn trimmed_mean(ns: &[f64]) -> f64 {
    let mut ns = ns.to_vec();
    ns.sort_unstable_by(f64::total_cmp);
    ns.truncate((ns.len() * 19).div_ceil(20));
    ns.iter().sum::<f64>() / ns.len() as f64
}

/// A median and its quartiles.
#[derive(Clone, Copy)]
struct Spread {
    min: f64,
    lower: f64,
    median: f64,
    upper: f64,
}

impl Spread {
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut values: Vec<f64> = values.collect();
        values.sort_unstable_by(f64::total_cmp);
        let at = |part: f64| {
            let place = part * values.len().saturating_sub(1) as f64;
            values.get(place.round() as usize).copied()
        };
        let at = |part| at(part).unwrap_or(f64::NAN);
        Self {
            min: at(0.0),
            lower: at(0.25),
            median: at(0.5),
            upper: at(0.75),
        }
    }
}

impl fmt::Display for Spread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            lower,
            median,
            upper,
            ..
        } = self;
        write!(f, "**{median:.3}** ({lower:.3}–{upper:.3})")
    }
}

/// Prints what was measured as it comes, and keeps it for a file.
pub(crate) struct Report {
    json: String,
    figures: String,
}

impl Report {
    pub(crate) fn new() -> Self {
        Self {
            json: String::new(),
            figures: String::new(),
        }
    }

    /// A table of a case: what each lane took, and its ratio to its base.
    pub(crate) fn add(&mut self, measured: &Measured) {
        println!("\n### {}\n", measured.case);
        println!("| lane | min ns | median ns | to | ratio (quartiles) | ratio of means |");
        println!("|---|--:|--:|---|---|--:|");
        for (lane, base, _) in &measured.lanes {
            let ns = measured.spread(|round| round.ns(lane));
            let ratio = measured.ratio(lane, base);
            let means = measured.ratio_of_means(lane, base);
            println!(
                "| {lane} | {:.0} | {:.0} | {base} | {ratio} | {means:.3} |",
                ns.min, ns.median
            );
            // Names of lanes and cases hold nothing that JSON writes in another way than Rust.
            self.line(format_args!(
                r#"{{"case":{:?},"lane":{lane:?},"base":{base:?},"rounds":{},"min_ns":{:.1},"median_ns":{:.1},"ratio":{:.4},"ratio_lower":{:.4},"ratio_upper":{:.4},"ratio_of_means":{means:.4}}}"#,
                measured.case,
                measured.lane(lane).len(),
                ns.min,
                ns.median,
                ratio.median,
                ratio.lower,
                ratio.upper,
            ));
        }
    }

    /// A figure that has a target, as the median of what it is in each round.
    pub(crate) fn hold(
        &mut self,
        measured: &Measured,
        what: &str,
        at_most: f64,
        of: impl Fn(&Round<'_>) -> f64,
    ) {
        let found = measured.spread(of);
        let is_met = found.median <= at_most;
        let word = match is_met {
            true => "met",
            false => "**missed**",
        };
        let row = format!("| {what} | ≤ {at_most} | {found} | {word} |\n");
        self.figures.push_str(&row);
        self.line(format_args!(
            r#"{{"case":{:?},"figure":{what:?},"at_most":{at_most},"median":{:.4},"lower":{:.4},"upper":{:.4},"is_met":{is_met}}}"#,
            measured.case,
            found.median,
            found.lower,
            found.upper,
        ));
    }

    fn line(&mut self, line: fmt::Arguments<'_>) {
        // To write to a string cannot fail.
        let _ = writeln!(self.json, "{line}");
    }

    /// Prints the figures that have a target, and writes everything to `file`.
    pub(crate) fn finish(self, file: &Path) -> io::Result<()> {
        if !self.figures.is_empty() {
            println!("\n### Held to targets\n");
            println!("| figure | target | median (quartiles) | |");
            println!("|---|---|---|---|");
            print!("{}", self.figures);
        }
        if let Some(folder) = file.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::write(file, self.json)
    }
}
