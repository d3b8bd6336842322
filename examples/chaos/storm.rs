//! One storm from its start to its verdict.

use std::ffi::OsString;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval, sleep};

use crate::clients::{Clients, Last};
use crate::fleet::{Fleet, locked};
use crate::hand::{self, Blows};
use crate::trouble::Counts;
use crate::{Result, journal, judge};

#[derive(Args, Clone, Debug)]
pub(crate) struct Storm {
    /// How many payments are made, each under a key of its own. There are more if the blows take
    /// longer.
    #[arg(long, default_value_t = 2000)]
    pub(crate) requests: usize,
    /// How many processes serve them.
    #[arg(long, default_value_t = 3, value_parser = more_than_one)]
    pub(crate) nodes: usize,
    /// How often a node is killed. A quarter as often, one is stopped for longer than its lease.
    #[arg(long, default_value_t = 20)]
    pub(crate) kills: usize,
    /// How often a node's connection to the store is cut, frozen or slowed down, or the store is
    /// killed.
    #[arg(long, default_value_t = 20)]
    pub(crate) store_faults: usize,
    #[command(flatten)]
    pub(crate) trouble: Counts,
    /// Who is broken when and how.
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// What becomes of a key whose run left no outcome.
    #[arg(long, value_enum, default_value_t = OnOrphan::Retake)]
    pub(crate) orphan: OnOrphan,
    /// How many clients pay at a time.
    #[arg(long, default_value = "64")]
    pub(crate) clients: NonZero<usize>,
    /// The lease, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) lease: Duration,
    /// How far apart the clocks may be, in seconds. They are one clock here.
    #[arg(long, value_name = "SECONDS", default_value = "0.5", value_parser = seconds)]
    pub(crate) clock_skew: Duration,
    /// Lets the store take so many write units and as many read units a second, and throttle what
    /// is more.
    #[arg(long, value_name = "UNITS")]
    pub(crate) capacity: Option<NonZero<u32>>,
    /// Lets nodes give an answer before the store has it, as the layer does unless told otherwise.
    /// A key whose holder then dies can get another one.
    #[arg(long)]
    pub(crate) answer_unrecorded: bool,
    /// Where the files go, which are kept. Default: a folder that is removed.
    #[arg(long)]
    pub(crate) dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum OnOrphan {
    Retake,
    Hold,
    Reconcile,
}

impl OnOrphan {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Retake => "retake",
            Self::Hold => "hold",
            Self::Reconcile => "reconcile",
        }
    }
}

impl Storm {
    /// How often a node is stopped.
    pub(crate) const fn stops(&self) -> usize {
        self.kills.div_ceil(4)
    }

    /// How long a handler blocks its thread: longer than its lease, and shorter than clients wait.
    fn blocks_for(&self) -> Duration {
        const AND_MORE: Duration = Duration::from_millis(200);
        self.lease + self.clock_skew + AND_MORE
    }

    /// What a node is started with, apart from where its store is.
    pub(crate) fn node_args(&self, dir: &Path) -> Vec<OsString> {
        let seconds = |duration: Duration| OsString::from(duration.as_secs_f64().to_string());
        let mut args: Vec<OsString> = vec!["node".into()];
        let mut set = |name: &str, value: OsString| {
            args.push(name.into());
            args.push(value);
        };
        set("--journal", dir.join("journal").into());
        set("--troubled", dir.join("troubled").into());
        set("--requests", self.requests.to_string().into());
        set("--blocked", self.trouble.blocked.to_string().into());
        set("--timeouts", self.trouble.timeouts.to_string().into());
        let millis = self.blocks_for().as_millis();
        set("--block-millis", millis.to_string().into());
        set("--ledger", dir.join("ledger.db").into());
        set("--listen", "127.0.0.1:0".into());
        set("--lease", seconds(self.lease));
        set("--clock-skew", seconds(self.clock_skew));
        set("--orphan", self.orphan.name().into());
        set("--wait", "1".into());
        if !self.answer_unrecorded {
            args.push("--withhold".into());
        }
        args
    }
}

/// A key that is asked for once all leases have lapsed, and that nobody answers for in this time,
/// is stuck.
const STUCK_AFTER: Duration = Duration::from_secs(1);

pub(crate) async fn run(storm: &Storm) -> Result<ExitCode> {
    let dir = Dir::make(storm)?;
    std::fs::create_dir(dir.path.join("troubled"))?;
    let fleet = Arc::new(Fleet::start(storm, &dir.path).await?);
    let clients = Arc::new(Clients::new(storm, Arc::clone(&fleet)));
    let blows = Arc::new(Mutex::new(Blows::new()));
    let began = Instant::now();

    let watching = tokio::spawn(watch(Arc::clone(&clients), Arc::clone(&blows)));
    let paying = {
        let (clients, count) = (Arc::clone(&clients), storm.clients.get());
        tokio::spawn(async move { clients.pay(count).await })
    };
    hand::strike(storm, Arc::clone(&fleet), &clients, &blows).await?;
    clients.have_paid_enough();
    paying.await??;
    let took = began.elapsed();
    watching.abort();

    println!(
        "the storm is over; asking once more for each of {} payments",
        clients.payments()
    );
    // So long a key may be held by someone who is gone.
    let settles = storm.lease + storm.clock_skew;
    sleep(settles).await;
    let last = ask_for_all(&clients, storm.clients.get(), STUCK_AFTER).await?;
    let evidence = judge::Evidence {
        storm,
        took,
        sent: clients.sent(),
        blows: locked(&blows).clone(),
        answers: clients.answers(),
        told: clients.told(),
        last,
        harms: fleet.harms(),
        attempts: journal::read(&dir.path.join("journal"))?,
        effects: judge::effects_in(&dir.path.join("ledger.db"))?,
    };
    let verdict = judge::judge(&evidence);
    print!("{verdict}");
    Ok(match verdict.is_fine() {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

/// Tells how far the storm has come.
async fn watch(clients: Arc<Clients>, blows: Arc<Mutex<Blows>>) {
    const EVERY: Duration = Duration::from_secs(2);
    let mut ticks = interval(EVERY);
    let mut before = 0;
    loop {
        ticks.tick().await;
        let paid = clients.paid();
        let rate = (paid - before) as f64 / EVERY.as_secs_f64();
        let blows: usize = locked(&blows).values().sum();
        println!("{paid} paid, {rate:.0} a second; {blows} blows");
        before = paid;
    }
}

/// What becomes of each payment that is asked for once more, by its number.
async fn ask_for_all(
    clients: &Arc<Clients>,
    at_once: usize,
    within: Duration,
) -> Result<Vec<Last>> {
    let payments = clients.payments();
    let mut asking = JoinSet::new();
    for first in 0..at_once {
        let clients = Arc::clone(clients);
        asking.spawn(async move {
            let mut last = Vec::new();
            for payment in (first..payments).step_by(at_once) {
                last.push((payment, clients.ask_again(payment, within).await));
            }
            last
        });
    }
    let mut all = vec![Last::Stuck; payments];
    while let Some(asked) = asking.join_next().await {
        for (payment, last) in asked? {
            all[payment] = last;
        }
    }
    Ok(all)
}

/// Where the files of a storm are; removed in the end unless it was asked for.
struct Dir {
    path: PathBuf,
    is_kept: bool,
}

impl Dir {
    fn make(storm: &Storm) -> Result<Self> {
        let path = match &storm.dir {
            Some(path) => path.clone(),
            None => std::env::temp_dir().join(format!("chaos-{}", std::process::id())),
        };
        std::fs::create_dir_all(&path)?;
        if std::fs::read_dir(&path)?.next().is_some() {
            return Err(format!("{} is not empty", path.display()).into());
        }
        Ok(Self {
            path,
            is_kept: storm.dir.is_some(),
        })
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        if !self.is_kept {
            let _ = std::fs::remove_dir_all(&self.path);
        }
    }
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let seconds = text.parse().map_err(|_| "not a number of seconds")?;
    Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())
}

fn more_than_one(text: &str) -> std::result::Result<usize, String> {
    match text.parse() {
        Ok(nodes @ 2..) => Ok(nodes),
        _ => Err("it takes two, so that there is one to take over".to_owned()),
    }
}
