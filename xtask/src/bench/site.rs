//! The server and the ways to it: directly, through the plain hop, through the gateway by way of the kernel, and
//! through other proxies where they are installed.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use super::process;
use crate::demo::database::{self, Database};
use crate::demo::installation::{AGENT, Installation};
use crate::demo::leftovers::Stage;

/// A row for each 100,000 accounts: 15 MB each.
const SCALE: &str = "10";

/// One way to the server.
#[derive(Debug, Clone)]
pub struct Way {
    pub name: &'static str,
    pub port: u16,
    /// The process in between, whose processor time is counted.
    pub pid: Option<u32>,
    /// The cgroup that clients run in, if they are agents.
    pub cgroup: Option<PathBuf>,
}

impl Way {
    pub fn cpu_time(&self) -> Result<Option<Duration>> {
        self.pid.map(process::cpu_time).transpose()
    }
}

/// Everything that runs while it is measured.
pub struct Site<'a> {
    pub stage: &'a Stage,
    pub installation: Installation,
    pub ways: Vec<Way>,
}

impl<'a> Site<'a> {
    /// `programs`: the folder of the release builds.
    pub fn set_up(stage: &'a Stage, programs: &Path) -> Result<Self> {
        // Everybody is trusted: what a login costs is the server's and the client's to say, and hides the rest.
        let database = Database::start(stage, "trust")?;
        fill(&database)?;
        let installation = Installation::create(stage, &database, programs.join("sluice"))?;
        let load = installation.sluice(["guard", "load"]).output()?;
        ensure!(
            load.status.success(),
            "the guard cannot be loaded:\n{}",
            String::from_utf8_lossy(&load.stderr)
        );
        installation.start(stage)?;
        let hop = start_hop(stage, programs, database.port)?;
        let ways = vec![
            Way {
                name: "direct",
                port: database.port,
                pid: None,
                cgroup: None,
            },
            hop,
            Way {
                name: "gateway",
                port: database.port,
                pid: Some(installation.gateway_pid()?),
                cgroup: Some(agent_cgroup(stage)?),
            },
        ];
        Ok(Self {
            stage,
            installation,
            ways,
        })
    }

    /// A client's command line on this way, as the user that agents are.
    pub fn command(&self, way: &Way, words: &[String]) -> Command {
        let mut command = Command::new("sh");
        // Entered before the first socket is made, as a unit in agents.slice would be.
        let enter = match &way.cgroup {
            Some(cgroup) => format!("echo $$ > '{}/cgroup.procs' && ", cgroup.display()),
            None => String::new(),
        };
        command.arg("-c").arg(format!(
            "{enter}exec setpriv --reuid=nobody --regid=nogroup --clear-groups -- \"$@\""
        ));
        command.arg("sh").args(words).current_dir("/");
        command
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", way.port.to_string())
            .env("PGUSER", database::USER)
            .env("PGDATABASE", database::NAME)
            .env("PGSSLMODE", "disable")
            .stdin(Stdio::null());
        command
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
    database.admin("VACUUM ANALYZE")?;
    Ok(())
}

fn start_hop(stage: &Stage, programs: &Path, server: u16) -> Result<Way> {
    let port = database::free_port()?;
    let mut process = Command::new("setpriv")
        .args(["--pdeathsig=KILL", "--"])
        .arg(programs.join("xtask"))
        .args(["bench", "hop"])
        .arg(format!("127.0.0.1:{port}"))
        .arg(format!("127.0.0.1:{server}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(File::create(stage.folder().join("hop.log"))?)
        .spawn()
        .context("starting the hop")?;
    let pid = process.id();
    let stdout = process.stdout.take().context("stdout is a pipe")?;
    stage.adopt(process)?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    ensure!(line.contains("ready"), "the hop does not start: {line}");
    Ok(Way {
        name: "hop",
        port,
        pid: Some(pid),
        cgroup: None,
    })
}
