//! SHA-256 over length-prefixed fields, so that no two lists of fields give the same bytes.

use sha2::{Digest as _, Sha256};

#[derive(Clone)]
pub(crate) struct Digest(Sha256);

impl Digest {
    /// A digest whose values never meet those of another `domain`.
    pub(crate) fn new(domain: &str) -> Self {
        let mut digest = Self(Sha256::new());
        digest.field(domain.as_bytes());
        digest
    }

    pub(crate) fn field(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.0.update(bytes);
    }

    /// An absent field differs from an empty one.
    pub(crate) fn optional(&mut self, bytes: Option<&[u8]>) {
        self.0.update([u8::from(bytes.is_some())]);
        self.field(bytes.unwrap_or_default());
    }

    pub(crate) fn tag(&mut self, tag: u8) {
        self.0.update([tag]);
    }

    /// A length or a number of fields; whoever calls it hands in that many bytes or fields next.
    pub(crate) fn count(&mut self, count: usize) {
        self.0.update((count as u64).to_le_bytes());
    }

    /// Part of a field whose length went in through [`count`](Self::count).
    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> [u8; 32] {
        self.0.finalize().into()
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
    use super::*;

    fn of(fields: &[&str]) -> [u8; 32] {
        let mut digest = Digest::new("test");
        for field in fields {
            digest.field(field.as_bytes());
        }
        digest.finish()
    }

    #[test]
    fn moving_a_byte_between_fields_changes_the_digest() {
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert_ne!(of(&["ab"]), of(&["ab", ""]));
    }

    #[test]
    fn an_absent_field_is_not_an_empty_one() {
        let mut absent = Digest::new("test");
        absent.optional(None);
        let mut empty = Digest::new("test");
        empty.optional(Some(b""));
        assert_ne!(absent.finish(), empty.finish());
    }

    #[test]
    fn hex_is_lower_case_and_padded() {
        assert_eq!(hex(&[0x00, 0x0f, 0xa5]), "000fa5");
    }
}
