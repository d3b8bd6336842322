//! SHA-256 over length-prefixed fields, so that no two lists of fields give the same bytes.

use sha2::{Digest as _, Sha256};

use crate::leb128;

/// What a digest is of. Its byte goes in last, so that digests of two domains never meet.
#[derive(Clone, Copy)]
pub(crate) enum Domain {
    #[cfg(test)]
    Test = 0,
    /// A record's name, from the parts of an idempotency key.
    RecordKey = 1,
    /// An idempotency key, from fields of the body.
    KeyFields = 2,
    /// A key for a call that the handler makes, from a record's name and a purpose.
    DerivedKey = 3,
    /// A request's fingerprint.
    Request = 4,
    /// The fingerprint of work that is no HTTP request, from its inputs.
    Inputs = 5,
    /// Who sent a request, from a record's name and credentials.
    Caller = 6,
    /// A recipe's id, from settings.
    Recipe = 7,
    /// What names an attempt to others, from its owner id.
    Holder = 9,
}

/// What is about a request, beside its body, mostly fits.
const GATHERED: usize = 192;

#[derive(Clone)]
pub(crate) struct Digest {
    domain: Domain,
    hasher: Sha256,
    /// Bytes for the hasher, of which each update costs more than to copy a few of them.
    gathered: [u8; GATHERED],
    length: usize,
}

impl Digest {
    pub(crate) fn new(domain: Domain) -> Self {
        Self {
            domain,
            hasher: Sha256::new(),
            gathered: [0; GATHERED],
            length: 0,
        }
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.after(bytes.len(), bytes);
    }

    /// A field in lower case.
    pub(crate) fn field_in_lower_case(&mut self, bytes: &[u8]) {
        let has_upper = |any, byte: &u8| any | byte.is_ascii_uppercase();
        // Clients seldom write any.
        match bytes.iter().fold(false, has_upper) {
            true => self.field(&bytes.to_ascii_lowercase()),
            false => self.field(bytes),
        }
    }

    /// An absent field differs from an empty one.
    pub(crate) fn optional(&mut self, bytes: Option<&[u8]>) {
        match bytes {
            None => self.tag(0),
            Some(bytes) => self.after(bytes.len() + 1, bytes),
        }
    }

    /// Bytes after their number.
    fn after(&mut self, number: usize, bytes: &[u8]) {
        let end = self.length + 1 + bytes.len();
        // Most are short, and there is room for them.
        if number < 0x80
            && let Some([first, free @ ..]) = self.gathered.get_mut(self.length..end)
        {
            *first = number as u8;
            free.copy_from_slice(bytes);
            self.length = end;
        } else {
            self.count(number);
            self.raw(bytes);
        }
    }

    pub(crate) fn tag(&mut self, tag: u8) {
        if self.length == GATHERED {
            self.flush();
        }
        self.gathered[self.length] = tag;
        self.length += 1;
    }

    /// A length or a number of fields; whoever calls it hands in that many bytes or fields next.
    pub(crate) fn count(&mut self, count: usize) {
        leb128::write(count, |byte| self.tag(byte));
    }

    /// Part of a field whose length went in through [`count`](Self::count).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if let Some(free) = self.gathered.get_mut(self.length..end) {
            free.copy_from_slice(bytes);
            self.length = end;
        } else {
            self.flush();
            self.hasher.update(bytes);
        }
    }

    fn flush(&mut self) {
        self.hasher.update(&self.gathered[..self.length]);
        self.length = 0;
    }

    /// Borrows, for to move a digest is to copy all that it has gathered. It begins anew.
    pub(crate) fn finish(&mut self) -> [u8; 32] {
        self.tag(self.domain as u8);
        self.flush();
        self.hasher.finalize_reset().into()
    }
}

/// Lower-case hexadecimal, for people and for keys of other systems.
pub(crate) fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 0xf)]));
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn of<'a>(fields: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
        let mut digest = Digest::new(Domain::Test);
        for field in fields {
            digest.field(field);
        }
        digest.finish()
    }

    fn of_optional(fields: &[Option<Vec<u8>>]) -> [u8; 32] {
        let mut digest = Digest::new(Domain::Test);
        for field in fields {
            digest.optional(field.as_deref());
        }
        digest.finish()
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_digest() {
        assert_ne!(of([&b"ab"[..], b"c"]), of([&b"a"[..], b"bc"]));
        assert_ne!(of([&b"ab"[..]]), of([&b"ab"[..], b""]));
    }

    #[test]
    fn an_absent_field_is_not_an_empty_one() {
        assert_ne!(of_optional(&[None]), of_optional(&[Some(Vec::new())]));
    }

    #[test]
    fn what_is_hashed_is_these_bytes() {
        let mut digest = Digest::new(Domain::RecordKey);
        digest.field(b"ab");
        digest.optional(None);
        digest.optional(Some(b""));
        digest.optional(Some(b"c"));
        digest.tag(9);
        digest.field(&[b'd'; 200]);
        let bytes = [
            b"\x02ab\x00\x01\x02c\x09\xc8\x01",
            &[b'd'; 200][..],
            b"\x01",
        ]
        .concat();
        assert_eq!(digest.finish(), <[u8; 32]>::from(Sha256::digest(bytes)));
    }

    #[test]
    fn hex_is_lower_case_and_padded() {
        assert_eq!(hex(&[0x00, 0x0f, 0xa5]), "000fa5");
    }

    /// Parts that end before, at and after the end of what is gathered.
    fn parts() -> impl Strategy<Value = Vec<Vec<u8>>> {
        let bytes = |most| proptest::collection::vec(any::<u8>(), 0..most);
        let part = prop_oneof![4 => bytes(4), 2 => bytes(GATHERED + 2), 1 => bytes(4 * GATHERED)];
        proptest::collection::vec(part, 0..40)
    }

    proptest! {
        #[test]
        fn the_digest_is_that_of_all_bytes_in_one_piece(parts in parts()) {
            let mut digest = Digest::new(Domain::Test);
            let mut whole = Vec::new();
            for part in parts {
                digest.raw(&part);
                whole.extend(part);
            }
            whole.push(Domain::Test as u8);
            prop_assert_eq!(digest.finish(), <[u8; 32]>::from(Sha256::digest(whole)));
        }

        #[test]
        fn the_same_bytes_cut_elsewhere_are_another_list(
            bytes in proptest::collection::vec(0_u8..4, 0..300),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..4),
            others in proptest::collection::vec(any::<proptest::sample::Index>(), 0..4),
        ) {
            let cut = |cuts: &[proptest::sample::Index]| {
                let mut ends: Vec<_> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
                ends.push(bytes.len());
                ends.sort_unstable();
                let mut start = 0;
                ends.into_iter()
                    .map(|end| &bytes[std::mem::replace(&mut start, end)..end])
                    .collect::<Vec<_>>()
            };
            let (one, other) = (cut(&cuts), cut(&others));
            prop_assert_eq!(of(one.iter().copied()) == of(other.iter().copied()), one == other);
        }

        #[test]
        fn lists_of_optional_fields_differ_as_their_digests_do(
            one in proptest::collection::vec(proptest::option::of(proptest::collection::vec(0_u8..2, 0..2)), 0..4),
            other in proptest::collection::vec(proptest::option::of(proptest::collection::vec(0_u8..2, 0..2)), 0..4),
        ) {
            prop_assert_eq!(of_optional(&one) == of_optional(&other), one == other);
        }
    }
}
