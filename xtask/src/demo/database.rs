//! The demo's PostgreSQL: Debian's, with its own data below the demo's folder. Servers that run already are
//! left alone.

use std::fs::{self, File};
use std::io::Read as _;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};

use super::leftovers::Stage;

const SHOP: &str = include_str!("shop.sql");
pub const USER: &str = "shop_app";
pub const NAME: &str = "shop";

pub struct Database {
    pub port: u16,
    /// The application user's; made for this run.
    pub password: String,
    sockets: PathBuf,
}

impl Database {
    /// Clients over the network prove themselves with `method`, as pg_hba.conf calls it.
    pub fn start(stage: &Stage, method: &str) -> Result<Self> {
        Self::start_with(stage, method, &[])
    }

    /// The same with settings, `name=value`.
    pub fn start_with(stage: &Stage, method: &str, settings: &[&str]) -> Result<Self> {
        let folder = stage.folder().join("postgres");
        let data = folder.join("data");
        fs::create_dir(&folder)?;
        quietly(Command::new("chown").arg("postgres:").arg(&folder))?;
        // The server's own socket is no network: an agent's user must not reach it.
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        let mut initdb = as_postgres(&binary("initdb")?, stage);
        initdb.args(["--username=postgres", "--auth-local=trust"]);
        initdb.arg(format!("--auth-host={method}"));
        initdb.args(["--encoding=UTF8", "--locale=C.UTF-8", "--no-sync", "-D"]);
        quietly(initdb.arg(&data))?;
        let port = free_port()?;
        let log = folder.join("log");
        let server = as_postgres(&binary("postgres")?, stage)
            .arg("-D")
            .arg(&data)
            .args([
                "-c",
                "listen_addresses=127.0.0.1,::1",
                "-c",
                "fsync=off",
                "-c",
            ])
            .arg(format!("port={port}"))
            .arg("-c")
            .arg(format!("unix_socket_directories={}", folder.display()))
            .args(settings.iter().flat_map(|setting| ["-c", setting]))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting PostgreSQL")?;
        stage.adopt(server)?;
        let database = Self {
            port,
            password: random_password()?,
            sockets: folder,
        };
        database.wait_until_ready(&log)?;
        database.load_shop()?;
        fs::write(stage.folder().join("address"), database.address())?;
        Ok(database)
    }

    /// What a client is configured with.
    pub fn address(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user={USER} dbname={NAME}",
            self.port
        )
    }

    /// What the superuser sees, over the server's own socket.
    pub fn admin(&self, sql: &str) -> Result<String> {
        let mut psql = self.psql("postgres", NAME);
        quietly(psql.args(["-At", "-c", sql]))
    }

    fn load_shop(&self) -> Result<()> {
        let roles = format!("CREATE ROLE {USER} LOGIN PASSWORD '{}'", self.password);
        let database = format!("CREATE DATABASE {NAME} OWNER {USER}");
        let mut psql = self.psql("postgres", "postgres");
        quietly(psql.args(["-c", &roles, "-c", &database]))?;
        let mut psql = self.psql(USER, NAME);
        quietly(psql.args(["-c", SHOP]))?;
        Ok(())
    }

    /// Where the server's own socket is: for the superuser.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    fn psql(&self, user: &str, database: &str) -> Command {
        let mut psql = Command::new("psql");
        psql.args([
            "-X",
            "-q",
            "-v",
            "ON_ERROR_STOP=1",
            "-U",
            user,
            "-d",
            database,
            "-p",
        ])
        .arg(self.port.to_string())
        .arg("-h")
        .arg(&self.sockets);
        psql
    }

    fn wait_until_ready(&self, log: &Path) -> Result<()> {
        for _ in 0..300 {
            let answers = self
                .psql("postgres", "postgres")
                .args(["-c", "SELECT 1"])
                .output()?;
            if answers.status.success() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(100));
        }
        bail!(
            "PostgreSQL does not start:\n{}",
            fs::read_to_string(log).unwrap_or_default()
        )
    }
}

/// PostgreSQL refuses to run as root. Unless it is to be kept, it ends when the demo does, however that ends.
fn as_postgres(program: &Path, stage: &Stage) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid=postgres", "--regid=postgres", "--init-groups"]);
    if !stage.keep {
        command.arg("--pdeathsig=QUIT");
    }
    command.arg("--").arg(program).current_dir("/");
    command.env("LC_ALL", "C.UTF-8");
    command
}

/// The newest version's: Debian keeps the server's programs outside the PATH.
fn binary(name: &str) -> Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").context("PostgreSQL is not installed")?;
    let mut found: Vec<PathBuf> = versions
        .flatten()
        .map(|version| version.path().join("bin").join(name))
        .filter(|path| path.exists())
        .collect();
    found.sort();
    found
        .pop()
        .with_context(|| format!("PostgreSQL's {name} is not installed"))
}

/// Free on IPv4 and IPv6, and outside the range that outgoing connections take theirs from.
pub fn free_port() -> Result<u16> {
    let start = 20_000 + (std::process::id() % 10_000) as u16;
    (start..start + 2_000)
        .find(|&port| {
            TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
                && TcpListener::bind((Ipv6Addr::LOCALHOST, port)).is_ok()
        })
        .context("no free port on the loopback interface")
}

fn random_password() -> Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn quietly(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("running {command:?}"))?;
    ensure!(
        output.status.success(),
        "{:?} failed:\n{}{}",
        command.get_program(),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout)
        .trim_end()
        .to_owned())
}
