//! Who ends an attempt, and what comes after its end.

use crate::protocol::record::Lease;
use crate::store::{Fenced, Release, Store};
use crate::testing::conformance::key::{
    Kept, LAPSE, TestKey, completion, expect, is_applied, is_lost, is_refused, orphan, succeeds,
};

/// A completion whose answer was lost is made again, and is applied.
pub async fn a_completion_repeated_by_its_owner_is_applied<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    for _ in 0..2 {
        key.completes(&lease, b"answer").await?;
    }
    key.claim().is_answered(b"answer").await.map(drop)
}

/// A second completion with another answer is refused, and told the first.
pub async fn an_owner_completes_once<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    key.completes(&lease, b"answer").await?;
    let second = key.complete(&lease, b"another").await?;
    let what = "a second completion with another answer";
    is_refused(what, &second, Some(b"answer"))?;
    key.claim().is_answered(b"answer").await.map(drop)
}

/// A late release of either kind leaves the answer as it is.
pub async fn a_release_after_completion_removes_nothing<St: Store>(key: TestKey<St>) -> Kept {
    for end in [Release::Free, orphan()] {
        let key = key.another();
        let lease = key.acquired().await?;
        key.completes(&lease, b"answer").await?;
        let released = key.release(&lease, end).await?;
        is_lost("a release after the own completion", &released)?;
        key.claim().is_answered(b"answer").await?;
    }
    Ok(())
}

/// A late renewal leaves the answer as it is.
pub async fn a_renewal_after_completion_does_not_reopen_the_key<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let lease = key.acquired().await?;
    key.completes(&lease, b"answer").await?;
    let renewed = key.renew_at(&lease, key.start).await?;
    is_lost("a renewal after the own completion", &renewed)?;
    key.claim().is_answered(b"answer").await.map(drop)
}

/// The attempt was slow, but nobody took its place.
pub async fn a_lapsed_lease_that_nobody_took_can_be_completed<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let (answer, now) = (completion(b"answer"), key.at(LAPSE));
    let fenced = key.complete_at(lease.holder(), &answer, now).await;
    let fenced = succeeds("a completion", fenced)?;
    is_applied("the completion of a lapsed lease that nobody took", &fenced)?;
    let retry = key.claim().after(LAPSE);
    retry.is_answered(b"answer").await.map(drop)
}

/// Whoever was refused the key cannot answer for it.
pub async fn only_the_owner_completes<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let stranger = stranger_to(&key, &lease);
    let fenced = key.complete(&stranger, b"stolen").await?;
    is_refused("a completion by a stranger", &fenced, None)?;
    key.claim().is_in_progress().await?;
    key.completes(&lease, b"answer").await
}

/// Whoever was refused the key cannot give it away.
pub async fn only_the_owner_releases<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let stranger = stranger_to(&key, &lease);
    for end in [Release::Free, orphan()] {
        let fenced = key.release(&stranger, end).await?;
        is_refused("a release by a stranger", &fenced, None)?;
        key.claim().is_in_progress().await?;
    }
    key.completes(&lease, b"answer").await
}

/// Whoever was refused the key cannot keep it held.
pub async fn only_the_owner_renews<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let stranger = stranger_to(&key, &lease);
    let fenced = key.renew_at(&stranger, key.at(LAPSE)).await?;
    is_refused("a renewal by a stranger", &fenced, None)?;
    key.claim().after(LAPSE).acquires().await.map(drop)
}

/// This holds while the successor runs, and when it has completed. Then the refused completion is
/// told the successor's answer.
pub async fn a_completion_after_a_takeover_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    let late = key.acquired().await?;
    let successor = key.claim().after(LAPSE).acquires().await?;
    let what = "a completion after a takeover";
    let fenced = key.complete(&late, b"late").await?;
    is_refused(what, &fenced, None)?;
    key.claim().after(LAPSE).is_in_progress().await?;
    key.completes(&successor, b"answer").await?;
    let fenced = key.complete(&late, b"late").await?;
    is_refused(what, &fenced, Some(b"answer"))?;
    let retry = key.claim().after(LAPSE);
    retry.is_answered(b"answer").await.map(drop)
}

/// This holds while the successor runs, and when it has completed.
pub async fn a_release_after_a_takeover_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    for end in [Release::Free, orphan()] {
        let key = key.another();
        let late = key.acquired().await?;
        let successor = key.claim().after(LAPSE).acquires().await?;
        let what = "a release after a takeover";
        is_refused(what, &key.release(&late, end).await?, None)?;
        key.claim().after(LAPSE).is_in_progress().await?;
        key.completes(&successor, b"answer").await?;
        is_lost(what, &key.release(&late, end).await?)?;
        key.claim().after(LAPSE).is_answered(b"answer").await?;
    }
    Ok(())
}

/// The answer is not recorded, neither on the free key nor for the attempt that claims it next.
pub async fn a_completion_after_a_release_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    let late = key.acquired().await?;
    key.releases(&late, Release::Free).await?;
    let what = "a completion after the own release";
    is_refused(what, &key.complete(&late, b"late").await?, None)?;
    let next = key.claim().acquires().await?;
    is_refused(what, &key.complete(&late, b"late").await?, None)?;
    key.completes(&next, b"answer").await
}

/// The key stays free, and an attempt that has claimed it since keeps its lease.
pub async fn a_repeated_release_changes_nothing<St: Store>(key: TestKey<St>) -> Kept {
    let late = key.acquired().await?;
    key.releases(&late, Release::Free).await?;
    let again = key.release(&late, Release::Free).await?;
    // A store may see that it repeats, or see that the lease is gone.
    expect(
        matches!(again, Fenced::Applied | Fenced::LeaseLost(None)),
        "a repeated release finds its key free",
        "Applied or LeaseLost(None)",
        &again,
    )?;
    let next = key.claim().acquires().await?;
    let again = key.release(&late, Release::Free).await?;
    is_refused("a release of a key that was claimed since", &again, None)?;
    key.claim().is_in_progress().await?;
    key.completes(&next, b"answer").await
}

/// The attempt has lost its lease, and the key can be claimed.
pub async fn a_completion_after_a_removal_is_refused<St: Store>(key: TestKey<St>) -> Kept {
    let late = key.acquired().await?;
    key.remove().await?;
    let what = "a completion after the removal of its key";
    is_refused(what, &key.complete(&late, b"late").await?, None)?;
    key.acquired().await.map(drop)
}

fn stranger_to<St: Store>(key: &TestKey<St>, lease: &Lease) -> Lease {
    Lease {
        owner: key.claim().owner,
        ..lease.clone()
    }
}
