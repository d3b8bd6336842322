//! A store in one place, and seas between it and its nodes: messages take their time, are lost on
//! the way there or back, or come twice, and nodes are cut off.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use fastrand::Rng;
use tokio::time::{Instant, sleep};
use tower_idempotency::record::{ClaimRequest, Holder, Identity, Owner, Record, Renewal, Seen};
use tower_idempotency::store::{Change, Claim, Completion, Fenced, Release, Store};
use tower_idempotency::{KeyParts, RecordKey, StoreError, StoreErrorKind, Timestamp};

#[derive(Debug)]
pub(super) struct Sea(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    records: HashMap<RecordKey, Record>,
    rng: Rng,
    /// Until when a node reaches nobody.
    cut_off: HashMap<usize, Instant>,
}

/// What happens to a message.
#[derive(Clone, Copy, Debug)]
enum Fate {
    Arrives,
    IsLost,
    AnswerIsLost,
    ComesLate(Duration),
    ComesTwice(Duration),
}

/// A call, as it crosses the sea.
#[derive(Clone, Debug)]
enum Call {
    Claim(OwnedClaim),
    Renew(Holder, Renewal, Timestamp),
    Complete(Holder, Completion, Timestamp),
    Release(Holder, Release, Timestamp),
    Get(RecordKey, Timestamp),
    Remove(RecordKey),
}

#[derive(Clone, Debug)]
struct OwnedClaim {
    key: RecordKey,
    identity: Identity,
    owner: Owner,
    now: Timestamp,
    lease: Duration,
    retention: Duration,
    clock_skew: Duration,
    take_over: bool,
}

enum Answer {
    Claim(Claim),
    Fenced(Fenced),
    Found(Option<Seen<Record>>),
    Removed(bool),
}

impl Call {
    fn apply(&self, records: &mut HashMap<RecordKey, Record>) -> Answer {
        let key = match self {
            Self::Claim(claim) => claim.key,
            Self::Renew(holder, ..) | Self::Complete(holder, ..) | Self::Release(holder, ..) => {
                holder.key
            }
            Self::Get(key, _) | Self::Remove(key) => *key,
        };
        let found = records.get(&key).cloned();
        let (answer, change) = match self {
            Self::Claim(claim) => {
                let (claim, change) = claim.on(found);
                (Answer::Claim(claim), change)
            }
            Self::Renew(holder, renewal, now) => {
                fenced(Fenced::renew(found, holder, *renewal, *now))
            }
            Self::Complete(holder, completion, now) => {
                fenced(Fenced::complete(found, holder, completion, *now))
            }
            Self::Release(holder, release, now) => {
                fenced(Fenced::release(found, holder, *release, *now))
            }
            Self::Get(_, now) => {
                let seen = found.and_then(|record| record.seen_at(*now));
                (Answer::Found(seen), Change::Keep)
            }
            Self::Remove(_) => (Answer::Removed(found.is_some()), Change::Remove),
        };
        match change {
            Change::Keep => {}
            Change::Write(record) => drop(records.insert(key, record)),
            Change::Remove => drop(records.remove(&key)),
        }
        answer
    }
}

fn fenced((fenced, change): (Fenced, Change)) -> (Answer, Change) {
    (Answer::Fenced(fenced), change)
}

impl OwnedClaim {
    fn on(&self, found: Option<Record>) -> (Claim, Change) {
        let parts = KeyParts {
            namespace: "",
            scope: None,
            method: "",
            target: "/work",
            key: "",
        };
        let mut request = ClaimRequest::new(&self.key, &parts, self.identity, self.owner, self.now);
        request.lease = self.lease;
        request.retention = self.retention;
        request.clock_skew = self.clock_skew;
        request.take_over = self.take_over;
        Claim::on(found, &request)
    }
}

impl Sea {
    pub(super) fn new(seed: u64) -> Self {
        Self(Mutex::new(Inner {
            records: HashMap::new(),
            rng: Rng::with_seed(seed),
            cut_off: HashMap::new(),
        }))
    }

    pub(super) fn cut_off(&self, node: usize, during: Duration) {
        let until = Instant::now() + during;
        self.inner().cut_off.insert(node, until);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().expect("nobody panics")
    }

    fn apply(&self, call: &Call) -> Answer {
        call.apply(&mut self.inner().records)
    }
}

/// The way of one node to the store, as long as the node lives.
#[derive(Clone, Debug)]
pub(super) struct Link {
    sea: Arc<Sea>,
    node: usize,
    lives: Arc<AtomicBool>,
}

impl Link {
    pub(super) const fn new(sea: Arc<Sea>, node: usize, lives: Arc<AtomicBool>) -> Self {
        Self { sea, node, lives }
    }

    async fn call(&self, call: Call) -> Result<Answer, StoreError> {
        let (there, back, fate, is_cut_off) = {
            let mut inner = self.sea.inner();
            let rng = &mut inner.rng;
            let there = Duration::from_micros(rng.u64(200..20_000));
            let back = Duration::from_micros(rng.u64(200..20_000));
            let later = Duration::from_millis(rng.u64(1..5_000));
            let fate = match rng.u32(0..100) {
                0..2 => Fate::IsLost,
                2..4 => Fate::AnswerIsLost,
                4..6 => Fate::ComesLate(later),
                6..8 => Fate::ComesTwice(later),
                _ => Fate::Arrives,
            };
            let until = inner.cut_off.get(&self.node);
            let is_cut_off = until.is_some_and(|until| Instant::now() < *until);
            (there, back, fate, is_cut_off)
        };
        sleep(there).await;
        self.lives_on().await;
        if is_cut_off {
            return Err(unreachable("nobody is there"));
        }
        let answer = match fate {
            Fate::IsLost => None,
            Fate::ComesLate(later) => {
                self.comes_again(call, later);
                None
            }
            Fate::AnswerIsLost => {
                self.sea.apply(&call);
                None
            }
            Fate::ComesTwice(later) => {
                let answer = self.sea.apply(&call);
                self.comes_again(call, later);
                Some(answer)
            }
            Fate::Arrives => Some(self.sea.apply(&call)),
        };
        sleep(back).await;
        self.lives_on().await;
        answer.ok_or_else(|| unreachable("no answer came").maybe_applied())
    }

    fn comes_again(&self, call: Call, later: Duration) {
        let sea = Arc::clone(&self.sea);
        tokio::spawn(async move {
            sleep(later).await;
            sea.apply(&call);
        });
    }

    /// The dead hear nothing.
    async fn lives_on(&self) {
        if !self.lives.load(Ordering::SeqCst) {
            std::future::pending::<()>().await;
        }
    }

    async fn fenced(&self, call: Call) -> Result<Fenced, StoreError> {
        match self.call(call).await? {
            Answer::Fenced(fenced) => Ok(fenced),
            _ => Err(unreachable("it was another's answer")),
        }
    }
}

fn unreachable(why: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Unavailable, why)
}

impl Store for Link {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        let claim = Call::Claim(OwnedClaim {
            key: *request.key,
            identity: request.identity,
            owner: request.owner,
            now: request.now,
            lease: request.lease,
            retention: request.retention,
            clock_skew: request.clock_skew,
            take_over: request.take_over,
        });
        match self.call(claim).await? {
            Answer::Claim(claim) => Ok(claim),
            _ => Err(unreachable("it was another's answer")),
        }
    }

    async fn renew(
        &self,
        holder: &Holder,
        renewal: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.fenced(Call::Renew(*holder, renewal, now)).await
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        let call = Call::Complete(*holder, completion.clone(), now);
        self.fenced(call).await
    }

    async fn release(
        &self,
        holder: &Holder,
        release: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.fenced(Call::Release(*holder, release, now)).await
    }

    async fn get(
        &self,
        key: &RecordKey,
        now: Timestamp,
    ) -> Result<Option<Seen<Record>>, StoreError> {
        match self.call(Call::Get(*key, now)).await? {
            Answer::Found(found) => Ok(found),
            _ => Err(unreachable("it was another's answer")),
        }
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool, StoreError> {
        match self.call(Call::Remove(*key)).await? {
            Answer::Removed(was_there) => Ok(was_there),
            _ => Err(unreachable("it was another's answer")),
        }
    }
}
