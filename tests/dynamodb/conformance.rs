//! The suite that every store passes, for each way to lay a table out.

use aws_sdk_dynamodb::Client;
use tower_idempotency::store::{Attribute, DynamoDbStore};
use tower_idempotency::testing::conformance::{Capabilities, Suite};

use crate::support::{Dynamo, config, unique};

/// Every way to lay a table out, on tables that nobody else uses.
fn layouts(client: &Client) -> [DynamoDbStore; 5] {
    let store = || {
        let table = format!("idempotency-{}-{}", std::process::id(), unique());
        DynamoDbStore::new(client.clone(), table)
    };
    [
        store(),
        store().sort_key("sort_key", "idempotency#payments"),
        store()
            .fixed_sort_key("sort_key", "record")
            .id_prefix("idempotency#"),
        store()
            .rename(Attribute::Id, "pk")
            .rename(Attribute::Expiration, "ttl")
            .rename(Attribute::InProgressExpiration, "lease_ttl")
            .rename(Attribute::Status, "state"),
        store()
            .sort_key("SK", "i")
            .rename(Attribute::Id, "PK")
            .rename(Attribute::Data, "d")
            .rename(Attribute::Validation, "v")
            .rename(Attribute::Attempt, "a")
            .rename(Attribute::Chunks, "c")
            .rename(Attribute::CreatedAt, "ca")
            .rename(Attribute::Deadline, "dl")
            .rename(Attribute::ExpiresAt, "ea")
            .rename(Attribute::Format, "f")
            .rename(Attribute::KeyParts, "k")
            .rename(Attribute::Owner, "o")
            .rename(Attribute::StartedAt, "sa")
            .rename(Attribute::Token, "t"),
    ]
}

async fn conforms(store: DynamoDbStore) {
    store.create_table().await.expect("the table is made");
    let make_store = move || std::future::ready(store.clone());
    let can = Capabilities::all().largest_answer(DynamoDbStore::MAX_ANSWER);
    Suite::made_by(make_store, can).all().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_layout_conforms_in_memory() {
    let dynamo = Dynamo::in_memory().await;
    for store in layouts(&dynamo.client()) {
        conforms(store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_store_on_disk_conforms() {
    let dynamo = Dynamo::on_disk().await;
    let [store, ..] = layouts(&dynamo.client());
    conforms(store).await;
}

/// Any other DynamoDB, such as an emulator of other make: `DYNAMODB_ENDPOINT_URL` says where.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_layout_conforms_at_the_endpoint_of_the_environment() {
    let Ok(url) = std::env::var("DYNAMODB_ENDPOINT_URL") else {
        return;
    };
    let http = aws_smithy_http_client::Builder::new().build_http();
    let client = Client::from_conf(config(&url).http_client(http).build());
    for store in layouts(&client) {
        conforms(store).await;
    }
}
