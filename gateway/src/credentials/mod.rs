//! What the gateway logs in with at targets, and the rules for files that hold secrets.
//!
//! A secret enters the process in one place ([`file`]), lives in a [`Secret`] that cannot be printed, cloned
//! or serialised, and is overwritten when dropped. Reading it takes a call to [`Secret::expose`], so every
//! use can be found with one grep.

pub mod agent_password;
pub mod authority;
mod file;
mod secret;

use std::path::PathBuf;

use crate::config::CredentialSource;

pub use secret::Secret;

pub(crate) use file::{SecretFileError, read_secret_file};

/// A password of 4 KiB is a mistake, such as the path of a key or a whole configuration.
const MAX_PASSWORD_FILE: usize = 4096;

/// A user and its password at one target.
#[derive(Debug)]
pub struct Credential {
    pub user: String,
    pub password: Secret<String>,
}

/// Why a credential cannot be used. Never contains any part of it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the password file {} {problem}", file.display())]
    File {
        file: PathBuf,
        problem: SecretFileError,
    },
    #[error(
        "the password file {} can be used by others than its owner (mode {mode:04o}); run: chmod 600 {}",
        file.display(),
        file.display()
    )]
    Exposed { file: PathBuf, mode: u32 },
    #[error("the password file {} is empty; write the password of {user:?} into it", file.display())]
    Empty { file: PathBuf, user: String },
    #[error("the password file {} contains a NUL byte, which no server accepts in a password", file.display())]
    Nul { file: PathBuf },
}

/// Reads the credential: a regular file of at most 4 KiB that only its owner can read or write, holding the
/// password and at most one line break after it.
pub fn load(source: &CredentialSource) -> Result<Credential, CredentialError> {
    let file = || source.password_file.clone();
    let read = read_secret_file(&source.password_file, MAX_PASSWORD_FILE).map_err(|problem| {
        CredentialError::File {
            file: file(),
            problem,
        }
    })?;
    // Group and others: neither read nor write. Who can write it can make the gateway log in as they like.
    if read.mode & 0o066 != 0 {
        return Err(CredentialError::Exposed {
            file: file(),
            mode: read.mode,
        });
    }
    let password = read.without_line_break();
    if password.expose().is_empty() {
        return Err(CredentialError::Empty {
            file: file(),
            user: source.user.clone(),
        });
    }
    if password.expose().contains('\0') {
        return Err(CredentialError::Nul { file: file() });
    }
    Ok(Credential {
        user: source.user.clone(),
        password,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;

    use super::*;

    fn write(file: &Path, content: &[u8], mode: u32) {
        fs::write(file, content).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load_from(file: &Path) -> Result<Credential, CredentialError> {
        load(&CredentialSource {
            user: "app".to_owned(),
            password_file: file.to_owned(),
        })
    }

    #[test]
    fn password_files() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pw");
        let long = [b'x'; MAX_PASSWORD_FILE + 1];
        for (name, content, mode, expected) in [
            ("plain", b"hunter2".as_slice(), 0o600, Ok("hunter2")),
            ("one line break goes", b"hunter2\n", 0o600, Ok("hunter2")),
            ("as Windows writes it", b"hunter2\r\n", 0o600, Ok("hunter2")),
            (
                "only one line break goes",
                b"hunter2\n\n",
                0o600,
                Ok("hunter2\n"),
            ),
            ("spaces stay", b" hunter 2 ", 0o400, Ok(" hunter 2 ")),
            (
                "as long as it may be",
                &long[1..],
                0o600,
                Ok(std::str::from_utf8(&long[1..]).unwrap()),
            ),
            ("too long", &long, 0o600, Err("is larger than 4096 bytes")),
            (
                "empty",
                b"",
                0o600,
                Err("is empty; write the password of \"app\""),
            ),
            ("only a line break", b"\n", 0o600, Err("is empty")),
            ("not text", b"\xff\xfe", 0o600, Err("is not UTF-8 text")),
            ("NUL", b"a\0b", 0o600, Err("contains a NUL byte")),
            (
                "group can read",
                b"x",
                0o640,
                Err("(mode 0640); run: chmod 600"),
            ),
            ("others can read", b"x", 0o604, Err("(mode 0604)")),
            ("others can write", b"x", 0o602, Err("(mode 0602)")),
        ] {
            write(&file, content, mode);
            match (load_from(&file), expected) {
                (Ok(credential), Ok(password)) => {
                    assert_eq!(credential.password.expose(), password, "{name}");
                }
                (Err(error), Err(part)) => {
                    let text = error.to_string();
                    assert!(text.contains(part), "{name}: {text}");
                    assert!(text.contains(file.to_str().unwrap()), "{name}: {text}");
                    assert!(!text.contains("hunter2"), "{name}: {text}");
                }
                (found, _) => panic!("{name}: {found:?}"),
            }
        }
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for (file, part) in [
            (fifo.as_path(), "is not a regular file"),
            (dir.path(), "is not a regular file"),
            (Path::new("/dev/null"), "is not a regular file"),
            (Path::new("/nowhere/pw"), "cannot be read: No such file"),
        ] {
            let text = load_from(file).unwrap_err().to_string();
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn a_credential_prints_without_its_password() {
        let credential = Credential {
            user: "app".to_owned(),
            password: Secret::new("hunter2".to_owned()),
        };
        assert_eq!(
            format!("{credential:?}"),
            r#"Credential { user: "app", password: Secret(..) }"#
        );
    }
}
