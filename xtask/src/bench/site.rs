//! The server and the ways to it: directly, through the plain hop, through the gateway by way of the kernel, and
//! through other proxies where they are installed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::sockets::Sockets;
use super::{peers, process, rows};
use crate::demo::database::{self, Database};
use crate::demo::installation::{AGENT, Installation};
use crate::demo::leftovers::Stage;

/// A row for each 100,000 accounts: 15 MB each.
const SCALE: &str = "10";

/// Sessions that are held, and some more.
const SESSIONS: usize = 5_400;

/// File descriptors: two for each session of the gateway, and its recording.
const DESCRIPTORS: &str = "20000";

/// One way to the server.
#[derive(Debug, Clone)]
pub struct Way {
    pub name: &'static str,
    /// What it looks at on the way.
    pub inspects: &'static str,
    pub port: u16,
    /// The process in between, whose processor time is counted.
    pub pid: Option<u32>,
    /// The cgroup that clients run in, if they are agents.
    pub cgroup: Option<PathBuf>,
    /// Whether server connections outlive clients, so that churn does not cost what it costs others.
    pub pools: bool,
}

impl Way {
    fn new(name: &'static str, inspects: &'static str, port: u16, pid: Option<u32>) -> Self {
        Self {
            name,
            inspects,
            port,
            pid,
            cgroup: None,
            pools: false,
        }
    }

    pub fn peer(
        name: &'static str,
        inspects: &'static str,
        port: u16,
        pid: u32,
        pools: bool,
    ) -> Self {
        Self {
            pools,
            ..Self::new(name, inspects, port, Some(pid))
        }
    }

    pub fn cpu_time(&self) -> Result<Option<Duration>> {
        self.pid.map(process::cpu_time).transpose()
    }

    pub fn is_gateway(&self) -> bool {
        self.cgroup.is_some()
    }
}

/// Everything that runs while it is measured.
pub struct Site<'a> {
    pub stage: &'a Stage,
    pub database: Database,
    pub installation: Installation,
    pub ways: Vec<Way>,
    /// Of the connections that have ended.
    pub sockets: Sockets,
    /// The port that agents are redirected to.
    pub listen: u16,
    /// Where nothing is answered: connections are accepted and closed.
    pub sink: Way,
    /// This program, where the user that agents are can run it.
    program: PathBuf,
}

impl<'a> Site<'a> {
    /// All but the gateway. `programs`: the folder of the release builds.
    pub fn prepare(stage: &'a Stage, programs: &Path) -> Result<Self> {
        let limit = format!("--nofile={DESCRIPTORS}:{DESCRIPTORS}");
        let own = std::process::id().to_string();
        Command::new("prlimit")
            .args(["--pid", &own, &limit])
            .status()?;
        let connections = format!("max_connections={SESSIONS}");
        let settings = [
            connections.as_str(),
            "autovacuum=off",
            // What is measured is one stream of rows, not how the server divides its work.
            "max_parallel_workers_per_gather=0",
            // The 5,000 are accepted one after another, and the hop dials as fast as it accepts.
            "authentication_timeout=600",
        ];
        // Everybody is trusted: what a login costs is the server's and the client's to say, and hides the rest.
        let database = Database::start_with(stage, "trust", &settings)?;
        fill(&database)?;
        let program = stage.folder().join("client");
        fs::copy(programs.join("xtask"), &program)?;
        let hop = start_own(stage, &program, "hop", Some(database.port))?;
        let sink = start_own(stage, &program, "sink", None)?;
        // The last one: its port is taken when it starts, so until then everybody else finds it free.
        let installation = Installation::create(stage, &database, programs.join("sluice"))?;
        let listen = configure(stage)?;
        Ok(Self {
            stage,
            ways: vec![Way::new("direct", "-", database.port, None), hop],
            database,
            installation,
            sockets: Sockets::watch(stage)?,
            listen,
            sink,
            program,
        })
    }

    /// The guard has to be loaded.
    pub fn start_gateway(&mut self) -> Result<()> {
        self.installation.start(self.stage)?;
        let gateway = Way {
            cgroup: Some(agent_cgroup(self.stage)?),
            ..Way::new(
                "gateway",
                "statements, masks, records",
                self.database.port,
                Some(self.installation.gateway_pid()?),
            )
        };
        self.ways.push(gateway);
        Ok(())
    }

    pub fn start_peers(&mut self) -> Result<()> {
        self.ways.extend(peers::start(self.stage, &self.database)?);
        Ok(())
    }

    pub fn gateway(&self) -> Result<&Way> {
        let gateway = self.ways.iter().find(|way| way.is_gateway());
        gateway.context("the gateway is not started")
    }

    pub fn guard(&self, word: &str) -> Result<()> {
        let done = self.installation.sluice(["guard", word]).output()?;
        ensure!(
            done.status.success(),
            "sluice guard {word} failed:\n{}",
            String::from_utf8_lossy(&done.stderr)
        );
        Ok(())
    }

    /// A client's command line on this way, as the user that agents are.
    pub fn command<S: AsRef<str>>(&self, way: &Way, words: &[S]) -> Command {
        self.command_in(way.cgroup.as_deref(), way.port, words)
    }

    pub fn command_in<S: AsRef<str>>(
        &self,
        cgroup: Option<&Path>,
        port: u16,
        words: &[S],
    ) -> Command {
        let mut command = Command::new("sh");
        // Entered before the first socket is made, as a unit in agents.slice would be.
        let enter = match cgroup {
            Some(cgroup) => format!("echo $$ > '{}/cgroup.procs' && ", cgroup.display()),
            None => String::new(),
        };
        command.arg("-c").arg(format!(
            "{enter}exec setpriv --reuid=nobody --regid=nogroup --clear-groups -- \"$@\""
        ));
        command.arg("sh").current_dir("/");
        command.args(words.iter().map(AsRef::as_ref));
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", database::USER)
            .env("PGDATABASE", database::NAME)
            .env("PGSSLMODE", "disable")
            .env("PGGSSENCMODE", "disable")
            .stdin(Stdio::null());
        command
    }

    /// The command line of a task of the bench's own client.
    pub fn client(&self, task: &[&str]) -> Vec<String> {
        let program = self.program.display().to_string();
        let words = ["bench", "client"].iter().chain(task);
        std::iter::once(program)
            .chain(words.map(|word| (*word).to_owned()))
            .collect()
    }

    /// A cgroup below the guard's whose processes are no agents.
    pub fn bystanders(&self) -> Result<PathBuf> {
        let agents = self.stage.agent_cgroup(AGENT)?;
        let group = agents.ancestors().nth(2).context("agents are below it")?;
        let cgroup = group.join("bystanders");
        fs::create_dir_all(&cgroup)?;
        Ok(cgroup)
    }

    /// An empty folder that clients can write to.
    pub fn scratch(&self) -> Result<PathBuf> {
        let folder = self.stage.folder().join("scratch");
        if folder.exists() {
            fs::remove_dir_all(&folder)?;
        }
        fs::create_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
        Ok(folder)
    }
}

/// Made by the first `sluice exec`; here it has to be before.
fn agent_cgroup(stage: &Stage) -> Result<PathBuf> {
    let cgroup = stage.agent_cgroup(AGENT)?;
    fs::create_dir_all(&cgroup)?;
    Ok(cgroup)
}

fn fill(database: &Database) -> Result<()> {
    let output = Command::new("pgbench")
        .args(["-i", "-q", "-s", SCALE, "-h"])
        .arg(database.sockets())
        .args(["-p", &database.port.to_string(), "-U", database::USER])
        .arg(database::NAME)
        .output()
        .context("running pgbench -i")?;
    ensure!(
        output.status.success(),
        "pgbench -i failed:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    database.admin(&rows::table(database::USER))?;
    database.admin("VACUUM ANALYZE")?;
    Ok(())
}

/// Writes allowed to pgbench, beside what read-only permits.
const PGBENCH_WRITES: &str = r#"
@id("pgbench-writes")
permit (principal, action in Sluice::Action::"sql:write", resource is Sluice::Table)
when { resource.schema == "public" && resource.name like "pgbench_*" };

@id("pgbench-writes-run")
permit (principal, action in Sluice::Action::"sql:write", resource is Sluice::Target);
"#;

/// Adds to the demo's configuration what the bench needs. Answers the port that agents are redirected to.
fn configure(stage: &Stage) -> Result<u16> {
    let etc = stage.root().join("etc/sluice");
    let file = etc.join("sluice.toml");
    let text = fs::read_to_string(&file)?;
    let listen = text
        .lines()
        .find_map(|line| line.strip_prefix("listen_port = ")?.parse().ok());
    let text = text.replace(
        "[gateway]\n",
        &format!("[gateway]\nmax_sessions = {SESSIONS}\n"),
    );
    fs::write(&file, text + &rows::masks())?;
    fs::write(etc.join("policies/pgbench.cedar"), PGBENCH_WRITES)?;
    listen.context("the configuration names the gateway's port")
}

/// A server of this program's, on a port of its own.
fn start_own(
    stage: &Stage,
    program: &Path,
    name: &'static str,
    target: Option<u16>,
) -> Result<Way> {
    let port = database::free_port()?;
    let mut command = Command::new("setpriv");
    command
        .args(["--pdeathsig=KILL", "--"])
        .arg(program)
        .args(["bench", name])
        .arg(format!("127.0.0.1:{port}"));
    if let Some(target) = target {
        command.arg(format!("127.0.0.1:{target}"));
    }
    let mut process = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(stage.folder().join(format!("{name}.log")))?)
        .spawn()
        .with_context(|| format!("starting the {name}"))?;
    let pid = process.id();
    let line = first_line(&mut process)?;
    stage.adopt(process)?;
    ensure!(line.contains("ready"), "the {name} does not start: {line}");
    Ok(Way::new(name, "nothing", port, Some(pid)))
}

fn first_line(process: &mut Child) -> Result<String> {
    let stdout = process.stdout.take().context("stdout is a pipe")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    Ok(line)
}
