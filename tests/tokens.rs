//! Who an agent is: without a valid token there is no session, a leaf says why, and the client is told.

use jsonwebtoken::Algorithm;

use crate::harness::gateway::SUBJECT;
use crate::harness::gateway::psql_words;
use crate::harness::issuer::{Issuer, unix_now};
use crate::harness::{Gateway, Postgres, Setup};

/// What is wrong with the token, and the slug of the rule that refuses it.
type Case = (&'static str, Wrong, &'static str);

enum Wrong {
    Missing,
    Token(fn(&Issuer) -> String),
}

const CASES: &[Case] = &[
    ("missing", Wrong::Missing, "token:missing"),
    (
        "expired",
        Wrong::Token(|issuer| {
            issuer
                .token_for(SUBJECT)
                .with("exp", unix_now() - 120)
                .sign()
        }),
        "token:expired",
    ),
    (
        "not valid yet",
        Wrong::Token(|issuer| {
            issuer
                .token_for(SUBJECT)
                .with("nbf", unix_now() + 600)
                .sign()
        }),
        "token:not-yet-valid",
    ),
    (
        "for another audience",
        Wrong::Token(|issuer| issuer.token_for(SUBJECT).with("aud", "another").sign()),
        "token:wrong-audience",
    ),
    (
        "by another issuer",
        Wrong::Token(|issuer| {
            issuer
                .token_for(SUBJECT)
                .with("iss", "https://evil.test")
                .sign()
        }),
        "token:wrong-issuer",
    ),
    (
        "for another subject",
        Wrong::Token(|issuer| issuer.token_for("admin@corp").sign()),
        "token:wrong-subject",
    ),
    (
        "signed by another key",
        Wrong::Token(|_| {
            Issuer::signing_with(Algorithm::ES256)
                .token_for(SUBJECT)
                .sign()
        }),
        "token:bad-signature",
    ),
    (
        "signed by an unpublished key",
        Wrong::Token(|issuer| issuer.token_for(SUBJECT).naming_key("key-2").sign()),
        "token:unknown-key",
    ),
    (
        "not signed: alg none",
        Wrong::Token(|issuer| issuer.token_for(SUBJECT).unsigned()),
        "token:algorithm-refused",
    ),
    (
        "signed with another kind of key than the published one",
        Wrong::Token(|_| {
            Issuer::signing_with(Algorithm::RS256)
                .token_for(SUBJECT)
                .sign()
        }),
        "token:",
    ),
    (
        "without an expiry",
        Wrong::Token(|issuer| issuer.token_for(SUBJECT).without("exp").sign()),
        "token:missing-claim",
    ),
    (
        "without an audience",
        Wrong::Token(|issuer| issuer.token_for(SUBJECT).without("aud").sign()),
        "token:missing-claim",
    ),
    (
        "no token at all",
        Wrong::Token(|_| "not.a.token".to_owned()),
        "token:malformed",
    ),
    ("an empty file", Wrong::Token(|_| String::new()), "token:"),
    (
        "a huge file",
        Wrong::Token(|_| "x".repeat(100_000)),
        "token:too-large",
    ),
];

#[test]
fn no_session_without_a_valid_token() {
    let server = Postgres::start();
    let mut gateway = Gateway::in_front_of(&server);
    for (number, (name, wrong, slug)) in CASES.iter().enumerate() {
        match wrong {
            Wrong::Missing => gateway.withdraw_token(),
            Wrong::Token(token) => gateway.issue(&token(&gateway.issuer)),
        }
        // With sslmode=prefer, libpq tries again without TLS what was refused within: two leaves.
        let address = format!("{} sslmode=require", gateway.address("127.0.0.1"));
        let refused = gateway.as_agent(psql_words(&address, ["SELECT 1"])).fails();
        assert!(refused.stderr.contains("FATAL"), "{name}: {refused}");
        assert_eq!(refused.text(), "", "{name}");
        let denied = gateway.wait_for(number + 1, "deny");
        assert_eq!(denied.len(), number + 1, "{name}: one leaf each");
        let denied = &denied[number];
        assert!(denied.text("rule").starts_with(slug), "{name}: {denied}");
        assert_ne!(denied.text("reason"), "", "{name}: {denied}");
        assert_eq!(denied.text("agent"), "report-bot", "{name}: {denied}");
    }
    assert_eq!(gateway.events().count("session.open"), 0);
    assert!(
        !server
            .log()
            .contains("connection authorized: user=shop_app"),
        "the database was reached:\n{}",
        server.log()
    );
    gateway.is_alive();
    gateway.issue(&gateway.issuer.token_for(SUBJECT).sign());
    gateway.psql(["SELECT 1"]).succeeds();
}

#[test]
fn a_token_signed_with_rs256() {
    accepted(Algorithm::RS256);
}

#[test]
fn a_token_signed_with_es256() {
    accepted(Algorithm::ES256);
}

#[test]
fn a_token_signed_with_eddsa() {
    accepted(Algorithm::EdDSA);
}

fn accepted(algorithm: Algorithm) {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server)
        .issuer(Issuer::signing_with(algorithm))
        .start();
    gateway.psql(["SELECT 1"]).succeeds();
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("subject"), SUBJECT);
    assert_eq!(opened.text("groups"), r#"["reporting"]"#);
}

#[test]
fn an_algorithm_that_the_issuer_does_not_list_is_refused() {
    let server = Postgres::start();
    let gateway = Setup::in_front_of(&server)
        .issuer(Issuer::signing_with(Algorithm::ES256))
        .algorithms(r#"["RS256"]"#)
        .start();
    gateway.psql(["SELECT 1"]).fails().complains("FATAL");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "token:algorithm-refused", "{denied}");
}
