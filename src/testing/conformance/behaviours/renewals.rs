//! What a renewal does for a lease and its record.

use std::time::Duration;

use crate::store::Store;
use crate::testing::conformance::key::{
    Kept, LAPSE, LEASE, RETENTION, SECOND, TestKey, completion, expect, is_applied, is_lost,
    is_refused, succeeds,
};

/// The lease counts from the renewal, and lapses after that.
pub async fn a_renewed_lease_lives_longer<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    key.renews_at(&lease, key.at(LEASE)).await?;
    key.claim().after(LAPSE).is_in_progress().await?;
    key.claim().after(LAPSE + LEASE).acquires().await.map(drop)
}

/// A renewal that was sent before another and arrives after it changes nothing.
pub async fn a_renewal_never_moves_a_deadline_back<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    for sent_at in [LEASE, Duration::ZERO] {
        key.renews_at(&lease, key.at(sent_at)).await?;
    }
    key.claim().after(LAPSE).is_in_progress().await
}

/// If the holder is not heard of again, its orphan is kept for the retention of the renewal.
pub async fn a_renewal_moves_the_expiry_of_the_record<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired_for_a_second().await?;
    key.renews_at(&lease, key.at(LEASE)).await?;
    let later = LEASE * 2 + RETENTION - SECOND;
    let stays = key.claim().after(later).without_taking_over();
    stays.is_orphaned().await.map(drop)
}

/// The deadline is not part of the fence.
pub async fn a_lapsed_lease_that_nobody_took_can_be_renewed<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let renewed = key.renew_at(&lease, key.at(LAPSE)).await?;
    is_applied("the renewal of a lapsed lease that nobody took", &renewed)?;
    key.claim().after(LAPSE).is_in_progress().await
}

/// The lease of the successor does not become longer.
pub async fn a_renewal_after_a_takeover_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    let late = key.acquired().await?;
    let successor = key.claim().after(LAPSE).acquires().await?;
    let renewed = key.renew_at(&late, key.at(LAPSE + LEASE)).await?;
    is_refused("a renewal after a takeover", &renewed, None)?;
    let next = key.claim().after(2 * LAPSE).acquires().await?;
    let renewed = key.renew_at(&successor, key.at(2 * LAPSE)).await?;
    is_lost("a renewal after a takeover", &renewed)?;
    key.completes(&next, b"answer").await
}

/// Work that takes longer than the retention is not run beside itself.
pub async fn a_live_lease_outlives_its_records_expiry<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired_for_a_second().await?;
    let later = 10 * SECOND;
    key.claim().after(later).is_in_progress().await?;
    let now = key.at(later);
    let record = key.get_at(now).await?;
    let promise = "a record whose lease is alive is shown past its expiry";
    expect(record.is_some(), promise, "a record in progress", &record)?;
    let answer = completion(b"answer");
    let fenced = key.complete_at(lease.holder(), &answer, now).await;
    let fenced = succeeds("a completion", fenced)?;
    is_applied("the completion of an owner", &fenced)?;
    let retry = key.claim().after(later);
    retry.is_answered(b"answer").await.map(drop)
}

/// A claim that knows that the holder is alive finds the key in progress, whatever the clocks say.
pub async fn a_lease_of_a_living_holder_does_not_lapse<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired_for_a_second().await?;
    for later in [LAPSE, RETENTION + LAPSE] {
        let mut claim = key.claim().after(later);
        claim.living = Some(lease.owner);
        claim.is_in_progress().await?;
    }
    key.completes(&lease, b"answer").await
}
