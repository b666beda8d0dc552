//! The operators' command line: one file per command.

use std::fmt::Display;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::config::{self, Config};

mod audit;
mod broker;
mod check;
mod doctor;
mod exec;
mod guard;
mod replay;
mod run;
mod sessions;
mod status;
mod tail;

/// Sluice: prove who ran what, when, and what they saw.
#[derive(Parser, Debug)]
#[command(name = "sluice", version, max_term_width = 100)]
pub struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

/// Options every command takes.
#[derive(clap::Args, Debug, Clone)]
pub struct Globals {
    /// Move the whole installation below DIR: DIR/etc/sluice, DIR/var/lib/sluice, …
    #[arg(long, global = true, value_name = "DIR")]
    pub root: Option<PathBuf>,
    /// The configuration file [default: ROOT/etc/sluice/sluice.toml]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long, global = true)]
    pub json: bool,
}

impl Globals {
    /// Where the configuration is read from.
    pub fn config_path(&self) -> PathBuf {
        match (&self.config, &self.root) {
            (Some(file), _) => file.clone(),
            (None, Some(root)) => root.join("etc/sluice/sluice.toml"),
            (None, None) => PathBuf::from("/etc/sluice/sluice.toml"),
        }
    }

    pub fn root(&self) -> Option<&Path> {
        self.root.as_deref()
    }

    /// The validated configuration, or every error in it.
    pub fn load_config(&self) -> Result<Config> {
        Ok(config::load(&self.config_path(), self.root())?)
    }
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Load, verify or remove the kernel programs (root)
    Guard(guard::Args),
    /// Do for the gateway what needs root: its listeners, its maps, agents' programs (root)
    Broker(broker::Args),
    /// Run the gateway
    Run(run::Args),
    /// Start a command as an agent, in that agent's cgroup
    Exec(exec::Args),
    /// Show the evidence log, live with --follow
    Tail(tail::Args),
    /// List sessions
    Sessions(sessions::Args),
    /// Show a recorded session
    Replay(replay::Args),
    /// Check the evidence
    Audit(audit::Args),
    /// Check configuration and policies: every error at once
    Check(check::Args),
    /// Show whether agents are intercepted, and what each of them did (root)
    Status(status::Args),
    /// Show what this host has and what is missing
    Doctor(doctor::Args),
}

/// Prints a line. That its reader, such as `head`, has seen enough is no error and changes no exit code.
fn say(line: impl Display) -> io::Result<()> {
    unless_reader_left(writeln!(io::stdout().lock(), "{line}"))
}

fn unless_reader_left(written: io::Result<()>) -> io::Result<()> {
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

/// Parses the arguments and runs one command.
pub fn main() -> Result<ExitCode> {
    let Cli { globals, command } = Cli::parse();
    match command {
        Command::Guard(args) => guard::run(args, &globals),
        Command::Broker(args) => broker::run(args, &globals),
        Command::Run(args) => run::run(args, &globals),
        Command::Exec(args) => exec::run(args, &globals),
        Command::Tail(args) => tail::run(args, &globals),
        Command::Sessions(args) => sessions::run(args, &globals),
        Command::Replay(args) => replay::run(args, &globals),
        Command::Audit(args) => audit::run(args, &globals),
        Command::Check(args) => check::run(args, &globals),
        Command::Status(args) => status::run(args, &globals),
        Command::Doctor(args) => doctor::run(args, &globals),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_left_is_no_error() {
        let failed = |kind: io::ErrorKind| unless_reader_left(Err(kind.into()));
        assert!(failed(io::ErrorKind::BrokenPipe).is_ok());
        assert!(failed(io::ErrorKind::StorageFull).is_err());
    }
}
