//! What a record may have beside the fields that each record has.
//!
//! ```text
//! extras = *(tag length bytes)
//! tag    = 1 trace id, 16 bytes | 2 span id, 8 bytes | 3 secret id, 4 bytes, little endian
//!        | up to 254: not known here
//! length = one byte
//! ```
//!
//! Each tag is there once at most, and they ascend. So all of them take at most 65,278 bytes.

use std::fmt;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};

use super::digest::hex;

const TRACE_ID: u8 = 1;
const SPAN_ID: u8 = 2;
const SECRET_ID: u8 = 3;
const LAST: u8 = 254;

/// Optional fields of a record: the trace and the span of its run, and the secret that keyed or
/// sealed it. Those of a later version of this crate are kept as they are.
///
/// A record without any takes no memory for them.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Extras(
    // A pointer of one word, since each record in memory has one, and few have any.
    Option<Arc<Vec<u8>>>,
);

impl Extras {
    /// No fields.
    pub const NONE: Self = Self(None);

    /// Returns whether there are none.
    pub const fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Returns the id of the trace that the run belongs to.
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        self.get(TRACE_ID)
    }

    /// Returns the id of the run's span.
    pub fn span_id(&self) -> Option<[u8; 8]> {
        self.get(SPAN_ID)
    }

    /// Returns the id of the secret that keyed or sealed the record.
    pub fn secret_id(&self) -> Option<u32> {
        self.get(SECRET_ID).map(u32::from_le_bytes)
    }

    /// Returns these fields with the trace and the span of the run.
    #[must_use]
    pub fn with_trace(self, trace_id: [u8; 16], span_id: [u8; 8]) -> Self {
        self.with(TRACE_ID, &trace_id).with(SPAN_ID, &span_id)
    }

    /// Returns these fields with the id of the secret that keyed or sealed the record.
    #[must_use]
    pub fn with_secret_id(self, id: u32) -> Self {
        self.with(SECRET_ID, &id.to_le_bytes())
    }

    /// Returns the byte form, which is empty where there are no fields.
    pub fn as_bytes(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], Vec::as_slice)
    }

    /// Reads the byte form back. Returns `None` when it is damaged.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (mut rest, mut before) = (bytes, 0);
        while !rest.is_empty() {
            let (tag, value, after) = first(rest)?;
            let is_long_enough = match tag {
                TRACE_ID => value.len() == 16,
                SPAN_ID => value.len() == 8,
                SECRET_ID => value.len() == 4,
                _ => tag <= LAST,
            };
            if tag <= before || !is_long_enough {
                return None;
            }
            (rest, before) = (after, tag);
        }
        Some(Self::of(bytes.to_vec()))
    }

    /// Writes the byte form after its length, in two bytes, little endian.
    pub(crate) fn write(&self, to: &mut impl BufMut) {
        let bytes = self.as_bytes();
        to.put_u16_le(bytes.len() as u16);
        to.put_slice(bytes);
    }

    /// Reads what [`write`](Self::write) wrote, and no further. Returns `None` when it is damaged.
    pub(crate) fn read(from: &mut Bytes) -> Option<Self> {
        let length = usize::from(from.try_get_u16_le().ok()?);
        if length > from.len() {
            return None;
        }
        Self::from_bytes(&from.split_to(length))
    }

    fn of(bytes: Vec<u8>) -> Self {
        Self((!bytes.is_empty()).then(|| Arc::new(bytes)))
    }

    fn fields(&self) -> impl Iterator<Item = (u8, &[u8])> {
        let mut rest = self.as_bytes();
        std::iter::from_fn(move || {
            let (tag, value, after) = first(rest)?;
            rest = after;
            Some((tag, value))
        })
    }

    fn get<const N: usize>(&self, wanted: u8) -> Option<[u8; N]> {
        let mut fields = self.fields();
        let (_, value) = fields.find(|(tag, _)| *tag == wanted)?;
        value.try_into().ok()
    }

    /// `value` has at most 255 bytes.
    fn with(self, tag: u8, value: &[u8]) -> Self {
        let mut fields: Vec<_> = self.fields().filter(|(other, _)| *other != tag).collect();
        let at = fields.partition_point(|(other, _)| *other < tag);
        fields.insert(at, (tag, value));
        let mut bytes = Vec::new();
        for (tag, value) in fields {
            bytes.extend([tag, value.len() as u8]);
            bytes.extend(value);
        }
        Self::of(bytes)
    }
}

/// The first field, and what comes after it.
fn first(bytes: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let ([tag, length], rest) = bytes.split_first_chunk()?;
    let (value, after) = rest.split_at_checked(usize::from(*length))?;
    Some((*tag, value, after))
}

impl fmt::Debug for Extras {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Extras({})", hex(self.as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A field that nobody knows here, of a later version.
    const LATER: &[u8] = &[9, 2, b'h', b'i'];

    #[test]
    fn fields_are_these_bytes() {
        let extras = Extras::NONE
            .with_secret_id(0x0102_0304)
            .with_trace([7; 16], [8; 8]);
        let bytes = [
            &[1, 16][..],
            &[7; 16],
            &[2, 8],
            &[8; 8],
            &[3, 4, 4, 3, 2, 1],
        ]
        .concat();
        assert_eq!(extras.as_bytes(), bytes);
        assert_eq!(Extras::from_bytes(&bytes), Some(extras.clone()));
        assert_eq!(extras.trace_id(), Some([7; 16]));
        assert_eq!(extras.span_id(), Some([8; 8]));
        assert_eq!(extras.secret_id(), Some(0x0102_0304));
    }

    #[test]
    fn no_fields_take_no_bytes() {
        assert_eq!(Extras::NONE.as_bytes(), b"");
        assert_eq!(Extras::from_bytes(b""), Some(Extras::NONE));
        assert_eq!(Extras::NONE.trace_id(), None);
        assert_eq!(size_of::<Extras>(), size_of::<usize>());
    }

    #[test]
    fn a_field_of_a_later_version_is_kept_when_others_change() {
        let read = Extras::from_bytes(LATER).expect("it is well formed");
        let written = read.with_secret_id(1).with_secret_id(2);
        assert_eq!(written.as_bytes(), [&[3, 4, 2, 0, 0, 0], LATER].concat());
        assert_eq!(written.secret_id(), Some(2));
    }

    #[test]
    fn damage_is_noticed() {
        for damaged in [
            &[1][..],
            &[9, 3, b'h', b'i'],
            &[0, 0],
            &[255, 0],
            &[9, 0, 9, 0],
            &[9, 0, 8, 0],
            &[1, 1, 7],
            &[2, 0],
            &[3, 5, 0, 0, 0, 0, 0],
        ] {
            assert_eq!(Extras::from_bytes(damaged), None, "{damaged:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_kept_as_they_are_or_refused(
            bytes in proptest::collection::vec(prop_oneof![0_u8..5, any::<u8>()], 0..40),
        ) {
            if let Some(extras) = Extras::from_bytes(&bytes) {
                prop_assert_eq!(extras.as_bytes(), &bytes[..]);
                prop_assert_eq!(extras.clone().with_secret_id(1).secret_id(), Some(1));
            }
        }
    }
}
