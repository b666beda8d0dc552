//! What a client says during the session.

use super::{Message, ProtocolError};
use crate::protocol::cursor::{Cursor, Malformed};

/// A prepared statement or a portal, by name ("" is the unnamed one).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Object<'a> {
    Statement(&'a [u8]),
    Portal(&'a [u8]),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frontend<'a> {
    Query {
        text: &'a [u8],
    },
    Parse {
        name: &'a [u8],
        text: &'a [u8],
    },
    Bind(Bind<'a>),
    Describe(Object<'a>),
    Execute {
        portal: &'a [u8],
        max_rows: i32,
    },
    Close(Object<'a>),
    Flush,
    Sync,
    FunctionCall(Call),
    CopyData,
    CopyDone,
    CopyFail,
    Terminate,
    /// An answer to an authentication request: a password, or SASL data.
    Password,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind<'a> {
    pub portal: &'a [u8],
    pub statement: &'a [u8],
    pub parameters: usize,
    /// Whether any result column is asked for in binary.
    pub binary_results: bool,
    /// Where the parameter values stand in the message body, for evidence that must not show them.
    pub values: std::ops::Range<usize>,
}

/// A function called outside of SQL, by its OID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    pub function: u32,
    pub arguments: usize,
    /// Where the argument values begin in the message body.
    pub values: usize,
}

impl<'a> Frontend<'a> {
    /// Reads one message from a client.
    ///
    /// # Errors
    /// A type that does not exist, or a body that does not fit its type.
    pub fn parse(message: &'a Message) -> Result<Self, ProtocolError> {
        let body = message.body();
        let mut cursor = Cursor::new(body);
        let parsed = match message.tag() {
            b'Q' => query(&mut cursor),
            b'P' => parse(&mut cursor),
            b'B' => return bind(message, body).map(Frontend::Bind),
            b'D' => object(&mut cursor).map(Frontend::Describe),
            b'C' => object(&mut cursor).map(Frontend::Close),
            b'E' => execute(&mut cursor),
            b'H' => Ok(Frontend::Flush),
            b'S' => Ok(Frontend::Sync),
            b'F' => function_call(&mut cursor, body.len()),
            b'd' => return Ok(Frontend::CopyData),
            b'c' => Ok(Frontend::CopyDone),
            b'f' => cursor.cstr("reason").map(|_| Frontend::CopyFail),
            b'X' => Ok(Frontend::Terminate),
            b'p' => return Ok(Frontend::Password),
            tag => return Err(ProtocolError::Unexpected { tag }),
        };
        let parsed = parsed.map_err(|source| message.malformed(source))?;
        cursor.end().map_err(|source| message.malformed(source))?;
        Ok(parsed)
    }
}

fn query<'a>(cursor: &mut Cursor<'a>) -> Result<Frontend<'a>, Malformed> {
    let text = cursor.cstr("statement")?;
    Ok(Frontend::Query { text })
}

fn parse<'a>(cursor: &mut Cursor<'a>) -> Result<Frontend<'a>, Malformed> {
    let name = cursor.cstr("statement name")?;
    let text = cursor.cstr("statement")?;
    let types = cursor.count("number of parameter types")?;
    cursor.take(types.saturating_mul(4), "parameter types")?;
    Ok(Frontend::Parse { name, text })
}

fn bind<'a>(message: &Message, body: &'a [u8]) -> Result<Bind<'a>, ProtocolError> {
    let mut cursor = Cursor::new(body);
    let mut read = || -> Result<Bind<'a>, Malformed> {
        let portal = cursor.cstr("portal name")?;
        let statement = cursor.cstr("statement name")?;
        let formats = cursor.count("number of parameter formats")?;
        cursor.take(formats.saturating_mul(2), "parameter formats")?;
        let parameters = cursor.count("number of parameters")?;
        let start = body.len() - cursor.rest().len();
        for _ in 0..parameters {
            cursor.value("parameter value")?;
        }
        let end = body.len() - cursor.rest().len();
        let mut binary_results = false;
        for _ in 0..cursor.count("number of result formats")? {
            match cursor.i16("result format")? {
                0 => {}
                // Anything but text is handled as binary; the server refuses what it does not know.
                _ => binary_results = true,
            }
        }
        cursor.end()?;
        Ok(Bind {
            portal,
            statement,
            parameters,
            binary_results,
            values: start..end,
        })
    };
    read().map_err(|source| message.malformed(source))
}

fn function_call<'a>(cursor: &mut Cursor<'a>, length: usize) -> Result<Frontend<'a>, Malformed> {
    let function = cursor.u32("function")?;
    let formats = cursor.count("number of argument formats")?;
    cursor.take(formats.saturating_mul(2), "argument formats")?;
    let arguments = cursor.count("number of arguments")?;
    let values = length - cursor.rest().len();
    for _ in 0..arguments {
        cursor.value("argument")?;
    }
    cursor.i16("result format")?;
    Ok(Frontend::FunctionCall(Call {
        function,
        arguments,
        values,
    }))
}

fn object<'a>(cursor: &mut Cursor<'a>) -> Result<Object<'a>, Malformed> {
    let kind = cursor.u8("kind of object")?;
    let name = cursor.cstr("name")?;
    match kind {
        b'S' => Ok(Object::Statement(name)),
        b'P' => Ok(Object::Portal(name)),
        other => Err(Malformed::Value {
            what: "kind of object",
            value: other.into(),
        }),
    }
}

fn execute<'a>(cursor: &mut Cursor<'a>) -> Result<Frontend<'a>, Malformed> {
    let portal = cursor.cstr("portal name")?;
    let max_rows = cursor.i32("row limit")?;
    Ok(Frontend::Execute { portal, max_rows })
}

#[cfg(test)]
mod tests {
    use super::super::{Sender, decode};
    use super::*;
    use bytes::BytesMut;

    fn message(tag: u8, body: &[u8]) -> Message {
        let mut bytes = BytesMut::new();
        bytes.extend_from_slice(&[tag]);
        bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
        bytes.extend_from_slice(body);
        decode(&mut bytes, Sender::Frontend, 1 << 20)
            .expect("valid length")
            .expect("whole")
    }

    #[test]
    fn reads_bind_with_null_and_binary_results() {
        let message = message(
            b'B',
            b"p\0s\0\0\x01\0\0\0\x02\0\0\0\x03abc\xff\xff\xff\xff\0\x01\0\x01",
        );
        let Ok(Frontend::Bind(bind)) = Frontend::parse(&message) else {
            panic!("not a bind");
        };
        assert_eq!((bind.portal, bind.statement), (&b"p"[..], &b"s"[..]));
        assert_eq!(bind.parameters, 2);
        assert!(bind.binary_results);
        assert_eq!(
            &message.body()[bind.values],
            b"\0\0\0\x03abc\xff\xff\xff\xff"
        );
    }

    #[test]
    fn reads_function_call() {
        let message = message(
            b'F',
            b"\0\0\x03\xbc\0\x01\0\x01\0\x02\0\0\0\x01a\xff\xff\xff\xff\0\x01",
        );
        let Ok(Frontend::FunctionCall(call)) = Frontend::parse(&message) else {
            panic!("not a function call");
        };
        assert_eq!((call.function, call.arguments), (956, 2));
        let values = message.body().get(call.values..).unwrap_or_default();
        assert!(values.starts_with(b"\0\0\0\x01a"));
    }

    #[test]
    fn malformed_messages_are_errors() {
        for (name, tag, body) in [
            ("no NUL", b'Q', &b"select 1"[..]),
            ("text after NUL", b'Q', b"select 1\0select 2\0"),
            (
                "a call without its arguments",
                b'F',
                b"\0\0\0\x01\0\0\0\x02\0\0",
            ),
            ("sync with a body", b'S', b"x"),
            ("describe of nothing", b'D', b"Xname\0"),
            ("negative count", b'P', b"\0\0\xff\xff"),
            ("parameters missing", b'B', b"\0\0\0\0\0\x05\0\0"),
            ("unknown type", b'z', b""),
        ] {
            assert!(Frontend::parse(&message(tag, body)).is_err(), "{name}");
        }
    }
}
