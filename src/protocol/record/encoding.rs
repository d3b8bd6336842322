//! The byte form of records, for stores that keep each as one value.
//!
//! ```text
//! record    = version kind content
//! kind      = 0 in progress | 1 completed
//! content   = key identity owner token attempt created_at started_at deadline expires_at
//!             first_status extras                      (kind 0)
//!           | identity created_at expires_at extras payload     (kind 1)
//! extras    = length bytes                             (not in version 1)
//! ```
//!
//! Numbers are little endian: `attempt` has 4 bytes, `first_status` and the length of the extras 2,
//! all others 8. A lease without a `first_status` has 0 there. The payload is the rest.

use bytes::{Buf, BufMut, Bytes, TryGetError};

use super::{Completed, Extras, FencingToken, Holder, Identity, Lease, Owner, Record};
use crate::format::version::{RECORD as VERSION, RECORD_BEFORE as VERSION_BEFORE};
use crate::protocol::clock::Timestamp;
use crate::protocol::error::{StoreError, StoreErrorKind};
use crate::protocol::key::RecordKey;

const IN_PROGRESS: u8 = 0;
const COMPLETED: u8 = 1;

impl Record {
    /// Returns the byte form, whose first byte is its version. Later versions of this crate read
    /// it, too.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::InProgress(lease) => lease.to_bytes(),
            Self::Completed(completed) => completed.to_bytes(),
        }
    }

    /// Reads the byte form back.
    ///
    /// # Errors
    ///
    /// [`Newer`](StoreErrorKind::Newer) for what a later version of this crate has written, and
    /// [`Damaged`](StoreErrorKind::Damaged) for what no version has.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StoreError> {
        let mut bytes = bytes.into();
        let version = bytes.try_get_u8().map_err(too_short)?;
        match version {
            VERSION_BEFORE | VERSION => {}
            0 => return Err(damaged("version 0 was never written")),
            newer => {
                let message = format!(
                    "the record is of version {newer}; this node reads up to version {VERSION}"
                );
                return Err(StoreError::new(StoreErrorKind::Newer, message));
            }
        }
        match bytes.try_get_u8().map_err(too_short)? {
            IN_PROGRESS => read_lease(bytes, version).map(Self::InProgress),
            COMPLETED => read_completed(bytes, version).map(Self::Completed),
            _ => Err(damaged("it is of no known kind")),
        }
    }
}

impl Lease {
    /// Returns the byte form of its record; see [`Record::to_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION, IN_PROGRESS];
        bytes.put_slice(self.key.as_bytes());
        bytes.put_slice(&self.identity.to_bytes());
        bytes.put_slice(self.owner.as_bytes());
        bytes.put_u64_le(self.token.as_u64());
        bytes.put_u32_le(self.attempt);
        for time in [
            self.created_at,
            self.started_at,
            self.deadline,
            self.expires_at,
        ] {
            bytes.put_u64_le(time.as_micros());
        }
        // No status is 0.
        bytes.put_u16_le(self.first_status.unwrap_or(0));
        self.extras.write(&mut bytes);
        bytes
    }

    /// Reads the byte form back.
    ///
    /// # Errors
    ///
    /// As [`Record::from_bytes`]; a completed record is [`Damaged`](StoreErrorKind::Damaged).
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StoreError> {
        match Record::from_bytes(bytes)? {
            Record::InProgress(lease) => Ok(lease),
            Record::Completed(_) => Err(damaged("it is completed, and has no lease")),
        }
    }
}

impl Completed {
    /// Returns the byte form of its record; see [`Record::to_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        const FIXED: usize = 2 + Identity::LENGTH + 2 * size_of::<u64>() + size_of::<u16>();
        let extras = self.extras.as_bytes().len();
        let mut bytes = Vec::with_capacity(FIXED + extras + self.payload.len());
        bytes.put_slice(&[VERSION, COMPLETED]);
        bytes.put_slice(&self.identity.to_bytes());
        bytes.put_u64_le(self.created_at.as_micros());
        bytes.put_u64_le(self.expires_at.as_micros());
        self.extras.write(&mut bytes);
        bytes.put_slice(&self.payload);
        bytes
    }

    /// Reads the byte form back.
    ///
    /// # Errors
    ///
    /// As [`Record::from_bytes`]; a record in progress is [`Damaged`](StoreErrorKind::Damaged).
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Result<Self, StoreError> {
        match Record::from_bytes(bytes)? {
            Record::Completed(completed) => Ok(completed),
            Record::InProgress(_) => Err(damaged("it is in progress, and has no answer")),
        }
    }
}

fn read_lease(mut record: Bytes, version: u8) -> Result<Lease, StoreError> {
    let bytes = &mut record;
    let key = RecordKey::from_bytes(read(bytes)?);
    let identity = read_identity(bytes)?;
    let owner = Owner::from_bytes(read(bytes)?);
    let token = FencingToken::from_u64(bytes.try_get_u64_le().map_err(too_short)?);
    let lease = Lease {
        attempt: bytes.try_get_u32_le().map_err(too_short)?,
        created_at: read_time(bytes)?,
        started_at: read_time(bytes)?,
        deadline: read_time(bytes)?,
        expires_at: read_time(bytes)?,
        first_status: Some(bytes.try_get_u16_le().map_err(too_short)?)
            .filter(|status| *status != 0),
        extras: read_extras(bytes, version)?,
        ..Lease::new(&Holder::new(key, owner, identity), token)
    };
    match bytes.is_empty() {
        true => Ok(lease),
        false => Err(damaged("it is too long")),
    }
}

fn read_completed(mut bytes: Bytes, version: u8) -> Result<Completed, StoreError> {
    Ok(Completed {
        identity: read_identity(&mut bytes)?,
        created_at: read_time(&mut bytes)?,
        expires_at: read_time(&mut bytes)?,
        extras: read_extras(&mut bytes, version)?,
        payload: bytes,
    })
}

fn read_extras(bytes: &mut Bytes, version: u8) -> Result<Extras, StoreError> {
    if version == VERSION_BEFORE {
        return Ok(Extras::NONE);
    }
    Extras::read(bytes).ok_or_else(|| damaged("it has no extras that can be read"))
}

fn read_identity(bytes: &mut Bytes) -> Result<Identity, StoreError> {
    let identity = Identity::from_bytes(&read::<{ Identity::LENGTH }>(bytes)?);
    identity.ok_or_else(|| damaged("it has no identity"))
}

fn read_time(bytes: &mut Bytes) -> Result<Timestamp, StoreError> {
    let micros = bytes.try_get_u64_le().map_err(too_short)?;
    Ok(Timestamp::from_micros(micros))
}

fn read<const N: usize>(bytes: &mut Bytes) -> Result<[u8; N], StoreError> {
    let mut read = [0; N];
    bytes.try_copy_to_slice(&mut read).map_err(too_short)?;
    Ok(read)
}

fn damaged(why: &str) -> StoreError {
    let message = format!("the record cannot be read: {why}");
    StoreError::new(StoreErrorKind::Damaged, message)
}

fn too_short(_: TryGetError) -> StoreError {
    damaged("it is too short")
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::record::{CallerDigest, RecipeId};

    const IDENTITY: Identity = Identity {
        caller: CallerDigest::from_bytes([5; 16]),
        request: Fingerprint::from_bytes([9; 32]),
        recipe: RecipeId::from_bytes(*b"recipe 1"),
    };

    fn lease(first_status: Option<u16>) -> Lease {
        Lease {
            key: RecordKey::from_bytes([7; 32]),
            identity: IDENTITY,
            owner: Owner::from_bytes([1; 16]),
            token: FencingToken::from_u64(2),
            attempt: 3,
            created_at: Timestamp::from_micros(4),
            started_at: Timestamp::from_micros(5),
            deadline: Timestamp::from_micros(6),
            expires_at: Timestamp::from_micros(u64::MAX),
            first_status,
            extras: Extras::NONE,
        }
    }

    fn completed(payload: &'static [u8]) -> Completed {
        let [created_at, expires_at] = [4, 8].map(Timestamp::from_micros);
        Completed::new(
            IDENTITY,
            Bytes::from_static(payload),
            created_at,
            expires_at,
        )
    }

    fn kind(read: Result<Record, StoreError>) -> Option<StoreErrorKind> {
        read.err().map(|error| error.kind())
    }

    #[test]
    fn a_record_comes_back_as_it_was() {
        for record in [
            Record::InProgress(lease(None)),
            Record::InProgress(lease(Some(504))),
            Record::Completed(completed(b"")),
            Record::Completed(completed(b"answer")),
        ] {
            assert_eq!(Record::from_bytes(record.to_bytes()).ok(), Some(record));
        }
        let (lease, completed) = (lease(None), completed(b"answer"));
        assert_eq!(
            Lease::from_bytes(lease.to_bytes()).ok(),
            Some(lease.clone())
        );
        assert!(Completed::from_bytes(lease.to_bytes()).is_err());
        assert!(Lease::from_bytes(completed.to_bytes()).is_err());
        assert_eq!(
            Completed::from_bytes(completed.to_bytes()).ok(),
            Some(completed)
        );
    }

    #[test]
    fn a_completed_record_is_written_into_an_allocation_of_its_size() {
        for payload in [&b""[..], b"answer"] {
            let bytes = completed(payload).to_bytes();
            assert_eq!(bytes.capacity(), bytes.len());
        }
    }

    /// The extras of a record: those that are known here, and one that is not.
    fn extras() -> Extras {
        let later = Extras::from_bytes(&[9, 2, b'h', b'i']).expect("they are well formed");
        later.with_trace([7; 16], [8; 8]).with_secret_id(3)
    }

    #[test]
    fn extras_come_back_also_those_of_a_later_version() {
        let mut lease = lease(Some(504));
        lease.extras = extras();
        let mut completed = completed(b"answer");
        completed.extras = extras();
        for record in [Record::InProgress(lease), Record::Completed(completed)] {
            assert_eq!(Record::from_bytes(record.to_bytes()).ok(), Some(record));
        }
    }

    #[test]
    fn extras_that_are_damaged_are_no_extras() {
        let mut lease = lease(None).to_bytes();
        let length = lease.len();
        let mut completed = completed(b"answer").to_bytes();
        let at = completed.len() - b"answer".len();
        for damage in [&[9, 5][..], &[0, 0], &[9, 0, 9, 0]] {
            let sized = [&[damage.len() as u8, 0], damage].concat();
            lease.splice(length - 2.., sized.iter().copied());
            completed.splice(at - 2..at, sized);
            for record in [lease.clone(), completed.clone()] {
                let read = Record::from_bytes(record);
                assert_eq!(kind(read), Some(StoreErrorKind::Damaged), "{damage:?}");
            }
        }
    }

    /// A store keeps what the version before has written for as long as its retention is.
    #[test]
    fn the_version_before_is_read() {
        let identity = [&[5; 16][..], &[9; 32], b"recipe 1"].concat();
        let number = |number: u64| number.to_le_bytes();
        let mut bytes = [&[1, 0], &[7; 32][..], &identity, &[1; 16]].concat();
        bytes.extend(number(2));
        bytes.extend(3_u32.to_le_bytes());
        bytes.extend([4, 5, 6, u64::MAX].map(number).as_flattened());
        bytes.extend(504_u16.to_le_bytes());
        assert_eq!(Lease::from_bytes(bytes).ok(), Some(lease(Some(504))));
        let times = [4, 8].map(number);
        let bytes = [&[1, 1], &identity[..], times.as_flattened(), b"answer"].concat();
        assert_eq!(
            Completed::from_bytes(bytes).ok(),
            Some(completed(b"answer"))
        );
    }

    #[test]
    fn a_later_version_is_told_from_damage() {
        let mut bytes = completed(b"answer").to_bytes();
        bytes[0] = VERSION + 1;
        let error = Record::from_bytes(bytes.clone()).expect_err("it is not known here");
        assert_eq!(error.kind(), StoreErrorKind::Newer);
        assert!(error.to_string().contains("version 3"), "{error}");
        bytes[0] = 0;
        assert_eq!(
            kind(Record::from_bytes(bytes)),
            Some(StoreErrorKind::Damaged)
        );
        let mut longer = lease(None).to_bytes();
        longer.push(0);
        assert_eq!(
            kind(Record::from_bytes(longer)),
            Some(StoreErrorKind::Damaged)
        );
    }

    #[test]
    fn a_record_that_was_cut_off_is_damaged() {
        for whole in [lease(None).to_bytes(), completed(b"").to_bytes()] {
            for length in 0..whole.len() {
                let cut = Record::from_bytes(whole[..length].to_vec());
                assert_eq!(kind(cut), Some(StoreErrorKind::Damaged), "{length}");
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_an_error(
            mut bytes in vec(any::<u8>(), 0..300),
            version in 0..VERSION + 2,
            extras in 0_u8..4,
        ) {
            // Else few of them would be records.
            let is_completed = bytes.len() > 160;
            bytes.splice(..bytes.len().min(2), [version, is_completed.into()]);
            let at = if is_completed { 74 } else { 152 };
            if let Some(length) = bytes.get_mut(at..at + 2) {
                length.copy_from_slice(&[extras, 0]);
            }
            match Record::from_bytes(bytes.clone()) {
                Ok(record) if version == VERSION => prop_assert_eq!(record.to_bytes(), bytes),
                Ok(record) => prop_assert_eq!(Record::from_bytes(record.to_bytes()).ok(), Some(record)),
                Err(_) => {}
            }
        }
    }
}
