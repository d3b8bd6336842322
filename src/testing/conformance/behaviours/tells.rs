//! What a store tells beside its answers to claims.

use crate::protocol::record::Record;
use crate::store::{Claim, Release, Store};
use crate::testing::conformance::NotKept;
use crate::testing::conformance::key::{
    Kept, RETENTION, SECOND, TestKey, expect_eq, expect_time, is_applied, orphan,
};

/// A look finds no record, then the lease, then the answer.
pub async fn get_shows_what_is_there<St: Store>(key: TestKey<St>) -> Kept {
    let record = key.get_at(key.start).await?;
    expect_eq("a key that nobody claimed has no record", &record, &None)?;
    let lease = key.acquired().await?;
    match key.get_at(key.start).await? {
        Some(Record::InProgress(held)) => {
            let promise = "a record in progress shows its holder";
            expect_eq(promise, &held.holder(), &lease.holder())?;
            let promise = "a record in progress shows its token";
            expect_eq(promise, &held.token, &lease.token)?;
            let promise = "a record in progress shows its attempt";
            expect_eq(promise, &held.attempt, &lease.attempt)?;
            let promise = "a record in progress shows its deadline";
            expect_time(promise, held.deadline, lease.deadline)?;
        }
        other => {
            let promise = "a key that is held has a record in progress";
            return Err(NotKept::broken(promise, "InProgress", &other));
        }
    }
    key.completes(&lease, b"answer").await?;
    let promise = "a completed key has a record with its answer";
    match key.get_at(key.start).await? {
        Some(Record::Completed(completed)) => {
            expect_eq(promise, &&*completed.payload, &&b"answer"[..])
        }
        other => Err(NotKept::broken(promise, "Completed", &other)),
    }
}

/// Neither an answer nor an orphan is shown after its retention.
pub async fn get_hides_what_has_expired<St: Store>(key: TestKey<St>) -> Kept {
    let promise = "a record that has expired is not shown";
    let answered = key.another();
    let lease = answered.acquired().await?;
    answered.completes(&lease, b"answer").await?;
    let after = key.at(RETENTION + 2 * SECOND);
    expect_eq(promise, &answered.get_at(after).await?, &None)?;
    let lease = key.acquired().await?;
    key.releases(&lease, orphan()).await?;
    expect_eq(promise, &key.get_at(after).await?, &None)
}

/// The record may be in progress or completed. The next claim is a first attempt.
pub async fn remove_forgets_a_key<St: Store>(key: TestKey<St>) -> Kept {
    for is_completed in [false, true] {
        let lease = key.acquired().await?;
        if is_completed {
            key.completes(&lease, b"answer").await?;
        }
        key.remove().await?;
        let record = key.get_at(key.start).await?;
        expect_eq("a removed key has no record", &record, &None)?;
    }
    let next = key.claim().for_another_request().acquires().await?;
    expect_eq(
        "a claim on a removed key is a first attempt",
        &next.attempt,
        &1,
    )
}

/// The record may be in progress, completed, or absent.
pub async fn remove_says_whether_there_was_a_record<St: Store>(key: TestKey<St>) -> Kept {
    let promise = "a removal says that there was no record";
    expect_eq(promise, &key.remove().await?, &false)?;
    for is_completed in [false, true] {
        let lease = key.acquired().await?;
        if is_completed {
            key.completes(&lease, b"answer").await?;
        }
        let promise = "a removal says that there was a record";
        expect_eq(promise, &key.remove().await?, &true)?;
        let promise = "a repeated removal says that there was no record";
        expect_eq(promise, &key.remove().await?, &false)?;
    }
    Ok(())
}

/// The attempt may end in any way. A store that cannot see the end gives no waiter.
pub async fn a_waiter_if_there_is_one_sees_the_end<St: Store>(key: TestKey<St>) -> Kept {
    for end in 0..4 {
        let key = key.another();
        let lease = key.acquired().await?;
        let mut waiting = key.claim();
        waiting.wants_waiter = true;
        let waiter = match waiting.made().await? {
            Claim::InProgress { waiter, .. } => waiter,
            other => {
                let promise = "a key that another attempt holds is in progress";
                return Err(NotKept::broken(promise, "InProgress", &other));
            }
        };
        match end {
            0 => key.completes(&lease, b"answer").await?,
            1 => key.releases(&lease, Release::Free).await?,
            2 => is_applied(
                "an orphaning release",
                &key.release(&lease, orphan()).await?,
            )?,
            _ => drop(key.remove().await?),
        }
        if let Some(waiter) = waiter {
            waiter.await;
        }
    }
    Ok(())
}
