//! Clocks that differ, and time that runs back.

use std::time::Duration;

use crate::protocol::record::Renewal;
use crate::store::{Claim, Store};
use crate::testing::conformance::NotKept;
use crate::testing::conformance::key::{
    Kept, LAPSE, LEASE, RETENTION, SECOND, SKEW, TestKey, completion, expect, is_applied, orphan,
    succeeds,
};

/// Claims, completions and retries by a clock that is behind by the skew are decided as by one that
/// is not.
pub async fn time_that_runs_back_within_the_skew_changes_nothing<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let behind = |later: Duration| key.at(later).minus(SKEW);
    let lease = key.acquired().await?;
    let mut other = key.claim();
    other.now = behind(Duration::ZERO);
    match other.made().await? {
        Claim::InProgress { lease: seen, .. } => {
            let (age, running_for) = (seen.age(), seen.running_for());
            expect(
                age.is_zero() && running_for.is_zero(),
                "an attempt that starts in the future has not run yet",
                "no time",
                &(age, running_for),
            )?;
        }
        got => {
            let promise = "a key that another attempt holds is in progress";
            return Err(NotKept::broken(promise, "InProgress", &got));
        }
    }
    let answer = completion(b"answer");
    let completed = key.complete_at(lease.holder(), &answer, behind(Duration::ZERO));
    let completed = succeeds("a completion", completed.await)?;
    is_applied("a completion from before its claim", &completed)?;
    let mut retry = key.claim();
    retry.now = behind(Duration::ZERO);
    retry.is_answered(b"answer").await?;

    // And a lease that was just taken over is not taken over by a clock that is behind.
    let key = key.another();
    key.acquired().await?;
    let successor = key.claim().after(LAPSE).acquires().await?;
    let mut other = key.claim();
    other.now = key.at(LAPSE).minus(SKEW);
    other.is_in_progress().await?;
    key.completes(&successor, b"answer").await
}

/// A takeover gets a higher token, also if its clock is behind that of the attempt before.
pub async fn tokens_grow_when_time_runs_back<St: Store>(key: TestKey<St>) -> Kept {
    let first = key.acquired().await?;
    key.releases(&first, orphan()).await?;
    let mut claim = key.claim();
    claim.now = key.start.minus(SKEW);
    let second = claim.acquires().await?;
    expect(
        second.token > first.token,
        "a takeover gets a higher token, whatever the clocks say",
        &format!("more than {:?}", first.token),
        &second.token,
    )
}

/// The clocks of the callers are two days ahead or behind, and make no difference.
pub async fn a_clock_of_its_own_is_all_it_goes_by<St: Store>(key: TestKey<St>) -> Kept {
    key.suite().needs_a_clock()?;
    const DAYS: Duration = Duration::from_secs(2 * 24 * 60 * 60);
    let (ahead, behind) = (key.start.plus(DAYS), key.start.minus(DAYS));
    for (holders, others) in [(ahead, behind), (behind, ahead)] {
        let key = key.another();
        let mut claim = key.claim();
        claim.clock_shows = Some(holders);
        let lease = claim.acquires().await?;
        let mut other = key.claim().after(LEASE);
        other.clock_shows = Some(others);
        let Claim::InProgress { .. } = other.made().await? else {
            let promise = "a lease lapses by the store's own clock alone";
            return Err(NotKept::broken(promise, "InProgress", &"something else"));
        };
        key.suite().set_clock_to(key.at(LEASE));
        let renewal = Renewal::new(LEASE, RETENTION);
        let renewed = key.store().renew(&lease.holder(), renewal, holders).await;
        is_applied("a renewal by an owner", &succeeds("a renewal", renewed)?)?;
        let mut other = key.claim().after(LEASE + LEASE);
        other.clock_shows = Some(others);
        other.is_in_progress().await?;
        let answer = completion(b"answer");
        let store = key.store();
        let completed = match store.try_complete(&lease.holder(), &answer, holders) {
            Some(completed) => completed,
            None => store.complete(&lease.holder(), &answer, holders).await,
        };
        let completed = succeeds("a completion", completed)?;
        is_applied("a completion by an owner", &completed)?;
        let mut retry = key.claim().after(2 * LEASE + RETENTION - SECOND);
        retry.clock_shows = Some(others);
        retry.is_answered(b"answer").await?;
    }
    Ok(())
}
