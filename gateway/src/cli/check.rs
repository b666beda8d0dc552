//! `sluice check`: everything that is wrong with the configuration, the policies and the files they name, in
//! one run, so that it can stand before every deployment.
//!
//! Errors are what would stop the gateway or let somebody in; warnings are what would only turn away an
//! agent for now (a token that has not been delivered yet), or is unusual. Only errors fail the command.

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::SystemTime;

use nix::unistd::{Gid, Uid, User, geteuid, setfsgid, setfsuid};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::Serialize;

use super::Globals;
use crate::config::{
    self, Agent, Config, ConfigError, CredentialSource, Issuer, JwksSource, Target, TargetTls,
    TlsMode,
};
use crate::credentials::{self, CredentialError, Held, SecretFileError};
use crate::identity::token::{self, Keyring, TokenError};
use crate::intercept::dns;
use crate::policy::{PolicyError, PolicySet};
use crate::privileges::{self, Identity};
use crate::store;

#[derive(clap::Args, Debug)]
pub struct Args {}

pub fn run(_args: Args, globals: &Globals) -> anyhow::Result<ExitCode> {
    let outcome = check(&globals.config_path(), globals.root(), SystemTime::now());
    let printed = match globals.json {
        true => print_json(&outcome, io::stdout().lock()),
        false => print_text(&outcome, io::stdout().lock()),
    };
    match printed {
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => (),
        printed => printed?,
    }
    Ok(match outcome.count(Severity::Error) {
        0 => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Severity {
    Error,
    Warning,
}

#[derive(Debug, Serialize)]
struct Finding {
    severity: Severity,
    file: PathBuf,
    /// 0 if it is not about a certain line.
    line: usize,
    message: String,
    hint: Option<String>,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "",
            Severity::Warning => "warning: ",
        };
        let error = ConfigError {
            file: self.file.clone(),
            line: self.line,
            message: format!("{severity}{}", self.message),
            hint: self.hint.clone(),
        };
        error.fmt(f)
    }
}

/// What was found, and, if the configuration can be used, what it amounts to.
#[derive(Debug, Default)]
struct Outcome {
    findings: Vec<Finding>,
    summary: String,
}

impl Outcome {
    fn count(&self, severity: Severity) -> usize {
        let same = |finding: &&Finding| finding.severity == severity;
        self.findings.iter().filter(same).count()
    }
}

fn print_json(outcome: &Outcome, mut out: impl Write) -> io::Result<()> {
    let json = serde_json::to_string_pretty(&outcome.findings)?;
    writeln!(out, "{json}")
}

fn print_text(outcome: &Outcome, mut out: impl Write) -> io::Result<()> {
    for finding in &outcome.findings {
        writeln!(out, "{finding}")?;
    }
    let errors = outcome.count(Severity::Error);
    let warnings = match outcome.count(Severity::Warning) {
        0 => String::new(),
        count => format!(", {}", counted(count, "warning")),
    };
    match errors {
        0 => writeln!(out, "check: ok{warnings} ({})", outcome.summary),
        _ => writeln!(out, "check: {}{warnings}", counted(errors, "error")),
    }
}

fn counted(count: usize, noun: &str) -> String {
    match (count, noun.strip_suffix('y')) {
        (1, _) => format!("1 {noun}"),
        (_, Some(stem)) => format!("{count} {stem}ies"),
        (_, None) => format!("{count} {noun}s"),
    }
}

/// A file that the gateway may not read is one that it does not own: it must be nobody else's either.
fn credential_hint(error: &CredentialError, user: &str) -> String {
    const WITHOUT: &str = "the gateway cannot log in at this target";
    match error {
        CredentialError::File {
            file,
            problem: SecretFileError::Unreadable(cause),
            ..
        } if cause.kind() == io::ErrorKind::PermissionDenied => {
            let file = file.display();
            format!("{WITHOUT}; chown {user} {file}, with mode 0600")
        }
        _ => WITHOUT.to_owned(),
    }
}

/// How many errors there are, and the first of them in words: what `sluice doctor` says of them.
pub(super) fn errors(globals: &Globals) -> (usize, Option<String>) {
    let outcome = check(&globals.config_path(), globals.root(), SystemTime::now());
    let is_error = |finding: &&Finding| finding.severity == Severity::Error;
    let first = outcome.findings.iter().find(is_error);
    (
        outcome.count(Severity::Error),
        first.map(Finding::to_string),
    )
}

/// Reads everything that `sluice run` would read, and as the user that it would be.
fn check(file: &Path, root: Option<&Path>, now: SystemTime) -> Outcome {
    let mut outcome = Outcome::default();
    match config::load(file, root) {
        Ok(config) => {
            let reader = gateway_user(file, &config, &mut outcome.findings);
            outcome.findings.extend(unusable_names(file, &config));
            let (findings, policies) = with_rights_of(reader, || {
                let mut findings = Vec::new();
                let policies = reported(store::policies::load_for(&config), &mut findings);
                Host::new(file, now, &mut findings).check(&config);
                (findings, policies)
            });
            outcome.findings.extend(findings);
            outcome.summary = summary(&config, policies.as_deref());
        }
        Err(errors) => {
            outcome
                .findings
                .extend(errors.0.into_iter().map(Finding::from));
            // Where the policies are is not known then; their usual place is worth a look all the same.
            let usual = root.unwrap_or(Path::new("/")).join("etc/sluice/policies");
            if usual.is_dir() {
                reported(store::policies::load(&usual), &mut outcome.findings);
            }
        }
    }
    outcome
}

/// The user that `sluice run` would be; none when it could not start.
fn gateway_user(file: &Path, config: &Config, findings: &mut Vec<Finding>) -> Option<Identity> {
    let wrong = |message: String, hint: &str| Finding {
        severity: Severity::Error,
        file: file.to_owned(),
        line: 0,
        message: format!("gateway.user: {message}"),
        hint: Some(hint.to_owned()),
    };
    let identity = match privileges::lookup(&config.gateway.user) {
        Ok(identity) => identity,
        Err(error) => {
            findings.push(wrong(error.to_string(), "the gateway cannot start"));
            return None;
        }
    };
    for folder in [&config.storage.log, &config.storage.recordings] {
        if belongs_to_another(folder, identity) {
            findings.push(wrong(
                format!("{} belongs to another user", folder.display()),
                &format!("chown -R {} {}", config.gateway.user, folder.display()),
            ));
        }
    }
    Some(identity)
}

/// What the gateway's resolver would object to at its start.
fn unusable_names(file: &Path, config: &Config) -> Option<Finding> {
    let error = dns::check(config).err()?;
    Some(Finding {
        severity: Severity::Error,
        file: file.to_owned(),
        line: 0,
        message: error.to_string(),
        hint: None,
    })
}

/// Root's empty folder is none: `sluice run` gives it away when root starts it.
fn belongs_to_another(folder: &Path, identity: Identity) -> bool {
    let owner = fs::metadata(folder).map(|folder| folder.uid());
    let is_empty = || fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    match owner {
        Ok(0) => !is_empty(),
        Ok(owner) => owner != identity.uid,
        Err(_) => false,
    }
}

/// Runs `job` on a thread that the file systems take for this user, if this process is root: what the gateway
/// may not read, it cannot either.
fn with_rights_of<T: Send>(reader: Option<Identity>, job: impl FnOnce() -> T + Send) -> T {
    let as_reader = || {
        if let Some(reader) = reader.filter(|_| geteuid().is_root()) {
            // Of this thread only; without them root's rights over files are gone too.
            setfsgid(Gid::from_raw(reader.gid));
            setfsuid(Uid::from_raw(reader.uid));
        }
        job()
    };
    thread::scope(|scope| match scope.spawn(as_reader).join() {
        Ok(done) => done,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

fn summary(config: &Config, policies: Option<&str>) -> String {
    format!(
        "{}, {}, {}; policies {}",
        counted(config.agents.len(), "agent"),
        counted(config.targets.len(), "target"),
        counted(config.identities.len(), "identity"),
        policies
            .and_then(|hash| hash.get(..12))
            .unwrap_or("not loaded"),
    )
}

/// The hash of the policy set, if it could be loaded.
fn reported(
    loaded: Result<PolicySet, Vec<PolicyError>>,
    findings: &mut Vec<Finding>,
) -> Option<String> {
    match loaded {
        Ok(policies) => Some(policies.hash),
        Err(errors) => {
            findings.extend(errors.into_iter().map(Finding::from));
            None
        }
    }
}

impl From<ConfigError> for Finding {
    fn from(error: ConfigError) -> Self {
        Self {
            severity: Severity::Error,
            file: error.file,
            line: error.line,
            message: error.message,
            hint: error.hint,
        }
    }
}

impl From<PolicyError> for Finding {
    fn from(error: PolicyError) -> Self {
        Self {
            severity: Severity::Error,
            file: error.file,
            line: error.line,
            message: error.message,
            hint: error.hint,
        }
    }
}

/// Compares a valid configuration with the host it is on.
struct Host<'a> {
    file: &'a Path,
    now: SystemTime,
    findings: &'a mut Vec<Finding>,
}

impl<'a> Host<'a> {
    fn new(file: &'a Path, now: SystemTime, findings: &'a mut Vec<Finding>) -> Self {
        Self {
            file,
            now,
            findings,
        }
    }

    fn check(&mut self, config: &Config) {
        if let Err(error) = fs::File::open(self.file) {
            self.error(
                format!("the gateway cannot read the configuration: {error}"),
                "let the gateway's user read it",
            );
        }
        self.writers("the configuration", self.file);
        self.writers("the policy directory", &config.policies);
        for (kind, none) in [
            ("agent", config.agents.is_empty()),
            ("target", config.targets.is_empty()),
        ] {
            if none {
                let message = format!("no {kind} is configured, so no session is possible");
                self.warning(message, &format!("add a section [{kind}s.NAME]"));
            }
        }
        for issuer in config.identities.values() {
            let usable = self.issuer(issuer);
            let keyring = usable.then(|| Keyring::new(Arc::clone(issuer)));
            let members = config
                .agents
                .values()
                .filter(|agent| agent.issuer == *issuer);
            for agent in members {
                self.token(agent, keyring.as_ref());
            }
        }
        for agent in config.agents.values() {
            self.user(agent);
        }
        for target in config.targets.values() {
            self.target(target, config);
        }
    }

    /// Whether tokens of this issuer can be verified without asking the network.
    fn issuer(&mut self, issuer: &Issuer) -> bool {
        let JwksSource::File(file) = &issuer.jwks else {
            return false;
        };
        let what = format!("identity.{}: the key set {}", issuer.name, file.display());
        self.writers(&what, file);
        match token::check_jwks_file(file) {
            Ok(_) => true,
            Err(why) => {
                self.error(
                    format!("identity.{}: {why}", issuer.name),
                    "without keys no token can be verified; save the issuer's JWKS there",
                );
                false
            }
        }
    }

    fn token(&mut self, agent: &Agent, keyring: Option<&Keyring>) {
        let name = format!("agents.{}", agent.name);
        let file = &agent.token_file;
        self.writers(&format!("{name}: the token {}", file.display()), file);
        if mode(file).is_some_and(|mode| mode & 0o004 != 0) {
            self.warning(
                format!(
                    "{name}: the token {} can be read by everybody",
                    file.display()
                ),
                "whoever has it is this agent, as far as other services can tell; chmod o-r",
            );
        }
        let refused = match keyring {
            Some(keyring) => token::authenticate(agent, keyring, self.now).err(),
            None => token::read_token(agent).err(),
        };
        if let Some(error) = refused {
            let hint = match error {
                TokenError::Missing { .. } => "until then its connections are refused",
                _ => "its connections are refused with this token",
            };
            self.warning(format!("{name}: {error}"), hint);
        }
    }

    fn user(&mut self, agent: &Agent) {
        if let Ok(None) = User::from_name(&agent.run_as) {
            self.error(
                format!(
                    "agents.{}: there is no user {:?} to run as",
                    agent.name, agent.run_as
                ),
                &format!(
                    "create it (useradd --system {}) or change run_as",
                    agent.run_as
                ),
            );
        }
    }

    fn target(&mut self, target: &Target, config: &Config) {
        let name = format!("targets.{}", target.name);
        self.credential(&name, &target.credential, config);
        for (credential, source) in &target.credentials {
            self.credential(&format!("{name}.credentials.{credential}"), source, config);
        }
        if let Some(file) = &target.tls.ca_file {
            self.certificates(&name, file);
        }
        if let Some(client) = &target.tls.client {
            self.owner(&name, Held::Key, &client.key, config);
            // A CA file that is wrong was reported, and is met first.
            let without_roots = TargetTls {
                mode: TlsMode::Require,
                ca_file: None,
                ..target.tls.clone()
            };
            if let Err(error) = credentials::tls::client(&without_roots) {
                self.error(
                    format!("{name}: {error}"),
                    "the gateway cannot prove itself to this target",
                );
            }
        }
        self.weakness(&name, target);
    }

    fn credential(&mut self, name: &str, source: &CredentialSource, config: &Config) {
        if let Err(error) = credentials::load(source) {
            let hint = credential_hint(&error, &config.gateway.user);
            self.error(format!("{name}: {error}"), &hint);
        }
        if let Some(file) = &source.password_file {
            self.owner(name, Held::Password, file, config);
        }
    }

    /// A secret file must not be an agent's.
    fn owner(&mut self, name: &str, held: Held, file: &Path, config: &Config) {
        let owner = fs::metadata(file).map(|file| file.uid());
        for agent in config.agents.values() {
            let uid = User::from_name(&agent.run_as)
                .ok()
                .flatten()
                .map(|user| user.uid.as_raw());
            if uid.is_some() && uid == owner.as_ref().ok().copied() {
                self.error(
                    format!(
                        "{name}: the {held} {} belongs to {}, the user of agent {}",
                        file.display(),
                        agent.run_as,
                        agent.name
                    ),
                    "the agent could read it and go around the gateway; chown it to the gateway's user",
                );
            }
        }
    }

    /// What somebody on the way to the target could do.
    fn weakness(&mut self, name: &str, target: &Target) {
        let stays_here = target
            .dial
            .iter()
            .chain(target.addresses.iter().filter(|_| target.dial.is_none()))
            .all(|address| address.ip().is_some_and(|ip| ip.is_loopback()));
        let what = match target.tls.mode {
            _ if stays_here => return,
            TlsMode::Disable => "is not encrypted",
            TlsMode::Prefer => "is encrypted only if nobody on the way objects",
            TlsMode::Require => "is encrypted to whoever answers",
            TlsMode::VerifyCa if target.tls.ca_file.is_none() => {
                "goes to whoever has a certificate of any of the system's authorities"
            }
            TlsMode::VerifyCa | TlsMode::VerifyFull => return,
        };
        self.warning(
            format!(
                "{name}: with tls.mode = \"{}\" the connection {what}",
                target.tls.mode.name()
            ),
            "use verify-full, with the ca_file of the authority that signed the target's certificate",
        );
    }

    fn certificates(&mut self, name: &str, file: &Path) {
        let what = format!("{name}: the CA file {}", file.display());
        self.writers(&what, file);
        let certificates = CertificateDer::pem_file_iter(file)
            .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>());
        let problem = match certificates {
            Ok(certificates) if certificates.is_empty() => "contains no certificate".to_owned(),
            Ok(_) => return,
            Err(error) => format!("cannot be read: {error}"),
        };
        self.error(
            format!("{what} {problem}"),
            "it must hold the certificates, in PEM, of the CAs that may sign the target's",
        );
    }

    /// What others than the owner may write, they decide. A group may be meant to.
    fn writers(&mut self, what: &str, path: &Path) {
        let Some(mode) = mode(path) else {
            return;
        };
        let message = format!("{what} can be written by others than its owner (mode {mode:04o})");
        let hint = format!("chmod go-w {}", path.display());
        match mode & 0o022 {
            0 => (),
            0o020 => self.warning(message, &hint),
            _ => self.error(message, &hint),
        }
    }

    fn error(&mut self, message: String, hint: &str) {
        self.add(Severity::Error, message, hint);
    }

    fn warning(&mut self, message: String, hint: &str) {
        self.add(Severity::Warning, message, hint);
    }

    fn add(&mut self, severity: Severity, message: String, hint: &str) {
        self.findings.push(Finding {
            severity,
            file: self.file.to_owned(),
            line: 0,
            message,
            hint: Some(hint.to_owned()),
        });
    }
}

fn mode(path: &Path) -> Option<u32> {
    fs::metadata(path)
        .ok()
        .map(|metadata| metadata.mode() & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown};
    use std::sync::LazyLock;
    use std::time::{Duration, UNIX_EPOCH};

    use serde_json::json;

    use super::*;
    use crate::config::Algorithm;
    use crate::identity::token::issue::{Signer, issue_token, key_set};

    const NOW: u64 = 1_800_000_000;

    /// The gateway's user, by number: it needs no entry in the user database. Giving files away needs root.
    const GATEWAY: u32 = 64023;

    static KEY: LazyLock<Signer> = LazyLock::new(|| Signer::generate(Algorithm::EdDsa, "k"));

    /// An installation below a directory of its own, in which everything is right.
    struct Installation(tempfile::TempDir);

    impl Installation {
        fn new() -> Self {
            let it = Self(tempfile::tempdir().unwrap());
            it.chmod(it.0.path(), 0o755);
            it.write(
                "etc/sluice/policies/allow.cedar",
                "@id(\"allow\") permit(principal, action, resource);",
                0o644,
            );
            it.write("etc/sluice/sluice.toml", CONFIG, 0o644);
            it.write("etc/sluice/jwks.json", &key_set(&[&KEY]), 0o644);
            it.write("etc/sluice/pw", "secret", 0o600);
            let ca = rcgen::generate_simple_self_signed(["db".to_owned()]).unwrap();
            it.write("etc/sluice/ca.pem", &ca.cert.pem(), 0o644);
            it.write("run/bot.jwt", &token(NOW + 60), 0o640);
            it
        }

        fn path(&self, path: &str) -> PathBuf {
            self.0.path().join(path)
        }

        fn write(&self, path: &str, content: &str, mode: u32) {
            let path = self.path(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            chown(&path, Some(GATEWAY), Some(GATEWAY)).unwrap();
            self.chmod(&path, mode);
        }

        fn chmod(&self, path: &Path, mode: u32) {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }

        fn check(&self) -> Outcome {
            let now = UNIX_EPOCH + Duration::from_secs(NOW);
            check(
                &self.path("etc/sluice/sluice.toml"),
                Some(self.0.path()),
                now,
            )
        }

        /// What `sluice check` prints, without the directory's name.
        fn text(&self) -> String {
            let mut out = Vec::new();
            print_text(&self.check(), &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            text.replace(self.0.path().to_str().unwrap(), "")
        }
    }

    const CONFIG: &str = r#"
[gateway]
user = "64023"
[identity.corp]
issuer = "https://issuer.example"
audience = "sluice"
jwks = "/etc/sluice/jwks.json"
[agents.bot]
identity = "corp"
token_file = "/run/bot.jwt"
[targets.shop]
protocol = "postgres"
addresses = ["127.0.0.1:5432"]
tls = { ca_file = "/etc/sluice/ca.pem" }
credential = { user = "app", password_file = "/etc/sluice/pw" }
"#;

    fn token(exp: u64) -> String {
        let claims =
            json!({"iss": "https://issuer.example", "aud": "sluice", "sub": "bot", "exp": exp});
        issue_token(&KEY, &claims)
    }

    #[test]
    fn a_good_installation_is_one_line() {
        let text = Installation::new().text();
        assert!(
            text.starts_with("check: ok (1 agent, 1 target, 1 identity; policies "),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn what_is_wrong_with_the_files() {
        type Change = fn(&Installation);
        let rows: &[(&str, Change, &str)] = &[
            (
                "an address that is a synthetic one",
                |it| {
                    let config = CONFIG.replace("127.0.0.1:5432", "198.18.0.7:5432");
                    it.write("etc/sluice/sluice.toml", &config, 0o644);
                },
                "target \"shop\" has the address 198.18.0.7:5432, which lies in the range of synthetic addresses: give it a name instead, or set dns.mode = \"pass\"",
            ),
            (
                "no token yet",
                |it| fs::remove_file(it.path("run/bot.jwt")).unwrap(),
                "warning: agents.bot: there is no token at /run/bot.jwt; have the agent's issuer put one there (hint: until then its connections are refused)",
            ),
            (
                "token expired",
                |it| it.write("run/bot.jwt", &token(NOW - 100), 0o600),
                "warning: agents.bot: the token expired 100 seconds ago; renew it (hint: its connections are refused with this token)",
            ),
            (
                "token for everybody",
                |it| it.chmod(&it.path("run/bot.jwt"), 0o644),
                "warning: agents.bot: the token /run/bot.jwt can be read by everybody (hint: whoever has it is this agent, as far as other services can tell; chmod o-r)",
            ),
            (
                "no key set",
                |it| fs::remove_file(it.path("etc/sluice/jwks.json")).unwrap(),
                "identity.corp: /etc/sluice/jwks.json: No such file or directory (os error 2) (hint: without keys no token can be verified; save the issuer's JWKS there)",
            ),
            (
                "key set is not one",
                |it| it.write("etc/sluice/jwks.json", "{}", 0o644),
                "identity.corp: the key set is not a JSON object with a list \"keys\" (hint: without keys no token can be verified; save the issuer's JWKS there)",
            ),
            (
                "key set for everybody to write",
                |it| it.chmod(&it.path("etc/sluice/jwks.json"), 0o666),
                "identity.corp: the key set /etc/sluice/jwks.json can be written by others than its owner (mode 0666) (hint: chmod go-w /etc/sluice/jwks.json)",
            ),
            (
                "key set for a group to write",
                |it| it.chmod(&it.path("etc/sluice/jwks.json"), 0o664),
                "warning: identity.corp: the key set /etc/sluice/jwks.json can be written by others than its owner (mode 0664) (hint: chmod go-w /etc/sluice/jwks.json)",
            ),
            (
                "policies for everybody to write",
                |it| it.chmod(&it.path("etc/sluice/policies"), 0o777),
                "the policy directory can be written by others than its owner (mode 0777) (hint: chmod go-w /etc/sluice/policies)",
            ),
            (
                "no password",
                |it| fs::remove_file(it.path("etc/sluice/pw")).unwrap(),
                "targets.shop: the password file /etc/sluice/pw cannot be read: No such file or directory (os error 2) (hint: the gateway cannot log in at this target)",
            ),
            (
                "password for everybody",
                |it| it.chmod(&it.path("etc/sluice/pw"), 0o644),
                "targets.shop: the password file /etc/sluice/pw can be used by others than its owner (mode 0644); run: chmod 600 /etc/sluice/pw (hint: the gateway cannot log in at this target)",
            ),
            (
                "password of another user",
                |it| chown(it.path("etc/sluice/pw"), Some(0), Some(0)).unwrap(),
                "targets.shop: the password file /etc/sluice/pw cannot be read: Permission denied (os error 13) (hint: the gateway cannot log in at this target; chown 64023 /etc/sluice/pw, with mode 0600)",
            ),
            (
                "log of another user",
                |it| it.write("var/lib/sluice/log/log.jsonl", "", 0o600),
                "gateway.user: /var/lib/sluice/log belongs to another user (hint: chown -R 64023 /var/lib/sluice/log)",
            ),
            (
                "no gateway user",
                |it| {
                    let config = CONFIG.replace("\"64023\"", "\"nemo-42\"");
                    it.write("etc/sluice/sluice.toml", &config, 0o644);
                },
                "gateway.user: there is no user \"nemo-42\" on this host: create it (`useradd --system nemo-42`), or name another in gateway.user (hint: the gateway cannot start)",
            ),
            (
                "no CA file",
                |it| fs::remove_file(it.path("etc/sluice/ca.pem")).unwrap(),
                "targets.shop: the CA file /etc/sluice/ca.pem cannot be read: I/O error: No such file or directory (os error 2) (hint: it must hold the certificates, in PEM, of the CAs that may sign the target's)",
            ),
            (
                "CA file without certificates",
                |it| it.write("etc/sluice/ca.pem", "x", 0o644),
                "targets.shop: the CA file /etc/sluice/ca.pem contains no certificate (hint: it must hold the certificates, in PEM, of the CAs that may sign the target's)",
            ),
            (
                "credential that policies name",
                |it| {
                    let more = "[targets.shop.credentials.reader]\nuser = \"r\"\npassword_file = \"/etc/none\"\n";
                    it.write("etc/sluice/sluice.toml", &format!("{CONFIG}{more}"), 0o644);
                },
                "targets.shop.credentials.reader: the password file /etc/none cannot be read: No such file or directory (os error 2) (hint: the gateway cannot log in at this target)",
            ),
            (
                "client key for everybody",
                |it| {
                    let pair = rcgen::generate_simple_self_signed(["gw".to_owned()]).unwrap();
                    it.write("etc/sluice/client.pem", &pair.cert.pem(), 0o644);
                    it.write(
                        "etc/sluice/client.key",
                        &pair.signing_key.serialize_pem(),
                        0o644,
                    );
                    let client = "client_certificate = \"/etc/sluice/client.pem\", client_key = \"/etc/sluice/client.key\", ca_file";
                    it.write(
                        "etc/sluice/sluice.toml",
                        &CONFIG.replace("ca_file", client),
                        0o644,
                    );
                },
                "targets.shop: the key file /etc/sluice/client.key can be used by others than its owner (mode 0644); run: chmod 600 /etc/sluice/client.key (hint: the gateway cannot prove itself to this target)",
            ),
            (
                "client key of another certificate",
                |it| {
                    let pair =
                        |name: &str| rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
                    it.write("etc/sluice/client.pem", &pair("a").cert.pem(), 0o644);
                    it.write(
                        "etc/sluice/client.key",
                        &pair("b").signing_key.serialize_pem(),
                        0o600,
                    );
                    let client = "client_certificate = \"/etc/sluice/client.pem\", client_key = \"/etc/sluice/client.key\", ca_file";
                    it.write(
                        "etc/sluice/sluice.toml",
                        &CONFIG.replace("ca_file", client),
                        0o644,
                    );
                },
                "targets.shop: the client certificate /etc/sluice/client.pem cannot be used with its key: keys may not be consistent: KeyMismatch (hint: the gateway cannot prove itself to this target)",
            ),
            (
                "a target far away without TLS",
                |it| {
                    let config = CONFIG.replace("127.0.0.1:5432", "192.0.2.7:5432").replace(
                        "{ ca_file = \"/etc/sluice/ca.pem\" }",
                        "{ mode = \"disable\" }",
                    );
                    it.write("etc/sluice/sluice.toml", &config, 0o644);
                },
                "warning: targets.shop: with tls.mode = \"disable\" the connection is not encrypted (hint: use verify-full, with the ca_file of the authority that signed the target's certificate)",
            ),
            (
                "a target far away, to whoever answers",
                |it| {
                    let config = CONFIG.replace("127.0.0.1:5432", "192.0.2.7:5432").replace(
                        "{ ca_file = \"/etc/sluice/ca.pem\" }",
                        "{ mode = \"require\" }",
                    );
                    it.write("etc/sluice/sluice.toml", &config, 0o644);
                },
                "warning: targets.shop: with tls.mode = \"require\" the connection is encrypted to whoever answers (hint: use verify-full, with the ca_file of the authority that signed the target's certificate)",
            ),
            (
                "a credential that no target has",
                |it| {
                    it.write(
                        "etc/sluice/policies/map.cedar",
                        "@id(\"map\") @credential(\"reader\") permit(principal, action, resource);",
                        0o644,
                    )
                },
                "@credential(\"reader\") names a credential that no target of this policy has (hint: add a section [targets.NAME.credentials.reader] to the configuration)",
            ),
            (
                "no such user",
                |it| {
                    it.write(
                        "etc/sluice/sluice.toml",
                        &CONFIG.replace("identity = ", "run_as = \"nemo-42\"\nidentity = "),
                        0o644,
                    )
                },
                "agents.bot: there is no user \"nemo-42\" to run as (hint: create it (useradd --system nemo-42) or change run_as)",
            ),
        ];
        for (name, change, expected) in rows {
            let it = Installation::new();
            change(&it);
            let text = it.text();
            let (finding, last) = text.trim_end().rsplit_once('\n').expect(name);
            let place = match expected.starts_with("@credential") {
                true => "policies/map.cedar:1",
                false => "sluice.toml",
            };
            let expected = format!("/etc/sluice/{place}: {expected}");
            assert_eq!(finding, expected, "{name}");
            match expected.contains(": warning: ") {
                true => assert!(last.starts_with("check: ok, 1 warning ("), "{name}: {last}"),
                false => assert_eq!(last, "check: 1 error", "{name}"),
            }
        }
    }

    /// Changing owners needs root.
    #[test]
    fn a_password_file_of_an_agents_user() {
        let it = Installation::new();
        let nobody = User::from_name("nobody").unwrap().unwrap();
        nix::unistd::chown(&it.path("etc/sluice/pw"), Some(nobody.uid), None).unwrap();
        let text = it.text();
        assert!(
            text.contains(
                "the password file /etc/sluice/pw belongs to nobody, the user of agent bot"
            ),
            "{text}"
        );
    }

    #[test]
    fn errors_of_configuration_and_policies_come_together() {
        let it = Installation::new();
        it.write("etc/sluice/sluice.toml", "[gatway]\n[agents.x]\n", 0o644);
        it.write("etc/sluice/policies/broken.cedar", "permit(", 0o644);
        let text = it.text();
        let config = "/etc/sluice/sluice.toml:1: unknown key gatway (hint: did you mean gateway?)\n\
            /etc/sluice/sluice.toml:2: [agents.x] lacks the key identity\n\
            /etc/sluice/sluice.toml:2: [agents.x] lacks the key token_file\n";
        assert!(text.starts_with(config), "{text}");
        assert!(
            text.contains("/etc/sluice/policies/broken.cedar:1: "),
            "{text}"
        );
    }

    #[test]
    fn json_is_an_array() {
        let it = Installation::new();
        let print = || {
            let mut out = Vec::new();
            print_json(&it.check(), &mut out).unwrap();
            serde_json::from_slice::<serde_json::Value>(&out).unwrap()
        };
        assert_eq!(print(), json!([]));
        it.write("etc/sluice/sluice.toml", "[gatway]\n", 0o644);
        assert_eq!(
            print(),
            json!([{
                "severity": "error",
                "file": it.path("etc/sluice/sluice.toml"),
                "line": 1,
                "message": "unknown key gatway",
                "hint": "did you mean gateway?",
            }])
        );
    }
}
