//! Replication connections: the target's log or its files, streamed to an agent that may have all of it.
//!
//! What passes is recorded and not looked at. Only messages are: a command of the replication protocol is
//! one statement in the evidence, and what is none is SQL (a connection with `replication=database` takes
//! both), which is decided like any other.

use std::borrow::Cow;

/// What kind of replication connection a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// The whole server's log and files; no SQL.
    Physical,
    /// One database's changes, and SQL there.
    Logical,
}

impl Replication {
    /// The value of the start-up parameter, as the server reads it (`ProcessStartupPacket`, `parse_bool`).
    ///
    /// # Errors
    /// A value the server refuses.
    pub fn parse(value: &str) -> Result<Option<Self>, InvalidValue> {
        if value == "database" {
            return Ok(Some(Replication::Logical));
        }
        let lower = value.to_ascii_lowercase();
        let begins = |word: &str, least: usize| lower.len() >= least && word.starts_with(&lower);
        if begins("true", 1) || begins("yes", 1) || lower == "on" || lower == "1" {
            return Ok(Some(Replication::Physical));
        }
        match begins("false", 1) || begins("no", 1) || begins("off", 2) || lower == "0" {
            true => Ok(None),
            false => Err(InvalidValue),
        }
    }

    /// The parameter as the target gets it.
    pub fn value(self) -> &'static str {
        match self {
            Replication::Physical => "true",
            Replication::Logical => "database",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value of \"replication\" is neither a truth value nor \"database\"")]
pub struct InvalidValue;

/// Commands of the replication protocol, of which none begins a statement of SQL.
const COMMANDS: [&str; 9] = [
    "IDENTIFY_SYSTEM",
    "BASE_BACKUP",
    "START_REPLICATION",
    "CREATE_REPLICATION_SLOT",
    "ALTER_REPLICATION_SLOT",
    "DROP_REPLICATION_SLOT",
    "READ_REPLICATION_SLOT",
    "TIMELINE_HISTORY",
    "UPLOAD_MANIFEST",
];

/// The command in a Query, if it is one of the replication protocol and cannot be SQL as well.
pub fn command(text: &[u8]) -> Option<Cow<'_, str>> {
    let text = std::str::from_utf8(text).ok()?;
    let rest = text.trim_matches(is_space);
    let end = rest.find(|c: char| !is_name(c)).unwrap_or(rest.len());
    let (word, arguments) = rest.split_at(end);
    let is_command = COMMANDS
        .iter()
        .any(|known| word.eq_ignore_ascii_case(known))
        || word.eq_ignore_ascii_case("SHOW") && is_setting(arguments);
    is_command.then_some(Cow::Borrowed(text))
}

/// `SHOW name` is both protocols'; `SHOW name; DROP …` is SQL to some servers.
fn is_setting(arguments: &str) -> bool {
    let name = arguments.trim_end_matches(|c| c == ';' || is_space(c));
    let name = name.trim_start_matches(is_space);
    !name.is_empty() && name.chars().all(|c| is_name(c) || c == '.')
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\x0b' | '\x0c')
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '_' | '$') || !c.is_ascii()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parameter_is_read_as_the_server_reads_it() {
        for (value, expected) in [
            ("database", Ok(Some(Replication::Logical))),
            ("true", Ok(Some(Replication::Physical))),
            ("T", Ok(Some(Replication::Physical))),
            ("tRu", Ok(Some(Replication::Physical))),
            ("yes", Ok(Some(Replication::Physical))),
            ("Y", Ok(Some(Replication::Physical))),
            ("on", Ok(Some(Replication::Physical))),
            ("1", Ok(Some(Replication::Physical))),
            ("false", Ok(None)),
            ("n", Ok(None)),
            ("of", Ok(None)),
            ("0", Ok(None)),
            ("", Err(InvalidValue)),
            ("o", Err(InvalidValue)),
            ("DATABASE", Err(InvalidValue)),
            ("2", Err(InvalidValue)),
            (" true", Err(InvalidValue)),
            ("truely", Err(InvalidValue)),
        ] {
            assert_eq!(Replication::parse(value), expected, "{value:?}");
        }
    }

    #[test]
    fn what_is_a_command_is_not_sql() {
        for (text, is_command) in [
            ("IDENTIFY_SYSTEM", true),
            ("  start_replication 0/0;", true),
            ("BASE_BACKUP ( LABEL 'x')", true),
            ("SHOW wal_segment_size", true),
            ("show data_directory_mode;", true),
            ("SHOW x; DROP TABLE t", false),
            ("SHOW", false),
            ("IDENTIFY_SYSTEMS", false),
            ("IDENTIFY_SYSTEM2", false),
            ("/* */ IDENTIFY_SYSTEM", false),
            ("SELECT 1", false),
            ("", false),
        ] {
            assert_eq!(command(text.as_bytes()).is_some(), is_command, "{text}");
        }
    }
}
