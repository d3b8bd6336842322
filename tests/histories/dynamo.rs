//! A DynamoDB in the process.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::retry::RetryConfig;
use aws_sdk_dynamodb::config::timeout::TimeoutConfig;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use tokio::net::TcpListener;
use tower_idempotency::store::DynamoDbStore;

use crate::wire::Wire;

/// A DynamoDB with one table, which ends with the runtime of its test.
pub(crate) struct Dynamo {
    url: String,
}

impl Dynamo {
    pub(crate) async fn in_memory() -> Self {
        let database = dynoxide::Database::memory().expect("SQLite opens");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        tokio::spawn(dynoxide::server::serve_with_shutdown(
            listener,
            database,
            std::future::pending(),
        ));
        let dynamo = Self {
            url: format!("http://{address}"),
        };
        let made = dynamo.store().create_table().await;
        made.expect("the table is made");
        dynamo
    }

    /// A store whose client sees no faults.
    pub(crate) fn store(&self) -> DynamoDbStore {
        self.store_over(&Wire::new(), Duration::from_secs(10))
    }

    /// A store whose client makes up to three tries over `wire`, each for as long as `patience`.
    pub(crate) fn store_over(&self, wire: &Wire, patience: Duration) -> DynamoDbStore {
        let retries = RetryConfig::standard()
            .with_max_attempts(3)
            .with_initial_backoff(Duration::from_millis(1));
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(patience)
            .build();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new("eu-central-1"))
            .credentials_provider(Credentials::new("test", "test", None, None, "test"))
            .endpoint_url(&self.url)
            .http_client(wire.clone())
            .retry_config(retries)
            .timeout_config(timeouts);
        DynamoDbStore::new(Client::from_conf(config.build()), "idempotency")
    }
}
