//! Everything that is written, byte by byte, as `golden.txt` has it.
//!
//! A line that differs is another form: it needs another version, and its reader has to read this
//! one as well. `docs/formats.md` says how.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write;
use std::sync::{Arc, Mutex};

use aws_sdk_dynamodb::types::AttributeValue;
use axum::body::Body;
use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::record::{
    CallerDigest, Completed, Extras, FencingToken, Holder, Identity, Lease, Owner, RecipeId, Record,
};
use tower_idempotency::store::{MemoryStore, Store};
use tower_idempotency::{
    Answer, Attempt, Fingerprint, IdempotencyKey, IdempotencyLayer, KeyParts, KeySource, RecordKey,
    StoredResponse, Summary, Timestamp,
};

use crate::support::{Claimer, Dynamo, Item, completes, noise};

const GOLDEN: &str = include_str!("golden.txt");

const PARTS: KeyParts<'_> = KeyParts {
    namespace: "live",
    scope: None,
    method: "POST",
    target: "/v1/charges",
    key: "5d0f3b1c-7a52-4f0e-9d5b-3f1c5a8e2b10",
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a string takes it");
        text
    })
}

fn bytes(hex: &str) -> Bytes {
    let (pairs, _) = hex.as_bytes().as_chunks::<2>();
    let byte = |pair: &[u8; 2]| {
        let digits = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(digits, 16).expect("two hexadecimal digits")
    };
    pairs.iter().map(byte).collect()
}

/// The lines of the file, by form and version.
fn golden() -> BTreeMap<(&'static str, u8), &'static str> {
    let lines = GOLDEN.lines().filter(|line| !line.starts_with('#'));
    let lines = lines.filter_map(|line| {
        let (form, rest) = line.split_once(' ')?;
        let (version, written) = rest.split_once(' ')?;
        Some(((form, version.parse().expect("a version")), written))
    });
    lines.collect()
}

/// Checks what is written today against the file.
fn is_golden<const N: usize>(written: [(&'static str, u8, String); N]) {
    let golden = golden();
    let mut differ = String::new();
    for (form, version, written) in written {
        if golden.get(&(form, version)) != Some(&&*written) {
            writeln!(differ, "{form} {version} {written}").expect("a string takes it");
        }
    }
    assert!(differ.is_empty(), "not as in golden.txt:\n{differ}");
}

fn identity() -> Identity {
    Identity {
        caller: CallerDigest::from_bytes([5; 16]),
        request: Fingerprint::from_bytes([9; 32]),
        recipe: RecipeId::from_bytes(*b"recipe 1"),
    }
}

fn extras(version: u8) -> Extras {
    match version {
        // It has no room for them.
        1 => Extras::NONE,
        _ => Extras::NONE
            .with_trace([0x7a; 16], [0x8b; 8])
            .with_secret_id(3),
    }
}

fn lease(version: u8) -> Lease {
    let holder = Holder::new(
        RecordKey::from_bytes([7; 32]),
        Owner::from_bytes([1; 16]),
        identity(),
    );
    let mut lease = Lease::new(&holder, FencingToken::from_u64(2));
    lease.attempt = 3;
    lease.created_at = Timestamp::from_micros(4);
    lease.started_at = Timestamp::from_micros(5);
    lease.deadline = Timestamp::from_micros(6);
    lease.expires_at = Timestamp::from_micros(u64::MAX);
    lease.first_status = Some(504);
    lease.extras = extras(version);
    lease
}

fn completed(version: u8) -> Completed {
    let [created_at, expires_at] = [4, 8].map(Timestamp::from_micros);
    let mut completed = Completed::new(identity(), "answer".into(), created_at, expires_at);
    completed.extras = extras(version);
    completed
}

fn response() -> Response<Bytes> {
    let response = Response::builder()
        .status(StatusCode::CREATED)
        .header(header::CONTENT_TYPE, "application/json")
        .header(header::LOCATION, "/v1/charges/ch_1")
        .header("x-charge", "ch_1");
    let body = Bytes::from_static(br#"{"id":"ch_1"}"#);
    response.body(body).expect("a valid response")
}

fn answers() -> [(&'static str, Answer); 4] {
    let mut with_trailers = StoredResponse::from(response());
    let trailers = with_trailers.trailers.get_or_insert_default();
    trailers.insert("grpc-status", header::HeaderValue::from_static("0"));
    let not_stored = Answer::NotStored {
        status: StatusCode::OK,
        summary: Summary::new("export_1432").ok(),
    };
    [
        ("frame-response", Answer::Response(response().into())),
        ("frame-trailers", Answer::Response(with_trailers)),
        ("frame-not-stored", not_stored),
        ("frame-value", Answer::Value("17".into())),
    ]
}

/// All of an item, in the order of names.
fn text(item: &Item) -> String {
    fn value(value: &AttributeValue) -> String {
        match value {
            AttributeValue::S(text) => format!("S:{text}"),
            AttributeValue::N(number) => format!("N:{number}"),
            AttributeValue::B(bytes) => format!("B:{}", hex(bytes.as_ref())),
            AttributeValue::M(map) => format!("M:({})", text(map)),
            other => panic!("an attribute of no known kind: {other:?}"),
        }
    }
    let attributes: BTreeMap<_, _> = item.iter().collect();
    let attributes = attributes
        .into_iter()
        .map(|(name, of)| format!("{name}={}", value(of)));
    attributes.collect::<Vec<_>>().join(" ")
}

#[test]
fn digests_of_keys_and_inputs_are_as_they_were() {
    let key = IdempotencyKey::from_parts(&PARTS).expect("a valid key");
    let scoped = KeyParts {
        scope: Some("acct_1"),
        ..PARTS
    };
    is_golden([
        ("record-key", 1, key.record_key().to_string()),
        ("record-key-scoped", 1, scoped.record_key().to_string()),
        ("derived-key", 1, key.derive("psp").as_str().to_owned()),
        (
            "inputs",
            1,
            hex(Fingerprint::of(["invoice-1432", "1200"]).as_bytes()),
        ),
        ("recipe-of-work", 1, hex(Identity::WORK.as_bytes())),
    ]);
}

#[tokio::test]
async fn what_a_request_leaves_is_as_it_was() {
    let store = MemoryStore::new();
    let names = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&names);
    let service = service_fn(move |request: Request<Body>| {
        let attempt = request.extensions().get::<Attempt>();
        let key = attempt.map(|attempt| attempt.key().as_str().to_owned());
        seen.lock().expect("no panic").extend(key);
        async { Ok::<_, Infallible>(response().map(Body::from)) }
    });
    let layer = IdempotencyLayer::new(store.clone()).namespace("live");
    let by_field = layer
        .clone()
        .key_source(KeySource::fields(["/id"]).expect("a valid pointer"));
    for layer in [layer, by_field] {
        let request = Request::post("/v1/charges?expand=customer")
            .header("host", "api.example.com")
            .header("idempotency-key", PARTS.key)
            .header("authorization", "Bearer sk_1")
            .header("content-type", "application/json")
            .header("content-encoding", "identity")
            .body(Body::from(r#"{"amount":1200,"id":"order-1"}"#));
        let request = request.expect("a valid request");
        let answered = layer.layer(service.clone()).oneshot(request).await;
        assert_eq!(answered.expect("infallible").status(), StatusCode::CREATED);
    }
    let now = Timestamp::from_micros(0);
    let found = store.get(&PARTS.record_key(), now).await;
    let Some(Record::Completed(completed)) = found
        .expect("a look succeeds")
        .map(|record| record.by_clock(now))
    else {
        panic!("it is not recorded under its name");
    };
    let Identity {
        caller,
        request,
        recipe,
    } = completed.identity;
    let names = names.lock().expect("no panic");
    is_golden([
        ("caller", 1, hex(caller.as_bytes())),
        ("request", 1, hex(request.as_bytes())),
        ("recipe", 1, hex(recipe.as_bytes())),
        ("key-fields", 1, names[1].clone()),
        ("frame-response", 1, hex(&completed.payload)),
    ]);
}

#[test]
fn frames_are_as_they_were_and_are_read() {
    is_golden(answers().map(|(form, answer)| (form, 1, hex(&answer.encode()))));
    for (form, answer) in answers() {
        let lines = golden();
        for (_, written) in lines.iter().filter(|((name, _), _)| *name == form) {
            assert_eq!(Answer::decode(&bytes(written)), Ok(answer.clone()));
        }
    }
}

#[test]
fn records_are_as_they_were_and_those_of_the_version_before_are_read() {
    is_golden([
        ("record-lease", 2, hex(&lease(2).to_bytes())),
        ("record-completed", 2, hex(&completed(2).to_bytes())),
    ]);
    let golden = golden();
    for version in [1, 2] {
        let read = |form| Record::from_bytes(bytes(golden[&(form, version)])).ok();
        let expected = Record::InProgress(lease(version));
        assert_eq!(read("record-lease"), Some(expected));
        let expected = Record::Completed(completed(version));
        assert_eq!(read("record-completed"), Some(expected));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn items_are_as_they_were() {
    let dynamo = Dynamo::in_memory().await;
    let store = dynamo.store().await;
    let claimer = Claimer {
        key: IdempotencyKey::from_parts(&PARTS).expect("a valid key"),
        identity: identity(),
        owner: Owner::from_bytes([1; 16]),
        ..Claimer::new()
    };
    let held = claimer.acquires(&store).await;
    let in_progress = text(&dynamo.item().await);
    let [(_, answer), ..] = answers();
    completes(&store, &held, answer.encode()).await;
    let answered = text(&dynamo.item().await);

    store.remove(&held.key).await.expect("it is removed");
    let held = claimer.acquires(&store).await;
    completes(&store, &held, noise(5_000)).await;
    let mut chunked: Vec<_> = dynamo.items().await;
    chunked.sort_by_key(|item| item["id"].as_s().map_or(0, String::len));
    let [record, chunk] = &mut chunked[..] else {
        panic!("not a record and a chunk but {chunked:?}");
    };
    // All that is in it.
    let data = chunk.remove("data").expect("it has a part of the answer");
    assert_eq!(data.as_b().map(|data| data.as_ref()), Ok(&noise(5_000)[..]));
    is_golden([
        ("item-in-progress", 2, in_progress),
        ("item-completed", 2, answered),
        ("item-of-chunks", 2, text(record)),
        ("chunk", 2, text(chunk)),
    ]);
}
