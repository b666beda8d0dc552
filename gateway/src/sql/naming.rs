//! The names of prepared statements and cursors, and what a statement does with them.
//!
//! `EXECUTE q` and `FETCH c` name nothing of what they run; `PREPARE` and `DECLARE` say it. Whoever follows a
//! session keeps what was prepared under which name, and decides an `EXECUTE` as the statement it runs.

use std::sync::Arc;

use pg_query::protobuf::{self as pb, Token};

use super::tree::{Ref, inner};
use super::{Statement, facts_of};
use crate::policy::masking::MaskRule;

/// What a statement does with a name. Names are as the server keeps them: folded, and cut short.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Naming {
    #[default]
    None,
    /// PREPARE: from here on the name stands for this statement.
    Prepare {
        name: String,
        prepared: Arc<Statement>,
    },
    /// DECLARE … CURSOR; with `hold`, it may outlive its transaction.
    Declare {
        name: String,
        query: Arc<Statement>,
        hold: bool,
    },
    /// EXECUTE, also below EXPLAIN and CREATE TABLE AS.
    Execute(String),
    /// FETCH and MOVE.
    Fetch(String),
    /// `None`: all of them.
    Deallocate(Option<String>),
    /// `None`: all of them.
    Close(Option<String>),
    DiscardAll,
    /// A code block that may prepare, declare or close by any name.
    Anything,
}

/// `NAMEDATALEN` of PostgreSQL, less the NUL: longer identifiers are cut.
pub const LONGEST_NAME: usize = 63;

/// The cursor options of PostgreSQL's parsenodes.h.
const CURSOR_OPT_BINARY: i32 = 0x0001;
const CURSOR_OPT_HOLD: i32 = 0x0020;

/// Words without which a code block in PL/pgSQL changes no name by itself. It may still call functions
/// that do.
const RENAMING_WORDS: [&str; 8] = [
    "execute",
    "prepare",
    "deallocate",
    "discard",
    "open",
    "close",
    "cursor",
    // A code block in another language.
    "language",
];

pub(super) fn look(statement: Ref<'_>, text: &str, masks: &[MaskRule]) -> Naming {
    match statement {
        Ref::PrepareStmt(it) => match nested(&it.query, text, Token::As, masks) {
            Some(prepared) => Naming::Prepare {
                name: cut(&it.name),
                prepared: Arc::new(prepared),
            },
            None => Naming::Anything,
        },
        Ref::DeclareCursorStmt(it) => match nested(&it.query, text, Token::For, masks) {
            Some(mut query) => {
                query.binary_cursor = it.options & CURSOR_OPT_BINARY != 0;
                Naming::Declare {
                    name: cut(&it.portalname),
                    query: Arc::new(query),
                    hold: it.options & CURSOR_OPT_HOLD != 0,
                }
            }
            None => Naming::Anything,
        },
        Ref::ExecuteStmt(it) => Naming::Execute(cut(&it.name)),
        Ref::ExplainStmt(it) => executed_below(&it.query),
        Ref::CreateTableAsStmt(it) => executed_below(&it.query),
        Ref::FetchStmt(it) => Naming::Fetch(cut(&it.portalname)),
        Ref::DeallocateStmt(it) => Naming::Deallocate(named(&it.name)),
        Ref::ClosePortalStmt(it) => Naming::Close(named(&it.portalname)),
        Ref::DiscardStmt(it) if it.target() == pb::DiscardMode::DiscardAll => Naming::DiscardAll,
        Ref::DoStmt(_) if may_rename(text) => Naming::Anything,
        _ => Naming::None,
    }
}

/// EXPLAIN DECLARE makes no cursor, so only EXECUTE is of interest there.
fn executed_below(query: &Option<Box<pb::Node>>) -> Naming {
    match query.as_deref().and_then(inner) {
        Some(Ref::ExecuteStmt(it)) => Naming::Execute(cut(&it.name)),
        Some(Ref::CreateTableAsStmt(it)) => executed_below(&it.query),
        _ => Naming::None,
    }
}

/// The statement that is prepared or declared, with the text behind the first `separator`: a reserved word,
/// so no name and no type before it can be spelled like it.
fn nested(
    query: &Option<Box<pb::Node>>,
    text: &str,
    separator: Token,
    masks: &[MaskRule],
) -> Option<Statement> {
    let node = query.as_deref().and_then(inner)?;
    let tokens = pg_query::scan_tokens(text).ok()?;
    let before = tokens.iter().find(|token| token.token() == separator)?;
    let own = text.get(usize::try_from(before.end).ok()?..)?;
    Some(facts_of(node, own.trim(), masks))
}

fn may_rename(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    RENAMING_WORDS.iter().any(|word| text.contains(word))
}

fn named(name: &str) -> Option<String> {
    (!name.is_empty()).then(|| cut(name))
}

/// The server cuts an identifier between characters.
fn cut(name: &str) -> String {
    let mut end = name.len().min(LONGEST_NAME);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or(name).to_owned()
}
