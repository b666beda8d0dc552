//! TLS toward the agents: in the name they dialled, from an authority of this host, and everything else that a
//! client may say before its session.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::harness::gateway::{AGENT, USER, psql_words};
use crate::harness::postgres;
use crate::harness::program::{Ended, eventually, run};
use crate::harness::{Authority, Gateway, Postgres, Script, Setup};

const NAME: &str = "db.shop.example";

/// The one target, by its address and by a name.
fn by_name(server: &Postgres) -> Setup {
    Setup::in_front_of(server)
        .policy("allow-all")
        .adding(&format!(
            r#"
[targets.by-name]
protocol = "postgres"
addresses = ["{NAME}:5432", "db:5432"]
dial = "127.0.0.1:{port}"
tls = {{ mode = "disable" }}
credential = {{ user = "{user}", password_file = "/etc/sluice/credentials/shop" }}
"#,
            port = server.port(),
            user = postgres::USER,
        ))
}

fn named(host: &str, more: &str) -> String {
    format!(
        "host={host} port=5432 user={} dbname={} {more}",
        postgres::USER,
        postgres::DATABASE
    )
}

/// Runs a case of the script in `clients/agent_tls.py` as the agent.
#[track_caller]
fn case(gateway: &Gateway, case: &str, at: (&str, u16), arguments: &[&str]) -> Ended {
    gateway.as_agent(words(gateway, case, at, arguments))
}

fn words(gateway: &Gateway, case: &str, at: (&str, u16), arguments: &[&str]) -> Vec<String> {
    let text = include_str!("clients/agent_tls.py");
    let script = Script::plain(gateway, "agent_tls.py", text);
    let port = at.1.to_string();
    let mut words = vec![case, at.0, &port, postgres::USER, postgres::DATABASE];
    words.extend(arguments);
    script.words(words)
}

#[track_caller]
fn ssl_of(gateway: &Gateway, address: &str) -> String {
    let seen = gateway.as_agent(["psql", "-X", "-d", address, "-c", r"\conninfo"]);
    let text = seen.succeeds().text();
    match text.split_once("protocol: ") {
        Some((_, rest)) => rest.split(',').next().unwrap_or_default().to_owned(),
        None => "none".to_owned(),
    }
}

#[test]
fn every_sslmode_of_psql() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let by_address = gateway.address("127.0.0.1");
    for (mode, expected) in [
        ("disable", "none"),
        ("allow", "none"),
        ("prefer", "TLSv1.3"),
        ("require", "TLSv1.3"),
        ("verify-ca", "TLSv1.3"),
        ("verify-full", "TLSv1.3"),
    ] {
        let mode = format!("sslmode={mode}");
        let seen = ssl_of(&gateway, &format!("{by_address} {mode}"));
        assert_eq!(seen, expected, "by address, {mode}");
        let seen = ssl_of(&gateway, &named(NAME, &mode));
        assert_eq!(seen, expected, "by name, {mode}");
    }
    for session in gateway.wait_for(12, "session.open") {
        let tls = session.text("agent_tls");
        assert!(["", "TLSv1.3"].contains(&tls.as_str()), "{session}");
    }
    let with_tls = |session: &&crate::harness::events::Event| !session.text("agent_tls").is_empty();
    let events = gateway.events();
    assert_eq!(events.named("session.open").filter(with_tls).count(), 8);
}

#[test]
fn a_client_that_verifies_connects_by_the_targets_names_only() {
    let server = Postgres::start();
    let gateway = by_name(&server).hosts("127.0.0.1 localhost\n").start();
    let loopback = |host: &str| {
        format!(
            "host={host} port={} user={} dbname={} sslmode=verify-full",
            server.port(),
            postgres::USER,
            postgres::DATABASE
        )
    };
    // The address is a target's, the name it was found by is not.
    gateway
        .as_agent(psql_words(&loopback("localhost"), ["SELECT 1"]))
        .fails()
        .complains("does not match host name \"localhost\"");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "protocol:tls", "{denied}");
    assert!(denied.text("reason").contains("left"), "{denied}");
    // A client that does not trust the authority says so.
    let foreign = Authority::new().pem();
    let folder = gateway.public_folder("foreign");
    fs::write(folder.join("ca.pem"), foreign).expect("the folder is ours");
    let elsewhere = format!(
        "{} sslrootcert={}",
        loopback("127.0.0.1"),
        folder.join("ca.pem").display()
    );
    gateway
        .as_agent(psql_words(&elsewhere, ["SELECT 1"]))
        .fails()
        .complains("certificate verify failed");
    let denied = gateway.wait_for(2, "deny").pop().expect("two");
    assert_eq!(denied.text("rule"), "protocol:tls", "{denied}");
    assert!(denied.text("hint").contains("ca.pem"), "{denied}");
    // Nothing but the target's own names is ever certified, whatever a client asks for.
    let seen = case(
        &gateway,
        "names",
        (NAME, 5432),
        &["db", "DB.shop.EXAMPLE", "bank.example", "127.0.0.1"],
    );
    let lines = seen.succeeds().lines();
    assert_eq!(lines.len(), 4);
    for (line, names) in lines.iter().zip([
        format!("db → db {NAME} "),
        format!("DB.shop.EXAMPLE → {NAME} "),
        format!("bank.example → {NAME} "),
        format!("127.0.0.1 → {NAME} "),
    ]) {
        assert!(line.starts_with(&names), "{line}");
        assert!(line.ends_with(" 24 h"), "{line}");
        assert!(!line[names.len()..].contains("bank"), "{line}");
    }
}

/// Refusals reach clients that accept nothing without TLS.
#[test]
fn a_refusal_is_said_inside_tls() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    gateway.withdraw_token();
    gateway
        .as_agent(psql_words(&named(NAME, "sslmode=verify-full"), []))
        .fails()
        .complains("has no valid token");
}

#[test]
fn how_a_connection_comes_to_tls() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let seen = case(&gateway, "encryption", (NAME, 5432), &[]).succeeds();
    assert_eq!(
        seen.lines(),
        [
            "requested, no ALPN: None ready",
            "requested, ALPN: postgresql ready",
            "requested, ALPN of several: postgresql ready",
            "requested, another ALPN: tlsv1 alert no application protocol",
            "direct, ALPN: postgresql ready",
            "direct, no ALPN: tlsv1 alert no application protocol",
            "direct, another ALPN: tlsv1 alert no application protocol",
            "TLSv1.2: ready resumed False",
            "TLSv1.3: ready resumed False",
        ],
        "{seen}"
    );
    let denials = gateway.wait_for(3, "deny");
    assert_eq!(denials.len(), 3);
    assert!(
        denials
            .iter()
            .all(|denial| denial.text("rule") == "protocol:tls"),
        "{denials:?}",
        denials = gateway.events().to_string()
    );
    assert!(gateway.events().to_string().contains("TLSv1.2"));
}

#[test]
fn requests_for_encryption_come_once_and_alone() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let seen = case(&gateway, "requests", (NAME, 5432), &[]).succeeds();
    let unsupported = |version: &str| {
        format!("FATAL 0A000 unsupported frontend protocol {version}: server supports 3.0 to 3.2")
    };
    let garbled =
        "FATAL 08P01 the connection does not begin as PostgreSQL's protocol does".to_owned();
    assert_eq!(
        seen.lines(),
        [
            "GSS, SSL, start: N S ready".to_owned(),
            format!("GSS twice: {}", unsupported("1234.5680")),
            format!("SSL inside TLS: {}", unsupported("1234.5679")),
            format!("GSS inside TLS: {}", unsupported("1234.5680")),
            format!("version 2: {}", unsupported("2.0")),
            format!("version 4: {}", unsupported("4.0")),
            format!("bytes behind SSL: {garbled}"),
            format!("bytes behind GSS: {garbled}"),
            "SSL twice: closed".to_owned(),
        ],
        "{seen}"
    );
    let behind = gateway.events();
    let stuffed = behind
        .named("deny")
        .filter(|denial| denial.text("reason").contains("unencrypted data"));
    assert_eq!(stuffed.count(), 2, "{behind}");
}

/// As PostgreSQL 18 negotiates it.
#[test]
fn versions_and_options_are_negotiated() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let seen = case(&gateway, "negotiation", (NAME, 5432), &[]).succeeds();
    assert_eq!(
        seen.lines(),
        [
            "3.0 0: key 4",
            "3.1 0: key 4",
            "3.2 0: key 32",
            "3.3 0: v 3.2 key 32",
            "3.9999 0: v 3.2 key 32",
            "3.0 2: v 3.0 _pq_.one,_pq_.two key 4",
            "3.1 1: v 3.1 _pq_.one key 4",
            "3.2 1: v 3.2 _pq_.one key 32",
            "3.4 1: v 3.2 _pq_.one key 32",
        ],
        "{seen}"
    );
}

#[test]
fn cancel_keys_of_every_length_over_every_transport() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let seen = case(&gateway, "cancel", (NAME, 5432), &[]).succeeds();
    let cancelled = "ERROR 57014 canceling statement due to user request";
    assert_eq!(
        seen.lines(),
        [
            format!("3.0 plain, 4 bytes: {cancelled}"),
            format!("3.2 plain, 32 bytes: {cancelled}"),
            format!("3.2 tls, 32 bytes: {cancelled}"),
            format!("3.2 direct, 32 bytes: {cancelled}"),
        ],
        "{seen}"
    );
    assert_eq!(gateway.events().count("cancel.request"), 4);
}

/// Another agent, with the same identity.
fn clerk() -> String {
    format!(
        "[agents.clerk]\nidentity = \"corp\"\ntoken_file = \"/run/sluice/tokens/{AGENT}.jwt\"\n"
    )
}

#[test]
fn a_stolen_key_cancels_nothing() {
    let server = Postgres::start();
    let gateway = by_name(&server).adding(&clerk()).start();
    let mut owner = gateway
        .agent_command(words(&gateway, "hold", (NAME, 5432), &[]))
        .stdout(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut lines = BufReader::new(owner.stdout.take().expect("stdout is piped")).lines();
    let key = lines.next().expect("a key").expect("it is text");
    assert_eq!(key.len(), 2 * 36, "{key}");
    let mut thief = gateway.sluice_command(["exec", "--agent", "clerk", "--"]);
    thief
        .args(words(&gateway, "steal", (NAME, 5432), &[&key]))
        .current_dir("/");
    run(thief).succeeds();
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "cancel:unknown-key", "{denied}");
    assert_eq!(denied.text("agent"), "clerk", "{denied}");
    let ended = lines.next().expect("an outcome").expect("it is text");
    assert_eq!(ended, "ready", "the statement ran to its end");
    owner.wait().expect("it ends");
    assert_eq!(gateway.events().count("cancel.request"), 0);
}

#[test]
fn cancel_requests_have_a_limit() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    case(&gateway, "flood", (NAME, 5432), &["400"]).succeeds();
    let limited = eventually("a request over the limit", Duration::from_secs(20), || {
        let events = gateway.events();
        let rule = |rule: &str| {
            let mut denials = events.named("deny");
            denials.any(|denial| denial.text("rule") == rule)
        };
        Some((rule("cancel:unknown-key"), rule("cancel:too-many")))
    });
    assert!(limited.0, "{}", gateway.events());
    // On a slow machine 400 requests may take longer than the limit needs to let them through.
    assert!(
        limited.1 || gateway.events().count("deny") == 400,
        "{}",
        gateway.events()
    );
}

const BELIEVED: &str = "what-the-agent-believes-needle";

/// A gateway that plays SCRAM with its agent.
fn with_login(server: &Postgres) -> Gateway {
    let gateway = by_name(server).install();
    gateway.is_secret(BELIEVED);
    gateway.edit("etc/sluice/sluice.toml", |text| {
        text.replace(
            &format!("[agents.{AGENT}]\n"),
            &format!(
                "[agents.{AGENT}]\npostgres_password_file = \"/etc/sluice/credentials/believed\"\n"
            ),
        )
    });
    let file = gateway.path("etc/sluice/credentials/believed");
    fs::write(&file, BELIEVED).expect("the installation is ours");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).expect("the file is ours");
    chown(&file, Some(USER), Some(USER)).expect("root may give files away");
    gateway.sluice(["guard", "load"]).succeeds();
    let mut gateway = gateway;
    gateway.start();
    gateway
}

#[test]
fn psql_with_channel_binding() {
    let server = Postgres::start();
    let gateway = with_login(&server);
    for mode in ["require", "prefer", "disable"] {
        let more = format!("sslmode=verify-full channel_binding={mode} password={BELIEVED}");
        gateway
            .as_agent(psql_words(&named(NAME, &more), ["SELECT 'let in'"]))
            .succeeds()
            .prints("let in");
    }
    let plain = format!("sslmode=disable password={BELIEVED}");
    gateway
        .as_agent(psql_words(&named(NAME, &plain), ["SELECT 'let in'"]))
        .succeeds()
        .prints("let in");
    gateway
        .as_agent(psql_words(&named(NAME, "password=another"), ["SELECT 1"]))
        .fails()
        .complains("password authentication failed for user")
        .complains("postgres_password_file");
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "startup:password", "{denied}");
    assert_eq!(gateway.secrets_found(), [""; 0]);
}

#[test]
fn scram_as_a_server_plays_it() {
    const BOTH: &str = "offered SCRAM-SHA-256-PLUS SCRAM-SHA-256";
    let server = Postgres::start();
    let gateway = with_login(&server);
    let failed = format!(
        "FATAL 28P01 password authentication failed for user \"{}\"",
        postgres::USER
    );
    for (mechanism, flag, password, lines) in [
        ("SCRAM-SHA-256-PLUS", "p", BELIEVED, [BOTH, "ready"]),
        ("SCRAM-SHA-256", "n", BELIEVED, [BOTH, "ready"]),
        ("no-tls", "n", BELIEVED, ["offered SCRAM-SHA-256", "ready"]),
        ("no-tls", "y", BELIEVED, ["offered SCRAM-SHA-256", "ready"]),
        (
            "SCRAM-SHA-256-PLUS",
            "x",
            BELIEVED,
            [BOTH, "FATAL 28000 SCRAM channel binding check failed"],
        ),
        (
            "SCRAM-SHA-256",
            "y",
            BELIEVED,
            [BOTH, "FATAL 28000 SCRAM channel binding check failed"],
        ),
        (
            "SCRAM-SHA-256-PLUS",
            "n",
            BELIEVED,
            [BOTH, "FATAL 08P01 malformed authentication message"],
        ),
        (
            "SCRAM-SHA-1",
            "n",
            BELIEVED,
            [BOTH, "FATAL 08P01 malformed authentication message"],
        ),
        ("SCRAM-SHA-256", "n", "another", [BOTH, failed.as_str()]),
    ] {
        let seen = case(
            &gateway,
            "scram",
            (NAME, 5432),
            &[mechanism, flag, password],
        );
        let seen = seen.succeeds();
        assert_eq!(seen.lines(), lines, "{mechanism} {flag}: {seen}");
    }
}

#[test]
fn a_client_that_leaves_when_it_is_let_in() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let more = "sslmode=require channel_binding=require password=any";
    gateway
        .as_agent(psql_words(&named(NAME, more), ["SELECT 1"]))
        .fails()
        .complains("channel binding");
    let closed = gateway.event("session.close");
    let reason = closed.text("reason");
    assert!(reason.contains("postgres_password_file"), "{closed}");
    case(&gateway, "leave", (NAME, 5432), &[])
        .succeeds()
        .prints("ready");
    let closed = gateway.wait_for(2, "session.close").pop().expect("two");
    let reason = closed.text("reason");
    assert!(reason.contains("postgres_password_file"), "{closed}");
    case(&gateway, "leave-after-tls", (NAME, 5432), &[]).succeeds();
    let denied = gateway.event("deny");
    assert_eq!(denied.text("rule"), "protocol:tls", "{denied}");
    assert!(denied.text("reason").contains("left"), "{denied}");
}

/// A certificate of the client's own proves nothing here, and is in nobody's way.
#[test]
fn client_certificates_are_taken_and_ignored() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let certificate = Authority::new().certificate_for(&["anybody"]);
    let file = gateway.public_folder("client").join("client.pem");
    fs::write(&file, format!("{}{}", certificate.key, certificate.chain)).expect("it is ours");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("it is ours");
    let file = file.to_str().expect("it is text");
    case(&gateway, "certificate", (NAME, 5432), &[file])
        .succeeds()
        .prints("ready");
}

#[test]
fn the_authority_is_made_once_and_its_key_is_closed() {
    let server = Postgres::start();
    let mut gateway = by_name(&server).start();
    let file = |name: &str| gateway.path(&format!("var/lib/sluice/tls/{name}"));
    let (key, certificate, bundle) = (file("ca.key"), file("ca.pem"), file("bundle.pem"));
    for (path, mode) in [
        (file(""), 0o755),
        (key.clone(), 0o600),
        (certificate.clone(), 0o644),
        (bundle.clone(), 0o644),
    ] {
        let metadata = fs::metadata(&path).expect("it is there");
        assert_eq!(metadata.mode() & 0o7777, mode, "{}", path.display());
        assert_eq!(metadata.uid(), USER, "{}", path.display());
    }
    let pem = fs::read_to_string(&certificate).expect("it is text");
    let openssl = |words: &[&str]| {
        let mut command = std::process::Command::new("openssl");
        command.args(words).arg("-in").arg(&certificate);
        run(command).succeeds().text()
    };
    let text = openssl(&["x509", "-noout", "-text"]);
    for expected in [
        "CA:TRUE, pathlen:0",
        "Certificate Sign",
        "Sluice local authority of",
        "prime256v1",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    let bundled = fs::read_to_string(&bundle).expect("it is text");
    let count = bundled.matches("BEGIN CERTIFICATE").count();
    assert!(count > 1, "the system's are there, too");
    let body = pem.lines().nth(1).expect("base64");
    assert!(bundled.contains(body));
    let secret = fs::read_to_string(&key).expect("root reads it");
    let line = secret.lines().nth(1).expect("base64").to_owned();
    gateway.is_secret(&line);
    // An agent cannot read the key, and every start and hand-over uses the same.
    let key_path = key.display().to_string();
    gateway
        .as_agent(["cat", &key_path])
        .fails()
        .complains("Permission denied");
    gateway.hand_over();
    gateway
        .as_agent(psql_words(
            &named(NAME, "sslmode=verify-full"),
            ["SELECT 1"],
        ))
        .succeeds();
    gateway.stop();
    fs::write(&bundle, "nonsense").expect("root writes");
    gateway.start();
    assert_eq!(fs::read_to_string(&certificate).expect("it is text"), pem);
    assert_eq!(fs::read_to_string(&bundle).expect("it is text"), bundled);
    gateway
        .as_agent(psql_words(
            &named(NAME, "sslmode=verify-full"),
            ["SELECT 1"],
        ))
        .succeeds();
}

#[test]
fn an_authority_that_is_not_safe_stops_the_start() {
    let server = Postgres::start();
    let mut gateway = by_name(&server).start();
    gateway.stop();
    let key = gateway.path("var/lib/sluice/tls/ca.key");
    let certificate = gateway.path("var/lib/sluice/tls/ca.pem");
    let start = || run(gateway.sluice_command(["run"])).fails();
    let mode = |path: &Path, mode| {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("root may");
    };
    mode(&key, 0o640);
    start().complains("chmod 600");
    mode(&key, 0o600);
    mode(key.parent().expect("a folder"), 0o777);
    start().complains("chmod 755");
    mode(key.parent().expect("a folder"), 0o755);
    let pem = fs::read(&certificate).expect("it is there");
    fs::write(&certificate, Authority::new().pem()).expect("root writes");
    start().complains("belongs to another key");
    fs::remove_file(&certificate).expect("root may");
    start().complains("to make a new authority, remove ca.key");
    fs::write(&certificate, &pem).expect("root writes");
    let secret = fs::read(&key).expect("root reads");
    fs::write(&key, "nonsense").expect("root writes");
    start().complains("is not an ECDSA P-256 key");
    // Without the key a new authority is made.
    fs::remove_file(&key).expect("root may");
    let _ = secret;
    gateway.start();
    assert_ne!(fs::read(&certificate).expect("it is there"), pem);
    gateway
        .as_agent(psql_words(
            &named(NAME, "sslmode=verify-full"),
            ["SELECT 1"],
        ))
        .succeeds();
}

#[test]
fn agents_find_the_authority_in_their_environment() {
    let server = Postgres::start();
    let gateway = by_name(&server).start();
    let folder = gateway.path("var/lib/sluice/tls");
    let (authority, bundle) = (folder.join("ca.pem"), folder.join("bundle.pem"));
    let variables = [
        ("PGSSLROOTCERT", &authority),
        ("NODE_EXTRA_CA_CERTS", &authority),
        ("SSL_CERT_FILE", &bundle),
        ("REQUESTS_CA_BUNDLE", &bundle),
        ("CURL_CA_BUNDLE", &bundle),
        ("GIT_SSL_CAINFO", &bundle),
    ];
    let mut command = gateway.agent_command(["env"]);
    command.env("SSL_CERT_DIR", "/elsewhere");
    let seen = run(command).succeeds().lines();
    for (name, file) in variables {
        let line = format!("{name}={}", file.display());
        assert!(seen.contains(&line), "{line}: {seen:?}");
        gateway
            .as_agent(["cat", file.to_str().expect("it is text")])
            .succeeds();
    }
    assert!(!seen.iter().any(|line| line.starts_with("SSL_CERT_DIR=")));
    let mut own = gateway.sluice_command([
        "exec",
        "--agent",
        AGENT,
        "--env",
        "SSL_CERT_FILE=/own",
        "--",
        "env",
    ]);
    own.current_dir("/");
    let seen = run(own).succeeds().lines();
    assert!(seen.contains(&"SSL_CERT_FILE=/own".to_owned()), "{seen:?}");
    // This installation lies below /tmp, which an isolated agent has of its own.
    let mut isolated = gateway.sluice_command(["exec", "--agent", AGENT, "--isolate", "--"]);
    isolated
        .args(psql_words(
            &named(NAME, "sslmode=verify-full"),
            ["SELECT 'isolated'"],
        ))
        .current_dir("/");
    run(isolated).succeeds().prints("isolated");
}
