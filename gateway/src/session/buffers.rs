//! Buffers: a session holds memory only while bytes are moving.
//!
//! Each thread keeps a few empty buffers. A session takes one when there is something to read or to
//! write, and gives it back when its bytes are gone; one that waits has none. A buffer that had to grow
//! for a long message is not given back but freed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io::IoSlice;

use bytes::{Buf, Bytes, BytesMut};

/// Room in a buffer: how much is read at once, and about how much is written at once.
pub const ROOM: usize = 64 << 10;

/// More waiting buffers than this help nobody: a thread runs one session at a time.
const SPARE: usize = 4;

/// Shorter bytes are copied behind the ones before them, longer ones are passed on as they are: a
/// reference and a slot in the next writev(2) cost about as much as copying this many.
const WORTH_A_SLICE: usize = 4 << 10;

thread_local! {
    static BUFFERS: RefCell<Vec<BytesMut>> = const { RefCell::new(Vec::new()) };
}

/// An empty buffer with [`ROOM`] at the least.
pub fn take() -> BytesMut {
    let spare = BUFFERS.with_borrow_mut(Vec::pop);
    spare.unwrap_or_else(|| BytesMut::with_capacity(ROOM))
}

/// Takes back a buffer whose bytes are gone. It is freed if it is of another size, or if somebody still
/// holds a part of it.
pub fn give(mut buffer: BytesMut) {
    buffer.clear();
    if !buffer.try_reclaim(ROOM) || buffer.capacity() > 2 * ROOM {
        return;
    }
    BUFFERS.with_borrow_mut(|spare| {
        if spare.len() < SPARE {
            spare.push(buffer);
        }
    });
}

/// Bytes on their way out, in as few pieces as possible.
#[derive(Debug, Default)]
pub struct Gathered {
    /// Long pieces, each with the short ones that go before it.
    sealed: VecDeque<Bytes>,
    tail: BytesMut,
    /// How much of the tail has been sent.
    sent: usize,
    len: usize,
}

impl Gathered {
    /// What has been gathered and not yet sent.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn push(&mut self, bytes: &Bytes) {
        if bytes.len() < WORTH_A_SLICE {
            self.write(|out| out.extend_from_slice(bytes));
            return;
        }
        if !self.tail.is_empty() {
            self.sealed.push_back(self.tail.split().freeze());
        }
        self.sealed.push_back(bytes.clone());
        self.len += bytes.len();
    }

    /// Lets `write` append to what is gathered.
    pub fn write(&mut self, write: impl FnOnce(&mut BytesMut)) {
        if self.tail.capacity() == 0 {
            self.tail = take();
        }
        let before = self.tail.len();
        write(&mut self.tail);
        self.len += self.tail.len().saturating_sub(before);
    }

    pub fn append(&mut self, mut other: Gathered) {
        for bytes in std::mem::take(&mut other.sealed) {
            self.push(&bytes);
        }
        // One that grew does not come back to be used again: it may as well go out itself.
        if other.tail.len() > ROOM {
            return self.push(&std::mem::take(&mut other.tail).freeze());
        }
        if !other.tail.is_empty() {
            self.write(|out| out.extend_from_slice(&other.tail));
        }
    }

    /// Every piece, in order. Before any of it is sent.
    pub fn pieces(&self) -> impl Iterator<Item = &[u8]> {
        let sealed = self.sealed.iter().map(|bytes| &bytes[..]);
        sealed.chain((!self.tail.is_empty()).then_some(&self.tail[..]))
    }
}

impl Drop for Gathered {
    fn drop(&mut self) {
        self.sealed.clear();
        if self.tail.capacity() > 0 {
            give(std::mem::take(&mut self.tail));
        }
    }
}

impl Buf for Gathered {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        match self.sealed.front() {
            Some(bytes) => bytes,
            None => self.tail.get(self.sent..).unwrap_or_default(),
        }
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let tail = self.tail.get(self.sent..).filter(|tail| !tail.is_empty());
        let pieces = self.sealed.iter().map(|bytes| &bytes[..]).chain(tail);
        let mut count = 0;
        for (slice, piece) in slices.iter_mut().zip(pieces) {
            *slice = IoSlice::new(piece);
            count += 1;
        }
        count
    }

    fn advance(&mut self, mut count: usize) {
        self.len = self.len.saturating_sub(count);
        while let Some(front) = self.sealed.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.sealed.pop_front();
        }
        self.sent = (self.sent + count).min(self.tail.len());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// However long the pieces are and however little is sent at once, the bytes are the same.
        #[test]
        fn what_goes_in_comes_out(
            lengths in proptest::collection::vec(0..3 * WORTH_A_SLICE, 0..12),
            step in 1..2 * WORTH_A_SLICE,
        ) {
            let mut expected = Vec::new();
            let (mut gathered, mut other) = (Gathered::default(), Gathered::default());
            for (index, length) in lengths.iter().enumerate() {
                let bytes = vec![u8::try_from(index).unwrap(); *length];
                expected.extend_from_slice(&bytes);
                other.push(&Bytes::from(bytes));
                if index % 3 == 0 {
                    gathered.append(std::mem::take(&mut other));
                }
            }
            gathered.append(other);
            prop_assert_eq!(gathered.pieces().collect::<Vec<_>>().concat(), &expected[..]);
            prop_assert_eq!(gathered.len(), expected.len());
            let mut sent = Vec::new();
            while gathered.has_remaining() {
                let mut slices = [IoSlice::new(&[]); 2];
                let count = gathered.chunks_vectored(&mut slices);
                let flat = slices[..count].iter().flat_map(|slice| slice.iter().copied());
                let part: Vec<u8> = flat.take(step).collect();
                prop_assert_eq!(gathered.chunk()[0], part[0]);
                gathered.advance(part.len());
                sent.extend(part);
            }
            prop_assert_eq!(sent, expected);
        }
    }

    #[test]
    fn a_long_piece_is_not_copied() {
        let long = Bytes::from(vec![7; WORTH_A_SLICE]);
        let mut gathered = Gathered::default();
        gathered.push(&Bytes::from_static(b"short"));
        gathered.push(&long);
        let place = gathered.pieces().nth(1).unwrap().as_ptr();
        assert_eq!(place, long.as_ptr());
    }

    #[test]
    fn buffers_come_back_unless_they_grew_or_are_in_use() {
        let counted = || BUFFERS.with_borrow(Vec::len);
        let mut grown = take();
        grown.reserve(4 * ROOM);
        give(grown);
        assert_eq!(counted(), 0);
        let mut used = take();
        used.extend_from_slice(b"message");
        let message = used.split_to(7);
        give(used);
        assert_eq!(counted(), 0);
        drop(message);
        drop(Gathered::default());
        assert_eq!(counted(), 0);
        let mut gathered = Gathered::default();
        gathered.write(|out| out.extend_from_slice(b"bytes"));
        drop(gathered);
        assert_eq!(counted(), 1);
        assert!(take().capacity() >= ROOM);
    }
}
