//! Calls at the same time, from many tasks.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Barrier;
use tokio::task::{JoinHandle, JoinSet};

use crate::protocol::record::Lease;
use crate::store::{Claim, Fenced, Release, Store};
use crate::testing::conformance::NotKept;
use crate::testing::conformance::key::{
    Kept, LAPSE, RETENTION, TestKey, completion, expect, expect_eq, is_refused, succeeds,
};

/// How many claims race for a key, and for how many keys.
pub(super) const RACERS: usize = 16;
const CLAIM_ROUNDS: usize = 20;
/// How often every other race is run.
pub(super) const ROUNDS: usize = 10;

/// Every other claim finds the key in progress.
pub async fn of_many_claims_one_gets_the_lease<St: Store>(key: TestKey<St>) -> Kept {
    for _ in 0..CLAIM_ROUNDS {
        one_claim_wins(&key.another(), Duration::ZERO).await?;
    }
    Ok(())
}

/// Every other claim finds the key in progress.
pub async fn of_many_claims_one_takes_an_orphan_over<St: Store>(key: TestKey<St>) -> Kept {
    for _ in 0..CLAIM_ROUNDS {
        let key = key.another();
        key.acquired().await?;
        one_claim_wins(&key, LAPSE).await?;
    }
    Ok(())
}

/// The claims come when the answer of the key expires. Every other one finds the key in progress.
pub async fn of_many_claims_one_gets_a_key_that_expires<St: Store>(key: TestKey<St>) -> Kept {
    for _ in 0..ROUNDS {
        let key = key.another();
        let lease = key.acquired().await?;
        key.completes(&lease, b"answer").await?;
        // A store may keep an answer until the whole second that comes next.
        let expiry = RETENTION + Duration::from_secs(1);
        one_claim_wins(&key, expiry).await?;
    }
    Ok(())
}

async fn one_claim_wins<St: Store>(key: &TestKey<St>, later: Duration) -> Kept {
    let barrier = Arc::new(Barrier::new(RACERS));
    let mut racers = JoinSet::new();
    for _ in 0..RACERS {
        let (key, barrier) = (key.clone(), Arc::clone(&barrier));
        racers.spawn(async move {
            barrier.wait().await;
            won(&key.claim().after(later).made().await?)
        });
    }
    let claims = racers.join_all().await.into_iter();
    let claims = claims.collect::<Kept<Vec<_>>>()?;
    let winners = claims.into_iter().filter(|has_won| *has_won).count();
    expect_eq("of many claims one gets the lease", &winners, &1)
}

/// Says whether a claim in a race got the lease. It must have found it in progress if not.
pub(super) fn won(claim: &Claim) -> Kept<bool> {
    match claim {
        Claim::Acquired(_) => Ok(true),
        Claim::InProgress { .. } => Ok(false),
        other => {
            let promise = "a claim that loses a race finds the key in progress";
            Err(NotKept::broken(promise, "InProgress", other))
        }
    }
}

/// The owner completes as its lapsed lease is taken over. Either the answer is recorded and the claim
/// gets it, or the claim gets the lease and the completion is refused.
pub async fn of_completion_and_takeover_one_wins<St: Store>(key: TestKey<St>) -> Kept {
    for round in 0..ROUNDS {
        let key = key.another();
        let lease = key.acquired().await?;
        one_of_completion_and_claim(&key, &lease, LAPSE, round).await?;
    }
    Ok(())
}

/// The record has expired, so the claim is a first attempt. Either the answer is recorded and the
/// claim gets it, or the claim gets the lease and the completion is refused.
pub async fn of_completion_and_claim_at_expiry_one_wins<St: Store>(key: TestKey<St>) -> Kept {
    for round in 0..ROUNDS {
        let key = key.another();
        let lease = key.acquired_for_a_second().await?;
        one_of_completion_and_claim(&key, &lease, LAPSE, round).await?;
    }
    Ok(())
}

async fn one_of_completion_and_claim<St: Store>(
    key: &TestKey<St>,
    lease: &Lease,
    later: Duration,
    round: usize,
) -> Kept {
    let (holder, now) = (lease.holder(), key.at(later));
    let (owners, claimers) = (key.clone(), key.clone());
    let (completed, claimed) = at_once(
        round,
        async move {
            owners
                .complete_at(holder, &completion(b"answer"), now)
                .await
        },
        async move { claimers.claim().after(later).made().await },
    )
    .await?;
    let completed = succeeds("a completion", completed)?;
    let retry = key.claim().after(later);
    match (&completed, claimed?) {
        (Fenced::Applied, Claim::Completed(given)) => {
            let promise = "the claim that loses gets the answer";
            expect_eq(promise, &&**given.payload(), &&b"answer"[..])?;
            retry.is_answered(b"answer").await.map(drop)
        }
        (Fenced::LeaseLost(_), Claim::Acquired(successor)) => {
            let successor = successor.by_clock(now);
            is_refused("the completion that loses", &completed, None)?;
            retry.is_in_progress().await?;
            key.completes(&successor, b"second").await?;
            retry.is_answered(b"second").await.map(drop)
        }
        got => Err(NotKept::broken(
            "of a completion and a claim on its lapsed lease one wins, and the other hears so",
            "(Applied, Completed) or (LeaseLost, Acquired)",
            &got,
        )),
    }
}

/// The owner renews as its lapsed lease is taken over. One of the two has the lease.
pub async fn of_renewal_and_takeover_one_wins<St: Store>(key: TestKey<St>) -> Kept {
    for round in 0..ROUNDS {
        let key = key.another();
        let lease = key.acquired().await?;
        let (owners, claimers) = (key.clone(), key.clone());
        let first = lease.clone();
        let (renewed, claimed) = at_once(
            round,
            async move { owners.renew_at(&first, owners.at(LAPSE)).await },
            async move { claimers.claim().after(LAPSE).made().await },
        )
        .await?;
        match (renewed?, claimed?) {
            (Fenced::Applied, Claim::InProgress { .. }) => {
                key.completes(&lease, b"answer").await?;
            }
            (Fenced::LeaseLost(None), Claim::Acquired(successor)) => {
                let successor = successor.by_clock(key.at(LAPSE));
                key.completes(&successor, b"answer").await?;
            }
            got => {
                let promise = "of a renewal and a takeover one wins, and the other hears so";
                let expected = "(Applied, InProgress) or (LeaseLost, Acquired)";
                return Err(NotKept::broken(promise, expected, &got));
            }
        }
    }
    Ok(())
}

/// The owner releases as its lapsed lease is taken over. The claim gets the lease and keeps it.
pub async fn a_release_never_frees_a_successors_lease<St: Store>(key: TestKey<St>) -> Kept {
    for round in 0..ROUNDS {
        let key = key.another();
        let lease = key.acquired().await?;
        let (owners, claimers) = (key.clone(), key.clone());
        let (released, claimed) = at_once(
            round,
            async move {
                let now = owners.at(LAPSE);
                owners.release_at(&lease, Release::Free, now).await
            },
            async move { claimers.claim().after(LAPSE).acquires().await },
        )
        .await?;
        released?;
        let successor = claimed?;
        key.claim().after(LAPSE).is_in_progress().await?;
        key.completes(&successor, b"answer").await?;
    }
    Ok(())
}

/// Their answers differ. One is recorded, and the other completions are told which.
pub async fn of_many_completions_by_one_owner_one_is_recorded<St: Store>(key: TestKey<St>) -> Kept {
    const ANSWERS: [&[u8]; 4] = [b"first", b"second", b"third", b"fourth"];
    for _ in 0..ROUNDS {
        let key = key.another();
        let holder = key.acquired().await?.holder();
        let barrier = Arc::new(Barrier::new(ANSWERS.len()));
        let mut racers = JoinSet::new();
        for answer in ANSWERS {
            let (key, barrier) = (key.clone(), Arc::clone(&barrier));
            racers.spawn(async move {
                barrier.wait().await;
                let completion = completion(answer);
                let fenced = key.complete_at(holder, &completion, key.start).await;
                Ok((answer, succeeds("a completion", fenced)?))
            });
        }
        let fenced = racers.join_all().await.into_iter();
        let fenced = fenced.collect::<Kept<Vec<_>>>()?;
        let mut applied = fenced
            .iter()
            .filter(|(_, fenced)| *fenced == Fenced::Applied);
        let (Some((recorded, _)), None) = (applied.next(), applied.next()) else {
            let promise = "of many completions by one owner one is applied";
            return Err(NotKept::broken(promise, "one Applied", &fenced));
        };
        for (answer, fenced) in &fenced {
            if answer != recorded {
                let what = "a completion that loses a race";
                is_refused(what, fenced, Some(recorded))?;
            }
        }
        key.claim().is_answered(recorded).await?;
    }
    Ok(())
}

/// After a claim that got the answer, no claim finds the key in progress.
pub async fn an_answer_once_given_is_given_to_all<St: Store>(key: TestKey<St>) -> Kept {
    for round in 0..ROUNDS {
        let key = key.another();
        let holder = key.acquired().await?.holder();
        let (owners, claimers) = (key.clone(), key.clone());
        let (completed, claims) = at_once(
            round,
            async move {
                let answer = completion(b"answer");
                owners.complete_at(holder, &answer, owners.start).await
            },
            async move {
                let mut were_answered = Vec::new();
                for _ in 0..4 {
                    let claim = claimers.claim().made().await?;
                    were_answered.push(matches!(claim, Claim::Completed(_)));
                    tokio::task::yield_now().await;
                }
                Kept::Ok(were_answered)
            },
        )
        .await?;
        succeeds("a completion", completed)?;
        let were_answered = claims?;
        expect(
            were_answered.is_sorted(),
            "a key that has given its answer gives it from then on",
            "no claim without an answer after one with it",
            &were_answered,
        )?;
        key.claim().is_answered(b"answer").await?;
    }
    Ok(())
}

/// Runs two futures at the same time, on tasks of their own. Which is begun first alternates.
async fn at_once<A: Send + 'static, B: Send + 'static>(
    round: usize,
    first: impl Future<Output = A> + Send + 'static,
    second: impl Future<Output = B> + Send + 'static,
) -> Kept<(A, B)> {
    let barrier = Arc::new(Barrier::new(2));
    let first = behind(Arc::clone(&barrier), first);
    let second = behind(barrier, second);
    let (first, second) = match round % 2 {
        0 => {
            let first = tokio::spawn(first);
            (first, tokio::spawn(second))
        }
        _ => {
            let second = tokio::spawn(second);
            (tokio::spawn(first), second)
        }
    };
    Ok((joined(first).await?, joined(second).await?))
}

async fn behind<T>(barrier: Arc<Barrier>, call: impl Future<Output = T>) -> T {
    barrier.wait().await;
    call.await
}

async fn joined<T>(task: JoinHandle<T>) -> Kept<T> {
    let output = task.await;
    output.map_err(|error| NotKept::broken("no call panics", "no panic", &error))
}
