//! A store that keeps every promise but one.

use std::collections::HashMap;
use std::future::pending;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::task::yield_now;
use tower_idempotency::record::{
    ClaimRequest, FencingToken, Holder, Identity, Lease, Liveness, Owner, RecipeId, Record,
    Renewal, Seen,
};
use tower_idempotency::store::{Change, Claim, Completion, Fenced, Release, Store, Waiter};
use tower_idempotency::testing::ManualClock;
use tower_idempotency::{Clock, RecordKey, StoreError, StoreErrorKind, Timestamp};

use super::mistake::Mistake;

type Result<T> = std::result::Result<T, StoreError>;
pub(super) type Records = Arc<Mutex<HashMap<RecordKey, Record>>>;

/// A map of records behind a mutex, with a mistake.
#[derive(Clone, Debug)]
pub(super) struct BrokenStore {
    records: Records,
    mistake: Mistake,
    clock: Option<ManualClock>,
    /// How many claims found an answer.
    reads: Arc<AtomicUsize>,
}

/// So many bytes are the largest answer of the store.
pub(super) const LARGEST: usize = 2 << 20;

impl BrokenStore {
    pub(super) fn new(mistake: Mistake, records: Records) -> Self {
        Self {
            records,
            mistake,
            clock: None,
            reads: Arc::default(),
        }
    }

    pub(super) fn with_clock(mistake: Mistake, clock: ManualClock) -> Self {
        Self {
            clock: Some(clock),
            ..Self::new(mistake, Records::default())
        }
    }

    fn has(&self, mistake: Mistake) -> bool {
        self.mistake == mistake
    }

    fn records(&self) -> MutexGuard<'_, HashMap<RecordKey, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn found(&self, key: &RecordKey) -> Option<Record> {
        self.records().get(key).cloned()
    }

    /// What time it is: by the store's own clock if it has one.
    fn now(&self, callers: Timestamp) -> Timestamp {
        match &self.clock {
            Some(_) if self.has(Mistake::GoesByTheCallersClock) => callers,
            Some(clock) => clock.now(),
            None => callers,
        }
    }

    /// What a claim gets, and what is written for it.
    fn decided(&self, found: Option<Record>, request: &ClaimRequest<'_>) -> (Claim, Option<Lease>) {
        use Mistake as M;
        let mut request = *request;
        let before = found.clone();
        let of = before.as_ref().map(identity_of);
        let held = match &before {
            Some(Record::InProgress(lease)) => Some(lease),
            _ => None,
        };
        let is_own = held.is_some_and(|lease| lease.owner == request.owner);
        let mut found = found;
        match (self.mistake, of) {
            (M::RepeatedClaimIsInProgress, _) if is_own => {
                if let Some(lease) = held {
                    let seen = lease.clone().seen_at(request.now);
                    return (Claim::in_progress(seen, None), None);
                }
            }
            (M::RepeatedClaimGetsANewToken, _) if is_own => found = None,
            (M::ReplaysToAnotherCaller, Some(of)) if of.recipe == request.identity.recipe => {
                request.identity.caller = of.caller;
            }
            (M::ReplaysAnotherRequest, Some(of)) if of.recipe == request.identity.recipe => {
                request.identity.request = of.request;
            }
            (M::TrustsAnUnknownRecipe, Some(of)) if knows_not(&request, of.recipe) => {
                request.identity = of;
            }
            (M::IgnoresAcceptedRecipes, _) => request.accepted = &[],
            (M::IgnoresTakeOver, _) => request.take_over = true,
            (M::IgnoresTheSkew, _) => request.clock_skew = Duration::ZERO,
            (M::IgnoresTheLiving, _) => request.liveness = Liveness::UNKNOWN,
            (M::NeverTakesOver, _) => request.take_over = false,
            (M::ForgetsWhatIsHeld, _) if held.is_some_and(|of| of.expires_at <= request.now) => {
                found = None;
            }
            (M::KeepsAnswersForEver, _) => {
                if let Some(Record::Completed(completed)) = &mut found {
                    completed.expires_at = Timestamp::from_micros(u64::MAX);
                }
            }
            (M::KeepsOrphansForEver, _) => {
                if let Some(Record::InProgress(lease)) = &mut found {
                    lease.expires_at = Timestamp::from_micros(u64::MAX);
                }
            }
            (M::TakesOverWhenTimeRunsBack, _)
                if held.is_some_and(|of| request.now < of.started_at) =>
            {
                found = None;
            }
            _ => {}
        }
        let (claim, change) = Claim::on(found, &request);
        let mut written = match change {
            Change::Write(Record::InProgress(lease)) => Some(lease),
            _ => None,
        };
        if let Some(lease) = &mut written
            && self.has(M::ShortensTheLease)
        {
            lease.deadline = lease.deadline.minus(SECOND);
        }
        if let (Some(next), Some(last)) = (&mut written, held) {
            match self.mistake {
                M::KeepsTheToken => next.token = last.token,
                M::TakesTheTokenFromTheClock => {
                    next.token = FencingToken::from_u64(request.now.as_micros());
                }
                M::CountsNoAttempts => next.attempt = 1,
                M::ForgetsTheAge => next.created_at = request.now,
                M::KeepsTheStart => next.started_at = last.started_at,
                _ => {}
            }
        }
        match (claim, &written) {
            (Claim::Acquired(_), Some(lease)) => {
                let seen = lease.clone().seen_at(request.now);
                (Claim::Acquired(seen), written)
            }
            (Claim::InProgress { lease, .. }, _) if self.has(M::TellsTheWrongStart) => {
                let mut lease = lease.by_clock(request.now);
                lease.started_at = request.now;
                (Claim::in_progress(lease.seen_at(request.now), None), None)
            }
            (Claim::InProgress { lease, .. }, _)
                if self.has(M::NeverWakes) && request.wants_waiter =>
            {
                (
                    Claim::in_progress(lease, Some(Waiter::new(pending()))),
                    None,
                )
            }
            (Claim::CallerDiffers, _)
                if self.has(M::ComparesTheRequestFirst)
                    && of.is_some_and(|of| of.request != request.identity.request) =>
            {
                (Claim::Reused, None)
            }
            (Claim::Completed(_), _) if self.has(M::HoldsAnswersBack) && !request.take_over => {
                (Claim::Reused, None)
            }
            (claim, _) => (claim, written),
        }
    }

    /// Writes what becomes of the record, if its owner asks for it, or if that is not looked at.
    fn write(
        &self,
        holder: &Holder,
        now: Timestamp,
        is_unfenced: bool,
        write: impl FnOnce(Lease) -> Option<Record>,
    ) -> Fenced {
        let found = self.found(&holder.key);
        let checked = match (Fenced::check(found.clone(), holder, now), found) {
            (Err(_), Some(Record::InProgress(lease))) if is_unfenced => Ok(lease),
            (checked, _) => checked,
        };
        match checked {
            Ok(lease) => {
                self.put(holder.key, write(lease));
                Fenced::Applied
            }
            Err(Fenced::LeaseLost(_)) if self.has(Mistake::TellsLosersNothing) => {
                Fenced::LeaseLost(None)
            }
            Err(lost) => lost,
        }
    }

    fn put(&self, key: RecordKey, record: Option<Record>) {
        match record {
            Some(record) => drop(self.records().insert(key, record)),
            None => drop(self.records().remove(&key)),
        }
    }

    /// Looks whether `holder` owns the record, and lets others run before it writes.
    async fn looks(&self, holder: &Holder, now: Timestamp) -> std::result::Result<Lease, Fenced> {
        let checked = Fenced::check(self.found(&holder.key), holder, now);
        yield_now().await;
        checked
    }
}

fn identity_of(record: &Record) -> Identity {
    match record {
        Record::InProgress(lease) => lease.identity,
        Record::Completed(completed) => completed.identity,
    }
}

fn knows_not(request: &ClaimRequest<'_>, recipe: RecipeId) -> bool {
    request.identity.recipe != recipe && request.accepted.iter().all(|of| of.recipe != recipe)
}

fn too_large() -> StoreError {
    StoreError::new(StoreErrorKind::TooLarge, "the answer is too large")
}

impl Store for BrokenStore {
    async fn claim(&self, request: &ClaimRequest<'_>) -> Result<Claim> {
        let request = request.at(self.now(request.now));
        let found = self.found(request.key);
        if let Some(Record::Completed(completed)) = &found
            && self.has(Mistake::ReadsAReplica)
            && self.reads.fetch_add(1, Ordering::Relaxed) % 2 == 1
        {
            let holder = Holder::new(*request.key, request.owner, completed.identity);
            let lease = Lease::new(&holder, FencingToken::from_u64(1));
            return Ok(Claim::in_progress(lease.seen_at(request.now), None));
        }
        let (claim, written) = self.decided(found, &request);
        if self.has(Mistake::ChecksThenInserts) {
            yield_now().await;
        }
        if let (true, Some(lease)) = (self.has(Mistake::LocksThenInserts), &written) {
            let mut lock = lease.clone();
            lock.owner = Owner::from_bytes([0; 16]);
            self.put(*request.key, Some(Record::InProgress(lock)));
            yield_now().await;
        }
        if let Some(lease) = written {
            self.put(*request.key, Some(Record::InProgress(lease)));
        }
        Ok(claim)
    }

    async fn renew(&self, holder: &Holder, renewal: Renewal, now: Timestamp) -> Result<Fenced> {
        let now = self.now(now);
        let mut is_unfenced = self.has(Mistake::RenewsWithoutAFence);
        if self.has(Mistake::RenewsAfterLooking) {
            if let Err(lost) = self.looks(holder, now).await {
                return Ok(lost);
            }
            is_unfenced = true;
        }
        if self.has(Mistake::RefusesToRenewALapsedLease)
            && let Some(Record::InProgress(lease)) = self.found(&holder.key)
            && lease.deadline < now
        {
            return Ok(Fenced::LeaseLost(None));
        }
        if self.has(Mistake::RenewsWhatIsCompleted)
            && let Some(Record::Completed(completed)) = self.found(&holder.key)
        {
            let mut lease = Lease::new(holder, FencingToken::from_u64(now.as_micros()));
            lease.created_at = completed.created_at;
            lease.renew(renewal, now);
            self.put(holder.key, Some(Record::InProgress(lease)));
            return Ok(Fenced::Applied);
        }
        Ok(self.write(holder, now, is_unfenced, |mut lease| {
            if self.has(Mistake::RenewsNothing) {
                return Some(Record::InProgress(lease));
            }
            let was_orphan = lease.deadline == Timestamp::EPOCH;
            let expires_at = lease.expires_at;
            lease.renew(renewal, now);
            match self.mistake {
                Mistake::RenewsBackwards => lease.deadline = renewal.deadline(now),
                Mistake::RenewsTheLeaseAlone => lease.expires_at = expires_at,
                Mistake::FreesARenewedOrphan if was_orphan => return None,
                _ => {}
            }
            Some(Record::InProgress(lease))
        }))
    }

    async fn complete(
        &self,
        holder: &Holder,
        completion: &Completion,
        now: Timestamp,
    ) -> Result<Fenced> {
        use Mistake as M;
        let now = self.now(now);
        let size = completion.payload.len();
        let is_too_large = size > LARGEST || (self.has(M::FailsOnLargeAnswers) && size > 350_000);
        if is_too_large && !self.has(M::WritesWhatItRefuses) {
            return Err(too_large());
        }
        let mut completion = completion.clone();
        if self.has(M::CutsAnswersAt16Bits) {
            completion.payload.truncate(size % (1 << 16));
        }
        let record =
            |created_at| Record::Completed(completion.record(holder.identity, created_at, now));
        let found = self.found(&holder.key);
        match (self.mistake, &found) {
            (M::CompletesWithoutACondition, _) => {
                self.put(holder.key, Some(record(now.minus(completion.age))));
                return Ok(Fenced::Applied);
            }
            (M::CompletesTwice, Some(Record::Completed(first)))
                if first.identity == holder.identity =>
            {
                self.put(holder.key, Some(record(first.created_at)));
                return Ok(Fenced::Applied);
            }
            (M::RefusesALapsedOwner, Some(Record::InProgress(lease))) if lease.deadline < now => {
                return Ok(Fenced::LeaseLost(None));
            }
            (M::CompletesAfterLooking, _) => {
                return Ok(match self.looks(holder, now).await {
                    Ok(lease) => {
                        self.put(holder.key, Some(record(lease.created_at)));
                        Fenced::Applied
                    }
                    Err(lost) => lost.or_repeated(&completion),
                });
            }
            (M::DeletesThenInserts, Some(Record::InProgress(lease)))
                if lease.owner == holder.owner =>
            {
                self.put(holder.key, None);
                yield_now().await;
                self.put(holder.key, Some(record(lease.created_at)));
                return Ok(Fenced::Applied);
            }
            _ => {}
        }
        let fenced = self.write(holder, now, false, |lease| Some(record(lease.created_at)));
        match self.mistake {
            M::WritesWhatItRefuses if is_too_large => Err(too_large()),
            M::RefusesARepeatedCompletion => Ok(fenced),
            _ => Ok(fenced.or_repeated(&completion)),
        }
    }

    async fn release(&self, holder: &Holder, release: Release, now: Timestamp) -> Result<Fenced> {
        use Mistake as M;
        let now = self.now(now);
        let mut is_unfenced = self.has(M::ReleasesWithoutAFence);
        if self.has(M::ReleasesAfterLooking) {
            if let Err(lost) = self.looks(holder, now).await {
                return Ok(lost);
            }
            is_unfenced = true;
        }
        if self.has(M::ReleasesWhatIsCompleted)
            && let Some(Record::Completed(_)) = self.found(&holder.key)
        {
            self.put(holder.key, None);
            return Ok(Fenced::Applied);
        }
        Ok(self.write(holder, now, is_unfenced, |lease| {
            let claimed_until = lease.expires_at;
            let release = match release {
                Release::Free if self.has(M::OrphansWhatIsReleased) => {
                    Release::orphan(24 * 60 * 60 * SECOND, None)
                }
                release => release,
            };
            let mut orphan = release.leaves(&lease, now)?;
            match self.mistake {
                M::FreesAnOrphan => return None,
                M::ForgetsTheStatus => orphan.first_status = None,
                M::CountsAnOrphansRetentionFromItsClaim => orphan.expires_at = claimed_until,
                _ => {}
            }
            Some(Record::InProgress(orphan))
        }))
    }

    async fn get(&self, key: &RecordKey, now: Timestamp) -> Result<Option<Seen<Record>>> {
        let now = self.now(now);
        let record = self.found(key).filter(|record| {
            matches!(record, Record::Completed(_)) || !self.has(Mistake::GetShowsAnswersOnly)
        });
        Ok(record.and_then(|mut record| {
            if self.has(Mistake::GetShowsWhatHasExpired) {
                match &mut record {
                    Record::InProgress(lease) => lease.expires_at = now.plus(SECOND),
                    Record::Completed(completed) => completed.expires_at = now.plus(SECOND),
                }
            }
            record.seen_at(now)
        }))
    }

    async fn remove(&self, key: &RecordKey) -> Result<bool> {
        let found = self.found(key);
        if self.has(Mistake::RemovesOnlyAnswers) && matches!(found, Some(Record::InProgress(_))) {
            return Ok(true);
        }
        self.put(*key, None);
        Ok(found.is_some() && !self.has(Mistake::RemoveSaysFalse))
    }
}

const SECOND: Duration = Duration::from_secs(1);
