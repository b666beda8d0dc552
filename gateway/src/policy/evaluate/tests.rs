//! The shipped profiles against their tables of cases, and the words of denials.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::*;
use crate::policy::masking::{MaskRule, Transform, parse_column};
use crate::sql::analyse;

/// A `policies/*.cases.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Cases {
    masks: Vec<String>,
    case: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    sql: String,
    /// The rule that denies; absent: allowed.
    deny: Option<String>,
    /// A part of the denial's message.
    says: Option<String>,
}

fn shipped(name: &str) -> (PathBuf, String) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(name);
    let text = std::fs::read_to_string(&path).expect("a shipped file");
    (path, text)
}

fn parse(files: &[(&str, &str)]) -> PolicySet {
    let files: Vec<(PathBuf, String)> = files.iter().map(|(file, text)| (file.into(), (*text).to_owned())).collect();
    PolicySet::parse(&files).expect("valid policies")
}

fn report_bot() -> Principal {
    Principal {
        agent: "report-bot".to_owned(),
        subject: "report-bot@corp".to_owned(),
        groups: vec!["analysts".to_owned()],
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

/// Statements of a text are decided in turn; the first denial is the text's.
fn decide(policies: &PolicySet, text: &str, masks: &[MaskRule]) -> Result<Vec<String>, Denial> {
    let mut rules = vec![];
    for statement in &analyse(text, masks).statements {
        let operation = Operation::Sql {
            target: "shop",
            database: "shop",
            statement,
        };
        match evaluate(policies, &report_bot(), &operation) {
            Verdict::Allow { rule } => rules.push(rule),
            Verdict::Deny(denial) => return Err(denial),
        }
    }
    Ok(rules)
}

fn deny(policies: &PolicySet, text: &str) -> Denial {
    decide(policies, text, &masks(&["public.customers.card_number".to_owned()])).expect_err(text)
}

fn check_cases(profile: &str) {
    let policies = PolicySet::parse(&[shipped(&format!("{profile}.cedar"))]).expect("a valid profile");
    let (_, text) = shipped(&format!("{profile}.cases.toml"));
    let cases: Cases = toml::from_str(&text).expect("a table of cases");
    let masks = masks(&cases.masks);
    let wrong = cases.case.iter().filter_map(|case| {
        let got = decide(&policies, &case.sql, &masks);
        let right = match (&got, &case.deny) {
            (Ok(_), None) => true,
            (Err(denial), Some(rule)) => {
                denial.rule == *rule && case.says.as_ref().is_none_or(|says| denial.message.contains(says))
            }
            _ => false,
        };
        (!right).then(|| format!("{}\n    expected {:?} {:?}\n    got      {got:?}", case.sql, case.deny, case.says))
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
fn tmp_bulk() {
    let policies = PolicySet::parse(&[shipped("read-only.cedar")]).expect("a valid profile");
    let m = masks(&["public.customers.card_number".to_owned()]);
    let t = std::time::Instant::now();
    let mut n = 0;
    for q in std::fs::read_to_string("/tmp/polpg/psql_queries.txt").unwrap().split("@@@@") {
        n += 1;
        if let Err(d) = decide(&policies, q, &m) { println!("PSQL {} :: {}\n   {}", d.rule, d.message, q.trim().replace('\n', " ")); }
    }
    println!("{n} psql queries in {:?}", t.elapsed());
    for q in std::fs::read_to_string("/tmp/polpg/drivers.txt").unwrap_or_default().split("@@@@") {
        if let Err(d) = decide(&policies, q, &m) { println!("DRIVER {} :: {}\n   {}", d.rule, d.message, q.trim().replace('\n', " ")); }
    }
    let all = PolicySet::parse(&[shipped("allow-all.cedar")]).expect("a valid profile");
    let cm = masks(&["public.customers.ssn","public.customers.email","public.customers.card_number","public.payments.card_number","public.payments.iban","public.secrets.value"].map(str::to_owned));
    for (file, tag) in [("benign", "BENIGN"), ("postgres", "ATTACK")] {
        for line in std::fs::read_to_string(format!("/tmp/polpg/{file}.txt")).unwrap_or_default().lines() {
            let v: serde_json::Value = serde_json::from_str(line).unwrap();
            let sql = v["sql"].as_str().unwrap();
            let id = v["id"].as_str().unwrap();
            let sh: String = sql.chars().take(150).collect();
            match (decide(&policies, sql, &cm), tag) {
                (Err(d), "BENIGN") => println!("BENIGN DENIED {id} {} {} :: {sh}", d.rule, d.message),
                (Ok(_), "ATTACK") => println!("ATTACK PASSED {id} {} :: {sh}", v["expected"]),
                _ => {}
            }
            if let (Ok(_), "ATTACK") = (decide(&all, sql, &cm), tag) { println!("ALLOWALL {id} {} :: {sh}", v["expected"]) }
        }
    }
    let s = analyse("SELECT id, name, card_number FROM customers WHERE id = 1", &m);
    let t = std::time::Instant::now();
    for _ in 0..200 { let _ = analyse("SELECT id, name, card_number FROM customers WHERE id = 1", &m); }
    println!("analyse {:?}", t.elapsed() / 200);
    let t = std::time::Instant::now();
    for _ in 0..200 { let _ = evaluate(&policies, &report_bot(), &Operation::Sql { target: "shop", database: "shop", statement: &s.statements[0] }); }
    println!("evaluate {:?}", t.elapsed() / 200);
}
