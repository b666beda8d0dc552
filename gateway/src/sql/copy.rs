//! COPY: which way, with whom, and how the data is written.

use pg_query::protobuf as pb;

use super::facts::strings;
use super::tree::{Ref, inner};
use super::{Table, taint};

/// The facts of a COPY.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Copy {
    /// COPY … FROM.
    pub from: bool,
    pub peer: Peer,
    /// `None`: options that are not understood, or that no server takes.
    pub options: Option<Options>,
    /// What it sends to the client; present where a masked table is among it.
    pub sent: Option<Sent>,
}

/// Where the data comes from or goes to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// STDIN or STDOUT.
    Client,
    /// A file on the database's host.
    File(String),
    /// A command line there.
    Program(String),
}

/// How the data is written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    pub format: Format,
    pub delimiter: u8,
    pub null: Vec<u8>,
    pub quote: u8,
    pub escape: u8,
    pub header: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Text,
    Csv,
    Binary,
}

impl Format {
    pub fn name(self) -> &'static str {
        match self {
            Format::Text => "text",
            Format::Csv => "csv",
            Format::Binary => "binary",
        }
    }
}

/// The columns of a COPY … TO STDOUT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// So many, of which these are masked.
    Columns {
        width: usize,
        masked: Vec<MaskedColumn>,
    },
    /// Those of the table, in its order. A list of them would stand at this byte of the text.
    Table { table: Table, list_at: usize },
}

/// A masked column by its place in a row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaskedColumn {
    pub place: usize,
    /// The table as written; absent for a query's output.
    pub table: Option<Table>,
    pub column: String,
}

pub(super) fn facts(text: &str, it: &pb::CopyStmt, copied: Option<taint::Copied>) -> Copy {
    let peer = match (it.is_program, it.filename.as_str()) {
        (true, program) => Peer::Program(program.to_owned()),
        (false, "") => Peer::Client,
        (false, file) => Peer::File(file.to_owned()),
    };
    let sent = match copied {
        None => None,
        Some(taint::Copied::Columns { width, masked }) => Some(Sent::Columns { width, masked }),
        Some(taint::Copied::Table) => it.relation.as_ref().and_then(|relation| {
            Some(Sent::Table {
                table: Table {
                    schema: (!relation.schemaname.is_empty()).then(|| relation.schemaname.clone()),
                    name: relation.relname.clone(),
                },
                list_at: end_of_name(text, relation.location)?,
            })
        }),
    };
    Copy {
        from: it.is_from,
        peer,
        options: options(&it.options),
        sent,
    }
}

/// Where the dotted name that begins at `location` ends.
fn end_of_name(text: &str, location: i32) -> Option<usize> {
    let tokens = pg_query::scan_tokens(text).ok()?;
    let mut tokens = tokens
        .iter()
        .skip_while(|token| token.start != location)
        .filter(|token| !matches!(token.token(), pb::Token::SqlComment | pb::Token::CComment));
    let mut end = tokens.next()?.end;
    while let Some(token) = tokens.next() {
        if token.token() != pb::Token::Ascii46 {
            break;
        }
        end = tokens.next()?.end;
    }
    usize::try_from(end).ok()
}

/// The options as the server reads them; a value it would refuse is not understood.
fn options(list: &[pb::Node]) -> Option<Options> {
    let mut given: Vec<(&str, Option<String>)> = Vec::new();
    for option in list.iter().filter_map(inner) {
        let Ref::DefElem(option) = option else {
            return None;
        };
        let name = option.defname.as_str();
        if given.iter().any(|(known, _)| *known == name) {
            return None;
        }
        given.push((name, option.arg.as_deref().and_then(value)));
    }
    let text = |name: &str| {
        given
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| value.clone())
    };
    let format = match text("format") {
        None => Format::Text,
        Some(value) => match value?.as_str() {
            "text" => Format::Text,
            "csv" => Format::Csv,
            "binary" => Format::Binary,
            _ => return None,
        },
    };
    let byte = |name: &str, default: u8| match text(name) {
        None => Some(default),
        Some(value) => match value?.as_bytes() {
            [byte] if byte.is_ascii() => Some(*byte),
            _ => None,
        },
    };
    let csv = format == Format::Csv;
    let quote = byte("quote", b'"')?;
    let null = match text("null") {
        None if csv => Vec::new(),
        None => b"\\N".to_vec(),
        Some(value) => value?.into_bytes(),
    };
    let header = match text("header") {
        None => false,
        Some(None) => true,
        Some(Some(value)) => match value.to_ascii_lowercase().as_str() {
            "true" | "on" | "1" | "match" => true,
            "false" | "off" | "0" => false,
            _ => return None,
        },
    };
    let known = [
        "format",
        "delimiter",
        "quote",
        "escape",
        "null",
        "header",
        "force_quote",
        "force_not_null",
        "force_null",
        "freeze",
        "on_error",
        "log_verbosity",
    ];
    // ENCODING, and what later servers may add, can change what the bytes mean.
    if given.iter().any(|(name, _)| !known.contains(name)) || !null.is_ascii() {
        return None;
    }
    Some(Options {
        format,
        delimiter: byte("delimiter", if csv { b',' } else { b'\t' })?,
        escape: byte("escape", quote)?,
        null,
        quote,
        header,
    })
}

fn value(node: &pb::Node) -> Option<String> {
    match inner(node)? {
        Ref::String(it) => Some(it.sval.clone()),
        Ref::Integer(it) => Some(it.ival.to_string()),
        Ref::Boolean(it) => Some(it.boolval.to_string()),
        Ref::TypeName(it) => strings(&it.names).last().map(|name| (*name).to_owned()),
        _ => None,
    }
}
