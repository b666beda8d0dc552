//! The same text, read by another parser.
//!
//! `pg_query` is the server's grammar, so what it says the text *is* stands. What can be wrong is our
//! own walk over its tree. `sqlparser` knows nothing of that walk: where it understands the text too
//! and sees another number of statements, another kind, or a table that the facts lack, something was
//! missed, and the text is unknown. It has no vote on what it cannot parse, and none where it is known
//! to misread PostgreSQL (`FROM ONLY t`, which it takes for a table named ONLY).

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use sqlparser::ast::{
    Ident, ObjectName, ObjectNamePart, Query, SetExpr, Statement as Other, Visit, Visitor,
};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

use super::{Statement, Verb};

/// sqlparser counts nesting at a few sites only; the trees it can build from a text that pg_query
/// accepted are shallow, because pg_query's own limit is about a hundred levels.
const DEEPEST: usize = 50;

/// PostgreSQL cuts longer names, sqlparser does not.
const LONGEST_NAME: usize = 63;

/// `Err` says what the parsers disagree about.
pub(super) fn compare(text: &str, statements: &[Statement]) -> Result<(), String> {
    // sqlparser takes what follows COPY … FROM STDIN for its data: it gets each statement by itself.
    let copies_in = statements
        .iter()
        .any(|statement| statement.verb == Verb::CopyFrom);
    if copies_in && statements.len() > 1 {
        return statements.iter().try_for_each(|statement| {
            compare_text(&statement.text, std::slice::from_ref(statement))
        });
    }
    compare_text(text, statements)
}

fn compare_text(text: &str, statements: &[Statement]) -> Result<(), String> {
    let parsed = Parser::new(&PostgreSqlDialect {})
        .with_recursion_limit(DEEPEST)
        .try_with_sql(text)
        .and_then(|mut parser| parser.parse_statements());
    let Ok(others) = parsed else { return Ok(()) };
    if others.len() != statements.len() {
        return Err(format!(
            "two parsers disagree: {} statements or {}; send them one at a time",
            statements.len(),
            others.len()
        ));
    }
    statements
        .iter()
        .zip(&others)
        .try_for_each(|(statement, other)| compare_one(statement, other))
}

fn compare_one(statement: &Statement, other: &Other) -> Result<(), String> {
    let Some(kind) = kind(other) else {
        return Ok(());
    };
    if !is_same_kind(statement.verb, kind) {
        return Err(format!(
            "two parsers disagree: {} or {}",
            statement.verb.action(),
            kind.action()
        ));
    }
    let mut seen = Relations::default();
    let _: ControlFlow<()> = other.visit(&mut seen);
    match seen
        .names
        .iter()
        .find(|name| !is_accounted_for(name, statement, &seen))
    {
        Some(name) => Err(format!("two parsers disagree about relation {name}")),
        None => Ok(()),
    }
}

/// The kinds both parsers have the same idea of; `None` has no opinion.
fn kind(other: &Other) -> Option<Verb> {
    match other {
        Other::Query(query) => query_kind(query),
        Other::Insert(_) => Some(Verb::Insert),
        Other::Update(_) => Some(Verb::Update),
        Other::Delete(_) => Some(Verb::Delete),
        Other::Merge(_) => Some(Verb::Merge),
        Other::Copy { .. } => Some(Verb::CopyTo),
        Other::Truncate(_) => Some(Verb::Truncate),
        Other::Explain { .. } => Some(Verb::Explain),
        Other::Prepare { .. } => Some(Verb::Prepare),
        Other::Declare { .. } => Some(Verb::Declare),
        Other::CreateView(_) | Other::CreateTable(_) => Some(Verb::Ddl),
        _ => None,
    }
}

/// `WITH … INSERT` is a query with a body of another kind there.
fn query_kind(query: &Query) -> Option<Verb> {
    match query.body.as_ref() {
        SetExpr::Insert(_) => Some(Verb::Insert),
        SetExpr::Update(_) => Some(Verb::Update),
        SetExpr::Delete(_) => Some(Verb::Delete),
        SetExpr::Merge(_) => Some(Verb::Merge),
        SetExpr::Query(inner) => query_kind(inner),
        SetExpr::Select(_)
        | SetExpr::SetOperation { .. }
        | SetExpr::Values(_)
        | SetExpr::Table(_) => Some(Verb::Select),
    }
}

fn is_same_kind(ours: Verb, theirs: Verb) -> bool {
    match theirs {
        Verb::CopyTo => matches!(
            ours,
            Verb::CopyTo | Verb::CopyFrom | Verb::CopyFile | Verb::CopyProgram
        ),
        _ => ours == theirs,
    }
}

/// What sqlparser takes for relations, and the names of its WITH queries.
#[derive(Default)]
struct Relations {
    names: BTreeSet<Name>,
    with_names: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Name {
    schema: Option<String>,
    name: String,
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.schema {
            Some(schema) => write!(f, "{schema}.{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl Visitor for Relations {
    type Break = ();

    fn pre_visit_query(&mut self, query: &Query) -> ControlFlow<()> {
        let queries = query.with.iter().flat_map(|with| &with.cte_tables);
        self.with_names
            .extend(queries.map(|query| folded(&query.alias.name)));
        ControlFlow::Continue(())
    }

    fn pre_visit_relation(&mut self, relation: &ObjectName) -> ControlFlow<()> {
        self.names.extend(name_of(relation));
        ControlFlow::Continue(())
    }
}

/// `None` for names it is known to misread or that PostgreSQL would cut.
fn name_of(relation: &ObjectName) -> Option<Name> {
    let parts: Option<Vec<&Ident>> = relation
        .0
        .iter()
        .map(|part| match part {
            ObjectNamePart::Identifier(ident) => Some(ident),
            ObjectNamePart::Function(_) => None,
        })
        .collect();
    let parts = parts?;
    let (last, before) = parts.split_last()?;
    let is_only = last.quote_style.is_none() && last.value.eq_ignore_ascii_case("only");
    if is_only || parts.iter().any(|part| part.value.len() > LONGEST_NAME) {
        return None;
    }
    Some(Name {
        schema: before.last().map(|schema| folded(schema)),
        name: folded(last),
    })
}

fn folded(ident: &Ident) -> String {
    match ident.quote_style {
        Some(_) => ident.value.clone(),
        None => ident.value.to_ascii_lowercase(),
    }
}

/// Functions in FROM look like relations to sqlparser.
fn is_accounted_for(name: &Name, statement: &Statement, seen: &Relations) -> bool {
    let is_table = statement
        .effects
        .values()
        .flatten()
        .any(|table| table.name == name.name && table.schema == name.schema);
    is_table
        || statement.functions.contains(&name.to_string())
        || (name.schema.is_none() && seen.with_names.contains(&name.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sql::{Table, analyse};

    #[test]
    fn readings_agree() {
        let table = [
            "SELECT * FROM a JOIN s.b USING (id), generate_series(1, 2) g, \"Q\".\"T\"",
            "SELECT * FROM ONLY a",
            "WITH x AS (SELECT * FROM a) SELECT * FROM x",
            "WITH x AS (DELETE FROM a RETURNING *) INSERT INTO b SELECT * FROM x",
            "INSERT INTO a SELECT * FROM b ON CONFLICT DO NOTHING",
            "UPDATE a SET x = b.x FROM b",
            "DELETE FROM a USING b WHERE a.id IN (SELECT id FROM c)",
            "EXPLAIN ANALYZE DELETE FROM a",
            "CREATE TABLE z AS SELECT * FROM a",
            "CREATE VIEW v AS SELECT * FROM a",
            "SELECT * INTO z FROM a",
            "COPY a FROM STDIN",
            "COPY (SELECT * FROM a) TO STDOUT",
            "PREPARE p AS SELECT * FROM a",
            "DECLARE c CURSOR FOR SELECT * FROM a",
            "SELECT * FROM a FOR UPDATE OF a",
            "MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN DELETE",
            "BEGIN; SELECT 1; COMMIT",
        ];
        for text in table {
            let facts = analyse(text, &[]);
            for statement in &facts.statements {
                assert_eq!(statement.unknown, None, "{text}");
            }
        }
    }

    /// sqlparser swallows what follows as the data of COPY.
    #[test]
    fn statements_after_copy_from_stdin_are_seen() {
        for text in [
            "COPY products FROM STDIN; DELETE FROM payments",
            "COPY products FROM STDIN (FORMAT csv);DELETE FROM payments;",
            "DELETE FROM payments; COPY products (id) FROM STDIN WITH CSV HEADER",
        ] {
            let facts = analyse(text, &[]);
            let mut verbs: Vec<Verb> = facts.statements.iter().map(|it| it.verb).collect();
            verbs.sort();
            assert_eq!(verbs, [Verb::Delete, Verb::CopyFrom], "{text}");
            assert!(
                facts.statements.iter().all(|it| it.unknown.is_none()),
                "{text}"
            );
        }
    }

    #[test]
    fn what_the_facts_lack_is_a_disagreement() {
        let text = "SELECT * FROM a, b";
        let mut statements = analyse(text, &[]).statements;
        assert_eq!(compare(text, &statements), Ok(()));

        let b = Table {
            schema: None,
            name: "b".to_owned(),
        };
        statements[0]
            .effects
            .entry(Verb::Select)
            .or_default()
            .remove(&b);
        assert_eq!(
            compare(text, &statements),
            Err("two parsers disagree about relation b".to_owned())
        );

        statements[0].verb = Verb::Show;
        assert_eq!(
            compare(text, &statements),
            Err("two parsers disagree: sql:show or sql:select".to_owned())
        );
        assert!(compare("SELECT 1; SELECT 2", &statements).is_err());
        assert_eq!(
            compare("SELECT 1 FROM (", &statements),
            Ok(()),
            "no vote on what it cannot parse"
        );
    }
}
