//! The shipped profiles against their tables of cases, and the words of denials.

use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use serde::Deserialize;

use super::*;
use crate::policy::masking::{MaskRule, Transform, parse_column};
use crate::sql::analyse;

/// A `policies/*.cases.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    /// The profile it is used with, for one that only forbids.
    beside: Option<String>,
    masks: Vec<String>,
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// A statement; absent: the connection itself.
    sql: Option<String>,
    #[serde(default = "report_bot_name")]
    agent: String,
    process: Option<ProcessCase>,
    groups: Option<Vec<String>>,
    /// What the policies choose for the session.
    credential: Option<String>,
    database: Option<String>,
    /// The rule that denies; absent: allowed.
    deny: Option<String>,
    /// A part of the denial's message.
    says: Option<String>,
}

/// The process of a case; a known psql where a case has none.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProcessCase {
    uid: u32,
    exe: Option<String>,
    exe_sha256: Option<String>,
}

impl Case {
    fn principal(&self) -> Principal {
        let process = self.process.as_ref().map(|process| Process {
            uid: process.uid,
            exe: process.exe.clone(),
            exe_sha256: process.exe_sha256.clone(),
        });
        Principal {
            agent: self.agent.clone(),
            process: process.unwrap_or_else(psql),
            groups: self.groups.clone().unwrap_or(report_bot().groups),
            ..report_bot()
        }
    }

    fn decide(&self, policies: &PolicySet, masks: &[MaskRule]) -> Result<Login, Denial> {
        let principal = self.principal();
        match &self.sql {
            Some(text) => decide_as(&principal, policies, text, masks).map(|_| Login::default()),
            None => decide_connect(&principal, policies),
        }
    }

    fn login(&self) -> Login {
        Login {
            credential: self.credential.clone(),
            database: self.database.clone(),
        }
    }
}

fn report_bot_name() -> String {
    report_bot().agent
}

fn shipped(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../policies")
        .join(name);
    let text = std::fs::read_to_string(&path).expect("a shipped file");
    (path, text)
}

fn parse(files: &[(&str, &str)]) -> PolicySet {
    let files: Vec<(PathBuf, String)> = files
        .iter()
        .map(|(file, text)| (file.into(), (*text).to_owned()))
        .collect();
    PolicySet::parse(&files).expect("valid policies")
}

fn report_bot() -> Principal {
    Principal {
        agent: "report-bot".to_owned(),
        subject: "report-bot@corp".to_owned(),
        groups: vec!["analysts".to_owned()],
        process: psql(),
    }
}

fn psql() -> Process {
    Process {
        uid: 1000,
        exe: Some("/usr/bin/psql".to_owned()),
        exe_sha256: Some("ab".repeat(32)),
    }
}

fn masks(columns: &[String]) -> Vec<MaskRule> {
    let rule = |column: &String| {
        let (schema, table, column) = parse_column(column).expect("a column");
        MaskRule {
            schema,
            table,
            column,
            transform: Transform::Redact,
        }
    };
    columns.iter().map(rule).collect()
}

fn decide_connect(principal: &Principal, policies: &PolicySet) -> Result<Login, Denial> {
    let operation = Operation::Connect {
        target: "shop",
        database: "shop",
        user: "app",
    };
    match evaluate(policies, principal, &operation) {
        Verdict::Allow { login, .. } => Ok(login),
        Verdict::Deny(denial) => Err(denial),
    }
}

fn decide(policies: &PolicySet, text: &str, masks: &[MaskRule]) -> Result<Vec<String>, Denial> {
    decide_as(&report_bot(), policies, text, masks)
}

/// Statements of a text are decided in turn; the first denial is the text's.
fn decide_as(
    principal: &Principal,
    policies: &PolicySet,
    text: &str,
    masks: &[MaskRule],
) -> Result<Vec<String>, Denial> {
    let mut rules = vec![];
    for statement in &analyse(text, masks).statements {
        let operation = Operation::Sql {
            target: "shop",
            database: "shop",
            statement,
            parameters: &[],
        };
        match evaluate(policies, principal, &operation) {
            Verdict::Allow { rule, .. } => rules.push(rule),
            Verdict::Deny(denial) => return Err(denial),
        }
    }
    Ok(rules)
}

fn deny(policies: &PolicySet, text: &str) -> Denial {
    decide(
        policies,
        text,
        &masks(&["public.customers.card_number".to_owned()]),
    )
    .expect_err(text)
}

fn check_cases(profile: &str) {
    let (_, text) = shipped(&format!("{profile}.cases.toml"));
    let cases: Cases = toml::from_str(&text).expect("a table of cases");
    let profiles = [Some(profile), cases.beside.as_deref()];
    let files: Vec<_> = profiles
        .into_iter()
        .flatten()
        .map(|name| shipped(&format!("{name}.cedar")))
        .collect();
    let policies = PolicySet::parse(&files).expect("valid profiles");
    let masks = masks(&cases.masks);
    let wrong = cases.case.iter().filter_map(|case| {
        let got = case.decide(&policies, &masks);
        let right = match (&got, &case.deny) {
            (Ok(login), None) => *login == case.login(),
            (Err(denial), Some(rule)) => {
                denial.rule == *rule
                    && case
                        .says
                        .as_ref()
                        .is_none_or(|says| denial.message.contains(says))
            }
            _ => false,
        };
        (!right).then(|| {
            format!(
                "{} {:?}\n    expected {:?} {:?}\n    got      {got:?}",
                case.sql.as_deref().unwrap_or("connect"),
                case.principal().process,
                case.deny,
                case.says
            )
        })
    });
    let wrong: Vec<String> = wrong.collect();
    assert!(wrong.is_empty(), "{profile}:\n{}", wrong.join("\n"));
}

#[test]
fn read_only_cases() {
    check_cases("read-only");
}

#[test]
fn allow_all_cases() {
    check_cases("allow-all");
}

#[test]
fn known_programs_cases() {
    check_cases("known-programs");
}

#[test]
fn mapped_roles_cases() {
    check_cases("mapped-roles");
}

/// A policy that asks for a digest must first ask whether there is one: else it does not load.
#[test]
fn facts_that_may_be_absent_cannot_be_taken_for_granted() {
    let text = r#"@id("pin") permit (principal, action, resource) when { context.process.exe_sha256 == "ab" };"#;
    let errors = PolicySet::parse(&[("p".into(), text.to_owned())]).expect_err("not guarded");
    assert!(errors[0].message.contains("exe_sha256"), "{errors:?}");
}

#[test]
fn allow_all_permits_what_cannot_be_read_where_nothing_is_masked() {
    let policies = PolicySet::parse(&[shipped("allow-all.cedar")]).expect("a valid profile");
    let rules = decide(&policies, "SELEC 1", &[]).expect("permitted");
    assert_eq!(rules, ["allow-all-unknown"]);
}

#[test]
fn unknown_is_permitted_only_by_name() {
    let by_any = parse(&[("p", "@id(\"any\") permit (principal, action, resource);")]);
    let denial = decide(&by_any, "SELEC 1", &[]).expect_err("not named");
    assert_eq!(denial.rule, "sql:unknown");
    assert!(
        denial.message.contains("syntax error at or near \"SELEC\""),
        "{}",
        denial.message
    );

    let forbidden = parse(&[(
        "p",
        "@id(\"named\") permit (principal, action == Sluice::Action::\"sql:unknown\", resource);
         @id(\"never\") forbid (principal, action, resource) when { context.database == \"shop\" };",
    )]);
    assert_eq!(
        decide(&forbidden, "SELEC 1", &[])
            .expect_err("forbidden")
            .rule,
        "never"
    );
}

#[test]
fn connecting() {
    let policies = parse(&[(
        "p",
        "@id(\"shop-only\") permit (principal in Sluice::Group::\"analysts\", action == Sluice::Action::\"connect\", resource == Sluice::Target::\"shop\")
         when { context.database == \"shop\" && context.user != \"postgres\" };",
    )]);
    let ask = |target, database, user, principal: &Principal| {
        let operation = Operation::Connect {
            target,
            database,
            user,
        };
        match evaluate(&policies, principal, &operation) {
            Verdict::Allow { rule, .. } => rule,
            Verdict::Deny(denial) => denial.rule,
        }
    };
    let stranger = Principal {
        groups: vec![],
        ..report_bot()
    };
    let table = [
        ("member", "shop", "shop", "app", report_bot(), "shop-only"),
        (
            "other target",
            "vault",
            "shop",
            "app",
            report_bot(),
            "default-deny",
        ),
        (
            "other database",
            "shop",
            "postgres",
            "app",
            report_bot(),
            "default-deny",
        ),
        (
            "superuser",
            "shop",
            "shop",
            "postgres",
            report_bot(),
            "default-deny",
        ),
        (
            "not in the group",
            "shop",
            "shop",
            "app",
            stranger,
            "default-deny",
        ),
    ];
    for (name, target, database, user, principal, expect) in table {
        assert_eq!(ask(target, database, user, &principal), expect, "{name}");
    }
}

/// As at Execute: the statement is decided when it is prepared, and again with each set of parameters.
#[test]
fn parameters_are_facts() {
    let policies = parse(&[(
        "p",
        "@id(\"any\") permit (principal, action, resource);
         @id(\"no-teapots\") forbid (principal, action == Sluice::Action::\"sql:update\", resource)
         when { context.parameters.contains(\"teapot\") };",
    )]);
    assert!(policies.looks_at_parameters());
    let text = "UPDATE products SET stock = 0 WHERE title = $1";
    let statement = &analyse(text, &[]).statements[0];
    for (parameters, expect) in [
        (&[][..], "any"),
        (&["mug"], "any"),
        (&["mug", "teapot"], "no-teapots"),
    ] {
        let parameters: Vec<String> = parameters.iter().map(|it| (*it).to_owned()).collect();
        let operation = Operation::Sql {
            target: "shop",
            database: "shop",
            statement,
            parameters: &parameters,
        };
        let rule = match evaluate(&policies, &report_bot(), &operation) {
            Verdict::Allow { rule, .. } => rule,
            Verdict::Deny(denial) => denial.rule,
        };
        assert_eq!(rule, expect, "{parameters:?}");
    }
}

#[test]
fn only_policies_that_name_parameters_look_at_them() {
    let with = |condition: &str| {
        let text = format!(
            "@id(\"p\") forbid (principal, action in Sluice::Action::\"sql:write\", resource) when {{ {condition} }};"
        );
        parse(&[("p", &text)]).looks_at_parameters()
    };
    for condition in [
        "context.parameters.isEmpty()",
        "context has parameters",
        "(if context.reads.isEmpty() then context else context).parameters.contains(\"x\")",
        "[\"x\"].containsAny(context[\"parameters\"])",
    ] {
        assert!(with(condition), "{condition}");
    }
    assert!(!with("context.reads.contains(\"public.parameters\")"));
    assert!(!with("context.database == \"parameters\""));
    for profile in ["read-only.cedar", "allow-all.cedar"] {
        let policies = PolicySet::parse(&[shipped(profile)]).expect("a valid profile");
        assert!(!policies.looks_at_parameters(), "{profile}");
    }
}

#[test]
fn tables_count_by_schema_and_target() {
    let policies = parse(&[(
        "p",
        "@id(\"t\") permit (principal == Sluice::Agent::\"report-bot\", action == Sluice::Action::\"sql:select\", resource is Sluice::Table in Sluice::Target::\"shop\")
         when { resource.schema == \"public\" && resource.name == \"orders\" };",
    )]);
    let table = [
        ("SELECT * FROM orders", true),
        ("SELECT * FROM public.orders", true),
        ("SELECT * FROM hr.orders", false),
        ("SELECT * FROM \"Orders\"", false),
        ("SELECT * FROM orders, customers", false),
        ("SELECT 1", false),
        ("SELECT lower(name) FROM orders", false),
    ];
    for (text, expect) in table {
        assert_eq!(decide(&policies, text, &[]).is_ok(), expect, "{text}");
    }
}

#[test]
fn every_rule_that_took_part_is_named() {
    let policies = PolicySet::parse(&[shipped("read-only.cedar")]).expect("a valid profile");
    let rules = decide(&policies, "SELECT lower(name) FROM customers", &[]).expect("permitted");
    assert_eq!(rules, ["read-only-functions, read-only-tables"]);
}

#[test]
fn denials_say_what_who_and_what_instead() {
    let read_only = PolicySet::parse(&[shipped("read-only.cedar")]).expect("a valid profile");
    let ends = "If the task needs more, ask an operator of this gateway to change its policies, naming the rule in DETAIL.";

    let drop = deny(&read_only, "DROP TABLE customers");
    assert_eq!(
        drop.message,
        "agent report-bot may not run sql:ddl on table public.customers (target shop)"
    );
    assert_eq!(
        drop.detail,
        "Denied by rule default-deny: no policy permits it."
    );
    assert!(
        drop.hint
            .starts_with("Permitted to this agent, within limits: SELECT, CLOSE"),
        "{}",
        drop.hint
    );
    assert!(
        drop.hint.contains("EXPLAIN") && drop.hint.ends_with(ends),
        "{}",
        drop.hint
    );

    let function = deny(&read_only, "SELECT pg_sleep(1)");
    assert!(
        function
            .detail
            .contains("read-only-functions covers the action"),
        "{}",
        function.detail
    );
    assert!(
        function
            .hint
            .starts_with("Only PostgreSQL's built-in functions"),
        "{}",
        function.hint
    );

    let mask = deny(
        &read_only,
        "SELECT id FROM customers WHERE card_number = 'x'",
    );
    assert_eq!(mask.rule, "mask:predicate");
    assert!(
        mask.message.contains("column card_number is masked"),
        "{}",
        mask.message
    );
    assert!(mask.hint.contains("another column"), "{}", mask.hint);

    let forbidding = parse(&[(
        "p",
        "@id(\"all\") permit (principal, action, resource);
         @id(\"no-ddl\") @reason(\"the schema is frozen.\") @hint(\"Wait for Monday.\")
         forbid (principal, action == Sluice::Action::\"sql:ddl\", resource);",
    )]);
    let frozen = deny(&forbidding, "DROP TABLE orders");
    assert_eq!(frozen.rule, "no-ddl");
    assert_eq!(
        frozen.detail,
        "Denied by rule no-ddl: the schema is frozen."
    );
    assert!(frozen.hint.starts_with("Wait for Monday. ") && frozen.hint.ends_with(ends));

    let nothing = parse(&[("p", "// no policy")]);
    assert_eq!(
        deny(&nothing, "SELECT 1").hint,
        format!("No policy permits agent report-bot anything. {ends}")
    );
}

/// Cedar leaves out a policy whose condition fails to evaluate; that must not open anything.
#[test]
fn a_policy_that_fails_denies() {
    let policies = parse(&[(
        "p",
        "@id(\"all\") permit (principal, action, resource);
         @id(\"overflow\") forbid (principal, action, resource) when { 9223372036854775807 + 1 == 0 };",
    )]);
    assert_eq!(deny(&policies, "SELECT 1").rule, "policy-error");
}

proptest::proptest! {
    #[test]
    fn any_text_is_decided(text in ".{0,60}") {
        static READ_ONLY: LazyLock<PolicySet> =
            LazyLock::new(|| PolicySet::parse(&[shipped("read-only.cedar")]).expect("a valid profile"));
        let _ = decide(&READ_ONLY, &text, &masks(&["public.customers.card_number".to_owned()]));
    }
}
