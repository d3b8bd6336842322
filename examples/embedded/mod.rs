//! A DynamoDB in this process, with its data in SQLite, which can have the limits of a real one.

mod capacity;
mod front;
pub(crate) mod units;

use dynoxide::Database;
use tokio::net::TcpListener;

pub(crate) use self::capacity::{Capacity, Limits};

/// Serves `database` until the task ends; within `limits`, if there are any.
pub(crate) async fn serve(
    listener: TcpListener,
    database: Database,
    limits: Option<Limits>,
) -> std::io::Result<()> {
    let Some(limits) = limits else {
        dynoxide::server::serve_on(listener, database).await;
        return Ok(());
    };
    let behind = TcpListener::bind("127.0.0.1:0").await?;
    let address = behind.local_addr()?;
    tokio::select! {
        () = dynoxide::server::serve_on(behind, database) => Ok(()),
        served = front::serve(listener, address, limits) => served,
    }
}
