//! Replication connections: refused in every spelling unless the target allows them, and then relayed as they
//! are, for PostgreSQL's own tools.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use crate::harness::{Gateway, Postgres, Script, Setup};

const ALLOWED: &str = "replication = true\n";

fn allowing(server: &Postgres, policy: &'static str) -> Gateway {
    Setup::in_front_of(server)
        .with_superuser_of_any_database()
        .policy(policy)
        .adding(ALLOWED)
        .start()
}

/// A folder the agent may write to.
fn folder(gateway: &Gateway, name: &str) -> PathBuf {
    let folder = gateway.public_folder("received").join(name);
    fs::create_dir(&folder).expect("the folder is ours");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777)).expect("it is ours");
    folder
}

const SPELLINGS: [&str; 16] = [
    "replication=database",
    "replication=true",
    "replication=TRUE",
    "replication=t",
    "replication=yes",
    "replication=y",
    "replication=on",
    "replication=1",
    "replication=Database",
    "replication=2",
    "replication=",
    "Replication=true",
    "REPLICATION=database",
    "options=-c replication=database",
    "options=--replication=on",
    "options=-creplication=off",
];

#[test]
fn every_spelling_is_refused_where_the_target_does_not_allow_it() {
    let server = Postgres::with_logical_log();
    for gateway in [
        Setup::in_front_of(&server)
            .with_superuser_of_any_database()
            .policy("allow-all")
            .start(),
        // The target allows it, the policy does not.
        allowing(&server, "read-only"),
    ] {
        let text = include_str!("clients/startup.py");
        let script = Script::plain(&gateway, "startup.py", text);
        let port = server.port().to_string();
        let arguments: Vec<&str> = ["127.0.0.1", &port].into_iter().chain(SPELLINGS).collect();
        let seen = gateway.as_agent(script.words(arguments)).succeeds();
        for (spelling, said) in SPELLINGS.iter().zip(seen.lines()) {
            assert!(
                said.starts_with(&format!("{spelling}: FATAL 42501")),
                "{said}"
            );
        }
        assert_eq!(seen.lines().len(), SPELLINGS.len(), "{seen}");
        let denied = gateway.wait_for(SPELLINGS.len(), "deny");
        for denial in &denied {
            let rule = denial.text("rule");
            assert!(
                ["startup:replication", "default-deny"].contains(&rule.as_str()),
                "{denial}"
            );
        }
        // What is no replication connection is none.
        let arguments = ["127.0.0.1", &port, "replication=false", "replication=0"];
        let seen = gateway.as_agent(script.words(arguments)).succeeds();
        assert_eq!(
            seen.lines(),
            ["replication=false: ready", "replication=0: ready"]
        );
        for tool in [
            vec!["pg_receivewal", "--no-loop", "-D", "/tmp"],
            vec!["pg_recvlogical", "--create-slot", "-S", "s", "-d", "shop"],
        ] {
            let words =
                tool.into_iter()
                    .chain(["-w", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"]);
            let seen = gateway.as_agent(words).fails();
            seen.complains("replicat");
        }
    }
}

#[test]
fn a_base_backup_and_the_log_behind_it() {
    let server = Postgres::with_logical_log();
    // What is recorded unread holds the files as they are: here they hold no secret of the shop.
    server.admin("UPDATE customers SET card_number = 'none'");
    server.admin("VACUUM FULL customers");
    server.admin("CHECKPOINT");
    server.admin("SELECT pg_switch_wal()");
    let gateway = allowing(&server, "allow-all");
    let port = server.port().to_string();
    let at = ["-w", "-h", "127.0.0.1", "-p", &port, "-U", "postgres"];
    let backup = folder(&gateway, "backup");
    let backup = backup.to_str().expect("a plain path");
    let words = [
        "pg_basebackup",
        "-D",
        backup,
        "-X",
        "stream",
        "-c",
        "fast",
        "--no-sync",
    ];
    gateway.as_agent(words.into_iter().chain(at)).succeeds();
    let verify = crate::harness::postgres::binary("pg_verifybackup");
    server
        .directly([verify.to_str().expect("a plain path"), "-n", backup])
        .succeeds()
        .prints("backup successfully verified");

    let received = folder(&gateway, "log");
    let received = received.to_str().expect("a plain path");
    server.admin(
        "CREATE TABLE made AS SELECT n FROM generate_series(1, 20000) n; SELECT pg_switch_wal()",
    );
    let slot = ["pg_receivewal", "--create-slot", "-S", "kept"];
    gateway.as_agent(slot.into_iter().chain(at)).succeeds();
    // The tool's own slot keeps nothing before its first use.
    server.admin("SELECT pg_create_physical_replication_slot('reserved', true)");
    server.admin("CREATE TABLE more AS SELECT n FROM generate_series(1, 20000) n");
    let end_of_log = server.admin("SELECT pg_switch_wal()");
    server.admin("CHECKPOINT");
    let words = [
        "pg_receivewal",
        "--no-loop",
        "--no-sync",
        "-S",
        "reserved",
        "-D",
        received,
        "-E",
        &end_of_log,
    ];
    gateway.as_agent(words.into_iter().chain(at)).succeeds();
    let segments = fs::read_dir(received).expect("it is there").count();
    assert!(segments > 0, "nothing up to {end_of_log} was received");
    gateway
        .as_agent(
            ["pg_receivewal", "--drop-slot", "-S", "kept"]
                .into_iter()
                .chain(at),
        )
        .succeeds();

    gateway.wait_for(5, "session.close");
    let events = gateway.events();
    for open in events.named("session.open") {
        assert_eq!(open.text("replication"), "true", "{open}");
    }
    for close in events.named("session.close") {
        assert_eq!(close.text("outcome"), "closed", "{close}");
    }
    let commands: Vec<String> = events
        .named("stmt.intent")
        .filter(|intent| intent.text("verbs").contains("sql:replication"))
        .map(|intent| intent.text("statement"))
        .collect();
    for command in [
        "IDENTIFY_SYSTEM",
        "BASE_BACKUP",
        "START_REPLICATION",
        "CREATE_REPLICATION_SLOT",
        "DROP_REPLICATION_SLOT",
    ] {
        assert!(
            commands.iter().any(|text| text.starts_with(command)),
            "{command}: {commands:?}"
        );
    }
    assert_eq!(
        events.count("stmt.intent"),
        events.count("stmt.result"),
        "every command has ended"
    );
}

#[test]
fn changes_are_decoded_and_sql_is_decided() {
    let server = Postgres::with_logical_log();
    let gateway = allowing(&server, "allow-all");
    let port = server.port().to_string();
    let at = [
        "-w",
        "-h",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "postgres",
        "-d",
        "shop",
    ];
    let slot = [
        "pg_recvlogical",
        "-S",
        "changes",
        "--create-slot",
        "-P",
        "test_decoding",
    ];
    gateway.as_agent(slot.into_iter().chain(at)).succeeds();
    server.admin("UPDATE products SET stock = 7 WHERE id = 3");
    // Commits are written later.
    let end = server.admin("SELECT pg_current_wal_insert_lsn()");
    let start = [
        "pg_recvlogical",
        "-S",
        "changes",
        "--start",
        "-f",
        "-",
        "-E",
        &end,
        "--no-loop",
    ];
    gateway
        .as_agent(start.into_iter().chain(at))
        .succeeds()
        .prints("table public.products: UPDATE: id[integer]:3");
    // `replication=database` takes SQL as well.
    let address = format!("{} replication=database", gateway.address("127.0.0.1"));
    let psql =
        |statement: &str| gateway.as_agent(["psql", "-X", "-At", "-d", &address, "-c", statement]);
    psql("SELECT count(*) FROM products").succeeds().prints("4");
    psql("IDENTIFY_SYSTEM").succeeds().prints("shop");
    psql("DROP_REPLICATION_SLOT changes").succeeds();

    // A policy that lets it connect, and read.
    let mut gateway = Setup::in_front_of(&server)
        .with_superuser_of_any_database()
        .adding(ALLOWED)
        .install();
    gateway.write_policy(
        "replicates",
        "@id(\"replicates\") permit (principal, action == Sluice::Action::\"connect\", resource) when { context.replication };",
    );
    gateway.sluice(["guard", "load"]).succeeds();
    gateway.start_broker();
    gateway.start();
    let address = format!("{} replication=database", gateway.address("127.0.0.1"));
    let psql = |statements: &[&str]| {
        let mut words = vec!["psql", "-X", "-At", "-d", &address];
        words.extend(statements.iter().flat_map(|statement| ["-c", statement]));
        gateway.as_agent(words)
    };
    let seen = psql(&[
        "DELETE FROM products",
        "SHOW wal_level; DELETE FROM products",
        "SELECT count(*) FROM products",
        "IDENTIFY_SYSTEM",
    ]);
    let seen = seen.complains("may not run sql:delete");
    assert!(seen.text().contains("4\n"), "{seen}");
    assert_eq!(server.admin("SELECT count(*) FROM products"), "4");
}
