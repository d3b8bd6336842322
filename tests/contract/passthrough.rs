//! What is not guarded passes through untouched.

use std::sync::{Arc, Mutex};

use http::{Method, Response};
use http_body_util::BodyExt;
use tokio::sync::mpsc;
use tower_idempotency::Attempt;

use crate::support::{Runs, channel, for_each_stack, layer, next_chunk, read, text};

#[tokio::test]
async fn an_unguarded_method_passes_even_with_a_key() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let handler = runs.answering(|request, number| {
            let guarded = request.extensions().get::<Attempt>().is_some();
            text(format!("run {number}, guarded: {guarded}"))
        });
        let server = case.serve(&layer(), handler).await;
        let mut expected = 0;
        for method in [Method::GET, Method::PUT, Method::DELETE, Method::OPTIONS] {
            for _ in 0..2 {
                expected += 1;
                let answer = server.call(method.clone(), "/a").key("k").send().await;
                answer.ran(&format!("run {expected}, guarded: false"));
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_malformed_key_on_an_unguarded_method_is_no_fault() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case
            .serve(&layer().require_key(true), runs.numbered())
            .await;
        let call = server.call(Method::GET, "/a");
        call.key("two words").key("twice").send().await.ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn without_a_key_each_request_runs() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        server.post("/a").body("x").send().await.ran("run 1");
        server.post("/a").body("x").send().await.ran("run 2");
    })
    .await;
}

#[tokio::test]
async fn post_and_patch_are_guarded_and_other_methods_by_setting() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let server = case.serve(&layer(), runs.numbered()).await;
        for (method, run) in [(Method::POST, "run 1"), (Method::PATCH, "run 2")] {
            let call = || server.call(method.clone(), "/a").key("k").send();
            call().await.ran(run);
            call().await.replayed(run);
        }

        let runs = Runs::default();
        let only_put = layer().methods([Method::PUT]);
        let server = case.serve(&only_put, runs.numbered()).await;
        let put = || server.call(Method::PUT, "/a").key("k").send();
        put().await.ran("run 1");
        put().await.replayed("run 1");
        server.post("/a").key("k").send().await.ran("run 2");
        server.post("/a").key("k").send().await.ran("run 3");
    })
    .await;
}

#[tokio::test]
async fn what_the_filter_does_not_pick_passes() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let filtered = layer()
            .require_key(true)
            .filter(|request| request.uri.path() != "/free");
        let server = case.serve(&filtered, runs.numbered()).await;
        server.post("/free").key("k").send().await.ran("run 1");
        server.post("/free").key("k").send().await.ran("run 2");
        server.post("/free").send().await.ran("run 3");
        server.post("/a").key("k").send().await.ran("run 4");
        server.post("/a").key("k").send().await.replayed("run 4");
        server.post("/a").send().await.refused(400, "missing-key");
    })
    .await;
}

#[tokio::test]
async fn a_response_that_passes_is_streamed() {
    for_each_stack(|case| async move {
        let (sender, body) = channel();
        let body = Arc::new(Mutex::new(Some(body)));
        let handler = Runs::default().answering(move |_, _| {
            let body = body.lock().expect("not poisoned").take();
            Response::new(body.expect("it runs once"))
        });
        let server = case.serve(&layer(), handler).await;
        // The head comes before there is any chunk, and each chunk before the next is there.
        let mut response = server.post("/a").open().await;
        sender.chunk("one");
        assert_eq!(
            next_chunk(&mut response).await.as_deref(),
            Some(&b"one"[..])
        );
        sender.chunk("two");
        assert_eq!(
            next_chunk(&mut response).await.as_deref(),
            Some(&b"two"[..])
        );
        drop(sender);
        assert_eq!(next_chunk(&mut response).await, None);
    })
    .await;
}

#[tokio::test]
async fn a_request_body_that_passes_is_streamed() {
    for_each_stack(|case| async move {
        let (seen, mut sees) = mpsc::unbounded_channel();
        let handler = Runs::default().running(move |request, _| {
            let seen = seen.clone();
            async move {
                let mut body = request.into_body();
                while let Some(frame) = body.frame().await {
                    let chunk = frame.expect("whole").into_data().expect("a chunk");
                    seen.send(chunk).expect("the test listens");
                }
                text("read")
            }
        });
        let server = case.serve(&layer(), handler).await;
        let (sender, body) = channel();
        let answer = tokio::spawn(server.post("/a").stream(body).open());
        for chunk in ["one", "two"] {
            sender.chunk(chunk);
            assert_eq!(sees.recv().await.as_deref(), Some(chunk.as_bytes()));
        }
        drop(sender);
        let answer = read(answer.await.expect("no panic")).await.expect("whole");
        answer.ran("read");
    })
    .await;
}
