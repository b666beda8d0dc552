//! `sluice run`: the data plane, in the foreground.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::Globals;
use crate::app::{self, Herald, Predecessor};
use crate::telemetry;

#[derive(clap::Args, Debug)]
pub struct Args {
    /// Take over from the gateway behind standard input, which started this one
    #[arg(long, hide = true)]
    take_over: bool,
}

pub fn run(args: Args, globals: &Globals) -> Result<ExitCode> {
    telemetry::start(globals.json);
    let predecessor = args.take_over.then(Predecessor::inherited).transpose()?;
    let herald = predecessor.as_ref().map(Predecessor::herald);
    let ended = gateway(predecessor, globals);
    if let (Err(error), Some(herald)) = (&ended, herald) {
        Herald::failed(&herald, error);
    }
    ended.map(|()| ExitCode::SUCCESS)
}

fn gateway(predecessor: Option<Predecessor>, globals: &Globals) -> Result<()> {
    let start = app::prepare(globals.load_config()?, predecessor)?;
    // For everything but the sessions, which have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    runtime.block_on(app::run(start))
}
