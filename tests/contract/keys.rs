//! `missing-key` and `invalid-key`; and where keys come from.

use http::{HeaderName, Response, StatusCode};
use serde_json::{Value, json};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{
    Field, IDEMPOTENCY_KEY, IdempotencyLayer, InvalidKey, KeySource, KeySyntax, Refusal,
};

use crate::support::{Answer, Case, Runs, Server, channel, for_each_stack, layer};

async fn serve(case: Case, layer: &IdempotencyLayer<MemoryStore>) -> (Server, Runs) {
    let runs = Runs::default();
    let server = case.serve(layer, runs.numbered()).await;
    (server, runs)
}

#[tokio::test]
async fn a_required_key_that_is_missing_is_refused() {
    for_each_stack(|case| async move {
        let (server, runs) = serve(case, &layer().require_key(true)).await;
        server.post("/a").send().await.refused(400, "missing-key");
        server.post("/a").key("k").send().await.ran("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_malformed_key_is_refused() {
    let too_long = "k".repeat(256);
    let malformed: [&[&[u8]]; 15] = [
        &[b""],
        &[b"\"\""],
        &[too_long.as_bytes()],
        &[b"two words"],
        &[b"a\tb"],
        &["clé".as_bytes()],
        &[b"\xFF"],
        &[b"one", b"two"],
        &[b"one", b""],
        &[b"\"  \""],
        &[b"\"k\";V"],
        &[b"\"k\" ;v"],
        &[b"\"open"],
        &[b"closed\""],
        &[b"\"a\", \"b\""],
    ];
    for_each_stack(|case| async move {
        let (server, runs) = serve(case, &layer()).await;
        for lines in malformed {
            let call = lines.iter().fold(server.post("/a"), |call, line| {
                call.header("idempotency-key", line)
            });
            call.send().await.refused(400, "invalid-key");
        }
        assert_eq!(runs.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_key_may_have_255_characters() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &layer()).await;
        let longest = "k".repeat(255);
        server.post("/a").key(&longest).send().await.ran("run 1");
        // Quotes do not count.
        let quoted = format!("\"{longest}\"");
        server
            .post("/a")
            .key(&quoted)
            .send()
            .await
            .replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_quoted_key_and_a_bare_one_are_the_same() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &layer()).await;
        server.post("/a").key("k-1").send().await.ran("run 1");
        server
            .post("/a")
            .key("\"k-1\"")
            .send()
            .await
            .replayed("run 1");
        server.post("/a").key(r#""k\"2""#).send().await.ran("run 2");
        server.post("/a").key("k\"2").send().await.replayed("run 2");
    })
    .await;
}

#[tokio::test]
async fn strict_syntax_takes_a_quoted_key_alone() {
    for_each_stack(|case| async move {
        let source = KeySource::header(IDEMPOTENCY_KEY, KeySyntax::Strict);
        let (server, _) = serve(case, &layer().key_source(source)).await;
        for key in ["bare", "\"k\";v=", "\"k", ":aw==:", "17"] {
            let answer = server.post("/a").key(key).send().await;
            answer.refused(400, "invalid-key");
        }
        server.post("/a").key("\"k\"").send().await.ran("run 1");
        for same in ["\"k\"", "\"k\";v=1", " \"k\" "] {
            server.post("/a").key(same).send().await.replayed("run 1");
        }
        server.post("/a").key("\"k 1\"").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_quoted_key_may_have_spaces_and_parameters() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &layer()).await;
        let post = |key: &'static str| server.post("/a").key(key).send();
        post("\"order 1432\"").await.ran("run 1");
        post("\"order 1432\"; attempt=2;final")
            .await
            .replayed("run 1");
        post("\"k\";v=1").await.ran("run 2");
        post("k").await.replayed("run 2");
        // A bare key is what it is.
        post("k;v=1").await.ran("run 3");
    })
    .await;
}

#[tokio::test]
async fn lines_that_say_the_same_key_are_one() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &layer()).await;
        server
            .post("/a")
            .key("k")
            .key("\"k\"")
            .send()
            .await
            .ran("run 1");
        server.post("/a").key("k").send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn the_key_may_be_in_one_of_several_headers() {
    for_each_stack(|case| async move {
        let other = HeaderName::from_static("x-idempotency-key");
        let source = KeySource::headers([IDEMPOTENCY_KEY, other], KeySyntax::Lenient);
        let (server, runs) = serve(case, &layer().key_source(source)).await;
        let other = |key: &str| server.post("/a").header("x-idempotency-key", key);
        other("k").send().await.ran("run 1");
        server
            .post("/a")
            .key("\"k\"")
            .send()
            .await
            .replayed("run 1");
        other("\"k\"").key("k").send().await.replayed("run 1");
        for call in [
            other("k").key("l"),
            other("").key("k"),
            other("k l").key("k"),
        ] {
            call.send().await.refused(400, "invalid-key");
        }
        assert_eq!(runs.count(), 1);
        // One without any is no business of the layer's, however long it is.
        let long = server.post("/a").body(vec![b'x'; 2 << 20]);
        long.send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_fault_of_the_key_is_told_before_the_body_is_there() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &layer().require_key(true)).await;
        let (_sender, endless) = channel();
        let answer = server
            .post("/a")
            .key("two words")
            .stream(endless)
            .open()
            .await;
        assert_eq!(answer.status(), 400);
        let (_sender, endless) = channel();
        let answer = server.post("/a").stream(endless).open().await;
        assert_eq!(answer.status(), 400);
    })
    .await;
}

#[tokio::test]
async fn a_problem_says_what_is_wrong_and_where_to_read_about_it() {
    for_each_stack(|case| async move {
        let layer = layer()
            .require_key(true)
            .problem_type("https://example.com/errors/");
        let (server, _) = serve(case, &layer).await;
        let answer = server.post("/a").send().await;
        let problem = answer.refused(400, "missing-key");
        assert_eq!(
            problem,
            json!({
                "type": "https://example.com/errors/missing-key",
                "title": "Idempotency-Key is missing",
                "status": 400,
                "detail": problem["detail"],
                "code": "missing-key",
                "retryable": false,
            })
        );
        assert_eq!(answer.retry_after(), None);
    })
    .await;
}

#[tokio::test]
async fn the_application_can_replace_refusals() {
    for_each_stack(|case| async move {
        let layer = layer()
            .require_key(true)
            .on_refusal(|refusal: &Refusal, request| {
                let (reason, path) = (refusal.reason(), request.uri.path());
                let mut response = Response::new(format!("no: {reason} for {path}").into());
                *response.status_mut() = StatusCode::IM_A_TEAPOT;
                if path == "/b" {
                    let private = http::HeaderValue::from_static("private");
                    response.headers_mut().insert("cache-control", private);
                }
                response
            });
        let (server, _) = serve(case, &layer).await;
        let missing = server.post("/a").send().await;
        assert_eq!(
            (missing.status.as_u16(), &missing.body[..]),
            (418, &b"no: missing-key for /a"[..])
        );
        assert_eq!(missing.values("idempotency-refused"), [b"missing-key"]);
        assert_eq!(missing.values("cache-control"), [b"no-store"]);
        let invalid = server.post("/b").key("").send().await;
        assert_eq!(
            (invalid.status.as_u16(), &invalid.body[..]),
            (418, &b"no: invalid-key for /b"[..])
        );
        assert_eq!(invalid.values("idempotency-refused"), [b"invalid-key"]);
        assert_eq!(invalid.values("cache-control"), [b"private"]);
    })
    .await;
}

#[tokio::test]
async fn the_key_may_be_in_another_header() {
    for_each_stack(|case| async move {
        let name = HeaderName::from_static("x-request-token");
        let source = KeySource::header(name, KeySyntax::Lenient);
        let (server, _) = serve(case, &layer().key_source(source)).await;
        let call = || {
            server
                .post("/a")
                .header("x-request-token", "t")
                .key("ignored")
        };
        call().send().await.ran("run 1");
        call().send().await.replayed("run 1");
        server.post("/a").key("ignored").send().await.ran("run 2");
        server.post("/a").key("ignored").send().await.ran("run 3");
    })
    .await;
}

fn by_fields() -> IdempotencyLayer<MemoryStore> {
    let source = KeySource::fields(["/order/id", "/amount"]).expect("valid pointers");
    layer().key_source(source).fingerprint(
        // The same fields, so that spelling alone does not make another request.
        tower_idempotency::FingerprintSource::fields(["/order/id", "/amount"])
            .expect("valid pointers"),
    )
}

#[tokio::test]
async fn json_fields_make_a_key_whatever_their_order_and_spelling() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &by_fields()).await;
        let post = |body| server.post("/a").json(body).send();
        post(r#"{"order":{"id":"o-1","note":"x"},"amount":1200}"#)
            .await
            .ran("run 1");
        for same in [
            r#"{"amount":1200,"order":{"id":"o-1"}}"#,
            "{\n  \"order\" : { \"id\" : \"o-1\" },\n  \"amount\" : 1200.0\n}",
            r#"{"order":{"id":"\u006f-1"},"amount":1.2e3,"more":[1]}"#,
        ] {
            post(same).await.replayed("run 1");
        }
        post(r#"{"order":{"id":"o-2"},"amount":1200}"#)
            .await
            .ran("run 2");
        post(r#"{"order":{"id":"o-1"},"amount":1201}"#)
            .await
            .ran("run 3");
    })
    .await;
}

#[tokio::test]
async fn form_fields_make_a_key_whatever_their_order() {
    for_each_stack(|case| async move {
        let (server, _) = serve(case, &by_fields()).await;
        let post = |body| server.post("/a").form(body).send();
        post("order[id]=o-1&amount=1200&note=x").await.ran("run 1");
        post("amount=1200&order[id]=o-1").await.replayed("run 1");
        post("amount=1200&order%5Bid%5D=o%2D1")
            .await
            .replayed("run 1");
        post("order[id]=o-2&amount=1200").await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_differs_beside_its_key_fields_is_another_request() {
    for_each_stack(|case| async move {
        let source = KeySource::fields(["/id"]).expect("a valid pointer");
        let (server, runs) = serve(case, &layer().key_source(source)).await;
        let post = |body| server.post("/a").json(body).send();
        post(r#"{"id":1,"amount":10}"#).await.ran("run 1");
        post(r#"{"id":1,"amount":99}"#)
            .await
            .refused(422, "key-reused");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn key_fields_that_cannot_be_read_are_told_apart() {
    for_each_stack(|case| async move {
        let (server, runs) = serve(case, &by_fields().require_key(true)).await;
        let missing = |answer: &Answer| answer.refused(400, "missing-key");
        let invalid = |answer: &Answer| answer.refused(400, "invalid-key");
        let json = |body| server.post("/a").json(body).send();
        let form = |body| server.post("/a").form(body).send();

        let problem = missing(&json(r#"{"order":{},"amount":1}"#).await);
        assert!(
            problem["detail"]
                .as_str()
                .is_some_and(|text| text.contains("/order/id"))
        );
        missing(&json(r#"{"order":{"id":null},"amount":1}"#).await);
        missing(&form("amount=1").await);
        missing(&form("amount=1&order[id]=+").await);
        missing(&json("").await);
        for nothing in [
            r#""""#,
            r#""  ""#,
            "[]",
            "{}",
            r#"[null,[""]]"#,
            r#"{"a":{}}"#,
        ] {
            let body = format!(r#"{{"order":{{"id":{nothing}}},"amount":1}}"#);
            let call = server.post("/a").header("content-type", "application/json");
            missing(&call.body(body).send().await);
        }
        for malformed in [
            r#"{"order":{"id":1},"amount":"#,
            "no json",
            r#"{"amount":1,}"#,
        ] {
            invalid(&json(malformed).await);
        }
        // Of two members of one name, who knows which one the handler takes?
        invalid(&json(r#"{"order":{"id":1},"amount":1,"amount":2}"#).await);
        // What is no JSON, and does not say that it were, has no key.
        missing(&server.post("/a").body("amount=1").send().await);
        let multipart = server
            .post("/a")
            .header("content-type", "multipart/form-data");
        missing(&multipart.body("amount=1").send().await);
        assert_eq!(runs.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn optional_fields_may_be_absent() {
    for_each_stack(|case| async move {
        let fields = ["/a", "/b"].map(|field| Field::new(field).expect("valid").optional());
        let source = KeySource::fields(fields).expect("valid");
        let (server, _) = serve(case, &layer().key_source(source.clone())).await;
        let post = |body| server.post("/a").json(body).send();
        post(r#"{"a":1}"#).await.ran("run 1");
        post(r#"{"a":1}"#).await.replayed("run 1");
        // Which one is there counts.
        post(r#"{"b":1}"#).await.ran("run 2");
        // With none there is no key.
        post("{}").await.ran("run 3");
        post("{}").await.ran("run 4");

        let (server, _) = serve(case, &layer().key_source(source).require_key(true)).await;
        let answer = server.post("/a").json("{}").send().await;
        answer.refused(400, "missing-key");
    })
    .await;
}

#[tokio::test]
async fn a_function_may_give_the_key() {
    for_each_stack(|case| async move {
        let source = KeySource::function(|request, body| {
            if request.headers.contains_key("x-unkeyed") {
                return Ok(None);
            }
            let body: Value = serde_json::from_slice(body)
                .map_err(|error| InvalidKey::Refused(error.to_string().into()))?;
            Ok(body["id"].as_str().map(str::to_owned))
        });
        let (server, _) = serve(case, &layer().key_source(source)).await;
        let post = |body| server.post("/a").body(body);
        post(r#"{"id":"e-1"}"#).send().await.ran("run 1");
        post(r#"{"id":"e-1"}"#).send().await.replayed("run 1");
        post(r#"{"id":"e-1"}"#)
            .header("x-unkeyed", "")
            .send()
            .await
            .ran("run 2");
        post("no json").send().await.refused(400, "invalid-key");
        post(r#"{"id":"cl\u00e9"}"#)
            .send()
            .await
            .refused(400, "invalid-key");
        post(r#"{"id":" "}"#)
            .send()
            .await
            .refused(400, "invalid-key");
        post("{}").send().await.ran("run 3");
    })
    .await;
}

#[tokio::test]
async fn a_function_of_the_head_reads_no_body() {
    for_each_stack(|case| async move {
        let source = KeySource::head_function(|request| {
            let Some(value) = request.headers.get("webhook-id") else {
                return Ok(None);
            };
            let key = KeySyntax::Lenient.parse(value.as_bytes())?;
            Ok(Some(format!("{} {key}", request.uri.path())))
        });
        let (server, runs) = serve(case, &layer().key_source(source.clone())).await;
        let call = |id: &str| server.post("/a").header("webhook-id", id);
        call("1").send().await.ran("run 1");
        call("\"1\"").send().await.replayed("run 1");
        call("1 2").send().await.refused(400, "invalid-key");
        // It says so before the body is there.
        let (_sender, endless) = channel();
        let answer = call("").stream(endless).open().await;
        assert_eq!(answer.status(), 400);
        let long = server.post("/a").body(vec![b'x'; 2 << 20]);
        long.send().await.ran("run 2");
        assert_eq!(runs.count(), 2);

        let (server, runs) = serve(case, &layer().key_source(source).require_key(true)).await;
        let (_sender, endless) = channel();
        let answer = server.post("/a").stream(endless).open().await;
        assert_eq!(answer.status(), 400);
        assert_eq!(runs.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_request_without_its_key_fields_passes_where_no_key_is_required() {
    for_each_stack(|case| async move {
        let source = KeySource::fields(["/id"]).expect("a valid pointer");
        let (server, runs) = serve(case, &layer().key_source(source)).await;
        let json = |body| server.post("/a").json(body).send();
        let mut number = 0;
        for body in [
            "{}",
            "",
            r#"{"id":null}"#,
            r#"{"id":""}"#,
            r#"{"id":" \n"}"#,
            r#"{"id":[]}"#,
            r#"{"id":{}}"#,
            r#"{"id":[null,{"a":""}]}"#,
            "[1]",
        ] {
            // Each is a request of its own.
            for _ in 0..2 {
                number += 1;
                json(body).await.ran(&format!("run {number}"));
            }
        }
        for form in ["", "id=", "id", "a=1", "id=+"] {
            number += 1;
            let answer = server.post("/a").form(form).send().await;
            answer.ran(&format!("run {number}"));
        }
        number += 1;
        let answer = server.post("/a").body("no json").send().await;
        answer.ran(&format!("run {number}"));
        json(r#"{"id":1"#).await.refused(400, "invalid-key");
        assert_eq!(runs.count(), number);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_cannot_have_the_key_fields_is_not_read() {
    for_each_stack(|case| async move {
        let source = KeySource::fields(["/id"]).expect("a valid pointer");
        let (server, _) = serve(case, &layer().key_source(source)).await;
        let call = |content_type: &str| {
            let long = vec![b' '; 2 << 20];
            let call = server.post("/a").header("content-type", content_type);
            call.body(long).send()
        };
        for (number, other) in (1..).zip(["multipart/form-data; boundary=b", "image/png"]) {
            call(other).await.ran(&format!("run {number}"));
        }
        for readable in [
            "application/json",
            "application/x-www-form-urlencoded",
            "text/plain",
        ] {
            let answer = call(readable).await;
            answer.refused(413, "request-too-large");
        }
    })
    .await;
}

#[tokio::test]
async fn json_is_read_whatever_its_label_says() {
    for_each_stack(|case| async move {
        let source = KeySource::fields(["/idempotency_key"]).expect("a valid pointer");
        let (server, _) = serve(case, &layer().key_source(source)).await;
        let types = [
            "application/json",
            "text/json",
            "text/plain;charset=UTF-8",
            "",
        ];
        for (number, content_type) in (1..).zip(types) {
            let call = || {
                let body = format!(r#"{{"idempotency_key":"k{number}"}}"#);
                let call = server.post("/a").body(body);
                match content_type {
                    "" => call,
                    content_type => call.header("content-type", content_type),
                }
            };
            call().send().await.ran(&format!("run {number}"));
            call().send().await.replayed(&format!("run {number}"));
        }
    })
    .await;
}

#[test]
fn a_list_without_a_field_is_refused() {
    use tower_idempotency::{FingerprintSource, InvalidPointer};

    let none: [&str; 0] = [];
    assert_eq!(KeySource::fields(none).err(), Some(InvalidPointer::None));
    let fingerprint = FingerprintSource::fields(none);
    assert_eq!(fingerprint.err(), Some(InvalidPointer::None));
}
