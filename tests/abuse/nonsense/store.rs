//! A store that says whatever comes to its mind.

use std::future::{pending, ready};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Response, StatusCode};
use tower_idempotency::record::{
    CallerDigest, ClaimRequest, Completed, FencingToken, Holder, Identity, Lease, Owner, RecipeId,
    Record, Renewal, Seen,
};
use tower_idempotency::store::{Claim, Completion, Fenced, Release, Store, Waiter};
use tower_idempotency::{
    Answer, Fingerprint, RecordKey, StoreError, StoreErrorKind, StoredResponse, Timestamp,
};

/// What it has recorded for the request that asks, if it has its day, and for others.
pub(super) const RECORDED: &str = "recorded";
pub(super) const OF_ANOTHER: &str = "of another";

/// SplitMix64.
#[derive(Debug)]
pub(super) struct Draw(u64);

impl Draw {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(super) fn below(&mut self, end: u64) -> u64 {
        self.number() % end
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.number() as u8)
    }

    fn time(&mut self, now: Timestamp) -> Timestamp {
        match self.below(4) {
            0 => Timestamp::EPOCH,
            1 => Timestamp::from_micros(u64::MAX),
            2 => Timestamp::from_micros(self.number()),
            _ => now.plus(Duration::from_millis(self.below(40_000))),
        }
    }

    fn identity(&mut self, asked: Identity) -> Identity {
        let (caller, recipe) = (self.bytes(), self.bytes());
        match self.below(6) {
            0 => Identity {
                request: Fingerprint::from_bytes(self.bytes()),
                ..asked
            },
            1 => Identity {
                caller: CallerDigest::from_bytes(caller),
                ..asked
            },
            2 => Identity {
                recipe: RecipeId::from_bytes(recipe),
                ..asked
            },
            _ => asked,
        }
    }

    fn payload(&mut self, is_for_who_asks: bool) -> Bytes {
        let body = match is_for_who_asks {
            true => RECORDED,
            false => OF_ANOTHER,
        };
        let response = StoredResponse::from(Response::new(Bytes::from(body)));
        let whole = Answer::Response(response).encode();
        match self.below(6) {
            0 => Bytes::new(),
            1 => whole.slice(..self.below(whole.len() as u64) as usize),
            2 => Bytes::copy_from_slice(&self.bytes::<40>()),
            3 => {
                let status = StatusCode::CREATED;
                let summary = None;
                Answer::NotStored { status, summary }.encode()
            }
            4 => Answer::Value(Bytes::from_static(b"{}")).encode(),
            _ => whole,
        }
    }

    fn completed(&mut self, asked: Identity, now: Timestamp) -> Completed {
        let identity = self.identity(asked);
        let payload = self.payload(identity == asked);
        Completed::new(identity, payload, self.time(now), self.time(now))
    }

    fn lease(&mut self, of: &Lease, now: Timestamp) -> Lease {
        let mut holder = of.holder();
        if self.one_in(8) {
            holder.key = RecordKey::from_bytes(self.bytes());
        }
        if self.one_in(8) {
            holder.owner = Owner::from_bytes(self.bytes());
        }
        if self.one_in(8) {
            holder.identity = self.identity(of.identity);
        }
        let mut lease = Lease::new(&holder, FencingToken::from_u64(self.number()));
        lease.attempt = self.below(3) as u32;
        lease.created_at = self.time(now);
        lease.started_at = self.time(now);
        lease.deadline = self.time(now);
        lease.expires_at = self.time(now);
        lease.first_status = self.one_in(2).then(|| self.number() as u16);
        lease
    }

    fn error(&mut self) -> StoreError {
        let kind = match self.below(6) {
            0 => StoreErrorKind::Damaged,
            1 => StoreErrorKind::Full,
            2 => StoreErrorKind::Unavailable,
            3 => StoreErrorKind::Newer,
            4 => StoreErrorKind::TooLarge,
            _ => StoreErrorKind::Unusable,
        };
        let error = StoreError::new(kind, "nonsense");
        match self.one_in(2) {
            true => error.maybe_applied(),
            false => error,
        }
    }

    /// `None`: it never answers.
    fn claim(&mut self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        let now = request.now;
        let lease = request.lease(FencingToken::from_u64(1), 1, now);
        Some(Ok(match self.below(8) {
            0 => Claim::Acquired(lease.seen_at(now)),
            1 => Claim::Acquired(self.lease(&lease, now).seen_at(self.time(now))),
            2 | 3 => {
                let completed = self.completed(request.identity, now);
                Claim::Completed(completed.seen_at(self.time(now)))
            }
            4 => Claim::in_progress(
                self.lease(&lease, now).seen_at(self.time(now)),
                match self.below(3) {
                    0 => None,
                    1 => Some(Waiter::new(ready(()))),
                    _ => Some(Waiter::new(pending())),
                },
            ),
            5 => match self.below(4) {
                0 => Claim::Orphaned(self.lease(&lease, now).seen_at(self.time(now))),
                1 => Claim::CallerDiffers,
                2 => Claim::SettingsChanged {
                    recorded: RecipeId::from_bytes(self.bytes()),
                },
                _ => Claim::Reused,
            },
            6 => return Some(Err(self.error())),
            _ => return None,
        }))
    }

    fn fenced(&mut self, holder: &Holder, now: Timestamp) -> Option<Result<Fenced, StoreError>> {
        Some(Ok(match self.below(5) {
            0 => Fenced::Applied,
            1 => Fenced::LeaseLost(None),
            2 => {
                let completed = self.completed(holder.identity, now);
                Fenced::LeaseLost(Some(completed.seen_at(self.time(now))))
            }
            3 => return Some(Err(self.error())),
            _ => return None,
        }))
    }
}

#[derive(Debug)]
pub(super) struct Nonsense {
    draw: Mutex<Draw>,
    /// Of the last claim, for `get`, which is asked with a key alone.
    asked: Mutex<Option<Lease>>,
}

impl Nonsense {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            draw: Mutex::new(Draw::new(seed)),
            asked: Mutex::default(),
        }
    }

    fn drawn<T>(&self, draw: impl FnOnce(&mut Draw) -> T) -> T {
        draw(&mut self.draw.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

async fn answered<T>(answer: Option<T>) -> T {
    match answer {
        Some(answer) => answer,
        None => pending().await,
    }
}

impl Store for Nonsense {
    fn try_claim(&self, request: &ClaimRequest<'_>) -> Option<Result<Claim, StoreError>> {
        let lease = request.lease(FencingToken::from_u64(1), 1, request.now);
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
        self.drawn(|draw| match draw.one_in(2) {
            true => draw.claim(request),
            false => None,
        })
    }

    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim, StoreError> {
        answered(self.drawn(|draw| draw.claim(request))).await
    }

    async fn renew(
        &self,
        holder: &Holder,
        _: Renewal,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        answered(self.drawn(|draw| draw.fenced(holder, now))).await
    }

    fn try_complete(
        &self,
        holder: &Holder,
        _: &Completion,
        now: Timestamp,
    ) -> Option<Result<Fenced, StoreError>> {
        self.drawn(|draw| match draw.one_in(2) {
            true => draw.fenced(holder, now),
            false => None,
        })
    }

    async fn complete(
        &self,
        holder: &Holder,
        _: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        answered(self.drawn(|draw| draw.fenced(holder, now))).await
    }

    async fn release(
        &self,
        holder: &Holder,
        _: Release,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        answered(self.drawn(|draw| draw.fenced(holder, now))).await
    }

    async fn get(&self, _: &RecordKey, now: Timestamp) -> Result<Option<Seen<Record>>, StoreError> {
        let asked = self
            .asked
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let asked = asked.expect("a claim comes first");
        let answer = self.drawn(|draw| {
            Some(Ok(match draw.below(5) {
                0 => None,
                1 => Record::InProgress(draw.lease(&asked, now)).seen_at(draw.time(now)),
                2 => Record::Completed(draw.completed(asked.identity, now)).seen_at(draw.time(now)),
                3 => return Some(Err(draw.error())),
                _ => return None,
            }))
        });
        answered(answer).await
    }

    async fn remove(&self, _: &RecordKey) -> Result<bool, StoreError> {
        Ok(self.drawn(|draw| draw.one_in(2)))
    }
}
