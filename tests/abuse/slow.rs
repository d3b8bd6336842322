//! Clients that send as slowly as they can.

use std::time::Duration;

use http::StatusCode;
use tower_http::timeout::TimeoutLayer;

use crate::support::{Runs, Server, Wire, eventually, head, layer, peak};

const ROOM: usize = 64 << 10;
const ANNOUNCED: usize = 8 << 10;
const HALF: usize = ANNOUNCED / 2;
/// As many halves fit in until there is no room for what another client announces.
const LET_IN: usize = (ROOM - ANNOUNCED) / HALF + 1;

/// Sends half a body, and then nothing.
async fn stall(server: &Server, number: usize) -> Wire {
    let mut client = server.connect().await;
    let line = format!("content-length: {ANNOUNCED}");
    client.send(head(&format!("slow-{number}"), &line)).await;
    client.send([b'x'; HALF]).await;
    client
}

#[tokio::test]
async fn clients_that_stall_hold_no_key_and_no_more_than_max_buffered() {
    let runs = Runs::default();
    let layer = layer().max_buffered(ROOM);
    let handle = layer.handle();
    let server = Server::start(runs.behind(layer)).await;

    let mut clients = Vec::new();
    for number in 0..LET_IN {
        clients.push(stall(&server, number).await);
        eventually(async || handle.buffered() == (number + 1) * HALF).await;
    }
    // Its body is not even waited for.
    let too_long = head("late", &format!("content-length: {ANNOUNCED}"));
    let refused = server.ask(too_long).await;
    refused.refused(503, "buffers-full");
    assert_eq!(refused.headers["retry-after"], "1");
    assert_eq!(handle.buffered(), LET_IN * HALF);
    // One that does not say how long it is gets as far as there is room.
    let chunk = format!("{HALF:x}\r\n{}\r\n", "x".repeat(HALF));
    let mut unannounced = server.connect().await;
    unannounced
        .send(head("late", "transfer-encoding: chunked"))
        .await;
    unannounced.send(&chunk).await;
    eventually(async || handle.buffered() == (LET_IN + 1) * HALF).await;
    unannounced.send(&chunk).await;
    unannounced.answer().await.refused(503, "buffers-full");
    assert_eq!(handle.buffered(), LET_IN * HALF);

    // Others are served, those whose keys were used in vain, too.
    let small = |key: &str| head(key, "content-length: 5") + "small";
    server.ask(small("late")).await.ran("run 1");
    server.ask(small("slow-0")).await.ran("run 2");
    server.ask(small("slow-0")).await.replayed("run 2");
    server
        .ask("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        .await
        .ran("run 3");

    drop(clients);
    eventually(async || handle.buffered() == 0).await;
    let whole = head("slow-1", &format!("content-length: {ANNOUNCED}")) + &"y".repeat(ANNOUNCED);
    server.ask(whole).await.ran("run 4");
    assert_eq!((handle.buffered(), runs.count()), (0, 4));
}

#[tokio::test]
async fn a_timeout_outside_ends_clients_that_stall() {
    let runs = Runs::default();
    let layer = layer().max_buffered(ROOM);
    let handle = layer.handle();
    let limit =
        TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, Duration::from_millis(200));
    let server = Server::start(runs.behind(layer).layer(limit)).await;

    let mut clients = Vec::new();
    for number in 0..LET_IN {
        clients.push(stall(&server, number).await);
    }
    for client in &mut clients {
        assert_eq!(client.answer().await.status, 408);
    }
    eventually(async || handle.buffered() == 0).await;
    let stats = handle.stats();
    assert_eq!(
        (handle.in_flight(), stats.detached, runs.count()),
        (0, 0, 0)
    );
}

/// Each chunk is a frame of its own; kept as they come, these would take fifty times their bytes.
#[test]
fn a_body_in_chunks_of_one_byte_takes_no_more_than_twice_its_length() {
    const BYTES: usize = 256 << 10;
    const SENT_AT_ONCE: usize = 1_024;
    // The runtime, the sockets, and hyper's buffers, of which one may take 408 KiB.
    const SERVER: usize = 1 << 20;

    let held = peak(
        "slow::a_body_in_chunks_of_one_byte_takes_no_more_than_twice_its_length",
        async || {
            let layer = layer();
            let handle = layer.handle();
            let server = Server::start(Runs::default().behind(layer)).await;
            let mut client = server.connect().await;
            client.send(head("k", "transfer-encoding: chunked")).await;
            let chunks = "1\r\nx\r\n".repeat(SENT_AT_ONCE);
            for _ in 0..BYTES / SENT_AT_ONCE {
                client.send(&chunks).await;
            }
            eventually(async || handle.buffered() == BYTES).await;
            client.send("0\r\n\r\n").await;
            client.answer().await.ran("run 1");
            assert_eq!(handle.buffered(), 0);
        },
    );
    let most = 2 * BYTES + SERVER;
    assert!(held.is_none_or(|held| held <= most), "{held:?} of {most}");
}
