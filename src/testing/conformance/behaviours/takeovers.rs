//! When a lease has lapsed, and what its successor gets.

use std::time::Duration;

use crate::store::Store;
use crate::testing::conformance::key::{
    Kept, LAPSE, LEASE, RETENTION, SECOND, SKEW, TestKey, expect, expect_eq, expect_time,
};

/// The lease of the takeover counts from then, and others find the key in progress.
pub async fn a_lapsed_lease_is_taken_over<St: Store>(key: TestKey<St>) -> Kept {
    key.acquired().await?;
    let second = key.claim().after(LAPSE).acquires().await?;
    let promise = "a lease that was taken over counts from its takeover";
    expect_time(promise, second.started_at, key.at(LAPSE))?;
    expect_time(promise, second.deadline, key.at(LAPSE + LEASE))?;
    key.claim().after(LAPSE).is_in_progress().await?;
    key.completes(&second, b"answer").await
}

/// The work can tell by its number that it is not the first.
pub async fn a_takeover_is_the_next_attempt<St: Store>(key: TestKey<St>) -> Kept {
    key.acquired().await?;
    for number in [2, 3] {
        let claim = key.claim().after((number - 1) * LAPSE);
        let lease = claim.acquires().await?;
        let promise = "each takeover counts as an attempt more";
        expect_eq(promise, &lease.attempt, &number)?;
    }
    Ok(())
}

/// A system that the work writes to can refuse the lower token.
pub async fn a_takeover_gets_a_higher_token<St: Store>(key: TestKey<St>) -> Kept {
    let first = key.acquired().await?;
    let second = key.claim().after(LAPSE).acquires().await?;
    expect(
        second.token > first.token,
        "a takeover gets a higher token than the attempt before",
        &format!("more than {:?}", first.token),
        &second.token,
    )
}

/// The lease and its answer tell when the key was first claimed.
pub async fn a_takeover_keeps_the_age_of_the_key<St: Store>(key: TestKey<St>) -> Kept {
    key.acquired().await?;
    let second = key.claim().after(LAPSE).acquires().await?;
    let promise = "a takeover keeps when the key was first claimed";
    expect_time(promise, second.created_at, key.start)?;
    key.completes(&second, b"answer").await?;
    let completed = key.claim().after(LAPSE).is_answered(b"answer").await?;
    expect_time(promise, completed.created_at, key.start)
}

/// Up to and including the margin, the lease is alive.
pub async fn a_lease_lapses_only_after_the_clock_skew<St: Store>(key: TestKey<St>) -> Kept {
    key.acquired().await?;
    for later in [LEASE, LEASE + Duration::from_millis(1), LEASE + SKEW] {
        for take_over in [true, false] {
            let mut claim = key.claim().after(later);
            claim.take_over = take_over;
            claim.is_in_progress().await?;
        }
    }
    Ok(())
}

/// It stays an orphan for each such claim, and one that may take over gets it.
pub async fn an_orphan_is_held_for_those_who_may_not_take_over<St: Store>(
    key: TestKey<St>,
) -> Kept {
    key.acquired().await?;
    for later in [LAPSE, RETENTION - SECOND] {
        let stays = key.claim().after(later).without_taking_over();
        stays.is_orphaned().await?;
    }
    key.claim().after(LAPSE).acquires().await.map(drop)
}
