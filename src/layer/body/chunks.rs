//! Bytes of a body, in the order in which they came.

use std::collections::VecDeque;
use std::mem;

use bytes::{Bytes, BytesMut};

use crate::executor::Taken;

/// A chunk shorter than this is copied together with its neighbours: one keeps the buffer alive
/// that it was read into, and takes some fifty bytes itself, and a client that means harm may send
/// as many of them as its body has bytes.
const SHORT: usize = 4 << 10;

/// The chunks of a body. Most bodies are one, which is kept as it came, and the rest is apart from
/// it, so that there is little to move.
#[derive(Debug, Default)]
pub(crate) struct Chunks {
    first: Bytes,
    more: Option<Box<More>>,
    /// The room that the bytes take, until the last of them has been handed on.
    pub(super) taken: Taken,
}

#[derive(Debug, Default)]
struct More {
    chunks: VecDeque<Bytes>,
    /// The last ones, if they are short.
    short: BytesMut,
}

impl From<Bytes> for Chunks {
    fn from(body: Bytes) -> Self {
        Self {
            first: body,
            ..Self::default()
        }
    }
}

impl Chunks {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let more = self.more.iter().flat_map(|more| more.iter());
        [&self.first[..]].into_iter().chain(more)
    }

    pub(crate) fn length(&self) -> usize {
        let more = self.more.as_ref();
        self.first.len() + more.map_or(0, |more| more.iter().map(<[u8]>::len).sum())
    }

    /// All bytes in one piece; a copy only if there were several chunks.
    pub(crate) fn contiguous(&self) -> Bytes {
        if self.more.is_none() {
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
        } else if !chunk.is_empty() {
            self.more.get_or_insert_default().push(chunk);
        }
    }

    pub(super) fn pop(&mut self) -> Option<Bytes> {
        if self.first.is_empty() {
            return None;
        }
        let following = self.more.as_mut().and_then(|more| more.pop());
        if following.is_none() {
            self.more = None;
            self.taken = Taken::default();
        }
        Some(mem::replace(&mut self.first, following.unwrap_or_default()))
    }

    /// The bytes, if they are one chunk and take no room.
    pub(super) fn into_whole(self) -> Result<Bytes, Self> {
        match self.more.is_none() && self.taken.bytes() == 0 {
            true => Ok(self.first),
            false => Err(self),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty()
    }
}

impl More {
    fn iter(&self) -> impl Iterator<Item = &[u8]> + Clone {
        let chunks = self.chunks.iter().map(|chunk| &chunk[..]);
        chunks.chain([&self.short[..]])
    }

    fn push(&mut self, chunk: Bytes) {
        if chunk.len() < SHORT {
            self.short.extend_from_slice(&chunk);
        } else {
            if !self.short.is_empty() {
                self.chunks.push_back(mem::take(&mut self.short).freeze());
            }
            self.chunks.push_back(chunk);
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let next = self.chunks.pop_front();
        next.or_else(|| Some(mem::take(&mut self.short).freeze()))
            .filter(|chunk| !chunk.is_empty())
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
    fn long_chunks_are_not_copied_and_stay_in_their_places() {
        let long = |byte| Bytes::from(vec![byte; SHORT]);
        let all = [
            long(b'a'),
            long(b'b'),
            "cc".into(),
            "dd".into(),
            long(b'e'),
            "f".into(),
        ];
        let mut chunks = Chunks::default();
        for chunk in &all {
            chunks.push(chunk.clone());
        }
        assert_eq!(chunks.length(), 3 * SHORT + 5);
        assert_eq!(chunks.contiguous(), all.concat());
        let mut popped = Vec::new();
        while let Some(chunk) = chunks.pop() {
            popped.push(chunk);
        }
        assert_eq!(popped.concat(), all.concat());
        let places = |of: [&Bytes; 3]| of.map(|chunk| chunk.as_ptr());
        assert_eq!(
            places([&popped[0], &popped[1], &popped[3]]),
            places([&all[0], &all[1], &all[4]])
        );
        assert_eq!(popped.len(), 5, "short ones are one");
    }

    #[test]
    fn short_chunks_do_not_keep_the_buffers_alive_that_they_were_read_into() {
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
