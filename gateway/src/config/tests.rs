use std::path::{Path, PathBuf};
use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::policy::masking::Transform;

const EXAMPLE: &str = include_str!("../../../docs/sluice.example.toml");

/// A small file that is right, to break in one place at a time.
const GOOD: &str = r#"[identity.corp]
issuer = "https://issuer.example"
audience = "sluice"
jwks = "/etc/sluice/jwks.json"

[agents.bot]
identity = "corp"
token_file = "/run/bot.jwt"

[targets.shop]
protocol = "postgres"
addresses = ["127.0.0.1:5432"]
credential = { user = "app", password_file = "/etc/pw" }
"#;

fn read(text: &str) -> Result<Config, ConfigErrors> {
    parse(text, Path::new("sluice.toml"))
}

/// The errors of a file, one per line.
fn errors(text: &str) -> String {
    match read(text) {
        Ok(_) => "ok".to_owned(),
        Err(errors) => errors.to_string(),
    }
}

#[test]
fn the_example_is_valid_and_means_what_it_says() {
    let config = read(EXAMPLE).unwrap();
    let agent = &config.agents["report-bot"];
    assert_eq!(agent.cgroup, "agents.slice/report-bot");
    assert_eq!(agent.subject.as_deref(), Some("report-bot@corp"));
    assert_eq!(agent.run_as, "nobody");
    assert_eq!(agent.issuer, config.identities["corp"]);
    assert_eq!(agent.issuer.leeway, Duration::from_secs(30));
    let target = &config.targets["shop"];
    let addresses: Vec<String> = target.addresses.iter().map(Address::to_string).collect();
    assert_eq!(
        addresses,
        ["10.0.0.7:5432", "[fd00::7]:5432", "db.internal:5432"]
    );
    assert_eq!(target.masks[0].transform, Transform::KeepLast(4));
    assert_eq!(target.masks[1].column, "email");
}

/// The commented keys of the example claim to be the defaults, but for those that have none.
#[test]
fn the_examples_commented_keys_are_the_defaults() {
    let uncommented: String = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') && !key.is_empty() => format!("{key}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    assert_ne!(uncommented, EXAMPLE);
    let mut spelled_out = read(&uncommented).unwrap();
    let defaults = read(EXAMPLE).unwrap();
    // The keys that have no fixed default.
    let kernel = &mut spelled_out.kernel;
    assert_eq!(kernel.local_address.take(), "192.0.2.2".parse().ok());
    assert_eq!(
        kernel.local_address6.take(),
        "fd53:6c75:6963:6500::2".parse().ok()
    );
    let shop = spelled_out
        .targets
        .get_mut("shop")
        .map(Arc::make_mut)
        .unwrap();
    assert_eq!(shop.dial.take(), Some("10.0.0.7:5432".parse().unwrap()));
    let shop = spelled_out
        .targets
        .get_mut("shop")
        .map(Arc::make_mut)
        .unwrap();
    assert_eq!(shop.idle_timeout.take(), Some(Duration::from_secs(3600)));
    assert_eq!(shop.max_connections.take(), Some(50));
    assert!(shop.credential.require_auth.take().is_some());
    let bot = spelled_out
        .agents
        .get_mut("report-bot")
        .map(Arc::make_mut)
        .unwrap();
    assert!(bot.targets.take().unwrap().contains("shop"));
    spelled_out.sha256.clone_from(&defaults.sha256);
    assert_eq!(format!("{spelled_out:?}"), format!("{defaults:?}"));
}

#[test]
fn an_empty_file_is_all_defaults() {
    let config = read("").unwrap();
    assert_eq!(config.gateway.listen_port, 15001);
    assert_eq!(config.gateway.max_sessions, 1000);
    assert_eq!(config.storage.log, Path::new("/var/lib/sluice/log"));
    assert_eq!(config.policies, Path::new("/etc/sluice/policies"));
    assert_eq!(config.kernel.pins, Path::new("/sys/fs/bpf/sluice"));
    assert_eq!(
        config.sha256,
        "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    );
}

#[test]
fn a_root_moves_every_path_but_the_pins() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("sluice.toml");
    std::fs::write(&file, EXAMPLE).unwrap();
    let config = load(&file, Some(root.path())).unwrap();
    let below = |path: &str| root.path().join(path);
    assert_eq!(config.storage.log, below("var/lib/sluice/log"));
    assert_eq!(
        config.storage.recordings,
        below("var/lib/sluice/recordings")
    );
    assert_eq!(config.policies, below("etc/sluice/policies"));
    assert_eq!(config.kernel.pins, Path::new("/sys/fs/bpf/sluice"));
    let agent = &config.agents["report-bot"];
    assert_eq!(agent.token_file, below("run/sluice/tokens/report-bot.jwt"));
    assert_eq!(
        agent.issuer.jwks,
        JwksSource::File(below("etc/sluice/jwks.json"))
    );
    let shop = &config.targets["shop"];
    assert_eq!(
        shop.credential.password_file,
        Some(below("etc/sluice/credentials/shop"))
    );
    assert_eq!(
        shop.tls,
        TargetTls {
            mode: TlsMode::VerifyFull,
            ca_file: Some(below("etc/sluice/shop-ca.pem")),
            server_name: Some("db.internal".to_owned()),
            client: None,
        }
    );
}

#[test]
fn a_missing_file_is_an_error_without_a_line() {
    let errors = load(Path::new("/nowhere/sluice.toml"), None).unwrap_err();
    let text = errors.to_string();
    assert!(
        text.starts_with("/nowhere/sluice.toml: cannot be read: No such file"),
        "{text}"
    );
}

#[test]
fn errors_serialise_for_json_output() {
    let error = ConfigError {
        file: PathBuf::from("sluice.toml"),
        line: 3,
        message: "m".to_owned(),
        hint: None,
    };
    assert_eq!(
        serde_json::to_string(&error).unwrap(),
        r#"{"file":"sluice.toml","line":3,"message":"m","hint":null}"#
    );
}

/// One change to [`GOOD`], and every message that must come of it.
#[test]
fn broken_files() {
    assert_eq!(errors(GOOD), "ok");
    for (name, find, replace, expected) in BROKEN {
        let text = match find.is_empty() {
            true => format!("{GOOD}{replace}"),
            false => {
                assert!(GOOD.contains(find), "{name}: nothing to replace");
                GOOD.replacen(find, replace, 1)
            }
        };
        assert_eq!(errors(&text), expected.trim_matches('\n'), "{name}");
    }
}

/// name, what to replace in GOOD (empty: append), by what, the report
const BROKEN: &[(&str, &str, &str, &str)] = &[
    (
        "unknown section",
        "",
        "[target.x]\n",
        r#"
sluice.toml:14: unknown key target (hint: did you mean targets?)"#,
    ),
    (
        "unknown key",
        "audience =",
        "audiance =",
        r#"
sluice.toml:1: [identity.corp] lacks the key audience
sluice.toml:3: unknown key identity.corp.audiance (hint: did you mean audience?)"#,
    ),
    (
        "a guard that is not above the agents, and devices that are none",
        "",
        "[kernel]\nguard_cgroup = \"other\"\ndevices = [\"c 195:*\", \"c 195\"]\n",
        r#"
sluice.toml:15: kernel.guard_cgroup "other" is not above the agents' cgroup "agents.slice" (hint: sockets that come from outside are only seen from above; "/" is the whole host)
sluice.toml:16: kernel.devices has the value "c 195": write it as "c MAJOR:MINOR" or "b MAJOR:MINOR", with * for every minor"#,
    ),
    (
        "names of targets and users that clash",
        "[agents.bot]",
        "[agents.bot]\nrun_as = \"sluice\"\ntargets = [\"shop\", \"shap\"]",
        r#"
sluice.toml:7: agents.bot.run_as "sluice" is the gateway's own user (hint: an agent with the gateway's user id could stop it; give each a user of its own)
sluice.toml:8: agents.bot.targets names the target "shap", which does not exist (hint: did you mean shop?)"#,
    ),
    (
        "dns",
        "",
        "[dns]\nmode = \"fake\"\nmax_label = 64\n",
        r#"
sluice.toml:15: dns.mode must be "synthetic" or "pass", not "fake" (hint: known are synthetic, pass)
sluice.toml:16: dns.max_label must be a whole number from 1 to 63, not 64"#,
    ),
    (
        "unknown key that is like nothing",
        "",
        "[gateway]\ncolour = 1\n",
        r#"
sluice.toml:15: unknown key gateway.colour (hint: known are listen_port, max_sessions, user)"#,
    ),
    (
        "unknown key in an inline table",
        "user =",
        "usr =",
        r#"
sluice.toml:13: [targets.shop.credential] lacks the key user
sluice.toml:13: unknown key targets.shop.credential.usr (hint: did you mean user?)"#,
    ),
    (
        "port of the wrong type",
        "",
        "[gateway]\nlisten_port = \"15001\"\n",
        r#"
sluice.toml:15: gateway.listen_port must be a whole number from 1 to 65535, not a string"#,
    ),
    (
        "port too large",
        "",
        "[gateway]\nlisten_port = 65536\n",
        r#"
sluice.toml:15: gateway.listen_port must be a whole number from 1 to 65535, not 65536"#,
    ),
    (
        "port too large for any integer",
        "",
        "[gateway]\nlisten_port = 99999999999999999999\n",
        r#"
sluice.toml:15: gateway.listen_port must be a whole number from 1 to 65535, not 99999999999999999999"#,
    ),
    (
        "no sessions",
        "",
        "[gateway]\nmax_sessions = 0\n",
        r#"
sluice.toml:15: gateway.max_sessions must be a whole number from 1 to 1000000, not 0"#,
    ),
    (
        "section that is a value",
        "[identity.corp]",
        "gateway = 3\n[identity.corp]",
        r#"
sluice.toml:1: gateway must be a table, not a number"#,
    ),
    (
        "identity that is a value",
        "[identity.corp]",
        "[identity]\nx = 1\n[identity.corp]",
        r#"
sluice.toml:2: identity.x must be a table, not a number"#,
    ),
    (
        "unknown section that is like nothing",
        "",
        "[x]\n",
        r#"
sluice.toml:14: unknown key x (hint: known are gateway, storage, policies, kernel, broker, dns, tls, identity, targets, agents)"#,
    ),
    (
        "relative path",
        "\"/run/bot.jwt\"",
        "\"bot.jwt\"",
        r#"
sluice.toml:8: agents.bot.token_file must be an absolute path, not "bot.jwt" (hint: the gateway has no working directory to start from; begin with /)"#,
    ),
    (
        "log and recordings in one",
        "",
        "[storage]\nlog = \"/a\"\nrecordings = \"/a\"\n",
        r#"
sluice.toml:16: storage.recordings must not be the directory of the log"#,
    ),
    (
        "gateway within the agents' cgroup",
        "",
        "[kernel]\ngateway_cgroup = \"agents.slice/sluice\"\n",
        r#"
sluice.toml:15: kernel.gateway_cgroup "agents.slice/sluice" and the agents' cgroup "agents.slice" contain each other (hint: the gateway's own connections would be redirected to itself; keep the two apart)"#,
    ),
    (
        "cgroup that climbs",
        "",
        "[kernel]\nagents_cgroup = \"../x\"\n",
        r#"
sluice.toml:15: kernel.agents_cgroup has the value "../x": every part between slashes must be a cgroup's name"#,
    ),
    (
        "absolute cgroup",
        "token_file",
        "cgroup = \"/bot\"\ntoken_file",
        r#"
sluice.toml:8: agents.bot.cgroup has the value "/bot": a cgroup is written relative to the one above it, without a leading /"#,
    ),
    (
        "bad name",
        "[agents.bot]",
        "[agents.Report_Bot]",
        r#"
sluice.toml:6: agents.Report_Bot is not a name: 1 to 63 of the characters a-z, 0-9 and - (hint: for example "report-bot")"#,
    ),
    (
        "missing keys of an agent",
        "token_file = \"/run/bot.jwt\"\n",
        "",
        r#"
sluice.toml:6: [agents.bot] lacks the key token_file"#,
    ),
    (
        "unknown identity",
        "identity = \"corp\"",
        "identity = \"crop\"",
        r#"
sluice.toml:7: agents.bot.identity names the identity "crop", which does not exist (hint: did you mean corp?)"#,
    ),
    (
        "identity that is itself broken",
        "\"https://issuer.example\"",
        "7",
        r#"
sluice.toml:2: identity.corp.issuer must be a string, not a number"#,
    ),
    (
        "two agents, one cgroup",
        "",
        "[agents.second]\nidentity = \"corp\"\ntoken_file = \"/t\"\ncgroup = \"bot\"\n",
        r#"
sluice.toml:17: agents.second.cgroup "bot" is already the cgroup of agent "bot" (hint: a process is known by its cgroup; give each agent its own, nested ones are fine)"#,
    ),
    (
        "user that is an option",
        "token_file",
        "run_as = \"-x\"\ntoken_file",
        r#"
sluice.toml:8: agents.bot.run_as must be a user's name, not "-x""#,
    ),
    (
        "jwks over http",
        "\"/etc/sluice/jwks.json\"",
        "\"http://issuer.example/jwks\"",
        r#"
sluice.toml:4: identity.corp.jwks must use https://: whoever sits on the way could supply their own keys (hint: http:// is accepted for loopback addresses only)"#,
    ),
    (
        "jwks that looks like loopback",
        "\"/etc/sluice/jwks.json\"",
        "\"http://localhost.example/\"",
        r#"
sluice.toml:4: identity.corp.jwks must use https://: whoever sits on the way could supply their own keys (hint: http:// is accepted for loopback addresses only)"#,
    ),
    (
        "jwks that hides its host behind a user",
        "\"/etc/sluice/jwks.json\"",
        "\"http://127.0.0.1@evil.example/\"",
        r#"
sluice.toml:4: identity.corp.jwks must not carry a user or password (hint: a JWKS is public; if yours is not, fetch it into a file)"#,
    ),
    (
        "jwks as a relative path",
        "\"/etc/sluice/jwks.json\"",
        "\"jwks.json\"",
        r#"
sluice.toml:4: identity.corp.jwks must be an absolute path or an https:// URL, not "jwks.json""#,
    ),
    (
        "symmetric algorithm",
        "audience",
        "algorithms = [\"RS256\", \"HS256\"]\naudience",
        r#"
sluice.toml:3: identity.corp.algorithms must be "RS256" or "ES256" or "EdDSA", not "HS256" (hint: did you mean RS256?)"#,
    ),
    (
        "no algorithm",
        "audience",
        "algorithms = []\naudience",
        r#"
sluice.toml:3: identity.corp.algorithms is empty, so no token could be accepted (hint: leave the key out to accept RS256, ES256 and EdDSA)"#,
    ),
    (
        "leeway of an hour",
        "audience",
        "leeway_seconds = 3600\naudience",
        r#"
sluice.toml:3: identity.corp.leeway_seconds must be a whole number from 0 to 300, not 3600"#,
    ),
    (
        "unknown protocol",
        "\"postgres\"",
        "\"postgresql\"",
        r#"
sluice.toml:11: targets.shop.protocol must be "postgres", not "postgresql" (hint: did you mean postgres?)"#,
    ),
    (
        "addresses, all bad ones at once",
        "[\"127.0.0.1:5432\"]",
        "[\"db\",\n  5432, \"db:0\"]",
        r#"
sluice.toml:12: targets.shop.addresses has the value "db": write it as host:port, an IPv6 address in brackets ([::1]:5432)
sluice.toml:13: targets.shop.addresses must be a string, not a number
sluice.toml:13: targets.shop.addresses has the value "db:0": the port must be a number from 1 to 65535"#,
    ),
    (
        "no address",
        "[\"127.0.0.1:5432\"]",
        "[]",
        r#"
sluice.toml:12: targets.shop.addresses is empty, so no agent could reach this target"#,
    ),
    (
        "address that is no list",
        "[\"127.0.0.1:5432\"]",
        "\"127.0.0.1:5432\"",
        r#"
sluice.toml:12: targets.shop.addresses must be a list, not a string"#,
    ),
    (
        "the gateway's own address",
        "127.0.0.1:5432",
        "127.0.0.1:15001",
        r#"
sluice.toml:12: targets.shop.addresses contains 127.0.0.1:15001, where the gateway itself listens (hint: change gateway.listen_port, or write the target's own address)"#,
    ),
    (
        "one address twice",
        "[\"127.0.0.1:5432\"]",
        "[\"127.0.0.1:5432\", \"[::ffff:127.0.0.1]:5432\"]",
        r#"
sluice.toml:12: targets.shop.addresses contains 127.0.0.1:5432 twice (first in line 12)"#,
    ),
    (
        "one address in two targets",
        "",
        "[targets.z]\nprotocol = \"postgres\"\naddresses = [\"127.0.0.1:5432\"]\ncredential = { user = \"u\", password_file = \"/p\" }\n",
        r#"
sluice.toml:16: targets.z.addresses contains 127.0.0.1:5432, which already belongs to target "shop" (line 12) (hint: an address leads to one target; use separate ports or host names)"#,
    ),
    (
        "no credential",
        "credential = { user = \"app\", password_file = \"/etc/pw\" }\n",
        "",
        r#"
sluice.toml:10: [targets.shop] lacks the key credential"#,
    ),
    (
        "tls keys without tls",
        "protocol",
        "tls = { mode = \"disable\", server_name = \"db\" }\nprotocol",
        r#"
sluice.toml:11: targets.shop.tls.server_name has no effect with mode = "disable" (hint: use mode = "verify-full", or remove the key)"#,
    ),
    (
        "a tls mode of libpq that is none here",
        "protocol",
        "tls = { mode = \"allow\" }\nprotocol",
        r#"
sluice.toml:11: targets.shop.tls.mode must be "verify-full" or "verify-ca" or "require" or "prefer" or "disable", not "allow" (hint: known are verify-full, verify-ca, require, prefer, disable)"#,
    ),
    (
        "roots that nothing is verified with",
        "protocol",
        "tls = { mode = \"require\", ca_file = \"/ca.pem\" }\nprotocol",
        r#"
sluice.toml:11: targets.shop.tls.ca_file has no effect with mode = "require" (hint: use mode = "verify-full" or "verify-ca", or remove the key)"#,
    ),
    (
        "a client certificate without its key",
        "protocol",
        "tls = { client_certificate = \"/c.pem\" }\nprotocol",
        r#"
sluice.toml:11: targets.shop.tls.client_certificate is of no use without client_key (hint: add client_key, or remove client_certificate)"#,
    ),
    (
        "login methods that are none",
        "password_file = \"/etc/pw\"",
        "password_file = \"/etc/pw\", require_auth = [\"scram-sha-256\", \"gss\"]",
        r#"
sluice.toml:13: targets.shop.credential.require_auth must be "scram-sha-256" or "md5" or "password" or "none", not "gss" (hint: known are scram-sha-256, md5, password, none)"#,
    ),
    (
        "no login method",
        "password_file = \"/etc/pw\"",
        "password_file = \"/etc/pw\", require_auth = []",
        r#"
sluice.toml:13: targets.shop.credential.require_auth is empty, so no login could succeed (hint: remove it, or write ["scram-sha-256"])"#,
    ),
    (
        "login methods without a password",
        "password_file = \"/etc/pw\"",
        "require_auth = [\"md5\"]",
        r#"
sluice.toml:13: targets.shop.credential.require_auth names methods that need password_file, which is absent (hint: add password_file, or write ["none"])"#,
    ),
    (
        "binding to TLS that there is not",
        "credential = {",
        "tls = { mode = \"disable\" }\ncredential = { channel_binding = \"require\",",
        r#"
sluice.toml:14: targets.shop.credential.channel_binding cannot be "require" with tls.mode = "disable" (hint: only SCRAM over TLS can be bound to it)"#,
    ),
    (
        "another credential, with a mistake",
        "",
        "[targets.shop.credentials.reader]\npassword_file = \"/etc/reader\"\n",
        r#"
sluice.toml:14: [targets.shop.credentials.reader] lacks the key user"#,
    ),
    (
        "limits out of range",
        "protocol",
        "connect_timeout_seconds = 0\nidle_timeout_seconds = 0\nkeepalive_seconds = 0\nmax_connections = 0\nprotocol",
        r#"
sluice.toml:11: targets.shop.connect_timeout_seconds must be a whole number from 1 to 600, not 0
sluice.toml:12: targets.shop.idle_timeout_seconds must be a whole number from 1 to 31536000, not 0
sluice.toml:13: targets.shop.keepalive_seconds must be a whole number from 1 to 7200, not 0
sluice.toml:14: targets.shop.max_connections must be a whole number from 1 to 1000000, not 0"#,
    ),
    (
        "replication where something is masked",
        "",
        "replication = true\n[[targets.shop.mask]]\ncolumn = \"a.b.c\"\nwith = \"redact\"\n",
        r#"
sluice.toml:14: targets.shop.replication cannot be true for a target with masks (hint: replication is relayed unread, so nothing in it could be masked; make a second target without masks)"#,
    ),
    (
        "tls server name",
        "protocol",
        "tls = { server_name = \"a b\" }\nprotocol",
        r#"
sluice.toml:11: targets.shop.tls.server_name must be a host name or an IP address, not "a b""#,
    ),
    (
        "one column masked twice",
        "",
        "[[targets.shop.mask]]\ncolumn = \"a.b.c\"\nwith = \"redact\"\n[[targets.shop.mask]]\ncolumn = \"a.b.c\"\nwith = \"keep_last(4)\"\n",
        r#"
sluice.toml:18: targets.shop.mask.column is masked twice (hint: keep one of the two rules)"#,
    ),
    (
        "mask that lacks a key",
        "",
        "[[targets.shop.mask]]\ncolumn = \"a.b.c\"\n",
        r#"
sluice.toml:14: [targets.shop.mask] lacks the key with"#,
    ),
    (
        "value that is empty",
        "\"sluice\"",
        "\" \"",
        r#"
sluice.toml:3: identity.corp.audience must not be empty"#,
    ),
    (
        "value with a line break",
        "\"sluice\"",
        "\"slu\\nice\"",
        r#"
sluice.toml:3: identity.corp.audience must not contain control characters"#,
    ),
];

#[test]
fn mask_errors_stand_at_their_line() {
    let text =
        format!("{GOOD}[[targets.shop.mask]]\ncolumn = \"card\"\nwith = \"keep_first(4)\"\n");
    let ConfigErrors(errors) = read(&text).unwrap_err();
    let starts = [
        (15, "targets.shop.mask.column cannot be used: "),
        (16, "targets.shop.mask.with cannot be used: "),
    ];
    assert_eq!(errors.len(), starts.len(), "{errors:?}");
    for (error, (line, start)) in errors.iter().zip(starts) {
        assert_eq!(error.line, line, "{error}");
        assert!(error.message.starts_with(start), "{error}");
    }
}

#[test]
fn syntax_errors_come_all_and_alone() {
    let text = "[gateway\nlisten_port = = 3\n[storage]\nlog = \"/a\"\nlog = \"/b\"\nnope = 1\n";
    let ConfigErrors(errors) = read(text).unwrap_err();
    assert!(errors.len() >= 2, "{errors:?}");
    for error in &errors {
        assert!(error.message.starts_with("not valid TOML: "), "{error}");
    }
    let lines: Vec<usize> = errors.iter().map(|error| error.line).collect();
    assert!(lines.is_sorted(), "{lines:?}");
    assert_eq!((lines[0], lines[lines.len() - 1]), (1, 5));
}

#[test]
fn deep_nesting_is_refused_without_harm() {
    for open in ["[", "{a=", "[{a="] {
        let text = format!("x = {}", open.repeat(100_000));
        assert!(read(&text).is_err());
    }
    assert!(read(&format!("[{}a]", "a.".repeat(50_000))).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..Default::default() })]

    #[test]
    fn parse_never_panics(text in "\\PC*") {
        let _ = read(&text);
    }

    /// Damage to a real file gets deeper than noise does.
    #[test]
    fn parse_never_panics_on_a_damaged_file(
        cut in 0..EXAMPLE.len(),
        length in 0..40usize,
        patch in "[\\[\\]{}=\".,#a-z0-9\n ]{0,12}",
    ) {
        let mut bytes = EXAMPLE.as_bytes().to_vec();
        let end = (cut + length).min(bytes.len());
        bytes.splice(cut..end, patch.bytes());
        if let Ok(text) = String::from_utf8(bytes) && let Err(errors) = read(&text) {
            prop_assert!(!errors.0.is_empty());
            prop_assert!(errors.0.iter().all(|error| error.line > 0));
        }
    }
}
