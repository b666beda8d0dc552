//! PostgreSQL's frontend/backend protocol 3.0.
//!
//! Source: the chapter "Frontend/Backend Protocol" of PostgreSQL's manual, and for limits the server's
//! own (`src/backend/tcop/postgres.c`, `src/include/libpq/pqcomm.h`).

use bytes::{Buf, Bytes, BytesMut};

use super::cursor::Malformed;

pub mod backend;
pub mod encode;
pub mod frontend;
pub mod scram;
pub mod startup;
pub mod values;

/// The longest message in an answer to a question of the gateway's own, header included.
pub const LONGEST_ANSWER: usize = 64 << 20;

/// The server's cap for messages that have no business being long (`PQ_SMALL_MESSAGE_LIMIT`, which does
/// not count the type).
const LONGEST_SMALL: usize = 10_000 + 1;

/// The server's cap for any message from a client (`PQ_LARGE_MESSAGE_LIMIT`, likewise).
const LONGEST_FROM_CLIENT: usize = 0x3fff_fffe + 1;

/// Longer messages may pass in pieces: see [`Decoder`].
pub const LONGEST_HELD: usize = 64 << 10;

/// How far a buffer grows ahead of what has arrived.
const READ_AHEAD: usize = 64 << 10;

/// Bytes of type and length before a message's body.
pub const HEADER: usize = 5;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    #[error("message type {} has the impossible length {length}", display_tag(*.tag))]
    Length { tag: u8, length: i32 },
    /// Over the limit that the target's configuration sets.
    #[error(
        "message type {} of {length} bytes is longer than the {limit} bytes allowed",
        display_tag(*.tag)
    )]
    TooLong {
        tag: u8,
        length: usize,
        limit: usize,
    },
    #[error(
        "message type {} of {length} bytes: PostgreSQL takes no more than {} bytes of that type",
        display_tag(*.tag),
        LONGEST_SMALL
    )]
    TooLongForType { tag: u8, length: usize },
    #[error("message type {} is malformed: {source}", display_tag(*.tag))]
    Body { tag: u8, source: Malformed },
    #[error("message type {} is not part of the protocol here", display_tag(*.tag))]
    Unexpected { tag: u8 },
    #[error("start-up packet of {length} bytes: must be 8 to 10000")]
    StartupLength { length: i32 },
    #[error("start-up packet is malformed: {0}")]
    Startup(Malformed),
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
    /// Whether the server would take a long message of this type from a client; what it sends itself has
    /// one limit.
    fn may_be_long(self, tag: u8) -> bool {
        self == Sender::Backend || matches!(tag, b'Q' | b'P' | b'B' | b'd' | b'F')
    }
}

/// A message's first bytes: its type, and its length with the header.
#[derive(Debug, Clone, Copy)]
struct Header {
    tag: u8,
    total: usize,
}

impl Header {
    fn read(bytes: &[u8], sender: Sender, limit: usize) -> Result<Option<Self>, ProtocolError> {
        let Some((header, _)) = bytes.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [tag, length @ ..] = *header;
        let length = i32::from_be_bytes(length);
        let body = usize::try_from(length)
            .ok()
            .and_then(|length| length.checked_sub(4))
            .ok_or(ProtocolError::Length { tag, length })?;
        let total = body.saturating_add(HEADER);
        if total > LONGEST_SMALL && !sender.may_be_long(tag) {
            return Err(ProtocolError::TooLongForType { tag, length: total });
        }
        let limit = match sender {
            Sender::Frontend => limit.min(LONGEST_FROM_CLIENT),
            Sender::Backend => limit,
        };
        if total > limit {
            return Err(ProtocolError::TooLong {
                tag,
                length: total,
                limit,
            });
        }
        Ok(Some(Self { tag, total }))
    }

    fn whole(self, buffer: &mut BytesMut) -> Option<Message> {
        let Self { tag, total } = self;
        if buffer.len() < total {
            // Room for what follows, but never on the strength of an announced length alone.
            buffer.reserve((total - buffer.len()).min(READ_AHEAD));
            return None;
        }
        let bytes = buffer.copy_to_bytes(total);
        Some(Message { tag, bytes })
    }
}

/// Takes one message off the front of `buffer`, or `None` when it is not all there yet. `limit` counts the
/// header.
///
/// # Errors
/// A length below 4 or above the sender's limit; the connection cannot be followed after that.
pub fn decode(
    buffer: &mut BytesMut,
    sender: Sender,
    limit: usize,
) -> Result<Option<Message>, ProtocolError> {
    let header = Header::read(buffer, sender, limit)?;
    Ok(header.and_then(|header| header.whole(buffer)))
}

/// What a [`Decoder`] takes off the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    Whole(Message),
    Piece(Piece),
}

/// A part of a message that is too long to be held. The first one begins with the header.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    tag: u8,
    total: usize,
    first: bool,
    bytes: Bytes,
}

impl Piece {
    pub fn tag(&self) -> u8 {
        self.tag
    }

    /// Length of the whole message, its header included.
    pub fn total(&self) -> usize {
        self.total
    }

    /// Whether the message begins with it.
    pub fn is_first(&self) -> bool {
        self.first
    }

    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}

/// Cuts one direction of a connection into messages. What is longer than [`LONGEST_HELD`] comes in the
/// pieces in which it arrives, where whoever decodes has no need to see it whole.
#[derive(Debug)]
pub struct Decoder {
    sender: Sender,
    limit: usize,
    within: Option<Within>,
}

/// A message of which pieces are still to come.
#[derive(Debug, Clone, Copy)]
struct Within {
    header: Header,
    left: usize,
}

impl Decoder {
    pub fn new(sender: Sender, limit: usize) -> Self {
        Self {
            sender,
            limit,
            within: None,
        }
    }

    /// Whether the next bytes belong to a message that has passed in part.
    pub fn is_within(&self) -> bool {
        self.within.is_some()
    }

    /// Takes what is next off the front of `buffer`, or `None` when more bytes are needed. `may_pass` says
    /// whether a long message of a type may come in pieces.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn next(
        &mut self,
        buffer: &mut BytesMut,
        may_pass: impl FnOnce(u8) -> bool,
    ) -> Result<Option<Frame>, ProtocolError> {
        if let Some(within) = self.within {
            return Ok(self.piece(within, buffer, false));
        }
        let Some(header) = Header::read(buffer, self.sender, self.limit)? else {
            return Ok(None);
        };
        let arrives = buffer.len() < header.total && header.total > LONGEST_HELD;
        if arrives && may_pass(header.tag) {
            let left = header.total;
            return Ok(self.piece(Within { header, left }, buffer, true));
        }
        Ok(header.whole(buffer).map(Frame::Whole))
    }

    fn piece(&mut self, within: Within, buffer: &mut BytesMut, first: bool) -> Option<Frame> {
        if buffer.is_empty() {
            return None;
        }
        let Within { header, left } = within;
        let bytes = buffer.copy_to_bytes(left.min(buffer.len()));
        let left = left.saturating_sub(bytes.len());
        self.within = (left > 0).then_some(Within { header, left });
        Some(Frame::Piece(Piece {
            tag: header.tag,
            total: header.total,
            first,
            bytes,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: usize = 1 << 20;

    fn decode_all(bytes: &[u8], sender: Sender) -> Result<Vec<Message>, ProtocolError> {
        let mut buffer = BytesMut::from(bytes);
        let mut messages = Vec::new();
        while let Some(message) = decode(&mut buffer, sender, LIMIT)? {
            messages.push(message);
        }
        Ok(messages)
    }

    fn wire(messages: &[(u8, usize)]) -> Vec<u8> {
        let mut wire = Vec::new();
        for (index, (tag, length)) in messages.iter().enumerate() {
            wire.push(*tag);
            wire.extend_from_slice(&(*length as u32 + 4).to_be_bytes());
            wire.extend((0..*length).map(|at| (index + at) as u8));
        }
        wire
    }

    #[test]
    fn impossible_lengths_are_errors() {
        for (name, bytes) in [
            ("zero", &b"Q\0\0\0\0"[..]),
            ("three", b"Q\0\0\0\x03"),
            ("negative", b"Q\xff\xff\xff\xff"),
            ("2^31-1", b"Q\x7f\xff\xff\xff"),
            ("small message too long", b"E\0\0\x27\x11"),
        ] {
            assert!(decode_all(bytes, Sender::Frontend).is_err(), "{name}");
        }
    }

    #[test]
    fn limits_are_the_servers_or_the_configured_one() {
        let length = |tag, length: u32| [&[tag][..], &length.to_be_bytes()].concat();
        let limit = u32::try_from(LIMIT).unwrap();
        for (name, bytes, sender, fits) in [
            ("Sync", length(b'S', 10_000), Sender::Frontend, true),
            ("longer Sync", length(b'S', 10_001), Sender::Frontend, false),
            ("Bind", length(b'B', limit - 1), Sender::Frontend, true),
            ("longer Bind", length(b'B', limit), Sender::Frontend, false),
            (
                "Sync's answer",
                length(b'Z', limit - 1),
                Sender::Backend,
                true,
            ),
            ("longer row", length(b'D', limit), Sender::Backend, false),
        ] {
            assert_eq!(decode_all(&bytes, sender).is_ok(), fits, "{name}");
        }
    }

    #[test]
    fn half_a_message_needs_more() {
        assert_eq!(decode_all(b"Q\0\0\0\x08abc", Sender::Frontend), Ok(vec![]));
        assert_eq!(decode_all(b"Q\0\0", Sender::Frontend), Ok(vec![]));
    }

    /// What is held is bounded: a long message that may pass is never waited for.
    #[test]
    fn a_long_message_passes_as_it_arrives() {
        let wire = wire(&[(b'd', LONGEST_HELD), (b'C', 3)]);
        let mut decoder = Decoder::new(Sender::Backend, LIMIT);
        let mut buffer = BytesMut::new();
        let mut sizes = Vec::new();
        for part in wire.chunks(10_000) {
            buffer.extend_from_slice(part);
            while let Some(frame) = decoder.next(&mut buffer, |tag| tag == b'd').unwrap() {
                match frame {
                    Frame::Piece(piece) => {
                        assert_eq!(piece.is_first(), sizes.is_empty());
                        assert_eq!(piece.total(), LONGEST_HELD + HEADER);
                        sizes.push(piece.bytes().len());
                    }
                    Frame::Whole(message) => assert_eq!(message.tag(), b'C'),
                }
            }
        }
        assert_eq!(sizes.len(), wire.len().div_ceil(10_000));
        assert!(!decoder.is_within() && buffer.is_empty());
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

        /// Where the stream is cut makes no difference to what is read: whole messages are the same, and
        /// the pieces of the others are, put together.
        #[test]
        fn every_split_reads_the_same(
            messages in proptest::collection::vec(
                (
                    prop_oneof![Just(b'D'), Just(b'd'), Just(b'E')],
                    prop_oneof![0..40_usize, LONGEST_HELD - 10..2 * LONGEST_HELD],
                ),
                1..6,
            ),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..40),
        ) {
            let wire = wire(&messages);
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(wire.len())).collect();
            cuts.extend([0, wire.len()]);
            cuts.sort_unstable();
            let mut decoder = Decoder::new(Sender::Backend, LIMIT);
            let mut buffer = BytesMut::new();
            let mut read: Vec<Vec<u8>> = Vec::new();
            for pair in cuts.windows(2) {
                buffer.extend_from_slice(&wire[pair[0]..pair[1]]);
                while let Some(frame) = decoder.next(&mut buffer, |tag| tag != b'E').unwrap() {
                    match frame {
                        Frame::Whole(message) => read.push(message.bytes().to_vec()),
                        Frame::Piece(piece) if piece.is_first() => {
                            prop_assert_ne!(piece.tag(), b'E');
                            read.push(piece.bytes().to_vec());
                        }
                        Frame::Piece(piece) => {
                            read.last_mut().unwrap().extend_from_slice(piece.bytes());
                        }
                    }
                }
            }
            prop_assert!(buffer.is_empty() && !decoder.is_within());
            let whole = decode_all(&wire, Sender::Backend).expect("valid");
            let whole: Vec<Vec<u8>> = whole.iter().map(|it| it.bytes().to_vec()).collect();
            prop_assert_eq!(read, whole);
        }
    }
}
