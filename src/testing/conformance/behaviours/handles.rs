//! Records that other handles see, and those that come later.

use std::sync::Arc;

use tokio::sync::Barrier;
use tokio::task::JoinSet;

use super::races::{RACERS, ROUNDS, won};
use crate::store::Store;
use crate::testing::conformance::key::{Kept, TestKey, expect_eq, is_refused, orphan};

/// Leases, orphans and answers are seen by both, whichever of the two wrote them.
pub async fn another_handle_sees_the_same_records<St: Store>(key: TestKey<St>) -> Kept {
    let here = key;
    let there = here.through_another_handle().await?;
    for (one, other) in [(&here, &there), (&there, &here)] {
        let one = one.another();
        let other = other.at_the_key_of(&one);
        let lease = one.acquired().await?;
        other.claim().is_in_progress().await?;
        one.releases(&lease, orphan()).await?;
        let stays = other.claim().without_taking_over();
        stays.is_orphaned().await?;
        let next = other.claim().acquires().await?;
        let fenced = one.complete(&lease, b"late").await?;
        is_refused("a completion after a takeover", &fenced, None)?;
        other.completes(&next, b"answer").await?;
        one.claim().is_answered(b"answer").await?;
    }
    Ok(())
}

/// The claims come from many tasks at the same time, half of them through another handle.
pub async fn of_many_claims_through_two_handles_one_gets_the_lease<St: Store>(
    key: TestKey<St>,
) -> Kept {
    for _ in 0..ROUNDS {
        let here = key.another();
        let there = here.through_another_handle().await?;
        let barrier = Arc::new(Barrier::new(RACERS));
        let mut racers = JoinSet::new();
        for racer in 0..RACERS {
            let (key, barrier) = match racer % 2 {
                0 => (here.clone(), Arc::clone(&barrier)),
                _ => (there.clone(), Arc::clone(&barrier)),
            };
            racers.spawn(async move {
                barrier.wait().await;
                won(&key.claim().made().await?)
            });
        }
        let winners: Vec<_> = racers.join_all().await.into_iter().collect::<Kept<_>>()?;
        let winners = winners.into_iter().filter(|has_won| *has_won).count();
        expect_eq("of many claims one gets the lease", &winners, &1)?;
    }
    Ok(())
}

/// Leases and answers are there when the store is made again.
pub async fn records_survive_their_store<St: Store>(key: TestKey<St>) -> Kept {
    let lease = key.acquired().await?;
    let key = key.reopened().await?;
    key.claim().is_in_progress().await?;
    key.completes(&lease, b"answer").await?;
    let key = key.reopened().await?;
    key.claim().is_answered(b"answer").await.map(drop)
}
