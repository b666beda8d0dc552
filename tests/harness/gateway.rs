//! A whole Sluice installation below a temporary folder, with a running gateway.
//!
//! Each has its own control groups, pins and port, so that tests run side by side. When a test ends well,
//! its evidence is read once more: the chain must verify and no secret may stand anywhere in it. So every
//! test is also a test for secrets.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jsonwebtoken::Algorithm;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cgroup;
use super::events::{Event, Events};
use super::issuer::{AUDIENCE, ISSUER, Issuer};
use super::port::Port;
use super::postgres::{self, Postgres};
use super::program::{Ended, drain, eventually, run, sluice_binary};
use super::scratch;
use super::secrets::Secrets;

/// The agent that every test has.
pub const AGENT: &str = "report-bot";
pub const SUBJECT: &str = "report-bot@corp";

/// The user that the gateway is, by number: it needs no entry in the user database. Agents are nobody.
pub const USER: u32 = 64023;

/// What the broker needs of root, as in its unit in docs/operating.md.
const BROKER_CAPABILITIES: &str =
    "-all,+bpf,+chown,+dac_override,+net_admin,+perfmon,+sys_admin,+sys_ptrace";

const PATIENCE: Duration = Duration::from_secs(20);

/// The gateway's /etc/hosts, in the installation's folder.
const HOSTS: &str = "etc/hosts";

/// What a test may choose before the gateway starts.
pub struct Setup {
    database: u16,
    /// The one database that is open to agents, if it is only one, and the role that they get.
    only: Option<&'static str>,
    role: &'static str,
    policy: &'static str,
    masks: Vec<(String, String)>,
    tls: String,
    authority: Option<String>,
    password: Option<String>,
    /// More keys of the target, and of its credential, written as TOML.
    target: String,
    credential: String,
    /// Files of the gateway's alone: path and text.
    private: Vec<(&'static str, String)>,
    issuer: Issuer,
    max_sessions: usize,
    storage: Option<&'static str>,
    algorithms: String,
    pure_cgroup2: bool,
    /// Sections at the end of the configuration.
    more: String,
    hosts: Option<String>,
}

/// An installation whose gateway runs (until the test kills it).
pub struct Gateway {
    root: tempfile::TempDir,
    /// Of all control groups; the guard is attached here, as on a host it would be to the root.
    parent: PathBuf,
    pins: PathBuf,
    port: Port,
    database: u16,
    pub issuer: Issuer,
    secrets: Secrets,
    broker: Option<Running>,
    running: Option<Running>,
    /// Gateways that took over from the one that was started, in order. They are not this process's children.
    successors: Vec<u32>,
    /// Drains, while one that did not take over from it serves.
    beside: Option<Running>,
    stderr: String,
    mounted: Option<PathBuf>,
    pure_cgroup2: bool,
}

struct Running {
    child: Child,
    stderr: JoinHandle<Vec<u8>>,
}

impl Setup {
    /// A gateway in front of the shop: report-bot may read, card numbers are masked.
    pub fn in_front_of(server: &Postgres) -> Setup {
        Self::in_front_of_port(server.port())
    }

    /// The same in front of whatever listens on a loopback port.
    pub fn in_front_of_port(port: u16) -> Setup {
        Setup {
            database: port,
            only: Some(postgres::DATABASE),
            role: postgres::USER,
            policy: "read-only",
            masks: vec![mask("public.customers.card_number", "keep_last(4)")],
            tls: r#"{ mode = "disable" }"#.to_owned(),
            authority: None,
            password: Some(postgres::PASSWORD.to_owned()),
            target: String::new(),
            credential: String::new(),
            private: Vec::new(),
            issuer: Issuer::signing_with(Algorithm::ES256),
            max_sessions: 100,
            storage: None,
            algorithms: r#"["RS256", "ES256", "EdDSA"]"#.to_owned(),
            pure_cgroup2: false,
            more: String::new(),
            hosts: None,
        }
    }

    /// The gateway's own /etc/hosts, which nobody else sees.
    pub fn hosts(mut self, lines: &str) -> Self {
        self.hosts = Some(lines.to_owned());
        self
    }

    /// Adds sections to the configuration, written as TOML.
    pub fn adding(mut self, sections: &str) -> Self {
        self.more.push_str(sections);
        self
    }

    /// Uses another of the profiles in /policies.
    pub fn policy(mut self, name: &'static str) -> Self {
        self.policy = name;
        self
    }

    /// Everything the server has: as its superuser, in every database, nothing masked.
    pub fn with_superuser_of_any_database(mut self) -> Self {
        self.only = None;
        self.role = "postgres";
        self.masks.clear();
        self
    }

    /// Opens every database to agents.
    pub fn of_any_database(mut self) -> Self {
        self.only = None;
        self
    }

    /// Masks one more column.
    pub fn masking(mut self, column: &str, with: &str) -> Self {
        self.masks.push(mask(column, with));
        self
    }

    /// Verifies the database's certificate against `authority` for the name `server_name`.
    pub fn verifying_tls(mut self, authority_pem: String, server_name: &str) -> Self {
        self.tls = format!(
            r#"{{ mode = "verify-full", ca_file = "/etc/sluice/ca.pem", server_name = "{server_name}" }}"#
        );
        self.authority = Some(authority_pem);
        self
    }

    /// Protects the way to the database as written, in TOML; `authority` becomes /etc/sluice/ca.pem.
    pub fn tls(mut self, tls: &str, authority: Option<String>) -> Self {
        self.tls = tls.to_owned();
        self.authority = authority;
        self
    }

    /// Keys of the target, one a line, written as TOML.
    pub fn of_target(mut self, keys: &str) -> Self {
        self.target.push_str(keys);
        self.target.push('\n');
        self
    }

    /// Keys of the target's credential, separated by commas.
    pub fn of_credential(mut self, keys: &str) -> Self {
        self.credential = format!(", {keys}");
        self
    }

    /// Puts a file there that only the gateway can read.
    pub fn private_file(mut self, path: &'static str, text: &str) -> Self {
        self.private.push((path, text.to_owned()));
        self
    }

    /// Takes tokens from another issuer.
    pub fn issuer(mut self, issuer: Issuer) -> Self {
        self.issuer = issuer;
        self
    }

    /// Accepts tokens signed with these algorithms only, written as TOML.
    pub fn algorithms(mut self, list: &str) -> Self {
        self.algorithms = list.to_owned();
        self
    }

    /// Stores another password than the database expects.
    pub fn stored_password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self
    }

    /// Stores no password.
    pub fn without_password(mut self) -> Self {
        self.password = None;
        self
    }

    /// Keeps log and recordings on a file system of this size, so that it can be full.
    pub fn storage_of(mut self, size: &'static str) -> Self {
        self.storage = Some(size);
        self
    }

    /// Serves fewer sessions at once.
    pub fn max_sessions(mut self, limit: usize) -> Self {
        self.max_sessions = limit;
        self
    }

    /// Runs everything where cgroup v2 is mounted at /sys/fs/cgroup, as on a host without version 1.
    pub fn on_pure_cgroup2(mut self) -> Self {
        self.pure_cgroup2 = true;
        self
    }

    /// Installs it, loads the guard and starts broker and gateway.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let mut gateway = self.start_broker();
        gateway.start();
        gateway
    }

    /// The same without the gateway: the test is the gateway.
    #[track_caller]
    pub fn start_broker(self) -> Gateway {
        let mut gateway = self.install();
        gateway.sluice(["guard", "load"]).succeeds();
        gateway.start_broker();
        gateway
    }

    /// The files, and nothing that runs.
    #[track_caller]
    pub fn install(self) -> Gateway {
        super::require_root();
        let name = scratch::name();
        let root = scratch::folder("root");
        // Agents run programs from here; what they must not read is protected file by file.
        open_to_all(root.path());
        let mount = cgroup::mount();
        let mut gateway = Gateway {
            parent: mount.join(format!("{name}.test")),
            pins: PathBuf::from("/sys/fs/bpf").join(&name),
            port: Port::reserve(),
            database: self.database,
            secrets: Secrets::of_the_shop(self.password.as_deref().unwrap_or(postgres::PASSWORD)),
            issuer: self.issuer,
            broker: None,
            running: None,
            successors: Vec::new(),
            beside: None,
            stderr: String::new(),
            pure_cgroup2: self.pure_cgroup2,
            mounted: None,
            root,
        };
        if let Some(password) = &self.password {
            gateway.write_private("etc/sluice/credentials/shop", &format!("{password}\n"));
        }
        for (path, text) in &self.private {
            gateway.write_private(path, text);
        }
        gateway.write("etc/sluice/jwks.json", &gateway.issuer.jwks());
        if let Some(authority) = &self.authority {
            gateway.write("etc/sluice/ca.pem", authority);
        }
        let profile = format!("policies/{}.cedar", self.policy);
        let policies = fs::read_to_string(super::repository().join(&profile))
            .expect("the profile ships with the repository");
        gateway.write(&format!("etc/sluice/{profile}"), &policies);
        let masks: String = self
            .masks
            .iter()
            .map(|(column, with)| {
                format!("[[targets.shop.mask]]\ncolumn = \"{column}\"\nwith = \"{with}\"\n")
            })
            .collect();
        let config = format!(
            r#"
[gateway]
listen_port = {port}
max_sessions = {max_sessions}
user = "{USER}"
[kernel]
agents_cgroup = "{name}.test/agents.slice"
gateway_cgroup = "{name}.test/sluice.slice"
guard_cgroup = "{name}.test"
pins = "{pins}"
[identity.corp]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks = "/etc/sluice/jwks.json"
algorithms = {algorithms}
[agents.{AGENT}]
identity = "corp"
token_file = "/run/sluice/tokens/{AGENT}.jwt"
subject = "{SUBJECT}"
[targets.shop]
protocol = "postgres"
addresses = ["127.0.0.1:{database}", "[::1]:{database}"]
{only}{target}tls = {tls}
credential = {{ user = "{user}"{password}{credential} }}
{masks}{more}"#,
            more = self.more,
            port = gateway.port.number,
            max_sessions = self.max_sessions,
            pins = gateway.pins.display(),
            algorithms = self.algorithms,
            database = self.database,
            tls = self.tls,
            only = self
                .only
                .map(|only| format!("database = \"{only}\"\n"))
                .unwrap_or_default(),
            user = self.role,
            target = self.target,
            credential = self.credential,
            password = match self.password {
                Some(_) => r#", password_file = "/etc/sluice/credentials/shop""#,
                None => "",
            },
        );
        gateway.write("etc/sluice/sluice.toml", &config);
        if let Some(hosts) = &self.hosts {
            gateway.write(HOSTS, hosts);
        }
        let token = gateway.issuer.token_for(SUBJECT).sign();
        gateway.issue(&token);
        if let Some(size) = self.storage {
            gateway.mount_storage(size);
        }
        gateway
    }
}

fn mask(column: &str, with: &str) -> (String, String) {
    (column.to_owned(), with.to_owned())
}

impl Gateway {
    /// The usual gateway in front of `server`.
    #[track_caller]
    pub fn in_front_of(server: &Postgres) -> Gateway {
        Setup::in_front_of(server).start()
    }

    /// Starts the gateway (again) and waits for its ready line; the broker too, if it does not run.
    #[track_caller]
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "the gateway runs already");
        self.successors.clear();
        if self.broker.is_none() {
            self.start_broker();
        }
        let ready = format!("ready on 127.0.0.1:{}", self.port.number);
        let command = self.with_its_hosts(self.sluice_command(["run"]));
        self.running = Some(self.launch(command, &ready));
    }

    /// The command in a mount namespace where /etc/hosts is the installation's, if it has one.
    fn with_its_hosts(&self, command: Command) -> Command {
        let hosts = self.root.path().join(HOSTS);
        if !hosts.exists() {
            return command;
        }
        let mut wrapped = Command::new("unshare");
        wrapped
            .args(["--mount", "sh", "-ec"])
            .arg(r#"mount --bind "$0" /etc/hosts; exec "$@""#)
            .arg(hosts)
            .arg(command.get_program())
            .args(command.get_args());
        wrapped
    }

    /// Starts the broker (again) and waits for its ready line.
    #[track_caller]
    pub fn start_broker(&mut self) {
        assert!(self.broker.is_none(), "the broker runs already");
        let mut confined = Command::new("setpriv");
        confined.args(["--bounding-set", BROKER_CAPABILITIES]);
        let broker = self.sluice_command(["broker"]);
        confined.arg(broker.get_program()).args(broker.get_args());
        self.broker = Some(self.launch(confined, "broker ready on "));
    }

    #[track_caller]
    fn launch(&mut self, mut command: Command, ready: &str) -> Running {
        let mut child = command
            .env("SLUICE_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("sluice starts");
        let stderr = drain(child.stderr.take().expect("stderr is piped"));
        let stdout = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || {
            // Reads to the end so that the program never waits for a full pipe.
            for line in stdout.lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let running = Running { child, stderr };
        while let Ok(line) = lines.recv_timeout(PATIENCE) {
            if line.contains(ready) {
                return running;
            }
        }
        let (_, stderr) = running.end(Signal::SIGKILL);
        panic!("sluice did not say {ready:?}:\n{stderr}");
    }

    /// SIGKILL, as the kernel's OOM killer would. Answers what it had logged.
    pub fn kill(&mut self) -> String {
        self.end(Signal::SIGKILL)
    }

    /// SIGTERM, and waits until it has drained.
    pub fn stop(&mut self) -> String {
        self.end(Signal::SIGTERM)
    }

    fn end(&mut self, signal: Signal) -> String {
        for successor in std::mem::take(&mut self.successors) {
            end_stranger(successor, signal);
        }
        let beside = self.beside.take();
        self.ended("run", beside, signal);
        let running = self.running.take();
        self.ended("run", running, signal)
    }

    /// Ends the broker. Answers what it had logged.
    pub fn end_broker(&mut self, signal: Signal) -> String {
        let running = self.broker.take();
        self.ended("broker", running, signal)
    }

    fn ended(&mut self, what: &str, running: Option<Running>, signal: Signal) -> String {
        let Some(running) = running else {
            return String::new();
        };
        let (ended, stderr) = running.end(signal);
        self.stderr.push_str(&stderr);
        assert!(
            ended || thread::panicking(),
            "sluice {what} did not end on {signal}:\n{stderr}"
        );
        stderr
    }

    /// SIGHUP. Waits until a successor serves, and answers the process that drains now.
    #[track_caller]
    pub fn hand_over(&mut self) -> u32 {
        let drains = self.pid();
        let before = self.handovers().len();
        self.signal(Signal::SIGHUP);
        let handovers = eventually("a hand-over", PATIENCE, || {
            let handovers = self.handovers();
            (handovers.len() > before).then_some(handovers)
        });
        let last = &handovers[before];
        assert_eq!(last.number("pid"), u64::from(drains), "{last}");
        let successor = last.number("successor");
        self.successors
            .push(u32::try_from(successor).expect("a process id"));
        drains
    }

    /// Found without reading every line, of which there are many while clients connect in a loop.
    fn handovers(&self) -> Vec<Event> {
        let log = fs::read_to_string(self.log_file()).unwrap_or_default();
        let lines = log
            .split_inclusive('\n')
            .filter(|line| line.ends_with('\n'));
        let handovers = lines.filter(|line| line.contains(r#""event":"gateway.handover","#));
        let parsed = handovers.map(|line| Event(serde_json::from_str(line).expect("it is JSON")));
        parsed.collect()
    }

    /// Sends a signal to the gateway that serves.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).expect("the gateway runs");
    }

    /// Kills the gateway that serves; its predecessors drain on.
    pub fn kill_successor(&mut self) {
        let successor = self.successors.pop().expect("a successor serves");
        end_stranger(successor, Signal::SIGKILL);
    }

    /// Starts a gateway beside those that drain. Ending it ends only it.
    #[track_caller]
    pub fn start_beside(&mut self) {
        let mut draining = self.running.take();
        self.start();
        std::mem::swap(&mut draining, &mut self.beside);
    }

    /// Replaces the text of a file of the installation, such as `etc/sluice/sluice.toml`.
    pub fn edit(&self, path: &str, change: impl FnOnce(String) -> String) {
        let path = self.root.path().join(path);
        let text = fs::read_to_string(&path).expect("the installation has the file");
        fs::write(&path, change(text)).expect("the root is writable");
    }

    /// A path below the installation.
    pub fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    /// Fails the test if the gateway has ended by itself.
    #[track_caller]
    pub fn is_alive(&mut self) {
        let pid = self.pid();
        assert!(!has_ended(pid), "the gateway ended: {pid}");
    }

    /// The gateway's process.
    pub fn pid(&self) -> u32 {
        let started = || self.running.as_ref().expect("the gateway runs").child.id();
        self.successors.last().copied().unwrap_or_else(started)
    }

    /// The broker's process.
    pub fn broker_pid(&self) -> u32 {
        self.broker.as_ref().expect("the broker runs").child.id()
    }

    /// Where the kernel programs are pinned.
    pub fn pins(&self) -> &Path {
        &self.pins
    }

    /// Where the broker answers.
    pub fn broker_socket(&self) -> PathBuf {
        self.root.path().join("run/sluice/broker.sock")
    }

    /// The port of the database, which agents dial.
    pub fn database_port(&self) -> u16 {
        self.database
    }

    /// The port the gateway listens on.
    pub fn port(&self) -> u16 {
        self.port.number
    }

    /// Gives the agent a token.
    pub fn issue(&self, token: &str) {
        self.secrets.add_token(token);
        self.write_private(&format!("run/sluice/tokens/{AGENT}.jwt"), token);
    }

    /// Takes the agent's token away.
    pub fn withdraw_token(&self) {
        fs::remove_file(
            self.root
                .path()
                .join(format!("run/sluice/tokens/{AGENT}.jwt")),
        )
        .expect("the agent had a token");
    }

    /// Runs a program as the agent, unmodified, with nothing of Sluice in its words.
    #[track_caller]
    pub fn as_agent<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ended {
        run(self.agent_command(words))
    }

    /// The same, to be started by the test itself.
    pub fn agent_command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.sluice_command(["exec", "--agent", AGENT, "--"]);
        command
            .args(words)
            .current_dir("/")
            .env("HOME", "/nonexistent");
        command
    }

    /// One psql session of the agent: each text is a `-c` of its own.
    #[track_caller]
    pub fn psql<'a>(&self, statements: impl IntoIterator<Item = &'a str>) -> Ended {
        self.psql_at("127.0.0.1", statements)
    }

    /// The same, dialling the database at another address.
    #[track_caller]
    pub fn psql_at<'a>(&self, host: &str, statements: impl IntoIterator<Item = &'a str>) -> Ended {
        self.as_agent(psql_words(&self.address(host), statements))
    }

    /// The database's real address, as the agent knows it.
    pub fn address(&self, host: &str) -> String {
        format!(
            "host={host} port={} user={} dbname={}",
            self.database,
            postgres::USER,
            postgres::DATABASE
        )
    }

    /// Runs one of the operator's commands on this installation.
    #[track_caller]
    pub fn sluice<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Ended {
        run(self.sluice_command(words))
    }

    /// The same, to be started by the test itself.
    pub fn sluice_command<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let program = sluice_binary();
        let mut command = if self.pure_cgroup2 {
            let mut command = Command::new("unshare");
            command
                .args(["--mount", "sh", "-ec"])
                .arg(r#"mount -t cgroup2 cgroup2 /sys/fs/cgroup; exec "$@""#)
                .arg("sh")
                .arg(program);
            command
        } else {
            Command::new(program)
        };
        command.arg("--root").arg(self.root.path()).args(words);
        command
    }

    /// The evidence so far.
    pub fn events(&self) -> Events {
        Events::read(&self.log_file())
    }

    /// The first event of that name, waiting for it if need be.
    #[track_caller]
    pub fn event(&self, name: &str) -> Event {
        eventually(&format!("an event {name}"), PATIENCE, || {
            self.events().named(name).next().cloned()
        })
    }

    /// Waits until the log has `count` events of that name and answers them.
    #[track_caller]
    pub fn wait_for(&self, count: usize, name: &str) -> Vec<Event> {
        eventually(&format!("{count} events {name}"), PATIENCE, || {
            let events: Vec<Event> = self.events().named(name).cloned().collect();
            (events.len() >= count).then_some(events)
        })
    }

    pub fn log_file(&self) -> PathBuf {
        self.root.path().join("var/lib/sluice/log/log.jsonl")
    }

    pub fn recordings(&self) -> PathBuf {
        self.root.path().join("var/lib/sluice/recordings")
    }

    /// Ends the gateway and removes its evidence, after a test whose gigabytes would take minutes to look
    /// through for secrets that were never in them.
    pub fn discard_evidence(&mut self) {
        self.stop();
        for folder in [self.recordings(), self.path("var/lib/sluice/log")] {
            fs::remove_dir_all(folder).expect("the folder is ours");
        }
    }

    /// The agents' parent control group.
    pub fn agents_group(&self) -> PathBuf {
        self.parent.join("agents.slice")
    }

    /// Adds a policy file, or replaces one; it counts from the next start.
    pub fn write_policy(&self, name: &str, text: &str) {
        self.write(&format!("etc/sluice/policies/{name}.cedar"), text);
    }

    /// From now on finding `secret` outside fails the test.
    pub fn is_secret(&self, secret: &str) {
        self.secrets.add(secret);
    }

    /// Leaves no byte of the storage's file system free.
    pub fn fill_storage(&self) {
        let storage = self.mounted.as_ref().expect("the storage has a size");
        let mut filler = fs::File::create(storage.join("filler")).expect("it is mounted");
        while filler.write_all(&[0; 512]).is_ok() {}
    }

    /// Frees what [`Gateway::fill_storage`] took.
    pub fn empty_storage(&self) {
        let storage = self.mounted.as_ref().expect("the storage has a size");
        fs::remove_file(storage.join("filler")).expect("it was filled");
    }

    fn mount_storage(&mut self, size: &str) {
        let storage = self.root.path().join("var/lib/sluice");
        fs::create_dir_all(&storage).expect("the root is writable");
        let mut mount = Command::new("mount");
        mount
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(&storage);
        run(mount).succeeds();
        self.mounted = Some(storage);
    }

    /// A folder below the installation that agents can read.
    pub fn public_folder(&self, name: &str) -> PathBuf {
        let folder = self.root.path().join(name);
        fs::create_dir_all(&folder).expect("the root is writable");
        open_to_all(&folder);
        folder
    }

    /// What must never be found outside, and the places where it was.
    pub fn secrets_found(&self) -> Vec<String> {
        let mut places = vec![self.log_file()];
        if let Ok(recordings) = fs::read_dir(self.recordings()) {
            places.extend(recordings.flatten().map(|entry| entry.path()));
        }
        let mut found = self
            .secrets
            .found_in("the gateway's stderr", self.stderr.as_bytes());
        for place in places {
            let bytes = fs::read(&place).unwrap_or_default();
            found.extend(self.secrets.found_in(&place.display().to_string(), &bytes));
        }
        for running in self.running.iter().chain(&self.broker) {
            for file in ["environ", "cmdline"] {
                let place = format!("/proc/{}/{file}", running.child.id());
                let bytes = fs::read(&place).unwrap_or_default();
                found.extend(self.secrets.found_in(&place, &bytes));
            }
        }
        found
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.root.path().join(path);
        fs::create_dir_all(path.parent().expect("a file lies in a folder"))
            .expect("the root is writable");
        fs::write(path, text).expect("the root is writable");
    }

    /// For the gateway's user only.
    fn write_private(&self, path: &str, text: &str) {
        self.write(path, text);
        let path = self.root.path().join(path);
        let mode = fs::Permissions::from_mode(0o600);
        fs::set_permissions(&path, mode).expect("the file is ours");
        chown(&path, Some(USER), Some(USER)).expect("root may give files away");
    }

    /// What is wrong with the evidence that the test leaves.
    fn complaints(&mut self) -> Vec<String> {
        let mut complaints = self.secrets_found();
        if self.running.is_some() || self.broker.is_some() {
            self.stop();
            self.end_broker(Signal::SIGTERM);
            complaints.extend(self.secrets_found());
        }
        if self.log_file().exists() {
            let verified = self.sluice(["audit", "verify"]);
            if !verified.status.success() {
                complaints.push(verified.to_string());
            }
        }
        complaints
    }
}

impl Running {
    /// Sends the signal and waits. Whether it ended by that, and what it had logged.
    fn end(mut self, signal: Signal) -> (bool, String) {
        let _ = kill(Pid::from_raw(self.child.id().cast_signed()), signal);
        let ended = (0..500).any(|_| {
            let ended = matches!(self.child.try_wait(), Ok(Some(_)));
            if !ended {
                thread::sleep(Duration::from_millis(10));
            }
            ended
        });
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let stderr = self.stderr.join().expect("the reader does not panic");
        (ended, String::from_utf8_lossy(&stderr).into_owned())
    }
}

/// Whether the process is gone, or only waits for somebody to take note.
pub fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(')').next().unwrap_or_default().trim_start();
    state.is_empty() || state.starts_with(['Z', 'X'])
}

fn end_stranger(pid: u32, signal: Signal) {
    let process = Pid::from_raw(pid.cast_signed());
    let _ = kill(process, signal);
    let patient = std::time::Instant::now();
    while !has_ended(pid) {
        if patient.elapsed() > PATIENCE {
            let _ = kill(process, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let mut complaints = Vec::new();
        if thread::panicking() {
            let stderr = self.kill();
            eprintln!("--- the gateway's log\n{stderr}");
            let stderr = self.end_broker(Signal::SIGKILL);
            eprintln!("--- the broker's log\n{stderr}");
            let evidence = self.sluice_command(["tail"]).output();
            let evidence = evidence.map(|output| output.stdout).unwrap_or_default();
            eprintln!("--- the evidence\n{}", String::from_utf8_lossy(&evidence));
        } else {
            complaints = self.complaints();
        }
        cgroup::remove(&self.agents_group());
        let _ = self.sluice_command(["guard", "unload"]).output();
        cgroup::remove(&self.parent);
        let _ = fs::remove_dir_all(&self.pins);
        if let Some(storage) = &self.mounted {
            let _ = Command::new("umount").arg(storage).status();
        }
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}

/// The words of an unmodified psql that runs each statement as a `-c` of its own.
pub fn psql_words<'a>(address: &str, statements: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let mut words: Vec<String> = ["psql", "-X", "-A", "-t", "-d", address]
        .map(str::to_owned)
        .into();
    for statement in statements {
        words.extend(["-c".to_owned(), statement.to_owned()]);
    }
    words
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).expect("the folder is ours");
}
