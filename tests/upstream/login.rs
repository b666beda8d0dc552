//! What the target asks for, and what the gateway accepts to be asked for.

use super::between::{Between, Fake, Meddling, NAME, fatal};
use super::{COUNT_PRODUCTS, refused, verify_full};
use crate::harness::postgres::USER;
use crate::harness::{Authentication, Authority, Postgres, Setup};

#[test]
fn a_password_in_clear_goes_nowhere_without_tls() {
    let server = Postgres::asking_for(Authentication::Cleartext);
    let denial = refused(Setup::in_front_of(&server), "08006");
    assert!(denial.contains("password in clear"), "{denial}");
}

#[test]
fn a_password_in_clear_goes_to_a_verified_server() {
    let authority = Authority::new();
    let certificate = authority.certificate_for(&[NAME]);
    let server = Postgres::with_tls_and("password", &certificate, authority.pem());
    let gateway = verify_full(Setup::in_front_of(&server), &authority).start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    // Encrypted to whoever answers is not verified.
    let require = Setup::in_front_of(&server).tls(r#"{ mode = "require" }"#, None);
    refused(require, "08006");
}

#[test]
fn what_require_auth_does_not_name_is_not_answered() {
    for (authentication, accepted) in [
        (
            Authentication::ScramSha256,
            r#"["md5", "password", "none"]"#,
        ),
        (Authentication::Md5, r#"["scram-sha-256"]"#),
        (Authentication::Cleartext, r#"["scram-sha-256", "md5"]"#),
        (Authentication::Trust, r#"["scram-sha-256"]"#),
    ] {
        let server = Postgres::asking_for(authentication);
        let setup =
            Setup::in_front_of(&server).of_credential(&format!("require_auth = {accepted}"));
        let denial = refused(setup, "08006");
        assert!(denial.contains("require_auth does not accept"), "{denial}");
    }
}

#[test]
fn a_server_that_asks_for_nothing_needs_no_password() {
    let server = Postgres::asking_for(Authentication::Trust);
    let gateway = Setup::in_front_of(&server)
        .without_password()
        .of_credential(r#"require_auth = ["none"]"#)
        .start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
}

#[test]
fn a_server_that_asks_for_a_password_there_is_not() {
    let server = Postgres::start();
    let denial = refused(Setup::in_front_of(&server).without_password(), "08006");
    assert!(denial.contains("its credential has none"), "{denial}");
}

#[test]
fn a_client_certificate() {
    let authority = Authority::new();
    let server =
        Postgres::with_tls_and("cert", &authority.certificate_for(&[NAME]), authority.pem());
    let with = |certificate: &crate::harness::authority::Certificate| {
        Setup::in_front_of(&server)
            .without_password()
            .tls(
                r#"{ ca_file = "/etc/sluice/ca.pem", server_name = "db.internal", client_certificate = "/etc/sluice/credentials/client.pem", client_key = "/etc/sluice/credentials/client.key" }"#,
                Some(authority.pem()),
            )
            .private_file("etc/sluice/credentials/client.pem", &certificate.chain)
            .private_file("etc/sluice/credentials/client.key", &certificate.key)
    };
    let gateway = with(&authority.certificate_for_user(USER)).start();
    gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    assert!(server.log().contains("method=cert"), "{}", server.log());

    refused(
        with(&authority.certificate_for_user("somebody-else")),
        "08006",
    );
    refused(with(&Authority::new().certificate_for_user(USER)), "08006");
    refused(
        verify_full(Setup::in_front_of(&server).without_password(), &authority),
        "08006",
    );
}

/// A certificate for the right name, of the right authority: what gives it away is that SCRAM is bound to the other
/// TLS connection. That the server notices shows that the gateway bound it.
#[test]
fn somebody_in_between_does_not_get_past_channel_binding() {
    let authority = Authority::new();
    let server = Postgres::with_tls(&authority.certificate_for(&[NAME]));
    let between = Between::new(&server, &authority, Meddling::Nothing);
    let through = || verify_full(Setup::in_front_of_port(between.port), &authority);

    refused(through(), "08006");
    assert!(
        server.log().contains("SCRAM channel binding check failed"),
        "{}",
        server.log()
    );
    let unbound = through()
        .of_credential(r#"channel_binding = "disable""#)
        .start();
    unbound.psql([COUNT_PRODUCTS]).succeeds().prints("4");

    for channel_binding in ["prefer", "require"] {
        let keys = format!(r#"channel_binding = "{channel_binding}""#);
        let gateway = verify_full(Setup::in_front_of(&server), &authority)
            .of_credential(&keys)
            .start();
        gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
    }
}

#[test]
fn an_offer_of_channel_binding_that_was_taken_away_is_noticed() {
    let authority = Authority::new();
    let server = Postgres::with_tls(&authority.certificate_for(&[NAME]));
    let between = Between::new(&server, &authority, Meddling::TakesPlusAway);
    let through = || verify_full(Setup::in_front_of_port(between.port), &authority);

    // By the server, which the gateway tells that it could have.
    refused(through(), "08006");
    assert!(
        server
            .log()
            .contains("SCRAM channel binding negotiation error"),
        "{}",
        server.log()
    );
    // By the gateway.
    let required = through().of_credential(r#"channel_binding = "require""#);
    let denial = refused(required, "08006");
    assert!(
        denial.contains("does not offer SCRAM-SHA-256-PLUS"),
        "{denial}"
    );
}

#[test]
fn certificates_that_can_be_bound_to_and_those_that_cannot() {
    for (algorithm, can_be_bound_to) in [
        (&rcgen::PKCS_ECDSA_P384_SHA384, true),
        (&rcgen::PKCS_RSA_SHA256, true),
        (&rcgen::PKCS_RSA_SHA512, true),
        (&rcgen::PKCS_ED25519, false),
    ] {
        let authority = Authority::signing_with(algorithm);
        let server = Postgres::with_tls(&authority.certificate_for(&[NAME]));
        let with = |channel_binding: &str| {
            let keys = format!(r#"channel_binding = "{channel_binding}""#);
            verify_full(Setup::in_front_of(&server), &authority).of_credential(&keys)
        };
        let gateway = with("prefer").start();
        gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
        match can_be_bound_to {
            true => {
                let gateway = with("require").start();
                gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
            }
            false => {
                let denial = refused(with("require"), "08006");
                assert!(denial.contains("cannot be bound to"), "{denial}");
            }
        }
    }
}

#[test]
fn what_the_target_says_about_itself_is_passed_on() {
    for (sqlstate, message) in [
        ("57P03", "the database system is starting up"),
        ("53300", "sorry, too many clients already"),
        (
            "57P01",
            "terminating connection due to administrator command",
        ),
    ] {
        let server = Fake::saying(fatal(sqlstate, message));
        let heard = refused(Setup::in_front_of_port(server.address.port()), sqlstate);
        assert!(heard.contains(&format!("M {message}\n")), "{heard}");
        assert!(heard.contains("said so, not the gateway"), "{heard}");
    }
}

#[test]
fn the_targets_own_limits_and_databases() {
    let server = Postgres::start();
    server.admin("ALTER DATABASE shop CONNECTION LIMIT 0");
    let heard = refused(Setup::in_front_of(&server), "53300");
    assert!(
        heard.contains("M too many connections for database \"shop\"\n"),
        "{heard}"
    );

    server.admin("ALTER DATABASE shop CONNECTION LIMIT -1; ALTER ROLE shop_app CONNECTION LIMIT 0");
    let heard = refused(Setup::in_front_of(&server), "53300");
    assert!(heard.contains("refused the connection"), "{heard}");
    assert!(!heard.contains("shop_app"), "{heard}");

    server.admin("ALTER DATABASE shop RENAME TO other");
    let heard = refused(Setup::in_front_of(&server), "3D000");
    assert!(
        heard.contains("M database \"shop\" does not exist\n"),
        "{heard}"
    );
}

#[test]
fn a_role_that_the_target_refuses_is_not_named_to_the_agent() {
    let server = Postgres::start();
    server.admin("ALTER ROLE shop_app NOLOGIN");
    let denial = refused(Setup::in_front_of(&server), "08006");
    assert!(denial.contains("SQLSTATE 28000"), "{denial}");
    assert!(!denial.contains("not permitted to log in"), "{denial}");
}

#[test]
fn login_messages_are_bounded() {
    let long = [&b"R\0\x01\0\x04\0\0\0\0"[..], &[0; 100]].concat();
    let server = Fake::saying(long);
    let denial = refused(Setup::in_front_of_port(server.address.port()), "08006");
    assert!(
        denial.contains("longer than the 65535 bytes allowed"),
        "{denial}"
    );
}
