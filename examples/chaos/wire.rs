//! The connection of one node to the store, which can be broken.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::sleep;

/// How bytes get through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Whole,
    /// Every connection is reset, and new ones are, too.
    Cut,
    /// Nothing gets through, and nobody is told.
    Frozen,
    /// Everything takes so much longer.
    Slow(Duration),
}

/// Where the store is now.
pub(crate) type Upstream = Arc<Mutex<SocketAddr>>;

/// Passes on what comes, until told otherwise.
pub(crate) struct Wire {
    pub(crate) address: SocketAddr,
    state: watch::Sender<State>,
}

impl Wire {
    pub(crate) async fn to(upstream: Upstream) -> std::io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, watched) = watch::channel(State::Whole);
        tokio::spawn(accept(listener, upstream, watched));
        Ok(Self { address, state })
    }

    pub(crate) fn be(&self, state: State) {
        self.state.send_replace(state);
    }
}

async fn accept(listener: TcpListener, upstream: Upstream, state: watch::Receiver<State>) {
    while let Ok((node, _)) = listener.accept().await {
        let (upstream, state) = (Arc::clone(&upstream), state.clone());
        tokio::spawn(async move {
            let address = *upstream.lock().unwrap_or_else(PoisonError::into_inner);
            if *state.borrow() == State::Cut {
                return;
            }
            let Ok(store) = TcpStream::connect(address).await else {
                return;
            };
            let (from_node, to_node) = node.into_split();
            let (from_store, to_store) = store.into_split();
            // When one direction ends, so does the other.
            tokio::select! {
                () = pump(from_node, to_store, state.clone()) => {}
                () = pump(from_store, to_node, state) => {}
            }
        });
    }
}

/// Passes bytes on until either side, or the hand, ends it.
async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut state: watch::Receiver<State>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let mut cut = state.clone();
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            _ = once(&mut cut, |state| state == State::Cut) => return,
        };
        let Ok(count @ 1..) = read else { return };
        let Some(now) = once(&mut state, |state| state != State::Frozen).await else {
            return;
        };
        match now {
            State::Cut => return,
            State::Slow(by) => sleep(by).await,
            State::Whole | State::Frozen => {}
        }
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

/// Waits for a state; `None` when there will be no other any more.
async fn once(states: &mut watch::Receiver<State>, is_it: fn(State) -> bool) -> Option<State> {
    let state = states.wait_for(|state| is_it(*state)).await;
    state.ok().map(|state| *state)
}
