//! The store, the nodes, and what was done to them.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::sleep;
use tower_idempotency::{Clock, SystemClock};

use crate::Result;
use crate::process::Process;
use crate::storm::Storm;
use crate::wire::{State, Upstream, Wire};

pub(crate) struct Fleet {
    dir: PathBuf,
    /// That of the store.
    capacity: Option<NonZero<u32>>,
    node_args: Vec<OsString>,
    nodes: Vec<Node>,
    store: tokio::sync::Mutex<Option<Process>>,
    upstream: Upstream,
    harms: Mutex<Vec<Harm>>,
}

struct Node {
    wire: Wire,
    process: tokio::sync::Mutex<Option<Process>>,
    /// Where clients find it; `None` while it is down.
    address: Mutex<Option<SocketAddr>>,
}

/// A process that was killed, or stopped for a while. Times are microseconds since the Unix epoch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Harm {
    pub(crate) pid: u32,
    pub(crate) from: u64,
    /// `None`: it was killed.
    pub(crate) until: Option<u64>,
}

impl Fleet {
    pub(crate) async fn start(storm: &Storm, dir: &Path) -> Result<Self> {
        let store = start_store(dir, storm.capacity).await?;
        let upstream = Arc::new(Mutex::new(store.address));
        let mut nodes = Vec::new();
        for _ in 0..storm.nodes {
            nodes.push(Node {
                wire: Wire::to(Arc::clone(&upstream)).await?,
                process: tokio::sync::Mutex::default(),
                address: Mutex::default(),
            });
        }
        let fleet = Self {
            node_args: storm.node_args(dir),
            dir: dir.to_owned(),
            capacity: storm.capacity,
            nodes,
            store: tokio::sync::Mutex::new(Some(store)),
            upstream,
            harms: Mutex::default(),
        };
        for number in 0..fleet.nodes.len() {
            fleet.start_node(number).await?;
        }
        Ok(fleet)
    }

    /// Where the nodes are that are up, as far as a load balancer knows.
    pub(crate) fn addresses(&self) -> Vec<SocketAddr> {
        let up = |node: &Node| *locked(&node.address);
        self.nodes.iter().filter_map(up).collect()
    }

    pub(crate) fn harms(&self) -> Vec<Harm> {
        locked(&self.harms).clone()
    }

    /// Kills a node, and starts it again a while later.
    pub(crate) async fn kill(&self, number: usize, down: Duration) -> Result<()> {
        let node = &self.nodes[number];
        if let Some(process) = node.process.lock().await.take() {
            let pid = process.pid;
            let from = now();
            process.kill().await?;
            locked(&self.harms).push(Harm {
                pid,
                from,
                until: None,
            });
        }
        // A load balancer is a little late.
        sleep(down / 2).await;
        *locked(&node.address) = None;
        sleep(down / 2).await;
        self.start_node(number).await
    }

    /// Stops a node in the middle of what it does, and lets it go on a while later.
    pub(crate) async fn stop(&self, number: usize, pause: Duration) -> Result<()> {
        let process = self.nodes[number].process.lock().await;
        let Some(process) = &*process else {
            return Ok(());
        };
        let from = now();
        process.stop().await?;
        sleep(pause).await;
        process.go_on().await?;
        locked(&self.harms).push(Harm {
            pid: process.pid,
            from,
            until: Some(now()),
        });
        Ok(())
    }

    /// Breaks the wire of one node, or of all, for a while.
    pub(crate) async fn unwire(&self, number: Option<usize>, state: State, broken: Duration) {
        let wires = || {
            let nodes = self.nodes.iter().enumerate();
            let meant = nodes.filter(|(other, _)| number.is_none_or(|number| number == *other));
            meant.map(|(_, node)| &node.wire)
        };
        wires().for_each(|wire| wire.be(state));
        sleep(broken).await;
        wires().for_each(|wire| wire.be(State::Whole));
    }

    /// Kills the store, and starts it again on the same file.
    pub(crate) async fn restart_store(&self, down: Duration) -> Result<()> {
        let mut store = self.store.lock().await;
        if let Some(store) = store.take() {
            store.kill().await?;
        }
        sleep(down).await;
        let started = start_store(&self.dir, self.capacity).await?;
        *locked(&self.upstream) = started.address;
        *store = Some(started);
        Ok(())
    }

    async fn start_node(&self, number: usize) -> Result<()> {
        const TRIES: usize = 20;
        let node = &self.nodes[number];
        let url = format!("http://{}", node.wire.address);
        let mut args = self.node_args.clone();
        args.extend(["--endpoint-url".into(), url.into()]);
        let log = self.dir.join(format!("node-{number}.log"));
        let mut tried = 0;
        // It cannot start while its store is out of reach.
        let process = loop {
            tried += 1;
            match Process::start(&args, &log).await {
                Ok(process) => break process,
                Err(error) if tried == TRIES => return Err(error),
                Err(_) => sleep(Duration::from_millis(100)).await,
            }
        };
        *locked(&node.address) = Some(process.address);
        *node.process.lock().await = Some(process);
        Ok(())
    }
}

async fn start_store(dir: &Path, capacity: Option<NonZero<u32>>) -> Result<Process> {
    let data = dir.join("store.db");
    let mut args: Vec<OsString> = vec![
        "store".into(),
        "--listen".into(),
        "127.0.0.1:0".into(),
        "--data".into(),
        data.into(),
    ];
    if let Some(units) = capacity {
        args.extend(["--capacity".into(), units.to_string().into()]);
    }
    Process::start(&args, &dir.join("store.log")).await
}

/// Microseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    SystemClock.now().as_micros()
}

pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
