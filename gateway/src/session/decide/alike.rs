//! Alike: which statements are so much alike that what holds for one holds for all.
//!
//! Programs send the same statement again and again with other numbers in it. Those of one *shape*
//! ([`crate::sql::shape`]) have the same facts. They can be known by it where evidence shows them as they
//! were sent: where nothing in them has to be withheld, whatever the numbers are.

use std::collections::HashMap;

use super::meaning::Meaning;
use crate::sql::{Naming, Verb, shape};

/// Digits from which on a text might hold a card number, perhaps in groups.
const CARD_DIGITS: usize = 12;

/// How many bytes stand before and behind the statement in its text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Around(usize, usize);

impl Around {
    fn of(text: &str, statement: &str) -> Option<Self> {
        let (head, rest) = text.split_at(text.find(statement)?);
        let tail = rest.get(statement.len()..)?;
        let is_blank = |text: &str| {
            text.bytes()
                .all(|byte| byte == b';' || byte.is_ascii_whitespace())
        };
        (is_blank(head) && is_blank(tail)).then_some(Self(head.len(), tail.len()))
    }

    /// The statement in another text of the same shape.
    pub(super) fn statement(self, text: &str) -> Option<&str> {
        text.get(self.0..text.len().checked_sub(self.1)?)
    }
}

/// The shape by which a text may be known.
pub(super) fn shape_of(text: &str) -> Option<String> {
    let digits = text.bytes().filter(u8::is_ascii_digit).count();
    (digits < CARD_DIGITS).then(|| shape::of(text)).flatten()
}

/// The shape by which a statement can stand for others, if it can. `evidence`: its text as evidence shows it.
pub(super) fn stands_for(
    text: &str,
    evidence: &str,
    meaning: &Meaning,
) -> Option<(String, Around)> {
    let as_sent = evidence == text && *meaning.shown == *meaning.statement.text;
    // A password may be a number.
    let says_password = || text.to_ascii_lowercase().contains("password");
    if !as_sent || !is_plain(meaning) || meaning.sensitive() || says_password() {
        return None;
    }
    shape_of(text).zip(Around::of(text, &meaning.shown))
}

/// Whether it only reads and writes rows: it neither names another statement nor copies, and leaves the
/// schema and the session's settings as they are.
pub(super) fn is_plain(meaning: &Meaning) -> bool {
    let statement = &meaning.statement;
    let rows = |verb: &Verb| {
        matches!(
            verb,
            Verb::Select | Verb::Insert | Verb::Update | Verb::Delete | Verb::Transaction
        )
    };
    statement.naming == Naming::None
        && meaning.makes().is_none()
        && statement.copy.is_none()
        && statement.unknown.is_none()
        && !statement.binary_cursor
        && !statement.effects.is_empty()
        && statement.effects.keys().all(rows)
        && statement.settings.is_empty()
        && statement.shows.is_empty()
}

/// Makes room for one more. All go at once: no order of their going is worth its price.
pub(super) fn make_room<V>(known: &mut HashMap<String, V>, most: usize) {
    if known.len() >= most {
        known.clear();
    }
}
