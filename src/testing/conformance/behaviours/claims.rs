//! What a claim on a key gets, and who may have it.

use std::time::Duration;

use crate::store::{Claim, Release, Store};
use crate::testing::conformance::NotKept;
use crate::testing::conformance::key::{
    Kept, LAPSE, LEASE, RETENTION, SECOND, TestKey, expect, expect_eq, expect_time, identity,
};

/// The lease names its claim, is the first attempt, and lasts as long as was asked for.
pub async fn a_claim_gets_the_lease_it_asked_for<St: Store>(key: TestKey<St>) -> Kept {
    let claim = key.claim();
    let lease = claim.acquires().await?;
    expect_eq("a lease names its key", &lease.key, key.record_key())?;
    expect_eq(
        "a lease has the identity of its claim",
        &lease.identity,
        &claim.identity,
    )?;
    expect_eq(
        "a lease has the owner of its claim",
        &lease.owner,
        &claim.owner,
    )?;
    expect_eq("the first attempt is number 1", &lease.attempt, &1)?;
    expect_eq(
        "a first attempt knows of no status",
        &lease.first_status,
        &None,
    )?;
    expect_time(
        "a key is created by its first claim",
        lease.created_at,
        key.start,
    )?;
    expect_time(
        "an attempt starts with its claim",
        lease.started_at,
        key.start,
    )?;
    expect_time(
        "a lease lasts as long as was asked for",
        lease.deadline,
        key.at(LEASE),
    )
}

/// A claim whose answer was lost can be made again.
pub async fn a_claim_repeated_by_its_owner_gets_the_same_lease<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let claim = key.claim();
    let first = claim.acquires().await?;
    let second = claim.after(SECOND).acquires().await?;
    let promise = "a repeated claim gets the token of the first";
    expect_eq(promise, &second.token, &first.token)?;
    let promise = "a repeated claim is the same attempt";
    expect_eq(promise, &second.attempt, &first.attempt)?;
    key.completes(&second, b"answer").await
}

/// Others see since when the attempt runs, and how long its lease still lasts.
pub async fn a_key_that_is_held_is_in_progress_for_others<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let millis = |duration: Duration| duration.as_millis();
    match key.claim().after(5 * SECOND).made().await? {
        Claim::InProgress { lease: seen, .. } => {
            expect_eq("others see the holder", &seen.holder(), &lease.holder())?;
            let promise = "others see how long the attempt has run";
            expect_eq(promise, &millis(seen.running_for()), &5_000)?;
            let promise = "others see how old the key is";
            expect_eq(promise, &millis(seen.age()), &5_000)?;
            let promise = "others see how long the lease still lasts";
            expect_eq(promise, &millis(seen.remaining()), &25_000)
        }
        other => Err(NotKept::broken(
            "a key that another attempt holds is in progress",
            "InProgress",
            &other,
        )),
    }
}

/// The state of the record makes no difference.
pub async fn another_request_with_the_key_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let other = || key.claim().for_another_request();
    other().is_reused().await?;
    other().after(LAPSE).is_reused().await?;
    let stays = other().without_taking_over();
    stays.after(LAPSE).is_reused().await?;
    key.completes(&lease, b"answer").await?;
    other().is_reused().await
}

/// The state of the record makes no difference.
pub async fn another_caller_with_the_key_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let other = || key.claim().by_another_caller();
    other().is_another_callers().await?;
    other().after(LAPSE).is_another_callers().await?;
    key.completes(&lease, b"answer").await?;
    other().is_another_callers().await
}

/// Another caller does not learn whether its request is the same.
pub async fn callers_are_compared_before_requests<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let other = || key.claim().by_another_caller().for_another_request();
    other().is_another_callers().await?;
    other().after(LAPSE).is_another_callers().await?;
    key.completes(&lease, b"answer").await?;
    other().is_another_callers().await
}

/// While its lease is alive it is in progress; after that the claim is told the recipe of the record.
pub async fn a_record_of_an_unknown_recipe_is_in_progress_or_not_compared<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let lease = key.acquired().await?;
    let other = || key.claim().by_another_recipe();
    other().is_in_progress().await?;
    let recipe = lease.identity.recipe;
    other().after(LAPSE).is_not_compared(recipe).await?;
    key.completes(&lease, b"answer").await?;
    other().is_not_compared(recipe).await
}

/// This holds while the record is in progress, when it is an orphan, and when it is completed.
pub async fn a_record_is_compared_by_a_recipe_that_is_accepted<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let lease = key.acquired().await?;
    let (same, other) = ([lease.identity], [identity(b"me", "amount=1300")]);
    let mut accepting = key.claim().by_another_recipe();
    accepting.accepted = &same;
    let mut reusing = key.claim().by_another_recipe();
    reusing.accepted = &other;
    accepting.is_in_progress().await?;
    reusing.is_reused().await?;
    let accepting = accepting.after(LAPSE);
    let next = accepting.acquires().await?;
    let promise = "a lease that was taken over has the identity of its claim";
    expect_eq(promise, &next.identity, &accepting.identity)?;
    key.completes(&next, b"answer").await?;
    key.claim()
        .by_another_recipe()
        .is_answered(b"answer")
        .await?;
    let accepted = [next.identity];
    let mut by_the_first = key.claim();
    by_the_first.accepted = &accepted;
    let completed = by_the_first.is_answered(b"answer").await?;
    let promise = "an answer has the identity that it was completed with";
    expect_eq(promise, &completed.identity, &next.identity)
}

/// Any request may claim it, and gets a first attempt.
pub async fn a_released_key_can_be_claimed<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    key.releases(&lease, Release::Free).await?;
    let record = key.get_at(key.start).await?;
    expect_eq("a released key has no record", &record, &None)?;
    let next = key.claim().for_another_request().acquires().await?;
    let promise = "a claim on a released key is a first attempt";
    expect_eq(promise, &next.attempt, &1)
}

/// A release, an orphaning release and an expiry in between do not set them back.
pub async fn tokens_grow_over_the_lives_of_a_record<St: Store>(key: TestKey<St>) -> Kept {
    let first = key.acquired().await?;
    key.releases(&first, Release::Free).await?;
    let later = Duration::from_millis(1);
    let second = key.claim().after(later).acquires().await?;
    key.completes(&second, b"answer").await?;
    let expired = RETENTION + SECOND;
    let third = key.claim().after(expired).acquires().await?;
    let tokens = [first.token, second.token, third.token];
    expect(
        tokens.is_sorted_by(|before, after| before < after),
        "each attempt gets a higher token than the one before",
        "tokens that grow",
        &tokens,
    )
}
