//! `sluice broker`: does for the gateway what needs root, in the foreground.

use std::process::ExitCode;

use anyhow::Result;

use super::{Globals, say};
use crate::intercept::require_host_namespaces;
use crate::{broker, telemetry};

#[derive(clap::Args, Debug)]
pub struct Args {}

pub fn run(_args: Args, globals: &Globals) -> Result<ExitCode> {
    telemetry::start(globals.json);
    let config = globals.load_config()?;
    require_host_namespaces()?;
    broker::serve(&config, |socket| {
        // It serves whether somebody reads this or not.
        let _ = say(format_args!("sluice: broker ready on {}", socket.display()));
    })?;
    Ok(ExitCode::SUCCESS)
}
