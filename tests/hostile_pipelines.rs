//! Clients that use the protocol's freedom against the gateway: masks, evidence and other sessions hold.

use crate::harness::{Gateway, Postgres, Script};

#[test]
fn pipelines_made_to_confuse() {
    let server = Postgres::start();
    let gateway = Gateway::in_front_of(&server);
    let script = Script::plain(
        &gateway,
        "hostile_pipelines.py",
        include_str!("clients/hostile_pipelines.py"),
    );
    let port = server.port().to_string();
    let seen = gateway.as_agent(script.words(["127.0.0.1", &port]));
    let seen = seen.succeeds();
    assert_eq!(
        seen.lines(),
        [
            "FETCH of another cursor: masked",
            "EXECUTE of another statement: masked",
            "20000 skipped messages: answered",
            "20000 ends of no copy: answered",
        ],
        "{seen}"
    );
    // What ran is what is on record, whatever its name was made to mean.
    gateway.wait_for(7, "session.close");
    let ran: Vec<String> = gateway
        .events()
        .named("stmt.intent")
        .map(|intent| intent.text("statement"))
        .collect();
    for shown in ["'long name'", "'kept portal'", "'other'"] {
        assert!(
            ran.iter().any(|text| text.contains(shown)),
            "{shown}: {ran:?}"
        );
    }
    assert!(!ran.iter().any(|text| text.contains("harmless")), "{ran:?}");
    assert_eq!(gateway.events().count("session.open"), 7);
}
