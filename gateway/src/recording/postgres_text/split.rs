//! Cuts one direction of the stream into messages (PostgreSQL documentation, "Message Formats").

/// Longer messages are counted, not kept: a replay's memory must not depend on what was recorded.
const LONGEST: usize = 16 << 20;
/// PostgreSQL's own limit is 10,000 bytes.
const LONGEST_STARTUP: usize = 64 << 10;

const SSL_REQUEST: u32 = 80_877_103;
const GSS_REQUEST: u32 = 80_877_104;
const CANCEL_REQUEST: u32 = 80_877_102;

/// One message, without its type and length.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// The parameters of a StartupMessage.
    Startup(Vec<u8>),
    EncryptionRequest,
    EncryptionAnswer(u8),
    Cancel,
    Typed(u8, Vec<u8>),
    /// A message too long to keep.
    Long(u8, usize),
    /// Bytes that are no message; nothing after them is one.
    Unreadable(usize),
}

#[derive(Debug)]
pub(super) struct Splitter {
    phase: Phase,
    buffer: Vec<u8>,
    /// Bytes of a long message still to come.
    skip: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Messages without a type, at the beginning of the agent's side.
    Startup,
    Typed,
    /// One byte is expected, the answer to an encryption request.
    EncryptionAnswer,
    Unreadable,
}

impl Splitter {
    pub(super) fn agent() -> Splitter {
        Splitter::starting_with(Phase::Startup)
    }

    pub(super) fn target() -> Splitter {
        Splitter::starting_with(Phase::Typed)
    }

    fn starting_with(phase: Phase) -> Splitter {
        Splitter {
            phase,
            buffer: Vec::new(),
            skip: 0,
        }
    }

    /// The agent asked for encryption; the target's next byte is the answer.
    pub(super) fn expect_encryption_answer(&mut self) {
        if self.phase == Phase::Typed && self.buffer.is_empty() {
            self.phase = Phase::EncryptionAnswer;
        }
    }

    /// The messages that `bytes` complete.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        let skipped = self.skip.min(bytes.len());
        self.skip -= skipped;
        self.buffer
            .extend_from_slice(bytes.get(skipped..).unwrap_or_default());
        let mut pieces = Vec::new();
        let mut start = 0;
        while let Some(rest) = self.buffer.get(start..).filter(|rest| !rest.is_empty()) {
            let Some((piece, used, phase)) = piece(self.phase, rest) else {
                break;
            };
            self.skip = used.saturating_sub(rest.len());
            start += used - self.skip;
            self.phase = phase;
            pieces.extend(piece);
        }
        self.buffer.drain(..start);
        pieces
    }
}

/// The piece at the front, how many bytes it has (perhaps more than are there) and what comes next; None
/// while it is incomplete.
fn piece(phase: Phase, rest: &[u8]) -> Option<(Option<Piece>, usize, Phase)> {
    match phase {
        Phase::Startup if rest.first() == Some(&0) => startup(rest),
        Phase::Startup | Phase::Typed => typed(rest),
        Phase::EncryptionAnswer => Some(encryption_answer(rest)),
        Phase::Unreadable => Some(unreadable(rest)),
    }
}

fn unreadable(rest: &[u8]) -> (Option<Piece>, usize, Phase) {
    let piece = Piece::Unreadable(rest.len());
    (Some(piece), rest.len(), Phase::Unreadable)
}

/// `S`, `N` or `G`; anything else, or something that has a message's length behind it, was not recorded
/// as an answer.
fn encryption_answer(rest: &[u8]) -> (Option<Piece>, usize, Phase) {
    let plausible = length(rest, 1).is_some_and(|len| (4..=LONGEST_STARTUP).contains(&len));
    match rest.first() {
        Some(answer @ (b'S' | b'N' | b'G')) if !plausible => {
            (Some(Piece::EncryptionAnswer(*answer)), 1, Phase::Typed)
        }
        _ => (None, 0, Phase::Typed),
    }
}

fn startup(rest: &[u8]) -> Option<(Option<Piece>, usize, Phase)> {
    let len = length(rest, 0)?;
    if !(8..=LONGEST_STARTUP).contains(&len) {
        return Some(unreadable(rest));
    }
    let message = rest.get(..len)?;
    let code = message.get(4..8)?.try_into().map(u32::from_be_bytes).ok()?;
    let (piece, phase) = match code {
        SSL_REQUEST | GSS_REQUEST => (Piece::EncryptionRequest, Phase::Startup),
        CANCEL_REQUEST => (Piece::Cancel, Phase::Startup),
        _ => (Piece::Startup(message.get(8..)?.to_vec()), Phase::Typed),
    };
    Some((Some(piece), len, phase))
}

fn typed(rest: &[u8]) -> Option<(Option<Piece>, usize, Phase)> {
    let tag = *rest.first()?;
    let len = length(rest, 1)?;
    if len < 4 || !tag.is_ascii_alphanumeric() {
        return Some(unreadable(rest));
    }
    let used = len.checked_add(1)?;
    if len > LONGEST {
        return Some((Some(Piece::Long(tag, len - 4)), used, Phase::Typed));
    }
    let body = rest.get(5..used)?.to_vec();
    Some((Some(Piece::Typed(tag, body)), used, Phase::Typed))
}

fn length(bytes: &[u8], at: usize) -> Option<usize> {
    let field = bytes.get(at..)?.first_chunk()?;
    usize::try_from(u32::from_be_bytes(*field)).ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::{message, startup};
    use super::*;

    #[test]
    fn messages_are_cut_where_they_end() {
        let ssl = [&8u32.to_be_bytes()[..], &SSL_REQUEST.to_be_bytes()].concat();
        let query = message(b'Q', b"x\0");
        let table: &[(&str, Vec<u8>, Vec<Piece>)] = &[
            ("nothing", vec![], vec![]),
            ("half", query[..5].to_vec(), vec![]),
            (
                "one",
                query.clone(),
                vec![Piece::Typed(b'Q', b"x\0".to_vec())],
            ),
            (
                "encryption, then startup",
                [&ssl[..], &startup(b"\0"), &query].concat(),
                vec![
                    Piece::EncryptionRequest,
                    Piece::Startup(b"\0".to_vec()),
                    Piece::Typed(b'Q', b"x\0".to_vec()),
                ],
            ),
            (
                "length 3",
                b"Q\0\0\0\x03".to_vec(),
                vec![Piece::Unreadable(5)],
            ),
            ("startup length 0", vec![0; 8], vec![Piece::Unreadable(8)]),
            (
                "no type",
                b"\x80\0\0\0\x04".to_vec(),
                vec![Piece::Unreadable(5)],
            ),
        ];
        for (name, bytes, expected) in table {
            assert_eq!(Splitter::agent().feed(bytes), *expected, "{name}");
        }
    }

    #[test]
    fn a_long_message_is_passed_over() {
        let mut splitter = Splitter::target();
        let len = LONGEST + 1;
        let head = [b"d", &u32::try_from(len).unwrap().to_be_bytes()[..]].concat();
        assert_eq!(splitter.feed(&head), [Piece::Long(b'd', len - 4)]);
        for _ in 0..16 {
            assert_eq!(splitter.feed(&vec![b'x'; 1 << 20][..(len - 4) / 16]), []);
        }
        let rest = vec![b'x'; (len - 4) % 16];
        let end = splitter.feed(&[&rest[..], &message(b'c', b"")].concat());
        assert_eq!(end, [Piece::Typed(b'c', vec![])]);
    }

    #[test]
    fn the_answer_to_an_encryption_request_is_one_byte() {
        let ready = message(b'Z', b"I");
        let parameter = message(b'S', b"a\0b\0");
        let ready_piece = || Piece::Typed(b'Z', b"I".to_vec());
        let table = [
            ("alone", b"N".to_vec(), vec![Piece::EncryptionAnswer(b'N')]),
            (
                "with the next message",
                [b"N", &ready[..]].concat(),
                vec![Piece::EncryptionAnswer(b'N'), ready_piece()],
            ),
            (
                "not recorded",
                parameter,
                vec![Piece::Typed(b'S', b"a\0b\0".to_vec())],
            ),
        ];
        for (name, bytes, expected) in table {
            let mut splitter = Splitter::target();
            splitter.expect_encryption_answer();
            assert_eq!(splitter.feed(&bytes), expected, "{name}");
        }
    }
}
