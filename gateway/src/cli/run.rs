//! `sluice run`: the data plane, in the foreground.

use std::process::ExitCode;

use anyhow::{Context, Result};

use super::Globals;
use crate::{app, store, telemetry};

#[derive(clap::Args, Debug)]
pub struct Args {}

pub fn run(_args: Args, globals: &Globals) -> Result<ExitCode> {
    telemetry::start(globals.json);
    let config = globals.load_config()?;
    let policies = store::policies::load(&config.policies).map_err(|errors| {
        let lines: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!("the policies are refused:\n{}", lines.join("\n"))
    })?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("session")
        .build()
        .context("starting the session threads")?;
    runtime.block_on(app::run(config, policies))?;
    Ok(ExitCode::SUCCESS)
}
