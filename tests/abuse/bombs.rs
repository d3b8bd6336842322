//! Requests and responses that are larger, deeper or more than anybody needs.

use std::convert::Infallible;

use axum::Router;
use axum::body::Body;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{FingerprintSource, IdempotencyLayer, KeySource};

use crate::support::{Answer, Runs, Server, ask, head, layer, request};

const MEBIBYTE: usize = 1 << 20;

#[tokio::test]
async fn a_key_has_255_bytes_at_most_however_long_its_header_is() {
    let server = Server::start(Runs::default().behind(layer())).await;
    let none = "content-length: 0";
    server.ask(head(&"k".repeat(255), none)).await.ran("run 1");
    for length in [256, 64 << 10] {
        let refused = server.ask(head(&"k".repeat(length), none)).await;
        refused.refused(400, "invalid-key");
    }
    // Escapes do not count, but they do not smuggle more in, either.
    let escaped = |length: usize| format!("\"{}\"", "\\\\".repeat(length));
    server.ask(head(&escaped(255), none)).await.ran("run 2");
    let refused = server.ask(head(&escaped(256), none)).await;
    refused.refused(400, "invalid-key");
}

#[tokio::test]
async fn more_header_lines_than_a_server_takes_do_not_reach_the_layer() {
    let runs = Runs::default();
    let server = Server::start(runs.behind(layer())).await;
    let lines = "x: y\r\n".repeat(5_000) + "content-length: 0";
    let answer = server.ask(head("k", &lines)).await;
    assert_eq!((answer.status, answer.code(), runs.count()), (431, None, 0));
    // As many keys as it takes are one, or one too many.
    let lines = "idempotency-key: k\r\n".repeat(50) + "content-length: 0";
    let refused = server.ask(head("l", &lines)).await;
    refused.refused(400, "invalid-key");
    assert_eq!(runs.count(), 0);
    server.ask(head("k", &lines)).await.ran("run 1");
}

/// Asks a service twice that answers with these header fields. No application of axum, which has a
/// field of its own to add.
async fn twice(fields: impl Fn(&mut HeaderMap) + Clone + Send + 'static) -> [Answer; 2] {
    let service = service_fn(move |_: Request<Body>| {
        let mut response = Response::new(Body::from("charged"));
        fields(response.headers_mut());
        std::future::ready(Ok::<_, Infallible>(response))
    });
    let service = layer().report_times(true).layer(service);
    let ask = async || {
        let Ok(response) = service.clone().oneshot(request("k", "body")).await;
        Answer::read(response).await
    };
    [ask().await, ask().await]
}

fn name(number: usize) -> HeaderName {
    let name = HeaderName::try_from(format!("x-{number}"));
    name.expect("the name is valid")
}

#[tokio::test]
async fn a_response_with_many_and_huge_header_fields_is_replayed_without_loss() {
    let large = HeaderValue::try_from("v".repeat(256 << 10)).expect("the value is valid");
    let [first, again] = twice(move |headers| {
        for number in 0..500 {
            headers.append(name(number), number.into());
        }
        for _ in 0..4 {
            headers.append("x-large", large.clone());
        }
    })
    .await;
    first.ran("charged");
    again.replayed("charged");
    for number in 0..500 {
        assert_eq!(again.headers[name(number)], *number.to_string());
    }
    let values = |answer: &Answer| {
        answer
            .headers
            .get_all("x-large")
            .iter()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(values(&again), values(&first));
}

#[tokio::test]
async fn a_response_with_many_values_of_one_field_is_replayed_without_loss() {
    // More than a map of headers has room for names.
    const VALUES: usize = 40_000;
    let [first, again] = twice(|headers| {
        for number in 0..VALUES {
            headers.append("x-many", number.into());
        }
    })
    .await;
    first.ran("charged");
    again.replayed("charged");
    assert_eq!(again.headers.get_all("x-many").iter().count(), VALUES);
}

#[tokio::test]
async fn a_response_with_as_many_names_as_a_map_takes_is_replayed() {
    let [first, again] = twice(|headers| {
        let mut number = 0;
        while headers
            .try_insert(name(number), HeaderValue::from_static("v"))
            .is_ok()
        {
            number += 1;
        }
    })
    .await;
    // There is no room to say that it is a replay.
    for answer in [&first, &again] {
        assert_eq!((answer.status, &answer.body[..]), (200, &b"charged"[..]));
    }
    assert_eq!(again.headers.keys_len(), first.headers.keys_len());
}

fn request_of(content_type: &str, body: impl Into<Body>) -> Request<Body> {
    let request = Request::post("/")
        .header("idempotency-key", "k")
        .header("content-type", content_type);
    request.body(body.into()).expect("the request is valid")
}

/// Bodies that are hard to read, each within the limit.
fn bombs() -> Vec<(&'static str, &'static str, String)> {
    const JSON: &str = "application/json";
    const FORM: &str = "application/x-www-form-urlencoded";
    const MULTIPART: &str = "multipart/form-data; boundary=b";
    let nested = |levels: usize, inner: &str| {
        format!(
            r#"{{"a":{}{inner}{}}}"#,
            "[".repeat(levels),
            "]".repeat(levels)
        )
    };
    let objects = format!(
        r#"{{"a":{}1{}}}"#,
        r#"{"a":"#.repeat(100_000),
        "}".repeat(100_000)
    );
    let digits = |count: usize| format!(r#"{{"a":1{}}}"#, "0".repeat(count));
    vec![
        ("arrays in arrays", JSON, nested(100_000, "1")),
        ("objects in objects", JSON, objects),
        ("nothing but brackets", JSON, "[".repeat(MEBIBYTE)),
        ("nothing but braces", JSON, r#"{"a":"#.repeat(MEBIBYTE / 5)),
        ("a number of many digits", JSON, digits(MEBIBYTE - 100)),
        (
            "an exponent of many digits",
            JSON,
            format!(r#"{{"a":1e{}}}"#, "9".repeat(500_000)),
        ),
        (
            "one member many times",
            JSON,
            format!("{{{}}}", [r#""a":1"#; 50_000].join(",")),
        ),
        ("many members", JSON, {
            let members = (0..20_000).map(|number| format!(r#""{number}":1"#));
            format!(r#"{{"a":{{{}}}}}"#, members.collect::<Vec<_>>().join(","))
        }),
        (
            "half an escape",
            JSON,
            format!(r#"{{"a":"{}"}}"#, r"\ud800".repeat(100_000)),
        ),
        ("many fields", FORM, "a[b]=1&".repeat(100_000)),
        ("many signs", FORM, "=&".repeat(100_000)),
        (
            "many escapes",
            FORM,
            "a=".to_owned() + &"%".repeat(MEBIBYTE - 2),
        ),
        ("many parts", MULTIPART, "\r\n--b".repeat(100_000)),
        (
            "a long boundary",
            "multipart/form-data; boundary=\"\\",
            "--".repeat(100_000),
        ),
    ]
}

/// What may come of one: it runs and is replayed, or its key is refused for what it is.
async fn survives(app: &Router, what: &str, content_type: &str, body: &str) {
    let first = ask(app, request_of(content_type, body.to_owned())).await;
    let again = ask(app, request_of(content_type, body.to_owned())).await;
    match first.code().as_deref() {
        None => again.replayed(std::str::from_utf8(&first.body).expect("it is text")),
        Some(code @ ("invalid-key" | "missing-key")) => again.refused(400, code),
        Some(_) => panic!("{what}: {first:?}"),
    }
}

async fn all_survive(layer: impl Fn() -> IdempotencyLayer<MemoryStore>) {
    for (what, content_type, body) in bombs() {
        assert!(body.len() <= MEBIBYTE, "{what}");
        survives(&Runs::default().behind(layer()), what, content_type, &body).await;
    }
}

#[tokio::test]
async fn bodies_that_are_hard_to_read_are_fingerprinted_as_they_are() {
    all_survive(layer).await;
}

#[tokio::test]
async fn bodies_that_are_hard_to_read_give_key_fields_or_are_refused() {
    let fields = KeySource::fields(["/a", "/a/0/0"]).expect("two pointers");
    all_survive(|| layer().key_source(fields.clone()).require_key(true)).await;
}

#[tokio::test]
async fn bodies_that_are_hard_to_read_are_keys_or_are_refused() {
    let whole = KeySource::fields([""]).expect("a pointer");
    all_survive(|| layer().key_source(whole.clone()).require_key(true)).await;
}

#[tokio::test]
async fn bodies_that_are_hard_to_read_have_narrowed_fingerprints() {
    let without = FingerprintSource::without(["/a/0/0", "/b"]).expect("two pointers");
    all_survive(|| layer().fingerprint(without.clone())).await;
}

#[tokio::test]
async fn a_boundary_as_long_as_a_header_may_be_is_no_harm() {
    let boundary = "b".repeat(64 << 10);
    let content_type = format!("multipart/form-data; boundary={boundary}");
    let body = format!("--{boundary}\r\n\r\nx\r\n--{boundary}--").repeat(4);
    survives(
        &Runs::default().behind(layer()),
        "boundary",
        &content_type,
        &body,
    )
    .await;
    let escaped = format!(
        "multipart/form-data; boundary=\"{}\"",
        "\\b".repeat(30 << 10)
    );
    survives(
        &Runs::default().behind(layer()),
        "boundary",
        &escaped,
        &body,
    )
    .await;
}
