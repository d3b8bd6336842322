//! The client, too, from the environment.

use aws_config::BehaviorVersion;
use aws_sdk_dynamodb::Client;

use super::DynamoDbStore;

impl DynamoDbStore {
    /// A store in the table named `table`, over a client that takes region, credentials and
    /// endpoint from where the AWS SDKs look for them (environment variables, profiles, the
    /// metadata services of containers and instances), with [`timeouts`](Self::timeouts) and
    /// [`retries`](Self::retries).
    ///
    /// It does not fail: what is missing shows at the first call, or at [`check`](Self::check).
    pub async fn from_env(table: impl Into<String>) -> Self {
        let config = aws_config::defaults(BehaviorVersion::v2026_01_12())
            .timeout_config(Self::timeouts())
            .retry_config(Self::retries())
            .load()
            .await;
        Self::new(Client::new(&config), table)
    }
}
