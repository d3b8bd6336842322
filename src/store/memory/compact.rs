//! Completed records as they are kept in memory.

use bytes::Bytes;

use crate::protocol::clock::Timestamp;
use crate::protocol::record::{Completed, Held, Identity};

/// A completed record without its extras: a word for them in each would make all of them larger.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Compact {
    pub(super) identity: Identity,
    pub(super) payload: Bytes,
    pub(super) created_at: Timestamp,
    pub(super) expires_at: Timestamp,
}

impl From<Completed> for Compact {
    fn from(completed: Completed) -> Self {
        let Completed {
            identity,
            payload,
            created_at,
            expires_at,
            extras: _,
        } = completed;
        Self {
            identity,
            payload,
            created_at,
            expires_at,
        }
    }
}

impl From<Compact> for Completed {
    fn from(kept: Compact) -> Self {
        Self::new(
            kept.identity,
            kept.payload,
            kept.created_at,
            kept.expires_at,
        )
    }
}

impl From<&Compact> for Held<'_> {
    fn from(kept: &Compact) -> Self {
        Self::Completed {
            identity: kept.identity,
            expires_at: kept.expires_at,
        }
    }
}
