//! What a store tells of its records: durations, since its clock may be another than its caller's.

use std::time::Duration;

use bytes::Bytes;

use super::{Completed, Holder, Identity, Lease, Owner, Record, has_lapsed};
use crate::protocol::clock::Timestamp;
use crate::protocol::key::RecordKey;

/// What a store holds, as it was at one moment of the clock that the store decides by.
///
/// Its times mean nothing by another clock. They come out as durations from that moment, or, by
/// `by_clock`, as times of another clock that are the same durations away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<T> {
    what: T,
    at: Timestamp,
}

impl<T> Seen<T> {
    fn moved(&self, time: Timestamp, now: Timestamp) -> Timestamp {
        match time >= self.at {
            true => now.plus(time.since(self.at)),
            false => now.minus(self.at.since(time)),
        }
    }
}

impl Lease {
    /// What is told of it when the store's clock says `now`.
    pub const fn seen_at(self, now: Timestamp) -> Seen<Self> {
        Seen {
            what: self,
            at: now,
        }
    }
}

impl Completed {
    /// What is told of it when the store's clock says `now`.
    pub const fn seen_at(self, now: Timestamp) -> Seen<Self> {
        Seen {
            what: self,
            at: now,
        }
    }
}

impl Record {
    /// What is told of it when the store's clock says `now`: nothing once it has expired. A record
    /// in progress has not expired as long as its lease has not lapsed.
    pub fn seen_at(self, now: Timestamp) -> Option<Seen<Self>> {
        let has_expired = match &self {
            Self::InProgress(lease) => {
                has_lapsed(lease, now, Duration::ZERO) && lease.expires_at <= now
            }
            Self::Completed(completed) => completed.expires_at <= now,
        };
        (!has_expired).then_some(Seen {
            what: self,
            at: now,
        })
    }
}

impl Seen<Lease> {
    /// Returns who holds it.
    pub const fn holder(&self) -> Holder {
        self.what.holder()
    }

    /// Whether this attempt holds this key for this request.
    pub(crate) fn is_held_by(&self, key: &RecordKey, owner: Owner, identity: &Identity) -> bool {
        let lease = &self.what;
        lease.owner == owner && lease.key == *key && lease.identity == *identity
    }

    /// How long it still lasts if it is not renewed; zero when it has lapsed.
    pub fn remaining(&self) -> Duration {
        self.what.deadline.since(self.at)
    }

    /// How long ago the key was first claimed.
    pub fn age(&self) -> Duration {
        self.at.since(self.what.created_at)
    }

    /// How long ago this attempt claimed the key.
    pub fn running_for(&self) -> Duration {
        self.at.since(self.what.started_at)
    }

    /// Returns the lease by a clock that shows `now` at the moment when this was seen. A claimer
    /// takes the time at which it asked: it then never counts on its lease for longer than the store
    /// does.
    #[must_use]
    #[inline]
    pub fn by_clock(mut self, now: Timestamp) -> Lease {
        if now != self.at {
            self.what.created_at = self.moved(self.what.created_at, now);
            self.what.started_at = self.moved(self.what.started_at, now);
            self.what.deadline = self.moved(self.what.deadline, now);
            self.what.expires_at = self.moved(self.what.expires_at, now);
        }
        self.what
    }
}

impl Seen<Completed> {
    /// Returns the identity of the request that was answered.
    pub const fn identity(&self) -> &Identity {
        &self.what.identity
    }

    /// Returns the answer.
    pub const fn payload(&self) -> &Bytes {
        &self.what.payload
    }

    /// How long ago the key was first claimed.
    pub fn age(&self) -> Duration {
        self.at.since(self.what.created_at)
    }

    /// How long the record is still kept.
    pub fn remaining(&self) -> Duration {
        self.what.expires_at.since(self.at)
    }

    /// Returns the record by a clock that shows `now` at the moment when this was seen.
    #[must_use]
    #[inline]
    pub fn by_clock(mut self, now: Timestamp) -> Completed {
        if now != self.at {
            self.what.created_at = self.moved(self.what.created_at, now);
            self.what.expires_at = self.moved(self.what.expires_at, now);
        }
        self.what
    }
}

impl Seen<Record> {
    /// Returns the record by a clock that shows `now` at the moment when this was seen.
    #[must_use]
    pub fn by_clock(self, now: Timestamp) -> Record {
        match self.what {
            Record::InProgress(lease) => Record::InProgress(lease.seen_at(self.at).by_clock(now)),
            Record::Completed(completed) => {
                Record::Completed(completed.seen_at(self.at).by_clock(now))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::key::RecordKey;
    use crate::protocol::record::{FencingToken, Owner};

    const HOUR: Duration = Duration::from_secs(60 * 60);
    const SECOND: Duration = Duration::from_secs(1);
    /// What the clock of the store says.
    const NOW: Timestamp = Timestamp::from_millis(1_790_000_000_000);
    const IDENTITY: Identity = Identity::of_work(Fingerprint::from_bytes([9; 32]));

    fn lease() -> Lease {
        let holder = Holder::new(
            RecordKey::from_bytes([7; 32]),
            Owner::from_bytes([1; 16]),
            IDENTITY,
        );
        let mut lease = Lease::new(&holder, FencingToken::from_u64(1));
        lease.created_at = NOW.minus(SECOND * 20);
        lease.started_at = NOW.minus(SECOND * 10);
        lease.deadline = NOW.plus(SECOND * 5);
        lease.expires_at = NOW.plus(HOUR);
        lease
    }

    #[test]
    fn a_lease_is_told_in_durations() {
        let seen = lease().seen_at(NOW);
        assert_eq!(seen.holder(), lease().holder());
        assert_eq!(seen.age(), SECOND * 20);
        assert_eq!(seen.running_for(), SECOND * 10);
        assert_eq!(seen.remaining(), SECOND * 5);
        assert_eq!(lease().seen_at(NOW.plus(HOUR)).remaining(), Duration::ZERO);
    }

    #[test]
    fn a_lease_is_held_by_its_attempt_alone_for_its_key_and_request() {
        const OTHER: Identity = Identity::of_work(Fingerprint::from_bytes([8; 32]));
        let Holder {
            key,
            owner,
            identity,
        } = lease().holder();
        let (other_key, other_owner) = (RecordKey::from_bytes([8; 32]), Owner::from_bytes([2; 16]));
        let seen = lease().seen_at(NOW);
        assert!(seen.is_held_by(&key, owner, &identity));
        assert!(!seen.is_held_by(&other_key, owner, &identity));
        assert!(!seen.is_held_by(&key, other_owner, &identity));
        assert!(!seen.is_held_by(&key, owner, &OTHER));
    }

    #[test]
    fn an_answer_is_told_in_durations() {
        let payload = Bytes::from_static(b"answer");
        let completed =
            Completed::new(IDENTITY, payload.clone(), NOW.minus(SECOND), NOW.plus(HOUR));
        let seen = completed.seen_at(NOW);
        assert_eq!(seen.identity(), &IDENTITY);
        assert_eq!(seen.payload(), &payload);
        assert_eq!(seen.age(), SECOND);
        assert_eq!(seen.remaining(), HOUR);
    }

    #[test]
    fn by_another_clock_all_times_are_as_far_away() {
        for here in [NOW, NOW.plus(HOUR), NOW.minus(HOUR)] {
            let by_clock = lease().seen_at(NOW).by_clock(here);
            assert_eq!(by_clock.created_at, here.minus(SECOND * 20));
            assert_eq!(by_clock.started_at, here.minus(SECOND * 10));
            assert_eq!(by_clock.deadline, here.plus(SECOND * 5));
            assert_eq!(by_clock.expires_at, here.plus(HOUR));
            assert_eq!(by_clock.seen_at(here).by_clock(NOW), lease());
            let completed =
                Completed::new(IDENTITY, Bytes::new(), NOW.minus(SECOND), NOW.plus(HOUR));
            let by_clock = completed.clone().seen_at(NOW).by_clock(here);
            assert_eq!(by_clock.created_at, here.minus(SECOND));
            assert_eq!(by_clock.expires_at, here.plus(HOUR));
            let record = Record::Completed(completed).seen_at(NOW);
            let record = record.map(|record| record.by_clock(here));
            assert_eq!(record, Some(Record::Completed(by_clock)));
        }
    }

    #[test]
    fn an_orphan_is_one_by_any_clock() {
        let mut orphan = lease();
        orphan.deadline = Timestamp::EPOCH;
        for here in [NOW.plus(HOUR), NOW.minus(HOUR)] {
            let by_clock = orphan.clone().seen_at(NOW).by_clock(here);
            assert!(has_lapsed(&by_clock, here, HOUR));
        }
    }

    #[test]
    fn what_has_expired_is_not_told() {
        let at = |mut lease: Lease, deadline, expires_at| {
            (lease.deadline, lease.expires_at) = (deadline, expires_at);
            Record::InProgress(lease).seen_at(NOW)
        };
        let (before, after) = (NOW.minus(SECOND), NOW.plus(SECOND));
        assert_eq!(at(lease(), before, NOW), None);
        assert!(at(lease(), before, after).is_some());
        assert!(at(lease(), NOW, before).is_some());
        let until = |expires_at| {
            let completed = Completed::new(IDENTITY, Bytes::new(), before, expires_at);
            Record::Completed(completed).seen_at(NOW)
        };
        assert_eq!(until(NOW), None);
        assert!(until(after).is_some());
    }
}
