//! What an orphan means: an attempt whose outcome is unknown.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::protocol::clock::Timestamp;
use crate::protocol::fingerprint::Fingerprint;
use crate::protocol::key::IdempotencyKey;
use crate::protocol::record::FencingToken;

/// What becomes of a key whose attempt has an [unknown](crate::End::Unknown) outcome: its process
/// died or stopped past its lease, its handler panicked, the service failed with an error, or the
/// response says nothing of what was done, such as a 500, or a 408 that a timeout within made of
/// the handler.
///
/// After a crash the policy decides as soon as the lease has lapsed and the key is asked for
/// again; after every other end at once.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub enum Orphan<T> {
    /// Run it again. The work is done at least once; twice only if the lost attempt had done it.
    /// The default.
    #[default]
    Retake,
    /// Never run it again: the key stays refused with `outcome-unknown` until its retention
    /// ends, which counts from the end of the attempt, or an operator removes it. The work is done
    /// at most once, as far as it is true that nothing was done where a response
    /// [says so](crate::End::NothingDone).
    Hold,
    /// Ask the business system what became of the lost attempt. Exactly once, as far as it
    /// knows the answer.
    Reconcile(Reconcile<T>),
}

impl<T: 'static> Orphan<T> {
    /// Asks `reconcile` what became of a lost attempt. It is asked by one attempt at a time,
    /// which holds the key's lease meanwhile. It may take as long as
    /// [`reconcile_timeout`](crate::Executor::reconcile_timeout) says; after that, or when it
    /// panics, the outcome counts as [`Reconciled::Unknown`].
    ///
    /// The answer must hold: before the business system says that the work was not done, it has to
    /// see to it that the lost attempt, which may only be slow, does not do it later. It can note
    /// [`Orphaned::token`] when it is asked, and refuse lower fencing tokens from then on.
    ///
    /// An attempt asks at its own end, too, when that left its outcome unknown, as a timeout inside
    /// the layer does. The token is then its own, and is not refused. What is left of such an
    /// attempt must not begin its effects any more: [`Attempt::begin_effects`] fails after its end.
    ///
    /// [`Attempt::begin_effects`]: crate::Attempt::begin_effects
    ///
    /// It should also keep with each effect the
    /// [record key](IdempotencyKey::record_key) that it was made under, and when: a key may be
    /// used again, for something else, once its retention is over, and an effect from before
    /// [`Orphaned::created_at`] is no outcome of this attempt.
    ///
    /// ```
    /// use bytes::Bytes;
    /// use http::Response;
    /// use tower_idempotency::{Orphan, Orphaned, Reconciled, RecordKey, Timestamp};
    ///
    /// async fn charge_under(key: &RecordKey, since: Timestamp) -> Result<Option<String>, ()> {
    ///     // SELECT charge FROM ledger WHERE record_key = $1 AND made_at >= $2
    /// #   let _ = (key, since);
    ///     Ok(None)
    /// }
    ///
    /// let orphan: Orphan<Response<Bytes>> = Orphan::reconcile(|orphaned: Orphaned| async move {
    ///     match charge_under(orphaned.key.record_key(), orphaned.created_at).await {
    ///         Ok(Some(charge)) => Reconciled::Completed(Response::new(Bytes::from(charge))),
    ///         Ok(None) => Reconciled::NotExecuted,
    ///         Err(()) => Reconciled::Unknown,
    ///     }
    /// });
    /// ```
    pub fn reconcile<F, Fut>(reconcile: F) -> Self
    where
        F: Fn(Orphaned) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Reconciled<T>> + Send + 'static,
    {
        Self::Reconcile(Reconcile(Arc::new(move |orphaned| {
            Box::pin(reconcile(orphaned))
        })))
    }

    /// The same policy, with the answers that it finds turned into another type.
    pub(crate) fn map<U: 'static>(self, turn: fn(T) -> U) -> Orphan<U> {
        match self {
            Self::Retake => Orphan::Retake,
            Self::Hold => Orphan::Hold,
            Self::Reconcile(reconcile) => Orphan::reconcile(move |orphaned| {
                let answer = reconcile.ask(orphaned);
                async move {
                    match answer.await {
                        Reconciled::Completed(value) => Reconciled::Completed(turn(value)),
                        Reconciled::NotExecuted => Reconciled::NotExecuted,
                        Reconciled::Unknown => Reconciled::Unknown,
                    }
                }
            }),
        }
    }
}

/// Asks the business system; see [`Orphan::reconcile`].
pub struct Reconcile<T>(Arc<Ask<T>>);

type Ask<T> = dyn Fn(Orphaned) -> Asked<T> + Send + Sync;
type Asked<T> = Pin<Box<dyn Future<Output = Reconciled<T>> + Send>>;

impl<T> Reconcile<T> {
    pub(crate) fn ask(&self, orphaned: Orphaned) -> Asked<T> {
        (self.0)(orphaned)
    }
}

impl<T> Clone for Reconcile<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> fmt::Debug for Reconcile<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reconcile").finish_non_exhaustive()
    }
}

/// The attempt whose outcome is asked for.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Orphaned {
    /// Its key.
    pub key: IdempotencyKey,
    /// The fingerprint of its request.
    pub fingerprint: Fingerprint,
    /// The fencing token of the attempt that asks. The lost one's was lower, unless it is the
    /// one that asks, at its own end.
    pub token: FencingToken,
    /// When the key was first claimed, since it was last forgotten: what was done before belongs
    /// to an earlier use of the key.
    pub created_at: Timestamp,
}

/// What became of a lost attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reconciled<T> {
    /// It carried out the work, and this is the answer to it: the key completes with it.
    Completed(T),
    /// It did not carry out the work, and will not: the work may run.
    NotExecuted,
    /// Nobody can tell, for now: the key stays refused with `outcome-unknown`, and the next
    /// request with it asks again.
    Unknown,
}
