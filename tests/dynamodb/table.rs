//! Making a table, and what is said of one that does not serve.

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::types::{
    AttributeDefinition, BillingMode, KeySchemaElement, KeyType, ScalarAttributeType,
    TimeToLiveSpecification,
};
use tower_idempotency::StoreErrorKind;
use tower_idempotency::store::{Attribute, DynamoDbStore, Release, Store, TableError};

use crate::support::{Claimer, Dynamo, START, TABLE, completes, completion, noise, renewal};
use crate::wire::Fault;

/// A table with these keys, all strings unless their name ends with `_n`.
async fn make_table(client: &Client, keys: &[&str]) {
    let mut create = client
        .create_table()
        .table_name(TABLE)
        .billing_mode(BillingMode::PayPerRequest);
    for (index, name) in keys.iter().enumerate() {
        let key_type = [KeyType::Hash, KeyType::Range][index].clone();
        let attribute_type = match name.ends_with("_n") {
            true => ScalarAttributeType::N,
            false => ScalarAttributeType::S,
        };
        let element = KeySchemaElement::builder().attribute_name(*name);
        let definition = AttributeDefinition::builder().attribute_name(*name);
        create = create
            .key_schema(element.key_type(key_type).build().expect("complete"))
            .attribute_definitions(
                definition
                    .attribute_type(attribute_type)
                    .build()
                    .expect("complete"),
            );
    }
    create.send().await.expect("the table is made");
}

async fn enable_time_to_live(client: &Client, attribute: &str) {
    let specification = TimeToLiveSpecification::builder()
        .enabled(true)
        .attribute_name(attribute)
        .build();
    client
        .update_time_to_live()
        .table_name(TABLE)
        .time_to_live_specification(specification.expect("complete"))
        .send()
        .await
        .expect("time to live is enabled");
}

/// What is wrong, in words.
async fn trouble(store: &DynamoDbStore) -> (TableError, String) {
    let trouble = store.check().await.expect_err("the table does not serve");
    let text = trouble.to_string();
    (trouble, text)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_was_made_serves() {
    let dynamo = Dynamo::in_memory().await;
    for store in [
        DynamoDbStore::new(dynamo.client(), "plain"),
        DynamoDbStore::new(dynamo.client(), "sorted").sort_key("sk", "idempotency"),
        DynamoDbStore::new(dynamo.client(), "fixed").fixed_sort_key("sk", "record"),
        DynamoDbStore::new(dynamo.client(), "renamed")
            .rename(Attribute::Id, "pk")
            .rename(Attribute::Expiration, "ttl"),
    ] {
        store.create_table().await.expect("the table is made");
        store.check().await.expect("it serves");
        store.create_table().await.expect("it is there, and serves");
        Claimer::new().acquires(&store).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_can_make_the_table_at_once() {
    let dynamo = Dynamo::in_memory().await;
    for table in ["first", "second", "third"] {
        let store = DynamoDbStore::new(dynamo.client(), table);
        let (one, other) = tokio::join!(store.create_table(), store.create_table());
        one.expect("the table is made");
        other.expect("the table is made");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_that_takes_a_while_to_show_is_waited_for() {
    let dynamo = Dynamo::in_memory().await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE);
    let not_yet = Fault::Answered(400, "ResourceNotFoundException");
    for operation in ["DescribeTable", "DescribeTable", "DescribeTimeToLive"] {
        dynamo.wire.fail_next(operation, not_yet);
    }
    store.create_table().await.expect("the table is made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn checking_writes_nothing() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    store.check().await.expect("it serves");
    assert!(dynamo.items().await.is_empty());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_missing_table_is_told() {
    let dynamo = Dynamo::in_memory().await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE);
    let (trouble, text) = trouble(&store).await;
    assert!(matches!(trouble, TableError::Missing { table } if table == TABLE));
    assert!(text.contains("create_table"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_key_is_told() {
    for (keys, found) in [
        (&["pk"][..], "is `pk` (S) and not `id` (S)"),
        (&["id_n"], "is `id_n` (N) and not `id` (S)"),
        (&["id", "sk"], "is `id` (S) and `sk` (S) and not `id` (S)"),
    ] {
        let dynamo = Dynamo::in_memory().await;
        make_table(&dynamo.client(), keys).await;
        let store = DynamoDbStore::new(dynamo.client(), TABLE);
        let (trouble, text) = trouble(&store).await;
        assert!(
            matches!(trouble, TableError::WrongKey { .. }),
            "{trouble:?}"
        );
        assert!(text.contains(found), "{text}");
        let created = store.create_table().await;
        assert!(matches!(created, Err(TableError::WrongKey { .. })));
    }
    let dynamo = Dynamo::in_memory().await;
    make_table(&dynamo.client(), &["id_n"]).await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE).rename(Attribute::Id, "id_n");
    let (_, text) = trouble(&store).await;
    assert!(text.contains("is `id_n` (N) and not `id_n` (S)"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn time_to_live_that_is_off_or_elsewhere_is_told() {
    let dynamo = Dynamo::in_memory().await;
    make_table(&dynamo.client(), &["id"]).await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE);
    let (off, text) = trouble(&store).await;
    assert!(matches!(off, TableError::TimeToLiveDisabled { .. }));
    assert!(
        text.contains("enable it on the attribute `expiration`"),
        "{text}"
    );

    enable_time_to_live(&dynamo.client(), "ttl").await;
    let (elsewhere, text) = trouble(&store).await;
    assert!(matches!(elsewhere, TableError::TimeToLiveElsewhere { .. }));
    assert!(
        text.contains("goes by `ttl` and not by `expiration`"),
        "{text}"
    );
    let renamed = store.rename(Attribute::Expiration, "ttl");
    renamed.check().await.expect("as the sentence says");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_permission_that_is_missing_is_told() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for (operation, action) in [
        ("BatchGetItem", "dynamodb:BatchGetItem"),
        ("DeleteItem", "dynamodb:DeleteItem"),
        ("DescribeTable", "dynamodb:DescribeTable"),
        ("DescribeTimeToLive", "dynamodb:DescribeTimeToLive"),
        ("GetItem", "dynamodb:GetItem"),
        ("PutItem", "dynamodb:PutItem"),
        ("UpdateItem", "dynamodb:UpdateItem"),
    ] {
        let denied = Fault::Answered(400, "AccessDeniedException");
        dynamo.wire.fail_always(operation, denied);
        let (trouble, text) = trouble(&store).await;
        assert!(
            matches!(trouble, TableError::NotAllowed { action: told, .. } if told == action),
            "{trouble:?}"
        );
        assert!(text.contains(action), "{text}");
        dynamo.wire.heal();
    }
    store.check().await.expect("it serves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_told_is_said_to_be_unknown() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let failed = Fault::Answered(500, "InternalServerError");
    for operation in ["DescribeTable", "DescribeTimeToLive", "GetItem", "PutItem"] {
        dynamo.wire.fail_next(operation, failed);
        let (trouble, text) = trouble(&store).await;
        assert!(matches!(trouble, TableError::Unknown(_)), "{trouble:?}");
        assert!(text.contains("InternalServerError"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_given_twice_is_told_before_anything_is_made() {
    let dynamo = Dynamo::in_memory().await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE).rename(Attribute::Owner, "status");
    let (trouble, text) = trouble(&store).await;
    assert!(matches!(trouble, TableError::AmbiguousName { name } if name == "status"));
    assert!(text.contains("rename"), "{text}");
    assert!(store.create_table().await.is_err());
    assert!(dynamo.wire.calls().is_empty());
}

/// Every call is refused for good, with these words, and nothing is sent.
async fn is_refused_at_once(dynamo: &Dynamo, store: &DynamoDbStore, says: &str) {
    let lease = Claimer::new().acquires(&dynamo.elsewhere()).await;
    let claimed = Claimer::new().claims(store).await.map(drop);
    let holder = lease.holder();
    let renewed = store.renew(&holder, renewal(), START).await.map(drop);
    let completed = store.complete(&holder, &completion("answer"), START).await;
    let released = store.release(&holder, Release::Free, START).await;
    let released = released.map(drop);
    let looked = store.get(&lease.key, START).await.map(drop);
    let removed = store.remove(&lease.key).await.map(drop);
    let swept = store.sweep(START).await.map(drop);
    let completed = completed.map(drop);
    for result in [
        claimed, renewed, completed, released, looked, removed, swept,
    ] {
        let error = result.expect_err("it is refused");
        assert_eq!(error.kind(), StoreErrorKind::Unusable);
        assert!(!error.may_have_been_applied());
        assert!(error.to_string().contains(says), "{error}");
    }
    assert!(store.check().await.is_err());
    assert!(store.create_table().await.is_err());
    assert_eq!(dynamo.wire.calls(), [""; 0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_given_twice_is_refused_by_every_call() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let renamed = |attribute, name: &str| store.clone().rename(attribute, name);
    for (twice, name) in [
        (renamed(Attribute::Expiration, "expires_at"), "expires_at"),
        (renamed(Attribute::Status, "id"), "id"),
        (
            renamed(Attribute::Token, "t").rename(Attribute::Attempt, "t"),
            "t",
        ),
        (
            renamed(Attribute::Token, "sk").fixed_sort_key("sk", "record"),
            "sk",
        ),
    ] {
        let says = format!("two attributes are named `{name}`");
        is_refused_at_once(&dynamo, &twice, &says).await;
    }
    // Names may trade places on the way.
    let traded = renamed(Attribute::Token, "attempt").rename(Attribute::Attempt, "token");
    Claimer::new().acquires(&traded).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_or_an_id_that_does_not_fit_is_refused_by_every_call() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let store = || store.clone();
    for (misfit, says) in [
        (store().id_prefix("p".repeat(1_938)), "2049 bytes"),
        (
            store().sort_key("sk", "pk").id_prefix("p".repeat(914)),
            "1025 bytes",
        ),
        (store().sort_key("sk", ""), "is empty"),
        (store().sort_key("sk", "v".repeat(2_049)), "2049 bytes"),
        (store().sort_key("", "v"), "is empty"),
        (store().fixed_sort_key("sk", ""), "is empty"),
        (
            store().fixed_sort_key("sk", "v".repeat(1_025)),
            "1025 bytes",
        ),
        (store().rename(Attribute::Data, ""), "is empty"),
        (
            store().rename(Attribute::Data, "d".repeat(256)),
            "256 bytes",
        ),
        (DynamoDbStore::new(dynamo.client(), ""), "is empty"),
    ] {
        is_refused_at_once(&dynamo, &misfit, says).await;
    }
    let longest = store().id_prefix("p".repeat(1_937));
    let lease = Claimer::new().acquires(&longest).await;
    completes(&longest, &lease, noise(500_000)).await;
}

fn replicas(consistency: Option<&str>) -> serde_json::Value {
    let mut table = serde_json::json!({
        "Replicas": [{ "RegionName": "us-west-2", "ReplicaStatus": "ACTIVE" }],
    });
    if let Some(consistency) = consistency {
        table["MultiRegionConsistency"] = consistency.into();
    }
    table
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_global_table_is_refused_unless_all_write_in_one_region() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    for consistency in [None, Some("EVENTUAL")] {
        dynamo.wire.describe(&replicas(consistency));
        let (trouble, text) = trouble(&store).await;
        assert!(
            matches!(trouble, TableError::Global { regions, .. } if regions == ["us-west-2"]),
            "{text}"
        );
        assert!(text.contains("writes_in_one_region"), "{text}");
        let acknowledged = store.clone().writes_in_one_region();
        acknowledged.check().await.expect("as the sentence says");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_global_table_of_strong_consistency_serves_without_time_to_live() {
    let dynamo = Dynamo::in_memory().await;
    make_table(&dynamo.client(), &["id"]).await;
    let store = DynamoDbStore::new(dynamo.client(), TABLE);
    dynamo.wire.describe(&replicas(Some("STRONG")));
    store.check().await.expect("it serves");
    let calls = dynamo.wire.calls();
    assert!(
        !calls.contains(&"DescribeTimeToLive".to_owned()),
        "{calls:?}"
    );

    // Elsewhere it is missed.
    dynamo.wire.describe(&serde_json::json!({}));
    let (trouble, _) = trouble(&store).await;
    assert!(matches!(trouble, TableError::TimeToLiveDisabled { .. }));
}
