//! The recording's format: a header, then frames, each with its own checksum.
//!
//! ```text
//! header   magic 8 | version u16 | len u32 | crc32 u32 | len bytes of JSON      crc over version, len, JSON
//! frame    len u32 | crc32 u32 | kind u8 | unix ns u64 | len bytes of payload   crc over len, kind, ns, payload
//! ```
//! Integers are little-endian. The last frame of a finished recording is of kind [`Kind::End`] and counts
//! the frames before it, so a file that lost its last frames is known from one that is whole. A gateway
//! that dies leaves a file without it, perhaps with half a frame: everything before is readable.
//!
//! The checksums find accidents. Against intent there is the SHA-256 of the file in the log.

use std::time::SystemTime;

use serde_json::Value;

/// The first bytes of every recording. As in PNG, the high bit and the line ending show a transfer that
/// took the file for text.
pub const MAGIC: [u8; 8] = *b"\x89SLREC\r\n";
const VERSION: u16 = 1;

/// The longest payload of one frame. Readers refuse more, so that a damaged length cannot make them
/// allocate without limit; writers split.
pub const MAX_PAYLOAD: usize = 64 << 20;

/// Bytes before a frame's payload.
pub const HEAD: usize = 17;
const HEADER: usize = 18;

/// Who sent recorded bytes to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    AgentToTarget,
    TargetToAgent,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    AgentToTarget,
    TargetToAgent,
    /// JSON from the gateway: a denial, a decision, a remark.
    Note,
    /// The number of frames before it, u64: nothing follows.
    End,
}

impl Kind {
    fn to_byte(self) -> u8 {
        match self {
            Kind::AgentToTarget => 1,
            Kind::TargetToAgent => 2,
            Kind::Note => 3,
            Kind::End => 4,
        }
    }

    fn from_byte(byte: u8) -> Option<Kind> {
        [
            Kind::AgentToTarget,
            Kind::TargetToAgent,
            Kind::Note,
            Kind::End,
        ]
        .into_iter()
        .find(|kind| kind.to_byte() == byte)
    }

    pub fn direction(self) -> Option<Direction> {
        match self {
            Kind::AgentToTarget => Some(Direction::AgentToTarget),
            Kind::TargetToAgent => Some(Direction::TargetToAgent),
            Kind::Note | Kind::End => None,
        }
    }
}

impl From<Direction> for Kind {
    fn from(direction: Direction) -> Kind {
        match direction {
            Direction::AgentToTarget => Kind::AgentToTarget,
            Direction::TargetToAgent => Kind::TargetToAgent,
        }
    }
}

/// One frame, its payload still in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub kind: Kind,
    pub unix_ns: u64,
    pub payload: &'a [u8],
}

/// Why the bytes at some offset are not the next part of a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("not a sluice recording (wrong magic)")]
    NotARecording,
    #[error("recording format version {0} is not known to this sluice")]
    UnknownVersion(u16),
    #[error("a length of {0} bytes is over the limit of {MAX_PAYLOAD}")]
    TooLong(usize),
    #[error("checksum mismatch: the bytes were changed")]
    Checksum,
    #[error("the header is not JSON")]
    Header,
    #[error("frame kind {0} is not known to this sluice")]
    UnknownKind(u8),
    #[error("frames are missing: the last one counts {written}, {found} are here")]
    FrameCount { written: u64, found: u64 },
    #[error("bytes after the last frame")]
    AfterEnd,
}

/// Where a recording stops being readable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("byte {offset}, after {frames} whole frames: {why}")]
pub struct Damaged {
    pub offset: u64,
    pub frames: u64,
    pub why: Damage,
}

/// How a recording ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With its last frame: nothing is missing.
    Finished,
    /// After a whole frame: the session goes on, or the gateway died.
    Unfinished,
    /// Within a frame of which `bytes` are there.
    Torn {
        offset: u64,
        bytes: usize,
    },
    Damaged(Damaged),
}

/// A recording as far as it is readable.
#[derive(Debug)]
pub struct Contents<'a> {
    /// None when the header is incomplete or damaged.
    pub meta: Option<Value>,
    /// Without the last one of kind [`Kind::End`].
    pub frames: Vec<Frame<'a>>,
    pub ending: Ending,
}

/// Nanoseconds since 1970; times before are 0, after the year 2554 the greatest there is.
pub fn unix_ns(time: SystemTime) -> u64 {
    let since_epoch = time.duration_since(SystemTime::UNIX_EPOCH);
    since_epoch.map_or(0, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX))
}

/// The header of a recording that `meta` describes.
pub fn header(meta: &Value) -> Result<Vec<u8>, Damage> {
    let json = meta.to_string().into_bytes();
    let len = checked_len(json.len())?;
    let mut bytes = MAGIC.to_vec();
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend(len.to_le_bytes());
    bytes.extend(crc([&VERSION.to_le_bytes(), &len.to_le_bytes(), &json]));
    bytes.extend(json);
    Ok(bytes)
}

/// What stands before `payload` in its frame.
pub fn head(kind: Kind, unix_ns: u64, payload: &[u8]) -> Result<[u8; HEAD], Damage> {
    let len = checked_len(payload.len())?.to_le_bytes();
    let (kind, time) = ([kind.to_byte()], unix_ns.to_le_bytes());
    let crc = crc([&len, &kind, &time, payload]);
    let mut head = [0; HEAD];
    let parts = len.into_iter().chain(crc).chain(kind).chain(time);
    head.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
    Ok(head)
}

fn checked_len(len: usize) -> Result<u32, Damage> {
    match u32::try_from(len) {
        Ok(short) if len <= MAX_PAYLOAD => Ok(short),
        _ => Err(Damage::TooLong(len)),
    }
}

fn crc<const N: usize>(parts: [&[u8]; N]) -> [u8; 4] {
    let mut hasher = crc32fast::Hasher::new();
    parts.iter().for_each(|part| hasher.update(part));
    hasher.finalize().to_le_bytes()
}

/// One part of a recording, taken off the front of the input.
#[derive(Debug)]
pub enum Part<'a> {
    Meta(Value),
    Frame(Frame<'a>),
    /// The last frame; its time.
    End {
        unix_ns: u64,
    },
}

/// Takes a recording apart, however its bytes are cut into reads.
#[derive(Debug, Default)]
pub struct Parser {
    place: Place,
    offset: u64,
    frames: u64,
}

#[derive(Debug, Default)]
enum Place {
    #[default]
    Header,
    Frames,
    Ended,
}

impl Parser {
    /// The part at the front of `input` and how many bytes it took, or `None` when more bytes are needed.
    /// `input` starts where the part before ended.
    pub fn part<'a>(&mut self, input: &'a [u8]) -> Result<Option<(Part<'a>, usize)>, Damaged> {
        let parsed = match self.place {
            Place::Header => parse_header(input),
            Place::Frames => self.frame(input),
            Place::Ended if input.is_empty() => Ok(None),
            Place::Ended => Err(Damage::AfterEnd),
        };
        let Some((part, used)) = parsed.map_err(|why| self.damaged(why))? else {
            return Ok(None);
        };
        match part {
            Part::Meta(_) => self.place = Place::Frames,
            Part::Frame(_) => self.frames += 1,
            Part::End { .. } => self.place = Place::Ended,
        }
        self.offset += used as u64;
        Ok(Some((part, used)))
    }

    /// How the recording ends when `rest` is what [`Parser::part`] left over and there is no more.
    pub fn ending(&self, rest: &[u8]) -> Ending {
        match self.place {
            Place::Ended => Ending::Finished,
            Place::Frames if rest.is_empty() => Ending::Unfinished,
            Place::Header | Place::Frames => Ending::Torn {
                offset: self.offset,
                bytes: rest.len(),
            },
        }
    }

    /// Whole frames so far, the last one not counted.
    pub fn frames(&self) -> u64 {
        self.frames
    }

    fn damaged(&self, why: Damage) -> Damaged {
        Damaged {
            offset: self.offset,
            frames: self.frames,
            why,
        }
    }

    fn frame<'a>(&self, input: &'a [u8]) -> Result<Option<(Part<'a>, usize)>, Damage> {
        let Some((frame, used)) = parse_frame(input)? else {
            return Ok(None);
        };
        if frame.kind != Kind::End {
            return Ok(Some((Part::Frame(frame), used)));
        }
        let counted = field(frame.payload, 0).map(u64::from_le_bytes);
        match counted {
            Some(written) if written == self.frames => {
                let unix_ns = frame.unix_ns;
                Ok(Some((Part::End { unix_ns }, used)))
            }
            written => Err(Damage::FrameCount {
                written: written.unwrap_or(0),
                found: self.frames,
            }),
        }
    }
}

fn parse_header(input: &[u8]) -> Result<Option<(Part<'_>, usize)>, Damage> {
    if !input.iter().zip(&MAGIC).all(|(a, b)| a == b) {
        return Err(Damage::NotARecording);
    }
    let (Some(version), Some(len), Some(written)) =
        (field(input, 8), field(input, 10), field(input, 14))
    else {
        return Ok(None);
    };
    if u16::from_le_bytes(version) != VERSION {
        return Err(Damage::UnknownVersion(u16::from_le_bytes(version)));
    }
    let Some((json, used)) = body(input, HEADER, len)? else {
        return Ok(None);
    };
    if crc([&version, &len, json]) != written {
        return Err(Damage::Checksum);
    }
    let meta = serde_json::from_slice(json).map_err(|_| Damage::Header)?;
    Ok(Some((Part::Meta(meta), used)))
}

fn parse_frame(input: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Damage> {
    let (Some(len), Some(written), Some([kind]), Some(time)) = (
        field(input, 0),
        field(input, 4),
        field(input, 8),
        field(input, 9),
    ) else {
        return Ok(None);
    };
    let Some((payload, used)) = body(input, HEAD, len)? else {
        return Ok(None);
    };
    if crc([&len, &[kind], &time, payload]) != written {
        return Err(Damage::Checksum);
    }
    let frame = Frame {
        kind: Kind::from_byte(kind).ok_or(Damage::UnknownKind(kind))?,
        unix_ns: u64::from_le_bytes(time),
        payload,
    };
    Ok(Some((frame, used)))
}

fn field<const N: usize>(input: &[u8], at: usize) -> Option<[u8; N]> {
    input.get(at..)?.first_chunk().copied()
}

/// `len` bytes from `start`, and where they end; None while they are not all there.
fn body(input: &[u8], start: usize, len: [u8; 4]) -> Result<Option<(&[u8], usize)>, Damage> {
    let len = usize::try_from(u32::from_le_bytes(len)).unwrap_or(usize::MAX);
    if len > MAX_PAYLOAD {
        return Err(Damage::TooLong(len));
    }
    let end = start + len;
    Ok(input.get(start..end).map(|body| (body, end)))
}

/// Reads a whole recording, as far as it is intact.
pub fn read_all(input: &[u8]) -> Contents<'_> {
    let (mut parser, mut rest) = (Parser::default(), input);
    let (mut meta, mut frames) = (None, Vec::new());
    let ending = loop {
        match parser.part(rest) {
            Ok(Some((part, used))) => {
                rest = rest.get(used..).unwrap_or_default();
                match part {
                    Part::Meta(value) => meta = Some(value),
                    Part::Frame(frame) => frames.push(frame),
                    Part::End { .. } => {}
                }
            }
            Ok(None) => break parser.ending(rest),
            Err(damaged) => break Ending::Damaged(damaged),
        }
    };
    Contents {
        meta,
        frames,
        ending,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn encoded(kind: Kind, unix_ns: u64, payload: &[u8]) -> Vec<u8> {
        let mut bytes = head(kind, unix_ns, payload).unwrap().to_vec();
        bytes.extend(payload);
        bytes
    }

    /// A finished recording of these frames.
    fn recording(frames: &[(Kind, u64, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = header(&json!({"session": "s"})).unwrap();
        for (kind, time, payload) in frames {
            bytes.extend(encoded(*kind, *time, payload));
        }
        let count = (frames.len() as u64).to_le_bytes();
        bytes.extend(encoded(Kind::End, 9, &count));
        bytes
    }

    fn frames() -> impl Strategy<Value = Vec<(Kind, u64, Vec<u8>)>> {
        let kind = prop::sample::select(vec![Kind::AgentToTarget, Kind::TargetToAgent, Kind::Note]);
        let payload = prop::collection::vec(any::<u8>(), 0..60);
        prop::collection::vec((kind, any::<u64>(), payload), 0..8)
    }

    fn is_prefix(read: &[Frame<'_>], written: &[(Kind, u64, Vec<u8>)]) -> bool {
        read.len() <= written.len()
            && read
                .iter()
                .zip(written)
                .all(|(frame, (kind, time, payload))| {
                    frame.kind == *kind && frame.unix_ns == *time && frame.payload == payload
                })
    }

    /// How many whole frames stand before byte `at`.
    fn frames_before(at: usize, written: &[(Kind, u64, Vec<u8>)]) -> usize {
        let mut end = header(&json!({"session": "s"})).unwrap().len();
        let ends = written.iter().map(|(_, _, payload)| {
            end += HEAD + payload.len();
            end
        });
        ends.take_while(|end| *end <= at).count()
    }

    #[test]
    fn the_format_does_not_change_by_accident() {
        let bytes = recording(&[(Kind::Note, 1, b"{}".to_vec())]);
        assert_eq!(
            hex::encode(bytes),
            "89534c5245430d0a01000f000000905d6ff27b2273657373696f6e223a2273227d\
             02000000f5120aeb0301000000000000007b7d\
             0800000072e52f060409000000000000000100000000000000"
        );
    }

    #[test]
    fn endings_are_told_apart() {
        let whole = recording(&[(Kind::Note, 1, b"{}".to_vec())]);
        let first =
            frames_before(usize::MAX, &[]) + header(&json!({"session": "s"})).unwrap().len();
        let end = whole.len() - HEAD - 8;
        let damaged = |ending: &Ending| matches!(ending, Ending::Damaged(_));
        type Row<'a> = (&'a str, Vec<u8>, &'a dyn Fn(&Ending) -> bool);
        let table: &[Row<'_>] = &[
            ("whole", whole.clone(), &|e| *e == Ending::Finished),
            ("empty file", vec![], &|e| {
                *e == Ending::Torn {
                    offset: 0,
                    bytes: 0,
                }
            }),
            ("half a header", whole[..10].to_vec(), &|e| {
                *e == Ending::Torn {
                    offset: 0,
                    bytes: 10,
                }
            }),
            ("header only", whole[..first].to_vec(), &|e| {
                *e == Ending::Unfinished
            }),
            ("no last frame", whole[..end].to_vec(), &|e| {
                *e == Ending::Unfinished
            }),
            ("half a frame", whole[..end - 1].to_vec(), &|e| {
                matches!(e, Ending::Torn { bytes: 18, .. })
            }),
            (
                "a frame removed",
                [&whole[..first], &whole[end..]].concat(),
                &damaged,
            ),
            (
                "a frame repeated",
                [&whole[..end], &whole[first..]].concat(),
                &damaged,
            ),
            ("bytes after the end", [&whole[..], b"x"].concat(), &damaged),
            ("another file", b"PK\x03\x04".to_vec(), &damaged),
            (
                "a length of 4 GiB",
                [&whole[..first], &[0xff; 20]].concat(),
                &damaged,
            ),
            (
                "zeros after a crash",
                [&whole[..end], &[0; 4096]].concat(),
                &damaged,
            ),
        ];
        for (name, bytes, expected) in table {
            let contents = read_all(bytes);
            assert!(expected(&contents.ending), "{name}: {:?}", contents.ending);
        }
    }

    #[test]
    fn an_oversized_payload_is_refused_when_written() {
        let payload = vec![0; MAX_PAYLOAD + 1];
        assert_eq!(
            head(Kind::Note, 0, &payload),
            Err(Damage::TooLong(MAX_PAYLOAD + 1))
        );
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(written in frames()) {
            let bytes = recording(&written);
            let contents = read_all(&bytes);
            prop_assert_eq!(contents.ending, Ending::Finished);
            prop_assert_eq!(contents.frames.len(), written.len());
            prop_assert!(is_prefix(&contents.frames, &written));
        }

        #[test]
        fn any_truncation_is_noticed_and_costs_only_the_cut_frame(written in frames(), at in any::<prop::sample::Index>()) {
            let bytes = recording(&written);
            let at = at.index(bytes.len());
            let contents = read_all(&bytes[..at]);
            prop_assert!(contents.ending != Ending::Finished);
            prop_assert!(is_prefix(&contents.frames, &written));
            prop_assert_eq!(contents.frames.len(), frames_before(at, &written));
        }

        #[test]
        fn any_bit_flip_is_noticed_and_spares_the_frames_before(written in frames(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let mut bytes = recording(&written);
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            let contents = read_all(&bytes);
            prop_assert!(contents.ending != Ending::Finished);
            prop_assert!(is_prefix(&contents.frames, &written));
            prop_assert_eq!(contents.frames.len(), frames_before(at, &written));
        }

        #[test]
        fn hostile_bytes_never_panic(tail in prop::collection::vec(any::<u8>(), 0..300), with_header: bool) {
            let mut bytes = if with_header { header(&json!({})).unwrap() } else { MAGIC.to_vec() };
            bytes.extend(tail);
            let _ = read_all(&bytes);
        }
    }
}
