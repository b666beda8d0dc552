//! Why a token is not accepted.

use std::path::PathBuf;
use std::time::Duration;

/// The reason for refusing a token. Its text goes to the log and to the agent: it helps whoever runs the
/// agent, and never contains the token or a part of its signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("there is no token at {}; have the agent's issuer put one there", file.display())]
    Missing { file: PathBuf },
    #[error("the token file {} {problem}", file.display())]
    Unreadable { file: PathBuf, problem: String },
    #[error("the token is larger than {} bytes", super::MAX_TOKEN)]
    TooLarge,
    #[error("the token is not a signed JWT: {why}")]
    Malformed { why: String },
    #[error("the token's algorithm {alg} is not allowed for its issuer")]
    AlgorithmRefused { alg: String },
    #[error("the issuer's key set has no key for this token ({key})")]
    UnknownKey { key: String },
    #[error("the token's signature is not valid: it was changed, or signed with another key")]
    BadSignature,
    #[error("the token expired {} seconds ago; renew it", since.as_secs())]
    Expired { since: Duration },
    #[error("the token becomes valid only in {} seconds; check the clocks", wait.as_secs())]
    NotYetValid { wait: Duration },
    #[error("the token is from another issuer than {expected:?}")]
    WrongIssuer { expected: String },
    #[error("the token is for another audience than {expected:?}")]
    WrongAudience { expected: String },
    #[error("the token is for another subject than {expected:?}")]
    WrongSubject { expected: String },
    #[error("the token lacks the claim {claim:?}")]
    MissingClaim { claim: &'static str },
    #[error("the issuer's keys are not available: {0}")]
    Jwks(String),
}

impl TokenError {
    /// A stable word for policies, metrics and evidence.
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Missing { .. } => "token:missing",
            Self::Unreadable { .. } => "token:unreadable",
            Self::TooLarge => "token:too-large",
            Self::Malformed { .. } => "token:malformed",
            Self::AlgorithmRefused { .. } => "token:algorithm-refused",
            Self::UnknownKey { .. } => "token:unknown-key",
            Self::BadSignature => "token:bad-signature",
            Self::Expired { .. } => "token:expired",
            Self::NotYetValid { .. } => "token:not-yet-valid",
            Self::WrongIssuer { .. } => "token:wrong-issuer",
            Self::WrongAudience { .. } => "token:wrong-audience",
            Self::WrongSubject { .. } => "token:wrong-subject",
            Self::MissingClaim { .. } => "token:missing-claim",
            Self::Jwks(_) => "token:jwks",
        }
    }

    pub(super) fn malformed(why: impl Into<String>) -> Self {
        Self::Malformed { why: why.into() }
    }
}

/// A string out of an unverified token, fit for one log line: escaped, and short.
pub(super) fn quote(text: &str) -> String {
    const MAX: usize = 48;
    match text.char_indices().nth(MAX) {
        None => format!("{text:?}"),
        Some((cut, _)) => format!("{:?}…", text.get(..cut).unwrap_or_default()),
    }
}
