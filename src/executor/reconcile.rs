//! Asking the business system what became of an attempt.

use tracing::{Instrument, Span, warn};

use super::Executor;
use super::end::Recordable;
use super::orphan::{Orphan, Orphaned, Reconciled};
use crate::protocol::attempt::Said;
use crate::protocol::key::IdempotencyKey;
use crate::protocol::record::Lease;
use crate::runtime::{self, timeout};
use crate::store::Store;

/// What the business system says of an attempt.
pub(super) struct Asked {
    pub(super) said: Said,
    /// Its answer, if it was carried out.
    pub(super) answer: Option<Recordable>,
}

impl Asked {
    const UNKNOWN: Self = Self {
        said: Said::Unknown,
        answer: None,
    };
}

impl<St: Store> Executor<St> {
    /// Asks what became of a lost attempt, under the lease. No answer in time, and a panic, count
    /// as not knowing.
    pub(super) async fn ask(&self, key: &IdempotencyKey, lease: &Lease) -> Asked {
        let settings = &self.shared.settings;
        let Orphan::Reconcile(reconcile) = &settings.orphan else {
            return Asked::UNKNOWN;
        };
        let orphaned = Orphaned {
            key: key.clone(),
            fingerprint: lease.identity.request,
            token: lease.token,
            created_at: lease.created_at,
        };
        // In a task of its own, which keeps its panic to itself.
        let reconcile = reconcile.clone();
        let asking = async move { reconcile.ask(orphaned).await };
        let asked = runtime::spawn(asking.instrument(Span::current()));
        let abort = asked.abort_handle();
        match timeout(settings.reconcile_timeout, asked).await {
            Ok(Ok(Reconciled::Completed(answer))) => {
                let answer = Recordable::from(settings.sieve.sift(answer));
                Asked {
                    said: Said::Completed {
                        is_stored: answer.is_stored,
                    },
                    answer: Some(answer),
                }
            }
            Ok(Ok(Reconciled::NotExecuted)) => Asked {
                said: Said::NotExecuted,
                answer: None,
            },
            Ok(Ok(Reconciled::Unknown)) => Asked::UNKNOWN,
            Ok(Err(_)) => {
                warn!(record = %lease.key, "asking for the outcome of a run panicked");
                Asked::UNKNOWN
            }
            Err(_) => {
                abort.abort();
                warn!(record = %lease.key, "nobody said in time what became of a run");
                Asked::UNKNOWN
            }
        }
    }
}
