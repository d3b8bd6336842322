//! The handle that ends new runs, and the bound on how many there are.

use http::{Response, StatusCode};
use tower_idempotency::Orphan;

use crate::support::{Runs, empty, eventually, for_each_stack, layer};

#[tokio::test]
async fn shutdown_waits_for_a_run_whose_client_has_gone() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer();
        let handle = layer.handle();
        let server = case.serve(&layer, runs.gated()).await;
        let first = server.post("/a").key("k").spawn();
        runs.gate().arrived().await;
        first.abort();
        eventually(async || handle.stats().detached == 1).await;
        let shutdown = {
            let handle = handle.clone();
            tokio::spawn(async move { handle.shutdown().await })
        };
        // The shutdown has begun when a new key is refused.
        eventually(async || server.post("/a").key("other").send().await.status == 503).await;
        assert!(!shutdown.is_finished());
        runs.gate().open_for_good();
        shutdown.await.expect("no panic");
        assert_eq!(handle.in_flight(), 0);
        server.post("/a").key("k").send().await.replayed("run 1");
    })
    .await;
}

#[tokio::test]
async fn an_idle_service_is_shut_down_at_once() {
    for_each_stack(|case| async move {
        let layer = layer();
        let server = case.serve(&layer, Runs::default().numbered()).await;
        server.post("/a").key("k").send().await.ran("run 1");
        layer.handle().shutdown().await;
    })
    .await;
}

#[tokio::test]
async fn after_shutdown_new_keys_are_refused_and_the_rest_is_served() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer();
        let server = case.serve(&layer, runs.gated()).await;
        let old = server.post("/a").key("old").spawn();
        runs.gate().arrived().await;
        runs.gate().open();
        old.await.expect("no panic").ran("run 1");
        let running = server.post("/a").key("running").spawn();
        runs.gate().arrived().await;

        layer.handle().close();
        let refused = server.post("/a").key("new").send().await;
        refused.refused(503, "shutting-down");
        assert_eq!(refused.retry_after(), Some("1"));
        server.post("/a").key("old").send().await.replayed("run 1");
        let duplicate = server.post("/a").key("running").send().await;
        duplicate.refused(409, "in-progress");
        runs.gate().open();
        running.await.expect("no panic").ran("run 2");
        server
            .post("/a")
            .key("running")
            .send()
            .await
            .replayed("run 2");
        // What is not guarded is none of the layer's business.
        runs.gate().open();
        server.post("/a").send().await.ran("run 3");
        assert_eq!(runs.count(), 3);
    })
    .await;
}

#[tokio::test]
async fn too_many_runs_are_refused_and_the_rest_is_served() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().max_runs(2);
        let server = case.serve(&layer, runs.gated()).await;
        let old = server.post("/a").key("old").spawn();
        runs.gate().arrived().await;
        runs.gate().open();
        old.await.expect("no panic").ran("run 1");

        // One that goes on without its client counts as well.
        let gone = server.post("/a").key("gone").spawn();
        runs.gate().arrived().await;
        gone.abort();
        eventually(async || layer.handle().stats().detached == 1).await;
        let running = server.post("/a").key("running").spawn();
        runs.gate().arrived().await;
        let refused = server.post("/a").key("new").send().await;
        refused.refused(503, "too-many-runs");
        assert_eq!(refused.retry_after(), Some("1"));
        server.post("/a").key("old").send().await.replayed("run 1");
        let duplicate = server.post("/a").key("running").send().await;
        duplicate.refused(409, "in-progress");
        assert_eq!(runs.count(), 3);

        runs.gate().open_for_good();
        running.await.expect("no panic").ran("run 3");
        layer.handle().idle().await;
        server.post("/a").key("new").send().await.ran("run 4");
    })
    .await;
}

#[tokio::test]
async fn a_held_key_is_told_to_be_held_when_nothing_may_run() {
    for_each_stack(|case| async move {
        for is_closed in [true, false] {
            let layer = layer().orphan(Orphan::Hold).max_runs(1);
            let runs = Runs::default();
            let gate = runs.gate().clone();
            let server = case
                .serve(
                    &layer,
                    runs.running(move |_, number| {
                        let gate = gate.clone();
                        async move {
                            if number > 1 {
                                gate.pass().await;
                            }
                            let mut response = Response::new(empty());
                            *response.status_mut() = StatusCode::BAD_GATEWAY;
                            response
                        }
                    }),
                )
                .await;
            assert_eq!(server.post("/a").key("k").send().await.status, 502);
            let running = server.post("/a").key("other").spawn();
            runs.gate().arrived().await;
            if is_closed {
                layer.handle().close();
            }
            let problem = server.post("/a").key("k").send().await;
            let problem = problem.refused(409, "outcome-unknown");
            assert_eq!(problem["first_status"], 502);
            runs.gate().open();
            assert_eq!(running.await.expect("no panic").status, 502);
        }
    })
    .await;
}
