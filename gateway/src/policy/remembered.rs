//! Remembered: verdicts that were reached before.
//!
//! A verdict follows from the policies and from what is asked alone ([`evaluate`] is pure), so the same question
//! needs no second look. Thousands of short sessions ask the same few: may this agent connect, may it read
//! this table. What is remembered belongs to its policy set and goes with it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::evaluate::{Operation, Principal, Verdict, evaluate};
use super::set::PolicySet;
use crate::sql::{MaskUse, Statement, Table, Verb};

/// How many verdicts are remembered. A gateway's memory is bounded.
const MOST: usize = 1024;

/// Names in a question, all their bytes: longer questions are asked each time.
const LONGEST: usize = 2048;

/// The verdicts of one policy set.
#[derive(Debug, Default)]
pub(super) struct Remembered(Mutex<HashMap<Asked, Verdict>>);

/// Everything that a verdict depends on, beside the policies.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Asked {
    principal: Principal,
    target: String,
    database: String,
    what: What,
}

#[derive(Debug, PartialEq, Eq, Hash)]
enum What {
    Connect {
        user: String,
        replication: bool,
    },
    Sql {
        effects: BTreeMap<Verb, BTreeSet<Table>>,
        reads: BTreeSet<Table>,
        writes: BTreeSet<Table>,
        functions: BTreeSet<String>,
        settings: BTreeSet<String>,
        shows: BTreeSet<String>,
    },
}

impl PolicySet {
    /// As [`evaluate`], which is asked unless it has been asked the same before.
    pub fn decide(&self, principal: &Principal, operation: &Operation<'_>) -> Verdict {
        let Some(asked) = asked(principal, operation) else {
            return evaluate(self, principal, operation);
        };
        if let Some(verdict) = self.remembered.verdicts().get(&asked) {
            return verdict.clone();
        }
        let verdict = evaluate(self, principal, operation);
        let mut verdicts = self.remembered.verdicts();
        if verdicts.len() >= MOST {
            verdicts.clear();
        }
        verdicts.insert(asked, verdict.clone());
        verdict
    }
}

impl Remembered {
    fn verdicts(&self) -> MutexGuard<'_, HashMap<Asked, Verdict>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The question, if it is one that may be asked often: not with parameters, which differ, nor about a file,
/// a text that nobody could read, or a masked column out of place.
fn asked(principal: &Principal, operation: &Operation<'_>) -> Option<Asked> {
    let (target, database, what) = match *operation {
        Operation::Connect {
            target,
            database,
            user,
            replication,
        } => {
            let user = user.to_owned();
            (target, database, What::Connect { user, replication })
        }
        Operation::Sql {
            target,
            database,
            statement,
            parameters: [],
        } => (target, database, facts(statement)?),
        Operation::Sql { .. } => return None,
    };
    Some(Asked {
        principal: principal.clone(),
        target: target.to_owned(),
        database: database.to_owned(),
        what,
    })
}

fn facts(statement: &Statement) -> Option<What> {
    let usual = statement.unknown.is_none()
        && statement.copy.is_none()
        && !matches!(statement.mask, MaskUse::Refused { .. });
    if !usual || length(statement) > LONGEST {
        return None;
    }
    Some(What::Sql {
        effects: statement.effects.clone(),
        reads: statement.reads.clone(),
        writes: statement.writes.clone(),
        functions: statement.functions.clone(),
        settings: statement.settings.clone(),
        shows: statement.shows.clone(),
    })
}

/// Of its names, in bytes.
fn length(statement: &Statement) -> usize {
    let of_effects = statement.effects.values().flatten();
    let tables = of_effects.chain(&statement.reads).chain(&statement.writes);
    let of_tables =
        tables.map(|table| table.name.len() + table.schema.as_ref().map_or(0, String::len));
    let names = statement
        .functions
        .iter()
        .chain(&statement.settings)
        .chain(&statement.shows);
    of_tables.sum::<usize>() + names.map(String::len).sum::<usize>()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::Process;
    use crate::policy::masking::{MaskRule, Transform};
    use crate::sql::analyse;

    /// Every clause looks at something else, so that a question that lost it would get another's verdict.
    const POLICIES: &str = r#"
@id("groups") permit (principal in Sluice::Group::"analysts", action, resource);
@id("uid") forbid (principal, action, resource) when { context.process.uid == 0 };
@id("exe") forbid (principal, action, resource) when { context.process has exe && context.process.exe == "/bin/evil" };
@id("database") forbid (principal, action, resource) when { context.database == "secret" };
@id("subject") forbid (principal, action, resource) when { principal.subject == "gone@corp" };
@id("agent") forbid (principal == Sluice::Agent::"other-bot", action, resource);
@id("target") forbid (principal, action, resource in Sluice::Target::"vault");
@id("user") forbid (principal, action == Sluice::Action::"connect", resource) when { context.user == "postgres" };
@id("replication") forbid (principal, action == Sluice::Action::"connect", resource) when { context.replication };
@id("deletes") forbid (principal, action == Sluice::Action::"sql:delete", resource);
@id("reads") forbid (principal, action == Sluice::Action::"sql:select", resource) when { context.reads.contains("public.b") };
@id("shows") forbid (principal, action == Sluice::Action::"sql:show", resource) when { context.shows.contains("work_mem") };
@id("functions") forbid (principal, action == Sluice::Action::"sql:select", resource) when { context.functions.contains("now") };
"#;

    const TEXTS: &[&str] = &[
        "SELECT 1",
        "SELECT a FROM a",
        "SELECT a FROM b",
        "SELECT a FROM s.b",
        "SELECT now()",
        "DELETE FROM a",
        "INSERT INTO a SELECT * FROM b",
        "INSERT INTO b SELECT * FROM a",
        "SET work_mem TO '1MB'",
        "SHOW work_mem",
        "SHOW search_path",
        "COPY a TO PROGRAM 'x'",
        "SELECT card FROM masked",
        "SELECT length(card) FROM masked",
        "no SQL at all",
    ];

    fn policies() -> PolicySet {
        PolicySet::parse(&[("p".into(), POLICIES.to_owned())]).expect("valid policies")
    }

    fn one<T: Copy + std::fmt::Debug + 'static>(of: &'static [T]) -> impl Strategy<Value = T> {
        proptest::sample::select(of)
    }

    prop_compose! {
        fn principal()(
            agent in one(&["report-bot", "other-bot"]),
            subject in one(&["bot@corp", "gone@corp"]),
            group in one(&["analysts", "nobody"]),
            uid in one(&[0_u32, 1000]),
            exe in one(&[None, Some("/bin/psql"), Some("/bin/evil")]),
        ) -> Principal {
            Principal {
                agent: agent.to_owned(),
                subject: subject.to_owned(),
                groups: vec![group.to_owned()],
                process: Process { uid, exe: exe.map(str::to_owned), exe_sha256: None },
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_remembered_is_what_would_be_said_anew(
            questions in proptest::collection::vec(
                (
                    principal(),
                    one(&["shop", "vault"]),
                    one(&["shop", "secret"]),
                    one(&["app", "postgres"]),
                    any::<bool>(),
                    0..2 * TEXTS.len(),
                    one(&[0_usize, 1]),
                ),
                1..40,
            ),
        ) {
            let policies = policies();
            for (principal, target, database, user, replication, text, parameters) in &questions {
                let connect = Operation::Connect { target, database, user, replication: *replication };
                let masks = [MaskRule {
                    schema: "public".to_owned(),
                    table: "masked".to_owned(),
                    column: "card".to_owned(),
                    transform: Transform::Redact,
                }];
                let read = TEXTS.get(*text).map(|text| analyse(text, &masks).statements.remove(0));
                let parameters = vec!["1".to_owned(); *parameters];
                let operation = read.as_ref().map_or(connect, |statement| Operation::Sql {
                    target, database, statement, parameters: &parameters,
                });
                let anew = evaluate(&policies, principal, &operation);
                prop_assert_eq!(policies.decide(principal, &operation), anew.clone());
                prop_assert_eq!(policies.decide(principal, &operation), anew);
            }
        }
    }

    #[test]
    fn memory_is_bounded() {
        let policies = policies();
        let principal = Principal {
            agent: "report-bot".to_owned(),
            subject: "bot@corp".to_owned(),
            groups: vec![],
            process: Process::default(),
        };
        for user in 0..MOST + 10 {
            let user = user.to_string();
            policies.decide(
                &principal,
                &Operation::Connect {
                    target: "t",
                    database: "d",
                    user: &user,
                    replication: false,
                },
            );
        }
        assert!(policies.remembered.verdicts().len() <= MOST);
        let tables: Vec<String> = (0..LONGEST / 4).map(|n| format!("table{n}")).collect();
        let text = format!("SELECT 1 FROM {}", tables.join(", "));
        let statement = analyse(&text, &[]).statements.remove(0);
        let operation = Operation::Sql {
            target: "t",
            database: "d",
            statement: &statement,
            parameters: &[],
        };
        assert!(asked(&principal, &operation).is_none());
    }
}
