//! Recorded PostgreSQL, readable.
//!
//! The gateway's own decoder refuses what it does not understand; this one shows as much as it can, since
//! what it reads has already happened. [`split`] cuts the two streams into messages, [`decode`] says what
//! a message means, [`page`] sets it as text, rows as tables.

use serde_json::{Value, json};

use super::frame::{Direction, Frame, Kind};
use super::terminal::Paint;
use split::{Piece, Splitter};

mod decode;
mod page;
mod split;

pub use page::{Detail, Page};

/// One message of the conversation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it is called here: `query`, `rows`, `error` …
    pub name: &'static str,
    pub body: Body,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Body {
    /// Worth reading.
    Text(String),
    /// Housekeeping of the protocol.
    Housekeeping(String),
    /// An error or notice: the field's letter and its text.
    Fields(Vec<(char, String)>),
    /// The names of the columns of the rows that follow.
    Columns(Vec<String>),
    Row(Vec<Option<String>>),
}

impl Message {
    pub fn to_json(&self) -> Value {
        match &self.body {
            Body::Text(text) | Body::Housekeeping(text) => {
                json!({"message": self.name, "text": text})
            }
            Body::Fields(fields) => {
                let fields: serde_json::Map<_, _> = fields
                    .iter()
                    .map(|(letter, text)| (letter.to_string(), json!(text)))
                    .collect();
                json!({"message": self.name, "fields": fields})
            }
            Body::Columns(columns) => json!({"message": self.name, "columns": columns}),
            Body::Row(values) => json!({"message": self.name, "values": values}),
        }
    }
}

/// Both sides of one session.
#[derive(Debug)]
pub struct Conversation {
    agent: Splitter,
    target: Splitter,
}

impl Default for Conversation {
    fn default() -> Conversation {
        Conversation {
            agent: Splitter::agent(),
            target: Splitter::target(),
        }
    }
}

impl Conversation {
    /// The messages that these bytes complete.
    pub fn listen(&mut self, direction: Direction, bytes: &[u8]) -> Vec<Message> {
        let splitter = match direction {
            Direction::AgentToTarget => &mut self.agent,
            Direction::TargetToAgent => &mut self.target,
        };
        let mut messages = Vec::new();
        for piece in splitter.feed(bytes) {
            if matches!(piece, Piece::EncryptionRequest) {
                self.target.expect_encryption_answer();
            }
            messages.push(decode::message(direction, &piece));
        }
        messages
    }
}

/// A whole session as plain text.
pub fn render<'a>(frames: impl IntoIterator<Item = Frame<'a>>) -> String {
    let mut conversation = Conversation::default();
    let mut page = Page::new(Paint::PLAIN, Detail::Everything);
    let mut text = String::new();
    for frame in frames {
        match frame.kind {
            Kind::End => {}
            Kind::Note => {
                let note = serde_json::from_slice(frame.payload).unwrap_or_default();
                text += &page.note(frame.unix_ns, &note);
            }
            Kind::AgentToTarget | Kind::TargetToAgent => {
                let Some(direction) = frame.kind.direction() else {
                    continue;
                };
                for message in conversation.listen(direction, frame.payload) {
                    text += &page.message(frame.unix_ns, direction, message);
                }
            }
        }
    }
    text + &page.end()
}

#[cfg(test)]
pub(super) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(in crate::recording) fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let len = u32::try_from(body.len() + 4).unwrap().to_be_bytes();
        [&[tag], &len[..], body].concat()
    }

    pub(in crate::recording) fn startup(parameters: &[u8]) -> Vec<u8> {
        let len = u32::try_from(parameters.len() + 8).unwrap().to_be_bytes();
        [&len[..], &196_608u32.to_be_bytes(), parameters].concat()
    }

    pub(in crate::recording) fn row_description(names: &[&str]) -> Vec<u8> {
        let mut body = u16::try_from(names.len()).unwrap().to_be_bytes().to_vec();
        for name in names {
            body.extend(name.as_bytes());
            body.extend([0; 19]);
        }
        message(b'T', &body)
    }

    pub(in crate::recording) fn data_row(values: &[Option<&[u8]>]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            let len = value.map_or(-1, |v| i32::try_from(v.len()).unwrap());
            body.extend(len.to_be_bytes());
            body.extend(value.unwrap_or_default());
        }
        message(b'D', &body)
    }

    fn rendered(frames: &[(Kind, Vec<u8>)]) -> String {
        render(frames.iter().zip(0..).map(|((kind, payload), n)| Frame {
            kind: *kind,
            unix_ns: 1_767_225_600_000_000_000 + n * 1_500_000,
            payload,
        }))
    }

    use Kind::{AgentToTarget as A, Note as N, TargetToAgent as T};

    #[test]
    fn a_session_reads_like_a_conversation() {
        let denial = [
            &b"SERROR\0C42501\0Mdenied by policy\0"[..],
            b"Drule default-deny\0Hread only\0\0",
        ]
        .concat();
        let answer = [
            row_description(&["name", "card_number"]),
            data_row(&[Some(b"Ada"), Some(b"************1111")]),
            data_row(&[Some("Jos\u{1b}[31mé".as_bytes()), None]),
            message(b'C', b"SELECT 2\0"),
            message(b'Z', b"I"),
        ];
        let text = rendered(&[
            (A, startup(b"user\0report-bot\0database\0shop\0\0")),
            (T, [message(b'R', &[0; 4]), message(b'Z', b"I")].concat()),
            (
                A,
                message(b'Q', b"SELECT name, card_number\n  FROM customers\0"),
            ),
            (T, answer.concat()),
            (A, message(b'Q', b"DROP TABLE customers\0")),
            (
                N,
                br#"{"deny":"default-deny","reason":"no policy permits sql:ddl"}"#.to_vec(),
            ),
            (T, [message(b'E', &denial), message(b'Z', b"T")].concat()),
            (A, message(b'X', b"")),
        ]);
        let expected = "\
+0.000000s  → startup     user=report-bot database=shop
+0.001500s  ← auth        ok
            ← ready       idle
+0.003000s  → query       SELECT name, card_number
                            FROM customers
+0.004500s  ← rows        name           │ card_number
                          ───────────────┼─────────────────
                          Ada            │ ************1111
                          Jos\\u{1b}[31mé │ NULL
            ← done        SELECT 2
            ← ready       idle
+0.006000s  → query       DROP TABLE customers
+0.007500s  ! note        deny=default-deny reason=no policy permits sql:ddl
+0.009000s  ← error       42501 denied by policy
                          detail: rule default-deny
                          hint: read only
            ← ready       in transaction
+0.010500s  → terminate
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn how_the_bytes_were_cut_does_not_matter() {
        let agent = [
            startup(b"user\0me\0\0"),
            message(b'Q', b"select 1\0"),
            message(b'X', b""),
        ]
        .concat();
        let whole = Conversation::default().listen(Direction::AgentToTarget, &agent);
        let mut conversation = Conversation::default();
        let bytewise: Vec<Message> = agent
            .iter()
            .flat_map(|byte| conversation.listen(Direction::AgentToTarget, &[*byte]))
            .collect();
        assert_eq!(whole, bytewise);
        assert_eq!(whole.len(), 3);
    }

    proptest! {
        #[test]
        fn hostile_bytes_never_panic_or_act(frames in prop::collection::vec((0..3u8, prop::collection::vec(any::<u8>(), 0..80)), 0..12)) {
            let frames: Vec<_> = frames.into_iter().map(|(kind, payload)| ([A, T, N][usize::from(kind)], payload)).collect();
            let text = rendered(&frames);
            prop_assert!(text.chars().all(|c| c == '\n' || !c.is_control()));
        }

        #[test]
        fn hostile_messages_never_panic(tags in prop::collection::vec((any::<bool>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..40)), 0..12)) {
            let frames: Vec<_> = tags.into_iter().map(|(agent, tag, body)| (if agent { A } else { T }, message(tag.max(1), &body))).collect();
            rendered(&frames);
        }
    }
}
