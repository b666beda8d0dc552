//! The agents' resolver: which names there are, what addresses they get, and what an address is good for.

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use crate::harness::gateway::{AGENT, psql_words};
use crate::harness::postgres;
use crate::harness::program::{Ended, eventually, run};
use crate::harness::{Gateway, Postgres, Script, Setup};

const DNS: &str = include_str!("clients/dns.py");

/// Whom nobody else could have asked: nothing listens at these addresses.
const RESOLVERS: [&str; 3] = ["192.0.2.53", "127.0.0.53", "2001:db8::53"];

/// A target that is known by name, and one that this agent may not reach.
fn by_name(server: &Postgres) -> Setup {
    Setup::in_front_of(server).adding(&target("by-name", server.port(), "db.shop.example"))
}

fn target(name: &str, port: u16, host: &str) -> String {
    format!(
        r#"
[targets.{name}]
protocol = "postgres"
addresses = ["{host}:5432"]
dial = "127.0.0.1:{port}"
database = "{shop}"
tls = {{ mode = "disable" }}
credential = {{ user = "{user}", password_file = "/etc/sluice/credentials/shop" }}
"#,
        shop = postgres::DATABASE,
        user = postgres::USER,
    )
}

fn address(host: &str) -> String {
    format!(
        "host={host} port=5432 user={} dbname={}",
        postgres::USER,
        postgres::DATABASE
    )
}

fn dns(gateway: &Gateway) -> Script {
    Script::plain(gateway, "dns.py", DNS)
}

/// Another agent, with the same identity.
fn clerk(more: &str) -> String {
    format!(
        "[agents.clerk]\nidentity = \"corp\"\ntoken_file = \"/run/sluice/tokens/{AGENT}.jwt\"\n{more}\n"
    )
}

fn as_clerk(gateway: &Gateway, words: &[String]) -> Ended {
    let mut command = gateway.sluice_command(["exec", "--agent", "clerk", "--"]);
    command.args(words).current_dir("/");
    run(command)
}

fn is_synthetic(address: &str) -> bool {
    match address.parse() {
        Ok(IpAddr::V4(v4)) => matches!(v4.octets(), [198, 18 | 19, ..]),
        Ok(IpAddr::V6(v6)) => v6.segments()[..3] == [0xfd53, 0x6c75, 0x6963],
        Err(_) => false,
    }
}

#[test]
fn psql_connects_by_name() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    gateway
        .as_agent(psql_words(
            &address("db.shop.example"),
            ["SELECT 'by name'"],
        ))
        .succeeds()
        .prints("by name");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("host"), "db.shop.example", "{opened}");
    assert_eq!(opened.text("target"), "by-name", "{opened}");
    let original = opened.text("original");
    let (ip, port) = original.rsplit_once(':').expect("an address with a port");
    assert_eq!(port, "5432");
    let ip = ip.trim_matches(['[', ']']);
    assert!(is_synthetic(ip), "{original}");
    let question = gateway.event("dns.query");
    assert_eq!(question.text("agent"), AGENT, "{question}");
    assert_eq!(question.text("name"), "db.shop.example", "{question}");
    assert_eq!(question.text("rcode"), "NOERROR", "{question}");
}

#[test]
fn whichever_resolver_is_asked_however() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let script = dns(&gateway);
    let mut addresses = vec![];
    for resolver in RESOLVERS {
        for how in ["udp", "udp-connect", "tcp"] {
            let asked = gateway.as_agent(script.words([how, resolver, "db.shop.example"]));
            let line = asked.succeeds().text().trim().to_owned();
            let (code, address) = line.split_once(' ').unwrap_or((&line, ""));
            assert_eq!(code, "NOERROR", "{how} {resolver}: {line}");
            assert!(is_synthetic(address), "{how} {resolver}: {line}");
            addresses.push(address.to_owned());
        }
    }
    addresses.dedup();
    assert_eq!(
        addresses.len(),
        1,
        "one address, whoever is asked: {addresses:?}"
    );
    let questions = gateway.wait_for(9, "dns.query");
    for (question, resolver) in questions.iter().step_by(3).zip(RESOLVERS) {
        let asked = question.text("resolver");
        assert!(
            asked.contains(resolver) && asked.ends_with(":53"),
            "{question}"
        );
        assert_eq!(
            question.text("process.cgroup").rsplit('/').next(),
            Some(AGENT)
        );
    }
}

#[test]
fn programs_resolve_as_ever() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let script = dns(&gateway);
    let found = gateway.as_agent(script.words(["getaddrinfo", "-", "db.shop.example"]));
    let found = found.succeeds();
    assert!(found.text().split_whitespace().all(is_synthetic), "{found}");
    for name in ["db.shop.example.com", "elsewhere.example", "shop.example"] {
        gateway
            .as_agent(script.words(["getaddrinfo", "-", name]))
            .fails()
            .prints("gaierror");
    }
}

#[test]
fn other_names_do_not_exist() {
    let server = Postgres::start();
    let gateway = by_name(&server)
        .adding(&target("others", server.port(), "others.example"))
        .adding(&clerk(r#"targets = ["by-name"]"#))
        .start();
    let script = dns(&gateway);
    let long = format!("{}.evil.example", "a".repeat(50));
    for (name, kind, expected) in [
        ("db.shop.example", "HTTPS", "NOERROR"),
        ("shop.example", "A", "NOERROR"),
        ("others.example", "A", "NXDOMAIN"),
        ("secret.evil.example", "TXT", "NXDOMAIN"),
        ("localhost", "A", "NXDOMAIN"),
        (&long, "TXT", "REFUSED"),
    ] {
        let asked = as_clerk(&gateway, &script.words(["udp", "192.0.2.53", name, kind]));
        assert_eq!(asked.succeeds().text().trim(), expected, "{name} {kind}");
    }
    let questions = gateway.wait_for(6, "dns.query");
    let rules: Vec<String> = questions.iter().map(|q| q.text("rule")).collect();
    let expected = [
        "",
        "",
        "target:not-for-agent",
        "dns:unknown-name",
        "dns:unknown-name",
        "dns:label-too-long",
    ];
    assert_eq!(rules, expected);
}

#[test]
fn an_address_is_its_own_agents() {
    let server = Postgres::start();
    let gateway = by_name(&server).adding(&clerk("")).start();
    let script = dns(&gateway);
    let asked = gateway.as_agent(script.words(["udp", "192.0.2.53", "db.shop.example"]));
    let told = asked.succeeds().text().trim().replace("NOERROR ", "");
    as_clerk(&gateway, &psql_words(&address(&told), ["SELECT 1"]))
        .fails()
        .complains("made for another agent");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "dns:foreign-address", "{denied}");
    assert_eq!(denied.text("agent"), "clerk", "{denied}");
    gateway
        .as_agent(psql_words(&address(&told), ["SELECT 'mine'"]))
        .succeeds()
        .prints("mine");
}

#[test]
fn a_target_of_others_is_refused_by_its_address_too() {
    let server = Postgres::start();
    let gateway = by_name(&server)
        .adding(&clerk(r#"targets = ["by-name"]"#))
        .start();
    let literal = gateway.address("127.0.0.1");
    as_clerk(&gateway, &psql_words(&literal, ["SELECT 1"]))
        .fails()
        .complains("is not open to agent");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "target:not-for-agent", "{denied}");
    assert_eq!(denied.text("target"), "shop", "{denied}");
}

/// The gateway resolves by itself, from a hosts file that the agent does not see.
#[test]
fn names_lead_to_this_host_only_where_the_target_says_so() {
    let server = Postgres::start();
    let port = server.port();
    let named = |name: &str, host: &str, more: &str| {
        let lines = target(name, port, host);
        let lines = lines.replace(&format!("dial = \"127.0.0.1:{port}\"\n"), more);
        lines.replace(":5432\"", &format!(":{port}\""))
    };
    let gateway = Setup::in_front_of(&server)
        .adding(&named("rebound", "rebound.example", ""))
        .adding(&named("own", "own.example", "allow_local = true\n"))
        // Nothing listens at the first address.
        .hosts("127.0.0.77 own.example\n127.0.0.1 rebound.example own.example\n")
        .start();
    let at = |host: &str| address(host).replace("5432", &port.to_string());
    gateway
        .as_agent(psql_words(&at("rebound.example"), ["SELECT 1"]))
        .fails()
        .complains("allow_local");
    assert_eq!(gateway.event("deny").text("rule"), "target:unresolved");
    gateway
        .as_agent(psql_words(&at("own.example"), ["SELECT 'at home'"]))
        .succeeds()
        .prints("at home");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("upstream"), format!("127.0.0.1:{port}"));
    assert_eq!(opened.text("host"), "own.example", "{opened}");
}

#[test]
fn pass_mode_knows_targets_by_their_real_addresses() {
    let server = Postgres::start();
    let port = server.port();
    let own = target("own", port, "own.example")
        .replace("dial =", "allow_local = true\ndial =")
        .replace(":5432\"", &format!(":{port}\""));
    let gateway = Setup::in_front_of(&server)
        .adding(&own)
        .adding("[dns]\nmode = \"pass\"\n")
        .hosts("127.0.0.9 own.example\n")
        .start();
    let script = dns(&gateway);
    let asked = gateway.as_agent(script.words(["udp", "192.0.2.53", "own.example"]));
    assert_eq!(asked.succeeds().text().trim(), "NOERROR 127.0.0.9");
    let at = address("own.example").replace("5432", &port.to_string());
    gateway
        .as_agent(psql_words(&at, ["SELECT 'really there'"]))
        .succeeds()
        .prints("really there");
    let opened = gateway.event("session.open");
    assert_eq!(opened.text("original"), format!("127.0.0.9:{port}"));
    assert_eq!(opened.text("host"), "own.example", "{opened}");
}

#[test]
fn real_resolvers_hear_nothing() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let listener = UdpSocket::bind("127.5.3.53:53").expect("root may bind port 53");
    listener
        .set_read_timeout(Some(Duration::from_millis(300)))
        .expect("it is ours");
    let script = dns(&gateway);
    for name in ["db.shop.example", "exfiltrated.example"] {
        gateway
            .as_agent(script.words(["udp", "127.5.3.53", name]))
            .succeeds();
    }
    gateway
        .as_agent(script.words(["garbage", "127.5.3.53", "-"]))
        .succeeds();
    let heard = listener.recv(&mut [0; 512]);
    assert!(heard.is_err(), "{heard:?}");
}

#[test]
fn questions_over_the_limit_are_counted_exactly() {
    let server = Postgres::start();
    let gateway = by_name(&server)
        .adding("[dns]\nqueries_per_second = 20\n")
        .start();
    let script = dns(&gateway);
    let words = script.words(["udp", "192.0.2.53", "db.shop.example", "A", "400"]);
    gateway.as_agent(words).succeeds().prints("REFUSED");
    let counted = || {
        let events = gateway.events();
        events
            .named("dns.query")
            .map(|q| q.number("count"))
            .sum::<u64>()
    };
    let second = Duration::from_secs(5);
    eventually("every question is counted", second, || {
        (counted() == 400).then_some(())
    });
    let events = gateway.events();
    let shared = events
        .named("dns.query")
        .filter(|q| q.text("rule") == "dns:rate");
    assert!(shared.count() < 30);
}
