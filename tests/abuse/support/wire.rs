//! A server, and clients that write their bytes by hand.

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::serve::ListenerExt;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::Answer;

pub(crate) struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start(app: Router) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let listener = listener.tap_io(|stream| stream.set_nodelay(true).expect("it is open"));
        let serving = async { axum::serve(listener, app).await.expect("it serves") };
        let task = tokio::spawn(serving);
        Self { address, task }
    }

    pub(crate) async fn connect(&self) -> Wire {
        let stream = TcpStream::connect(self.address).await.expect("it listens");
        stream.set_nodelay(true).expect("it is open");
        Wire(stream)
    }

    /// Sends these bytes on a connection of their own, and reads the answer.
    pub(crate) async fn ask(&self, bytes: impl AsRef<[u8]>) -> Answer {
        let mut wire = self.connect().await;
        wire.send(bytes).await;
        wire.answer().await
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The head of a request, with a key and one more line.
pub(crate) fn head(key: &str, line: &str) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\nidempotency-key: {key}\r\n{line}\r\n\r\n")
}

/// A client's end of a connection.
pub(crate) struct Wire(TcpStream);

impl Wire {
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.write_all(bytes.as_ref()).await.expect("it is open");
    }

    /// Says that nothing more will come.
    pub(crate) async fn finish(&mut self) {
        self.0.shutdown().await.expect("it is open");
    }

    /// Reads an answer, whose length the server has to announce.
    pub(crate) async fn answer(&mut self) -> Answer {
        let answer = self.try_answer().await;
        answer.expect("the server hung up without an answer")
    }

    /// `None` when the server hung up without a whole answer.
    pub(crate) async fn try_answer(&mut self) -> Option<Answer> {
        let reading = async {
            let mut read = Vec::new();
            loop {
                if let Some(answer) = parsed(&read) {
                    return Some(answer);
                }
                match self.0.read_buf(&mut read).await {
                    Ok(0) | Err(_) => return None,
                    Ok(_) => {}
                }
            }
        };
        let in_time = timeout(Duration::from_secs(20), reading).await;
        in_time.expect("the server did not answer")
    }
}

/// `None` when the answer is not whole yet.
fn parsed(read: &[u8]) -> Option<Answer> {
    const END: &[u8] = b"\r\n\r\n";
    let end = read.windows(END.len()).position(|window| window == END)?;
    let mut lines = read[..end].split(|byte| *byte == b'\n');
    let status = std::str::from_utf8(lines.next()?).expect("it is text");
    let status = status.split(' ').nth(1).expect("it has a status");
    let mut headers = HeaderMap::new();
    for line in lines {
        let colon = line.iter().position(|byte| *byte == b':').expect("a field");
        let name = HeaderName::from_bytes(&line[..colon]).expect("a name");
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii()).expect("a value");
        headers.append(name, value);
    }
    let body = &read[end + END.len()..];
    let length = match headers.get("content-length") {
        None => 0,
        Some(length) => {
            let length = length.to_str().expect("it is text");
            length.parse().expect("it is a number")
        }
    };
    (body.len() >= length).then(|| Answer {
        status: status.parse().expect("it is a number"),
        headers,
        body: Bytes::copy_from_slice(&body[..length]),
    })
}
