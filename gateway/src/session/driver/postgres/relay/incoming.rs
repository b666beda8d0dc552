//! What one side has said and nobody has worked off yet.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::protocol::postgres::{Decoder, Frame, ProtocolError, Sender};
use crate::session::buffers::{self, ROOM};

/// One direction's bytes and how they are cut. Holds a buffer only while there are bytes.
#[derive(Debug)]
pub struct Incoming {
    buffer: BytesMut,
    decoder: Decoder,
    /// The buffer grew for a message that has been taken out of it.
    outgrown: bool,
}

impl Incoming {
    /// `buffer` has what was read already, `limit` is the longest message allowed.
    pub fn new(sender: Sender, limit: usize, buffer: BytesMut) -> Self {
        Self {
            buffer,
            decoder: Decoder::new(sender, limit),
            outgrown: true,
        }
    }

    /// As [`Decoder::next`].
    pub fn next(
        &mut self,
        may_pass: impl FnOnce(u8) -> bool,
    ) -> Result<Option<Frame>, ProtocolError> {
        let frame = self.decoder.next(&mut self.buffer, may_pass)?;
        if let Some(Frame::Whole(message)) = &frame {
            self.outgrown |= message.bytes().len() > ROOM;
        }
        Ok(frame)
    }

    /// Whether the next bytes belong to a message that has passed in part.
    pub fn is_within(&self) -> bool {
        self.decoder.is_within()
    }

    /// Whether the bytes so far end with a message.
    pub fn is_complete(&self) -> bool {
        self.buffer.is_empty() && !self.decoder.is_within()
    }

    /// Reads more; 0 means that there is none. While it waits, an empty buffer is of use to others.
    pub async fn read<R>(&mut self, from: &mut R) -> io::Result<usize>
    where
        R: AsyncRead + Unpin,
    {
        poll_fn(|cx| {
            self.make_room();
            let read = pin!(from.read_buf(&mut self.buffer)).poll(cx);
            if read.is_pending() && self.buffer.is_empty() {
                buffers::give(std::mem::take(&mut self.buffer));
            }
            read
        })
        .await
    }

    fn make_room(&mut self) {
        // What is left of a message that takes longer to arrive, or follows one, keeps its place.
        if self.outgrown && self.buffer.len() <= ROOM {
            let mut fitting = buffers::take();
            fitting.extend_from_slice(&self.buffer);
            self.buffer = fitting;
            self.outgrown = false;
        }
        if self.buffer.capacity() == 0 {
            self.buffer = buffers::take();
        }
        // At least half of what is read at once: less would mean many small reads.
        if self.buffer.capacity() - self.buffer.len() < ROOM / 2 {
            self.buffer.reserve(ROOM);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: usize = 1 << 30;

    async fn read_all(incoming: &mut Incoming, wire: &[u8]) -> usize {
        let mut wire = wire;
        let mut read = 0;
        loop {
            while let Some(frame) = incoming.next(|_| false).unwrap() {
                match frame {
                    Frame::Whole(message) => read += message.bytes().len(),
                    Frame::Piece(piece) => read += piece.bytes().len(),
                }
            }
            if incoming.read(&mut wire).await.unwrap() == 0 {
                return read;
            }
        }
    }

    fn message(length: u32) -> Vec<u8> {
        let mut wire = b"D".to_vec();
        wire.extend_from_slice(&(length + 4).to_be_bytes());
        wire.resize(wire.len() + length as usize, 0);
        wire
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_long_message_leaves_no_long_buffer() {
        let mut incoming = Incoming::new(Sender::Backend, LIMIT, BytesMut::new());
        let mut wire = message(20 << 20);
        // The beginning of the next one keeps the buffer in use.
        wire.extend_from_slice(b"Z\0\0");
        assert_eq!(read_all(&mut incoming, &wire).await, wire.len() - 3);
        assert!(!incoming.is_complete());
        assert!(incoming.buffer.capacity() <= 2 * ROOM);
        let rest = b"\0\x05I";
        assert_eq!(read_all(&mut incoming, rest).await, 6);
        assert!(incoming.is_complete());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn whoever_waits_holds_no_buffer() {
        let (mut near, far) = tokio::io::duplex(64);
        let mut incoming = Incoming::new(Sender::Backend, LIMIT, BytesMut::new());
        let waited = poll_fn(|cx| {
            let pending = pin!(incoming.read(&mut near)).poll(cx).is_pending();
            std::task::Poll::Ready(pending)
        });
        assert!(waited.await);
        assert_eq!(incoming.buffer.capacity(), 0);
        drop(far);
        assert_eq!(incoming.read(&mut near).await.unwrap(), 0);
    }
}
