//! A server on threads of its own, and a client that needs no runtime.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};

/// A server on a runtime of its own. Handlers that still run when it is dropped are left behind.
pub(crate) struct Node {
    address: SocketAddr,
    runtime: Option<Runtime>,
}

/// Status and body.
pub(crate) type Got = (u16, String);

impl Node {
    /// Serves `router` on so many threads.
    pub(crate) fn start(workers: usize, router: Router) -> Self {
        let mut runtime = Builder::new_multi_thread();
        let runtime = runtime.worker_threads(workers).enable_all().build();
        let runtime = runtime.expect("a runtime starts");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0"));
        let listener = listener.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        runtime.spawn(async move {
            axum::serve(listener, router).await.expect("it serves");
        });
        Self {
            address,
            runtime: Some(runtime),
        }
    }

    /// Sends a request, and waits for the whole answer.
    pub(crate) fn post(&self, key: &str) -> Got {
        post(self.address, key)
    }

    /// Sends a request.
    pub(crate) fn posting(&self, key: &str) -> JoinHandle<Got> {
        let (address, key) = (self.address, key.to_owned());
        thread::spawn(move || post(address, &key))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn post(address: SocketAddr, key: &str) -> Got {
    let mut stream = TcpStream::connect(address).expect("it listens");
    let patience = Some(Duration::from_secs(30));
    stream.set_read_timeout(patience).expect("an open socket");
    let request = format!(
        "POST /charges HTTP/1.1\r\nhost: node\r\nidempotency-key: {key}\r\n\
         content-length: 1\r\nconnection: close\r\n\r\nx"
    );
    stream.write_all(request.as_bytes()).expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a whole head");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}
