//! Servers, a client, handlers, a clock and a failing store.

mod body;
mod case;
mod client;
mod compose;
mod direct;
mod log;
mod node;
mod runs;
mod store;

use std::future::Future;
use std::time::Duration;

use tower_idempotency::store::{MemoryStore, Store};
use tower_idempotency::testing::{Living, ManualClock};
use tower_idempotency::{IdempotencyLayer, Timestamp};

pub(crate) use self::body::{
    Body, BodySender, BoxError, announced, boxed, channel, empty, frames, read_body, text, whole,
};
pub(crate) use self::case::{Case, Http, Stack, for_axum, for_each_stack, router, service};
pub(crate) use self::client::{Answer, Call, Server, next_chunk, read};

pub(crate) use self::compose::{NONE, refusing, serve};
pub(crate) use self::direct::{Direct, answer, call, direct, spawn};
pub(crate) use self::log::Log;
pub(crate) use self::node::{Got, Node};
pub(crate) use self::runs::{Gate, Running, Runs};
pub(crate) use self::store::{Fault, FaultyStore};

/// A clock that stands still at the date of RFC 9110's examples, Sun, 06 Nov 1994 08:49:37 GMT,
/// until it is moved.
pub(crate) fn still_clock() -> ManualClock {
    ManualClock::starting_at(Timestamp::from_micros(784_111_777_000_000))
}

/// The same layer in another process.
pub(crate) fn elsewhere<St: Store>(layer: &IdempotencyLayer<St>) -> IdempotencyLayer<St> {
    layer.clone().living(Living::of_another_process())
}

/// The layer as it comes.
pub(crate) fn layer() -> IdempotencyLayer<MemoryStore> {
    IdempotencyLayer::new(MemoryStore::new())
}

/// Waits until `condition` holds. Its pauses only spare the processor; a condition that never
/// holds fails the test.
pub(crate) async fn eventually<Fut: Future<Output = bool>>(mut condition: impl FnMut() -> Fut) {
    for _ in 0..10_000 {
        if condition().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("the condition never held");
}
