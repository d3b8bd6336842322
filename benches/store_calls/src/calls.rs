//! Each call of the store, and one of the SDK alone that sends and gets as many bytes: one
//! attribute in place of all of them, one condition, and the same kind of answer.

use std::time::Duration;

use aws_sdk_dynamodb::Client;
use aws_sdk_dynamodb::config::{BehaviorVersion, Config, Credentials, Region};
use aws_sdk_dynamodb::types::{AttributeValue, ReturnValuesOnConditionCheckFailure as OnFailure};
use bytes::Bytes;
use http::{HeaderValue, StatusCode};
use serde_json::{Map, Value, json};
use tower_idempotency::record::{ClaimRequest, Holder, Identity, Owner, Renewal};
use tower_idempotency::store::{Claim, Completion, DynamoDbStore, Fenced, Release, Store};
use tower_idempotency::{Answer, Fingerprint, KeyParts, RecordKey, StoredResponse, Timestamp};

use crate::wire::Wire;

const TABLE: &str = "idempotency";
const NOW: Timestamp = Timestamp::from_micros(1_790_000_000_123_456);
const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
const PARTS: KeyParts<'_> = KeyParts {
    namespace: "payments",
    scope: Some("acct_1032D82eZvKYlo2C"),
    method: "POST",
    target: "/v1/charges",
    key: "5d0f3b1c-7a52-4f0e-9d1c-2b6f0a4e8c33",
};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Call {
    /// A claim that gets its key.
    Claim,
    /// A claim on a key that another holds.
    InFlight,
    /// A claim on a key that has its answer.
    Replay,
    Renew,
    Complete,
    Release,
}

impl Call {
    pub(crate) const ALL: [Self; 6] = [
        Self::Claim,
        Self::InFlight,
        Self::Replay,
        Self::Renew,
        Self::Complete,
        Self::Release,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::InFlight => "claim-in-flight",
            Self::Replay => "claim-replayed",
            Self::Renew => "renew",
            Self::Complete => "complete",
            Self::Release => "release",
        }
    }
}

/// A store over a client that nobody is behind, and how one call of it is answered.
pub(crate) struct Calls {
    call: Call,
    wire: Wire,
    client: Client,
    store: DynamoDbStore,
    key: RecordKey,
    identity: Identity,
    completion: Completion,
    /// What makes the bare call as large as ours.
    filler: String,
    answers: [Bytes; 2],
    sent: usize,
}

impl Calls {
    pub(crate) async fn new(call: Call) -> Self {
        let wire = Wire::new();
        let config = Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .http_client(wire.client())
            .region(Region::new("eu-central-1"))
            .credentials_provider(Credentials::new(
                "AKIDEXAMPLE",
                "wJalrXUtnFEMI",
                None,
                None,
                "bench",
            ))
            .timeout_config(DynamoDbStore::timeouts())
            .retry_config(DynamoDbStore::retries())
            .build();
        let client = Client::from_conf(config);
        let mut calls = Self {
            call,
            store: DynamoDbStore::new(client.clone(), TABLE),
            client,
            wire,
            key: PARTS.record_key(),
            identity: Identity::of_work(Fingerprint::of(["amount=1200"])),
            completion: Completion::new(answer(), RETENTION),
            filler: String::new(),
            answers: [const { Bytes::from_static(b"{}") }; 2],
            sent: 0,
        };
        calls.learn_answers().await;
        calls.learn_size().await;
        calls.wire.record(false);
        calls
    }

    pub(crate) fn name(&self) -> &'static str {
        self.call.name()
    }

    /// How many bytes go out and come back.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.sent, self.answers[1].len())
    }

    /// A refusal brings the item back that the store wrote itself.
    async fn learn_answers(&mut self) {
        if !matches!(self.call, Call::InFlight | Call::Replay) {
            return;
        }
        self.claim(1).await;
        let mut item = parsed(&self.wire.sent())["Item"].take();
        if self.call == Call::Replay {
            self.complete().await;
            apply(
                &parsed(&self.wire.sent()),
                item.as_object_mut().expect("an item"),
            );
        }
        let ours = refusal(&item);
        let mut bare = json!({ "id": item["id"], "data": { "S": "" } });
        let length = ours.len() - refusal(&bare).len();
        bare["data"]["S"] = "d".repeat(length).into();
        self.answers = [refusal(&bare).into(), ours.into()];
        assert_eq!(self.answers[0].len(), self.answers[1].len());
    }

    async fn learn_size(&mut self) {
        self.ours().await;
        self.sent = self.wire.sent().len();
        self.bare().await;
        let least = self.wire.sent().len();
        self.filler = "d".repeat(self.sent - least);
        self.bare().await;
        assert_eq!(self.wire.sent().len(), self.sent);
    }

    fn answer(&self, lane: usize) {
        let status = match self.call {
            Call::InFlight | Call::Replay => 400,
            _ => 200,
        };
        self.wire.answers(status, self.answers[lane].clone());
    }

    pub(crate) async fn ours(&self) {
        self.answer(1);
        match self.call {
            Call::Claim => assert!(matches!(self.claim(1).await, Claim::Acquired(_))),
            Call::InFlight => assert!(matches!(self.claim(2).await, Claim::InProgress { .. })),
            Call::Replay => assert!(matches!(self.claim(2).await, Claim::Completed(_))),
            Call::Complete => self.complete().await,
            Call::Renew => {
                let renewal = Renewal::new(Duration::from_secs(30), RETENTION);
                let renewed = self.store.renew(&self.holder(), renewal, NOW).await;
                assert!(matches!(renewed, Ok(Fenced::Applied)));
            }
            Call::Release => {
                let released = self.store.release(&self.holder(), Release::Free, NOW).await;
                assert!(matches!(released, Ok(Fenced::Applied)));
            }
        }
    }

    async fn claim(&self, owner: u8) -> Claim {
        let owner = Owner::from_bytes([owner; 16]);
        let request = ClaimRequest::new(&self.key, &PARTS, self.identity, owner, NOW);
        self.store.claim(&request).await.expect("a claim succeeds")
    }

    async fn complete(&self) {
        let completed = self
            .store
            .complete(&self.holder(), &self.completion, NOW)
            .await;
        assert!(matches!(completed, Ok(Fenced::Applied)));
    }

    fn holder(&self) -> Holder {
        Holder::new(self.key, Owner::from_bytes([1; 16]), self.identity)
    }

    /// The filler is a copy, as ours makes its strings anew.
    pub(crate) async fn bare(&self) {
        self.answer(0);
        let id = AttributeValue::S(self.key.to_string());
        let filler = AttributeValue::S(self.filler.clone());
        let refused = match self.call {
            Call::Claim | Call::InFlight | Call::Replay => {
                let put = self.client.put_item().table_name(TABLE);
                let put = put.item("id", id).item("d", filler);
                let put = put.condition_expression("attribute_not_exists(id)");
                let put = put.return_values_on_condition_check_failure(OnFailure::AllOld);
                put.send().await.is_err_and(|error| {
                    let error = error.into_service_error();
                    error.is_conditional_check_failed_exception()
                })
            }
            Call::Renew | Call::Complete => {
                let update = self.client.update_item().table_name(TABLE).key("id", id);
                let update = update.update_expression("SET d = :d");
                let update = update.expression_attribute_values(":d", filler);
                let update = update.condition_expression("attribute_exists(id)");
                let update = update.return_values_on_condition_check_failure(OnFailure::AllOld);
                update.send().await.is_err()
            }
            Call::Release => {
                let delete = self.client.delete_item().table_name(TABLE).key("id", id);
                let delete = delete.condition_expression("o = :o");
                let delete = delete.expression_attribute_values(":o", filler);
                let delete = delete.return_values_on_condition_check_failure(OnFailure::AllOld);
                delete.send().await.is_err()
            }
        };
        assert_eq!(refused, self.answers[0].len() > 2);
    }
}

/// A response of 200 bytes under three fields.
fn answer() -> Bytes {
    let mut response = StoredResponse::new(StatusCode::CREATED, "a".repeat(200));
    for (name, value) in [
        ("content-type", "application/json"),
        ("request-id", "req_8tnRhQqYxEzmfF"),
        ("location", "/v1/charges/ch_3MmlLrLkdIwHu7ix0snN0B15"),
    ] {
        response
            .headers
            .append(name, HeaderValue::from_static(value));
    }
    Answer::Response(response).encode()
}

fn parsed(body: &Bytes) -> Value {
    serde_json::from_slice(body).expect("the SDK sends JSON")
}

fn refusal(item: &Value) -> String {
    let refusal = json!({
        "__type": "com.amazonaws.dynamodb.v20120810#ConditionalCheckFailedException",
        "Item": item,
        "message": "The conditional request failed",
    });
    refusal.to_string()
}

/// Does to an item what an update says: `SET` with values, then `REMOVE`.
fn apply(update: &Value, item: &mut Map<String, Value>) {
    let expression = update["UpdateExpression"].as_str().expect("an expression");
    let (set, remove) = expression
        .split_once(" REMOVE ")
        .unwrap_or((expression, ""));
    let names = &update["ExpressionAttributeNames"];
    let name = |placeholder: &str| {
        names[placeholder]
            .as_str()
            .unwrap_or(placeholder)
            .to_owned()
    };
    for assignment in set.trim_start_matches("SET ").split(", ") {
        let (to, value) = assignment.split_once(" = ").expect("an assignment");
        let value = update["ExpressionAttributeValues"][value].clone();
        item.insert(name(to), value);
    }
    for removed in remove.split(", ") {
        item.remove(&name(removed));
    }
}
