//! What a client says before the session: one packet without a type byte.

use bytes::{Buf, Bytes, BytesMut};

use super::ProtocolError;
use crate::protocol::cursor::Cursor;

/// `MAX_STARTUP_PACKET_LENGTH` of the server.
const MAX_LENGTH: usize = 10_000;

/// The first byte of a TLS record that carries a handshake: a client that begins with TLS instead of a packet
/// (`sslnegotiation=direct`). As a length it would be hundreds of megabytes.
pub const TLS_HANDSHAKE: u8 = 0x16;

/// The major version of the protocol that is spoken here, and the newest minor one.
pub const MAJOR: u16 = 3;
pub const NEWEST_MINOR: u16 = 2;

/// Where the names of protocol options begin; what a server does not know of them it says.
const OPTION: &str = "_pq_.";

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

/// `PG_MAX_AUTH_TOKEN_LENGTH` of the server.
const MAX_ANSWER: usize = 65_535;

const NO_ANSWER: ProtocolError =
    ProtocolError::Refused("an answer to the demand for a password was expected");

/// The longest cancel key of protocol 3.2.
const MAX_CANCEL_KEY: usize = 256;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    Startup(Startup),
    SslRequest,
    GssEncRequest,
    Cancel { pid: u32, key: Vec<u8> },
}

/// A StartupMessage: protocol version and parameters in the order they were sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    pub major: u16,
    pub minor: u16,
    pub parameters: Vec<(String, String)>,
}

/// What a client hears that asks for more than there is (NegotiateProtocolVersion).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Negotiation<'a> {
    /// The minor version that is spoken instead.
    pub minor: u16,
    /// Its options that have no meaning here.
    pub unsupported: Vec<&'a str>,
}

impl Startup {
    /// A request that comes where it is none any more is read as a version that nobody speaks, as a server
    /// does.
    fn of_request(code: u32) -> Self {
        let [a, b, c, d] = code.to_be_bytes();
        Self {
            major: u16::from_be_bytes([a, b]),
            minor: u16::from_be_bytes([c, d]),
            parameters: Vec::new(),
        }
    }

    /// An SSLRequest that came too late.
    pub fn of_ssl_request() -> Self {
        Self::of_request(SSL)
    }

    /// A GSSENCRequest that came too late.
    pub fn of_gss_request() -> Self {
        Self::of_request(GSSENC)
    }

    /// The minor version that is spoken with this client.
    pub fn spoken_minor(&self) -> u16 {
        self.minor.min(NEWEST_MINOR)
    }

    /// What has to be negotiated, as PostgreSQL 18 does it: a newer minor version, or options, none of which
    /// is known here.
    pub fn negotiation(&self) -> Option<Negotiation<'_>> {
        let names = self.parameters.iter().map(|(name, _)| name.as_str());
        let unsupported: Vec<&str> = names.filter(|name| name.starts_with(OPTION)).collect();
        (self.minor > NEWEST_MINOR || !unsupported.is_empty()).then(|| Negotiation {
            minor: self.spoken_minor(),
            unsupported,
        })
    }

    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .iter()
            .rev()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }
}

/// Takes the first packet off `buffer`, or `None` when it is not all there yet.
///
/// # Errors
/// A length outside 8..=10000, text that is not UTF-8, a list that does not end where the packet does.
pub fn decode(buffer: &mut BytesMut) -> Result<Option<FirstPacket>, ProtocolError> {
    let Some((header, _)) = buffer.split_first_chunk::<4>() else {
        return Ok(None);
    };
    let length = i32::from_be_bytes(*header);
    let total = usize::try_from(length)
        .ok()
        .filter(|total| (8..=MAX_LENGTH).contains(total))
        .ok_or(ProtocolError::StartupLength { length })?;
    if buffer.len() < total {
        return Ok(None);
    }
    let packet = buffer.copy_to_bytes(total);
    let body = packet.get(4..).unwrap_or_default();
    parse(body).map(Some)
}

fn parse(body: &[u8]) -> Result<FirstPacket, ProtocolError> {
    let mut cursor = Cursor::new(body);
    let malformed = ProtocolError::Startup;
    match cursor.u32("request code").map_err(malformed)? {
        SSL => {
            cursor.end().map_err(malformed)?;
            Ok(FirstPacket::SslRequest)
        }
        GSSENC => {
            cursor.end().map_err(malformed)?;
            Ok(FirstPacket::GssEncRequest)
        }
        CANCEL => {
            let pid = cursor.u32("process id").map_err(malformed)?;
            let key = cursor.rest();
            if key.len() < 4 || key.len() > MAX_CANCEL_KEY {
                return Err(ProtocolError::Refused("a cancel key has 4 to 256 bytes"));
            }
            Ok(FirstPacket::Cancel {
                pid,
                key: key.to_vec(),
            })
        }
        version => startup(version, cursor).map(FirstPacket::Startup),
    }
}

/// What follows another version is another version's: it is not read.
fn startup(version: u32, mut cursor: Cursor<'_>) -> Result<Startup, ProtocolError> {
    let mut startup = Startup::of_request(version);
    if startup.major != MAJOR {
        return Ok(startup);
    }
    loop {
        let name = text(&mut cursor, "parameter name")?;
        if name.is_empty() {
            break;
        }
        let value = text(&mut cursor, "parameter value")?;
        startup.parameters.push((name, value));
    }
    cursor.end().map_err(ProtocolError::Startup)?;
    Ok(startup)
}

/// Takes the answer to a demand for authentication off `buffer`: PasswordMessage, SASLInitialResponse or
/// SASLResponse, whose bodies look alike. `None` when it is not all there yet.
///
/// # Errors
/// Another message, a length beyond the server's `PG_MAX_AUTH_TOKEN_LENGTH`.
pub fn decode_answer(buffer: &mut BytesMut) -> Result<Option<Bytes>, ProtocolError> {
    let Some(([tag, length @ ..], _)) = buffer.split_first_chunk::<5>() else {
        return match buffer.first() {
            Some(b'p') | None => Ok(None),
            Some(_) => Err(NO_ANSWER),
        };
    };
    if *tag != b'p' {
        return Err(NO_ANSWER);
    }
    let length = i32::from_be_bytes(*length);
    let body = usize::try_from(length)
        .ok()
        .and_then(|length| length.checked_sub(4))
        .filter(|body| *body <= MAX_ANSWER)
        .ok_or(ProtocolError::Length { tag: *tag, length })?;
    if buffer.len() < body + 5 {
        return Ok(None);
    }
    buffer.advance(5);
    Ok(Some(buffer.copy_to_bytes(body)))
}

fn text(cursor: &mut Cursor<'_>, what: &'static str) -> Result<String, ProtocolError> {
    let bytes = cursor.cstr(what).map_err(ProtocolError::Startup)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ProtocolError::Refused("a start-up parameter is not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packet(body: &[u8]) -> BytesMut {
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn reads_the_four_kinds() {
        let startup = decode(&mut packet(b"\0\x03\0\0user\0ana\0database\0shop\0\0"));
        let Ok(Some(FirstPacket::Startup(startup))) = startup else {
            panic!("{startup:?}");
        };
        assert_eq!((startup.major, startup.minor), (3, 0));
        assert_eq!(startup.parameter("user"), Some("ana"));
        assert_eq!(
            decode(&mut packet(&SSL.to_be_bytes())),
            Ok(Some(FirstPacket::SslRequest))
        );
        assert_eq!(
            decode(&mut packet(&GSSENC.to_be_bytes())),
            Ok(Some(FirstPacket::GssEncRequest))
        );
        assert_eq!(
            decode(&mut packet(b"\x04\xd2\x16\x2e\0\0\0\x07abcd")),
            Ok(Some(FirstPacket::Cancel {
                pid: 7,
                key: b"abcd".to_vec()
            }))
        );
    }

    #[test]
    fn another_versions_packet_is_not_read() {
        for (body, version) in [
            (&b"\0\x02\0\0database with a fixed length"[..], (2, 0)),
            (b"\0\x04\0\0", (4, 0)),
            (b"\x12\x34\x56\x78\xff", (0x1234, 0x5678)),
        ] {
            let Ok(Some(FirstPacket::Startup(startup))) = decode(&mut packet(body)) else {
                panic!("{version:?}");
            };
            assert_eq!((startup.major, startup.minor), version);
            assert_eq!(startup.parameters, []);
        }
    }

    /// PostgreSQL 18's answers.
    #[test]
    fn what_is_negotiated() {
        for (minor, options, expected) in [
            (0, &[][..], None),
            (1, &[], None),
            (2, &[], None),
            (3, &[], Some((2, vec![]))),
            (9999, &[], Some((2, vec![]))),
            (0, &["_pq_.a"], Some((0, vec!["_pq_.a"]))),
            (
                1,
                &["_pq_.b", "_pq_.a"],
                Some((1, vec!["_pq_.b", "_pq_.a"])),
            ),
            (2, &["_PQ_.a"], None),
            (7, &["_pq_.a"], Some((2, vec!["_pq_.a"]))),
        ] {
            let mut startup = Startup::of_request(3 << 16 | minor);
            startup
                .parameters
                .push(("user".to_owned(), "ana".to_owned()));
            for option in options {
                startup
                    .parameters
                    .push(((*option).to_owned(), "1".to_owned()));
            }
            let negotiation = startup.negotiation();
            let found = negotiation.map(|found| (found.minor, found.unsupported));
            assert_eq!(found, expected, "3.{minor} {options:?}");
        }
    }

    #[test]
    fn answers_to_a_demand_for_a_password() {
        let answer = |bytes: &[u8]| decode_answer(&mut BytesMut::from(bytes));
        assert_eq!(answer(b""), Ok(None));
        assert_eq!(answer(b"p\0\0"), Ok(None));
        assert_eq!(answer(b"p\0\0\0\x06a"), Ok(None));
        assert_eq!(
            answer(b"p\0\0\0\x06ab"),
            Ok(Some(Bytes::from_static(b"ab")))
        );
        for hostile in [
            &b"Q"[..],
            b"Q\0\0\0\x06ab",
            b"p\0\0\0\x03",
            b"p\xff\xff\xff\xff",
            b"p\0\x01\0\x04",
        ] {
            assert!(answer(hostile).is_err(), "{hostile:?}");
        }
    }

    proptest! {
        /// Where a packet is cut makes no difference, what follows it stays, and what was sent is what is read.
        #[test]
        fn every_split_reads_the_same(
            minor in 0u32..12,
            pairs in proptest::collection::vec(("[a-z_.]{1,12}", "[ -~]{0,20}"), 0..6),
            behind in proptest::collection::vec(any::<u8>(), 0..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut body = (3 << 16 | minor).to_be_bytes().to_vec();
            for (name, value) in &pairs {
                body.extend_from_slice(format!("{name}\0{value}\0").as_bytes());
            }
            body.push(0);
            let whole = packet(&body);
            let at = cut.index(whole.len());
            let mut buffer = BytesMut::from(&whole[..at]);
            prop_assert_eq!(decode(&mut buffer), Ok(None));
            buffer.extend_from_slice(&whole[at..]);
            buffer.extend_from_slice(&behind);
            let Ok(Some(FirstPacket::Startup(startup))) = decode(&mut buffer) else {
                return Err(TestCaseError::fail("it is in order"));
            };
            prop_assert_eq!(&buffer[..], &behind[..]);
            prop_assert_eq!(u32::from(startup.minor), minor);
            let options = pairs.iter().filter(|(name, _)| name.starts_with("_pq_."));
            let unsupported = options.count();
            prop_assert_eq!(startup.negotiation().is_some(), minor > 2 || unsupported > 0);
            prop_assert_eq!(startup.parameters, pairs);
        }

        #[test]
        fn cancel_keys_of_4_to_256_bytes(pid in any::<u32>(), key in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut body = CANCEL.to_be_bytes().to_vec();
            body.extend_from_slice(&pid.to_be_bytes());
            body.extend_from_slice(&key);
            let read = decode(&mut packet(&body));
            match key.len() {
                4..=256 => prop_assert_eq!(read, Ok(Some(FirstPacket::Cancel { pid, key }))),
                _ => prop_assert!(read.is_err()),
            }
        }

        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = decode(&mut BytesMut::from(&bytes[..]));
            let _ = decode(&mut packet(&bytes));
            let _ = decode_answer(&mut BytesMut::from(&bytes[..]));
        }
    }

    #[test]
    fn hostile_packets_are_errors() {
        for (name, bytes) in [
            ("length 0", &b"\0\0\0\0\0\0\0\0"[..]),
            ("length 3", b"\0\0\0\x03\0\0\0\0"),
            ("length 2^31-1", b"\x7f\xff\xff\xff\0\0\0\0"),
            ("negative", b"\xff\xff\xff\xff\0\0\0\0"),
            ("direct TLS", b"\x16\x03\x01\x02\0\x01\0"),
            (
                "a cancel key of 3 bytes",
                b"\0\0\0\x0f\x04\xd2\x16\x2e\0\0\0\x07abc",
            ),
            ("ssl with a tail", b"\0\0\0\x09\x04\xd2\x16\x2f!"),
            ("no terminator", b"\0\0\0\x0c\0\x03\0\0user"),
            ("tail after the list", b"\0\0\0\x0b\0\x03\0\0\0ab"),
            ("not UTF-8", b"\0\0\0\x0e\0\x03\0\0u\0\xff\xfe\0\0"),
        ] {
            assert!(decode(&mut BytesMut::from(bytes)).is_err(), "{name}");
        }
    }
}
