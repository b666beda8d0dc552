//! Sluice as an operator would install it, below the demo's folder instead of `/`.

use std::cell::Cell;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use super::database::{self, Database};
use super::leftovers::Stage;
use super::token::{self, AUDIENCE, ISSUER};
use super::write;
use crate::build_ebpf;

pub const AGENT: &str = "report-bot";
const SUBJECT: &str = "report-bot@corp";

/// The user that the gateway becomes, by number: the demo adds none to the host.
const GATEWAY_USER: u32 = 64023;

pub struct Installation {
    root: PathBuf,
    /// The program that is installed.
    program: PathBuf,
    /// The gateway's process, once it is started.
    gateway: Cell<Option<u32>>,
    secrets: Vec<String>,
}

impl Installation {
    pub fn create(stage: &Stage, database: &Database, program: PathBuf) -> Result<Self> {
        let root = stage.root();
        let private = stage.folder().join("issuer");
        fs::create_dir(&private)?;
        fs::set_permissions(&private, fs::Permissions::from_mode(0o700))?;
        let issued = token::issue(&private, SUBJECT)?;
        let etc = root.join("etc/sluice");
        write(etc.join("sluice.toml"), &configuration(stage, database)?)?;
        write(etc.join("jwks.json"), &issued.jwks)?;
        let profile = build_ebpf::workspace().join("policies/read-only.cedar");
        let policies = fs::read_to_string(&profile)
            .with_context(|| format!("reading {}", profile.display()))?;
        write(etc.join("policies/read-only.cedar"), &policies)?;
        write_secret(etc.join("credentials/shop"), &database.password)?;
        write_secret(
            root.join(format!("run/sluice/tokens/{AGENT}.jwt")),
            &issued.token,
        )?;
        Ok(Self {
            root,
            program,
            gateway: Cell::new(None),
            secrets: vec![database.password.clone(), issued.token],
        })
    }

    /// One of the operator's commands on this installation.
    pub fn sluice<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--root").arg(&self.root).args(words);
        command
    }

    /// Starts the broker, which does for the gateway what needs root, then the gateway. Answers the lines that
    /// say where they are.
    pub fn start(&self, stage: &Stage) -> Result<[String; 2]> {
        let broker = self.start_one(stage, "broker")?;
        Ok([broker, self.start_one(stage, "run")?])
    }

    fn start_one(&self, stage: &Stage, name: &str) -> Result<String> {
        let log = self.root.join(format!("{name}.log"));
        let mut command = if stage.keep {
            self.sluice([name])
        } else {
            // It ends when the demo does, however that ends. (For the gateway until it gives up root: that
            // clears the request. The next demo would end it.)
            let mut command = Command::new("setpriv");
            command.args(["--pdeathsig=KILL", "--"]);
            command
                .arg(&self.program)
                .arg("--root")
                .arg(&self.root)
                .arg(name);
            command
        };
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&log)?)
            .spawn()
            .with_context(|| format!("starting sluice {name}"))?;
        let stdout = process.stdout.take().context("stdout is a pipe")?;
        self.gateway.set(Some(process.id()));
        stage.adopt(process)?;
        let ready = BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .find(|line| line.contains("ready"));
        match ready {
            Some(line) => Ok(line),
            None => bail!(
                "sluice {name} does not start:\n{}",
                fs::read_to_string(log).unwrap_or_default()
            ),
        }
    }

    /// The process that relays; it is the last one started.
    pub fn gateway_pid(&self) -> Result<u32> {
        self.gateway.get().context("the gateway is not started")
    }

    /// The folder of the evidence log.
    pub fn log(&self) -> PathBuf {
        self.root.join("var/lib/sluice/log")
    }

    /// The id of the one session there was: an unregistered process has none.
    pub fn only_session(&self) -> Result<String> {
        let recordings = self.recordings()?;
        ensure!(
            recordings.len() == 1,
            "there should be one recording, not {}",
            recordings.len()
        );
        let session = recordings[0].file_stem().and_then(OsStr::to_str);
        session
            .map(str::to_owned)
            .context("a recording is named by its session")
    }

    /// The files of log, recordings and gateway output in which a secret stands.
    pub fn secrets_on_disk(&self, another: &str) -> Result<Vec<String>> {
        let mut files = self.recordings()?;
        files.push(self.root.join("var/lib/sluice/log/log.jsonl"));
        files.push(self.root.join("broker.log"));
        files.push(self.root.join("run.log"));
        let secrets: Vec<&str> = self
            .secrets
            .iter()
            .map(String::as_str)
            .chain([another])
            .collect();
        let mut found = Vec::new();
        for file in files {
            let bytes = fs::read(&file).with_context(|| format!("reading {}", file.display()))?;
            let text = String::from_utf8_lossy(&bytes);
            if secrets.iter().any(|secret| text.contains(secret)) {
                found.push(format!("a secret stands in {}", file.display()));
            }
        }
        Ok(found)
    }

    fn recordings(&self) -> Result<Vec<PathBuf>> {
        let folder = self.root.join("var/lib/sluice/recordings");
        let entries =
            fs::read_dir(&folder).with_context(|| format!("reading {}", folder.display()))?;
        Ok(entries.flatten().map(|entry| entry.path()).collect())
    }
}

fn configuration(stage: &Stage, database: &Database) -> Result<String> {
    Ok(format!(
        r#"[gateway]
listen_port = {listen}
user = "{GATEWAY_USER}"

[kernel]
agents_cgroup = "{group}/agents.slice"
gateway_cgroup = "{group}/sluice.slice"
guard_cgroup = "{group}"
pins = "{pins}"

[identity.corp]
issuer = "{ISSUER}"
audience = "{AUDIENCE}"
jwks = "/etc/sluice/jwks.json"

[agents.{AGENT}]
identity = "corp"
token_file = "/run/sluice/tokens/{AGENT}.jwt"
subject = "{SUBJECT}"

[targets.shop]
protocol = "postgres"
addresses = ["127.0.0.1:{port}", "[::1]:{port}"]
database = "{shop}"
tls = {{ mode = "disable" }}
credential = {{ user = "{user}", password_file = "/etc/sluice/credentials/shop" }}

[[targets.shop.mask]]
column = "public.customers.card_number"
with = "keep_last(4)"

[[targets.shop.mask]]
column = "public.customers.email"
with = "redact"
"#,
        listen = database::free_port()?,
        group = stage.group(),
        pins = stage.pins().display(),
        port = database.port,
        shop = database::NAME,
        user = database::USER,
    ))
}

/// For the gateway's user only.
fn write_secret(path: PathBuf, text: &str) -> Result<()> {
    write(path.clone(), "")?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
    chown(&path, Some(GATEWAY_USER), Some(GATEWAY_USER))?;
    write(path, text)
}
