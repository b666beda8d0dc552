//! The two ways to a server, and a folder that both runs of a client have in turn, so that paths are the same.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::harness::program::{Ended, run_within};
use crate::harness::{Authentication, Gateway, Postgres, Setup, scratch};

/// For one program; the largest suites take minutes.
const DEADLINE: Duration = Duration::from_secs(900);

/// Whatever stands behind the gateway.
pub trait Server {
    fn port(&self) -> u16;
}

impl Server for Postgres {
    fn port(&self) -> u16 {
        Postgres::port(self)
    }
}

/// How a client reaches a server of its own.
pub struct Way {
    // Before the server, so that it ends before the server does.
    gateway: Option<Gateway>,
    server: Box<dyn Server>,
    /// Variables of the direct run, which `sluice exec` sets for an agent.
    direct_environment: Vec<(String, String)>,
}

impl Way {
    pub fn directly() -> Way {
        Way::to(Box::new(Postgres::asking_for(Authentication::Trust)))
    }

    pub fn through_gateway() -> Way {
        Way::through(Box::new(Postgres::asking_for(Authentication::Trust)))
    }

    /// Straight to this server.
    pub fn to(server: Box<dyn Server>) -> Way {
        Way {
            gateway: None,
            server,
            direct_environment: Vec::new(),
        }
    }

    /// To this server as an agent who may do everything.
    pub fn through(server: Box<dyn Server>) -> Way {
        let setup = Setup::in_front_of_port(server.port())
            .policy("allow-all")
            .max_sessions(300)
            .with_superuser_of_any_database();
        let mut gateway = setup.install();
        // A name that clients dial has to be the target's, to be in its certificate.
        let (address, name) = (
            format!("\"[::1]:{}\"", server.port()),
            format!("\"localhost:{}\"", server.port()),
        );
        gateway.edit("etc/sluice/sluice.toml", |text| {
            text.replace(&address, &format!("{address}, {name}"))
        });
        gateway.sluice(["guard", "load"]).succeeds();
        gateway.start();
        Way {
            gateway: Some(gateway),
            ..Way::to(server)
        }
    }

    /// What `sluice exec` would set, were it there.
    pub fn with_direct(mut self, name: &str, value: &str) -> Way {
        let variable = (name.to_owned(), value.to_owned());
        self.direct_environment.push(variable);
        self
    }

    pub fn port(&self) -> u16 {
        self.server.port()
    }

    /// Runs SQL as the superuser, around everything under test.
    #[track_caller]
    pub fn admin(&self, sql: &str) -> String {
        self.admin_in("postgres", sql)
    }

    #[track_caller]
    pub fn admin_in(&self, database: &str, sql: &str) -> String {
        let port = self.port().to_string();
        let mut psql = Command::new("psql");
        psql.args(["-XAtq", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"])
            .args(["-p", &port, "-U", "postgres", "-d", database, "-f", "-"]);
        let ended = run_within(DEADLINE, psql, sql.as_bytes()).succeeds();
        ended.text().trim_end().to_owned()
    }

    /// A program that runs as nobody, which an agent is too, and finds the server in its environment.
    pub fn command<S: AsRef<str>>(&self, words: &[S]) -> Command {
        let port = format!("PGPORT={}", self.port());
        let mut all: Vec<&str> = match self.gateway {
            // The agent keeps the variables that `sluice exec` set for it.
            Some(_) => vec!["env"],
            None => vec!["env", "-i"],
        };
        all.extend(["PATH=/usr/bin:/bin", "HOME=/nonexistent", "LC_ALL=C.UTF-8"]);
        all.extend(["PGHOST=127.0.0.1", &port, "PGUSER=postgres"]);
        all.extend(["PGDATABASE=postgres", "PYTHONDONTWRITEBYTECODE=1"]);
        let direct = self
            .direct_environment
            .iter()
            .map(|(name, value)| format!("{name}={value}"));
        let direct: Vec<String> = direct.collect();
        if self.gateway.is_none() {
            all.extend(direct.iter().map(String::as_str));
        }
        all.extend(words.iter().map(AsRef::as_ref));
        match &self.gateway {
            Some(gateway) => gateway.agent_command(all),
            None => {
                let mut command = Command::new("setpriv");
                command
                    .args(["--reuid=nobody", "--regid=nogroup", "--clear-groups"])
                    .args(all)
                    .current_dir("/");
                command
            }
        }
    }

    #[track_caller]
    pub fn run<S: AsRef<str>>(&self, words: &[S]) -> Ended {
        self.run_with(words, "")
    }

    #[track_caller]
    pub fn run_with<S: AsRef<str>>(&self, words: &[S], input: &str) -> Ended {
        run_within(DEADLINE, self.command(words), input.as_bytes())
    }

    /// What a program printed, without what depends on the run: the server's port.
    pub fn without_port(&self, text: &str) -> String {
        text.replace(&self.port().to_string(), "PORT")
    }
}

/// A folder that agents can reach.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        let folder = scratch::folder("client");
        open_to_all(folder.path());
        Place { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A file that everybody can read.
    pub fn file(&self, name: &str, text: &str) -> String {
        let path = self.path().join(name);
        fs::write(&path, text).expect("the folder is ours");
        path.display().to_string()
    }

    /// Where nobody may write. Cleared between the runs.
    pub fn output(&self) -> PathBuf {
        let output = self.path().join("output");
        fs::create_dir_all(&output).expect("the folder is ours");
        open_to_all(&output);
        output
    }

    pub fn clear(&self) {
        let _ = fs::remove_dir_all(self.path().join("output"));
    }
}

fn open_to_all(folder: &Path) {
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("the folder is ours");
}
