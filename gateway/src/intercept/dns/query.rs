//! A query as an agent sent it: bytes → question.
//!
//! Stricter than a resolver of the Internet has to be: one question, no records but the OPT pseudo-record
//! (and a signature nobody checks), no trailing bytes. Whatever else a message could carry is a place to hide data.

#![cfg_attr(
    not(test),
    deny(
        clippy::as_conversions,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

use hickory_proto::op::{Header, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, DecodeError};

/// A query has a header, a name of at most 255 bytes, and options of a few dozen. The same over TCP.
pub const MAX_QUERY: usize = 4096;

/// What a sender without EDNS can take over UDP (RFC 1035 §4.2.1), and the least anybody can.
pub const PLAIN_PAYLOAD: u16 = 512;

/// What fits every path without fragments: the DNS flag day 2020's number. More is asked for over TCP.
pub const MAX_PAYLOAD: u16 = 1232;

/// One question, and what its answer has to repeat.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    pub id: u16,
    pub recursion_desired: bool,
    pub checking_disabled: bool,
    /// As it was spelt: the answer repeats it letter by letter (some resolvers compare).
    pub name: Name,
    pub kind: RecordType,
    pub class: DNSClass,
    pub edns: Option<Edns>,
}

/// What the OPT pseudo-record said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Edns {
    pub version: u8,
    /// Bytes of UDP payload that the sender can take.
    pub payload: u16,
}

impl Question {
    /// The name as configuration spells names: lower case, without the final dot, odd bytes escaped.
    pub fn text(&self) -> String {
        let mut text = self.name.to_lowercase().to_ascii();
        if text.ends_with('.') && text.len() > 1 {
            text.pop();
        }
        text
    }

    pub fn longest_label(&self) -> usize {
        self.name.iter().map(<[u8]>::len).max().unwrap_or(0)
    }

    /// How long an answer over UDP may be.
    pub fn udp_limit(&self) -> usize {
        let payload = self.edns.map_or(PLAIN_PAYLOAD, |edns| edns.payload);
        usize::from(payload.clamp(PLAIN_PAYLOAD, MAX_PAYLOAD))
    }
}

/// Why a message is no question.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Nothing is said to its sender: there is no id to answer to, or it is an answer itself.
    #[error("{0}")]
    Unanswerable(&'static str),
    #[error("{reason}")]
    Refusable {
        id: u16,
        op_code: OpCode,
        rcode: ResponseCode,
        reason: String,
    },
}

/// Reads the one question of a message.
///
/// # Errors
/// What to tell the sender, if anything: FORMERR, or NOTIMP for another operation than a query (RFC 1035 §4.1.1).
pub fn parse(message: &[u8]) -> Result<Question, Malformed> {
    let mut decoder = BinDecoder::new(message);
    let header =
        Header::read(&mut decoder).map_err(|_| Malformed::Unanswerable("shorter than a header"))?;
    if header.message_type == MessageType::Response {
        return Err(Malformed::Unanswerable("an answer, not a question"));
    }
    let refuse = |rcode, reason: &str| Malformed::Refusable {
        id: header.id,
        op_code: header.op_code,
        rcode,
        reason: reason.to_owned(),
    };
    let malformed = |error: DecodeError| refuse(ResponseCode::FormErr, &error.to_string());
    if message.len() > MAX_QUERY {
        return Err(refuse(ResponseCode::FormErr, "longer than any query"));
    }
    if header.op_code != OpCode::Query {
        return Err(refuse(ResponseCode::NotImp, "not a query"));
    }
    let counts = header.counts;
    if counts.queries != 1 {
        return Err(refuse(ResponseCode::FormErr, "not exactly one question"));
    }
    if counts.answers != 0 || counts.authorities != 0 || counts.additionals > 2 {
        return Err(refuse(ResponseCode::FormErr, "records in a query"));
    }
    let query = Query::read(&mut decoder).map_err(malformed)?;
    let (_, edns, _) = Message::read_records(
        &mut decoder,
        usize::from(counts.additionals),
        true,
        header.op_code,
    )
    .map_err(malformed)?;
    if !decoder.is_empty() {
        return Err(refuse(ResponseCode::FormErr, "bytes after the end"));
    }
    Ok(Question {
        id: header.id,
        recursion_desired: header.recursion_desired,
        checking_disabled: header.checking_disabled,
        name: query.name().clone(),
        kind: query.query_type(),
        class: query.query_class(),
        edns: edns.map(|edns| Edns {
            version: edns.version(),
            payload: edns.max_payload(),
        }),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// `7 RD QUERY 1 0 0 n`, then `rest`.
    fn message(additionals: u8, rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, additionals];
        bytes.extend_from_slice(rest);
        bytes
    }

    const DB: &[u8] = b"\x02Db\x08Internal\0\0\x01\0\x01";
    const OPT: &[u8] = b"\0\0\x29\x04\xd0\0\0\0\0\0\0";

    fn with(parts: &[&[u8]]) -> Vec<u8> {
        parts.concat()
    }

    #[test]
    fn a_question() {
        let question = parse(&message(1, &with(&[DB, OPT]))).unwrap();
        assert_eq!(question.id, 7);
        assert!(question.recursion_desired);
        assert_eq!(question.text(), "db.internal");
        assert_eq!(question.name.to_ascii(), "Db.Internal.");
        assert_eq!(question.longest_label(), 8);
        assert_eq!(question.kind, RecordType::A);
        assert_eq!(question.class, DNSClass::IN);
        assert_eq!(
            question.edns,
            Some(Edns {
                version: 0,
                payload: 1232
            })
        );
        assert_eq!(question.udp_limit(), 1232);
    }

    #[test]
    fn names_as_text() {
        let rows: [(&[u8], &str); 5] = [
            (b"\0", "."),
            (b"\x02db\0", "db"),
            (b"\x04_pg1\x02DB\0", "_pg1.db"),
            // A dot inside of a label is not the dot between labels.
            (b"\x0bdb.internal\0", "db\\.internal"),
            (b"\x03\xff a\0", "\\377\\040a"),
        ];
        for (wire, expected) in rows {
            let bytes = message(0, &with(&[wire, b"\0\x01\0\x01"]));
            let text = parse(&bytes).unwrap().text();
            assert_eq!(text, expected, "{wire:?}");
        }
    }

    #[test]
    fn udp_limits() {
        for (payload, expected) in [
            (0u16, 512),
            (511, 512),
            (900, 900),
            (1232, 1232),
            (65535, 1232),
        ] {
            let mut opt = OPT.to_vec();
            opt[3..5].copy_from_slice(&payload.to_be_bytes());
            let question = parse(&message(1, &with(&[DB, &opt]))).unwrap();
            assert_eq!(question.udp_limit(), expected, "{payload}");
        }
        assert_eq!(parse(&message(0, DB)).unwrap().udp_limit(), 512);
    }

    #[test]
    fn what_is_no_question() {
        use ResponseCode::{FormErr, NotImp};
        let long_name = [b"\x3f".as_slice(), &[b'a'; 63]].concat().repeat(4);
        let long_name = with(&[&long_name, b"\0\0\x01\0\x01"]);
        let header = |flags: u8, counts: [u8; 4]| {
            let mut bytes = message(counts[3], DB);
            bytes[2] = flags;
            (bytes[5], bytes[7], bytes[9]) = (counts[0], counts[1], counts[2]);
            bytes
        };
        let rows: Vec<(&str, Vec<u8>, Option<ResponseCode>)> = vec![
            ("nothing", vec![], None),
            ("half a header", vec![0; 11], None),
            ("an answer", header(0x81, [1, 0, 0, 0]), None),
            ("a status request", header(0x10, [1, 0, 0, 0]), Some(NotImp)),
            ("an update", header(0x28, [1, 0, 0, 0]), Some(NotImp)),
            ("no question", header(1, [0, 0, 0, 0]), Some(FormErr)),
            ("two questions", header(1, [2, 0, 0, 0]), Some(FormErr)),
            ("an answer section", header(1, [1, 1, 0, 0]), Some(FormErr)),
            (
                "an authority section",
                header(1, [1, 0, 1, 0]),
                Some(FormErr),
            ),
            ("three additionals", header(1, [1, 0, 0, 3]), Some(FormErr)),
            ("a missing record", message(1, DB), Some(FormErr)),
            (
                "trailing bytes",
                message(0, &with(&[DB, b"x"])),
                Some(FormErr),
            ),
            ("two OPT", message(2, &with(&[DB, OPT, OPT])), Some(FormErr)),
            (
                "a name that ends early",
                message(0, b"\x05db"),
                Some(FormErr),
            ),
            ("a name of 257 bytes", message(0, &long_name), Some(FormErr)),
            (
                "a pointer to itself",
                message(0, b"\xc0\x0c\0\x01\0\x01"),
                Some(FormErr),
            ),
            (
                "a pointer forward",
                message(0, b"\xc0\x12\0\x01\0\x01\x01a\0"),
                Some(FormErr),
            ),
            (
                "a label type of no kind",
                message(0, b"\x80a\0\0\x01\0\x01"),
                Some(FormErr),
            ),
            ("too long", message(0, &[0; MAX_QUERY]), Some(FormErr)),
        ];
        for (what, bytes, expected) in rows {
            let said = match parse(&bytes) {
                Ok(question) => panic!("{what}: {question:?}"),
                Err(Malformed::Unanswerable(_)) => None,
                Err(Malformed::Refusable { id, rcode, .. }) => {
                    assert_eq!(id, if bytes[1] == 7 { 7 } else { 0 }, "{what}");
                    Some(rcode)
                }
            };
            assert_eq!(said, expected, "{what}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Ok(question) = parse(&bytes) {
                prop_assert!(question.longest_label() <= 63);
                prop_assert!(question.name.len() <= 255);
                prop_assert!((512..=1232).contains(&question.udp_limit()));
                let _ = question.text();
            }
        }

        /// What a client can spell is read as it was spelt.
        #[test]
        fn questions_survive(
            id in any::<u16>(),
            labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..=40), 0..5),
            kind in any::<u16>(),
            edns in proptest::option::of((0u8..2, 512u16..)),
        ) {
            let mut bytes = vec![];
            bytes.extend_from_slice(&id.to_be_bytes());
            bytes.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns.is_some())]);
            for label in &labels {
                bytes.push(label.len() as u8);
                bytes.extend_from_slice(label);
            }
            bytes.push(0);
            bytes.extend_from_slice(&kind.to_be_bytes());
            bytes.extend_from_slice(&[0, 1]);
            if let Some((version, payload)) = edns {
                bytes.extend_from_slice(b"\0\0\x29");
                bytes.extend_from_slice(&payload.to_be_bytes());
                bytes.extend_from_slice(&[0, version, 0, 0, 0, 0]);
            }
            let question = parse(&bytes).unwrap();
            prop_assert_eq!(question.id, id);
            prop_assert_eq!(u16::from(question.kind), kind);
            let read: Vec<Vec<u8>> = question.name.iter().map(<[u8]>::to_vec).collect();
            prop_assert_eq!(read, labels);
            prop_assert_eq!(question.edns.map(|edns| (edns.version, edns.payload)), edns);
        }
    }
}
