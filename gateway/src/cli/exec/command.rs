//! The agent's command: which file it is, and the environment it gets.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io::{Error, ErrorKind};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process;

use nix::sys::signal::SigSet;
use nix::unistd::{AccessFlags, User, access};

use crate::config::Tls;
use crate::intercept::isolate;

/// What a shell answers when a command cannot be run, or is not there.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// What an agent gets of the caller's environment unasked. The caller is root: the rest may hold secrets.
const PASSED_ON: [&str; 6] = ["PATH", "TERM", "COLORTERM", "LANG", "LANGUAGE", "TZ"];

/// Where libraries look for the one authority that vouches for targets.
const AUTHORITY: [&str; 2] = ["PGSSLROOTCERT", "NODE_EXTRA_CA_CERTS"];

/// Where those look that take one file for all authorities: OpenSSL and all that builds on it, Python's requests,
/// curl, git.
const BUNDLE: [&str; 4] = [
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "GIT_SSL_CAINFO",
];

/// Where programs are looked for when the caller has no PATH either.
const STANDARD_PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A command and its environment, ready to be looked up and started by the agent's user.
#[derive(Debug)]
pub struct Command {
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
}

impl Command {
    /// `words` has at least one; `asked_for` are `NAME` and `NAME=VALUE` that the caller passes on.
    pub fn new(words: Vec<OsString>, asked_for: &[OsString], user: &User, tls: &Tls) -> Self {
        let mut words = words.into_iter();
        let mut environment = vec![
            ("HOME".into(), user.dir.clone().into()),
            ("USER".into(), user.name.clone().into()),
            ("LOGNAME".into(), user.name.clone().into()),
        ];
        let trusted = |name: &&'static str, file: PathBuf| (OsString::from(name), file.into());
        environment.extend(AUTHORITY.iter().map(|name| trusted(name, tls.authority())));
        environment.extend(BUNDLE.iter().map(|name| trusted(name, tls.bundle())));
        // Last, so that the caller's own count.
        environment.extend(passed_on(asked_for));
        Self {
            program: words.next().unwrap_or_default(),
            arguments: words.collect(),
            environment,
        }
    }

    /// Becomes the command. Returns only if that failed: the exit code, and it has said why.
    pub fn exec(&self) -> u8 {
        match self.lookup() {
            Ok(file) => self.complain(&self.prepared(&file).exec()),
            Err(error) => self.complain(&error),
        }
    }

    /// Starts the command as a child, which receives the signals that this process holds back.
    pub fn spawn(&self, held: SigSet) -> Result<process::Child, u8> {
        let start = |file: PathBuf| {
            let mut command = self.prepared(&file);
            isolate::release_in_child(&mut command, held);
            command.spawn()
        };
        self.lookup()
            .and_then(start)
            .map_err(|error| self.complain(&error))
    }

    fn prepared(&self, file: &Path) -> process::Command {
        let mut command = process::Command::new(file);
        command
            .arg0(&self.program)
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// execvp(3) reports a folder that the user may not enter as if the program were there and forbidden.
    /// root's PATH has such folders, so the search is done here, as the agent's user.
    fn lookup(&self) -> Result<PathBuf, Error> {
        if self.program.as_encoded_bytes().contains(&b'/') {
            return Ok(PathBuf::from(&self.program));
        }
        let path = self.path();
        let mut candidates = env::split_paths(&path).map(|folder| folder.join(&self.program));
        let mut forbidden = None;
        let runnable = candidates.find(|file| {
            if !file.is_file() {
                return false;
            }
            let runs = access(file, AccessFlags::X_OK);
            if let Err(errno) = runs {
                forbidden = Some(errno);
            }
            runs.is_ok()
        });
        runnable
            .ok_or_else(|| forbidden.map_or_else(|| Error::from(ErrorKind::NotFound), Error::from))
    }

    fn path(&self) -> OsString {
        let set = self.environment.iter().rev();
        let mut path = set.filter(|(name, _)| name == "PATH").map(|(_, path)| path);
        path.next().cloned().unwrap_or_else(|| STANDARD_PATH.into())
    }

    fn complain(&self, error: &Error) -> u8 {
        let program = self.program.display();
        if error.kind() == ErrorKind::NotFound {
            eprintln!("sluice: {program}: not found");
            NOT_FOUND
        } else {
            eprintln!("sluice: {program}: {error}");
            CANNOT_RUN
        }
    }
}

fn passed_on(asked_for: &[OsString]) -> Vec<(OsString, OsString)> {
    let is_harmless = |name: &OsStr| {
        let name = name.to_string_lossy();
        PASSED_ON.contains(&&*name) || name.starts_with("LC_")
    };
    let mut passed: Vec<_> = env::vars_os()
        .filter(|(name, _)| is_harmless(name))
        .collect();
    for asked in asked_for {
        let bytes = asked.as_encoded_bytes();
        match bytes.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, value) = bytes.split_at(at);
                let text = |bytes: &[u8]| OsString::from_vec(bytes.to_vec());
                passed.push((text(name), text(value.get(1..).unwrap_or_default())));
            }
            None => passed.extend(env::var_os(asked).map(|value| (asked.clone(), value))),
        }
    }
    passed
}
