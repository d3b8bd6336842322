//! The store, as the flags choose it.

use std::error::Error;
use std::path::Path;

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{Credentials, Region};
use tokio::net::TcpListener;
use tower_idempotency::store::{DynamoDbStore, MemoryStore, SharedStore, TableError};

use super::embedded::{self, Capacity, Limits};
use super::flags::{Flags, Kind};

pub(crate) async fn open(flags: &Flags) -> Result<SharedStore, Box<dyn Error>> {
    Ok(match flags.store {
        Kind::Memory => SharedStore::new(MemoryStore::new()),
        Kind::Dynamodb => SharedStore::new(dynamodb(flags).await?),
        Kind::Tiered => SharedStore::new(MemoryStore::new().over(dynamodb(flags).await?)),
    })
}

async fn dynamodb(flags: &Flags) -> Result<DynamoDbStore, Box<dyn Error>> {
    let client = match &flags.endpoint_url {
        Some(url) => client_from_env(url).await,
        None => {
            let capacity = flags.capacity.map(|units| Capacity::of(units.get()));
            client_of_embedded(&flags.data, capacity).await?
        }
    };
    let store = DynamoDbStore::new(client, &flags.table);
    // Making a table needs more permissions than using it, so that is only done when it must be.
    // One that is not complete yet may be another node's, which `create_table` waits for.
    match store.check().await {
        Err(
            TableError::Missing { .. }
            | TableError::NotReady { .. }
            | TableError::TimeToLiveDisabled { .. },
        ) => store.create_table().await?,
        checked => checked?,
    }
    Ok(store)
}

/// Where leases are renewed, if not in the store: on connections that no handler can block,
/// because they live on the thread of the heartbeat.
pub(crate) async fn for_heartbeat(flags: &Flags) -> Option<DynamoDbStore> {
    let url = match flags.store {
        Kind::Memory => None,
        Kind::Dynamodb | Kind::Tiered => flags.endpoint_url.as_ref(),
    };
    let client = client_from_env(url?).await;
    Some(DynamoDbStore::new(client, &flags.table))
}

/// Region and credentials come from where the AWS SDKs look for them. Without a URL to give,
/// `DynamoDbStore::from_env` does all of this.
async fn client_from_env(url: &str) -> Client {
    let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
        .endpoint_url(url)
        .timeout_config(DynamoDbStore::timeouts())
        .retry_config(DynamoDbStore::retries())
        .load()
        .await;
    Client::new(&config)
}

/// A DynamoDB of this process's own, on the loopback interface, with its data in an SQLite file.
/// It serves until the process ends, for the runs whose clients have gone need it to the last.
async fn client_of_embedded(
    data: &Path,
    capacity: Option<Capacity>,
) -> Result<Client, Box<dyn Error>> {
    let path = data.to_str().ok_or("the path of --data is not UTF-8")?;
    let database =
        dynoxide::Database::new(path).map_err(|error| format!("the embedded DynamoDB: {error}"))?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    let limits = capacity.map(|capacity| Limits::new(Some(capacity)));
    tokio::spawn(embedded::serve(listener, database, limits));

    // Plain HTTP, past any proxy that the environment names. The embedded DynamoDB believes any
    // credentials.
    let config = aws_sdk_dynamodb::Config::builder()
        .behavior_version(BehaviorVersion::v2026_01_12())
        .http_client(aws_smithy_http_client::Builder::new().build_http())
        .endpoint_url(url)
        .region(Region::new("local"))
        .credentials_provider(Credentials::new("local", "local", None, None, "embedded"))
        .timeout_config(DynamoDbStore::timeouts())
        .retry_config(DynamoDbStore::retries())
        .build();
    Ok(Client::from_conf(config))
}
