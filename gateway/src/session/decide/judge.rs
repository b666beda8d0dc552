//! One session's judge: facts, policy and masks come together here.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Allowed, AllowedStatement, Analyst, Denied, Ruling};
use crate::config::Target;
use crate::policy::{Denial, Operation, PolicySet, Principal, Verdict, evaluate};
use crate::sql::{self, Facts, MaskUse, Statement, Table};

/// Relations that show masked columns under names of their own: views, children, partitions.
pub type Derived = BTreeSet<Table>;

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
    pub fn connect(&self, user: &str) -> Verdict {
        evaluate(
            &self.policies,
            &self.principal,
            &Operation::Connect {
                target: &self.target.name,
                database: &self.database,
                user,
            },
        )
    }

    /// May this text run? Every statement in it must be allowed.
    pub async fn sql(&self, text: &[u8], derived: &Derived) -> Ruling {
        let Ok(text) = std::str::from_utf8(text) else {
            return denied_text(
                &String::from_utf8_lossy(text),
                "sql:unknown",
                "the statement is not UTF-8",
                "Send statements as UTF-8 (client_encoding UTF8).",
            );
        };
        let Some(analysed) = self.analyst.analyse(text, &self.target).await else {
            return denied_text(
                "",
                "sql:unknown",
                "the statement could not be analysed in time",
                "Send a shorter or simpler statement.",
            );
        };
        let mut allowed = Vec::with_capacity(analysed.facts.statements.len());
        for (statement, shown) in analysed.facts.statements.iter().zip(&analysed.shown) {
            match self.statement(statement, derived) {
                Verdict::Allow { rule } => allowed.push(line(statement, shown.clone(), rule)),
                Verdict::Deny(denial) => {
                    return Ruling::Denied(Box::new(Denied {
                        denial,
                        statement: shown.clone(),
                        evidence: analysed.evidence,
                    }));
                }
            }
        }
        let sensitive = analysed
            .facts
            .statements
            .iter()
            .any(|statement| statement.mask != MaskUse::None);
        Ruling::Allowed(Arc::new(Allowed {
            statements: allowed,
            evidence: (analysed.evidence != text).then_some(analysed.evidence),
            sensitive,
        }))
    }

    fn statement(&self, statement: &Statement, derived: &Derived) -> Verdict {
        if let Some(denial) = reads_derived(statement, derived) {
            return Verdict::Deny(denial);
        }
        evaluate(
            &self.policies,
            &self.principal,
            &Operation::Sql {
                target: &self.target.name,
                database: &self.database,
                statement,
            },
        )
    }
}

fn reads_derived(statement: &Statement, derived: &Derived) -> Option<Denial> {
    let table = statement
        .reads
        .iter()
        .chain(&statement.writes)
        .find(|table| derived.contains(&qualified(table)))?;
    let name = &table.name;
    Some(Denial {
        rule: "mask:derived".to_owned(),
        message: format!("\"{name}\" shows masked columns under other names"),
        detail: format!(
            "Rule mask:derived: \"{name}\" is a view, child or partition of a table with masked columns."
        ),
        hint: "Select from the table itself; its masked columns come back masked.".to_owned(),
    })
}

/// Unqualified names are looked up in `public`: start-up and policy keep `search_path` as it is.
fn qualified(table: &Table) -> Table {
    Table {
        schema: table.schema.clone().or_else(|| Some("public".to_owned())),
        name: table.name.clone(),
    }
}

fn line(statement: &Statement, text: String, rule: String) -> AllowedStatement {
    let tables: BTreeSet<String> = statement
        .reads
        .iter()
        .chain(&statement.writes)
        .map(ToString::to_string)
        .collect();
    AllowedStatement {
        text,
        rule,
        verbs: statement
            .effects
            .keys()
            .map(|verb| verb.action().to_owned())
            .collect(),
        tables: tables.into_iter().collect(),
    }
}

fn denied_text(text: &str, rule: &str, message: &str, hint: &str) -> Ruling {
    let shown = sql::evidence_text(text, &Facts::default(), &[]);
    Ruling::Denied(Box::new(Denied {
        denial: Denial {
            rule: rule.to_owned(),
            message: message.to_owned(),
            detail: format!("Rule {rule}."),
            hint: hint.to_owned(),
        },
        statement: shown.clone(),
        evidence: shown,
    }))
}
