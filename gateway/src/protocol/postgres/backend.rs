//! What the server says: the few messages the gateway must understand.

use super::{Message, ProtocolError};
use crate::protocol::cursor::{Cursor, Malformed};

/// More columns than PostgreSQL can produce (`MaxTupleAttributeNumber` is 1664).
const MAX_COLUMNS: usize = 1664;

/// One column of a RowDescription.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Field {
    pub name: Vec<u8>,
    /// The table's OID when the column is a bare table column, else 0.
    pub table_oid: u32,
    /// The column's number in that table, else 0.
    pub attribute: i16,
    pub type_oid: u32,
    /// What the type was declared with, such as the length of a varchar; -1 for none.
    pub type_modifier: i32,
    /// 0 text, 1 binary; always 0 in the answer to Describe of a statement.
    pub format: i16,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RowDescription {
    pub fields: Vec<Field>,
}

impl RowDescription {
    pub fn parse(message: &Message) -> Result<Self, ProtocolError> {
        fields(message.body())
            .map(|fields| Self { fields })
            .map_err(|source| message.malformed(source))
    }
}

fn fields(body: &[u8]) -> Result<Vec<Field>, Malformed> {
    let mut cursor = Cursor::new(body);
    let count = cursor.count("number of columns")?;
    if count > MAX_COLUMNS {
        return Err(Malformed::Value {
            what: "number of columns",
            value: i64::try_from(count).unwrap_or(i64::MAX),
        });
    }
    let mut fields = Vec::with_capacity(count);
    for _ in 0..count {
        let name = cursor.cstr("column name")?.to_vec();
        let table_oid = cursor.u32("table OID")?;
        let attribute = cursor.i16("attribute number")?;
        let type_oid = cursor.u32("type OID")?;
        cursor.i16("type length")?;
        let type_modifier = cursor.i32("type modifier")?;
        let format = cursor.i16("format")?;
        fields.push(Field {
            name,
            table_oid,
            attribute,
            type_oid,
            type_modifier,
            format,
        });
    }
    cursor.end()?;
    Ok(fields)
}

/// The OIDs of a ParameterDescription: the types of a prepared statement's parameters.
pub fn parameter_types(message: &Message) -> Result<Vec<u32>, ProtocolError> {
    let read = || -> Result<_, Malformed> {
        let mut cursor = Cursor::new(message.body());
        let mut types = Vec::new();
        for _ in 0..cursor.count("number of parameters")? {
            types.push(cursor.u32("parameter type")?);
        }
        cursor.end()?;
        Ok(types)
    };
    read().map_err(|source| message.malformed(source))
}

/// The values of a DataRow, in order; `None` is NULL. An error ends the iteration.
pub fn data_row(message: &Message) -> Result<Values<'_>, ProtocolError> {
    let mut cursor = Cursor::new(message.body());
    let remaining = cursor
        .count("number of values")
        .map_err(|source| message.malformed(source))?;
    Ok(Values {
        message,
        cursor,
        remaining,
    })
}

#[derive(Debug)]
pub struct Values<'a> {
    message: &'a Message,
    cursor: Cursor<'a>,
    remaining: usize,
}

impl Values<'_> {
    pub fn remaining(&self) -> usize {
        self.remaining
    }
}

impl<'a> Iterator for Values<'a> {
    type Item = Result<Option<&'a [u8]>, ProtocolError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            // The last value must end where the message does.
            let end = std::mem::replace(&mut self.cursor, Cursor::new(&[])).end();
            return end.err().map(|source| Err(self.message.malformed(source)));
        }
        self.remaining -= 1;
        let value = self.cursor.value("value");
        if value.is_err() {
            self.remaining = 0;
            self.cursor = Cursor::new(&[]);
        }
        Some(value.map_err(|source| self.message.malformed(source)))
    }
}

/// The fields of an ErrorResponse or NoticeResponse, in order.
pub fn error_fields(message: &Message) -> Result<Vec<(u8, &[u8])>, ProtocolError> {
    let read = || -> Result<Vec<(u8, &[u8])>, Malformed> {
        let mut cursor = Cursor::new(message.body());
        let mut fields = Vec::new();
        loop {
            let code = cursor.u8("field code")?;
            if code == 0 {
                cursor.end()?;
                return Ok(fields);
            }
            fields.push((code, cursor.cstr("field")?));
        }
    };
    read().map_err(|source| message.malformed(source))
}

/// The SQLSTATE of an ErrorResponse, five characters, or "XX000" when the server sent none.
pub fn sqlstate(fields: &[(u8, &[u8])]) -> String {
    fields
        .iter()
        .find(|(code, _)| *code == b'C')
        .map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        .filter(|code| code.len() == 5 && code.bytes().all(|b| b.is_ascii_alphanumeric()))
        .unwrap_or_else(|| "XX000".to_owned())
}

/// Whether the server ends the session with it. `V` is never translated, as `S` is.
pub fn is_fatal(fields: &[(u8, &[u8])]) -> bool {
    let mut severity = fields
        .iter()
        .filter(|(code, _)| matches!(code, b'V' | b'S'));
    severity.any(|(_, value)| matches!(*value, b"FATAL" | b"PANIC"))
}

/// The command tag of a CommandComplete, e.g. `SELECT 3`.
pub fn command_tag(message: &Message) -> Result<&[u8], ProtocolError> {
    let mut cursor = Cursor::new(message.body());
    let tag = cursor
        .cstr("command tag")
        .map_err(|source| message.malformed(source))?;
    cursor.end().map_err(|source| message.malformed(source))?;
    Ok(tag)
}

/// The transaction status of a ReadyForQuery: `I`, `T` or `E`.
pub fn transaction_status(message: &Message) -> Result<u8, ProtocolError> {
    match message.body() {
        [status @ (b'I' | b'T' | b'E')] => Ok(*status),
        _ => Err(message.malformed(Malformed::Value {
            what: "transaction status",
            value: message.body().first().copied().unwrap_or_default().into(),
        })),
    }
}

/// Name and value of a ParameterStatus.
pub fn parameter_status(message: &Message) -> Result<(&[u8], &[u8]), ProtocolError> {
    let read = || -> Result<_, Malformed> {
        let mut cursor = Cursor::new(message.body());
        let name = cursor.cstr("parameter name")?;
        let value = cursor.cstr("parameter value")?;
        cursor.end()?;
        Ok((name, value))
    };
    read().map_err(|source| message.malformed(source))
}

/// Process id and secret key of a BackendKeyData.
pub fn backend_key(message: &Message) -> Result<(u32, &[u8]), ProtocolError> {
    let mut cursor = Cursor::new(message.body());
    let pid = cursor
        .u32("process id")
        .map_err(|source| message.malformed(source))?;
    Ok((pid, cursor.rest()))
}

/// What the server wants before it lets a session begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Authentication<'a> {
    Ok,
    Cleartext,
    Md5 { salt: [u8; 4] },
    Sasl { mechanisms: Vec<&'a [u8]> },
    SaslContinue { data: &'a [u8] },
    SaslFinal { data: &'a [u8] },
    Unsupported(u32),
}

pub fn authentication(message: &Message) -> Result<Authentication<'_>, ProtocolError> {
    let read = || -> Result<Authentication<'_>, Malformed> {
        let mut cursor = Cursor::new(message.body());
        Ok(match cursor.u32("authentication request")? {
            0 => Authentication::Ok,
            3 => Authentication::Cleartext,
            5 => {
                let salt = cursor.u32("salt")?.to_be_bytes();
                Authentication::Md5 { salt }
            }
            10 => {
                let mut mechanisms = Vec::new();
                loop {
                    match cursor.cstr("SASL mechanism")? {
                        b"" => break Authentication::Sasl { mechanisms },
                        mechanism => mechanisms.push(mechanism),
                    }
                }
            }
            11 => Authentication::SaslContinue {
                data: cursor.rest(),
            },
            12 => Authentication::SaslFinal {
                data: cursor.rest(),
            },
            other => Authentication::Unsupported(other),
        })
    };
    read().map_err(|source| message.malformed(source))
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
        decode(&mut bytes, Sender::Backend, 1 << 20)
            .expect("valid length")
            .expect("whole")
    }

    #[test]
    fn row_values_with_null_and_a_lying_length() {
        let row = message(b'D', b"\0\x02\0\0\0\x01a\xff\xff\xff\xff");
        let values: Result<Vec<_>, _> = data_row(&row).expect("row").collect();
        assert_eq!(values, Ok(vec![Some(&b"a"[..]), None]));
        for (name, body) in [
            ("longer than the row", &b"\0\x01\0\0\0\x09a"[..]),
            ("fewer than announced", b"\0\x02\0\0\0\x01a"),
            ("bytes left over", b"\0\x01\0\0\0\x01ab"),
            ("negative", b"\0\x01\xff\xff\xff\xfe"),
        ] {
            let row = message(b'D', body);
            let values: Result<Vec<_>, _> = data_row(&row).expect("row").collect();
            assert!(values.is_err(), "{name}");
        }
    }

    #[test]
    fn parameters_types() {
        let described = message(b't', b"\0\x02\0\0\0\x17\0\0\0\x19");
        assert_eq!(parameter_types(&described), Ok(vec![23, 25]));
        assert!(parameter_types(&message(b't', b"\0\x02\0\0\0\x17")).is_err());
    }

    #[test]
    fn errors_and_status() {
        let error = message(b'E', b"SERROR\0C42501\0Mno\0\0");
        let fields = error_fields(&error).expect("fields");
        assert_eq!(sqlstate(&fields), "42501");
        assert!(error_fields(&message(b'E', b"SERROR\0")).is_err());
        assert_eq!(transaction_status(&message(b'Z', b"T")), Ok(b'T'));
        assert!(transaction_status(&message(b'Z', b"X")).is_err());
    }
}
