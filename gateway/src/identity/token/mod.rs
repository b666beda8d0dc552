//! Tokens: the signed statement of an issuer that an agent is who it is, verified anew for every session.
//!
//! A token is hostile until its signature is proven, so the order is fixed: cap its length, read the header,
//! refuse the algorithm unless the configuration names it, pick the issuer's key by id and type, verify, and
//! only then read the claims. Nothing in the token says where keys come from: embedded keys and key URLs
//! (`jwk`, `jku`, `x5c`, `x5u`) are not looked at, and `crit` extensions are refused (RFC 7515 §4.1.11,
//! RFC 8725).

#![cfg_attr(
    not(test),
    deny(
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

mod claims;
mod error;
mod fetch;
mod json;
mod jwks;
mod jws;
mod keyring;

#[cfg(test)]
pub(crate) mod issue;
#[cfg(test)]
mod tests;

use std::io;
use std::path::Path;
use std::time::SystemTime;

use crate::config::Agent;
use crate::credentials::{Secret, SecretFileError, read_secret_file};

pub use claims::Claims;
pub use error::TokenError;
pub use keyring::Keyring;

/// Groups and all, tokens have a few KiB; HTTP servers cap them at 8 or 16.
pub const MAX_TOKEN: usize = 16 * 1024;

/// Reads the agent's current token. The file is read for every session, so a renewed token works at once.
pub fn read_token(agent: &Agent) -> Result<Secret<String>, TokenError> {
    let file = || agent.token_file.clone();
    match read_secret_file(&agent.token_file, MAX_TOKEN + 2) {
        Ok(content) => Ok(content.without_line_break()),
        Err(SecretFileError::Unreadable(error)) if error.kind() == io::ErrorKind::NotFound => {
            Err(TokenError::Missing { file: file() })
        }
        Err(SecretFileError::TooLarge { .. }) => Err(TokenError::TooLarge),
        Err(problem) => Err(TokenError::Unreadable {
            file: file(),
            problem: problem.to_string(),
        }),
    }
}

/// Reads and verifies the agent's token, and that it is this agent's. `keyring` must be its issuer's.
///
/// Blocks on the file and, now and then, on the issuer's key set (5 s at most).
pub fn authenticate(
    agent: &Agent,
    keyring: &Keyring,
    now: SystemTime,
) -> Result<Claims, TokenError> {
    let token = read_token(agent)?;
    let claims = keyring.verify(token.expose(), now)?;
    match &agent.subject {
        Some(subject) if *subject != claims.subject => Err(TokenError::WrongSubject {
            expected: subject.clone(),
        }),
        _ => Ok(claims),
    }
}

/// Loads a key set from a file, as [`Keyring::verify`] would, for `sluice check`: how many keys are usable.
pub fn check_jwks_file(file: &Path) -> Result<usize, String> {
    let text = fetch::read_file(file)?;
    Ok(jwks::KeySet::parse(&text)?.len())
}
