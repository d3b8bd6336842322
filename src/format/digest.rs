//! SHA-256 over length-prefixed fields, so that no two lists of fields give the same bytes.

use sha2::block_api::compress256;

use crate::format::{leb128, version};

/// What a digest is of, with the version of what is hashed for it: a byte that goes in last, so that
/// digests of two domains, or of two versions, never meet.
#[derive(Clone, Copy)]
#[repr(u8)]
pub(crate) enum Domain {
    #[cfg(test)]
    Test = last_byte(0, 1),
    /// A record's name, from the parts of an idempotency key.
    RecordKey = last_byte(1, version::RECORD_KEY),
    /// An idempotency key, from fields of the body.
    KeyFields = last_byte(2, version::KEY_FIELDS),
    /// A key for a call that the handler makes, from a record's name and a purpose.
    DerivedKey = last_byte(3, version::DERIVED_KEY),
    /// A request's fingerprint.
    Request = last_byte(4, version::REQUEST),
    /// The fingerprint of work that is no HTTP request, from its inputs.
    Inputs = last_byte(5, version::INPUTS),
    /// Who sent a request, from a record's name and credentials.
    Caller = last_byte(6, version::CALLER),
    /// A recipe's id, from settings.
    Recipe = last_byte(7, version::RECIPE),
    /// What names an attempt to others, from its owner id.
    Holder = last_byte(9, version::HOLDER),
}

/// The version in the upper half, which is never 0, and the domain in the lower one: one byte, since
/// with a second one the key of most requests would not go into one block of SHA-256.
const fn last_byte(domain: u8, version: u8) -> u8 {
    assert!(domain < 0x10 && 0 < version && version < 0x10);
    version << 4 | domain
}

/// The bytes of a block of SHA-256.
const BLOCK: usize = 64;
/// What is about a request, beside its body, mostly fits.
const BLOCKS: usize = 3;
const GATHERED: usize = BLOCKS * BLOCK;

/// The state that SHA-256 begins with: [FIPS 180-4, section 5.3.3].
///
/// [FIPS 180-4, section 5.3.3]: https://doi.org/10.6028/NIST.FIPS.180-4
const BEGIN: [u32; 8] = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// SHA-256 that gathers what is fed to it in its own blocks: most of what is hashed here is short,
/// and to hand it on to a buffer of another's would take as long as a block takes where the
/// processor has instructions for it.
#[derive(Clone)]
pub(crate) struct Digest {
    domain: Domain,
    state: [u32; 8],
    /// How many bytes have gone into `state`.
    hashed: usize,
    gathered: [[u8; BLOCK]; BLOCKS],
    length: usize,
}

impl Digest {
    pub(crate) fn new(domain: Domain) -> Self {
        Self {
            domain,
            state: BEGIN,
            hashed: 0,
            gathered: [[0; BLOCK]; BLOCKS],
            length: 0,
        }
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.after(bytes.len(), bytes);
    }

    /// A field in lower case.
    #[inline]
    pub(crate) fn field_in_lower_case(&mut self, bytes: &[u8]) {
        // Clients seldom write any.
        match any_of(bytes, may_have_upper_case) {
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
            && let Some([first, free @ ..]) =
                self.gathered.as_flattened_mut().get_mut(self.length..end)
        {
            *first = number as u8;
            copy(free, bytes);
            self.length = end;
        } else {
            self.count(number);
            self.raw(bytes);
        }
    }

    pub(crate) fn tag(&mut self, tag: u8) {
        if self.length == GATHERED {
            self.hash_gathered();
        }
        self.gathered.as_flattened_mut()[self.length] = tag;
        self.length += 1;
    }

    /// A length or a number of fields; whoever calls it hands in that many bytes or fields next.
    pub(crate) fn count(&mut self, count: usize) {
        leb128::write(count, |byte| self.tag(byte));
    }

    /// Part of a field whose length went in through [`count`](Self::count).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        let end = self.length + bytes.len();
        if let Some(free) = self.gathered.as_flattened_mut().get_mut(self.length..end) {
            copy(free, bytes);
            self.length = end;
        } else {
            self.long(bytes);
        }
    }

    /// Hashes where it lies what there is no room for.
    fn long(&mut self, mut bytes: &[u8]) {
        if self.length > 0 {
            let room = (GATHERED - self.length).min(bytes.len());
            let (filling, rest) = bytes.split_at(room);
            self.gathered.as_flattened_mut()[self.length..][..room].copy_from_slice(filling);
            self.length += room;
            if self.length < GATHERED {
                return;
            }
            self.hash_gathered();
            bytes = rest;
        }
        let (blocks, rest) = bytes.as_chunks();
        compress256(&mut self.state, blocks);
        self.hashed += bytes.len() - rest.len();
        self.gathered.as_flattened_mut()[..rest.len()].copy_from_slice(rest);
        self.length = rest.len();
    }

    /// Hashes the whole blocks that were gathered, and keeps the rest.
    fn hash_gathered(&mut self) {
        let blocks = &self.gathered[..self.length / BLOCK];
        compress256(&mut self.state, blocks);
        let hashed = blocks.len() * BLOCK;
        let rest = hashed..self.length;
        self.gathered.as_flattened_mut().copy_within(rest, 0);
        self.hashed += hashed;
        self.length -= hashed;
    }

    /// Borrows, since to move a digest is to copy all that it has gathered. It begins anew.
    pub(crate) fn finish(&mut self) -> [u8; 32] {
        self.tag(self.domain as u8);
        if self.length >= BLOCK {
            self.hash_gathered();
        }
        let bits = 8 * (self.hashed + self.length) as u64;
        let [last, ..] = &mut self.gathered;
        last[self.length] = 0x80;
        last[self.length + 1..].fill(0);
        if self.length + 1 > BLOCK - size_of_val(&bits) {
            compress256(&mut self.state, std::slice::from_ref(last));
            last.fill(0);
        }
        last[BLOCK - size_of_val(&bits)..].copy_from_slice(&bits.to_be_bytes());
        compress256(&mut self.state, std::slice::from_ref(last));
        let mut digest = [0; 32];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_be_bytes();
        }
        self.state = BEGIN;
        self.hashed = 0;
        self.length = 0;
        digest
    }
}

/// Copies bytes to a place as long as they are. Those that are a few, as most names are, without
/// a call.
fn copy(place: &mut [u8], bytes: &[u8]) {
    match bytes.len() {
        8..=16 => copy_ends::<8>(place, bytes),
        17..=32 => copy_ends::<16>(place, bytes),
        _ => place.copy_from_slice(bytes),
    }
}

/// Copies the first and the last `N` bytes, which may overlap, and are all that there are.
fn copy_ends<const N: usize>(place: &mut [u8], bytes: &[u8]) {
    if let (Some(place), Some(start)) = (place.first_chunk_mut::<N>(), bytes.first_chunk()) {
        *place = *start;
    }
    if let (Some(place), Some(end)) = (place.last_chunk_mut::<N>(), bytes.last_chunk()) {
        *place = *end;
    }
}

/// Whether one of these bytes, which are seen eight at a time, is what `test` looks for. Bytes may
/// be seen twice, and there may be zeros between them.
pub(crate) fn any_of(bytes: &[u8], test: impl Fn(u64) -> bool) -> bool {
    let (words, rest) = bytes.as_chunks();
    let word = |bytes: &[u8; 8]| test(u64::from_le_bytes(*bytes));
    words.iter().any(word)
        || match bytes.last_chunk() {
            Some(last) => !rest.is_empty() && word(last),
            None => rest.iter().any(|byte| test(u64::from(*byte))),
        }
}

/// Whether one of eight bytes may be a letter in upper case; it may also be one of `@[\]^_`, or
/// beyond ASCII.
fn may_have_upper_case(word: u64) -> bool {
    const HIGH: u64 = u64::from_le_bytes([0x40; 8]);
    word & HIGH & !(word << 1) != 0
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
    use sha2::{Digest as _, Sha256};

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
            b"\x11",
        ]
        .concat();
        assert_eq!(digest.finish(), <[u8; 32]>::from(Sha256::digest(bytes)));
    }

    #[test]
    fn hex_is_lower_case_and_padded() {
        assert_eq!(hex(&[0x00, 0x0f, 0xa5]), "000fa5");
    }

    #[test]
    fn letters_in_upper_case_are_found_wherever_they_are() {
        for length in 0..20 {
            let lower = "a-z0.:~{/+*".repeat(2)[..length].to_owned();
            assert!(!any_of(lower.as_bytes(), may_have_upper_case), "{lower}");
            for at in 0..length {
                for letter in ["A", "M", "Z"] {
                    let mut upper = lower.clone();
                    upper.replace_range(at..=at, letter);
                    assert!(any_of(upper.as_bytes(), may_have_upper_case), "{upper}");
                }
            }
        }
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
