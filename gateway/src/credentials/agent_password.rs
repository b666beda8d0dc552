//! The password that an agent believes is the database's: with it the gateway can play the server's part in
//! SCRAM, for clients that insist on it.

use std::path::{Path, PathBuf};

use super::{Secret, SecretFileError, read_secret_file};

/// More is another file.
const MAX_FILE: usize = 4096;

/// Why the password cannot be used. Never contains any part of it.
#[derive(Debug, thiserror::Error)]
pub enum AgentPasswordError {
    #[error("the agent's password file {} {problem}", file.display())]
    File {
        file: PathBuf,
        problem: SecretFileError,
    },
    #[error(
        "the agent's password file {} can be used by others than its owner (mode {mode:04o}); run: chmod 600 {}",
        file.display(),
        file.display()
    )]
    Exposed { file: PathBuf, mode: u32 },
    #[error("the agent's password file {} is empty or holds a NUL byte, so no client can use it", file.display())]
    Unusable { file: PathBuf },
}

/// Reads the password: a file as those of targets' passwords are.
pub fn load(file: &Path) -> Result<Secret<String>, AgentPasswordError> {
    let read = read_secret_file(file, MAX_FILE).map_err(|problem| AgentPasswordError::File {
        file: file.to_owned(),
        problem,
    })?;
    if read.mode & 0o066 != 0 {
        return Err(AgentPasswordError::Exposed {
            file: file.to_owned(),
            mode: read.mode,
        });
    }
    let password = read.without_line_break();
    match password.expose() {
        text if text.is_empty() || text.contains('\0') => Err(AgentPasswordError::Unusable {
            file: file.to_owned(),
        }),
        _ => Ok(password),
    }
}
