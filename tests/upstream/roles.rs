//! The role and the database at the target, chosen by policy, and what start-up parameters reach it.

use super::COUNT_PRODUCTS;
use crate::harness::{Gateway, Postgres, Setup};

const READER_PASSWORD: &str = "pw-needle-reader-T5rWq";

const READER: &str = "[targets.shop.credentials.reader]\nuser = \"shop_reader\"\npassword_file = \"/etc/sluice/credentials/reader\"\n";

fn with_reader(server: &Postgres) -> Setup {
    server.admin(&format!(
        "CREATE ROLE shop_reader LOGIN PASSWORD '{READER_PASSWORD}'; GRANT SELECT ON products TO shop_reader"
    ));
    Setup::in_front_of(server)
        .private_file("etc/sluice/credentials/reader", READER_PASSWORD)
        .adding(READER)
}

fn start_with(setup: Setup, policy: &str) -> Gateway {
    let mut gateway = setup.start_broker();
    gateway.is_secret(READER_PASSWORD);
    gateway.write_policy("mapping", policy);
    gateway.start();
    gateway
}

#[test]
fn a_policy_maps_the_role_and_pins_the_database() {
    let server = Postgres::start();
    let gateway = start_with(
        with_reader(&server),
        r#"@id("mapped") @credential("reader") @database("shop")
        permit (principal, action == Sluice::Action::"connect", resource == Sluice::Target::"shop");"#,
    );
    let address = format!(
        "host=127.0.0.1 port={} user=anybody dbname=postgres",
        server.port()
    );
    gateway
        .as_agent([
            "psql",
            "-X",
            "-At",
            "-d",
            &address,
            "-c",
            "SELECT current_user, current_database(), count(*) FROM products",
        ])
        .succeeds()
        .prints("shop_reader|shop|4");
    let opened = gateway.event("session.open");
    for (member, expected) in [
        ("db_user", "anybody"),
        ("db_role", "shop_reader"),
        ("database", "shop"),
        ("database_asked", "postgres"),
        ("rule", "mapped, read-only-connect"),
    ] {
        assert_eq!(opened.text(member), expected, "{member} of {opened}");
    }
}

#[test]
fn without_a_mapping_the_role_used_is_in_the_evidence_too() {
    let server = Postgres::start();
    let gateway = start_with(
        with_reader(&server),
        r#"@id("others") @credential("reader")
        permit (principal == Sluice::Agent::"somebody-else", action == Sluice::Action::"connect", resource);"#,
    );
    gateway
        .psql(["SELECT current_user"])
        .succeeds()
        .prints("shop_app");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("db_role"), "shop_app", "{opened}");
}

#[test]
fn policies_that_disagree_let_nobody_in() {
    let server = Postgres::start();
    let gateway = start_with(
        with_reader(&server),
        r#"@id("one") @database("shop") permit (principal, action == Sluice::Action::"connect", resource);
        @id("two") @database("postgres") permit (principal, action == Sluice::Action::"connect", resource);"#,
    );
    gateway
        .psql([COUNT_PRODUCTS])
        .fails()
        .complains("the policies disagree about the database of this session")
        .complains("one and two both permit it");
    assert_eq!(gateway.event("deny").text("rule"), "policy:ambiguous");
}

#[test]
fn a_policy_with_a_credential_that_there_is_not_is_refused() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).install();
    gateway.write_policy(
        "mapping",
        r#"@id("mapped") @credential("nobody") permit (principal, action == Sluice::Action::"connect", resource);"#,
    );
    gateway
        .sluice(["check"])
        .fails()
        .prints("@credential(\"nobody\") names a credential that no target of this policy has");
}

/// What clients bring along arrives, or is refused by its name.
#[test]
fn settings_at_the_start() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    let psql = |options: &str, statement: &str| {
        let address = format!("{} options='{options}'", gateway.address("127.0.0.1"));
        gateway.as_agent(["psql", "-X", "-At", "-d", &address, "-c", statement])
    };
    psql(
        "-c intervalstyle=postgres_verbose --enable-seqscan=off -cwork_mem=8MB -c search_path=public",
        "SELECT interval ''1 day'', current_setting(''enable_seqscan''), current_setting(''work_mem'')"
            .replace("''", "'")
            .as_str(),
    )
    .succeeds()
    .prints("@ 1 day|off|8MB");
    for (options, name) in [
        ("-c role=postgres", "role"),
        ("-c search_path=evil", "search_path"),
        ("-c row_security=off", "row_security"),
        ("-c app.tenant=7", "app.tenant"),
        (
            "-c session_preload_libraries=evil",
            "session_preload_libraries",
        ),
    ] {
        psql(options, "SELECT 1")
            .fails()
            .complains(&format!("start-up parameter \"{name}\" is not allowed"))
            .complains("HINT:");
    }
    psql("-c timezone=Nowhere/Land", "SELECT 1")
        .fails()
        .complains("FATAL:  invalid value for parameter \"TimeZone\": \"Nowhere/Land\"");
}
