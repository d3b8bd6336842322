//! The answer of a record as the bytes that an item holds.
//!
//! A head says how to read the body after it: encoding (1 byte), CRC-32 of the answer (4 bytes)
//! and its length (4 bytes), little-endian. The body is the answer as it is or compressed. An
//! answer that does not lie in its item leaves the head there, and its body in chunks.

use bytes::Bytes;

use super::DynamoDbStore;
use super::error::damaged;
use crate::protocol::error::{StoreError, StoreErrorKind};

pub(super) const HEAD_LENGTH: usize = 9;
/// DynamoDB bills writes by the kilobyte.
const WRITE_UNIT: usize = 1_024;
/// The fastest: on JSON of 10 KB, levels up to 3 save the same units and take longer.
const ZSTD_LEVEL: i32 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    Plain,
    Zstd,
}

/// What is known of an answer without its body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    encoding: Encoding,
    checksum: u32,
    length: u32,
}

/// An answer on its way into the table.
#[derive(Debug)]
pub(super) struct Encoded {
    pub(super) head: Head,
    pub(super) body: Bytes,
}

impl Encoded {
    /// Compresses `payload` only if that saves a write unit of an item whose other attributes
    /// take `beside` bytes, and that holds an answer of up to `most_inline`.
    pub(super) fn new(
        payload: &Bytes,
        beside: usize,
        most_inline: usize,
    ) -> Result<Self, StoreError> {
        let length = u32::try_from(payload.len())
            .ok()
            .filter(|_| payload.len() <= DynamoDbStore::MAX_ANSWER)
            .ok_or_else(|| too_large(payload.len()))?;
        let head = Head {
            encoding: Encoding::Plain,
            checksum: crc32fast::hash(payload),
            length,
        };
        Ok(match compressed_if_cheaper(payload, beside, most_inline) {
            Some(body) => Self {
                head: Head {
                    encoding: Encoding::Zstd,
                    ..head
                },
                body,
            },
            None => Self {
                head,
                body: payload.clone(),
            },
        })
    }

    /// Whether it lies in the item of its record.
    pub(super) fn is_inline(&self, most_inline: usize) -> bool {
        HEAD_LENGTH + self.body.len() <= most_inline
    }

    /// Head and body in one.
    pub(super) fn inline(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEAD_LENGTH + self.body.len());
        bytes.extend_from_slice(&self.head.to_bytes());
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

fn compressed_if_cheaper(payload: &[u8], beside: usize, most_inline: usize) -> Option<Bytes> {
    // In chunks, the item of the record is written besides.
    let units = |body: usize| match HEAD_LENGTH + body <= most_inline {
        true => write_units(beside + body),
        false => write_units(beside) + write_units(body),
    };
    let plain_units = units(payload.len());
    if plain_units == 1 {
        return None;
    }
    let compressed = zstd::bulk::compress(payload, ZSTD_LEVEL).ok()?;
    (units(compressed.len()) < plain_units).then(|| compressed.into())
}

fn write_units(bytes: usize) -> usize {
    bytes.div_ceil(WRITE_UNIT).max(1)
}

fn too_large(length: usize) -> StoreError {
    StoreError::new(
        StoreErrorKind::TooLarge,
        format!(
            "an answer of {length} bytes is larger than the {} that the DynamoDB store keeps",
            DynamoDbStore::MAX_ANSWER
        ),
    )
}

impl Head {
    /// Whether an answer is, by all that can be told from here, the one that was recorded.
    pub(super) fn is_of(&self, payload: &[u8]) -> bool {
        self.length as usize == payload.len() && self.checksum == crc32fast::hash(payload)
    }

    pub(super) fn checksum(&self) -> u32 {
        self.checksum
    }

    pub(super) fn to_bytes(self) -> [u8; HEAD_LENGTH] {
        let mut bytes = [0; HEAD_LENGTH];
        bytes[0] = match self.encoding {
            Encoding::Plain => 0,
            Encoding::Zstd => 1,
        };
        bytes[1..5].copy_from_slice(&self.checksum.to_le_bytes());
        bytes[5..].copy_from_slice(&self.length.to_le_bytes());
        bytes
    }

    /// The head of an attribute's bytes, and what comes after it.
    pub(super) fn split(data: &[u8]) -> Result<(Self, &[u8]), &'static str> {
        let (head, body) = data
            .split_first_chunk::<HEAD_LENGTH>()
            .ok_or("is too short for an answer")?;
        let [encoding, c0, c1, c2, c3, l0, l1, l2, l3] = *head;
        let encoding = match encoding {
            0 => Encoding::Plain,
            1 => Encoding::Zstd,
            _ => return Err("has an encoding that is not known here"),
        };
        let head = Self {
            encoding,
            checksum: u32::from_le_bytes([c0, c1, c2, c3]),
            length: u32::from_le_bytes([l0, l1, l2, l3]),
        };
        Ok((head, body))
    }

    /// The answer, if `body` is whole.
    pub(super) fn decode(&self, body: Bytes) -> Result<Bytes, StoreError> {
        let length = self.length as usize;
        if length > DynamoDbStore::MAX_ANSWER {
            return Err(damaged(
                "the recorded answer has a length that it cannot have",
            ));
        }
        let payload = match self.encoding {
            Encoding::Plain => body,
            Encoding::Zstd => zstd::bulk::decompress(&body, length)
                .map_err(|error| {
                    damaged("the recorded answer cannot be decompressed").with_source(error)
                })?
                .into(),
        };
        if !self.is_of(&payload) {
            return Err(damaged(
                "the recorded answer does not have the length and checksum it was written with",
            ));
        }
        Ok(payload)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encoded(payload: Vec<u8>, beside: usize) -> Encoded {
        Encoded::new(&payload.into(), beside, 400_000).expect("the payload is small enough")
    }

    fn decoded(data: &[u8]) -> Result<Bytes, String> {
        let (head, body) = Head::split(data)?;
        head.decode(Bytes::copy_from_slice(body))
            .map_err(|error| error.to_string())
    }

    /// Bytes that nothing makes smaller.
    fn noise(length: usize) -> Vec<u8> {
        let mut state = 1_u64;
        let mut next = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        };
        (0..length).map(|_| next()).collect()
    }

    #[test]
    fn an_answer_is_compressed_only_when_that_saves_a_write_unit() {
        assert_eq!(encoded(vec![7; 700], 324).head.encoding, Encoding::Plain);
        assert_eq!(encoded(vec![7; 701], 324).head.encoding, Encoding::Zstd);
        // 1,000 bytes of noise and 100 that vanish: whether they matter, the unit decides.
        let mostly_noise = || [noise(1_000), vec![7; 100]].concat();
        assert_eq!(encoded(mostly_noise(), 800).head.encoding, Encoding::Plain);
        assert_eq!(encoded(mostly_noise(), 980).head.encoding, Encoding::Zstd);
        assert_eq!(encoded(noise(5_000), 0).head.encoding, Encoding::Plain);
    }

    #[test]
    fn an_answer_is_compressed_if_that_spares_it_a_chunk() {
        // 4,200 bytes in all, which are as many write units in one item as 4,000.
        let payload = [noise(3_900), vec![7; 300]].concat().into();
        let inline = |most| {
            let encoded = Encoded::new(&payload, 600, most).expect("it is small enough");
            (encoded.head.encoding, encoded.is_inline(most))
        };
        assert_eq!(inline(4_096), (Encoding::Zstd, true));
        assert_eq!(inline(5_000), (Encoding::Plain, true));
    }

    #[test]
    fn an_answer_over_the_limit_is_refused() {
        let payload = vec![0; DynamoDbStore::MAX_ANSWER + 1].into();
        let error = Encoded::new(&payload, 0, 400_000).expect_err("it is too large");
        assert_eq!(error.kind(), StoreErrorKind::TooLarge);
    }

    #[test]
    fn a_length_that_cannot_be_is_not_allocated() {
        let mut data = encoded(vec![7; 4_000], 0).inline();
        data[5..9].fill(0xff);
        assert!(decoded(&data).is_err_and(|error| error.contains("a length that it cannot have")));
    }

    #[test]
    fn an_encoding_of_later_times_is_named() {
        assert!(decoded(&[9; 20]).is_err_and(|error| error.contains("not known here")));
        assert!(decoded(&[0; 8]).is_err());
    }

    proptest! {
        #[test]
        fn any_answer_comes_back(payload in proptest::collection::vec(0_u8..4, 0..5_000)) {
            let data = encoded(payload.clone(), 300).inline();
            prop_assert_eq!(decoded(&data), Ok(payload.into()));
        }

        #[test]
        fn any_change_is_noticed(payload in proptest::collection::vec(0_u8..4, 1..3_000), at in any::<prop::sample::Index>(), bit in 0_u32..8) {
            let mut data = encoded(payload.clone(), 300).inline();
            let at = at.index(data.len());
            data[at] ^= 1 << bit;
            // A bit of a compressed frame may mean nothing; the answer is then the same.
            if let Ok(read) = decoded(&data) {
                prop_assert_eq!(&read[..], &payload[..]);
            }
        }

        #[test]
        fn any_cut_is_noticed(payload in proptest::collection::vec(0_u8..4, 1..3_000), at in any::<prop::sample::Index>()) {
            let data = encoded(payload, 300).inline();
            prop_assert!(decoded(&data[..at.index(data.len())]).is_err());
        }
    }
}
