//! The first answer is the handler's own, and a retry gets it again.

use http::header::{DATE, SET_COOKIE};
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode};
use tower_idempotency::IdempotencyLayer;
use tower_idempotency::store::MemoryStore;

use crate::support::{
    Answer, Body, Case, Http, Runs, Server, empty, for_each_stack, frames, layer,
};

/// In the order in which the handler sets them.
const FIELDS: [(&str, &[u8]); 11] = [
    ("content-type", b"application/json"),
    ("vary", b"accept"),
    ("x-first", b"1"),
    ("set-cookie", b"a=1; Path=/"),
    ("link", b"</2>; rel=\"next\""),
    ("vary", b"origin"),
    ("x-bytes", b"caf\xE9 \xFF"),
    ("link", b"</0>; rel=\"prev\""),
    ("set-cookie", b"b=2"),
    ("x-empty", b""),
    ("x-bytes", b"again"),
];

fn fields() -> HeaderMap {
    let mut headers = HeaderMap::new();
    for (name, value) in FIELDS {
        let value = HeaderValue::from_bytes(value).expect("a valid value");
        headers.append(HeaderName::from_static(name), value);
    }
    headers
}

fn trailers() -> HeaderMap {
    let mut trailers = HeaderMap::new();
    trailers.append("grpc-status", HeaderValue::from_static("0"));
    trailers.append("x-checksum", HeaderValue::from_static("one"));
    trailers.append("x-checksum", HeaderValue::from_static("two"));
    trailers
}

fn everything() -> Response<Body> {
    let mut response = Response::new(frames(["one, ", "\0two, ", "three"], Some(trailers())));
    *response.status_mut() = StatusCode::CREATED;
    *response.headers_mut() = fields();
    // Without these two lines HTTP/1.1 has no trailers.
    response.headers_mut().append(
        "trailer",
        HeaderValue::from_static("grpc-status, x-checksum"),
    );
    response
}

/// The fields of an answer in their order, without those that hyper adds to each message.
fn lines(headers: &HeaderMap) -> Vec<(&str, &[u8])> {
    const OF_THE_MESSAGE: [&str; 4] = ["connection", "content-length", "date", "transfer-encoding"];
    headers
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_bytes()))
        .filter(|(name, _)| !OF_THE_MESSAGE.contains(name))
        .collect()
}

async fn serve(
    case: Case,
    layer: &IdempotencyLayer<MemoryStore>,
    answer: fn() -> Response<Body>,
) -> Server {
    let handler = Runs::default().answering(move |_, number| {
        assert_eq!(number, 1, "a retry ran");
        answer()
    });
    case.serve(layer, handler).await
}

async fn post(server: &Server) -> Answer {
    server
        .post("/a")
        .key("k")
        .header("te", "trailers")
        .send()
        .await
}

#[tokio::test]
async fn the_first_answer_is_the_handlers_own() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), everything).await;
        let first = post(&server).await;
        assert_eq!(first.status, 201);
        assert_eq!(lines(&first.headers), lines(everything().headers()));
        assert_eq!(first.values("x-bytes"), [&b"caf\xE9 \xFF"[..], b"again"]);
        assert_eq!(first.values("set-cookie"), [&b"a=1; Path=/"[..], b"b=2"]);
        assert_eq!(first.body, "one, \0two, three");
    })
    .await;
}

#[tokio::test]
async fn the_first_answer_has_its_trailers() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), everything).await;
        assert_eq!(post(&server).await.trailers, Some(trailers()));
    })
    .await;
}

#[tokio::test]
async fn an_answer_that_passes_has_trailers_too() {
    // What the tests on trailers compare with: the stacks themselves send them.
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), everything).await;
        let passed = server.post("/a").header("te", "trailers").send().await;
        assert_eq!(passed.trailers, Some(trailers()));
    })
    .await;
}

#[tokio::test]
async fn a_retry_gets_status_fields_and_body_again() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), everything).await;
        let first = post(&server).await;
        assert!(!first.is_replayed());
        for _ in 0..2 {
            let retry = post(&server).await;
            assert!(retry.is_replayed());
            assert_eq!(retry.status, 201);
            let mut expected = lines(&first.headers);
            expected.retain(|(name, _)| *name != "set-cookie");
            expected.push(("idempotent-replayed", b"true"));
            assert_eq!(lines(&retry.headers), expected);
            assert_eq!(retry.body, first.body);
        }
    })
    .await;
}

#[tokio::test]
async fn a_retry_gets_the_trailers_again() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), everything).await;
        post(&server).await;
        for _ in 0..2 {
            assert_eq!(post(&server).await.trailers, Some(trailers()));
        }
    })
    .await;
}

#[tokio::test]
async fn a_replay_announces_its_length() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), || crate::support::text("thirteen here")).await;
        let first = post(&server).await;
        let retry = post(&server).await;
        retry.replayed("thirteen here");
        assert_eq!(first.values("content-length"), [b"13"]);
        assert_eq!(retry.values("content-length"), [b"13"]);
    })
    .await;
}

#[tokio::test]
async fn an_empty_answer_is_an_answer() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), || {
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::NO_CONTENT;
            response
        })
        .await;
        let first = post(&server).await;
        assert_eq!((first.status.as_u16(), first.is_replayed()), (204, false));
        let retry = post(&server).await;
        assert_eq!((retry.status.as_u16(), retry.is_replayed()), (204, true));
        assert!(retry.body.is_empty());
    })
    .await;
}

#[tokio::test]
async fn a_field_of_the_handlers_own_of_that_name_is_not_doubled() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), || {
            let mut response = crate::support::text("x");
            let nonsense = HeaderValue::from_static("maybe");
            response
                .headers_mut()
                .append("idempotent-replayed", nonsense);
            response
        })
        .await;
        post(&server).await;
        post(&server).await.replayed("x");
    })
    .await;
}

const THEN: &str = "Thu, 01 Jan 1970 00:00:00 GMT";

fn with_fields_of_one_message() -> Response<Body> {
    let mut response = crate::support::text("x");
    for (name, value) in [
        ("date", THEN),
        ("connection", "x-hop, keep-alive"),
        ("x-hop", "1"),
        ("keep-alive", "timeout=5"),
        ("proxy-connection", "keep-alive"),
        ("upgrade", "h9"),
        ("x-stays", "1"),
    ] {
        let value = HeaderValue::from_static(value);
        response.headers_mut().append(name, value);
    }
    response
}

#[tokio::test]
async fn fields_of_one_message_or_connection_are_not_stored() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer(), with_fields_of_one_message).await;
        let first = post(&server).await;
        assert_eq!(first.values("date"), [THEN.as_bytes()]);
        if case.http == Http::One {
            assert_eq!(first.values("x-hop"), [b"1"]);
        }
        let retry = post(&server).await;
        retry.replayed("x");
        assert_eq!(retry.values("x-stays"), [b"1"]);
        assert_ne!(retry.headers[DATE], THEN);
        for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
            assert_eq!(retry.values(name), [b""; 0], "{name}");
        }
    })
    .await;
}

#[tokio::test]
async fn which_fields_are_not_stored_can_be_set() {
    for_each_stack(|case| async move {
        let server = serve(case, &layer().unstored_headers([]), everything).await;
        let first = post(&server).await;
        let retry = post(&server).await;
        assert_eq!(retry.values("set-cookie"), [&b"a=1; Path=/"[..], b"b=2"]);
        let mut expected = lines(&first.headers);
        expected.push(("idempotent-replayed", b"true"));
        assert_eq!(lines(&retry.headers), expected);

        let names = [HeaderName::from_static("x-bytes"), SET_COOKIE];
        let server = serve(case, &layer().unstored_headers(names), everything).await;
        assert_eq!(post(&server).await.values("x-bytes").len(), 2);
        let retry = post(&server).await;
        assert_eq!(retry.values("x-bytes"), [b""; 0]);
        assert_eq!(retry.values("x-first"), [b"1"]);
    })
    .await;
}

#[tokio::test]
async fn answers_without_a_body_come_again_as_they_were() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.answering(|request, _| {
            let status: u16 = request.uri().path()[1..].parse().expect("a status");
            let mut response = Response::new(empty());
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            let headers = response.headers_mut();
            headers.insert("etag", HeaderValue::from_static("\"a\""));
            if request.method() == http::Method::HEAD {
                headers.insert("content-length", HeaderValue::from_static("1234"));
            }
            response
        });
        let recording = tower_idempotency::Recording::default().also_final([304]);
        let layer = layer()
            .methods([http::Method::HEAD, http::Method::PUT])
            .recording(recording);
        let server = case.serve(&layer, handler).await;
        for (number, (method, path)) in (1..).zip([
            (http::Method::PUT, "/204"),
            (http::Method::PUT, "/205"),
            (http::Method::PUT, "/304"),
            (http::Method::HEAD, "/200"),
        ]) {
            let call = || server.call(method.clone(), path).key("k").send();
            let (mut first, mut again) = (call().await, call().await);
            assert_eq!(runs.count(), number, "{method} {path}");
            assert!(again.is_replayed());
            again.headers.remove("idempotent-replayed");
            for answer in [&mut first, &mut again] {
                answer.headers.remove("date");
            }
            assert_eq!(again.status, first.status);
            assert_eq!(again.headers, first.headers, "{method} {path}");
            assert!(again.body.is_empty());
        }
    })
    .await;
}
