//! Bodies that are not what their head says.

use crate::support::{Answer, Runs, Server, eventually, head, layer};

const LIMIT: usize = 1_000;

struct Case {
    server: Server,
    runs: Runs,
    handle: tower_idempotency::Handle,
}

impl Case {
    async fn start() -> Self {
        let runs = Runs::default();
        let layer = layer().max_request_body(LIMIT);
        let handle = layer.handle();
        let server = Server::start(runs.behind(layer)).await;
        Self {
            server,
            runs,
            handle,
        }
    }

    /// Sends a request, says that nothing more will come, and reads the answer if there is one.
    async fn sent(&self, bytes: impl AsRef<[u8]>) -> Option<Answer> {
        let mut client = self.server.connect().await;
        client.send(bytes).await;
        client.finish().await;
        client.try_answer().await
    }

    /// The handler did not run, nothing is held, and the key is free for another request.
    async fn claimed_nothing(&self) {
        eventually(async || self.handle.buffered() == 0).await;
        assert_eq!((self.handle.in_flight(), self.runs.count()), (0, 0));
        let honest = head("k", "content-length: 6") + "honest";
        self.server.ask(honest).await.ran("run 1");
    }
}

#[tokio::test]
async fn a_body_that_is_shorter_than_announced_claims_nothing() {
    let case = Case::start().await;
    let answer = case.sent(head("k", "content-length: 10") + "short").await;
    // The client may be told, or hyper may see that it has gone.
    if let Some(answer) = answer {
        answer.refused(400, "unreadable-request");
    }
    case.claimed_nothing().await;
}

#[tokio::test]
async fn of_a_body_that_is_longer_than_announced_the_rest_is_another_request() {
    let case = Case::start().await;
    let mut client = case.server.connect().await;
    client
        .send(head("k", "content-length: 4") + "body and what comes after it\r\n\r\n")
        .await;
    client.answer().await.ran("run 1");
    assert_eq!(client.answer().await.status, 400);
    // It is the announced part that counts.
    let retry = head("k", "content-length: 4") + "body";
    case.server.ask(retry).await.replayed("run 1");
    assert_eq!((case.runs.count(), case.handle.buffered()), (1, 0));
}

#[tokio::test]
async fn a_body_that_is_announced_as_too_long_is_refused_before_it_comes() {
    let case = Case::start().await;
    for announced in [LIMIT as u64 + 1, u64::from(u32::MAX) + 1, u64::MAX - 2] {
        let line = format!("content-length: {announced}");
        let refused = case.server.ask(head("k", &line)).await;
        refused.refused(413, "request-too-large");
    }
    case.claimed_nothing().await;
}

#[tokio::test]
async fn a_body_whose_chunks_never_end_is_refused_at_the_limit() {
    let case = Case::start().await;
    let mut client = case.server.connect().await;
    client.send(head("k", "transfer-encoding: chunked")).await;
    let chunk = format!("64\r\n{}\r\n", "x".repeat(100));
    for read in 1..=LIMIT / 100 {
        client.send(&chunk).await;
        eventually(async || case.handle.buffered() == read * 100).await;
    }
    client.send(&chunk).await;
    client.answer().await.refused(413, "request-too-large");
    case.claimed_nothing().await;
}

#[tokio::test]
async fn a_chunk_of_absurd_length_is_not_waited_for() {
    let case = Case::start().await;
    let start = head("k", "transfer-encoding: chunked") + "FFFFFFFFFFFFFFF0\r\n";
    let long = start + &"x".repeat(LIMIT + 1);
    case.server
        .ask(long)
        .await
        .refused(413, "request-too-large");
    case.claimed_nothing().await;
}

#[tokio::test]
async fn a_body_in_broken_chunks_claims_nothing() {
    const BROKEN: [&str; 5] = [
        "5\r\nhello\r\nno number\r\n",
        "5\r\nhello, longer than it says\r\n0\r\n\r\n",
        "-1\r\nx\r\n0\r\n\r\n",
        "11111111111111111\r\nx\r\n0\r\n\r\n",
        "\r\n\r\n",
    ];
    for broken in BROKEN {
        let case = Case::start().await;
        let bytes = head("k", "transfer-encoding: chunked") + broken;
        let answer = case.server.ask(bytes).await;
        answer.refused(400, "unreadable-request");
        case.claimed_nothing().await;
    }
}

#[tokio::test]
async fn a_body_with_two_lengths_does_not_reach_the_layer() {
    const AMBIGUOUS: [&str; 4] = [
        "content-length: 4\r\ncontent-length: 5",
        "content-length: 4, 5",
        "content-length: -4",
        "content-length: 18446744073709551616",
    ];
    for lines in AMBIGUOUS {
        let case = Case::start().await;
        let answer = case.server.ask(head("k", lines) + "bodyx").await;
        assert_eq!((answer.status, answer.code()), (400, None), "{lines}");
        case.claimed_nothing().await;
    }
}
