//! `settings-changed`, and deploys that change what requests are told apart by, or how records are
//! named.

use http::{HeaderName, StatusCode};
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, Naming, Orphan, Recipe};

use crate::support::{Case, Runs, Server, for_each_stack, text};

/// Two nodes on one store.
async fn nodes(case: Case, runs: &Runs, layers: [IdempotencyLayer<MemoryStore>; 2]) -> [Server; 2] {
    let [one, other] = layers.map(IdempotencyLayer::any_host);
    [
        case.serve(&one, runs.gated()).await,
        case.serve(&other, runs.gated()).await,
    ]
}

fn recipes() -> [Recipe; 2] {
    let version = HeaderName::from_static("stripe-version");
    let old = Recipe::new().any_host();
    [old.clone(), old.fingerprint_headers([version])]
}

#[tokio::test]
async fn a_deploy_of_other_settings_replays_what_both_sides_accept() {
    for_each_stack(|case| async move {
        let [old, new] = recipes();
        let store = MemoryStore::new();
        let layer = |recipe: &Recipe, accepted: &Recipe| {
            let layer = IdempotencyLayer::new(store.clone()).recipe(recipe.clone());
            layer.also_accept([accepted.clone()])
        };
        let runs = Runs::default();
        runs.gate().open_for_good();
        let nodes = nodes(case, &runs, [layer(&old, &new), layer(&new, &old)]).await;
        // Deployed, and rolled back.
        for (number, [first, second]) in (1..).zip([[0, 1], [1, 0]]) {
            let key = format!("k{number}");
            let call = |at: usize, body: &'static str, version: &str| {
                let call = nodes[at].post("/a").key(&key).body(body);
                call.header("stripe-version", version).send()
            };
            let run = format!("run {number}");
            call(first, "x", "1").await.ran(&run);
            call(second, "x", "1").await.replayed(&run);
            call(first, "x", "1").await.replayed(&run);
            call(second, "y", "1").await.refused(422, "key-reused");
            // A record is compared by the recipe that has made it.
            let other_version = call(second, "x", "2").await;
            match first {
                0 => other_version.replayed(&run).status,
                _ => {
                    other_version.refused(422, "key-reused");
                    other_version.status
                }
            };
            let stranger = nodes[second].post("/a").key(&key).body("x");
            let stranger = stranger.header("stripe-version", "1");
            let stranger = stranger.header("authorization", "Bearer b");
            stranger.send().await.refused(422, "caller-differs");
        }
    })
    .await;
}

#[tokio::test]
async fn a_record_of_settings_that_are_not_known_is_left_alone() {
    for_each_stack(|case| async move {
        let [old, new] = recipes();
        let store = MemoryStore::new();
        let layer = |recipe: &Recipe| IdempotencyLayer::new(store.clone()).recipe(recipe.clone());
        let runs = Runs::default();
        let nodes = nodes(case, &runs, [layer(&old), layer(&new)]).await;
        for [first, second] in [[0, 1], [1, 0]] {
            let key = format!("k{first}");
            let call = |at: usize| nodes[at].post("/a").key(&key).body("x");
            let running = call(first).spawn();
            runs.gate().arrived().await;
            // In flight, it is the same for all.
            call(second).send().await.refused(409, "in-progress");
            runs.gate().open();
            running.await.expect("no panic");
            let answer = call(second).send().await;
            answer.refused_for_now(409, "settings-changed");
            assert_eq!(answer.retry_after(), Some("1"));
            assert!(call(first).send().await.is_replayed());
        }
        assert_eq!(runs.count(), 2);
    })
    .await;
}

#[tokio::test]
async fn a_record_under_an_earlier_name_is_found() {
    for_each_stack(|case| async move {
        let store = MemoryStore::new();
        let layer = || IdempotencyLayer::new(store.clone());
        let runs = Runs::default();
        runs.gate().open_for_good();
        let after = || layer().namespace("payments").previously(Naming::new());
        let [before, after] = nodes(case, &runs, [layer(), after()]).await;
        let call = |server: &Server, body: &'static str| server.post("/a").key("k").body(body);
        call(&before, "x").send().await.ran("run 1");
        call(&after, "x").send().await.replayed("run 1");
        call(&after, "y").send().await.refused(422, "key-reused");
        let stranger = call(&after, "x").header("authorization", "Bearer b");
        stranger.send().await.refused(422, "caller-differs");
        let new = || after.post("/a").key("new").body("x");
        new().send().await.ran("run 2");
        new().send().await.replayed("run 2");
    })
    .await;
}

#[tokio::test]
async fn nodes_that_know_each_other_s_names_run_a_key_once() {
    for_each_stack(|case| async move {
        let store = MemoryStore::new();
        let layer = || IdempotencyLayer::new(store.clone());
        let naming = || Naming::new().namespace("payments");
        let old = layer().previously(naming());
        let new = layer().namespace("payments").previously(Naming::new());
        let runs = Runs::default();
        let nodes = nodes(case, &runs, [old, new]).await;
        let call = |node: usize, key: &str| nodes[node].post("/a").key(key).body("x");
        // Deployed, and rolled back.
        for (number, [first, second]) in (1..).zip([[0, 1], [1, 0]]) {
            let key = format!("k{number}");
            let running = call(first, &key).spawn();
            runs.gate().arrived().await;
            call(second, &key).send().await.refused(409, "in-progress");
            runs.gate().open();
            running.await.expect("no panic");
            let run = format!("run {number}");
            call(second, &key).send().await.replayed(&run);
            call(first, &key).send().await.replayed(&run);
        }
        runs.gate().open_for_good();
        for number in 0..20 {
            let key = format!("both-{number}");
            let [one, other] = [call(0, &key).spawn(), call(1, &key).spawn()];
            for answer in [one, other] {
                let status = answer.await.expect("no panic").status;
                assert!([200, 409].contains(&status.as_u16()), "{status}");
            }
            let recorded = call(0, &key).send().await;
            assert_eq!(recorded.status, 200);
            assert_eq!(call(1, &key).send().await.body, recorded.body);
        }
        assert_eq!(runs.count(), 22);
    })
    .await;
}

#[tokio::test]
async fn an_answer_under_the_earlier_name_outlasts_a_lost_attempt_under_the_new_one() {
    for_each_stack(|case| async move {
        let store = MemoryStore::new();
        let layer = || {
            IdempotencyLayer::new(store.clone())
                .any_host()
                .orphan(Orphan::Hold)
        };
        let new = || layer().namespace("payments");
        let fails = Runs::default().answering(|_, _| {
            let mut response = text("no");
            *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
            response
        });
        let failing = case.serve(&new(), fails).await;
        let before = case.serve(&layer(), Runs::default().numbered()).await;
        let knows = new().previously(Naming::new());
        let knows = case.serve(&knows, Runs::default().numbered()).await;
        let call = |server: &Server, body: &'static str| server.post("/a").key("k").body(body);

        assert_eq!(call(&failing, "x").send().await.status, 500);
        call(&knows, "x")
            .send()
            .await
            .refused(409, "outcome-unknown");
        call(&before, "x").send().await.ran("run 1");
        call(&knows, "x").send().await.replayed("run 1");
        call(&knows, "y").send().await.refused(422, "key-reused");
    })
    .await;
}
