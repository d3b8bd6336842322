//! Calls whose futures are dropped half-way, because nobody waits for them any more.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;

use crate::store::{Completion, Store};
use crate::testing::conformance::key::{Kept, TestKey, completion, is_applied, payload, succeeds};

/// How far a call comes before it is dropped, in polls.
const POLLS: [usize; 5] = [1, 2, 3, 5, 8];

/// The claim was applied or not. Its owner gets the lease when it claims again.
pub async fn a_claim_that_was_dropped_half_way_can_be_made_again<St: Store>(
    key: TestKey<St>,
) -> Kept {
    for polls in POLLS {
        let key = key.another();
        let claim = key.claim();
        drop_after(polls, claim.made()).await;
        let lease = claim.acquires().await?;
        key.claim().is_in_progress().await?;
        key.completes(&lease, b"answer").await?;
    }
    Ok(())
}

/// The completion was applied or not. When it is made again, the whole answer is recorded.
pub async fn a_completion_that_was_dropped_half_way_can_be_made_again<St: Store>(
    key: TestKey<St>,
) -> Kept {
    let size = key.suite().capabilities.largest_answer.min(300_000);
    for polls in POLLS {
        let key = key.another();
        let holder = key.acquired().await?.holder();
        let answer = Completion {
            payload: payload(size),
            ..completion(b"")
        };
        let complete = || key.complete_at(holder, &answer, key.start);
        drop_after(polls, complete()).await;
        let again = succeeds("a completion", complete().await)?;
        is_applied("a completion that is made again", &again)?;
        key.claim().is_answered(&answer.payload).await?;
    }
    Ok(())
}

/// Drops a call that has not ended after so many polls.
async fn drop_after(polls: usize, call: impl Future) {
    let mut call = pin!(call);
    let mut left = polls;
    poll_fn(|context| {
        left -= 1;
        match call.as_mut().poll(context) {
            Poll::Pending if left > 0 => Poll::Pending,
            _ => Poll::Ready(()),
        }
    })
    .await;
}
