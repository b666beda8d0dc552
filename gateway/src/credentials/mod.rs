//! What the gateway logs in with at targets, and the rules for files that hold secrets.
//!
//! A secret enters the process in one place ([`file`]), lives in a [`Secret`] that cannot be printed, cloned
//! or serialised, and is overwritten when dropped. Reading it takes a call to [`Secret::expose`], so every
//! use can be found with one grep.

pub mod agent_password;
pub mod authority;
mod file;
mod secret;
pub mod tls;

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::{ChannelBinding, CredentialSource, LoginMethod};
use crate::protocol::postgres::scram::client::{Challenged, Keys};

pub use secret::Secret;

use file::read_owners_file;
pub(crate) use file::{SecretFileError, read_secret_file};

/// A password of 4 KiB is a mistake, such as the path of a key or a whole configuration.
const MAX_PASSWORD_FILE: usize = 4096;

/// A user at one target, and how it proves to be that user.
#[derive(Debug)]
pub struct Credential {
    pub user: String,
    pub password: Option<Secret<String>>,
    /// The ways to log in that are accepted, where they were chosen.
    pub require_auth: Option<BTreeSet<LoginMethod>>,
    pub channel_binding: ChannelBinding,
    /// What the password last came to in SCRAM. A server's salt stays the same until the password is set anew.
    pub(crate) scram: Mutex<Option<Arc<Keys>>>,
}

impl Credential {
    /// The keys that prove the password to a server with this salt; none without a password.
    pub(crate) fn scram_keys(&self, challenged: &Challenged) -> Option<Arc<Keys>> {
        let password = self.password.as_ref()?;
        let kept = || self.scram.lock().unwrap_or_else(PoisonError::into_inner);
        let known = kept().clone().filter(|keys| keys.fit(challenged));
        if known.is_some() {
            return known;
        }
        let keys = Arc::new(Keys::derive(password.expose(), challenged));
        *kept() = Some(Arc::clone(&keys));
        Some(keys)
    }

    /// Whether the server may ask in this way. By default a password goes out in clear only to a server that
    /// an authority vouches for (`verified`).
    pub fn accepts(&self, method: LoginMethod, verified: bool) -> bool {
        match &self.require_auth {
            Some(methods) => methods.contains(&method),
            None => method != LoginMethod::Password || verified,
        }
    }
}

/// What a secret file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    Password,
    Key,
}

impl fmt::Display for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Held::Password => "password file",
            Held::Key => "key file",
        })
    }
}

/// Why a credential cannot be used. Never contains any part of it.
#[derive(Debug, thiserror::Error)]
pub enum CredentialError {
    #[error("the {held} {} {problem}", file.display())]
    File {
        held: Held,
        file: PathBuf,
        problem: SecretFileError,
    },
    #[error(
        "the {held} {} can be used by others than its owner (mode {mode:04o}); run: chmod 600 {}",
        file.display(),
        file.display()
    )]
    Exposed {
        held: Held,
        file: PathBuf,
        mode: u32,
    },
    #[error("the password file {} is empty; write the password of {user:?} into it", file.display())]
    Empty { file: PathBuf, user: String },
    #[error("the password file {} contains a NUL byte, which no server accepts in a password", file.display())]
    Nul { file: PathBuf },
    #[error("the key file {} contains no private key in PEM", file.display())]
    NoKey { file: PathBuf },
}

/// Reads the credential. Its password file, if it has one: a regular file of at most 4 KiB that only its owner
/// can read or write, holding the password and at most one line break after it.
pub fn load(source: &CredentialSource) -> Result<Credential, CredentialError> {
    let password = match &source.password_file {
        Some(file) => Some(password(file, &source.user)?),
        None => None,
    };
    Ok(Credential {
        user: source.user.clone(),
        password,
        require_auth: source.require_auth.clone(),
        channel_binding: source.channel_binding,
        scram: Mutex::default(),
    })
}

fn password(file: &Path, user: &str) -> Result<Secret<String>, CredentialError> {
    let password = read_owners_file(Held::Password, file, MAX_PASSWORD_FILE)?.without_line_break();
    if password.expose().is_empty() {
        return Err(CredentialError::Empty {
            file: file.to_owned(),
            user: user.to_owned(),
        });
    }
    if password.expose().contains('\0') {
        return Err(CredentialError::Nul {
            file: file.to_owned(),
        });
    }
    Ok(password)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn write(file: &Path, content: &[u8], mode: u32) {
        fs::write(file, content).unwrap();
        fs::set_permissions(file, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn load_from(file: &Path) -> Result<Credential, CredentialError> {
        load(&CredentialSource {
            user: "app".to_owned(),
            password_file: Some(file.to_owned()),
            require_auth: None,
            channel_binding: ChannelBinding::Prefer,
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
                    let stored = credential.password.expect(name);
                    assert_eq!(stored.expose(), password, "{name}");
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
    fn a_password_goes_out_in_clear_only_where_it_may() {
        let accepts = |require_auth: Option<&[LoginMethod]>, method, verified| {
            let credential = Credential {
                user: "app".to_owned(),
                password: None,
                require_auth: require_auth.map(|methods| methods.iter().copied().collect()),
                channel_binding: ChannelBinding::Prefer,
                scram: Mutex::default(),
            };
            credential.accepts(method, verified)
        };
        use LoginMethod::{Md5, None as Nothing, Password, ScramSha256};
        for method in [ScramSha256, Md5, Nothing] {
            assert!(accepts(None, method, false), "{method:?}");
            assert!(!accepts(Some(&[Password]), method, true), "{method:?}");
        }
        assert!(!accepts(None, Password, false));
        assert!(accepts(None, Password, true));
        assert!(accepts(Some(&[Password]), Password, false));
        assert!(!accepts(Some(&[ScramSha256, Md5]), Password, true));
    }

    #[test]
    fn a_credential_prints_without_its_password() {
        let credential = Credential {
            user: "app".to_owned(),
            password: Some(Secret::new("hunter2".to_owned())),
            require_auth: None,
            channel_binding: ChannelBinding::Prefer,
            scram: Mutex::default(),
        };
        let printed = format!("{credential:?}");
        assert!(
            printed.starts_with(r#"Credential { user: "app", password: Some(Secret(..)), "#),
            "{printed}"
        );
    }
}
