//! Lengths in as few bytes as they need: LEB128.

/// Puts `number` seven bits a byte, the lowest first; a byte that others follow has its top bit set.
pub(crate) fn write(mut number: usize, mut put: impl FnMut(u8)) {
    while number >= 0x80 {
        put(number as u8 | 0x80);
        number >>= 7;
    }
    put(number as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(number: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(number, |byte| bytes.push(byte));
        bytes
    }

    #[test]
    fn a_number_takes_a_byte_for_seven_bits() {
        assert_eq!(written(0), [0]);
        assert_eq!(written(127), [127]);
        assert_eq!(written(128), [0x80, 1]);
        assert_eq!(written(300), [0xac, 2]);
        assert_eq!(written(0x3fff), [0xff, 0x7f]);
        assert_eq!(written(0x4000), [0x80, 0x80, 1]);
    }
}
