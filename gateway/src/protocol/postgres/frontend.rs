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
        /// OIDs of the parameters' types; those left to the server are 0, or missing at the end.
        types: Vec<u32>,
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
    FunctionCall(Call<'a>),
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
    pub parameters: Parameters<'a>,
}

/// Values as a Bind or a function call carries them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Parameters<'a> {
    /// One per value, one for all of them, or none: then all are text.
    formats: Vec<i16>,
    /// `None` is NULL.
    pub values: Vec<Option<&'a [u8]>>,
    /// Where the first value stands in the message body, for evidence that must not show it.
    pub start: usize,
}

impl<'a> Parameters<'a> {
    /// The values, each with the code of its format.
    pub fn iter(&self) -> impl Iterator<Item = (i16, Option<&'a [u8]>)> {
        let format = |index: usize| match self.formats.as_slice() {
            [] => 0,
            [all] => *all,
            // The server refuses a list that is too short.
            each => each.get(index).copied().unwrap_or(-1),
        };
        let values = self.values.iter().enumerate();
        values.map(move |(index, value)| (format(index), *value))
    }

    fn read(cursor: &mut Cursor<'a>, length: usize) -> Result<Self, Malformed> {
        let mut formats = Vec::new();
        for _ in 0..cursor.count("number of parameter formats")? {
            formats.push(cursor.i16("parameter format")?);
        }
        let count = cursor.count("number of parameters")?;
        let start = length - cursor.rest().len();
        let mut values = Vec::new();
        for _ in 0..count {
            values.push(cursor.value("parameter value")?);
        }
        Ok(Self {
            formats,
            values,
            start,
        })
    }
}

/// A function called outside of SQL, by its OID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call<'a> {
    pub function: u32,
    pub arguments: Parameters<'a>,
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
            b'B' => bind(&mut cursor, body.len()).map(Frontend::Bind),
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
    let mut types = Vec::new();
    for _ in 0..cursor.count("number of parameter types")? {
        types.push(cursor.u32("parameter type")?);
    }
    Ok(Frontend::Parse { name, text, types })
}

fn bind<'a>(cursor: &mut Cursor<'a>, length: usize) -> Result<Bind<'a>, Malformed> {
    let portal = cursor.cstr("portal name")?;
    let statement = cursor.cstr("statement name")?;
    let parameters = Parameters::read(cursor, length)?;
    for _ in 0..cursor.count("number of result formats")? {
        cursor.i16("result format")?;
    }
    Ok(Bind {
        portal,
        statement,
        parameters,
    })
}

fn function_call<'a>(cursor: &mut Cursor<'a>, length: usize) -> Result<Frontend<'a>, Malformed> {
    let function = cursor.u32("function")?;
    let arguments = Parameters::read(cursor, length)?;
    cursor.i16("result format")?;
    Ok(Frontend::FunctionCall(Call {
        function,
        arguments,
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
    fn reads_bind_with_null_and_formats() {
        let message = message(
            b'B',
            b"p\0s\0\0\x01\0\x01\0\x02\0\0\0\x03abc\xff\xff\xff\xff\0\x01\0\x01",
        );
        let Ok(Frontend::Bind(bind)) = Frontend::parse(&message) else {
            panic!("not a bind");
        };
        assert_eq!((bind.portal, bind.statement), (&b"p"[..], &b"s"[..]));
        let read: Vec<_> = bind.parameters.iter().collect();
        assert_eq!(read, [(1, Some(&b"abc"[..])), (1, None)]);
        let values = message.body().get(bind.parameters.start..);
        assert!(values.is_some_and(|values| values.starts_with(b"\0\0\0\x03abc")));
    }

    #[test]
    fn formats_are_none_one_or_one_each() {
        for (name, formats, expect) in [
            ("none", &[][..], [0, 0]),
            ("one", &[1], [1, 1]),
            ("each", &[0, 1], [0, 1]),
            ("too many", &[1, 0, 1], [1, 0]),
        ] {
            let parameters = Parameters {
                formats: formats.to_vec(),
                values: vec![None, None],
                start: 0,
            };
            let read: Vec<i16> = parameters.iter().map(|(format, _)| format).collect();
            assert_eq!(read, expect, "{name}");
        }
    }

    #[test]
    fn reads_parse_with_types() {
        let message = message(b'P', b"s\0select $1, $2\0\0\x02\0\0\0\x17\0\0\0\0");
        let Ok(Frontend::Parse { types, .. }) = Frontend::parse(&message) else {
            panic!("not a parse");
        };
        assert_eq!(types, [23, 0]);
    }

    /// The server takes 65535, and counts without a sign.
    #[test]
    fn a_bind_may_have_more_than_32767_parameters() {
        let mut body = b"\0\0\0\0\xff\xff".to_vec();
        body.extend([0xff; 4].repeat(65_535));
        body.extend(b"\0\0");
        let message = message(b'B', &body);
        let Ok(Frontend::Bind(bind)) = Frontend::parse(&message) else {
            panic!("not a bind");
        };
        assert_eq!(bind.parameters.values.len(), 65_535);
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
        assert_eq!(call.function, 956);
        let read: Vec<_> = call.arguments.iter().collect();
        assert_eq!(read, [(1, Some(&b"a"[..])), (1, None)]);
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
