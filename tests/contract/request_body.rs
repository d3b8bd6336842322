//! Row 4: request bodies, too large or just large enough.

use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;

use crate::support::{Runs, announced, channel, for_each_stack, frames, layer, text};

#[tokio::test]
async fn a_body_announced_as_too_large_is_refused_and_nothing_is_claimed() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case
            .serve(&layer().max_request_body(10), runs.numbered())
            .await;
        // It is told so before a byte of it has come.
        let (_sender, body) = channel();
        let call = server.post("/a").key("k").stream(announced(11, body));
        assert_eq!(call.open().await.status(), 413);
        let call = server.post("/a").key("k").body("0123456789a");
        call.send().await.refused(413, "request-too-large");
        // The key is free, even for other contents.
        server
            .post("/a")
            .key("k")
            .body("0123456789")
            .send()
            .await
            .ran("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_turns_out_too_large_is_refused_and_nothing_is_claimed() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case
            .serve(&layer().max_request_body(10), runs.numbered())
            .await;
        let (sender, body) = channel();
        sender.chunk("012345");
        sender.chunk("67890");
        // It has not ended, and need not.
        let answer = server.post("/a").key("k").stream(body).open().await;
        assert_eq!(answer.status(), 413);
        drop(sender);
        server
            .post("/a")
            .key("k")
            .body("0123456789")
            .send()
            .await
            .ran("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_without_a_key_may_be_of_any_size() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.running(|request, _| async {
            let body = request.into_body().collect().await.expect("whole");
            text(body.to_bytes().len().to_string())
        });
        let server = case.serve(&layer().max_request_body(10), handler).await;
        let large = vec![b'x'; 3 << 20];
        server.post("/a").body(large).send().await.ran("3145728");
    })
    .await;
}

#[tokio::test]
async fn up_to_a_mebibyte_is_not_too_large() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let just = vec![b'x'; 1 << 20];
        server
            .post("/a")
            .key("k")
            .body(just.clone())
            .send()
            .await
            .ran("run 1");
        server
            .post("/a")
            .key("k")
            .body(just)
            .send()
            .await
            .replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn the_handler_gets_the_body_and_trailers_untouched() {
    for_each_stack(|case| async move {
        let handler = Runs::default().running(|request, _| async {
            let body = request.into_body().collect().await.expect("whole");
            let digest = body.trailers().map_or("none".into(), |trailers| {
                format!("{:?} {:?}", trailers.len(), trailers["x-digest"])
            });
            let bytes = String::from_utf8_lossy(&body.to_bytes()).into_owned();
            text(format!("{bytes}, trailers: {digest}"))
        });
        let server = case.serve(&layer(), handler).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-digest", HeaderValue::from_static("c2hh"));
        let call = |key| {
            let body = frames(["one, ", "two, ", "three"], Some(trailers.clone()));
            let call = server.post("/a").header("trailer", "x-digest").stream(body);
            match key {
                None => call,
                Some(key) => call.key(key),
            }
        };
        let passed = call(None).send().await;
        passed.ran("one, two, three, trailers: 1 \"c2hh\"");
        let guarded = call(Some("k")).send().await;
        guarded.ran("one, two, three, trailers: 1 \"c2hh\"");
    })
    .await;
}

#[tokio::test]
async fn how_a_body_is_cut_into_chunks_does_not_make_another_request() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        server
            .post("/a")
            .key("k")
            .body("abcdef")
            .send()
            .await
            .ran("run 1");
        let chunks = frames(["ab", "", "cdef"], None);
        server
            .post("/a")
            .key("k")
            .stream(chunks)
            .send()
            .await
            .replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_claims_nothing() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        let (sender, body) = channel();
        sender.chunk("only the beg");
        let broken = server.post("/a").key("k").stream(body);
        let broken = tokio::spawn(broken.try_send());
        sender.fail("the client's disk is gone");
        let broken = broken.await.expect("no panic");
        if let Ok(answer) = broken {
            answer.refused(400, "unreadable-request");
        }
        server
            .post("/a")
            .key("k")
            .body("the whole of it")
            .send()
            .await
            .ran("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}
