//! What becomes of an answer that was recorded.

use bytes::Bytes;

use crate::protocol::record::Lease;
use crate::store::{Completion, Fenced, Store};
use crate::testing::conformance::NotKept;
use crate::testing::conformance::key::{
    Kept, LAPSE, RETENTION, SECOND, TestKey, expect, expect_eq, expect_time, is_applied, payload,
    succeeds,
};

/// Every claim gets it, with the identity and the times of its record, whether it may take over or
/// not.
pub async fn a_completed_key_gives_its_answer<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    key.completes(&lease, b"answer").await?;
    for take_over in [true, false] {
        let mut claim = key.claim().after(LAPSE);
        claim.take_over = take_over;
        let completed = claim.is_answered(b"answer").await?;
        let promise = "an answer has the identity of its request";
        expect_eq(promise, &completed.identity, &lease.identity)?;
        let promise = "an answer tells when its key was first claimed";
        expect_time(promise, completed.created_at, key.start)?;
        // A store may keep whole seconds, and then must not forget early.
        let expires_at = key.at(RETENTION);
        expect(
            completed.expires_at.as_millis() >= expires_at.as_millis(),
            "an answer is kept for its retention",
            &format!("{expires_at:?} or later"),
            &completed.expires_at,
        )?;
    }
    Ok(())
}

/// The sizes go from 0 to 300,000 bytes, across the limits of 8-bit and 16-bit lengths.
pub async fn an_answer_of_any_size_and_bytes_comes_back<St: Store>(key: TestKey<St>) -> Kept {
    let sizes = [0, 1, 255, 256, 4_096, 65_535, 65_536, 70_000, 300_000];
    answers_come_back(&key, &sizes).await
}

/// The sizes go from 350,001 bytes to more than 1 MiB, across common limits of items and packets.
pub async fn an_answer_of_a_mebibyte_comes_back<St: Store>(key: TestKey<St>) -> Kept {
    let sizes = [350_001, 400 << 10, (1 << 20) - 1, (1 << 20) + 1];
    answers_come_back(&key, &sizes).await
}

async fn answers_come_back<St: Store>(key: &TestKey<St>, sizes: &[usize]) -> Kept {
    let largest = key.suite().capabilities.largest_answer;
    let mut were_kept = false;
    for size in sizes.iter().copied().filter(|size| *size <= largest) {
        let key = key.another();
        let lease = key.acquired().await?;
        let answer = payload(size);
        let fenced = complete(&key, &lease, answer.clone()).await?;
        is_applied("the completion of an owner", &fenced)?;
        key.claim().is_answered(&answer).await?;
        were_kept = true;
    }
    match were_kept {
        true => Ok(()),
        false => Err(NotKept::Skipped {
            needs: "room for larger answers",
        }),
    }
}

/// The error says that nothing was written, the attempt still owns the key, and an answer that is
/// small enough completes it.
pub async fn an_answer_that_is_too_large_is_refused_and_changes_nothing<St: Store>(
    key: TestKey<St>,
) -> Kept {
    const LARGEST_TRIED: usize = 64 << 20;
    let largest = key.suite().capabilities.largest_answer;
    if largest >= LARGEST_TRIED {
        return Err(NotKept::Skipped {
            needs: "a largest answer of less than 64 MiB",
        });
    }
    let lease = key.acquired().await?;
    let completion = Completion::new(payload(largest + 1), RETENTION);
    let holder = lease.holder();
    match key.complete_at(holder, &completion, key.start).await {
        Err(error) => expect(
            !error.may_have_been_applied(),
            "an error that is certain says that nothing was applied",
            "an error that was not applied",
            &error,
        )?,
        Ok(fenced) => {
            let promise = "an answer that is too large is refused";
            return Err(NotKept::broken(promise, "an error", &fenced));
        }
    }
    key.claim().is_in_progress().await?;
    key.completes(&lease, b"small").await?;
    key.claim().is_answered(b"small").await.map(drop)
}

/// The next claim is a first attempt again.
pub async fn an_answer_is_forgotten_when_it_expires<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    key.completes(&lease, b"answer").await?;
    let just_before = key.claim().after(RETENTION - SECOND);
    just_before.is_answered(b"answer").await?;
    let after = RETENTION + SECOND;
    let next = key.claim().for_another_request().after(after);
    let lease = next.acquires().await?;
    let promise = "a claim on a key that expired is a first attempt";
    expect_eq(promise, &lease.attempt, &1)?;
    let promise = "a key that expired is created anew";
    expect_time(promise, lease.created_at, next.now)?;
    key.completes(&lease, b"second").await?;
    next.is_answered(b"second").await.map(drop)
}

async fn complete<St: Store>(key: &TestKey<St>, lease: &Lease, answer: Bytes) -> Kept<Fenced> {
    let completion = Completion::new(answer, RETENTION);
    let fenced = key.complete_at(lease.holder(), &completion, key.start);
    succeeds("a completion of a size that the store keeps", fenced.await)
}
