//! Start-up parameters: what an agent may set before its first statement.
//!
//! A StartupMessage can carry any setting by name, and `options` a whole command line of them. Only
//! settings that change neither what a statement means nor who runs it are passed on.

use super::replication::Replication;
use crate::protocol::postgres::startup::Startup;

/// Settings an agent may bring along. None of them changes name resolution, identity, row security or lexing;
/// whether this agent may is still the policy's to say.
const ALLOWED: &[&str] = &[
    "application_name",
    "array_nulls",
    "backend_flush_after",
    "bytea_output",
    "check_function_bodies",
    "client_connection_check_interval",
    "client_encoding",
    "client_min_messages",
    "commit_delay",
    "commit_siblings",
    "constraint_exclusion",
    "cpu_index_tuple_cost",
    "cpu_operator_cost",
    "cpu_tuple_cost",
    "cursor_tuple_fraction",
    "datestyle",
    "debug_parallel_query",
    "default_statistics_target",
    "default_text_search_config",
    "default_toast_compression",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "effective_cache_size",
    "effective_io_concurrency",
    "escape_string_warning",
    "extra_float_digits",
    "force_parallel_mode",
    "from_collapse_limit",
    "geqo",
    "geqo_effort",
    "geqo_generations",
    "geqo_pool_size",
    "geqo_seed",
    "geqo_selection_bias",
    "geqo_threshold",
    "gin_fuzzy_search_limit",
    "gin_pending_list_limit",
    "hash_mem_multiplier",
    "icu_validation_level",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
    "intervalstyle",
    "jit",
    "jit_above_cost",
    "jit_expressions",
    "jit_inline_above_cost",
    "jit_optimize_above_cost",
    "jit_tuple_deforming",
    "join_collapse_limit",
    "lc_monetary",
    "lc_numeric",
    "lc_time",
    "lock_timeout",
    "logical_decoding_work_mem",
    "maintenance_io_concurrency",
    "maintenance_work_mem",
    "max_parallel_maintenance_workers",
    "max_parallel_workers",
    "max_parallel_workers_per_gather",
    "min_parallel_index_scan_size",
    "min_parallel_table_scan_size",
    "parallel_leader_participation",
    "parallel_setup_cost",
    "parallel_tuple_cost",
    "plan_cache_mode",
    "quote_all_identifiers",
    "random_page_cost",
    "recursive_worktable_factor",
    "seq_page_cost",
    "statement_timeout",
    "stats_fetch_consistency",
    "synchronize_seqscans",
    "synchronous_commit",
    "tcp_keepalives_count",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
    "tcp_user_timeout",
    "temp_buffers",
    "timezone",
    "timezone_abbreviations",
    "transaction_timeout",
    "vacuum_cost_delay",
    "vacuum_cost_limit",
    "vacuum_freeze_min_age",
    "wal_sender_timeout",
    "work_mem",
    "xmlbinary",
    "xmloption",
];

/// The planner's switches: which plans it may choose.
const PLANNER: &str = "enable_";

/// More settings than any client brings along; each of them is a decision.
const MAX_SETTINGS: usize = 64;

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
}

/// A parameter that is refused: which, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedParameter {
    pub name: String,
    pub reason: &'static str,
    pub hint: &'static str,
}

const WITHOUT: &str = "Connect without it.";
const LATER: &str = "Connect without it; where a policy permits, SET it in the session.";

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
            // Options of the protocol: none is known, and the client has been told so.
            _ if name.starts_with("_pq_.") => {}
            _ => setting(&mut accepted, name, value)?,
        }
    }
    if accepted.user.is_empty() {
        return Err(RefusedParameter {
            name: "user".to_owned(),
            reason: "no PostgreSQL user name was given",
            hint: "Name any user; the gateway logs in with its own credential.",
        });
    }
    if accepted.database.is_empty() {
        accepted.database.clone_from(&accepted.user);
    }
    Ok(accepted)
}

fn setting(accepted: &mut Accepted, name: &str, value: &str) -> Result<(), RefusedParameter> {
    let lower = name.to_ascii_lowercase();
    let refuse = |reason, hint| {
        Err(RefusedParameter {
            name: name.to_owned(),
            reason,
            hint,
        })
    };
    match lower.as_str() {
        "replication" => {
            return refuse(
                "it is no setting: the target does not take it in options",
                WITHOUT,
            );
        }
        "client_encoding" if !encoding_is_safe(value.as_bytes()) => {
            return refuse(
                "this encoding can hide statement text",
                "Use client_encoding UTF8.",
            );
        }
        // Some drivers ask for what is the default anyway.
        "standard_conforming_strings" if !on(value) => {
            return refuse("statements are read with it on", WITHOUT);
        }
        "search_path" if !is_plain_path(value) => {
            return refuse(
                "names without a schema are decided as tables of schema public",
                "Connect without it, and write schema-qualified names.",
            );
        }
        "standard_conforming_strings" | "search_path" | "client_encoding" => {}
        "role" | "session_authorization" => {
            return refuse(
                "the gateway chooses the role",
                "Connect without it; an operator can map this agent to another role.",
            );
        }
        "row_security" => {
            return refuse("row security is not the agent's to change", WITHOUT);
        }
        known if ALLOWED.contains(&known) || known.starts_with(PLANNER) => {}
        custom if custom.contains('.') => {
            return refuse(
                "settings of extensions and applications can decide who may see what",
                LATER,
            );
        }
        _ => return refuse("this setting may not be set when connecting", LATER),
    }
    if accepted.settings.len() >= MAX_SETTINGS {
        return refuse("too many settings at once", LATER);
    }
    if !is_a_name(name) {
        return refuse("this is no setting's name", WITHOUT);
    }
    accepted.settings.push((name.to_owned(), value.to_owned()));
    Ok(())
}

/// So that it can be written into a statement as it is.
fn is_a_name(name: &str) -> bool {
    name.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// A search path that finds what the decision looks at: schema public, behind the system's own. Whether the role
/// has a schema of its own name is looked at after the login.
fn is_plain_path(value: &str) -> bool {
    let value: String = value.chars().filter(|c| *c != ' ').collect();
    matches!(
        value.as_str(),
        "public" | "\"public\"" | "$user,public" | "\"$user\",public" | "\"$user\",\"public\""
    )
}

fn on(value: &str) -> bool {
    ["true", "on", "yes", "1"].contains(&value.to_ascii_lowercase().as_str())
}

fn replication(name: &str, value: &str) -> Result<Option<Replication>, RefusedParameter> {
    let refuse = |reason| RefusedParameter {
        name: name.to_owned(),
        reason,
        hint: WITHOUT,
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
        hint: "Write each setting as -c name=value.",
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
        assert_eq!(
            accepted.settings[2..],
            [
                ("statement_timeout".to_owned(), "5s".to_owned()),
                ("extra_float_digits".to_owned(), "3".to_owned()),
                ("application_name".to_owned(), "a b".to_owned()),
            ]
        );
    }

    /// What drivers are known to send by themselves: a list written by hand, not recorded from them. Those that
    /// are installed are tried for real in tests/client_matrix.
    #[test]
    fn what_drivers_bring_along_is_accepted() {
        let table: &[(&str, &[(&str, &str)])] = &[
            (
                "libpq with PGDATESTYLE, PGTZ, PGGEQO",
                &[
                    ("datestyle", "Postgres, MDY"),
                    ("timezone", "PST8PDT"),
                    ("geqo", "off"),
                    ("client_encoding", "UTF8"),
                ],
            ),
            (
                "pg_regress",
                &[("options", "-c intervalstyle=postgres_verbose")],
            ),
            (
                "JDBC",
                &[
                    ("client_encoding", "UTF8"),
                    ("DateStyle", "ISO"),
                    ("TimeZone", "Europe/Berlin"),
                    ("extra_float_digits", "2"),
                    ("search_path", "public"),
                    ("application_name", "PostgreSQL JDBC Driver"),
                ],
            ),
            (
                "npgsql",
                &[
                    ("client_encoding", "UTF8"),
                    ("search_path", "\"$user\", public"),
                    ("TimeZone", "UTC"),
                ],
            ),
            ("asyncpg", &[("client_encoding", "'utf-8'"), ("jit", "off")]),
            (
                "node-postgres",
                &[
                    ("replication", "off"),
                    ("statement_timeout", "1000"),
                    ("lock_timeout", "1000"),
                    ("idle_in_transaction_session_timeout", "1000"),
                    ("client_encoding", "UTF8"),
                ],
            ),
            (
                "sqlx",
                &[
                    ("DateStyle", "ISO, MDY"),
                    ("client_encoding", "UTF8"),
                    ("TimeZone", "UTC"),
                    ("extra_float_digits", "2"),
                ],
            ),
            (
                "lib/pq",
                &[("datestyle", "ISO, MDY"), ("extra_float_digits", "2")],
            ),
            (
                "pgx",
                &[
                    ("standard_conforming_strings", "on"),
                    ("options", "-c work_mem=8MB"),
                ],
            ),
            (
                "Django, Rails",
                &[(
                    "options",
                    "-c default_transaction_isolation=serializable --enable-seqscan=off",
                )],
            ),
        ];
        for (name, parameters) in table {
            let with_user: Vec<_> = [("user", "a")].iter().chain(*parameters).copied().collect();
            let accepted = accept(&startup(&with_user));
            assert!(accepted.is_ok(), "{name}: {accepted:?}");
        }
    }

    #[test]
    fn the_number_of_settings_is_bounded() {
        let many = "-cjit=on ".repeat(MAX_SETTINGS + 1);
        let refused = accept(&startup(&[("user", "a"), ("options", &many)]));
        assert_eq!(refused.unwrap_err().reason, "too many settings at once");
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
                "a path to elsewhere",
                &[("user", "a"), ("search_path", "public, evil")],
            ),
            (
                "a path around",
                &[("user", "a"), ("search_path", "public,pg_catalog")],
            ),
            ("no path", &[("user", "a"), ("search_path", "")]),
            (
                "a path of one odd name",
                &[("user", "a"), ("search_path", "\"$user,public\"")],
            ),
            ("row security", &[("user", "a"), ("row_security", "off")]),
            (
                "an application's",
                &[("user", "a"), ("options", "-c app.user=root")],
            ),
            ("quoting", &[("user", "a"), ("enable_x TO on; --", "x")]),
            (
                "loading code",
                &[("user", "a"), ("local_preload_libraries", "x")],
            ),
            (
                "strings",
                &[("user", "a"), ("standard_conforming_strings", "off")],
            ),
        ] {
            assert!(accept(&startup(parameters)).is_err(), "{name}");
        }
    }
}
