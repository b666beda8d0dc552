//! Start-up parameters: what an agent may set before its first statement.
//!
//! A StartupMessage can carry any setting by name, and `options` a whole command line of them. Only
//! settings that change neither what a statement means nor who runs it are passed on.

use super::replication::Replication;
use crate::protocol::postgres::startup::Startup;

/// Settings an agent may bring along. None of them changes name resolution, identity or lexing.
const ALLOWED: &[&str] = &[
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "geqo",
    "idle_in_transaction_session_timeout",
    "intervalstyle",
    "jit",
    "lock_timeout",
    "statement_timeout",
    "timezone",
];

/// What goes to the target, and what stays here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Accepted {
    /// The role the agent asked for; the target's credential decides which one it gets.
    pub user: String,
    pub database: String,
    /// Settings for the target, in order.
    pub settings: Vec<(String, String)>,
    /// A replication connection, if the agent asks for one.
    pub replication: Option<Replication>,
    /// `_pq_.` options, all of which are answered with "not supported".
    pub unsupported: Vec<String>,
}

/// A parameter that is refused: which, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedParameter {
    pub name: String,
    pub reason: &'static str,
}

/// Sorts a StartupMessage's parameters.
///
/// # Errors
/// The first parameter that may not be set.
pub fn accept(startup: &Startup) -> Result<Accepted, RefusedParameter> {
    let mut accepted = Accepted {
        user: String::new(),
        database: String::new(),
        settings: Vec::new(),
        replication: None,
        unsupported: Vec::new(),
    };
    for (name, value) in &startup.parameters {
        match name.to_ascii_lowercase().as_str() {
            "user" => accepted.user.clone_from(value),
            "database" => accepted.database.clone_from(value),
            "replication" => accepted.replication = replication(name, value)?,
            "options" => {
                for (name, value) in options(value)? {
                    setting(&mut accepted, &name, &value)?;
                }
            }
            lower if lower.starts_with("_pq_.") => accepted.unsupported.push(name.clone()),
            _ => setting(&mut accepted, name, value)?,
        }
    }
    if accepted.user.is_empty() {
        return Err(RefusedParameter {
            name: "user".to_owned(),
            reason: "no PostgreSQL user name was given",
        });
    }
    if accepted.database.is_empty() {
        accepted.database.clone_from(&accepted.user);
    }
    Ok(accepted)
}

fn setting(accepted: &mut Accepted, name: &str, value: &str) -> Result<(), RefusedParameter> {
    let lower = name.to_ascii_lowercase();
    let refuse = |reason| {
        Err(RefusedParameter {
            name: name.to_owned(),
            reason,
        })
    };
    match lower.as_str() {
        "replication" => refuse("it is no setting: the target does not take it in options"),
        "client_encoding" if !encoding_is_safe(value.as_bytes()) => {
            refuse("this encoding can hide statement text; use UTF8")
        }
        known if ALLOWED.contains(&known) => {
            accepted.settings.push((name.to_owned(), value.to_owned()));
            Ok(())
        }
        _ => refuse("this setting may not be set when connecting"),
    }
}

fn replication(name: &str, value: &str) -> Result<Option<Replication>, RefusedParameter> {
    let refuse = |reason| RefusedParameter {
        name: name.to_owned(),
        reason,
    };
    if name != "replication" {
        return Err(refuse("it must be written in lower case"));
    }
    Replication::parse(value).map_err(|_| refuse("its value is not one that a server takes"))
}

/// Encodings in which a byte below 0x80 is always the ASCII character: text analysed as UTF-8 means
/// the same to the server. SJIS, BIG5, GBK, UHC, JOHAB and GB18030 are not among them.
pub fn encoding_is_safe(name: &[u8]) -> bool {
    let folded: String = name
        .iter()
        .filter(|byte| byte.is_ascii_alphanumeric())
        .map(|byte| char::from(byte.to_ascii_lowercase()))
        .collect();
    matches!(
        folded.as_str(),
        "utf8" | "unicode" | "sqlascii" | "koi8r" | "koi8u" | "koi8"
    ) || ["latin", "iso8859", "win125", "win866", "win874"]
        .iter()
        .any(|family| folded.starts_with(family))
}

/// The settings in an `options` command line: `-c name=value`, `-cname=value`, `--name=value`.
/// A backslash escapes the next character, as in `pg_split_opts`.
fn options(line: &str) -> Result<Vec<(String, String)>, RefusedParameter> {
    let refuse = || RefusedParameter {
        name: "options".to_owned(),
        reason: "only -c name=value and --name=value are understood",
    };
    let mut settings = Vec::new();
    let mut words = words(line).into_iter();
    while let Some(word) = words.next() {
        let assignment = if word == "-c" {
            words.next().ok_or_else(refuse)?
        } else if let Some(rest) = word.strip_prefix("--") {
            // The server reads dashes in `--name` as underscores.
            match rest.split_once('=') {
                Some((name, value)) => format!("{}={value}", name.replace('-', "_")),
                None => return Err(refuse()),
            }
        } else if let Some(rest) = word.strip_prefix("-c") {
            rest.to_owned()
        } else {
            return Err(refuse());
        };
        let (name, value) = assignment.split_once('=').ok_or_else(refuse)?;
        settings.push((name.trim().replace('-', "_"), value.to_owned()));
    }
    Ok(settings)
}

fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        match character {
            '\\' => word.get_or_insert_default().extend(characters.next()),
            c if c.is_ascii_whitespace() || c == '\x0b' => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(parameters: &[(&str, &str)]) -> Startup {
        Startup {
            major: 3,
            minor: 0,
            parameters: parameters
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        }
    }

    #[test]
    fn what_ordinary_clients_send_is_accepted() {
        let accepted = accept(&startup(&[
            ("user", "ana"),
            ("database", "shop"),
            ("application_name", "psql"),
            ("client_encoding", "UTF8"),
            (
                "options",
                r"-c statement_timeout=5s --extra-float-digits=3 -capplication_name=a\ b",
            ),
            ("_pq_.later", "1"),
        ]))
        .expect("accepted");
        assert_eq!(accepted.user, "ana");
        assert_eq!(accepted.database, "shop");
        assert_eq!(accepted.unsupported, ["_pq_.later"]);
        assert_eq!(
            accepted.settings[2..],
            [
                ("statement_timeout".to_owned(), "5s".to_owned()),
                ("extra_float_digits".to_owned(), "3".to_owned()),
                ("application_name".to_owned(), "a b".to_owned()),
            ]
        );
    }

    #[test]
    fn the_database_defaults_to_the_user() {
        assert_eq!(
            accept(&startup(&[("user", "ana")]))
                .expect("accepted")
                .database,
            "ana"
        );
    }

    #[test]
    fn what_changes_meaning_or_identity_is_refused() {
        for (name, parameters) in [
            ("no user", &[("database", "shop")][..]),
            ("search_path", &[("user", "a"), ("search_path", "evil")]),
            ("role", &[("user", "a"), ("ROLE", "dba")]),
            ("options role", &[("user", "a"), ("options", "-c role=dba")]),
            (
                "options long",
                &[("user", "a"), ("options", "--search-path=evil")],
            ),
            (
                "options escaped",
                &[("user", "a"), ("options", r"-c\ role=dba")],
            ),
            ("options unknown", &[("user", "a"), ("options", "-d 5")]),
            ("replication", &[("user", "a"), ("replication", "Database")]),
            ("REPLICATION", &[("user", "a"), ("REPLICATION", "on")]),
            (
                "replication in options",
                &[("user", "a"), ("options", "-c replication=off")],
            ),
            ("encoding", &[("user", "a"), ("client_encoding", "SJIS")]),
            (
                "strings",
                &[("user", "a"), ("standard_conforming_strings", "off")],
            ),
        ] {
            assert!(accept(&startup(parameters)).is_err(), "{name}");
        }
    }
}
