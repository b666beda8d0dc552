//! What a SQL text does, established before it runs.
//!
//! [`analyse`] turns the text of one message into [`Facts`]: per statement the verbs it counts as,
//! the tables under each verb, the functions it calls, the settings it changes, and whether masked
//! columns are used in a way that masking the answer can still cover ([`MaskUse`]).
//!
//! The judge is PostgreSQL's own grammar (`pg_query`); `sqlparser` reads the text too, and where both
//! understand it and disagree the statement is *unknown*. Unknown is a verb of its own: it is refused
//! unless a policy allows `sql:unknown` by that name. When in doubt, a statement is unknown and a
//! masked column's use is refused.

pub mod copy;
mod evidence;
mod facts;
pub mod naming;
mod second_opinion;
pub mod shape;
pub mod strings;
mod taint;
mod tree;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use pg_query::protobuf as pb;

use crate::policy::masking::MaskRule;
pub use evidence::{evidence_of, evidence_text, without_cards};
pub use naming::Naming;

/// Longer texts are not analysed: both parsers are super-linear on hostile input.
pub const LONGEST_TEXT: usize = 256 * 1024;

/// What one message's text does. An empty text has no statements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Facts {
    pub statements: Vec<Statement>,
}

/// One statement, nested ones (EXPLAIN, PREPARE, DECLARE, COPY, WITH …) counted in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// What the statement is; [`Statement::effects`] has everything it does.
    pub verb: Verb,
    /// Its own text, without the separator.
    pub text: String,
    /// Every verb the statement counts as, with the tables it touches under that verb. Each of them
    /// must be permitted. `INSERT INTO a SELECT * FROM b` is `{Insert: {a}, Select: {b}}`.
    pub effects: BTreeMap<Verb, BTreeSet<Table>>,
    /// The tables under `Select` and `CopyTo`.
    pub reads: BTreeSet<Table>,
    /// The tables under every other verb.
    pub writes: BTreeSet<Table>,
    /// Functions called, as the parser folded them, schema-qualified if written so.
    pub functions: BTreeSet<String>,
    /// Settings changed by SET, RESET or `set_config`, in lower case.
    pub settings: BTreeSet<String>,
    /// Settings shown by SHOW or `current_setting`, in lower case; `all` for SHOW ALL or a computed name.
    pub shows: BTreeSet<String>,
    pub mask: MaskUse,
    /// Names taken from the row of a masked table: `c.name`, with the table as written.
    pub attributes: BTreeMap<Table, BTreeSet<String>>,
    pub disguises: Disguises,
    /// The body of a code block or of a function that is made, in lower case.
    pub code: Option<String>,
    pub naming: Naming,
    /// DECLARE … BINARY: its FETCHes deliver binary values whatever the client asks for.
    pub binary_cursor: bool,
    /// Present for a COPY.
    pub copy: Option<copy::Copy>,
    /// Why the statement is `sql:unknown`.
    pub unknown: Option<String>,
}

impl Statement {
    /// This statement, which only names another, together with everything the other one does.
    pub fn running(&self, other: &Statement) -> Statement {
        let mut both = self.clone();
        for (verb, tables) in &other.effects {
            both.effects
                .entry(*verb)
                .or_default()
                .extend(tables.iter().cloned());
        }
        both.reads.extend(other.reads.iter().cloned());
        both.writes.extend(other.writes.iter().cloned());
        both.functions.extend(other.functions.iter().cloned());
        both.settings.extend(other.settings.iter().cloned());
        both.shows.extend(other.shows.iter().cloned());
        for (table, names) in &other.attributes {
            let known = both.attributes.entry(table.clone()).or_default();
            known.extend(names.iter().cloned());
        }
        both.disguises.add(&other.disguises);
        both.code = both.code.or_else(|| other.code.clone());
        both.binary_cursor |= other.binary_cursor;
        both.mask = match (both.mask, &other.mask) {
            (refused @ MaskUse::Refused { .. }, _) => refused,
            (MaskUse::Maskable, MaskUse::None) => MaskUse::Maskable,
            (_, mask) => mask.clone(),
        };
        both.unknown = both.unknown.or_else(|| other.unknown.clone());
        both
    }

    /// Whether it may run code of the database's own: functions, triggers, the definitions of views.
    pub fn may_run_code(&self) -> bool {
        let quiet = |verb: &Verb| {
            matches!(
                verb,
                Verb::Select
                    | Verb::Set
                    | Verb::Show
                    | Verb::Transaction
                    | Verb::Prepare
                    | Verb::Deallocate
                    | Verb::Declare
                    | Verb::Close
                    | Verb::Listen
                    | Verb::Unlisten
                    | Verb::Notify
                    | Verb::Discard
            )
        };
        match self.naming {
            Naming::Prepare { .. } => return false,
            // A cursor is planned when it is declared, and what is constant is computed then.
            Naming::Declare { .. } => return !self.functions.is_empty(),
            _ => {}
        }
        let touched =
            |(verb, tables): (&Verb, &BTreeSet<Table>)| !quiet(verb) || !tables.is_empty();
        !self.functions.is_empty() || self.effects.iter().any(touched)
    }
}

/// What may call a function without being written as a call. Only the database knows whether it does:
/// its catalogue is held against these names before the statement is decided.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disguises {
    /// `x.name` and `(x).name`: a function over x's row where x has no such column.
    pub attributes: BTreeSet<String>,
    pub operators: BTreeSet<String>,
    /// The types of casts: their cast functions and the checks of domains.
    pub types: BTreeSet<String>,
}

impl Disguises {
    fn add(&mut self, other: &Disguises) {
        self.attributes.extend(other.attributes.iter().cloned());
        self.operators.extend(other.operators.iter().cloned());
        self.types.extend(other.types.iter().cloned());
    }
}

/// A relation as written; no schema means that the session's search_path decides.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    pub schema: Option<String>,
    pub name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{}.{}", unambiguous(schema), unambiguous(&self.name)),
            None => f.write_str(&unambiguous(&self.name)),
        }
    }
}

/// One part of a dotted name. A name that itself holds a dot is quoted, so that `"a.b"` and `a.b`
/// stay two names.
pub fn unambiguous(part: &str) -> Cow<'_, str> {
    if part.contains(['.', '"', '/']) || part.is_empty() {
        Cow::Owned(format!("\"{}\"", part.replace('"', "\"\"")))
    } else {
        Cow::Borrowed(part)
    }
}

macro_rules! verbs {
    ($($(#[$doc:meta])* $verb:ident = $action:literal),* $(,)?) => {
        /// What a statement counts as. Each is an action of the policy schema.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Verb {
            $($(#[$doc])* $verb,)*
        }

        impl Verb {
            pub const ALL: &'static [Verb] = &[$(Verb::$verb),*];

            /// The name of the action in policies and in the evidence.
            pub fn action(&self) -> &'static str {
                match self {
                    $(Verb::$verb => $action,)*
                }
            }
        }
    };
}

verbs! {
    Select = "sql:select",
    Insert = "sql:insert",
    Update = "sql:update",
    Delete = "sql:delete",
    Merge = "sql:merge",
    Truncate = "sql:truncate",
    /// COPY … TO STDOUT.
    CopyTo = "sql:copy-to",
    /// COPY … FROM STDIN.
    CopyFrom = "sql:copy-from",
    /// COPY to or from a file on the database's host.
    CopyFile = "sql:copy-file",
    /// COPY to or from a program that the database's host runs.
    CopyProgram = "sql:copy-program",
    /// CREATE, ALTER, DROP, COMMENT and everything else that changes definitions.
    Ddl = "sql:ddl",
    /// GRANT and REVOKE.
    Grant = "sql:grant",
    /// CREATE, ALTER and DROP ROLE.
    Role = "sql:role",
    /// SET, RESET and `set_config`.
    Set = "sql:set",
    Show = "sql:show",
    /// BEGIN, COMMIT, ROLLBACK, SAVEPOINT …, SET TRANSACTION, SET CONSTRAINTS.
    Transaction = "sql:transaction",
    /// PREPARE TRANSACTION and what finishes it.
    TwoPhase = "sql:two-phase",
    Explain = "sql:explain",
    Prepare = "sql:prepare",
    Execute = "sql:execute",
    Deallocate = "sql:deallocate",
    Declare = "sql:declare",
    Fetch = "sql:fetch",
    Close = "sql:close",
    Listen = "sql:listen",
    Unlisten = "sql:unlisten",
    Notify = "sql:notify",
    Do = "sql:do",
    Call = "sql:call",
    /// VACUUM and ANALYZE.
    Vacuum = "sql:vacuum",
    /// CLUSTER, REINDEX, REFRESH MATERIALIZED VIEW, CHECKPOINT.
    Maintenance = "sql:maintenance",
    /// LOCK TABLE and SELECT … FOR UPDATE or SHARE.
    Lock = "sql:lock",
    Discard = "sql:discard",
    /// ALTER SYSTEM, LOAD, databases and tablespaces.
    System = "sql:system",
    /// What cannot be understood, or would make later statements impossible to understand.
    Unknown = "sql:unknown",
}

/// How a statement uses masked columns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MaskUse {
    /// Names no masked table.
    None,
    /// Masked columns reach the agent only as bare columns (or `*`) of the top-level target list or
    /// RETURNING list: masking the result by its origin covers them. Also for EXECUTE, FETCH and CALL,
    /// which name nothing.
    Maskable,
    /// A masked column is used where masking the result would not hide it.
    Refused { column: String, place: Place },
}

/// Where a masked column was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Expression,
    Predicate,
    Join,
    Order,
    Group,
    Distinct,
    SetOperation,
    Subselect,
    WholeRow,
    ColumnAlias,
    Assignment,
    ConflictTarget,
    Copy,
    NewTable,
    View,
    Code,
    Definition,
    Statistics,
    SqlInText,
    Unknown,
}

impl Place {
    /// The rule id under which the use is denied.
    pub fn rule(self) -> &'static str {
        match self {
            Self::Expression => "mask:expression",
            Self::Predicate => "mask:predicate",
            Self::Join => "mask:join",
            Self::Order => "mask:order",
            Self::Group => "mask:group",
            Self::Distinct => "mask:distinct",
            Self::SetOperation => "mask:set-operation",
            Self::Subselect => "mask:subselect",
            Self::WholeRow => "mask:whole-row",
            Self::ColumnAlias => "mask:column-alias",
            Self::Assignment => "mask:assignment",
            Self::ConflictTarget => "mask:conflict-target",
            Self::Copy => "mask:copy",
            Self::NewTable => "mask:new-table",
            Self::View => "mask:view",
            Self::Code => "mask:code",
            Self::Definition => "mask:definition",
            Self::Statistics => "mask:statistics",
            Self::SqlInText => "mask:sql-in-text",
            Self::Unknown => "mask:unknown",
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Expression => "an expression or function call",
            Self::Predicate => "a condition (WHERE, HAVING or MERGE … ON)",
            Self::Join => "a join condition",
            Self::Order => "ORDER BY",
            Self::Group => "GROUP BY or a window",
            Self::Distinct => "SELECT DISTINCT",
            Self::SetOperation => "UNION, INTERSECT or EXCEPT",
            Self::Subselect => "a sub-select or WITH query",
            Self::WholeRow => "a reference to the whole row",
            Self::ColumnAlias => "a table alias that renames columns",
            Self::Assignment => "the source of an INSERT or UPDATE",
            Self::ConflictTarget => "the target of ON CONFLICT",
            Self::Copy => "COPY",
            Self::NewTable => "CREATE TABLE AS or SELECT INTO",
            Self::View => "a view's definition",
            Self::Code => "a code block or function body",
            Self::Definition => "a change of definitions",
            Self::Statistics => "the planner's statistics, which hold samples of its values",
            Self::SqlInText => "a function that runs SQL given as text",
            Self::Unknown => "a statement that could not be analysed",
        })
    }
}

/// Establishes what `text` does. Never panics. CPU-bound, and hungry for stack: a chain of operators as
/// long as [`LONGEST_TEXT`] allows recurses once per operator inside pg_query, so the caller's thread
/// must have 256 MiB of (virtual) stack.
pub fn analyse(text: &str, masks: &[MaskRule]) -> Facts {
    let statements = match parse(text) {
        Ok(tree) => statements_of(text, &tree, masks),
        Err(why) => vec![unknown(text, why, masks)],
    };
    Facts { statements }
}

/// Why a text is not even looked at, if it is not.
fn unreadable(text: &str) -> Option<String> {
    if text.len() > LONGEST_TEXT {
        return Some(format!(
            "the text has {} bytes; at most {LONGEST_TEXT} are analysed",
            text.len()
        ));
    }
    (comment_depth(text) > DEEPEST_COMMENT)
        .then(|| format!("comments are nested deeper than {DEEPEST_COMMENT}"))
}

/// The grammar's lexer takes time in the square of the depth: 60,000 would keep it busy for most of a
/// minute.
const DEEPEST_COMMENT: usize = 64;

/// How deep comments nest at the most; openings inside of literals count too.
fn comment_depth(text: &str) -> usize {
    let mut bytes = text.as_bytes();
    let (mut depth, mut deepest) = (0_usize, 0);
    while let [first, rest @ ..] = bytes {
        bytes = match (first, rest) {
            (b'/', [b'*', rest @ ..]) => {
                depth += 1;
                deepest = deepest.max(depth);
                rest
            }
            (b'*', [b'/', rest @ ..]) => {
                depth = depth.saturating_sub(1);
                rest
            }
            _ => rest,
        };
    }
    deepest
}

fn parse(text: &str) -> Result<pb::ParseResult, String> {
    if let Some(why) = unreadable(text) {
        return Err(why);
    }
    match pg_query::parse(text, 0) {
        Ok(result) => Ok(result.protobuf),
        Err(pg_query::Error::Parse(message)) => Err(message),
        Err(pg_query::Error::Decode(_)) => Err("the statement is nested too deeply".to_owned()),
        Err(pg_query::Error::Conversion(_)) => Err("the text contains a NUL byte".to_owned()),
        Err(other) => Err(other.to_string()),
    }
}

fn statements_of(text: &str, tree: &pb::ParseResult, masks: &[MaskRule]) -> Vec<Statement> {
    let mut statements: Vec<Statement> = tree
        .stmts
        .iter()
        .map(|raw| statement(text, raw, masks))
        .collect();
    if let Err(disagreement) = second_opinion::compare(text, &statements) {
        let doubt = |statement: &mut Statement| {
            statement
                .unknown
                .get_or_insert_with(|| disagreement.clone());
            statement.naming = Naming::Anything;
            mark_unknown(statement, masks);
        };
        statements.iter_mut().for_each(doubt);
    }
    statements
}

fn statement(text: &str, raw: &pb::RawStmt, masks: &[MaskRule]) -> Statement {
    let own_text = slice(text, raw).trim();
    let Some(node) = raw.stmt.as_deref().and_then(tree::inner) else {
        return unknown(own_text, "an empty parse tree".to_owned(), masks);
    };
    Statement {
        naming: naming::look(node, own_text, masks),
        ..facts_of(node, own_text, masks)
    }
}

/// Everything but what the statement does with names.
fn facts_of(node: tree::Ref<'_>, text: &str, masks: &[MaskRule]) -> Statement {
    let gathered = facts::gather(node);
    let taint::Taint {
        mask,
        attributes,
        copied,
    } = taint::look(node, masks);
    let copy = match node {
        tree::Ref::CopyStmt(it) => Some(copy::facts(text, it, copied)),
        _ => None,
    };
    let (reads, writes) = facts::reads_and_writes(&gathered.effects);
    let mut statement = Statement {
        verb: gathered.verb,
        text: text.to_owned(),
        effects: gathered.effects,
        reads,
        writes,
        functions: gathered.functions,
        settings: gathered.settings,
        shows: gathered.shows,
        mask,
        attributes,
        disguises: gathered.disguises,
        code: taint::code(node),
        naming: Naming::None,
        binary_cursor: gathered.binary_cursor,
        copy,
        unknown: gathered.doubt,
    };
    if statement.unknown.is_some() {
        mark_unknown(&mut statement, masks);
    }
    statement
}

/// A statement that was made by code of the database, of which nothing is known; its rows are masked by
/// their origin like any other's.
pub fn code_made(text: &str) -> Statement {
    unknown(text, "it was made by code".to_owned(), &[])
}

fn unknown(text: &str, why: String, masks: &[MaskRule]) -> Statement {
    let mut statement = Statement {
        text: text.trim().to_owned(),
        naming: Naming::Anything,
        unknown: Some(why),
        ..nothing()
    };
    mark_unknown(&mut statement, masks);
    statement
}

/// No statement at all: what an empty text is prepared as.
pub fn nothing() -> Statement {
    Statement {
        verb: Verb::Unknown,
        text: String::new(),
        effects: BTreeMap::new(),
        reads: BTreeSet::new(),
        writes: BTreeSet::new(),
        functions: BTreeSet::new(),
        settings: BTreeSet::new(),
        shows: BTreeSet::new(),
        mask: MaskUse::None,
        attributes: BTreeMap::new(),
        disguises: Disguises::default(),
        code: None,
        naming: Naming::None,
        binary_cursor: false,
        copy: None,
        unknown: None,
    }
}

/// An unknown statement may do anything, so with masks it may use a masked column in any place.
fn mark_unknown(statement: &mut Statement, masks: &[MaskRule]) {
    statement.verb = Verb::Unknown;
    statement.effects.entry(Verb::Unknown).or_default();
    if let (Some(rule), MaskUse::None | MaskUse::Maskable) = (masks.first(), &statement.mask) {
        statement.mask = MaskUse::Refused {
            column: rule.column.clone(),
            place: Place::Unknown,
        };
    }
}

/// A length of 0 means "to the end"; positions are bytes.
fn slice<'a>(text: &'a str, raw: &pb::RawStmt) -> &'a str {
    let start = usize::try_from(raw.stmt_location).unwrap_or(0);
    let end = match usize::try_from(raw.stmt_len) {
        Ok(length) if length > 0 => start.saturating_add(length),
        _ => text.len(),
    };
    text.get(start..end).unwrap_or(text)
}

#[cfg(test)]
mod tests;
