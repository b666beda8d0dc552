//! Secrets stay inside: not in a recording, the log, the gateway's output or its environment.
//!
//! Every test's installation is searched when the test ends (see `harness::gateway`). These tests bring the
//! secrets as close to the evidence as they can, and show that the search would find them.

use std::fs;
use std::io::Write;

use crate::harness::postgres::PASSWORD;
use crate::harness::{Gateway, Postgres, Setup};

#[test]
fn card_numbers_in_results_statements_parameters_and_errors() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    gateway.psql(["SELECT * FROM customers"]).succeeds();
    // Refused, but the statement's text is evidence, and it holds what the agent should not know.
    gateway.psql(["SELECT name FROM customers WHERE card_number = '4111111111111111'"]);
    gateway.psql(["SELECT '4012888888881881'::int"]);
    gateway.psql(["SELEC 5500005555555559"]);
    gateway.psql(["INSERT INTO customers VALUES (9, 'N', 'n@example.com', '6011111111111117')"]);
    gateway.psql(["UPDATE customers SET card_number = '378282246310005' WHERE id = 5"]);
    assert!(gateway.events().count("stmt.intent") + gateway.events().count("deny") >= 6);
    assert_eq!(gateway.secrets_found(), [""; 0]);
}

#[test]
fn passwords_of_agents_and_roles() {
    const OWN: &str = "agents-own-password-needle";
    const NEW: &str = "new-role-password-needle";
    let server = Postgres::start();
    server.admin("ALTER ROLE shop_app CREATEROLE");
    let gateway = Setup::in_front_of(&server).policy("allow-all").start();
    gateway.is_secret(OWN);
    gateway.is_secret(NEW);
    let address = format!("{} password={OWN}", gateway.address("127.0.0.1"));
    let create = format!("CREATE ROLE reader PASSWORD '{NEW}'");
    gateway
        .as_agent(["psql", "-X", "-d", &address, "-c", &create])
        .succeeds();
    let address = format!(
        "postgresql://shop_app:{OWN}@127.0.0.1:{}/shop",
        server.port()
    );
    gateway
        .as_agent(["psql", "-X", "-d", &address, "-c", "SELECT 1"])
        .succeeds();
    assert_eq!(gateway.secrets_found(), [""; 0]);
}

#[test]
fn a_tokens_text_is_in_no_error_either() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let forged = gateway.issuer.token_for("report-bot@corp").unsigned();
    gateway.issue(&forged);
    let refused = gateway.psql(["SELECT 1"]).fails();
    let claims = forged.split('.').nth(1).expect("a token has three parts");
    assert!(!refused.stderr.contains(claims), "{refused}");
    assert_eq!(gateway.secrets_found(), [""; 0]);
}

#[test]
fn the_search_finds_a_planted_secret() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.wait_for(1, "session.close");
    let planted = gateway.recordings().join("planted");
    let mut file = fs::File::create(&planted).expect("root may write everywhere");
    file.write_all(format!("…{PASSWORD}…").as_bytes())
        .expect("root may write everywhere");
    assert_eq!(gateway.secrets_found().len(), 1);
    fs::remove_file(planted).expect("it was just written");
}

#[test]
fn what_lies_on_disk_is_for_the_operator_only() {
    use std::os::unix::fs::MetadataExt;
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    gateway.psql(["SELECT 1"]).succeeds();
    gateway.wait_for(1, "session.close");
    let recordings: Vec<_> = fs::read_dir(gateway.recordings())
        .expect("a session was recorded")
        .flatten()
        .map(|entry| entry.path())
        .collect();
    assert_eq!(recordings.len(), 1);
    for private in recordings
        .iter()
        .chain([&gateway.recordings(), &gateway.log_file()])
    {
        let mode = fs::metadata(private).expect("it is there").mode() & 0o077;
        assert_eq!(mode, 0, "{} is open to others", private.display());
    }
    let script = format!("cat {}", recordings[0].display());
    gateway
        .as_agent(["sh", "-c", &script])
        .fails()
        .complains("Permission denied");
}
