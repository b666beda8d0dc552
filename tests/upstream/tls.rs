//! The modes of TLS toward the target, each against every kind of server.

use super::between::{Fake, NAME, fatal};
use super::{COUNT_PRODUCTS, refused};
use crate::harness::authority::self_signed;
use crate::harness::{Authority, Postgres, Setup};

/// What the server shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    NoTls,
    RightName,
    WrongName,
    WrongAuthority,
}

#[test]
fn each_mode_against_each_server() {
    use Shown::{NoTls, RightName, WrongAuthority, WrongName};
    let authority = Authority::new();
    let other = Authority::new();
    for (shown, modes) in [
        (NoTls, &["disable", "prefer"][..]),
        (
            RightName,
            &["prefer", "require", "verify-ca", "verify-full"],
        ),
        (WrongName, &["prefer", "require", "verify-ca"]),
        (WrongAuthority, &["prefer", "require"]),
    ] {
        let server = match shown {
            NoTls => Postgres::start(),
            RightName => Postgres::with_tls(&authority.certificate_for(&[NAME])),
            WrongName => Postgres::with_tls(&authority.certificate_for(&["other.internal"])),
            WrongAuthority => Postgres::with_tls(&other.certificate_for(&[NAME])),
        };
        for mode in ["disable", "prefer", "require", "verify-ca", "verify-full"] {
            let tls = match mode {
                "verify-ca" | "verify-full" => format!(
                    r#"{{ mode = "{mode}", ca_file = "/etc/sluice/ca.pem", server_name = "{NAME}" }}"#
                ),
                _ => format!(r#"{{ mode = "{mode}" }}"#),
            };
            let setup = Setup::in_front_of(&server).tls(&tls, Some(authority.pem()));
            if modes.contains(&mode) {
                let gateway = setup.start();
                gateway.psql([COUNT_PRODUCTS]).succeeds().prints("4");
                let opened = gateway.event("session.open");
                let expected = (shown != NoTls).to_string();
                assert_eq!(opened.text("tls"), expected, "{mode} {shown:?}: {opened}");
            } else {
                let denial = refused(setup, "08006");
                println!("{mode} {shown:?}: {denial}");
            }
        }
    }
}

/// Falling back is for servers without TLS, not for TLS that somebody breaks.
#[test]
fn prefer_does_not_fall_back_when_tls_breaks() {
    let server = Fake::breaking_tls("127.0.0.1", 0);
    let setup = Setup::in_front_of_port(server.address.port()).tls(r#"{ mode = "prefer" }"#, None);
    let denial = refused(setup, "08006");
    assert!(denial.contains("TLS with the target failed"), "{denial}");
}

/// An error instead of yes or no is nobody's word before TLS: it is not read, and not fallen back from.
#[test]
fn prefer_does_not_fall_back_when_the_server_answers_otherwise() {
    let server = Fake::at("127.0.0.1", 0, |mut gateway| {
        std::io::Read::read_exact(&mut gateway, &mut [0; 8])?;
        std::io::Write::write_all(&mut gateway, &fatal("28000", "needle"))
    });
    let setup = Setup::in_front_of_port(server.address.port()).tls(r#"{ mode = "prefer" }"#, None);
    let heard = refused(setup, "08006");
    assert!(heard.contains("neither yes nor no"), "{heard}");
    assert!(!heard.contains("needle"), "{heard}");
}

/// As PostgreSQL's manual makes one: signed by itself, and claiming to be an authority.
#[test]
fn a_self_signed_certificate_that_is_trusted_itself() {
    let server = Postgres::with_tls(&self_signed(NAME));
    let itself = self_signed(NAME);
    let served = Postgres::with_tls(&itself);
    let setup =
        |server: &Postgres| Setup::in_front_of(server).verifying_tls(itself.chain.clone(), NAME);
    setup(&served)
        .start()
        .psql([COUNT_PRODUCTS])
        .succeeds()
        .prints("4");
    refused(setup(&server), "08006");
}
