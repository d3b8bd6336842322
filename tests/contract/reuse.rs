//! `key-reused` and `caller-differs`: one key for different requests or callers; and what makes two
//! requests the same.

use std::borrow::Cow;

use http::{HeaderName, Method};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{CallerSource, Field, FingerprintSource, IdempotencyLayer, QuerySource};

use crate::support::{
    Call, FaultyStore, Log, Runs, Server, for_axum, for_each_stack, layer, router,
};

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
        ("no query", call("", "text/plain", "Bearer a", "body")),
        ("other type", call("?x=1", "text/html", "Bearer a", "body")),
        ("no type", call("?x=1", "", "Bearer a", "body")),
        (
            "other operation",
            original(server).header("soapaction", "\"urn:stop\""),
        ),
        (
            "other encoding",
            original(server).header("content-encoding", "gzip"),
        ),
        (
            "other charset",
            call("?x=1", "text/plain; charset=latin1", "Bearer a", "body"),
        ),
    ]
}

/// What other callers send, of whom some guess the request right.
fn strangers(server: &Server) -> Vec<(&'static str, Call)> {
    let call = |credentials, body| call(server, "?x=1", "text/plain", credentials, body);
    vec![
        ("other token", call("Bearer b", "body")),
        ("other token and body", call("Bearer b", "other")),
        ("no token", call("", "body")),
        ("no token, other body", call("", "other")),
        (
            "two tokens",
            original(server).header("authorization", "Bearer b"),
        ),
        ("a cookie", original(server).header("cookie", "sid=1")),
        ("an API key", original(server).header("x-api-key", "k")),
    ]
}

async fn all_are_refused(server: &Server) {
    for (what, call) in others(server) {
        let answer = call.send().await;
        assert_eq!(answer.status, 422, "{what}: {answer:?}");
        answer.refused(422, "key-reused");
    }
    let mut told = Vec::new();
    for (what, call) in strangers(server) {
        let answer = call.send().await;
        assert_eq!(answer.status, 422, "{what}: {answer:?}");
        answer.refused(422, "caller-differs");
        told.push(answer.body);
    }
    // The answer does not tell whether they have guessed right.
    told.dedup();
    assert_eq!(told.len(), 1);
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
        for same in [
            "text/plain; charset=utf-8",
            "Text/Plain",
            "text/plain;charset=\"US-ASCII\"",
        ] {
            call(same).send().await.replayed("run 1");
        }
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
        call("Bearer b").send().await.refused(422, "caller-differs");
    })
    .await;
}

#[tokio::test]
async fn namespaces_keep_services_on_one_store_apart() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let store = MemoryStore::new();
        // Each server has a port of its own.
        let layer = |namespace| {
            IdempotencyLayer::new(store.clone())
                .namespace(namespace)
                .any_host()
        };
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
        let headers = ["stripe-version", "stripe-context"].map(HeaderName::from_static);
        let layer = layer().fingerprint_headers(headers);
        let server = case.serve(&layer, runs.numbered()).await;
        let call = || server.post("/a").key("k").header("stripe-context", "s");
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
        let swapped = swapped.header("stripe-context", "1").send().await;
        swapped.refused(422, "key-reused");
        // Lines of one header are one.
        let lines = |key| server.post("/a").key(key).header("stripe-version", "a");
        let two = lines("l").header("stripe-version", "b");
        two.send().await.ran("run 2");
        let one = server.post("/a").key("l").header("stripe-version", "a, b");
        one.send().await.replayed("run 2");
        lines("l").send().await.refused(422, "key-reused");
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

#[tokio::test]
async fn callers_who_are_told_apart_by_any_credential_never_meet() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let pairs = [
            ("cookie", "sid=a", "sid=b"),
            ("x-api-key", "merchant-a", "merchant-b"),
            ("api-key", "a", "b"),
            ("x-forwarded-user", "a", "b"),
            ("x-amzn-oidc-identity", "a", "b"),
            ("x-forwarded-client-cert", "URI=a", "URI=b"),
        ];
        for (number, (name, one, other)) in (1..).zip(pairs) {
            let call = |value: &str| server.post("/a").key(name).header(name, value).body("x");
            let run = format!("run {number}");
            call(one).send().await.ran(&run);
            call(other).send().await.refused(422, "caller-differs");
            let nobody = server.post("/a").key(name).body("x").send().await;
            nobody.refused(422, "caller-differs");
            call(one).send().await.replayed(&run);
        }
    })
    .await;
}

#[tokio::test]
async fn cookies_that_identify_nobody_may_change() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let call = |lines: &[&str]| {
            let call = server.post("/a").key("k").body("x");
            lines
                .iter()
                .fold(call, |call, line| call.header("cookie", line))
        };
        call(&["sid=1; theme=dark; AWSALB=x1; XSRF-TOKEN=y1; _ga=GA1"])
            .send()
            .await
            .ran("run 1");
        for lines in [
            &["sid=1; theme=dark"][..],
            &["theme=dark; sid=1; AWSALB=x2; XSRF-TOKEN=y2; __cf_bm=z"],
            &["theme=dark", "sid=1", "_gid=1"],
            &[
                "theme=dark",
                "sid=1",
                "_ga_AB12CD34EF=GS1.1",
                "_gat_UA-1-2=1",
            ],
        ] {
            call(lines).send().await.replayed("run 1");
        }
        for lines in [
            &["sid=2; theme=dark"][..],
            &["sid=1"],
            &["sid=1; theme=dark; sid=2"],
            &[],
        ] {
            call(lines).send().await.refused(422, "caller-differs");
        }
    })
    .await;
}

#[tokio::test]
async fn the_cookies_that_count_can_be_named() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().session_cookies(["remember_me"]);
        let server = case.serve(&layer, runs.numbered()).await;
        let call = |cookies: &str| server.post("/a").key("k").header("cookie", cookies);
        call("laravel_session=x1; remember_me=a")
            .send()
            .await
            .ran("run 1");
        let again = call("remember_me=a; laravel_session=x2");
        again.send().await.replayed("run 1");
        let other = call("laravel_session=x1; remember_me=b");
        other.send().await.refused(422, "caller-differs");
    })
    .await;
}

#[tokio::test]
async fn another_host_is_another_caller_unless_there_is_a_scope() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let store = MemoryStore::new();
        let scoped = IdempotencyLayer::new(store.clone()).scope(tenant);
        let unscoped = IdempotencyLayer::new(store.clone());
        let any_host = unscoped.clone().any_host();
        // Each server has a port of its own.
        let [one, other] = [
            case.serve(&scoped, runs.numbered()).await,
            case.serve(&scoped, runs.numbered()).await,
        ];
        let call = |server: &Server, key: &str| {
            server.post("/a").key(key).header("x-tenant", "t").body("x")
        };
        call(&one, "k").send().await.ran("run 1");
        call(&other, "k").send().await.replayed("run 1");

        let [one, other] = [
            case.serve(&unscoped, runs.numbered()).await,
            case.serve(&unscoped, runs.numbered()).await,
        ];
        call(&one, "l").send().await.ran("run 2");
        call(&other, "l")
            .send()
            .await
            .refused(422, "caller-differs");
        // What somebody says of another host is nothing to go by.
        let forwarded = call(&one, "l").header("x-forwarded-host", "example.com");
        forwarded.send().await.replayed("run 2");

        let [one, other] = [
            case.serve(&any_host, runs.numbered()).await,
            case.serve(&any_host, runs.numbered()).await,
        ];
        call(&one, "m").send().await.ran("run 3");
        call(&other, "m").send().await.replayed("run 3");
    })
    .await;
}

fn signed(server: &Server, access_key: &str, signature: &str) -> Call {
    let authorization = format!(
        "AWS4-HMAC-SHA256 Credential={access_key}/20261125/eu-west-1/execute-api/aws4_request, \
         SignedHeaders=host;x-amz-date, Signature={signature}"
    );
    let call = server.post("/a").key("k").body("x");
    call.header("authorization", authorization)
        .header("x-amz-date", signature)
}

#[tokio::test]
async fn a_request_that_is_signed_anew_comes_from_another_caller_unless_it_is_said() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        signed(&server, "AKIA1", "aa").send().await.ran("run 1");
        // It may be forged: the handler, who would know, is not asked.
        let forged = signed(&server, "AKIA1", "bb").send().await;
        forged.refused(422, "caller-differs");

        let layer = layer().caller(CallerSource::signed_identity());
        let server = case.serve(&layer, runs.numbered()).await;
        signed(&server, "AKIA1", "aa").send().await.ran("run 2");
        signed(&server, "AKIA1", "bb")
            .send()
            .await
            .replayed("run 2");
        let other = signed(&server, "AKIA2", "aa").send().await;
        other.refused(422, "caller-differs");
    })
    .await;
}

#[tokio::test]
async fn a_caller_may_be_named_by_a_function() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let subject = CallerSource::function("subject", 1, |request| {
            // Such as "Bearer SUBJECT.SIGNATURE".
            let token = request.headers.get("authorization")?.to_str().ok()?;
            let (subject, _) = token.split_once('.')?;
            Some(Cow::Borrowed(subject))
        });
        let layer = layer().caller(subject);
        let server = case.serve(&layer, runs.numbered()).await;
        let call = |token: &str| call(&server, "", "", token, "x");
        call("Bearer a.1").send().await.ran("run 1");
        call("Bearer a.2").send().await.replayed("run 1");
        call("Bearer b.1")
            .send()
            .await
            .refused(422, "caller-differs");
        call("Bearer a").send().await.refused(422, "caller-differs");
    })
    .await;
}

#[tokio::test]
async fn one_client_may_act_for_several_accounts() {
    fn account(request: &http::request::Parts) -> Option<Cow<'_, str>> {
        let platform = request.headers.get("authorization")?.to_str().ok()?;
        match request.headers.get("stripe-account") {
            None => Some(Cow::Borrowed(platform)),
            Some(account) => Some(format!("{platform} for {account:?}").into()),
        }
    }
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer().scope(account), runs.numbered()).await;
        let call = |account: &str| {
            let call = call(&server, "", "", "Bearer platform", "x");
            call.header("stripe-account", account)
        };
        call("acct_1").send().await.ran("run 1");
        call("acct_2").send().await.ran("run 2");
        call("acct_1").send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn the_spelling_of_a_path_does_not_matter() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let post = |path: &'static str| server.post(path).key("k").body("x").send();
        for (number, same) in (1..).zip([
            &["/u/a", "/u/%61"][..],
            &["/u/%C3%A9", "/u/%c3%a9", "/u/%C3%a9"],
            &["/u/a~b?q=~", "/u/%61%7eb?q=%7E"],
            &["/u/a%2Fb", "/u/%61%2fb"],
        ]) {
            let run = format!("run {number}");
            post(same[0]).await.ran(&run);
            for path in same {
                post(path).await.replayed(&run);
            }
        }
        // A bare question mark is no query.
        post("/u/a?").await.replayed("run 1");
        for (number, path) in (5..).zip([
            "/U/a",
            "/u/a/",
            "/u//a",
            "/u/./a",
            "/u/%2e/a",
            "/u/../a",
            "/u/%2e%2e/a",
            "/u/a/b",
        ]) {
            post(path).await.ran(&format!("run {number}"));
        }
    })
    .await;
}

#[tokio::test]
async fn the_path_counts_whatever_the_target_is() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().target(|_| "/all".into());
        let server = case.serve(&layer, runs.numbered()).await;
        let post = |path: &'static str| server.post(path).key("k").body("x").send();
        post("/a").await.ran("run 1");
        post("/%61").await.replayed("run 1");
        post("/b").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn nested_routers_are_told_apart() {
    for_axum(|case| async move {
        let runs = Runs::default();
        let store = MemoryStore::new();
        let layer = || IdempotencyLayer::new(store.clone());
        let inner = || router(runs.numbered()).layer(layer());
        let app = axum::Router::new()
            .nest("/live", inner())
            .nest("/test", inner())
            .nest("/accounts/{id}", inner());
        let server = case.serve_router(app).await;
        let post = |path: &'static str| server.post(path).key("k").body("x").send();
        for (number, path) in (1..).zip([
            "/live/pay",
            "/test/pay",
            "/accounts/1/pay",
            "/accounts/2/pay",
        ]) {
            post(path).await.ran(&format!("run {number}"));
            post(path).await.replayed(&format!("run {number}"));
        }
        post("/accounts/%31/pay").await.replayed("run 3");
    })
    .await;
}

#[tokio::test]
async fn headers_that_name_an_operation_make_another_request() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let operations = [
            ("x-amz-target", "Start", "Stop"),
            ("soapaction", "\"Start\"", "\"Stop\""),
            ("x-http-method-override", "PUT", "DELETE"),
            ("next-action", "a1", "b2"),
            ("upload-offset", "0", "70"),
        ];
        for (number, (name, one, other)) in (1..).zip(operations) {
            let call = |value: &str| server.post("/a").key(name).header(name, value).body("x");
            call(one).send().await.ran(&format!("run {number}"));
            call(other).send().await.refused(422, "key-reused");
            let none = server.post("/a").key(name).body("x").send().await;
            none.refused(422, "key-reused");
            call(one).send().await.replayed(&format!("run {number}"));
        }
        // SOAP 1.2 has its action in the media type.
        let soap = |action: &str| {
            let content_type = format!("application/soap+xml; charset=utf-8; action=\"{action}\"");
            let call = server.post("/a").key("soap").body("x");
            call.header("content-type", content_type).send()
        };
        soap("Start").await.ran("run 6");
        soap("Stop").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn a_query_that_is_signed_anew_can_be_left_out() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let query = QuerySource::without(["timestamp", "signature"]);
        let layer = layer().fingerprint_query(query);
        let server = case.serve(&layer, runs.numbered()).await;
        let post = |path: &'static str| server.post(path).key("k").body("x").send();
        post("/a?id=1&timestamp=10&signature=aa").await.ran("run 1");
        post("/a?signature=bb&id=1&timestamp=11")
            .await
            .replayed("run 1");
        post("/a?id=2&timestamp=10&signature=aa")
            .await
            .refused(422, "key-reused");

        let layer = layer.fingerprint_query(QuerySource::None);
        let server = case.serve(&layer, runs.numbered()).await;
        let post = |path: &'static str| server.post(path).key("l").body("x").send();
        post("/a?id=1").await.ran("run 2");
        post("/a?id=2").await.replayed("run 2");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_is_not_there_has_no_type() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let call = || server.post("/a").key("k");
        call().json("").send().await.ran("run 1");
        call().send().await.replayed("run 1");
        call().form("").send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_fingerprint_may_be_of_the_canonical_form() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().fingerprint(FingerprintSource::canonical());
        let server = case.serve(&layer, runs.numbered()).await;
        let json = |body| server.post("/a").key("j").json(body).send();
        json(r#"{"a":1.0,"b":{"c":"\u0041","d":null}}"#)
            .await
            .ran("run 1");
        json(r#"{ "b": {"d": null, "c": "A"}, "a": 1 }"#)
            .await
            .replayed("run 1");
        json(r#"{"a":1,"b":{"c":"A"}}"#)
            .await
            .refused(422, "key-reused");
        let form = |body| server.post("/a").key("f").form(body).send();
        form("a=1&b[]=2&b[]=3").await.ran("run 2");
        form("b%5B%5D=2&a=%31&b[]=3").await.replayed("run 2");
        form("a=1&b[]=3&b[]=2").await.refused(422, "key-reused");
        // A text has no other form.
        let text = |body: &'static str| {
            let call = server
                .post("/a")
                .key("t")
                .header("content-type", "text/plain");
            call.body(body).send()
        };
        text("[1]").await.ran("run 3");
        text("[ 1 ]").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn a_fingerprint_may_be_what_a_function_says() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        // A message whose entries may be in any order, such as a protobuf map.
        let sorted = FingerprintSource::function("sorted", 1, |_, body| {
            let mut body = body.to_vec();
            body.sort_unstable();
            Some(body.into())
        });
        let layer = layer().fingerprint(sorted);
        let server = case.serve(&layer, runs.numbered()).await;
        let post = |body: &'static str| server.post("/a").key("k").body(body).send();
        post("ab").await.ran("run 1");
        post("ba").await.replayed("run 1");
        post("bb").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn what_is_left_empty_is_not_what_is_left_out() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let note = Field::new("/note").expect("a valid pointer").optional();
        let source = FingerprintSource::fields([note]).expect("a field");
        let layer = layer().fingerprint(source);
        let server = case.serve(&layer, runs.numbered()).await;
        for (number, body) in (1..).zip(["{}", r#"{"note":""}"#, r#"{"note":null}"#]) {
            let key = format!("k{number}");
            let call = |body| server.post("/a").key(&key).json(body).send();
            call(body).await.ran(&format!("run {number}"));
            for other in ["{}", r#"{"note":""}"#, r#"{"note":null}"#] {
                let answer = call(other).await;
                match other == body {
                    true => answer.replayed(&format!("run {number}")).status,
                    false => {
                        answer.refused(422, "key-reused");
                        answer.status
                    }
                };
            }
        }
    })
    .await;
}

#[tokio::test]
async fn pairs_of_a_form_that_build_a_list_keep_their_order() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let source = FingerprintSource::fields(["/items"]).expect("a valid pointer");
        let layer = layer().fingerprint(source);
        let server = case.serve(&layer, runs.numbered()).await;
        let form = |body| server.post("/a").key("k").form(body).send();
        form("items[][sku]=A&items[][n]=3&items[][sku]=B")
            .await
            .ran("run 1");
        form("items[][sku]=A&items[][sku]=B&items[][n]=3")
            .await
            .refused(422, "key-reused");
        form("note=x&items[][sku]=A&items[][n]=3&items[][sku]=B")
            .await
            .replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn boundaries_of_nested_multipart_bodies_may_differ() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let call = |outer: &str, inner: &str, value: &str| {
            let content_type = format!("multipart/mixed; boundary=\"{outer}\"");
            let body = format!(
                "--{outer}\r\nContent-Type: multipart/related; boundary={inner}\r\n\r\n\
                 --{inner}\r\n\r\n{value}\r\n--{inner}--\r\n--{outer}--\r\n"
            );
            let call = server.post("/a").key("k");
            call.header("content-type", content_type).body(body).send()
        };
        call("b1", "c1", "value").await.ran("run 1");
        call("b2", "c2", "value").await.replayed("run 1");
        call("b1", "c1", "other").await.refused(422, "key-reused");
    })
    .await;
}

#[tokio::test]
async fn signatures_that_make_another_caller_are_told_of_once() {
    for_each_stack(|case| async move {
        let log = Log::of_this_thread();
        let server = case.serve(&layer(), Runs::default().numbered()).await;
        signed(&server, "AKIA1", "s3cret-1")
            .send()
            .await
            .ran("run 1");
        for _ in 0..3 {
            let again = signed(&server, "AKIA1", "s3cret-2").send().await;
            again.refused(422, "caller-differs");
        }
        assert_eq!(log.count("WARN", "signed_identity"), 1);
        assert_eq!(log.count("WARN", "scope"), 1);
        // What was compared is told by name.
        assert_eq!(log.count("DEBUG", "\"host\", \"authorization\""), 3);
        assert_eq!(log.count("", "s3cret"), 0);
    })
    .await;
}

#[tokio::test]
async fn a_layer_that_knows_no_caller_says_so_once() {
    for_each_stack(|case| async move {
        let log = Log::of_this_thread();
        let server = case.serve(&layer(), Runs::default().numbered()).await;
        let post = || server.post("/a").key("k");
        server.post("/a").send().await.ran("run 1");
        let known = post().header("x-api-key", "a");
        known.send().await.ran("run 2");
        assert_eq!(log.count("WARN", "without any credential"), 0);
        for key in ["l", "m"] {
            server
                .post("/a")
                .key(key)
                .header("cookie", "_ga=1")
                .send()
                .await;
        }
        assert_eq!(log.count("WARN", "without any credential"), 1);

        // The tenant is enough.
        let server = case
            .serve(&layer().scope(tenant), Runs::default().numbered())
            .await;
        let call = server.post("/a").key("k").header("x-tenant", "t");
        call.send().await.ran("run 1");
        assert_eq!(log.count("WARN", "without any credential"), 1);
    })
    .await;
}

#[tokio::test]
async fn a_session_that_is_named_like_a_cookie_of_analytics_counts() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let names = [
            "_gat_session",
            "_ga_auth",
            "AMP_SESSIONID",
            "_vwo_user",
            "csrf-token_jwt",
        ];
        for (number, name) in (1..).zip(names) {
            let call = |value: &str| {
                let call = server.post("/a").key(name).body("x");
                call.header("cookie", format!("{name}={value}")).send()
            };
            call("a").await.ran(&format!("run {number}"));
            call("b").await.refused(422, "caller-differs");
            call("a").await.replayed(&format!("run {number}"));
        }
    })
    .await;
}

#[tokio::test]
async fn another_caller_learns_nothing_whatever_became_of_the_key() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let gate = runs.gate().clone();
        let handler = runs.running(move |request, _| {
            let gate = gate.clone();
            async move {
                let path = request.uri().path().to_owned();
                if path == "/runs" {
                    gate.pass().await;
                }
                let mut response = crate::support::text("done");
                if path == "/held" {
                    *response.status_mut() = http::StatusCode::INTERNAL_SERVER_ERROR;
                }
                response
            }
        });
        let layer = layer()
            .orphan(tower_idempotency::Orphan::Hold)
            .report_times(true)
            .wait_for_in_flight(std::time::Duration::from_secs(20));
        let server = case.serve(&layer, handler).await;
        let call = |path: &str, caller: &'static str, body: &'static str| {
            let call = server.post(path).key("k").body(body);
            call.header("authorization", caller)
        };
        let running = call("/runs", "Bearer a", "x").spawn();
        runs.gate().arrived().await;
        call("/done", "Bearer a", "x").send().await;
        call("/held", "Bearer a", "x").send().await;
        let mut seen = Vec::new();
        for path in ["/runs", "/done", "/held"] {
            for body in ["x", "y"] {
                let mut answer = call(path, "Bearer b", body).send().await;
                answer.refused(422, "caller-differs");
                answer.headers.remove("date");
                seen.push(answer);
            }
        }
        for answer in &seen {
            assert_eq!(answer.body, seen[0].body);
            assert_eq!(answer.headers, seen[0].headers);
            assert_eq!(answer.retry_after(), None);
            assert!(!answer.headers.contains_key("idempotency-holder"));
        }
        runs.gate().open();
        running.await.expect("no panic").ran("done");
    })
    .await;
}

#[tokio::test]
async fn a_token_that_is_renewed_between_two_tries_is_told_what_to_do() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let call = |token: &'static str| {
            let call = server.post("/a").key("k").body("x");
            call.header("authorization", token).send()
        };
        call("Bearer before").await.ran("run 1");
        let problem = call("Bearer after").await.refused(422, "caller-differs");
        let detail = problem["detail"].as_str().expect("it is a text");
        for advice in [
            "authenticate as the caller that first sent it",
            "ask for the state of the operation",
        ] {
            assert!(detail.contains(advice), "{detail}");
        }
        // Who sends the request under a new key pays twice.
        assert!(!detail.contains("new"), "{detail}");
        call("Bearer before").await.replayed("run 1");
    })
    .await;
}
