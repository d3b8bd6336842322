//! What can be set.

use std::error::Error;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// A payment API in the shape of Stripe's.
#[derive(Parser)]
pub(crate) struct Flags {
    /// Where to listen; with port 0, the system picks one.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:3000")]
    pub(crate) listen: SocketAddr,
    /// Where keys and answers are kept.
    #[arg(long, value_enum, default_value_t = Kind::Tiered)]
    pub(crate) store: Kind,
    /// The SQLite file of the embedded DynamoDB, for one process at a time.
    #[arg(long, value_name = "FILE", default_value = "payments-data.db")]
    pub(crate) data: PathBuf,
    /// Another DynamoDB than the embedded one, such as https://dynamodb.eu-central-1.amazonaws.com;
    /// credentials and region come from the usual AWS environment.
    #[arg(long, value_name = "URL", conflicts_with = "data")]
    pub(crate) endpoint_url: Option<String>,
    /// Lets the embedded DynamoDB take so many write units and as many read units a second, and
    /// throttle what is more, as a provisioned table does.
    #[arg(long, value_name = "UNITS", conflicts_with = "endpoint_url")]
    pub(crate) capacity: Option<NonZero<u32>>,
    /// The DynamoDB table, which is made if there is none.
    #[arg(long, value_name = "NAME", default_value = "idempotency")]
    pub(crate) table: String,
    /// The SQLite file of the charges, which several nodes may share.
    #[arg(long, value_name = "FILE", default_value = "payments-ledger.db")]
    pub(crate) ledger: PathBuf,
    /// How long a run may be silent before its key counts as orphaned.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) lease: Duration,
    /// How far apart the clocks of two nodes may be.
    #[arg(long, value_name = "SECONDS", default_value = "2", value_parser = seconds)]
    pub(crate) clock_skew: Duration,
    /// How long answers are remembered.
    #[arg(long, value_name = "SECONDS", default_value = "86400", value_parser = seconds)]
    pub(crate) retention: Duration,
    /// What becomes of a key whose run left no outcome.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = OnOrphan::Retake)]
    pub(crate) orphan: OnOrphan,
    /// Which answers are recorded.
    #[arg(long, value_name = "POLICY", value_enum, default_value_t = Record::Default)]
    pub(crate) record: Record,
    /// Gives no answer before the store has it: 503 until then.
    #[arg(long)]
    pub(crate) withhold: bool,
    /// How long a duplicate waits for the run in flight before it is refused.
    #[arg(long, value_name = "SECONDS", default_value = "0", value_parser = seconds)]
    pub(crate) wait: Duration,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Kind {
    /// In memory: gone with the process.
    Memory,
    /// In DynamoDB alone.
    Dynamodb,
    /// In DynamoDB, and in memory what this process knows of it.
    Tiered,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum OnOrphan {
    /// Run it again.
    Retake,
    /// Never run it again.
    Hold,
    /// Ask the ledger.
    Reconcile,
}

#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Record {
    /// What the status says is the outcome: 2xx, redirections, 402.
    Default,
    /// All, as Stripe does it.
    StripeV1,
    /// Successes only.
    Success,
}

fn seconds(text: &str) -> Result<Duration, Box<dyn Error + Send + Sync>> {
    Ok(Duration::try_from_secs_f64(text.parse()?)?)
}
