//! Row 13: which responses are recorded.

use std::time::Duration;

use http::Response;
use tower_idempotency::store::MemoryStore;
use tower_idempotency::{IdempotencyLayer, Orphan, Recording, RecordingOverride};

use crate::support::{Body, Case, Runs, for_each_stack, layer, still_clock, text};

const NOT_CARRIED_OUT: [u16; 11] = [401, 403, 404, 405, 407, 408, 413, 415, 421, 425, 429];
const FAILED: [u16; 6] = [500, 501, 502, 503, 504, 599];
const CLIENT_ERRORS: [u16; 7] = [400, 402, 406, 409, 410, 422, 451];
const SUCCESSES: [u16; 6] = [200, 201, 202, 204, 206, 299];
const REDIRECTIONS: [u16; 3] = [301, 303, 308];

/// Which of `statuses` a retry gets again; for the others it runs.
async fn kept(case: Case, layer: &IdempotencyLayer<MemoryStore>, statuses: &[u16]) -> Vec<u16> {
    let runs = Runs::default();
    let handler = runs.answering(|request, number| {
        let status: u16 = request.uri().path()[1..].parse().expect("a status");
        let mut response: Response<Body> = text(format!("run {number}"));
        if status == 204 {
            response = Response::new(crate::support::empty());
        }
        *response.status_mut() = status.try_into().expect("a status");
        response
    });
    let server = case.serve(layer, handler).await;
    let mut kept = Vec::new();
    for &status in statuses {
        let before = runs.count();
        let call = || server.post(&format!("/{status}")).key("k").send();
        let first = call().await;
        let retry = call().await;
        assert_eq!(
            (first.status.as_u16(), retry.status.as_u16()),
            (status, status)
        );
        assert!(!first.is_replayed());
        match runs.count() - before {
            1 => {
                assert!(retry.is_replayed());
                assert_eq!(first.body, retry.body);
                kept.push(status);
            }
            2 => assert!(!retry.is_replayed()),
            runs => panic!("{status} ran {runs} times"),
        }
    }
    kept
}

#[tokio::test]
async fn by_default_what_says_that_nothing_was_done_is_not_kept() {
    for_each_stack(|case| async move {
        assert_eq!(kept(case, &layer(), &NOT_CARRIED_OUT).await, [0; 0]);
        assert_eq!(kept(case, &layer(), &FAILED).await, [0; 0]);
        for statuses in [&CLIENT_ERRORS[..], &SUCCESSES, &REDIRECTIONS] {
            assert_eq!(kept(case, &layer(), statuses).await, statuses);
        }
    })
    .await;
}

#[tokio::test]
async fn what_says_that_nothing_was_done_is_no_orphan() {
    for_each_stack(|case| async move {
        let layer = layer().orphan(Orphan::Hold);
        assert_eq!(kept(case, &layer, &NOT_CARRIED_OUT).await, [0; 0]);
        assert_eq!(kept(case, &layer, &FAILED).await, [0; 0]);
    })
    .await;
}

#[tokio::test]
async fn all_keeps_everything() {
    for_each_stack(|case| async move {
        let layer = layer().recording(Recording::All);
        for statuses in [&NOT_CARRIED_OUT[..], &FAILED, &CLIENT_ERRORS, &SUCCESSES] {
            assert_eq!(kept(case, &layer, statuses).await, statuses);
        }
    })
    .await;
}

#[tokio::test]
async fn success_keeps_2xx_alone() {
    for_each_stack(|case| async move {
        let layer = layer().recording(Recording::Success);
        assert_eq!(kept(case, &layer, &SUCCESSES).await, SUCCESSES);
        for statuses in [&NOT_CARRIED_OUT[..], &FAILED, &CLIENT_ERRORS, &REDIRECTIONS] {
            assert_eq!(kept(case, &layer, statuses).await, [0; 0]);
        }
    })
    .await;
}

#[tokio::test]
async fn a_function_may_say_what_is_kept() {
    for_each_stack(|case| async move {
        let recording = Recording::when(|response| response.status.as_u16() % 2 == 1);
        let layer = layer().recording(recording);
        let statuses = [200, 201, 402, 403, 500, 501];
        assert_eq!(kept(case, &layer, &statuses).await, [201, 403, 501]);
    })
    .await;
}

/// What a retry gets when the handler says `said` of responses with `status`.
async fn overridden(
    case: Case,
    layer: &IdempotencyLayer<MemoryStore>,
    status: u16,
    said: RecordingOverride,
) -> bool {
    let runs = Runs::default();
    let handler = runs.answering(move |_, number| {
        let mut response = text(format!("run {number}"));
        *response.status_mut() = status.try_into().expect("a status");
        response.extensions_mut().insert(said);
        response
    });
    let server = case.serve(layer, handler).await;
    assert_eq!(server.post("/a").key("k").send().await.body, "run 1");
    let retry = server.post("/a").key("k").send().await;
    assert_eq!(retry.status, status);
    assert_eq!(
        retry.body,
        if retry.is_replayed() {
            "run 1"
        } else {
            "run 2"
        }
    );
    retry.is_replayed()
}

#[tokio::test]
async fn a_handler_may_have_one_response_forgotten() {
    for_each_stack(|case| async move {
        let said = RecordingOverride::Release;
        assert!(!overridden(case, &layer(), 200, said).await);
        let all = layer().recording(Recording::All);
        assert!(!overridden(case, &all, 402, said).await);
    })
    .await;
}

#[tokio::test]
async fn a_handler_may_have_one_response_kept_and_for_how_long() {
    for_each_stack(|case| async move {
        let said = RecordingOverride::RetainFor(Duration::from_secs(3600));
        assert!(overridden(case, &layer(), 500, said).await);
        let success = layer().recording(Recording::Success);
        assert!(overridden(case, &success, 402, said).await);
    })
    .await;
}

#[tokio::test]
async fn an_answer_is_kept_for_the_retention() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let handler = runs.answering(|request, number| {
            let mut response = text(format!("run {number}"));
            if request.uri().path() == "/short" {
                let said = RecordingOverride::RetainFor(Duration::from_secs(60));
                response.extensions_mut().insert(said);
            }
            response
        });
        let layer = layer()
            .clock(clock.clone())
            .retention(Duration::from_secs(600));
        let server = case.serve(&layer, handler).await;
        let short = || server.post("/short").key("k").send();
        let long = || server.post("/long").key("k").send();
        short().await.ran("run 1");
        long().await.ran("run 2");
        clock.advance(Duration::from_secs(59));
        short().await.replayed("run 1");
        clock.advance(Duration::from_secs(1));
        short().await.ran("run 3");
        clock.advance(Duration::from_secs(539));
        long().await.replayed("run 2");
        clock.advance(Duration::from_secs(1));
        long().await.ran("run 4");
        long().await.replayed("run 4");
    })
    .await;
}

#[tokio::test]
async fn by_default_an_answer_is_kept_for_a_day() {
    for_each_stack(|case| async move {
        let clock = still_clock();
        let runs = Runs::default();
        let server = case
            .serve(&layer().clock(clock.clone()), runs.numbered())
            .await;
        server.post("/a").key("k").send().await.ran("run 1");
        clock.advance(Duration::from_secs(24 * 60 * 60 - 1));
        server.post("/a").key("k").send().await.replayed("run 1");
        clock.advance(Duration::from_secs(1));
        server.post("/a").key("k").send().await.ran("run 2");
    })
    .await;
}
