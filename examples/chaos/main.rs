//! A machine that breaks things: nodes of the payments example on one DynamoDB, clients that pay,
//! and a hand that kills, stops and cuts off; then it counts whether a payment was made twice.
//!
//! ```text
//! cargo run --release --example chaos -- --requests 2000 --kills 20 --store-faults 20 --seed 1
//! ```
//!
//! The nodes are processes of their own, each with moka over a DynamoDB that is a process, too:
//! embedded, with its data in a file. The effect of a payment is a row in an SQLite file that all
//! nodes write to. Clients retry as Stripe's do, hang up, ask twice at once, and do not give up.
//! Meanwhile nodes are killed with SIGKILL and started again, or stopped for longer than their
//! lease and continued; their connections to the store are cut, frozen and slowed down; and the
//! store is killed and started again. Handlers block their threads for longer than a lease, and
//! timeouts between the layer and the handlers answer for some.
//!
//! In the end every node is well again, each key is asked for once more, and what the clients
//! were told is held against the ledger and the journal of all attempts. The exit code is 1 if
//! anything was wrong that the orphan policy does not allow for; `docs/guarantees.md` says what
//! each policy allows. The seed decides who is broken when and how; how the processes interleave
//! is up to the machine.

mod clients;
mod fleet;
mod hand;
mod journal;
mod judge;
#[path = "../payments/app/mod.rs"]
mod payments;
mod process;
mod storm;
mod trouble;
mod wire;

use std::net::SocketAddr;
use std::num::NonZero;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::net::TcpListener;

use crate::journal::Journal;
use crate::payments::embedded::{self, Capacity, Limits};
use crate::storm::Storm;

/// Breaks a fleet of payment servers, and counts what was paid twice.
#[derive(Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Flags {
    /// What this process is, if it was started by another one.
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    storm: Storm,
}

#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// A node of the fleet.
    Node {
        #[arg(long)]
        journal: PathBuf,
        #[command(flatten)]
        trouble: trouble::Plan,
        #[command(flatten)]
        payments: Box<payments::Flags>,
    },
    /// The DynamoDB of the fleet.
    Store {
        #[arg(long)]
        listen: SocketAddr,
        #[arg(long)]
        data: PathBuf,
        #[arg(long)]
        capacity: Option<NonZero<u32>>,
    },
}

#[tokio::main]
async fn main() -> ExitCode {
    let flags = Flags::parse();
    if flags.role.is_some() {
        process::end_with_parent();
    }
    let result = match flags.role {
        None => storm::run(&flags.storm).await,
        Some(Role::Node {
            journal,
            trouble,
            payments,
        }) => match Journal::open(&journal) {
            Ok(journal) => {
                // The journal is further out, and notes what trouble makes of a handler.
                let around = |routes| {
                    let routes = trouble.around(&journal, routes);
                    journal.around(routes)
                };
                return payments::run(&payments, around).await;
            }
            Err(error) => Err(error.into()),
        },
        Some(Role::Store {
            listen,
            data,
            capacity,
        }) => serve_store(listen, &data, capacity).await,
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("chaos: {error}");
            ExitCode::FAILURE
        }
    }
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn serve_store(
    listen: SocketAddr,
    data: &std::path::Path,
    capacity: Option<NonZero<u32>>,
) -> Result<ExitCode> {
    let data = data.to_str().ok_or("the path of --data is not UTF-8")?;
    let database = dynoxide::Database::new(data).map_err(|error| error.to_string())?;
    let listener = TcpListener::bind(listen).await?;
    println!("listening on http://{}", listener.local_addr()?);
    let limits = capacity.map(|units| Limits::new(Some(Capacity::of(units.get()))));
    embedded::serve(listener, database, limits).await?;
    Ok(ExitCode::SUCCESS)
}
