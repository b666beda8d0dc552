//! Denied statements, in every order of messages and through every client, beside a native permission error.
//!
//! Each row of the table is one order of messages of one client, run twice: directly, as a role that lacks the
//! privilege, and as an agent whose policy denies the same. What the client sees must be the same: errors,
//! message types, transaction states, what becomes of the statements around it, the next statement, and the
//! rows of the tables. Where the two differ, the row says how and why, and differs in nothing else.
//! `cargo xtask test denials` runs all and prints the table.

mod explained;
mod sheet;

use std::time::Duration;

use serde_json::Value;

use crate::harness::by_hand::by_hand;
use crate::harness::program::{Ended, run_within};
use crate::harness::{Authentication, Gateway, NodeScript, Postgres, Script, Setup};
use explained::{Explained, PSQL, WIRE};
use sheet::Sheet;

/// What both are denied: the clerk by missing privileges, the agent by [`POLICY`]. The schema is refused when
/// a statement is parsed, where the gateway decides; a table when it is bound or executed.
pub const TABLES: &str = "
CREATE ROLE shop_clerk LOGIN;
CREATE TABLE journal (n integer, note text);
CREATE TABLE parcels (id integer);
CREATE SCHEMA vault;
CREATE TABLE vault.ledger AS SELECT n FROM generate_series(1, 5) AS n;
CREATE FUNCTION shred() RETURNS integer LANGUAGE sql AS 'DELETE FROM public.orders RETURNING 1';
REVOKE EXECUTE ON FUNCTION shred() FROM PUBLIC;
GRANT SELECT ON customers, products, orders TO shop_clerk;
GRANT SELECT, INSERT ON journal TO shop_clerk;
GRANT ALL ON SCHEMA vault TO shop_app;
GRANT ALL ON journal, parcels, vault.ledger TO shop_app;
GRANT EXECUTE ON FUNCTION shred() TO shop_app;
";

pub const POLICY: &str = r#"
@id("no-vault")
forbid (principal, action, resource is Sluice::Table) when { resource.schema == "vault" };
@id("no-parcels")
forbid (principal, action, resource is Sluice::Table) when { resource.name == "parcels" };
@id("no-delete")
forbid (principal, action == Sluice::Action::"sql:delete", resource);
@id("no-shredding")
forbid (principal, action == Sluice::Action::"sql:function", resource) when { resource.name like "*shred" };
"#;

/// Denied when it is executed, for what it is executed with.
const BY_PARAMETER: &str = r#"
@id("no-contraband")
forbid (principal, action == Sluice::Action::"sql:insert", resource)
when { context.parameters.contains("contraband") };
"#;

/// The orders in which nobody gets to the denied statement: it is skipped, or ends the session.
const NEVER_REACHED: [&str; 3] = [
    "pipelined_behind_an_error",
    "at_parse_behind_an_error_beside_the_unnamed",
    "in_the_middle_of_a_copy",
];

/// For hundreds of sessions on a busy machine.
const DEADLINE: Duration = Duration::from_secs(200);

/// The rows that no client may change.
const KEPT: &str = "SELECT (SELECT count(*) FROM orders), (SELECT count(*) FROM vault.ledger)";

#[test]
fn messages_by_hand() {
    let site = Site::new(|setup| setup);
    let script = by_hand(
        &site.gateway,
        "deny_wire.py",
        include_str!("clients/deny_wire.py"),
    );
    site.compare("1 messages by hand", WIRE, |arguments| {
        script.words(arguments)
    });
}

/// Without masks nothing is asked or rewritten beside the denials.
#[test]
fn messages_by_hand_where_nothing_is_masked() {
    let site = Site::new(Setup::with_superuser_of_any_database);
    let script = by_hand(
        &site.gateway,
        "deny_wire.py",
        include_str!("clients/deny_wire.py"),
    );
    site.compare("2 messages by hand, nothing masked", WIRE, |arguments| {
        script.words(arguments)
    });
}

#[test]
fn psql() {
    let site = Site::new(|setup| setup);
    let script = Script::plain(
        &site.gateway,
        "deny_psql.py",
        include_str!("clients/deny_psql.py"),
    );
    site.compare("3 psql", PSQL, |arguments| script.words(arguments));
}

#[test]
fn psycopg() {
    let site = Site::new(|setup| setup);
    let script = Script::with_drivers(
        &site.gateway,
        "deny_psycopg.py",
        include_str!("clients/deny_psycopg.py"),
    );
    site.compare("4 psycopg", &[], |arguments| script.words(arguments));
}

#[test]
fn asyncpg() {
    let site = Site::new(|setup| setup);
    let script = Script::with_drivers(
        &site.gateway,
        "deny_asyncpg.py",
        include_str!("clients/deny_asyncpg.py"),
    );
    site.compare("5 asyncpg", &[], |arguments| script.words(arguments));
}

#[test]
fn node_postgres() {
    let site = Site::new(|setup| setup);
    let script = NodeScript::new(
        &site.gateway.public_folder("node"),
        "deny_node.js",
        include_str!("clients/deny_node.js"),
    );
    site.compare("6 node-postgres", &[], |arguments| script.words(arguments));
}

/// Conversations that nobody has thought of: seeded, so that one that fails can be tried again.
#[test]
fn messages_in_random_order() {
    let site = Site::new(|setup| setup);
    let script = by_hand(
        &site.gateway,
        "deny_random.py",
        include_str!("clients/deny_random.py"),
    );
    let (natively, through) = site.both(|way| {
        let mut arguments = way;
        arguments.extend([SEED, CONVERSATIONS]);
        script.words(arguments)
    });
    let mut sheet = Sheet::new("7 messages in random order");
    let different: Vec<String> = natively
        .iter()
        .zip(&through)
        .filter_map(|(native, through)| {
            let why = row(native, through, None).err()?;
            Some(format!("{}: {why}", native.order))
        })
        .collect();
    let denied = through.iter().filter(|it| !it.messages.is_empty()).count();
    assert!(denied > 100, "of {CONVERSATIONS} only {denied}");
    sheet.row(
        &format!("{CONVERSATIONS} conversations, {denied} with denials"),
        match different.first() {
            None => Ok("equal".to_owned()),
            Some(first) => Err(format!("{} differ: {first}", different.len())),
        },
    );
    sheet.finish();
}

const SEED: &str = "1";
const CONVERSATIONS: &str = "300";

/// A server with something to deny, and a gateway that denies it.
struct Site {
    server: Postgres,
    gateway: Gateway,
}

/// What one client saw in one order of messages.
struct Seen {
    order: String,
    words: Vec<String>,
    /// What the errors of missing privileges said.
    messages: Vec<String>,
}

impl Site {
    fn new(choose: impl FnOnce(Setup) -> Setup) -> Site {
        let server = Postgres::asking_for(Authentication::Trust);
        server.admin(TABLES);
        let setup = choose(Setup::in_front_of(&server)).policy("allow-all");
        let mut gateway = setup.install();
        gateway.write_policy("denied", POLICY);
        gateway.write_policy("denied-at-execute", BY_PARAMETER);
        gateway.sluice(["guard", "load"]).succeeds();
        gateway.start();
        Site { server, gateway }
    }

    /// Runs a client's script both ways and fills in a row for each of its orders.
    fn compare(
        &self,
        chapter: &'static str,
        explained: &[Explained],
        words: impl Fn(Vec<&str>) -> Vec<String>,
    ) {
        let (natively, denied) = self.both(words);
        for it in explained {
            let tried = natively.iter().any(|native| native.order == it.order);
            assert!(tried, "explained, but not tried: {}", it.order);
        }
        let mut sheet = Sheet::new(chapter);
        for (native, through) in natively.iter().zip(&denied) {
            let why = explained.iter().find(|it| it.order == native.order);
            let reached = !NEVER_REACHED.contains(&&native.order[..]);
            let outcome = match reached == through.messages.is_empty() {
                true => Err(format!("denials: {:?}", through.messages)),
                false => row(native, through, why),
            };
            sheet.row(&native.order, outcome);
        }
        let refused: usize = denied.iter().map(|seen| seen.messages.len()).sum();
        self.gateway.wait_for(refused, "deny");
        sheet.finish();
    }

    /// What the script saw as the clerk, and as the agent; what neither may do has not been done.
    fn both(&self, words: impl Fn(Vec<&str>) -> Vec<String>) -> (Vec<Seen>, Vec<Seen>) {
        let port = self.server.port().to_string();
        let kept = self.server.admin(KEPT);
        let natively = words(vec!["127.0.0.1", &port, "directly"]);
        let natively = seen(&self.directly(&natively));
        let denied = words(vec!["127.0.0.1", &port, "by parameter"]);
        let denied = seen(&run_within(
            DEADLINE,
            self.gateway.agent_command(denied),
            b"",
        ));
        let orders = |run: &[Seen]| run.iter().map(|it| it.order.clone()).collect::<Vec<_>>();
        assert_eq!(orders(&natively), orders(&denied));
        assert_eq!(self.server.admin(KEPT), kept, "nothing denied has run");
        (natively, denied)
    }

    fn directly(&self, words: &[String]) -> Ended {
        let mut client = std::process::Command::new(&words[0]);
        client.args(&words[1..]);
        run_within(DEADLINE, client, b"")
    }
}

/// The script's lines: one for each order.
fn seen(ended: &Ended) -> Vec<Seen> {
    assert!(ended.status.success(), "{ended}");
    let texts = |value: &Value| -> Vec<String> {
        let texts = value.as_array().into_iter().flatten();
        texts
            .map(|text| text.as_str().unwrap_or_default().to_owned())
            .collect()
    };
    ended
        .lines()
        .iter()
        .map(|line| {
            let line: Value = serde_json::from_str(line).expect("a line of JSON");
            Seen {
                order: line["order"].as_str().expect("its order").to_owned(),
                words: texts(&line["seen"]),
                messages: texts(&line["messages"]),
            }
        })
        .collect()
}

/// Whether the gateway's denial is the server's, but for what is explained.
fn row(native: &Seen, through: &Seen, explained: Option<&Explained>) -> sheet::Outcome {
    if let Some(message) = native
        .messages
        .iter()
        .find(|it| !it.starts_with("permission denied"))
    {
        return Err(format!("this is not the server's own denial: {message}"));
    }
    if let Some(message) = through
        .messages
        .iter()
        .find(|it| it.starts_with("permission denied"))
    {
        return Err(format!(
            "the server denied this, not the gateway: {message}"
        ));
    }
    let expected = match explained {
        Some(explained) => explained.applied_to(&native.words)?,
        None => native.words.clone(),
    };
    if through.words != expected {
        return Err(format!(
            "natively {:?}, through the gateway {:?}",
            native.words, through.words
        ));
    }
    Ok(match explained {
        Some(explained) => format!("differs: {}", explained.why),
        None => "equal".to_owned(),
    })
}
