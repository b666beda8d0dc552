//! What a message means, in a few words. What cannot be decoded is named as malformed, and secrets
//! (passwords, salts, cancel keys) are never shown, should they ever have been recorded.

use super::split::Piece;
use super::{Body, Message};
use crate::recording::frame::Direction;
use crate::recording::terminal::size;

/// What `piece`, sent in `direction`, says.
pub(super) fn message(direction: Direction, piece: &Piece) -> Message {
    match piece {
        Piece::Startup(parameters) => {
            named("startup", startup(&mut Cursor(parameters)).map(Body::Text))
        }
        Piece::EncryptionRequest => housekeeping("encryption", "requested"),
        Piece::EncryptionAnswer(b'S') => housekeeping("encryption", "accepted"),
        Piece::EncryptionAnswer(_) => housekeeping("encryption", "refused"),
        Piece::Cancel => named("cancel", Some(Body::Text("request".into()))),
        Piece::Long(tag, len) => {
            let text = format!("{:?}, {}, not shown", char::from(*tag), size(*len as u64));
            named("long", Some(Body::Text(text)))
        }
        Piece::Unreadable(len) => {
            let text = format!("{}, not PostgreSQL", size(*len as u64));
            named("unreadable", Some(Body::Text(text)))
        }
        Piece::Typed(tag, body) => match direction {
            Direction::AgentToTarget => from_agent(*tag, body),
            Direction::TargetToAgent => from_target(*tag, body),
        },
    }
}

fn from_agent(tag: u8, body: &[u8]) -> Message {
    let cursor = &mut Cursor(body);
    match tag {
        b'Q' => named("query", cursor.text().map(Body::Text)),
        b'P' => named("parse", parse(cursor).map(Body::Text)),
        b'B' => named("bind", bind(cursor).map(Body::Text)),
        b'E' => named("execute", execute(cursor).map(Body::Text)),
        b'F' => named("call", Some(Body::Text("function call".into()))),
        b'D' => named("describe", object(cursor).map(Body::Housekeeping)),
        b'C' => named("close", object(cursor).map(Body::Housekeeping)),
        b'S' => housekeeping("sync", ""),
        b'H' => housekeeping("flush", ""),
        b'p' => housekeeping("password", "not shown"),
        b'X' => named("terminate", Some(Body::Text(String::new()))),
        _ => copy(tag, body),
    }
}

fn from_target(tag: u8, body: &[u8]) -> Message {
    let cursor = &mut Cursor(body);
    match tag {
        b'T' => named("rows", columns(cursor).map(Body::Columns)),
        b'D' => named("row", values(cursor).map(Body::Row)),
        b'C' => named("done", cursor.text().map(Body::Text)),
        b'E' => named("error", Some(Body::Fields(fields(cursor)))),
        b'N' => named("notice", Some(Body::Fields(fields(cursor)))),
        b'A' => named("notify", notification(cursor).map(Body::Text)),
        b'R' => named("auth", authentication(cursor).map(Body::Housekeeping)),
        b'S' => named("parameter", parameter(cursor).map(Body::Housekeeping)),
        b'K' => housekeeping("cancel-key", "not shown"),
        b'Z' => named("ready", ready(cursor).map(Body::Housekeeping)),
        b'1' => housekeeping("parsed", ""),
        b'2' => housekeeping("bound", ""),
        b'3' => housekeeping("closed", ""),
        b'n' => housekeeping("no-rows", ""),
        b't' => housekeeping("parameters", ""),
        b'I' => named("done", Some(Body::Text("empty query".into()))),
        b's' => named("suspended", Some(Body::Text("more rows to fetch".into()))),
        b'G' => named("copy", Some(Body::Text("the target waits for data".into()))),
        b'H' => named("copy", Some(Body::Text("data follows".into()))),
        b'v' => housekeeping("version", "negotiated"),
        _ => copy(tag, body),
    }
}

/// Both sides send the data of a COPY.
fn copy(tag: u8, body: &[u8]) -> Message {
    match tag {
        b'd' => named("data", Some(Body::Text(value(body)))),
        b'c' => named("copy", Some(Body::Text("done".into()))),
        b'f' => named(
            "copy",
            Cursor(body)
                .text()
                .map(|why| Body::Text(format!("failed: {why}"))),
        ),
        _ => {
            let text = format!("{:?}, {}", char::from(tag), size(body.len() as u64));
            named("unknown", Some(Body::Text(text)))
        }
    }
}

fn named(name: &'static str, body: Option<Body>) -> Message {
    let body = body.unwrap_or_else(|| Body::Text("malformed".into()));
    Message { name, body }
}

fn housekeeping(name: &'static str, text: &str) -> Message {
    named(name, Some(Body::Housekeeping(text.into())))
}

fn startup(cursor: &mut Cursor<'_>) -> Option<String> {
    let mut parameters = Vec::new();
    loop {
        let name = cursor.text()?;
        if name.is_empty() {
            return Some(parameters.join(" "));
        }
        parameters.push(format!("{name}={}", cursor.text()?));
    }
}

fn parse(cursor: &mut Cursor<'_>) -> Option<String> {
    let name = cursor.text()?;
    Some(prefixed(&name, &cursor.text()?))
}

fn bind(cursor: &mut Cursor<'_>) -> Option<String> {
    let (_portal, statement) = (cursor.text()?, cursor.text()?);
    for _ in 0..cursor.u16()? {
        cursor.u16()?; // the parameter's format: shown is what is readable
    }
    let parameters = values(cursor)?.into_iter().zip(1..).map(|(value, n)| {
        let value = value.map_or("NULL".into(), |value| format!("'{value}'"));
        format!("${n} = {value}")
    });
    let parameters: Vec<String> = parameters.collect();
    Some(prefixed(&statement, &parameters.join(", ")))
}

fn execute(cursor: &mut Cursor<'_>) -> Option<String> {
    let portal = cursor.text()?;
    let limit = match cursor.u32()? {
        0 => String::new(),
        rows => format!("at most {rows} rows"),
    };
    Some(prefixed(&portal, &limit))
}

fn prefixed(name: &str, text: &str) -> String {
    match name {
        "" => text.to_owned(),
        name => format!("[{name}] {text}"),
    }
}

fn object(cursor: &mut Cursor<'_>) -> Option<String> {
    let kind = match cursor.byte()? {
        b'S' => "statement",
        _ => "portal",
    };
    Some(format!("{kind} {}", cursor.text()?))
}

fn columns(cursor: &mut Cursor<'_>) -> Option<Vec<String>> {
    let count = cursor.u16()?;
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(cursor.text()?);
        cursor.bytes(18)?; // table, attribute, type, size, modifier, format
    }
    Some(names)
}

fn values(cursor: &mut Cursor<'_>) -> Option<Vec<Option<String>>> {
    let count = cursor.u16()?;
    let mut values = Vec::new();
    for _ in 0..count {
        // -1 is NULL
        let length = usize::try_from(cursor.u32()?.cast_signed()).ok();
        values.push(match length {
            None => None,
            Some(length) => Some(value(cursor.bytes(length)?)),
        });
    }
    Some(values)
}

/// Text as it is, anything else in hex.
fn value(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text.to_owned(),
        _ => format!("\\x{}", hex::encode(bytes)),
    }
}

fn fields(cursor: &mut Cursor<'_>) -> Vec<(char, String)> {
    let mut fields = Vec::new();
    while let Some(letter) = cursor.byte().filter(|letter| *letter != 0) {
        let Some(text) = cursor.text() else { break };
        fields.push((char::from(letter), text));
    }
    fields
}

fn notification(cursor: &mut Cursor<'_>) -> Option<String> {
    cursor.u32()?;
    let channel = cursor.text()?;
    Some(format!("{channel}: {}", cursor.text()?))
}

fn authentication(cursor: &mut Cursor<'_>) -> Option<String> {
    let request = match cursor.u32()? {
        0 => "ok",
        3 => "password asked",
        5 => "md5 asked",
        10..=12 => "SCRAM",
        _ => "other",
    };
    Some(request.into())
}

fn parameter(cursor: &mut Cursor<'_>) -> Option<String> {
    let name = cursor.text()?;
    Some(format!("{name}={}", cursor.text()?))
}

fn ready(cursor: &mut Cursor<'_>) -> Option<String> {
    let status = match cursor.byte()? {
        b'I' => "idle",
        b'T' => "in transaction",
        b'E' => "in failed transaction",
        _ => "in an unknown state",
    };
    Some(status.into())
}

/// Reads from the front; None when the bytes do not suffice.
struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn bytes(&mut self, count: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(front)
    }

    fn byte(&mut self) -> Option<u8> {
        self.bytes(1)?.first().copied()
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    /// Text up to a zero byte.
    fn text(&mut self) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == 0)?;
        let text = self.bytes(end)?;
        self.bytes(1)?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(tag: u8, body: &[u8]) -> Message {
        message(Direction::AgentToTarget, &Piece::Typed(tag, body.to_vec()))
    }

    fn target(tag: u8, body: &[u8]) -> Message {
        message(Direction::TargetToAgent, &Piece::Typed(tag, body.to_vec()))
    }

    fn text(message: &Message) -> String {
        match &message.body {
            Body::Text(text) | Body::Housekeeping(text) => text.clone(),
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn messages_say_what_they_mean() {
        let table: &[(Message, &str, &str)] = &[
            (
                agent(b'P', b"s1\0select $1\0\0\0"),
                "parse",
                "[s1] select $1",
            ),
            (agent(b'P', b"\0select 1\0\0\0"), "parse", "select 1"),
            (
                agent(
                    b'B',
                    b"\0s1\0\0\x01\0\0\0\x02\0\0\0\x02ab\xff\xff\xff\xff\0\0",
                ),
                "bind",
                "[s1] $1 = 'ab', $2 = NULL",
            ),
            (
                agent(b'B', b"\0\0\0\x01\0\x01\0\x01\0\0\0\x02\0\x07\0\0"),
                "bind",
                "$1 = '\\x0007'",
            ),
            (agent(b'E', b"\0\0\0\0\x0a"), "execute", "at most 10 rows"),
            (agent(b'D', b"Ss1\0"), "describe", "statement s1"),
            (agent(b'p', b"hunter2\0"), "password", "not shown"),
            (agent(b'd', b"1\tAda\n"), "data", "1\tAda\n"),
            (agent(b'f', b"no\0"), "copy", "failed: no"),
            (agent(b'Q', b"no end"), "query", "malformed"),
            (target(b'Z', b"E"), "ready", "in failed transaction"),
            (target(b'K', b"\0\0\0\x01secret"), "cancel-key", "not shown"),
            (target(b'R', b"\0\0\0\x05salt"), "auth", "md5 asked"),
            (target(b'D', b"\0\x05\0\0"), "row", "malformed"),
            (target(b'T', b"\xff\xff"), "rows", "malformed"),
            (target(b'y', b"??"), "unknown", "'y', 2 B"),
            (target(b'A', b"\0\0\0\x01jobs\0go\0"), "notify", "jobs: go"),
        ];
        for (message, name, expected) in table {
            assert_eq!((message.name, text(message).as_str()), (*name, *expected));
        }
    }

    #[test]
    fn a_startup_names_user_and_database() {
        let piece = Piece::Startup(b"user\0me\0database\0shop\0\0".to_vec());
        let message = message(Direction::AgentToTarget, &piece);
        assert_eq!(text(&message), "user=me database=shop");
    }
}
