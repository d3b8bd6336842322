//! A store whose calls are written down, and one that fails by chance.

use std::collections::HashMap;
use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, Sleep};
use tower_idempotency::record::{
    ClaimRequest, Holder, KnowsHolders, Liveness, Owner, Record, Renewal, Seen,
};
use tower_idempotency::store::{Claim, Completion, Fenced, Release, Store};
use tower_idempotency::testing::{Call, Fault, FaultStore};
use tower_idempotency::{RecordKey, StoreError, Timestamp};

use super::event::{
    Claimed, History, Id, Injected, Stored, What, Written, body_of, moment, recorded,
};
use super::random::Random;
use crate::wire::{self, Wire};

/// Which number a key has, by its digest.
pub(crate) type Keys = Arc<Mutex<HashMap<RecordKey, usize>>>;

/// Learns the number of a key from what the client sent, such as `order-3`.
fn learn(keys: &Keys, request: &ClaimRequest<'_>) -> usize {
    let number = request.parts.key.rsplit('-').next();
    let number = number.and_then(|number| number.parse().ok());
    let number = number.expect("a key of the history");
    let mut keys = keys.lock().expect("nobody panics with it");
    keys.insert(*request.key, number);
    number
}

fn number_of(keys: &Keys, key: &RecordKey) -> usize {
    let keys = keys.lock().expect("nobody panics with it");
    *keys.get(key).expect("a key is claimed first")
}

/// Notes what the store inside does.
#[derive(Debug)]
pub(crate) struct Watched<St> {
    pub(crate) inner: St,
    pub(crate) history: History,
    pub(crate) keys: Keys,
}

impl<St: Store> Watched<St> {
    fn note(&self, key: &RecordKey, stored: Stored) {
        let key = number_of(&self.keys, key);
        self.history.note(key, What::Stored(stored));
    }

    fn note_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        fenced: &Result<Fenced, StoreError>,
    ) {
        let complete = Stored::Complete {
            owner: Id::of_owner(holder.owner),
            body: body_of(completion),
            gave: written(fenced),
        };
        self.note(&holder.key, complete);
    }

    fn note_claim(
        &self,
        request: &ClaimRequest<'_>,
        asks: &Asks<'_>,
        claim: &Result<Claim, StoreError>,
    ) {
        learn(&self.keys, request);
        let gave = match claim {
            Ok(Claim::Acquired(lease)) => {
                let lease = lease.clone().by_clock(request.now);
                Claimed::Acquired {
                    token: moment(Timestamp::from_micros(lease.token.as_u64())),
                    attempt: lease.attempt,
                    deadline: moment(lease.deadline),
                }
            }
            Ok(Claim::Completed(completed)) => Claimed::Completed {
                body: recorded(completed.payload()),
            },
            Ok(Claim::InProgress { .. }) => Claimed::InProgress,
            Ok(Claim::Orphaned(_)) => Claimed::Orphaned,
            Ok(Claim::Reused) => Claimed::Reused,
            Ok(_) => {
                panic!("there is one caller and one recipe: {claim:?}")
            }
            Err(_) => Claimed::Failed,
        };
        let claim = Stored::Claim {
            owner: Id::of_owner(request.owner),
            content: Id::of_content(request.identity.request),
            now: moment(request.now),
            takes_over: request.take_over,
            alive: asks.alive().clone(),
            gave,
        };
        self.note(request.key, claim);
    }
}

/// Passes on what the store asks of the claimer's process, and notes who is alive.
struct Asks<'a> {
    of: Liveness<'a>,
    alive: Mutex<Vec<Id>>,
}

impl<'a> Asks<'a> {
    fn of(request: &ClaimRequest<'a>) -> Self {
        Self {
            of: request.liveness,
            alive: Mutex::default(),
        }
    }

    fn alive(&self) -> MutexGuard<'_, Vec<Id>> {
        self.alive.lock().expect("nobody panics with it")
    }
}

impl KnowsHolders for Asks<'_> {
    fn is_alive(&self, owner: Owner) -> bool {
        let is_alive = self.of.is_alive(owner);
        if is_alive {
            self.alive().push(Id::of_owner(owner));
        }
        is_alive
    }
}

fn written(fenced: &Result<Fenced, StoreError>) -> Written {
    match fenced {
        Ok(Fenced::Applied) => Written::Applied,
        Ok(_) => Written::LeaseLost,
        Err(_) => Written::Failed,
    }
}

impl<St: Store> Store for Watched<St> {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        let asks = Asks::of(request);
        let mut watched = *request;
        watched.liveness = Liveness::new(&asks);
        let claim = self.inner.try_claim(&watched)?;
        self.note_claim(request, &asks, &claim);
        Some(claim)
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let asks = Asks::of(request);
        let mut watched = *request;
        watched.liveness = Liveness::new(&asks);
        let claim = self.inner.claim(&watched).await;
        self.note_claim(request, &asks, &claim);
        claim
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let fenced = self.inner.renew(holder, renewal, now).await;
        let renew = Stored::Renew {
            owner: Id::of_owner(holder.owner),
            deadline: moment(renewal.deadline(now)),
            gave: written(&fenced),
        };
        self.note(&holder.key, renew);
        fenced
    }

    fn try_complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        let fenced = self.inner.try_complete(holder, completion, now)?;
        self.note_complete(holder, completion, &fenced);
        Some(fenced)
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let completing = Stored::Completing {
            owner: Id::of_owner(holder.owner),
            body: body_of(completion),
        };
        self.note(&holder.key, completing);
        let fenced = self.inner.complete(holder, completion, now).await;
        self.note_complete(holder, completion, &fenced);
        fenced
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let owner = Id::of_owner(holder.owner);
        self.note(&holder.key, Stored::Releasing { owner });
        let fenced = self.inner.release(holder, release, now).await;
        let release = Stored::Release {
            owner,
            is_free: release == Release::Free,
            gave: written(&fenced),
        };
        self.note(&holder.key, release);
        fenced
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.inner.get(key, now).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.inner.remove(key).await
    }
}

/// How a node's calls to a store fail.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    pub(crate) seed: u64,
    /// Of a hundred calls, so many do.
    pub(crate) percent: u64,
    /// Late, or twice, but never without an answer.
    pub(crate) are_calm: bool,
    /// How long a call may take at most until it is applied, the second time if twice.
    pub(crate) latest: Duration,
}

impl Faults {
    fn fault(&self, random: &mut Random) -> Fault {
        match random.below(if self.are_calm { 4 } else { 10 }) {
            0 | 1 => Fault::Repeated(random.duration(self.latest)),
            2 | 3 => Fault::Delayed(random.duration(self.latest / 8)),
            4 | 5 => Fault::Refused,
            6 => Fault::RequestLost,
            7 => Fault::AnswerLost,
            8 => Fault::RequestHangs,
            _ => Fault::AnswerHangs,
        }
    }
}

/// One node's way to a store: calls fail by chance until it is healed, and for ever when the
/// node is dead.
#[derive(Debug)]
pub(crate) struct Uplink<St> {
    pub(crate) store: FaultStore<St>,
    pub(crate) wire: Option<Wire>,
    pub(crate) node: usize,
    pub(crate) life: Life,
    pub(crate) faults: Faults,
    pub(crate) history: History,
    pub(crate) keys: Keys,
    pub(crate) calls: Mutex<HashMap<(Call, usize), u64>>,
}

/// Whether a node lives, and whether the faults are over.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    is_over: Arc<AtomicBool>,
    ends: Arc<Notify>,
    is_healed: Arc<AtomicBool>,
    /// Until then, a handler blocks the thread of its node.
    stalled_until: Arc<Mutex<Option<Instant>>>,
}

impl Life {
    /// Lets nobody poll the requests of this node for so long. Its heartbeat goes on.
    pub(crate) fn stall(&self, stalled: Duration) {
        let until = Instant::now() + stalled;
        let mut stalled_until = self.stalled_until.lock().expect("nobody panics with it");
        *stalled_until = (*stalled_until).max(Some(until));
    }

    /// Ready when this node polls its requests. `waking` wakes a request when it does again.
    pub(crate) fn poll_stalled(
        &self,
        waking: &mut Option<Pin<Box<Sleep>>>,
        cx: &mut Context<'_>,
    ) -> Poll<()> {
        let until = *self.stalled_until.lock().expect("nobody panics with it");
        let Some(until) = until.filter(|until| *until > Instant::now()) else {
            return Poll::Ready(());
        };
        let waking = waking.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        waking.as_mut().reset(until);
        waking.as_mut().poll(cx)
    }

    /// That of another node.
    pub(crate) fn another(&self) -> Self {
        Self {
            is_healed: Arc::clone(&self.is_healed),
            ..Self::default()
        }
    }

    /// Ends the faults of all nodes.
    pub(crate) fn heal(&self) {
        self.is_healed.store(true, Ordering::SeqCst);
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
        self.ends.notify_waiters();
    }

    /// Resolves when the node dies.
    pub(crate) async fn ended(&self) {
        let ends = self.ends.notified();
        if !self.is_over.load(Ordering::SeqCst) {
            ends.await;
        }
    }

    /// Never resolves on a node that is dead.
    pub(crate) async fn goes_on(&self) {
        if self.is_over.load(Ordering::SeqCst) {
            pending::<()>().await;
        }
    }

    pub(crate) fn is_healed(&self) -> bool {
        self.is_healed.load(Ordering::SeqCst)
    }
}

impl<St: Store> Uplink<St> {
    /// Makes a call that may fail.
    async fn call<T>(&self, call: Call, key: &RecordKey, made: impl Future<Output = T>) -> T {
        self.life.goes_on().await;
        self.leave_to_chance(call, number_of(&self.keys, key));
        let result = made.await;
        self.life.goes_on().await;
        result
    }

    fn leave_to_chance(&self, call: Call, key: usize) {
        if self.life.is_healed() {
            return;
        }
        let nth = {
            let mut calls = self.calls.lock().expect("nobody panics with it");
            let calls = calls.entry((call, key)).or_default();
            *calls += 1;
            *calls
        };
        // Now and then a node cannot renew at all, or not complete either, and its runs outlive
        // their leases.
        let cut_off = Random::about(self.faults.seed, [6, self.node as u64, key as u64]).below(10);
        let is_cut_off = match call {
            Call::Renew => cut_off < 2,
            Call::Complete => cut_off < 1,
            _ => false,
        };
        let is_cut_off = is_cut_off && !self.faults.are_calm;
        if is_cut_off {
            let fault = Fault::RequestLost;
            self.store.fail_next(call, fault);
            let (node, fault) = (self.node, Injected::Store(fault));
            self.history.note(key, What::Failed { node, call, fault });
            return;
        }
        let about = [self.node as u64, call as u64, key as u64, nth];
        let mut random = Random::about(self.faults.seed, about);
        if !random.happens(self.faults.percent) {
            return;
        }
        let fault = match &self.wire {
            Some(wire) if random.happens(60) => fail_on(wire, call, &mut random),
            _ => {
                let fault = self.faults.fault(&mut random);
                self.store.fail_next(call, fault);
                Injected::Store(fault)
            }
        };
        let node = self.node;
        self.history.note(key, What::Failed { node, call, fault });
    }
}

/// Lets a call fail below the SDK.
fn fail_on(wire: &Wire, call: Call, random: &mut Random) -> Injected {
    let operation = match call {
        Call::Claim => "PutItem",
        Call::Renew | Call::Complete => "UpdateItem",
        Call::Get => "GetItem",
        _ => "DeleteItem",
    };
    let fault = match random.below(5) {
        0 => wire::Fault::AnswerLost,
        1 => wire::Fault::AnswerCut,
        2 => wire::Fault::Hangs,
        3 => wire::Fault::Answered(500, "InternalServerError"),
        _ => wire::Fault::Answered(400, "ThrottlingException"),
    };
    wire.fail_next(operation, fault);
    // One try and its retries, all of them.
    if random.happens(30) {
        wire.fail_next(operation, fault);
        wire.fail_next(operation, fault);
    }
    Injected::Wire(operation)
}

impl<St: Store> Store for Uplink<St> {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        learn(&self.keys, request);
        self.call(Call::Claim, request.key, self.store.claim(request))
            .await
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.call(
            Call::Renew,
            &holder.key,
            self.store.renew(holder, renewal, now),
        )
        .await
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let made = self.store.complete(holder, completion, now);
        self.call(Call::Complete, &holder.key, made).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.call(
            Call::Release,
            &holder.key,
            self.store.release(holder, release, now),
        )
        .await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        self.call(Call::Get, key, self.store.get(key, now)).await
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        self.call(Call::Remove, key, self.store.remove(key)).await
    }
}
