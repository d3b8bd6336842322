//! What a near tier keeps for the record of the far tier.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::format::version;
use crate::protocol::clock::Timestamp;
use crate::protocol::record::{Completed, Extras};

/// What is kept near: a version, the times of the far tier's record by this process's clock, its
/// extras, and the answer.
pub(super) fn wrapped(completed: &Completed) -> Bytes {
    const FIXED: usize = size_of::<u8>() + 2 * size_of::<u64>() + size_of::<u16>();
    let extras = completed.extras.as_bytes().len();
    let mut near = BytesMut::with_capacity(FIXED + extras + completed.payload.len());
    near.put_u8(version::NEAR);
    near.put_u64_le(completed.created_at.as_micros());
    near.put_u64_le(completed.expires_at.as_micros());
    completed.extras.write(&mut near);
    near.put_slice(&completed.payload);
    near.freeze()
}

/// `None` for something that was not kept by [`wrapped`], or not in this version: a miss, for which
/// the far tier is asked.
pub(super) fn unwrapped(near: &Completed) -> Option<Completed> {
    let mut bytes = near.payload.clone();
    if bytes.try_get_u8().ok()? != version::NEAR {
        return None;
    }
    let [created_at, expires_at] = [bytes.try_get_u64_le().ok()?, bytes.try_get_u64_le().ok()?];
    Some(Completed {
        identity: near.identity,
        created_at: Timestamp::from_micros(created_at),
        expires_at: Timestamp::from_micros(expires_at),
        extras: Extras::read(&mut bytes)?,
        payload: bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::fingerprint::Fingerprint;
    use crate::protocol::record::Identity;

    fn far() -> Completed {
        let identity = Identity::of_work(Fingerprint::from_bytes([9; 32]));
        let [created_at, expires_at] = [4, 8].map(Timestamp::from_micros);
        let answer = Bytes::from_static(b"answer");
        let mut far = Completed::new(identity, answer, created_at, expires_at);
        far.extras = Extras::NONE.with_secret_id(3);
        far
    }

    /// The near tier's own record of it.
    fn near(payload: Bytes) -> Completed {
        let now = Timestamp::from_micros(5);
        Completed::new(far().identity, payload, now, now)
    }

    #[test]
    fn version_1_is_these_bytes() {
        let bytes = b"\x01\x04\0\0\0\0\0\0\0\x08\0\0\0\0\0\0\0\x06\0\x03\x04\x03\0\0\0answer";
        assert_eq!(wrapped(&far()), &bytes[..]);
        assert_eq!(unwrapped(&near(wrapped(&far()))), Some(far()));
    }

    #[test]
    fn another_version_or_damage_is_a_miss() {
        let whole = wrapped(&far());
        let mut later = whole.to_vec();
        later[0] += 1;
        assert_eq!(unwrapped(&near(later.into())), None);
        for length in 0..whole.len() - b"answer".len() {
            assert_eq!(unwrapped(&near(whole.slice(..length))), None, "{length}");
        }
    }
}
