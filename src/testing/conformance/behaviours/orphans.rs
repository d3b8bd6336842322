//! What a release leaves of an attempt whose outcome is not known.

use crate::store::Store;
use crate::testing::conformance::key::{
    Kept, LAPSE, RETENTION, SECOND, TestKey, expect, expect_eq, expect_time, is_applied, orphan,
};

/// Claims need not wait for the lease to lapse.
pub async fn an_orphaning_release_leaves_an_orphan_at_once<St: Store>(key: TestKey<St>) -> Kept {
    let first = key.acquired().await?;
    key.releases(&first, orphan()).await?;
    let stays = key.claim().without_taking_over();
    let seen = stays.is_orphaned().await?;
    let promise = "an orphan tells when its key was first claimed";
    expect_time(promise, seen.created_at, key.start)?;
    let second = key.claim().acquires().await?;
    let promise = "a claim on an orphan is the next attempt";
    expect_eq(promise, &second.attempt, &2)?;
    let promise = "a claim on an orphan gets a higher token";
    expect(second.token > first.token, promise, "a higher one", &second)
}

/// Claims that find the orphan see the status; an attempt that takes over has none.
pub async fn an_orphan_keeps_the_status_it_ended_with<St: Store>(key: TestKey<St>) -> Kept {
    let first = key.acquired().await?;
    key.releases(&first, orphan()).await?;
    let seen = key.claim().without_taking_over().is_orphaned().await?;
    let promise = "an orphan keeps the status it ended with";
    expect_eq(promise, &seen.first_status, &Some(504))?;
    let second = key.claim().acquires().await?;
    let promise = "an attempt that takes over has no status";
    expect_eq(promise, &second.first_status, &None)
}

/// A release whose answer was lost is made again.
pub async fn a_repeated_orphaning_release_is_applied<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    for _ in 0..2 {
        key.releases(&lease, orphan()).await?;
    }
    let stays = key.claim().without_taking_over();
    stays.is_orphaned().await.map(drop)
}

/// A renewal that was sent before the release and arrives after it may hold the key for a lease more.
/// Then the key is an orphan again, with the same status.
pub async fn a_renewal_after_an_orphaning_release_frees_nothing<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let lease = key.acquired().await?;
    key.releases(&lease, orphan()).await?;
    let renewed = key.renew_at(&lease, key.start).await?;
    is_applied("a renewal by the owner of an orphan", &renewed)?;
    for later in [LAPSE, RETENTION - SECOND] {
        let stays = key.claim().after(later).without_taking_over();
        let seen = stays.is_orphaned().await?;
        let promise = "a late renewal leaves an orphan its status";
        expect_eq(promise, &seen.first_status, &Some(504))?;
    }
    let next = key.claim().after(LAPSE).acquires().await?;
    let promise = "a claim on an orphan is the next attempt";
    expect_eq(promise, &next.attempt, &2)
}

/// The next claim is a first attempt, also if it may not take over.
pub async fn an_orphan_is_forgotten_when_its_retention_ends<St: Store>(key: TestKey<St>) -> Kept {
    let first = key.acquired().await?;
    let after = key.claim().after(RETENTION + SECOND).without_taking_over();
    let second = after.for_another_request().acquires().await?;
    let promise = "a claim on an orphan that expired is a first attempt";
    expect_eq(promise, &second.attempt, &1)?;
    let promise = "a claim on an orphan that expired gets a higher token";
    expect(second.token > first.token, promise, "a higher one", &second)
}

/// It does not count from the claim, since a run may take longer than the retention.
pub async fn an_orphans_retention_counts_from_its_end<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired_for_a_second().await?;
    let end = 10 * SECOND;
    let fenced = key.release_at(&lease, orphan(), key.at(end)).await?;
    is_applied("the release of an owner", &fenced)?;
    for later in [end, end + RETENTION - SECOND] {
        let stays = key.claim().after(later).without_taking_over();
        stays.is_orphaned().await?;
    }
    let after = end + RETENTION + SECOND;
    let stays = key.claim().after(after).without_taking_over();
    let promise = "a claim on an orphan that expired is a first attempt";
    expect_eq(promise, &stays.acquires().await?.attempt, &1)
}
