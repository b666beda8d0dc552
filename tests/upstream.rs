//! How the gateway proves itself to the database: with the stored credential, in whatever way the server
//! asks, over TLS where the target says so. The agent never has any of it.

use crate::harness::{Authentication, Authority, Gateway, Postgres, Script, Setup};

mod between;
mod login;
mod reach;
mod roles;
mod tls;

const COUNT_PRODUCTS: &str = "SELECT count(*) FROM products";

#[test]
fn the_server_itself_wants_a_password() {
    for authentication in [
        Authentication::ScramSha256,
        Authentication::Md5,
        Authentication::Cleartext,
    ] {
        let server = Postgres::asking_for(authentication);
        let address = server.address("127.0.0.1");
        server
            .directly(["psql", "-X", "-At", "-d", &address, "-c", COUNT_PRODUCTS])
            .succeeds()
            .prints("4");
        let mut stranger = std::process::Command::new("psql");
        stranger.args(["-X", "-w", "-d", &address, "-c", COUNT_PRODUCTS]);
        crate::harness::program::run(stranger)
            .fails()
            .complains("no password supplied");
    }
}

#[test]
fn a_password_by_scram_sha_256() {
    the_agent_reads_without_a_password(Authentication::ScramSha256);
}

#[test]
fn a_password_by_md5() {
    the_agent_reads_without_a_password(Authentication::Md5);
}

#[test]
fn a_password_in_clear() {
    the_agent_reads_without_a_password(Authentication::Cleartext);
}

#[test]
fn no_password_at_all() {
    the_agent_reads_without_a_password(Authentication::Trust);
}

fn the_agent_reads_without_a_password(authentication: Authentication) {
    let server = Postgres::asking_for(authentication);
    let mut setup = Setup::in_front_of(&server);
    if authentication == Authentication::Cleartext {
        setup = setup.of_credential(r#"require_auth = ["password"]"#);
    }
    let gateway = setup.start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("tls"), "false", "{opened}");
}

#[test]
fn the_agents_own_user_and_password_are_irrelevant() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let address = format!(
        "host=127.0.0.1 port={} user=somebody password=anything dbname=shop",
        server.port()
    );
    gateway
        .as_agent(["psql", "-X", "-At", "-d", &address, "-c", COUNT_PRODUCTS])
        .succeeds()
        .prints("4");
    assert!(!server.log().contains("somebody"), "{}", server.log());
}

#[test]
fn a_wrong_stored_password_is_a_clear_fatal_error() {
    let server = Postgres::start();
    let mut gateway = Setup::in_front_of(&server)
        .stored_password("not-the-password-of-shop_app")
        .start();
    gateway.psql([COUNT_PRODUCTS]).fails().complains("FATAL");
    gateway.is_alive();
    assert_eq!(gateway.events().count("session.open"), 0);
    gateway.event("deny");
}

#[test]
fn tls_to_a_server_whose_certificate_verifies() {
    let authority = Authority::new();
    let server = Postgres::with_tls(&authority.certificate_for(&["db.internal"]));
    let gateway = Setup::in_front_of(&server)
        .verifying_tls(authority.pem(), "db.internal")
        .start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("tls"), "true", "{opened}");
}

#[test]
fn tls_to_a_server_with_a_certificate_of_another_authority_is_refused() {
    let server = Postgres::with_tls(&Authority::new().certificate_for(&["db.internal"]));
    refused_for_its_certificate(&server, &Authority::new(), "db.internal");
}

#[test]
fn tls_to_a_server_with_a_certificate_for_another_name_is_refused() {
    let authority = Authority::new();
    let server = Postgres::with_tls(&authority.certificate_for(&["other.internal"]));
    refused_for_its_certificate(&server, &authority, "db.internal");
}

#[test]
fn tls_is_never_given_up_when_the_server_does_not_offer_it() {
    refused_for_its_certificate(&Postgres::start(), &Authority::new(), "db.internal");
}

fn refused_for_its_certificate(server: &Postgres, authority: &Authority, name: &str) {
    let mut gateway = Setup::in_front_of(server)
        .verifying_tls(authority.pem(), name)
        .start();
    gateway.psql([COUNT_PRODUCTS]).fails().complains("FATAL");
    gateway.is_alive();
    assert_eq!(gateway.events().count("session.open"), 0);
    gateway.event("deny");
}

/// TLS to the test's server as it should be.
fn verify_full(setup: Setup, authority: &Authority) -> Setup {
    setup.verifying_tls(authority.pem(), between::NAME)
}

/// The agent is refused with that SQLSTATE; answers what it heard, a line for each field of the error.
#[track_caller]
fn refused(setup: Setup, sqlstate: &str) -> String {
    let mut gateway = setup.start();
    let heard = error_at_the_start(&gateway);
    gateway.is_alive();
    assert_eq!(gateway.events().count("session.open"), 0);
    assert!(heard.contains(&format!("C {sqlstate}\n")), "{heard}");
    assert!(heard.starts_with("S FATAL\n"), "{heard}");
    let denial = gateway.event("deny");
    assert!(!denial.text("reason").is_empty(), "{denial}");
    heard
}

/// What a client hears instead of being let in.
#[track_caller]
fn error_at_the_start(gateway: &Gateway) -> String {
    let script = Script::plain(
        gateway,
        "startup_error.py",
        include_str!("clients/startup_error.py"),
    );
    let port = gateway.database_port().to_string();
    let client = gateway.as_agent(script.words(["127.0.0.1", &port]));
    client.succeeds().text()
}
