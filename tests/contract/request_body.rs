//! Request bodies: too large or just large enough, too slow, broken off, and discarded.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep, timeout};

use crate::support::{Http, Runs, Server, announced, channel, for_each_stack, frames, layer, text};

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

#[tokio::test]
async fn a_body_that_stops_is_refused_in_time_and_claims_nothing() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().body_idle(Duration::from_millis(50));
        let server = case.serve(&layer, runs.numbered()).await;
        let (sender, body) = channel();
        sender.chunk("only the beg");
        let answer = server.post("/a").key("k").stream(body).send().await;
        answer.refused(408, "request-timeout");
        drop(sender);
        let whole = server.post("/a").key("k").body("the whole of it");
        whole.send().await.ran("run 1");
        assert_eq!(runs.count(), 1);
    })
    .await;
}

#[tokio::test]
async fn a_body_that_does_not_end_is_refused_in_time_and_claims_nothing() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer()
            .body_idle(Duration::from_secs(60))
            .request_timeout(Duration::from_millis(200));
        let server = case.serve(&layer, runs.numbered()).await;
        let (sender, body) = channel();
        let drops = tokio::spawn(async move {
            loop {
                sender.chunk("drop");
                sleep(Duration::from_millis(10)).await;
            }
        });
        let answer = server.post("/a").key("k").stream(body).open().await;
        assert_eq!(answer.status(), 408);
        drops.abort();
        server.post("/a").key("k").send().await.ran("run 1");
    })
    .await;
}

#[tokio::test]
async fn a_slow_body_may_take_as_long_as_it_is_not_silent() {
    for_each_stack(|case| async move {
        let runs = Runs::default();
        let layer = layer().body_idle(Duration::from_millis(300));
        let server = case.serve(&layer, runs.numbered()).await;
        let (sender, body) = channel();
        let answer = server.post("/a").key("k").stream(body).spawn();
        for _ in 0..10 {
            sender.chunk("drop");
            sleep(Duration::from_millis(50)).await;
        }
        drop(sender);
        answer.await.expect("no panic").ran("run 1");
    })
    .await;
}

/// Writes all of a request before it reads any of the answer, as many clients do.
async fn writes_first(server: &Server, head: &str, body: &[u8]) -> String {
    let mut socket = TcpStream::connect(server.address())
        .await
        .expect("it connects");
    let head = format!("POST /a HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n");
    socket.write_all(head.as_bytes()).await.expect("it is read");
    for chunk in body.chunks(64 << 10) {
        socket.write_all(chunk).await.expect("all of it is read");
    }
    // Now the server has everything, or has reset the connection.
    sleep(Duration::from_millis(20)).await;
    answer_on(&mut socket).await
}

/// The head of an answer and the problem in it.
async fn answer_on(socket: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    while !answer.ends_with(b"\"}") {
        let read = socket.read_buf(&mut answer).await.expect("no reset");
        assert_ne!(read, 0, "{}", String::from_utf8_lossy(&answer));
    }
    String::from_utf8(answer).expect("text")
}

#[tokio::test]
async fn a_client_that_writes_all_of_its_request_first_can_read_the_refusal() {
    const LARGE: usize = 5 << 20;
    let large = vec![b'x'; LARGE];
    let length = format!("content-length: {LARGE}");
    let chunked = format!("{LARGE:x}\r\n{}\r\n0\r\n\r\n", "x".repeat(LARGE));
    let large = &large;
    let (length, chunked) = (&length, &chunked);
    for_each_stack(|case| async move {
        if case.http == Http::Two {
            // There, one request is ended without the others.
            return;
        }
        let runs = Runs::default();
        let layer = layer().require_key(true);
        let server = case.serve(&layer, runs.numbered()).await;
        for (head, body, code) in [
            (
                format!("idempotency-key: k\r\n{length}"),
                &large[..],
                "request-too-large",
            ),
            (
                "idempotency-key: k\r\ntransfer-encoding: chunked".to_owned(),
                chunked.as_bytes(),
                "request-too-large",
            ),
            (length.clone(), &large[..], "missing-key"),
            (
                format!("idempotency-key: two words\r\n{length}"),
                &large[..],
                "invalid-key",
            ),
        ] {
            let answer = writes_first(&server, &head, body).await;
            assert!(answer.contains(code), "{answer}");
        }
        assert_eq!(runs.count(), 0);
    })
    .await;
}

#[tokio::test]
async fn a_client_that_waits_to_be_told_to_go_on_is_refused_at_once() {
    for_each_stack(|case| async move {
        if case.http == Http::Two {
            return;
        }
        let server = case.serve(&layer(), Runs::default().numbered()).await;
        let began = Instant::now();
        let head = "idempotency-key: k\r\nexpect: 100-continue\r\ncontent-length: 5000000";
        let answer = writes_first(&server, head, b"").await;
        assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
        assert!(began.elapsed() < Duration::from_millis(400));
    })
    .await;
}

#[tokio::test]
async fn what_a_client_sends_without_an_end_is_discarded_within_bounds() {
    for_each_stack(|case| async move {
        if case.http == Http::Two {
            return;
        }
        let server = case.serve(&layer(), Runs::default().numbered()).await;
        let socket = TcpStream::connect(server.address()).await;
        let (mut reads, mut writes) = socket.expect("it connects").into_split();
        let head = "POST /a HTTP/1.1\r\nhost: a\r\nidempotency-key: k\r\ntransfer-encoding: chunked\r\n\r\n";
        writes.write_all(head.as_bytes()).await.expect("it is read");
        let endless = tokio::spawn(async move {
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(64 << 10));
            while writes.write_all(chunk.as_bytes()).await.is_ok() {}
        });
        let mut answer = [0; 12];
        let read = timeout(Duration::from_secs(20), reads.read_exact(&mut answer)).await;
        read.expect("it is answered").expect("no reset");
        assert_eq!(&answer, b"HTTP/1.1 413");
        endless.abort();
    })
    .await;
}
