//! Passes calls on to the embedded DynamoDB, and refuses what is over its limits.
//!
//! Calls on items, batches of reads, queries and scans are counted. Transactions and batches of
//! writes, which the crate does not make, pass uncounted.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use dynoxide::types::write_capacity_units;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::capacity::{Access, Asked, Limits, Throttled};
use super::units::{billed, is_write, size};

/// DynamoDB takes requests up to this size, and gives as much of a batch at a time.
const MOST_BYTES: usize = 16 << 20;
/// As much of one partition is in one answer to a batch.
const MOST_OF_PARTITION: usize = 1 << 20;

const ON_FAILURE: &str = "ReturnValuesOnConditionCheckFailure";
const ALL_OLD: &str = "ALL_OLD";
const TARGET: &str = "x-amz-target";
/// How DynamoDB names its operations in the header.
const VERSION: &str = "DynamoDB_20120810";
const MEDIA_TYPE: &str = "application/x-amz-json-1.0";

pub(super) async fn serve(
    listener: TcpListener,
    behind: SocketAddr,
    limits: Limits,
) -> std::io::Result<()> {
    let front = Arc::new(Front {
        url: format!("http://{behind}/"),
        client: Client::builder(TokioExecutor::new()).build_http(),
        limits,
        partition_keys: Mutex::default(),
    });
    let routes = Router::new().fallback(answer).with_state(front);
    axum::serve(listener, routes).await
}

struct Front {
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
    limits: Limits,
    /// What the partition key of each table is called.
    partition_keys: Mutex<HashMap<String, String>>,
}

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

async fn answer(State(front): State<Arc<Front>>, request: Request<Body>) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MOST_BYTES).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let target = parts.headers.get(TARGET).and_then(|it| it.to_str().ok());
    let operation = target.and_then(|target| target.rsplit('.').next());
    let operation = operation.unwrap_or_default().to_owned();
    let answered = match serde_json::from_slice(&body) {
        Ok(sent) if is_write(&operation) || operation == "GetItem" => {
            front.single(&parts.headers, &operation, sent).await
        }
        Ok(sent) if operation == "Query" || operation == "Scan" => {
            front.many(&parts.headers, &operation, sent).await
        }
        Ok(sent) if operation == "BatchGetItem" => front.batch(&parts.headers, &sent).await,
        _ => front.pass(&parts.headers, body).await,
    };
    // What stands behind is gone, or speaks no JSON.
    answered.unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
}

impl Front {
    /// A call on one item.
    async fn single(&self, headers: &HeaderMap, operation: &str, sent: Value) -> Result<Response> {
        let table = table_of(&sent);
        let name = self.partition_key(headers, &table).await?;
        let item = [&sent["Item"], &sent["Key"]];
        let key = item.map(|item| &item[&name]).into_iter();
        let key = key
            .filter(|key| !key.is_null())
            .map(Value::to_string)
            .next();
        let asked = Asked {
            table: &table,
            partition_key: key.as_deref(),
            access: match is_write(operation) {
                true => Access::Write,
                false => Access::Read,
            },
        };
        self.counted(headers, operation, asked, sent).await
    }

    /// A call on many items of a table, which are not told apart by their partitions.
    async fn many(&self, headers: &HeaderMap, operation: &str, sent: Value) -> Result<Response> {
        let table = table_of(&sent);
        let asked = Asked {
            table: &table,
            partition_key: None,
            access: Access::Read,
        };
        self.counted(headers, operation, asked, sent).await
    }

    async fn counted(
        &self,
        headers: &HeaderMap,
        operation: &str,
        asked: Asked<'_>,
        mut sent: Value,
    ) -> Result<Response> {
        let expected = match asked.access {
            // What is there may be larger.
            Access::Write => write_capacity_units(size(&sent["Item"])).max(1.0),
            Access::Read => 0.0,
        };
        if let Err(throttled) = self.limits.admit(operation, asked, expected) {
            return Ok(refused(&throttled, &table_of(&sent)));
        }
        sent["ReturnConsumedCapacity"] = json!("TOTAL");
        // What refuses a write is billed, whether it is shown or not.
        let shows_refuser = sent[ON_FAILURE] == ALL_OLD;
        if sent["ConditionExpression"].is_string() {
            sent[ON_FAILURE] = json!(ALL_OLD);
        }
        let (status, mut answered) = self.ask(headers, &sent).await?;
        let billed = billed(operation, &sent, &answered);
        let taken = match asked.access {
            Access::Write => billed.writes,
            Access::Read => billed.reads,
        };
        self.limits.take(asked, taken - expected);
        if !status.is_success()
            && !shows_refuser
            && let Some(answered) = answered.as_object_mut()
        {
            answered.remove("Item");
        }
        Ok(json_answer(status, &answered))
    }

    /// A batch is asked for one key after the other, so that each is counted before the next.
    async fn batch(&self, headers: &HeaderMap, sent: &Value) -> Result<Response> {
        let mut found = serde_json::Map::new();
        let mut left_out = serde_json::Map::new();
        let mut throttled = None;
        let mut bytes = 0;
        let mut of_partition: HashMap<String, usize> = HashMap::new();
        for (table, wanted) in sent["RequestItems"].as_object().into_iter().flatten() {
            let name = self.partition_key(headers, table).await?;
            let mut items = Vec::new();
            let mut unprocessed = Vec::new();
            for key in wanted["Keys"].as_array().into_iter().flatten() {
                let partition = key[&name].to_string();
                let asked = Asked {
                    table,
                    partition_key: Some(&partition),
                    access: Access::Read,
                };
                let of_partition = of_partition.entry(partition.clone()).or_default();
                if bytes > MOST_BYTES || *of_partition > MOST_OF_PARTITION {
                    unprocessed.push(key.clone());
                    continue;
                }
                if let Err(error) = self.limits.admit("BatchGetItem", asked, 0.0) {
                    throttled.get_or_insert((error, table));
                    unprocessed.push(key.clone());
                    continue;
                }
                let mut one = wanted.clone();
                one["Keys"] = json!([key]);
                let one = json!({ "RequestItems": { table: one } });
                let (status, mut answered) = self.ask(headers, &one).await?;
                if !status.is_success() {
                    return Ok(json_answer(status, &answered));
                }
                self.limits
                    .take(asked, billed("BatchGetItem", &one, &answered).reads);
                if let Value::Array(read) = answered["Responses"][table].take() {
                    let read_bytes: usize = read.iter().map(size).sum();
                    bytes += read_bytes;
                    *of_partition += read_bytes;
                    items.extend(read);
                }
            }
            found.insert(table.clone(), items.into());
            if !unprocessed.is_empty() {
                let mut rest = wanted.clone();
                rest["Keys"] = unprocessed.into();
                left_out.insert(table.clone(), rest);
            }
        }
        let is_any_found = found.values().any(|items| items != &json!([]));
        match throttled {
            Some((error, table)) if !is_any_found => Ok(refused(&error, table)),
            _ => Ok(json_answer(
                StatusCode::OK,
                &json!({ "Responses": found, "UnprocessedKeys": left_out }),
            )),
        }
    }

    /// Asks without a look at what is asked, or at the answer.
    async fn pass(&self, headers: &HeaderMap, body: Bytes) -> Result<Response> {
        let (status, body) = self.send(headers, body).await?;
        Ok((status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response())
    }

    async fn ask(&self, headers: &HeaderMap, sent: &Value) -> Result<(StatusCode, Value)> {
        let (status, body) = self.send(headers, sent.to_string().into()).await?;
        Ok((status, serde_json::from_slice(&body)?))
    }

    async fn send(&self, headers: &HeaderMap, body: Bytes) -> Result<(StatusCode, Bytes)> {
        let mut request = Request::post(&self.url).body(Full::new(body))?;
        *request.headers_mut() = headers.clone();
        // Of the address and the body, which are others here.
        for name in [header::HOST, header::CONTENT_LENGTH] {
            request.headers_mut().remove(name);
        }
        let response = self.client.request(request).await?;
        let status = response.status();
        Ok((status, response.into_body().collect().await?.to_bytes()))
    }

    /// What the partition key of a table is called; nothing if there is no such table.
    async fn partition_key(&self, headers: &HeaderMap, table: &str) -> Result<String> {
        let known = || {
            self.partition_keys
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
        };
        if let Some(name) = known().get(table) {
            return Ok(name.clone());
        }
        let mut headers = headers.clone();
        headers.insert(TARGET, format!("{VERSION}.DescribeTable").parse()?);
        let (_, answered) = self.ask(&headers, &json!({ "TableName": table })).await?;
        let keys = answered["Table"]["KeySchema"].as_array();
        let hash = keys.and_then(|keys| keys.iter().find(|key| key["KeyType"] == "HASH"));
        let Some(name) = hash.and_then(|key| key["AttributeName"].as_str()) else {
            return Ok(String::new());
        };
        known().insert(table.to_owned(), name.to_owned());
        Ok(name.to_owned())
    }
}

fn table_of(sent: &Value) -> String {
    sent["TableName"].as_str().unwrap_or_default().to_owned()
}

fn refused(throttled: &Throttled, table: &str) -> Response {
    let Throttled { code, reason } = throttled;
    let body = json!({
        "__type": format!("com.amazonaws.dynamodb.v20120810#{code}"),
        "message": format!("the throughput of the table is exceeded: {reason}"),
        "ThrottlingReasons": [{ "reason": reason, "resource": table }],
    });
    json_answer(StatusCode::BAD_REQUEST, &body)
}

fn json_answer(status: StatusCode, body: &Value) -> Response {
    let body = body.to_string();
    (status, [(header::CONTENT_TYPE, MEDIA_TYPE)], body).into_response()
}
