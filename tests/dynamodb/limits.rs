//! The limits that stand before the embedded DynamoDB are those that DynamoDB describes.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::error::ProvideErrorMetadata;
use aws_sdk_dynamodb::primitives::Blob;
use aws_sdk_dynamodb::types::{AttributeValue, KeysAndAttributes};
use tokio::time::sleep;

use crate::embedded::units::Units;
use crate::embedded::{Capacity, Limits};
use crate::support::{Dynamo, Item, TABLE};

const PROVISIONED: &str = "ProvisionedThroughputExceededException";

/// A table with items `a` of 40 KB and `b` to `d` of 4 KB.
async fn table() -> (Dynamo, Limits, Client) {
    let (dynamo, limits) = Dynamo::limited().await;
    dynamo.store().await;
    for (id, size) in [("a", 40_000), ("b", 4_000), ("c", 4_000), ("d", 4_000)] {
        let mut item = key(id);
        let data = AttributeValue::B(Blob::new(vec![7; size]));
        item.insert("data".to_owned(), data);
        dynamo.put(item).await;
    }
    let client = dynamo.client();
    (dynamo, limits, client)
}

fn key(id: &str) -> Item {
    Item::from([("id".to_owned(), AttributeValue::S(id.to_owned()))])
}

/// The code that a write of an item of so many bytes is answered with, if it is refused.
async fn put(client: &Client, id: &str, size: usize) -> Option<String> {
    let data = AttributeValue::B(Blob::new(vec![7; size]));
    let put = client.put_item().table_name(TABLE).item("data", data);
    let put = put.item("id", AttributeValue::S(id.to_owned()));
    let error = put.send().await.err()?;
    error.code().map(str::to_owned)
}

async fn get(client: &Client, id: &str) -> Option<String> {
    let get = client.get_item().table_name(TABLE).set_key(Some(key(id)));
    let error = get.send().await.err()?;
    error.code().map(str::to_owned)
}

/// The ids that were read, and those that were left out; or the code of the refusal.
async fn batch(client: &Client, ids: &[&str]) -> Result<(Vec<String>, Vec<String>), String> {
    let keys = ids.iter().map(|id| key(id)).collect();
    let wanted = KeysAndAttributes::builder().set_keys(Some(keys)).build();
    let wanted = wanted.expect("there are keys");
    let batch = client.batch_get_item().request_items(TABLE, wanted);
    let output = batch.send().await;
    let output = output.map_err(|error| error.code().unwrap_or_default().to_owned())?;
    let ids = |items: Vec<Item>| {
        let id = |item: &Item| item["id"].as_s().expect("a string").clone();
        items.iter().map(id).collect::<Vec<_>>()
    };
    let read = output.responses.unwrap_or_default().remove(TABLE);
    let left_out = output.unprocessed_keys.unwrap_or_default().remove(TABLE);
    let left_out = left_out.map(|wanted| wanted.keys);
    Ok((
        ids(read.unwrap_or_default()),
        ids(left_out.unwrap_or_default()),
    ))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_takes_its_units_and_no_more_until_the_debt_is_paid() {
    let (_dynamo, limits, client) = table().await;
    limits.set(Some(Capacity::of(100)));
    sleep(Duration::from_millis(50)).await;
    // It may run up a debt of some 45 units, and not two.
    assert_eq!(put(&client, "x", 50_000).await, None);
    assert_eq!(put(&client, "y", 10).await.as_deref(), Some(PROVISIONED));
    assert_eq!(limits.throttled("PutItem"), 1);
    sleep(Duration::from_millis(600)).await;
    assert_eq!(put(&client, "y", 10).await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_used_is_kept_for_as_long_as_the_capacity_says() {
    let (_dynamo, limits, client) = table().await;
    for (burst, second) in [(0.3, None), (0.1, Some(PROVISIONED))] {
        let burst = Duration::from_secs_f64(burst);
        limits.set(Some(Capacity {
            burst,
            ..Capacity::of(100)
        }));
        sleep(Duration::from_millis(300)).await;
        assert_eq!(put(&client, "x", 20_000).await, None);
        assert_eq!(put(&client, "y", 10).await.as_deref(), second);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hot_partition_is_refused_whatever_its_table_has_left() {
    let (_dynamo, limits, client) = table().await;
    limits.set(Some(Capacity::of(40_000)));
    sleep(Duration::from_millis(500)).await;
    // The partition of `x` has 500 units, the table 20,000.
    for _ in 0..4 {
        put(&client, "x", 390_000).await;
    }
    assert_eq!(put(&client, "x", 10).await.as_deref(), Some(PROVISIONED));
    // Of 54 partitions, hardly all others are the same one.
    let others = ["y", "z", "v", "w"].map(|id| put(&client, id, 10));
    let [y, z, v, w] = others;
    let refused = [y.await, z.await, v.await, w.await];
    assert!(refused.iter().any(Option::is_none), "{refused:?}");
    // Reads have units of their own.
    assert_eq!(get(&client, "x").await, None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_table_on_demand_is_refused_by_another_code() {
    let (_dynamo, limits, client) = table().await;
    limits.set(Some(Capacity {
        is_on_demand: true,
        ..Capacity::of(1)
    }));
    sleep(Duration::from_millis(50)).await;
    assert_eq!(put(&client, "x", 10_000).await, None);
    let refused = put(&client, "y", 10).await;
    assert_eq!(refused.as_deref(), Some("ThrottlingException"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_write_that_its_condition_refuses_costs_what_is_there() {
    let (_dynamo, limits, client) = table().await;
    limits.set(Some(Capacity::of(100)));
    sleep(Duration::from_millis(100)).await;
    let put = client.put_item().table_name(TABLE).set_item(Some(key("a")));
    let refused = put.condition_expression("attribute_not_exists(id)");
    refused.send().await.expect_err("it is there");
    // 40 KB of the 10 units that there were.
    let refused = self::put(&client, "y", 10).await;
    assert_eq!(refused.as_deref(), Some(PROVISIONED));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_leaves_out_what_is_over_the_limit_and_is_refused_if_that_is_all() {
    let (_dynamo, limits, client) = table().await;
    let capacity = Capacity {
        units: Units {
            writes: 100.0,
            reads: 10.0,
        },
        ..Capacity::of(1)
    };
    limits.set(Some(capacity));
    sleep(Duration::from_millis(150)).await;
    // `b` takes half a unit of one and a half, and `a` five.
    let (read, left_out) = batch(&client, &["b", "a", "c", "d"]).await.expect("some");
    assert_eq!(read, ["b", "a"]);
    assert_eq!(left_out, ["c", "d"]);
    let refused = batch(&client, &["c", "d"]).await;
    assert_eq!(refused.expect_err("nothing is left"), PROVISIONED);
    assert_eq!(limits.throttled("BatchGetItem"), 4);
}
