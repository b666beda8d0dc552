//! The one way a secret comes from disk: small, regular, text, into a buffer that is wiped.

use std::fs::OpenOptions;
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use zeroize::Zeroize;

use super::{CredentialError, Held, Secret};

/// What is wrong with a file that should hold a secret: the rest of a sentence that names the file.
#[derive(Debug, thiserror::Error)]
pub enum SecretFileError {
    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
    #[error("is not a regular file")]
    NotRegular,
    #[error("is larger than {max} bytes")]
    TooLarge { max: usize },
    #[error("is not UTF-8 text")]
    NotText,
}

/// The content of a secret file and its permission bits, taken from the same open file.
#[derive(Debug)]
pub(crate) struct SecretFile {
    text: Secret<String>,
    pub(crate) mode: u32,
}

/// Reads at most `max` bytes of text. Symbolic links are followed: secret mounts are made of them.
pub(crate) fn read_secret_file(path: &Path, max: usize) -> Result<SecretFile, SecretFileError> {
    let file = OpenOptions::new()
        .read(true)
        // A FIFO must be refused below, not waited for here.
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(SecretFileError::NotRegular);
    }
    // Room for all of it at once: a growing buffer leaves copies behind that nothing wipes.
    let mut bytes = Vec::with_capacity(max + 1);
    if let Err(error) = file.take(max as u64 + 1).read_to_end(&mut bytes) {
        bytes.zeroize();
        return Err(error.into());
    }
    if bytes.len() > max {
        bytes.zeroize();
        return Err(SecretFileError::TooLarge { max });
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(SecretFile {
            text: Secret::new(text),
            mode: metadata.mode() & 0o7777,
        }),
        Err(error) => {
            error.into_bytes().zeroize();
            Err(SecretFileError::NotText)
        }
    }
}

/// The same, of a file that nobody but its owner may read or write: who can write it can make the gateway log in
/// as they like.
pub(super) fn read_owners_file(
    held: Held,
    path: &Path,
    max: usize,
) -> Result<SecretFile, CredentialError> {
    let file = || path.to_owned();
    let read = read_secret_file(path, max).map_err(|problem| CredentialError::File {
        held,
        file: file(),
        problem,
    })?;
    match read.mode & 0o066 {
        0 => Ok(read),
        _ => Err(CredentialError::Exposed {
            held,
            file: file(),
            mode: read.mode,
        }),
    }
}

impl SecretFile {
    /// The text without the line break that editors and `echo` put at the end.
    pub(crate) fn without_line_break(&self) -> Secret<String> {
        let text = self.text.expose();
        let line = text.strip_suffix("\r\n").or(text.strip_suffix('\n'));
        Secret::new(line.unwrap_or(text).to_owned())
    }
}
