//! Processes of the example `payments` on one DynamoDB and one list of charges.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client, Error};
use hyper_util::rt::TokioExecutor;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet, spawn_blocking};
use tokio::time::timeout;

use crate::support::{Dynamo, unique};

/// A debug build on a busy machine takes a while to start.
const START: Duration = Duration::from_secs(60);

/// What all nodes share.
pub(crate) struct Fleet {
    pub(crate) dynamo: Dynamo,
    scratch: PathBuf,
}

impl Fleet {
    pub(crate) async fn new() -> Self {
        let name = format!("payments-{}-{}", std::process::id(), unique());
        let scratch = std::env::temp_dir().join(name);
        std::fs::create_dir(&scratch).expect("a directory of its own");
        Self {
            dynamo: Dynamo::in_memory().await,
            scratch,
        }
    }

    pub(crate) async fn two_nodes(&self, flags: &[&str]) -> (Node, Node) {
        tokio::join!(self.node(flags), self.node(flags))
    }

    pub(crate) async fn node(&self, flags: &[&str]) -> Node {
        self.node_at(&self.dynamo.url, flags).await
    }

    /// A node whose way to the DynamoDB leads over `endpoint`.
    pub(crate) async fn node_at(&self, endpoint: &str, flags: &[&str]) -> Node {
        let payments = spawn_blocking(payments).await.expect("the example builds");
        let mut process = Command::new(payments)
            .args(["--listen", "127.0.0.1:0", "--endpoint-url", endpoint])
            .arg("--ledger")
            .arg(self.scratch.join("ledger.db"))
            .args(flags)
            // Nothing of the environment, such as a proxy, stands between it and the DynamoDB.
            .env_clear()
            .env("AWS_ACCESS_KEY_ID", "test")
            .env("AWS_SECRET_ACCESS_KEY", "test")
            .env("AWS_REGION", "eu-central-1")
            .env("RUST_LOG", "error")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let stdout = process.stdout.take().expect("it is piped");
        let said = spawn_blocking(move || BufReader::new(stdout).lines().next());
        let mut node = Node {
            process,
            api: Api::at(String::new()),
        };
        let line = timeout(START, said).await.expect("it says where it is");
        let line = line.expect("no panic").expect("it did not end");
        let line = line.expect("it is text");
        let url = line.strip_prefix("listening on ").expect("an address");
        node.api = Api::at(url.to_owned());
        node
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.scratch);
    }
}

/// The example's binary, which is built as these tests were.
fn payments() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let this = std::env::current_exe().expect("a path");
        let profile = this.ancestors().nth(2).expect("<target>/<profile>/deps");
        let target = profile.parent().expect("<target>");
        let name = profile.file_name().expect("<profile>");
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--example", "payments", "--target-dir"])
            .arg(target)
            .arg("--profile")
            .arg(if name == "debug" {
                "dev".as_ref()
            } else {
                name
            })
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .expect("Cargo is there");
        assert!(status.success(), "{status}");
        profile.join("examples/payments")
    })
}

/// A process, which is killed when its test ends.
pub(crate) struct Node {
    pub(crate) api: Api,
    process: Child,
}

impl Node {
    /// Ends it at once, whatever it is doing.
    pub(crate) fn kill(&mut self) {
        self.process.kill().expect("it can be killed");
        self.process.wait().expect("it has ended");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What a node can be asked.
#[derive(Clone)]
pub(crate) struct Api {
    url: String,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Api {
    fn at(url: String) -> Self {
        let mut client = Client::builder(TokioExecutor::new());
        // A connection each, so that none is taken again whose node was killed.
        client.pool_max_idle_per_host(0);
        Self {
            url,
            client: client.build_http(),
        }
    }

    /// Charges for an order, whose name is the key.
    pub(crate) async fn charge(&self, order: &str, source: &str) -> Answer {
        self.try_charge(order, source).await.expect("an answer")
    }

    pub(crate) async fn try_charge(&self, order: &str, source: &str) -> Result<Answer, Error> {
        let body = format!("amount=2000&currency=usd&source={source}&metadata[order]={order}");
        let request = Request::post(format!("{}/v1/charges", self.url))
            .header("idempotency-key", order)
            .body(Full::from(body));
        let request = request.expect("a valid request");
        Ok(read(self.client.request(request).await?).await)
    }

    /// What was charged: the orders, one for each charge, in order.
    pub(crate) async fn charged(&self) -> Vec<String> {
        let request = Request::get(format!("{}/v1/charges?limit=100", self.url));
        let request = request.body(Full::default()).expect("a valid request");
        let response = self.client.request(request).await.expect("an answer");
        let list = read(response).await.json();
        let charges = list["data"].as_array().expect("a list");
        let order = |charge: &Value| charge["metadata"]["order"].as_str().map(str::to_owned);
        let mut orders: Vec<_> = charges.iter().filter_map(order).collect();
        orders.sort();
        orders
    }
}

async fn read(response: http::Response<hyper::body::Incoming>) -> Answer {
    let (parts, body) = response.into_parts();
    let body = body.collect().await.expect("the answer comes whole");
    Answer {
        status: parts.status,
        headers: parts.headers,
        body: body.to_bytes(),
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn is_replayed(&self) -> bool {
        self.headers
            .get("idempotent-replayed")
            .is_some_and(|mark| mark == "true")
    }

    /// The charge was made, by this request or another.
    #[track_caller]
    pub(crate) fn is_charge(&self) {
        assert_eq!(self.status, 200, "{self:?}");
        assert_eq!(self.json()["object"], "charge", "{self:?}");
    }

    /// Whether it is a conflict with this code.
    pub(crate) fn is_conflict(&self, code: &str) -> bool {
        self.status == 409 && self.json()["error"]["code"] == code
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("it is JSON")
    }
}

/// A way to somewhere else that can be cut.
pub(crate) struct Relay {
    pub(crate) url: String,
    task: JoinHandle<()>,
}

impl Relay {
    pub(crate) async fn to(url: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        let to = url.trim_start_matches("http://").to_owned();
        Self {
            url: format!("http://{address}"),
            task: tokio::spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((mut from, _)) = listener.accept().await {
                    let mut to = TcpStream::connect(&to).await.expect("it listens");
                    connections.spawn(async move {
                        tokio::io::copy_bidirectional(&mut from, &mut to).await
                    });
                }
            }),
        }
    }

    /// Breaks each connection, and takes no more.
    pub(crate) async fn cut(self) {
        self.task.abort();
        let ended = self.task.await.expect_err("it never ends by itself");
        assert!(ended.is_cancelled(), "{ended}");
    }
}
