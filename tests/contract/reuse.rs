//! Row 8: one key for different requests; and what makes two requests the same.

use std::borrow::Cow;

use http::{HeaderName, Method};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{FingerprintSource, IdempotencyLayer};

use crate::support::{Call, FaultyStore, Runs, Server, for_each_stack, layer};

fn call(server: &Server, query: &str, content_type: &str, credentials: &str, body: &str) -> Call {
    let mut call = server
        .post(&format!("/a{query}"))
        .key("k")
        .body(body.to_owned());
    if !content_type.is_empty() {
        call = call.header("content-type", content_type);
    }
    if !credentials.is_empty() {
        call = call.header("authorization", credentials);
    }
    call
}

fn original(server: &Server) -> Call {
    call(server, "?x=1", "text/plain", "Bearer a", "body")
}

fn others(server: &Server) -> Vec<(&'static str, Call)> {
    let call = |query, content_type, credentials, body| {
        call(server, query, content_type, credentials, body)
    };
    vec![
        ("other body", call("?x=1", "text/plain", "Bearer a", "bodY")),
        ("no body", call("?x=1", "text/plain", "Bearer a", "")),
        (
            "longer body",
            call("?x=1", "text/plain", "Bearer a", "body "),
        ),
        (
            "other query",
            call("?x=2", "text/plain", "Bearer a", "body"),
        ),
        ("empty query", call("?", "text/plain", "Bearer a", "body")),
        ("no query", call("", "text/plain", "Bearer a", "body")),
        ("other type", call("?x=1", "text/html", "Bearer a", "body")),
        ("no type", call("?x=1", "", "Bearer a", "body")),
        (
            "other caller",
            call("?x=1", "text/plain", "Bearer b", "body"),
        ),
        ("no caller", call("?x=1", "text/plain", "", "body")),
        (
            "two callers",
            original(server).header("authorization", "Bearer b"),
        ),
    ]
}

async fn all_are_refused(server: &Server) {
    for (what, call) in others(server) {
        let answer = call.send().await;
        assert_eq!(answer.status, 422, "{what}: {answer:?}");
        answer.refused(422, "key-reused");
    }
}

#[tokio::test]
async fn another_request_is_refused_in_flight_and_completed() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.gated()).await;
        let first = original(&server).spawn();
        runs.gate().arrived().await;
        all_are_refused(&server).await;
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        all_are_refused(&server).await;
        original(&server).send().await.replayed("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn another_request_is_refused_where_the_store_has_to_be_waited_for() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = IdempotencyLayer::new(FaultyStore::new());
        let server = case.serve(&layer, runs.gated()).await;
        let first = original(&server).spawn();
        runs.gate().arrived().await;
        all_are_refused(&server).await;
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        all_are_refused(&server).await;
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn another_request_is_refused_when_the_service_is_busy_or_closed() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().max_runs(1);
        let server = case.serve(&layer, runs.gated()).await;
        let first = original(&server).spawn();
        runs.gate().arrived().await;
        all_are_refused(&server).await;
        runs.gate().open();
        first.await.expect("no panic").ran("run 1");
        layer.handle().close();
        all_are_refused(&server).await;
        original(&server).send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn what_a_client_may_change_between_tries_does_not_count() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        original(&server).send().await.ran("run 1");
        let call = |content_type| call(&server, "?x=1", content_type, "Bearer a", "body");
        let parameters = call("text/plain; charset=utf-8");
        parameters.send().await.replayed("run 1");
        call("Text/Plain").send().await.replayed("run 1");
        let traced = original(&server)
            .header("traceparent", "00-1-2-01")
            .header("user-agent", "x");
        traced.send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn another_path_or_method_is_another_operation() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let calls = [
            (Method::POST, "/a"),
            (Method::POST, "/b"),
            (Method::POST, "/a/b"),
            (Method::PATCH, "/a"),
        ];
        for (number, (method, path)) in (1..).zip(calls.clone()) {
            let answer = server.call(method, path).key("k").send().await;
            answer.ran(&format!("run {number}"));
        }
        for (number, (method, path)) in (1..).zip(calls) {
            let answer = server.call(method, path).key("k").send().await;
            answer.replayed(&format!("run {number}"));
        }
    })
    .await;
}

fn tenant(request: &http::request::Parts) -> Option<Cow<'_, str>> {
    let tenant = request.headers.get("x-tenant")?;
    Some(tenant.to_str().ok()?.into())
}

#[tokio::test]
async fn tenants_never_meet() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer().scope(tenant), runs.numbered()).await;
        let call = |tenant: &str, token: &str, body: &str| {
            call(&server, "", "", token, body).header("x-tenant", tenant)
        };
        call("t1", "Bearer a", "x").send().await.ran("run 1");
        call("t2", "Bearer a", "y").send().await.ran("run 2");
        // The tenant counts, and not with which token it has come.
        call("t1", "Bearer fresh", "x")
            .send()
            .await
            .replayed("run 1");
        call("t2", "", "y").send().await.replayed("run 2");
        call("t1", "Bearer a", "y")
            .send()
            .await
            .refused(422, "key-reused");
        // A tenant without a name is none of them.
        call("", "Bearer a", "x").send().await.ran("run 3");
    })
    .await;
}

#[tokio::test]
async fn where_there_is_no_tenant_the_credentials_count() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer().scope(tenant), runs.numbered()).await;
        let call = |token: &str| call(&server, "", "", token, "x");
        call("Bearer a")
            .header("x-tenant", "t1")
            .send()
            .await
            .ran("run 1");
        call("Bearer a").send().await.ran("run 2");
        call("Bearer a").send().await.replayed("run 2");
        call("Bearer b").send().await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn namespaces_keep_services_on_one_store_apart() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let store = MemoryStore::new();
        let layer = |namespace| IdempotencyLayer::new(store.clone()).namespace(namespace);
        let live = case.serve(&layer("live"), runs.numbered()).await;
        let test = case.serve(&layer("test"), runs.numbered()).await;
        let also_live = case.serve(&layer("live"), runs.numbered()).await;
        live.post("/a").key("k").send().await.ran("run 1");
        test.post("/a").key("k").send().await.ran("run 2");
        also_live.post("/a").key("k").send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_fingerprint_may_be_narrowed_to_fields() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let source = FingerprintSource::fields(["/amount"]).expect("a valid pointer");
        let server = case
            .serve(&layer().fingerprint(source), runs.numbered())
            .await;
        let call = |body| server.post("/a").key("k").json(body).send();
        call(r#"{"amount":1200,"sent_at":"10:00:00"}"#)
            .await
            .ran("run 1");
        call(r#"{"sent_at":"10:00:01","amount":1200}"#)
            .await
            .replayed("run 1");
        call(r#"{"amount":1201,"sent_at":"10:00:00"}"#)
            .await
            .refused(422, "key-reused");
        // A body without the field is not the same as one with it.
        call("{}").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn a_body_without_the_fields_of_its_fingerprint_counts_as_a_whole() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let source = FingerprintSource::fields(["/amount"]).expect("a valid pointer");
        let server = case
            .serve(&layer().fingerprint(source), runs.numbered())
            .await;
        let call = |body| server.post("/a").key("k").json(body).send();
        call("{}").await.ran("run 1");
        call("{}").await.replayed("run 1");
        call("{ }").await.refused(422, "key-reused");
        call("no json").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn a_fingerprint_may_leave_fields_out() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let source = FingerprintSource::without(["/sent_at"]).expect("a valid pointer");
        let server = case
            .serve(&layer().fingerprint(source), runs.numbered())
            .await;
        let json = |body| server.post("/a").key("j").json(body).send();
        json(r#"{"amount":1200,"sent_at":"10:00:00"}"#)
            .await
            .ran("run 1");
        json(r#"{ "sent_at": "10:00:01", "amount": 1200 }"#)
            .await
            .replayed("run 1");
        json(r#"{"amount":1200}"#).await.replayed("run 1");
        json(r#"{"amount":1200,"currency":"eur"}"#)
            .await
            .refused(422, "key-reused");
        json(r#"{"amount":1201,"sent_at":"10:00:00"}"#)
            .await
            .refused(422, "key-reused");

        let form = |body| server.post("/a").key("f").form(body).send();
        form("amount=1200&sent_at=1").await.ran("run 2");
        form("sent_at=2&amount=1200").await.replayed("run 2");
        form("amount=1201&sent_at=1")
            .await
            .refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn headers_may_be_part_of_the_fingerprint() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let headers = ["stripe-version", "x-api-key"].map(HeaderName::from_static);
        let layer = layer().fingerprint_headers(headers);
        let server = case.serve(&layer, runs.numbered()).await;
        let call = || server.post("/a").key("k").header("x-api-key", "s");
        call()
            .header("stripe-version", "1")
            .send()
            .await
            .ran("run 1");
        call()
            .header("stripe-version", "1")
            .send()
            .await
            .replayed("run 1");
        let other = call().header("stripe-version", "2").send().await;
        other.refused(422, "key-reused");
        call().send().await.refused(422, "key-reused");
        // A value does not slip from one header into the next.
        let swapped = server.post("/a").key("k").header("stripe-version", "s");
        let swapped = swapped.header("x-api-key", "1").send().await;
        swapped.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn a_multipart_body_may_come_with_another_boundary() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let call = |boundary: &str, value: &str| {
            let content_type = format!("multipart/form-data; boundary={boundary}");
            let body = format!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"f\"\r\n\r\n{value}\r\n--{boundary}--\r\n"
            );
            server
                .post("/a")
                .key("k")
                .header("content-type", content_type)
                .body(body)
        };
        call("b1", "value").send().await.ran("run 1");
        call("another-boundary", "value").send().await.replayed("run 1");
        call("b1", "other").send().await.refused(422, "key-reused");
    })
    .await;
}
