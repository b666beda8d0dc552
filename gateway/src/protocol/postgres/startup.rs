//! What a client says before the session: one packet without a type byte.

use bytes::{Buf, BytesMut};

use super::ProtocolError;
use crate::protocol::cursor::Cursor;

/// `MAX_STARTUP_PACKET_LENGTH` of the server.
const MAX_LENGTH: usize = 10_000;

const CANCEL: u32 = 80_877_102;
const SSL: u32 = 80_877_103;
const GSSENC: u32 = 80_877_104;

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

impl Startup {
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
    // A TLS ClientHello instead of a packet: its first bytes would be a length of hundreds of megabytes.
    if buffer.first() == Some(&0x16) {
        return Err(ProtocolError::Refused(
            "direct TLS is not offered here; connect with sslnegotiation=postgres and sslmode=prefer or disable",
        ));
    }
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
        version => parameters(version, cursor).map(FirstPacket::Startup),
    }
}

fn parameters(version: u32, mut cursor: Cursor<'_>) -> Result<Startup, ProtocolError> {
    let mut parameters = Vec::new();
    loop {
        let name = text(&mut cursor, "parameter name")?;
        if name.is_empty() {
            break;
        }
        let value = text(&mut cursor, "parameter value")?;
        parameters.push((name, value));
    }
    cursor.end().map_err(ProtocolError::Startup)?;
    let [a, b, c, d] = version.to_be_bytes();
    Ok(Startup {
        major: u16::from_be_bytes([a, b]),
        minor: u16::from_be_bytes([c, d]),
        parameters,
    })
}

fn text(cursor: &mut Cursor<'_>, what: &'static str) -> Result<String, ProtocolError> {
    let bytes = cursor.cstr(what).map_err(ProtocolError::Startup)?;
    String::from_utf8(bytes.to_vec())
        .map_err(|_| ProtocolError::Refused("a start-up parameter is not UTF-8"))
}

#[cfg(test)]
mod tests {
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
    fn hostile_packets_are_errors() {
        for (name, bytes) in [
            ("length 0", &b"\0\0\0\0\0\0\0\0"[..]),
            ("length 3", b"\0\0\0\x03\0\0\0\0"),
            ("length 2^31-1", b"\x7f\xff\xff\xff\0\0\0\0"),
            ("negative", b"\xff\xff\xff\xff\0\0\0\0"),
            ("direct TLS", b"\x16\x03\x01\x02\0\x01\0"),
            ("ssl with a tail", b"\0\0\0\x09\x04\xd2\x16\x2f!"),
            ("no terminator", b"\0\0\0\x0c\0\x03\0\0user"),
            ("tail after the list", b"\0\0\0\x0b\0\x03\0\0\0ab"),
            ("not UTF-8", b"\0\0\0\x0e\0\x03\0\0u\0\xff\xfe\0\0"),
        ] {
            assert!(decode(&mut BytesMut::from(bytes)).is_err(), "{name}");
        }
    }
}
