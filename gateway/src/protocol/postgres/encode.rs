//! Messages the gateway itself says, to either side.

use bytes::{BufMut, BytesMut};

use super::HEADER;
use super::frontend::Object;
use super::startup::{MAJOR, Negotiation};

/// Appends one message; `body` writes what follows the length.
fn message(out: &mut BytesMut, tag: u8, body: impl FnOnce(&mut BytesMut)) {
    out.put_u8(tag);
    let at = out.len();
    out.put_u32(0);
    body(out);
    // No message built here comes near 4 GiB: the longest carry one relayed text below MAX_MESSAGE.
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(at..at + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

/// A NUL-terminated string; a NUL inside would end it early, so it is left out.
fn cstr(out: &mut BytesMut, text: &[u8]) {
    out.extend(text.iter().filter(|byte| **byte != 0));
    out.put_u8(0);
}

/// How bad an error is: `Fatal` ends the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Fatal,
}

impl Severity {
    fn word(self) -> &'static [u8] {
        match self {
            Severity::Error => b"ERROR",
            Severity::Fatal => b"FATAL",
        }
    }
}

/// An ErrorResponse, in the server's own field order.
#[derive(Debug, Clone, Copy)]
pub struct ErrorText<'a> {
    pub severity: Severity,
    pub sqlstate: &'a str,
    pub message: &'a str,
    pub detail: Option<&'a str>,
    pub hint: Option<&'a str>,
}

pub fn error_response(out: &mut BytesMut, error: &ErrorText<'_>) {
    let severity = error.severity.word();
    let mut fields: Vec<(u8, &[u8])> = vec![
        (b'S', severity),
        (b'V', severity),
        (b'C', error.sqlstate.as_bytes()),
        (b'M', error.message.as_bytes()),
    ];
    fields.extend(error.detail.map(|text| (b'D', text.as_bytes())));
    fields.extend(error.hint.map(|text| (b'H', text.as_bytes())));
    notice(out, b'E', &fields);
}

/// An ErrorResponse (`E`) or NoticeResponse (`N`) from its fields.
pub fn notice(out: &mut BytesMut, tag: u8, fields: &[(u8, &[u8])]) {
    message(out, tag, |out| {
        for (code, value) in fields {
            out.put_u8(*code);
            cstr(out, value);
        }
        out.put_u8(0);
    });
}

pub fn startup(out: &mut BytesMut, parameters: &[(&str, &str)]) {
    let at = out.len();
    out.put_u32(0);
    out.put_u32(196_608);
    for (name, value) in parameters {
        cstr(out, name.as_bytes());
        cstr(out, value.as_bytes());
    }
    out.put_u8(0);
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(field) = out.get_mut(at..at + 4) {
        field.copy_from_slice(&length.to_be_bytes());
    }
}

pub fn ssl_request(out: &mut BytesMut) {
    out.put_u32(8);
    out.put_u32(80_877_103);
}

pub fn cancel_request(out: &mut BytesMut, pid: u32, key: &[u8]) {
    out.put_u32(u32::try_from(12 + key.len()).unwrap_or(u32::MAX));
    out.put_u32(80_877_102);
    out.put_u32(pid);
    out.extend_from_slice(key);
}

pub fn authentication_ok(out: &mut BytesMut) {
    message(out, b'R', |out| out.put_u32(0));
}

/// Outside of any transaction: what a server says after the login.
pub fn ready_for_query(out: &mut BytesMut) {
    message(out, b'Z', |out| out.put_u8(b'I'));
}

/// Demands SASL, with one of these mechanisms.
pub fn authentication_sasl(out: &mut BytesMut, mechanisms: &[&str]) {
    message(out, b'R', |out| {
        out.put_u32(10);
        for mechanism in mechanisms {
            cstr(out, mechanism.as_bytes());
        }
        out.put_u8(0);
    });
}

pub fn authentication_sasl_continue(out: &mut BytesMut, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_u32(11);
        out.extend_from_slice(data);
    });
}

pub fn authentication_sasl_final(out: &mut BytesMut, data: &[u8]) {
    message(out, b'R', |out| {
        out.put_u32(12);
        out.extend_from_slice(data);
    });
}

/// Tells a client which minor version it gets, and which of its options it does not.
pub fn negotiate_version(out: &mut BytesMut, negotiation: &Negotiation<'_>) {
    message(out, b'v', |out| {
        out.put_u16(MAJOR);
        out.put_u16(negotiation.minor);
        out.put_u32(u32::try_from(negotiation.unsupported.len()).unwrap_or(0));
        for option in &negotiation.unsupported {
            cstr(out, option.as_bytes());
        }
    });
}

pub fn backend_key(out: &mut BytesMut, pid: u32, key: &[u8]) {
    message(out, b'K', |out| {
        out.put_u32(pid);
        out.extend_from_slice(key);
    });
}

/// A password, md5 digest or SASL response.
pub fn password(out: &mut BytesMut, data: &[u8]) {
    message(out, b'p', |out| cstr(out, data));
}

pub fn sasl_initial(out: &mut BytesMut, mechanism: &str, data: &[u8]) {
    message(out, b'p', |out| {
        cstr(out, mechanism.as_bytes());
        out.put_u32(u32::try_from(data.len()).unwrap_or(u32::MAX));
        out.extend_from_slice(data);
    });
}

pub fn sasl_response(out: &mut BytesMut, data: &[u8]) {
    message(out, b'p', |out| out.extend_from_slice(data));
}

pub fn query(out: &mut BytesMut, text: &str) {
    message(out, b'Q', |out| cstr(out, text.as_bytes()));
}

/// A Parse that leaves the parameters' types to the server.
pub fn parse(out: &mut BytesMut, name: &[u8], text: &str) {
    message(out, b'P', |out| {
        cstr(out, name);
        cstr(out, text.as_bytes());
        out.put_u16(0);
    });
}

pub fn describe(out: &mut BytesMut, object: Object<'_>) {
    let (kind, name) = match object {
        Object::Statement(name) => (b'S', name),
        Object::Portal(name) => (b'P', name),
    };
    message(out, b'D', |out| {
        out.put_u8(kind);
        cstr(out, name);
    });
}

pub fn sync(out: &mut BytesMut) {
    message(out, b'S', |_| {});
}

pub fn execute(out: &mut BytesMut, portal: &[u8]) {
    message(out, b'E', |out| {
        cstr(out, portal);
        out.put_u32(0);
    });
}

pub fn flush(out: &mut BytesMut) {
    message(out, b'H', |_| {});
}

/// A FunctionCall of function 0, which no server has.
pub fn function_call_of_nothing(out: &mut BytesMut) {
    message(out, b'F', |out| {
        out.put_u32(0);
        out.put_u16(0);
        out.put_u16(0);
        out.put_u16(0);
    });
}

/// COPY data, from either side.
pub fn copy_data(out: &mut BytesMut, data: &[u8]) {
    message(out, b'd', |out| out.extend_from_slice(data));
}

/// CopyData of what `write` writes; no message if that is nothing, or if it fails.
pub fn copied<E>(
    out: &mut BytesMut,
    write: impl FnOnce(&mut BytesMut) -> Result<(), E>,
) -> Result<(), E> {
    let before = out.len();
    let mut written = Ok(());
    message(out, b'd', |out| written = write(out));
    if written.is_err() || out.len() == before + HEADER {
        out.truncate(before);
    }
    written
}

/// A message of `tag` whose body is a note instead of the bytes it stands for.
pub fn withheld(out: &mut BytesMut, tag: u8, note: &str) {
    message(out, tag, |out| out.extend_from_slice(note.as_bytes()));
}

/// A DataRow of the given values; `None` is NULL.
pub fn data_row<'a>(out: &mut BytesMut, values: impl ExactSizeIterator<Item = Option<&'a [u8]>>) {
    message(out, b'D', |out| {
        out.put_u16(u16::try_from(values.len()).unwrap_or(u16::MAX));
        for value in values {
            match value {
                None => out.put_i32(-1),
                Some(bytes) => {
                    out.put_i32(i32::try_from(bytes.len()).unwrap_or(i32::MAX));
                    out.extend_from_slice(bytes);
                }
            }
        }
    });
}
