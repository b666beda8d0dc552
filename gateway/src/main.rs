//! `sluice`: parse the arguments, run one command, print one error line, set the exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    match gateway::cli::main() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("sluice: {error:#}");
            ExitCode::FAILURE
        }
    }
}
