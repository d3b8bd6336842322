//! Bytes of a body, in the order in which they came.

use bytes::{Bytes, BytesMut};

use crate::executor::Taken;

/// The first chunk as it came, for most bodies are one, and a copy of what came after it.
///
/// A chunk keeps the buffer alive that it was read into, and takes some fifty bytes itself. A client
/// that means harm may send as many of them as its body has bytes.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    first: Bytes,
    rest: BytesMut,
    /// The room that the bytes take, until the last of them has been handed on.
    pub(super) taken: Taken,
}

impl Chunks {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        [&self.first[..], &self.rest[..]].into_iter()
    }

    pub(crate) fn length(&self) -> usize {
        self.first.len() + self.rest.len()
    }

    /// All bytes in one piece; a copy only if there were several chunks.
    pub(crate) fn contiguous(&self) -> Bytes {
        if self.rest.is_empty() {
            return self.first.clone();
        }
        let mut all = BytesMut::with_capacity(self.length());
        for chunk in self.iter() {
            all.extend_from_slice(chunk);
        }
        all.freeze()
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if self.first.is_empty() {
            self.first = chunk;
        } else {
            self.rest.extend_from_slice(&chunk);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.first.is_empty() {
            return None;
        }
        let rest = std::mem::take(&mut self.rest).freeze();
        let next = std::mem::replace(&mut self.first, rest);
        if self.first.is_empty() {
            self.taken = Taken::default();
        }
        Some(next)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_of_one_chunk_is_not_copied() {
        let chunk = Bytes::from_static(b"abc");
        let mut chunks = Chunks::default();
        chunks.push(chunk.clone());
        chunks.push(Bytes::new());
        assert_eq!(chunks.contiguous().as_ptr(), chunk.as_ptr());
        let popped = chunks.pop().expect("it is there");
        assert_eq!((popped.as_ptr(), popped.len()), (chunk.as_ptr(), 3));
        assert_eq!((chunks.pop(), chunks.is_empty()), (None, true));
    }

    #[test]
    fn later_chunks_do_not_keep_the_buffers_alive_that_they_were_read_into() {
        let buffer = Bytes::from(vec![b'x'; 8_192]);
        let mut chunks = Chunks::default();
        chunks.push(Bytes::from_static(b"a"));
        for at in 0..3 {
            chunks.push(buffer.slice(at..=at));
        }
        assert!(buffer.is_unique());
        assert_eq!((chunks.length(), chunks.contiguous()), (4, "axxx".into()));
        assert_eq!(chunks.pop(), Some("a".into()));
        assert_eq!(chunks.pop(), Some("xxx".into()));
        assert_eq!(chunks.pop(), None);
    }
}
