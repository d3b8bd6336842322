//! Short frames, each in one allocation.
//!
//! `Bytes` counts its owners in an allocation of its own, unless it is given an owner that has the
//! bytes within. A short frame is: that saves an allocation when it is made, and a look at another
//! place in memory each time it is replayed.

use bytes::Bytes;

/// Bytes and room, so that there are few sizes.
struct Packed<const ROOM: usize> {
    bytes: [u8; ROOM],
    length: u16,
}

impl<const ROOM: usize> AsRef<[u8]> for Packed<ROOM> {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.length)]
    }
}

/// The longest frame that is packed.
pub(super) const LONGEST: usize = 486;

/// A frame of the bytes that `from` has, to which zeros are put. There are few sizes, 32 bytes
/// apart; with what counts the owners, they are such as allocators have.
pub(super) fn packed(from: &mut Vec<u8>) -> Bytes {
    match from.len() {
        0..=102 => packed_in::<102>(from),
        103..=134 => packed_in::<134>(from),
        135..=166 => packed_in::<166>(from),
        167..=198 => packed_in::<198>(from),
        199..=230 => packed_in::<230>(from),
        231..=262 => packed_in::<262>(from),
        263..=294 => packed_in::<294>(from),
        295..=326 => packed_in::<326>(from),
        327..=358 => packed_in::<358>(from),
        359..=390 => packed_in::<390>(from),
        391..=422 => packed_in::<422>(from),
        423..=454 => packed_in::<454>(from),
        455..=LONGEST => packed_in::<LONGEST>(from),
        _ => Bytes::copy_from_slice(from),
    }
}

fn packed_in<const ROOM: usize>(from: &mut Vec<u8>) -> Bytes {
    let length = from.len() as u16;
    from.resize(ROOM, 0);
    match from.first_chunk() {
        Some(bytes) => Bytes::from_owner(Packed::<ROOM> {
            bytes: *bytes,
            length,
        }),
        None => Bytes::copy_from_slice(&from[..usize::from(length)]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_of_any_length_come_back() {
        let all: Vec<u8> = (0..=LONGEST + 1).map(|at| at as u8).collect();
        for length in 0..all.len() {
            assert_eq!(packed(&mut all[..length].to_vec()), all[..length]);
        }
    }
}
