//! A key in the store under test, and what is asked and expected of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::{NotKept, Suite};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::StoreError;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::{IdempotencyKey, KeyParts, RecordKey};
use crate::protocol::record::{
    CallerDigest, ClaimRequest, Completed, Holder, Identity, Lease, Liveness, Owner, RecipeId,
    Record, Renewal,
};
use crate::runtime::{Clock, SystemClock, random_u64};
use crate::store::{Claim, Completion, Fenced, Release, Store};

pub(super) type Kept<T = ()> = Result<T, NotKept>;

pub(super) const LEASE: Duration = Duration::from_secs(30);
pub(super) const RETENTION: Duration = Duration::from_secs(24 * 60 * 60);
pub(super) const SKEW: Duration = Duration::from_secs(2);
pub(super) const SECOND: Duration = Duration::from_secs(1);
const MILLISECOND: Duration = Duration::from_millis(1);
/// The moment after which a lease from the start has lapsed for everyone.
pub(super) const LAPSE: Duration = LEASE.saturating_add(SKEW).saturating_add(MILLISECOND);

/// A key that no other behaviour uses, in a store under test.
pub struct TestKey<St> {
    suite: Suite<St>,
    store: Arc<St>,
    key: Arc<IdempotencyKey>,
    pub(super) start: Timestamp,
}

impl<St> Clone for TestKey<St> {
    fn clone(&self) -> Self {
        Self {
            suite: self.suite.clone(),
            store: Arc::clone(&self.store),
            key: Arc::clone(&self.key),
            start: self.start,
        }
    }
}

impl<St: fmt::Debug> fmt::Debug for TestKey<St> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TestKey")
            .field("store", &self.store)
            .field("key", &self.key)
            .finish_non_exhaustive()
    }
}

impl<St: Store> TestKey<St> {
    pub(super) async fn new(suite: &Suite<St>) -> Self {
        Self {
            suite: suite.clone(),
            store: suite.open().await,
            key: Arc::new(new_key()),
            start: SystemClock.now(),
        }
    }

    /// Returns another key in the same store.
    pub(super) fn another(&self) -> Self {
        Self {
            key: Arc::new(new_key()),
            ..self.clone()
        }
    }

    /// Returns the key of `other` in this store.
    pub(super) fn at_the_key_of(&self, other: &Self) -> Self {
        Self {
            key: Arc::clone(&other.key),
            ..self.clone()
        }
    }

    pub(super) fn store(&self) -> &St {
        &self.store
    }

    pub(super) fn suite(&self) -> &Suite<St> {
        &self.suite
    }

    /// Returns the same key through another handle, beside the first.
    pub(super) async fn through_another_handle(&self) -> Kept<Self> {
        self.suite.needs_sharing()?;
        Ok(Self {
            store: self.suite.open().await,
            ..self.clone()
        })
    }

    /// Returns the same key through another handle, that is made when the first is gone.
    pub(super) async fn reopened(self) -> Kept<Self> {
        self.suite.needs_persistence()?;
        let Self {
            suite,
            store,
            key,
            start,
        } = self;
        drop(store);
        let store = suite.open().await;
        Ok(Self {
            suite,
            store,
            key,
            start,
        })
    }

    pub(super) fn at(&self, later: Duration) -> Timestamp {
        self.start.plus(later)
    }

    pub(super) fn claim(&self) -> Attempt<'_, St> {
        Attempt {
            key: self,
            accepted: &[],
            owner: Owner::new(random(), self.start),
            identity: identity(b"me", "amount=1200"),
            now: self.start,
            clock_shows: None,
            retention: RETENTION,
            take_over: true,
            wants_waiter: false,
            living: None,
        }
    }

    pub(super) async fn acquired(&self) -> Kept<Lease> {
        self.claim().acquires().await
    }

    /// Returns a lease that lapses long after its record expires.
    pub(super) async fn acquired_for_a_second(&self) -> Kept<Lease> {
        let mut claim = self.claim();
        claim.retention = SECOND;
        claim.acquires().await
    }

    pub(super) async fn complete_at(
        &self,
        holder: Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced, StoreError> {
        self.suite.set_clock_to(now);
        match self.store.try_complete(&holder, completion, now) {
            Some(fenced) => fenced,
            None => self.store.complete(&holder, completion, now).await,
        }
    }

    pub(super) async fn complete(&self, lease: &Lease, payload: &'static [u8]) -> Kept<Fenced> {
        let now = lease.started_at;
        let completion = Completion {
            age: now.since(lease.created_at),
            ..completion(payload)
        };
        let fenced = self.complete_at(lease.holder(), &completion, now).await;
        succeeds("a completion", fenced)
    }

    pub(super) async fn completes(&self, lease: &Lease, payload: &'static [u8]) -> Kept {
        let fenced = self.complete(lease, payload).await?;
        is_applied("the completion of an owner", &fenced)
    }

    pub(super) async fn release_at(
        &self,
        lease: &Lease,
        release: Release,
        now: Timestamp,
    ) -> Kept<Fenced> {
        self.suite.set_clock_to(now);
        let released = self.store.release(&lease.holder(), release, now).await;
        succeeds("a release", released)
    }

    pub(super) async fn release(&self, lease: &Lease, release: Release) -> Kept<Fenced> {
        self.release_at(lease, release, lease.started_at).await
    }

    pub(super) async fn releases(&self, lease: &Lease, release: Release) -> Kept {
        let fenced = self.release(lease, release).await?;
        is_applied("the release of an owner", &fenced)
    }

    pub(super) async fn renew_at(&self, lease: &Lease, now: Timestamp) -> Kept<Fenced> {
        self.suite.set_clock_to(now);
        let renewal = Renewal::new(LEASE, RETENTION);
        let renewed = self.store.renew(&lease.holder(), renewal, now).await;
        succeeds("a renewal", renewed)
    }

    pub(super) async fn renews_at(&self, lease: &Lease, now: Timestamp) -> Kept {
        let fenced = self.renew_at(lease, now).await?;
        is_applied("the renewal of an owner", &fenced)
    }

    pub(super) async fn get_at(&self, now: Timestamp) -> Kept<Option<Record>> {
        self.suite.set_clock_to(now);
        let got = self.store.get(self.key.record_key(), now).await;
        Ok(succeeds("a look", got)?.map(|record| record.by_clock(now)))
    }

    pub(super) async fn remove(&self) -> Kept<bool> {
        succeeds("a removal", self.store.remove(self.key.record_key()).await)
    }

    pub(super) fn record_key(&self) -> &RecordKey {
        self.key.record_key()
    }
}

fn new_key() -> IdempotencyKey {
    let unique = random();
    let text = format!("conformance-{unique:016x}");
    IdempotencyKey::from_parts(&KeyParts {
        namespace: "conformance",
        scope: Some("acct_1"),
        method: "POST",
        target: "/v1/charges",
        key: &text,
    })
    .expect("the key is valid")
}

/// One claim; the methods change it.
pub(super) struct Attempt<'a, St> {
    key: &'a TestKey<St>,
    pub(super) accepted: &'a [Identity],
    pub(super) owner: Owner,
    pub(super) identity: Identity,
    pub(super) now: Timestamp,
    /// What the clock of the caller shows, where that is not the time.
    pub(super) clock_shows: Option<Timestamp>,
    pub(super) retention: Duration,
    pub(super) take_over: bool,
    pub(super) wants_waiter: bool,
    /// Who is known to be alive.
    pub(super) living: Option<Owner>,
}

impl<St: Store> Attempt<'_, St> {
    pub(super) fn after(mut self, later: Duration) -> Self {
        self.now = self.key.at(later);
        self
    }

    pub(super) fn for_another_request(mut self) -> Self {
        self.identity.request = Fingerprint::of(["amount=1300"]);
        self
    }

    pub(super) fn by_another_caller(mut self) -> Self {
        self.identity.caller = identity(b"you", "").caller;
        self
    }

    pub(super) fn by_another_recipe(mut self) -> Self {
        self.identity = Identity {
            caller: CallerDigest::from_bytes([1; 16]),
            request: Fingerprint::from_bytes([2; 32]),
            recipe: RecipeId::from_bytes(*b"recipe 2"),
        };
        self
    }

    pub(super) fn without_taking_over(mut self) -> Self {
        self.take_over = false;
        self
    }

    pub(super) async fn made(&self) -> Kept<Claim> {
        let parts = self.key.key.parts();
        let is_alive = |owner| Some(owner) == self.living;
        let shown = self.clock_shows.unwrap_or(self.now);
        let record = self.key.record_key();
        let request = ClaimRequest {
            accepted: self.accepted,
            lease: LEASE,
            retention: self.retention,
            clock_skew: SKEW,
            take_over: self.take_over,
            wants_waiter: self.wants_waiter,
            liveness: Liveness::new(&is_alive),
            ..ClaimRequest::new(record, &parts, self.identity, self.owner, shown)
        };
        self.key.suite.set_clock_to(self.now);
        let claim = match self.key.store.try_claim(&request) {
            Some(claim) => claim,
            None => self.key.store.claim(&request).await,
        };
        succeeds("a claim", claim)
    }

    pub(super) async fn acquires(&self) -> Kept<Lease> {
        match self.made().await? {
            Claim::Acquired(lease) => Ok(lease.by_clock(self.now)),
            other => Err(NotKept::broken(
                "a claim gets the lease of a key that nobody holds",
                "Acquired",
                &other,
            )),
        }
    }

    pub(super) async fn is_in_progress(&self) -> Kept {
        let claim = self.made().await?;
        let is_held = matches!(claim, Claim::InProgress { .. });
        expect(
            is_held,
            "a key that another attempt holds is in progress",
            "InProgress",
            &claim,
        )
    }

    pub(super) async fn is_orphaned(&self) -> Kept<Lease> {
        match self.made().await? {
            Claim::Orphaned(lease) => Ok(lease.by_clock(self.now)),
            other => Err(NotKept::broken(
                "an orphan is held for a claim that may not take it over",
                "Orphaned",
                &other,
            )),
        }
    }

    pub(super) async fn is_another_callers(&self) -> Kept {
        let claim = self.made().await?;
        expect(
            matches!(claim, Claim::CallerDiffers),
            "a key is refused to every caller but its own",
            "CallerDiffers",
            &claim,
        )
    }

    pub(super) async fn is_not_compared(&self, recorded: RecipeId) -> Kept {
        let claim = self.made().await?;
        expect(
            matches!(claim, Claim::SettingsChanged { recorded: of } if of == recorded),
            "a record of a recipe that the claimer does not know is compared with nothing",
            &format!("SettingsChanged {{ recorded: {recorded:?} }}"),
            &claim,
        )
    }

    pub(super) async fn is_reused(&self) -> Kept {
        let claim = self.made().await?;
        expect(
            matches!(claim, Claim::Reused),
            "a key is refused to every request but its own",
            "Reused",
            &claim,
        )
    }

    pub(super) async fn is_answered(&self, payload: &[u8]) -> Kept<Completed> {
        let promise = "a completed key gives the answer that was recorded";
        let expected = || format!("Completed with {}", bytes(payload));
        match self.made().await? {
            Claim::Completed(completed) => {
                let completed = completed.by_clock(self.now);
                let got = format!("Completed with {}", bytes(&completed.payload));
                let is_same = completed.payload == payload;
                expect(is_same, promise, &expected(), &Text(&got))?;
                Ok(completed)
            }
            other => Err(NotKept::broken(promise, &expected(), &other)),
        }
    }
}

/// What is there already, without quotes.
struct Text<'a>(&'a str);

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

fn bytes(payload: &[u8]) -> String {
    match payload {
        short if short.len() <= 32 => format!("{:?}", Bytes::copy_from_slice(short)),
        long => format!("{} bytes", long.len()),
    }
}

pub(super) fn identity(caller: &[u8], request: &str) -> Identity {
    let mut digest = [0; 16];
    digest[..caller.len()].copy_from_slice(caller);
    Identity {
        caller: CallerDigest::from_bytes(digest),
        request: Fingerprint::of([request]),
        recipe: RecipeId::from_bytes(*b"recipe 1"),
    }
}

pub(super) const fn orphan() -> Release {
    Release::orphan(RETENTION, Some(504))
}

pub(super) const fn completion(payload: &'static [u8]) -> Completion {
    Completion::new(Bytes::from_static(payload), RETENTION)
}

/// Returns so many bytes, of nearly all values.
pub(super) fn payload(size: usize) -> Bytes {
    let all: [u8; 256] = std::array::from_fn(|value| value as u8);
    // An odd number of bytes, so that no two blocks of a power of two are the same.
    let some = &all[..251];
    let mut payload = some.repeat(size.div_ceil(some.len()));
    payload.truncate(size);
    payload.into()
}

/// Breaks `promise` with what was `got` in the place of what is `expected`, unless it `holds`.
pub(super) fn expect(holds: bool, promise: &str, expected: &str, got: &dyn fmt::Debug) -> Kept {
    match holds {
        true => Ok(()),
        false => Err(NotKept::broken(promise, expected, got)),
    }
}

/// Breaks `promise` unless what was `got` is what is `expected`.
pub(super) fn expect_eq<T: PartialEq + fmt::Debug>(promise: &str, got: &T, expected: &T) -> Kept {
    expect(got == expected, promise, &format!("{expected:?}"), got)
}

/// As [`expect_eq`], in whole milliseconds: a store need not keep more.
pub(super) fn expect_time(promise: &str, got: Timestamp, expected: Timestamp) -> Kept {
    expect(
        got.as_millis() == expected.as_millis(),
        promise,
        &format!("{expected:?}"),
        &got,
    )
}

pub(super) fn is_applied(what: &str, fenced: &Fenced) -> Kept {
    let promise = format!("{what} is applied");
    expect(*fenced == Fenced::Applied, &promise, "Applied", fenced)
}

/// The write was refused, and `answer` is recorded in its place.
pub(super) fn is_refused(what: &str, fenced: &Fenced, answer: Option<&[u8]>) -> Kept {
    let (is_told, expected) = match (fenced, answer) {
        (Fenced::LeaseLost(None), None) => (true, "LeaseLost(None)".to_owned()),
        (Fenced::LeaseLost(Some(recorded)), Some(answer)) => (
            recorded.payload() == answer,
            format!("LeaseLost with {}", bytes(answer)),
        ),
        (_, None) => (false, "LeaseLost(None)".to_owned()),
        (_, Some(answer)) => (false, format!("LeaseLost with {}", bytes(answer))),
    };
    let promise = format!("{what} is refused, with what is recorded in its place");
    expect(is_told, &promise, &expected, fenced)
}

/// The write was refused.
pub(super) fn is_lost(what: &str, fenced: &Fenced) -> Kept {
    let is_lost = matches!(fenced, Fenced::LeaseLost(_));
    expect(is_lost, &format!("{what} is refused"), "LeaseLost", fenced)
}

pub(super) fn succeeds<T>(what: &str, result: Result<T, StoreError>) -> Kept<T> {
    result.map_err(|error| {
        let promise = format!("{what} succeeds while nothing fails");
        NotKept::broken(&promise, "no error", &error)
    })
}

fn random() -> u64 {
    random_u64().expect("the operating system gives random bytes")
}
