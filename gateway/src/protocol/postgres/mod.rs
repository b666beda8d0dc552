//! PostgreSQL's frontend/backend protocol 3.0.
//!
//! Source: the chapter "Frontend/Backend Protocol" of PostgreSQL's manual, and for limits the server's
//! own (`src/backend/tcop/postgres.c`, `src/include/libpq/pqcomm.h`).

use bytes::{Buf, Bytes, BytesMut};

use super::cursor::Malformed;

pub mod backend;
pub mod copy;
pub mod encode;
pub mod frontend;
pub mod startup;

/// The longest message relayed in either direction, header included. PostgreSQL itself stops at 1 GiB;
/// one whole message is held in memory per direction, so this bounds a session's memory.
pub const MAX_MESSAGE: usize = 64 << 20;

/// The server's cap for messages that have no business being long (`PQ_SMALL_MESSAGE_LIMIT`).
const MAX_SMALL_MESSAGE: usize = 10_000;

/// How far a buffer grows ahead of what has arrived.
const READ_AHEAD: usize = 64 << 10;

/// Bytes of type and length before a message's body.
pub const HEADER: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("message type {} has the impossible length {length}", display_tag(*.tag))]
    Length { tag: u8, length: i32 },
    #[error(
        "message type {} of {length} bytes is longer than the {limit} bytes allowed",
        display_tag(*.tag)
    )]
    TooLong {
        tag: u8,
        length: usize,
        limit: usize,
    },
    #[error("message type {} is malformed: {source}", display_tag(*.tag))]
    Body { tag: u8, source: Malformed },
    #[error("message type {} is not part of the protocol here", display_tag(*.tag))]
    Unexpected { tag: u8 },
    #[error("start-up packet of {length} bytes: must be 8 to 10000")]
    StartupLength { length: i32 },
    #[error("start-up packet is malformed: {0}")]
    Startup(Malformed),
    #[error(transparent)]
    Copy(#[from] copy::CopyError),
    #[error("{0}")]
    Refused(&'static str),
}

fn display_tag(tag: u8) -> String {
    if tag.is_ascii_graphic() {
        format!("'{}'", char::from(tag))
    } else {
        format!("0x{tag:02x}")
    }
}

/// One whole message: its type, and its bytes with the header in front.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    tag: u8,
    bytes: Bytes,
}

impl Message {
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// The message as it was on the wire.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub fn body(&self) -> &[u8] {
        self.bytes.get(HEADER..).unwrap_or_default()
    }

    /// Wraps a parser's complaint with the message's type.
    pub fn malformed(&self, source: Malformed) -> ProtocolError {
        ProtocolError::Body {
            tag: self.tag,
            source,
        }
    }
}

/// Which side's limits apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    Frontend,
    Backend,
}

impl Sender {
    fn limit(self, tag: u8) -> usize {
        match (self, tag) {
            (Sender::Frontend, b'Q' | b'P' | b'B' | b'd' | b'F') | (Sender::Backend, _) => {
                MAX_MESSAGE
            }
            (Sender::Frontend, _) => MAX_SMALL_MESSAGE,
        }
    }
}

/// Takes one message off the front of `buffer`, or `None` when it is not all there yet.
///
/// # Errors
/// A length below 4 or above the sender's limit; the connection cannot be followed after that.
pub fn decode(buffer: &mut BytesMut, sender: Sender) -> Result<Option<Message>, ProtocolError> {
    let Some((header, _)) = buffer.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [tag, length @ ..] = *header;
    let length = i32::from_be_bytes(length);
    let body = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(4))
        .ok_or(ProtocolError::Length { tag, length })?;
    let limit = sender.limit(tag);
    let total = body.saturating_add(HEADER);
    if total > limit {
        return Err(ProtocolError::TooLong {
            tag,
            length: total,
            limit,
        });
    }
    if buffer.len() < total {
        // Room for what follows, but never on the strength of an announced length alone.
        buffer.reserve((total - buffer.len()).min(READ_AHEAD));
        return Ok(None);
    }
    let bytes = buffer.copy_to_bytes(total);
    Ok(Some(Message { tag, bytes }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_all(bytes: &[u8], sender: Sender) -> Result<Vec<Message>, ProtocolError> {
        let mut buffer = BytesMut::from(bytes);
        let mut messages = Vec::new();
        while let Some(message) = decode(&mut buffer, sender)? {
            messages.push(message);
        }
        Ok(messages)
    }

    #[test]
    fn impossible_lengths_are_errors() {
        for (name, bytes) in [
            ("zero", &b"Q\0\0\0\0"[..]),
            ("three", b"Q\0\0\0\x03"),
            ("negative", b"Q\xff\xff\xff\xff"),
            ("2^31-1", b"Q\x7f\xff\xff\xff"),
            ("small message too long", b"E\0\0\x40\0"),
        ] {
            assert!(decode_all(bytes, Sender::Frontend).is_err(), "{name}");
        }
    }

    #[test]
    fn half_a_message_needs_more() {
        assert_eq!(decode_all(b"Q\0\0\0\x08abc", Sender::Frontend), Ok(vec![]));
        assert_eq!(decode_all(b"Q\0\0", Sender::Frontend), Ok(vec![]));
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            for sender in [Sender::Frontend, Sender::Backend] {
                for message in decode_all(&bytes, sender).unwrap_or_default() {
                    let _ = frontend::Frontend::parse(&message);
                    let _ = backend::RowDescription::parse(&message);
                    let _ = backend::error_fields(&message);
                    let _ = backend::data_row(&message).map(|row| row.map(|v| v.is_ok()).collect::<Vec<_>>());
                }
            }
            let _ = startup::decode(&mut BytesMut::from(&bytes[..]));
        }

        /// Where the stream is cut makes no difference to what is read.
        #[test]
        fn every_split_reads_the_same(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..40), 1..6),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut wire = Vec::new();
            for body in &bodies {
                wire.push(b'd');
                wire.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
                wire.extend_from_slice(body);
            }
            let whole = decode_all(&wire, Sender::Backend).expect("valid");
            let at = cut.index(wire.len());
            let mut buffer = BytesMut::from(&wire[..at]);
            let mut split = Vec::new();
            while let Some(message) = decode(&mut buffer, Sender::Backend).expect("valid") {
                split.push(message);
            }
            buffer.extend_from_slice(&wire[at..]);
            while let Some(message) = decode(&mut buffer, Sender::Backend).expect("valid") {
                split.push(message);
            }
            prop_assert_eq!(whole, split);
        }
    }
}
