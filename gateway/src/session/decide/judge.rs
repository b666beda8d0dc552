//! One session's judge: facts, policy and masks come together here.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::analyst::Analysed;
use super::copying::{self, Layout, Listed};
use super::meaning::{Decided, Meaning, Runs};
use super::{Allowed, AllowedStatement, Analyst, Denied, Ruling};
use crate::config::Target;
use crate::policy::{Denial, Operation, PolicySet, Principal, Verdict};
use crate::sql::strings::Strings;
use crate::sql::{self, Facts, Naming, Statement, Table, Verb};

/// What a target's schema makes of a statement's names. A text alone does not tell.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Derived {
    /// Relations that show masked columns under names of their own: views, children, parents, partitions.
    pub relations: BTreeSet<Table>,
    /// The columns of the masked tables, also those that are not masked.
    pub columns: BTreeMap<Table, BTreeSet<String>>,
    /// What COPY sends of the masked tables.
    pub layouts: BTreeMap<Table, Layout>,
    /// Tables that lack a column which should be masked: it was renamed, or the rule has it wrong.
    pub lacking: BTreeMap<Table, String>,
    /// Functions of the database's own that an operator, a cast or an attribute calls.
    pub disguised: Disguised,
}

/// By operator, type or attribute name: the functions it may call, as policies name them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Disguised {
    pub operators: BTreeMap<String, BTreeSet<String>>,
    pub types: BTreeMap<String, BTreeSet<String>>,
    pub attributes: BTreeMap<String, BTreeSet<String>>,
}

/// Decides one session's operations.
#[derive(Debug)]
pub struct Judge {
    pub policies: Arc<PolicySet>,
    pub principal: Principal,
    pub target: Arc<Target>,
    pub database: String,
    pub analyst: Arc<Analyst>,
}

impl Judge {
    /// May this agent open a session here?
    pub fn connect(&self, user: &str, replication: bool) -> Verdict {
        self.policies.decide(
            &self.principal,
            &Operation::Connect {
                target: &self.target.name,
                database: &self.database,
                user,
                replication,
            },
        )
    }

    /// Reads a text: what would it do?
    ///
    /// # Errors
    /// A text that cannot be read is denied.
    pub async fn read(&self, text: &[u8], strings: Strings) -> Result<Analysed, Box<Denied>> {
        let Ok(text) = std::str::from_utf8(text) else {
            return Err(denied_text(
                &String::from_utf8_lossy(text),
                "sql:unknown",
                "the statement is not UTF-8",
                "Send statements as UTF-8 (client_encoding UTF8).",
            ));
        };
        let analysed = self.analyst.analyse(text, strings, &self.target).await;
        analysed.ok_or_else(|| {
            denied_text(
                "",
                "sql:unknown",
                "the statement could not be analysed in time",
                "Send a shorter or simpler statement.",
            )
        })
    }

    /// May it run? Every statement in it must be allowed.
    pub fn rule(&self, text: &[u8], analysed: Analysed, derived: &Derived) -> Ruling {
        self.rule_running(text, analysed, &[], derived)
    }

    /// The same for a text whose statements run others by name: `runs` has what each of them runs, the first
    /// ones first.
    pub fn rule_running(
        &self,
        text: &[u8],
        analysed: Analysed,
        runs: &[Runs],
        derived: &Derived,
    ) -> Ruling {
        let nothing = Runs::default();
        let mut allowed = Vec::with_capacity(analysed.statements.len());
        let mut lists = Vec::new();
        for (index, meaning) in analysed.statements.iter().enumerate() {
            let runs = runs.get(index).unwrap_or(&nothing);
            match self.one(meaning, runs, derived, &[]) {
                Ok((line, listed)) => {
                    allowed.push(line);
                    lists.extend(listed);
                }
                Err(denial) => {
                    return Ruling::Denied(Box::new(Denied {
                        denial: among(denial, index, analysed.statements.len(), &meaning.shown),
                        statement: meaning.shown.to_string(),
                        evidence: analysed.evidence,
                    }));
                }
            }
        }
        let sensitive = analysed.statements.iter().any(|it| it.sensitive());
        let mut statements = analysed.statements.iter();
        let unread = statements.any(|it| it.statement.unknown.is_some());
        let as_sent = analysed.evidence.as_bytes() == text;
        Ruling::Allowed(Arc::new(Allowed {
            statements: allowed,
            evidence: (!as_sent).then_some(analysed.evidence),
            upstream: with_lists(text, lists),
            sensitive,
            unread,
        }))
    }

    /// May a statement run that was allowed when it was prepared? The answer is remembered: it is sought
    /// anew when policies, schema, or what the statement runs by name have changed since.
    ///
    /// `parameters`: those it runs with, for policies that go by them; `None` stands for too many of them to
    /// be looked at. Such an answer is not remembered.
    pub fn rule_again(
        &self,
        meaning: &Meaning,
        runs: &Runs,
        derived: &Arc<Derived>,
        parameters: Option<&[String]>,
    ) -> Ruling {
        if meaning.is_nothing() {
            return Ruling::Allowed(Arc::new(Allowed::nothing()));
        }
        let Some(parameters) = parameters else {
            return refused(undecided_parameters(), &meaning.shown);
        };
        let remembered = parameters.is_empty().then(|| meaning.decided()).flatten();
        if let Some(before) = remembered
            && before.policies.hash == self.policies.hash
            && (Arc::ptr_eq(&before.derived, derived) || before.derived == *derived)
            && before.runs.same(runs)
        {
            return Ruling::Allowed(before.allowed);
        }
        match self.one(meaning, runs, derived, parameters) {
            Ok((line, _)) => {
                let allowed = Arc::new(Allowed {
                    statements: vec![line],
                    evidence: None,
                    upstream: None,
                    sensitive: meaning.sensitive(),
                    unread: meaning.statement.unknown.is_some(),
                });
                if parameters.is_empty() {
                    meaning.decide(Decided {
                        policies: Arc::clone(&self.policies),
                        derived: Arc::clone(derived),
                        runs: runs.clone(),
                        allowed: Arc::clone(&allowed),
                    });
                }
                Ruling::Allowed(allowed)
            }
            Err(denial) => refused(denial, &meaning.shown),
        }
    }

    /// Keeps the decision about a text of one statement that may be prepared, for its first Execute. What runs
    /// others by name is decided by what they are then.
    pub fn keep(&self, meaning: &Meaning, allowed: &Allowed, derived: &Arc<Derived>) {
        if *meaning.naming() != Naming::None {
            return;
        }
        let as_it_is = Allowed {
            evidence: None,
            upstream: None,
            ..allowed.clone()
        };
        meaning.decide(Decided {
            policies: Arc::clone(&self.policies),
            derived: Arc::clone(derived),
            runs: Runs::default(),
            allowed: Arc::new(as_it_is),
        });
    }

    /// May a portal run of which nothing is known? `shown` is what evidence says of it.
    pub fn rule_unknown(&self, shown: String, parameters: Option<&[String]>) -> Ruling {
        let Some(parameters) = parameters else {
            return refused(undecided_parameters(), &shown);
        };
        let statement = sql::code_made(&shown);
        match self.evaluated(&statement, parameters) {
            Verdict::Allow { rule, .. } => Ruling::Allowed(Arc::new(Allowed {
                statements: vec![line(&statement, shown.into(), rule)],
                evidence: None,
                upstream: None,
                sensitive: true,
                unread: false,
            })),
            Verdict::Deny(denial) => Ruling::Denied(Box::new(Denied {
                denial: unknown_prepared(denial),
                evidence: shown.clone(),
                statement: shown,
            })),
        }
    }

    /// One statement with all that it may run: every possibility must be allowed.
    fn one(
        &self,
        meaning: &Meaning,
        runs: &Runs,
        derived: &Derived,
        parameters: &[String],
    ) -> Result<(AllowedStatement, Option<Listed>), Denial> {
        let own = &meaning.statement;
        if runs.is_nothing() {
            let rule = allowed(self.statement(own, derived, parameters))?;
            let (copying, listed) = meaning.copying(|| copying::copying(own, derived))?;
            let mut line = line(own, Arc::clone(&meaning.shown), rule);
            line.copying = copying;
            return Ok((line, listed));
        }
        if runs.indirect && !self.target.masks.is_empty() {
            return Err(held_rows());
        }
        let mut rules = BTreeSet::new();
        let mut together = Statement::clone(own);
        for run in &runs.statements {
            if !self.target.masks.is_empty() && copying::sends_to_client(&run.statement) {
                return Err(copying::by_name());
            }
            let both = own.running(&run.statement);
            let rule = allowed(self.statement(&both, derived, parameters))
                .map_err(|denial| while_running(denial, &run.shown))?;
            rules.extend(rule.split(", ").map(str::to_owned));
            together = together.running(&run.statement);
        }
        if runs.unknown {
            together.unknown = Some(CODE_MADE.to_owned());
            together.effects.entry(Verb::Unknown).or_default();
            let rule = allowed(self.statement(&together, derived, parameters))
                .map_err(unknown_prepared)?;
            rules.extend(rule.split(", ").map(str::to_owned));
        }
        let rules: Vec<String> = rules.into_iter().collect();
        let mut line = line(&together, Arc::clone(&meaning.shown), rules.join(", "));
        line.runs = runs.shown();
        Ok((line, None))
    }

    fn statement(
        &self,
        statement: &Statement,
        derived: &Derived,
        parameters: &[String],
    ) -> Verdict {
        if let Some(denial) = reads_derived(statement, derived)
            .or_else(|| uses_lacking(statement, derived))
            .or_else(|| calls_with_row(statement, derived))
        {
            return Verdict::Deny(denial);
        }
        self.evaluated(&with_disguised(statement, &derived.disguised), parameters)
    }

    fn evaluated(&self, statement: &Statement, parameters: &[String]) -> Verdict {
        self.policies.decide(
            &self.principal,
            &Operation::Sql {
                target: &self.target.name,
                database: &self.database,
                statement,
                parameters,
            },
        )
    }
}

fn undecided_parameters() -> Denial {
    Denial {
        rule: "sql:parameters".to_owned(),
        message: "the statement's parameters could not be looked at".to_owned(),
        detail: "Rule sql:parameters: a policy decides by parameters, and these are too many or too long, or those of a statement prepared in SQL."
            .to_owned(),
        hint: "Send fewer and shorter parameters at once, and prepare statements through the driver.".to_owned(),
    }
}

/// How much of a statement's text an error repeats.
const NAMED: usize = 200;

/// Of several statements in one text, which one it is.
fn among(mut denial: Denial, index: usize, count: usize, shown: &str) -> Denial {
    if count > 1 {
        let text: String = shown.chars().take(NAMED).collect();
        let more = if text.len() < shown.len() { " …" } else { "" };
        denial.detail = format!(
            "{} It is statement {} of {count}, and none of them has run: {text}{more}",
            denial.detail,
            index + 1
        );
    }
    denial
}

fn refused(denial: Denial, shown: &str) -> Ruling {
    Ruling::Denied(Box::new(Denied {
        denial,
        statement: shown.to_owned(),
        evidence: shown.to_owned(),
    }))
}

/// The rule under which a name is refused of which nothing is known.
pub(super) const UNKNOWN_PREPARED: &str = "sql:unknown-prepared";

/// Why what a name stands for is not known.
const CODE_MADE: &str = "what its name stands for was made by code";

fn allowed(verdict: Verdict) -> Result<String, Denial> {
    match verdict {
        Verdict::Allow { rule, .. } => Ok(rule),
        Verdict::Deny(denial) => Err(denial),
    }
}

fn while_running(mut denial: Denial, text: &str) -> Denial {
    denial.detail = format!("{} It runs: {text}", denial.detail);
    denial
}

fn held_rows() -> Denial {
    Denial {
        rule: "mask:held-rows".to_owned(),
        message: "rows cannot be fetched from a portal that itself runs EXECUTE or FETCH".to_owned(),
        detail: "Rule mask:held-rows: the portal may hold back rows of another statement than its name stands for now, and their masks would not be known."
            .to_owned(),
        hint: "Execute the portal itself, or fetch from the cursor itself.".to_owned(),
    }
}

/// No policy permits what is unknown, and this is.
fn unknown_prepared(denial: Denial) -> Denial {
    if denial.rule != Verb::Unknown.action() {
        return denial;
    }
    Denial {
        rule: UNKNOWN_PREPARED.to_owned(),
        message: "what this name stands for is not known, and may not be run".to_owned(),
        detail: "Rule sql:unknown-prepared: no PREPARE, DECLARE, Parse or Bind of this session has made it; if it exists, code of the database has.".to_owned(),
        hint: "Prepare the statement or declare the cursor in this session, outside of functions and code blocks."
            .to_owned(),
    }
}

fn reads_derived(statement: &Statement, derived: &Derived) -> Option<Denial> {
    let mut named = statement.reads.iter().chain(&statement.writes);
    let named = named.find(|table| derived.relations.iter().any(|known| is_meant(table, known)));
    let table = named.or_else(|| {
        let code = statement.code.as_ref()?;
        let mut relations = derived.relations.iter();
        relations.find(|known| code.contains(&known.name.to_lowercase()))
    })?;
    let name = &table.name;
    Some(Denial {
        rule: "mask:derived".to_owned(),
        message: format!("\"{name}\" shows masked columns under other names"),
        detail: format!(
            "Rule mask:derived: \"{name}\" is a view, parent, child or partition of a table with masked columns."
        ),
        hint: "Select from the table itself; its masked columns come back masked.".to_owned(),
    })
}

/// A mask that matches nothing hides nothing. Definitions may still be changed, to add the column.
fn uses_lacking(statement: &Statement, derived: &Derived) -> Option<Denial> {
    let used = statement
        .effects
        .iter()
        .filter(|(verb, _)| **verb != Verb::Ddl);
    let (table, column) = used.flat_map(|(_, tables)| tables).find_map(|used| {
        derived
            .lacking
            .iter()
            .find(|(lacking, _)| is_meant(used, lacking))
    })?;
    Some(Denial {
        rule: "mask:missing-column".to_owned(),
        message: format!("table {table} has no column {column}, which is to be masked"),
        detail: format!(
            "Rule mask:missing-column: what {column} was may be shown under another name, so {table} is closed."
        ),
        hint: "The operator of this gateway must correct its mask rules.".to_owned(),
    })
}

/// `c.name` where the masked table `c` has no column `name` calls the function `name` with the whole row.
fn calls_with_row(statement: &Statement, derived: &Derived) -> Option<Denial> {
    let (table, name) = statement.attributes.iter().find_map(|(table, names)| {
        let known: BTreeSet<&String> = derived
            .columns
            .iter()
            .filter(|(known, _)| is_meant(table, known))
            .flat_map(|(_, columns)| columns)
            .collect();
        // No masked table of that name exists.
        if known.is_empty() {
            return None;
        }
        let strange = names.iter().find(|name| !known.contains(name))?;
        Some((table, strange))
    })?;
    Some(Denial {
        rule: "mask:attribute".to_owned(),
        message: format!("table {table} has masked columns and no column \"{name}\""),
        detail: format!(
            "Rule mask:attribute: \"{name}\" of a row of {table} would call a function with the whole row, its masked columns in clear."
        ),
        hint: "Select the table's own columns. If another table is meant, give it an alias that no table with masked columns has."
            .to_owned(),
    })
}

/// Whether a table as written may be this one.
pub(super) fn is_meant(written: &Table, known: &Table) -> bool {
    written.name.eq_ignore_ascii_case(&known.name)
        && (written.schema.is_none() || written.schema == known.schema)
}

/// The statement with the functions it calls in disguise among those it calls by name.
fn with_disguised<'s>(statement: &'s Statement, disguised: &Disguised) -> Cow<'s, Statement> {
    let found = &statement.disguises;
    let called: BTreeSet<&String> = [
        (&found.operators, &disguised.operators),
        (&found.types, &disguised.types),
        (&found.attributes, &disguised.attributes),
    ]
    .into_iter()
    .flat_map(|(names, functions)| names.iter().filter_map(|name| functions.get(name)))
    .flatten()
    .collect();
    if called.is_empty() {
        return Cow::Borrowed(statement);
    }
    let mut statement = statement.clone();
    statement.functions.extend(called.into_iter().cloned());
    Cow::Owned(statement)
}

/// The text with its COPYs' columns listed.
fn with_lists(text: &[u8], lists: Vec<(usize, String)>) -> Option<String> {
    let mut text = match lists.is_empty() {
        true => return None,
        false => std::str::from_utf8(text).ok()?.to_owned(),
    };
    for (at, list) in lists.into_iter().rev() {
        let (before, after) = text.split_at_checked(at)?;
        text = format!("{before}{list}{after}");
    }
    Some(text)
}

fn line(statement: &Statement, text: Arc<str>, rule: String) -> AllowedStatement {
    let tables: BTreeSet<String> = statement
        .reads
        .iter()
        .chain(&statement.writes)
        .map(|table| sql::without_cards(&table.to_string()))
        .collect();
    AllowedStatement {
        text,
        rule: rule.into(),
        verbs: statement
            .effects
            .keys()
            .map(|verb| verb.action().to_owned())
            .collect(),
        tables: tables.into_iter().collect(),
        copying: None,
        runs: None,
    }
}

fn denied_text(text: &str, rule: &str, message: &str, hint: &str) -> Box<Denied> {
    let shown = sql::evidence_text(text, &Facts::default(), &[]);
    Box::new(Denied {
        denial: Denial {
            rule: rule.to_owned(),
            message: message.to_owned(),
            detail: format!("Rule {rule}."),
            hint: hint.to_owned(),
        },
        statement: shown.clone(),
        evidence: shown,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::masking::{MaskRule, Transform};

    fn customers() -> Table {
        Table {
            schema: Some("public".to_owned()),
            name: "customers".to_owned(),
        }
    }

    fn statement(text: &str) -> Statement {
        let masks = [MaskRule {
            schema: "public".to_owned(),
            table: "customers".to_owned(),
            column: "card_number".to_owned(),
            transform: Transform::Redact,
        }];
        sql::analyse(text, &masks).statements.remove(0)
    }

    fn names(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_masked_tables_attributes_are_its_columns() {
        let derived = Derived {
            columns: BTreeMap::from([(customers(), names(&["id", "card_number", "Odd", "ctid"]))]),
            ..Derived::default()
        };
        for (text, refused) in [
            (
                "SELECT c.id, c.card_number, c.ctid, c.\"Odd\" FROM customers c",
                false,
            ),
            ("SELECT c.* FROM public.customers c", false),
            ("SELECT c.row_to_json FROM customers c", true),
            ("SELECT c.odd FROM customers c", true),
            ("SELECT public.customers.f FROM public.customers", true),
            ("SELECT c.id FROM customers c WHERE c.f = 'x'", true),
            ("SELECT o.row_to_json FROM orders o, customers c", false),
            // Another schema's table is not masked.
            ("SELECT c.f FROM archive.customers c", false),
        ] {
            let denial = calls_with_row(&statement(text), &derived);
            assert_eq!(denial.is_some(), refused, "{text}: {denial:?}");
        }
    }

    #[test]
    fn a_table_without_its_masked_column_is_closed() {
        let derived = Derived {
            lacking: BTreeMap::from([(customers(), "card".to_owned())]),
            ..Derived::default()
        };
        for (text, refused) in [
            ("SELECT id FROM customers", true),
            ("UPDATE public.customers SET id = id RETURNING *", true),
            ("SELECT id FROM archive.customers", false),
            ("ALTER TABLE customers ADD card text", false),
        ] {
            let denial = uses_lacking(&statement(text), &derived);
            assert_eq!(denial.is_some(), refused, "{text}");
        }
    }

    #[test]
    fn a_view_over_a_masked_table_is_refused_in_whatever_schema() {
        let derived = Derived {
            relations: BTreeSet::from([Table {
                schema: Some("app".to_owned()),
                name: "people".to_owned(),
            }]),
            ..Derived::default()
        };
        for (text, refused) in [
            ("SELECT * FROM app.people", true),
            ("SELECT * FROM people", true),
            ("SELECT * FROM public.people", false),
        ] {
            let denial = reads_derived(&statement(text), &derived);
            assert_eq!(denial.is_some(), refused, "{text}");
        }
    }

    #[test]
    fn what_an_operator_cast_or_attribute_calls_counts_as_called() {
        let calls =
            |name: &str, function: &str| BTreeMap::from([(name.to_owned(), names(&[function]))]);
        let disguised = Disguised {
            operators: calls("===", "public.eqx"),
            types: calls("money2", "public.to_money2"),
            attributes: calls("total", "public.total"),
        };
        for (text, functions) in [
            ("SELECT 1 = 2, 'x'::text, o.id FROM orders o", &[][..]),
            (
                "SELECT lower(a) === b FROM orders",
                &["lower", "public.eqx"],
            ),
            ("SELECT a::money2 FROM orders", &["public.to_money2"]),
            ("SELECT o.total FROM orders o", &["public.total"]),
        ] {
            let statement = statement(text);
            let seen = with_disguised(&statement, &disguised);
            assert_eq!(seen.functions, names(functions), "{text}");
        }
    }
}
