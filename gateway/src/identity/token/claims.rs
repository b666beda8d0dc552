//! What a verified token says, and whether it says it to us, now.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value};

use super::TokenError;
use crate::config::Issuer;

/// The identity that the issuer vouches for. Made only from a token whose signature and claims were verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    pub issuer: String,
    pub subject: String,
    /// From the configured claim; empty if the token does not have it.
    pub groups: Vec<String>,
    /// `exp`, in Unix seconds, without the leeway.
    pub expires_at: u64,
    /// `jti`
    pub token_id: Option<String>,
}

/// Checks the claims of a token whose signature has been verified (RFC 7519 §4.1).
pub(super) fn check(
    claims: &Map<String, Value>,
    issuer: &Issuer,
    now: SystemTime,
) -> Result<Claims, TokenError> {
    if required_text(claims, "iss")? != issuer.issuer {
        return Err(TokenError::WrongIssuer {
            expected: issuer.issuer.clone(),
        });
    }
    check_audience(claims, &issuer.audience)?;
    let expires_at = check_time(claims, issuer.leeway, now)?;
    Ok(Claims {
        issuer: issuer.issuer.clone(),
        subject: required_text(claims, "sub")?.to_owned(),
        groups: groups(claims, &issuer.groups_claim)?,
        expires_at,
        token_id: text(claims, "jti")?.map(str::to_owned),
    })
}

/// One audience, or a list that contains ours.
fn check_audience(claims: &Map<String, Value>, expected: &str) -> Result<(), TokenError> {
    let meant = match claims.get("aud") {
        None | Some(Value::Null) => return Err(TokenError::MissingClaim { claim: "aud" }),
        Some(Value::String(audience)) => audience == expected,
        Some(Value::Array(audiences)) => {
            if !audiences.iter().all(Value::is_string) {
                return Err(wrong_type("aud", "a string or a list of strings"));
            }
            audiences.iter().any(|audience| audience == expected)
        }
        Some(_) => return Err(wrong_type("aud", "a string or a list of strings")),
    };
    match meant {
        true => Ok(()),
        false => Err(TokenError::WrongAudience {
            expected: expected.to_owned(),
        }),
    }
}

/// `exp` is required: a token without an end could never be taken back. Returns it.
fn check_time(
    claims: &Map<String, Value>,
    leeway: Duration,
    now: SystemTime,
) -> Result<u64, TokenError> {
    // A clock before 1970 is broken; then every token with nbf is in the future.
    let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let leeway = leeway.as_secs();
    let expires = date(claims, "exp")?.ok_or(TokenError::MissingClaim { claim: "exp" })?;
    if expires.saturating_add(leeway) <= now {
        return Err(TokenError::Expired {
            since: Duration::from_secs(now - expires),
        });
    }
    match date(claims, "nbf")? {
        Some(begins) if begins > now.saturating_add(leeway) => Err(TokenError::NotYetValid {
            wait: Duration::from_secs(begins - now),
        }),
        _ => Ok(expires),
    }
}

/// A NumericDate (RFC 7519 §2): Unix seconds, possibly with a fraction, which is cut off.
fn date(claims: &Map<String, Value>, claim: &'static str) -> Result<Option<u64>, TokenError> {
    let value = match claims.get(claim) {
        None | Some(Value::Null) => return Ok(None),
        Some(value) => value,
    };
    let seconds = value.as_u64().or_else(|| {
        let fraction = value.as_f64().filter(|seconds| *seconds >= 0.0)?;
        // Saturates; 2^64 seconds are as far away as any larger number.
        Some(fraction as u64)
    });
    seconds
        .map(Some)
        .ok_or_else(|| wrong_type(claim, "a time in seconds since 1970"))
}

/// A list of groups, or one group as a string. The claim's name is tried as it stands first: names that are
/// URLs contain dots.
fn groups(claims: &Map<String, Value>, claim: &str) -> Result<Vec<String>, TokenError> {
    let refuse = || {
        Err(TokenError::malformed(format!(
            "its claim {claim:?} is not a list of group names"
        )))
    };
    match claims.get(claim).or_else(|| nested(claims, claim)) {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(group)) if !group.is_empty() => Ok(vec![group.clone()]),
        Some(Value::Array(entries)) => {
            let names = entries.iter().map(|entry| match entry {
                Value::String(group) if !group.is_empty() => Some(group.clone()),
                _ => None,
            });
            names.collect::<Option<Vec<_>>>().map_or_else(refuse, Ok)
        }
        Some(_) => refuse(),
    }
}

fn nested<'a>(claims: &'a Map<String, Value>, path: &str) -> Option<&'a Value> {
    let (first, rest) = path.split_once('.')?;
    let start = claims.get(first)?;
    rest.split('.')
        .try_fold(start, |value, name| value.get(name))
}

fn required_text<'a>(
    claims: &'a Map<String, Value>,
    claim: &'static str,
) -> Result<&'a str, TokenError> {
    text(claims, claim)?.ok_or(TokenError::MissingClaim { claim })
}

fn text<'a>(
    claims: &'a Map<String, Value>,
    claim: &'static str,
) -> Result<Option<&'a str>, TokenError> {
    match claims.get(claim) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text)),
        Some(_) => Err(wrong_type(claim, "a string that is not empty")),
    }
}

fn wrong_type(claim: &str, expected: &str) -> TokenError {
    TokenError::malformed(format!("its claim {claim:?} is not {expected}"))
}
