//! `sluice`: parse the arguments, run one command, print one error line, set the exit code.

use std::io::{self, Write as _};
use std::process::ExitCode;

fn main() -> ExitCode {
    match gateway::cli::main() {
        Ok(code) => code,
        Err(error) => {
            // Whoever read it may have left.
            let _ = writeln!(io::stderr(), "sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}
