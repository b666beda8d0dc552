//! The modes of TLS toward the target, each against every kind of server.

use super::between::{Fake, NAME};
use super::{COUNT_PRODUCTS, refused};
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
