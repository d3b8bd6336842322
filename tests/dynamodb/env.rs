//! A store from the environment.

use std::process::Command;

use tower_idempotency::store::DynamoDbStore;

use crate::support::{Claimer, Dynamo, TABLE};

/// Says to the child below that it is meant.
const CHILD: &str = "TOWER_IDEMPOTENCY_TEST_CHILD";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn region_credentials_and_endpoint_come_from_the_environment() {
    let dynamo = Dynamo::in_memory().await;
    dynamo.store().await;
    // The environment of a process is not changed while its threads run: another one, then.
    let mut child = Command::new(std::env::current_exe().expect("a path"));
    child
        .args(["--exact", "env::a_child_claims"])
        .env_clear()
        .env(CHILD, "1")
        .env("AWS_ACCESS_KEY_ID", "test")
        .env("AWS_SECRET_ACCESS_KEY", "test")
        .env("AWS_REGION", "eu-central-1")
        .env("AWS_ENDPOINT_URL_DYNAMODB", &dynamo.url);
    let ended = tokio::task::spawn_blocking(move || child.output());
    let ended = ended.await.expect("it does not panic").expect("it runs");
    assert!(ended.status.success(), "{ended:?}");
    dynamo.item().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_child_claims() {
    if std::env::var_os(CHILD).is_some() {
        let store = DynamoDbStore::from_env(TABLE).await;
        store.check().await.expect("the table serves");
        Claimer::new().acquires(&store).await;
    }
}
