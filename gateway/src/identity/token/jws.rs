//! The compact serialisation `header.payload.signature` (RFC 7515 §7.1), and what its header may say.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use super::error::quote;
use super::{MAX_TOKEN, TokenError, json};
use crate::config::Algorithm;

/// A token whose header is acceptable. Nothing in it is proven yet.
pub(super) struct Unverified<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
    /// What the signature is over: header, dot, payload, as they came.
    pub(super) signed: &'a str,
    payload: &'a str,
    pub(super) signature: &'a str,
}

impl<'a> Unverified<'a> {
    /// Splits a token and checks its header against the algorithms that the issuer may use.
    pub(super) fn parse(token: &'a str, allowed: &[Algorithm]) -> Result<Self, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or_else(not_three_parts)?;
        let (header, payload) = signed.split_once('.').ok_or_else(not_three_parts)?;
        if payload.contains('.') {
            return Err(not_three_parts());
        }
        let header = object("header", header)?;
        let algorithm = algorithm(&header, allowed)?;
        if header.contains_key("crit") {
            return Err(TokenError::malformed(
                "its header demands extensions (crit) that are not supported",
            ));
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) => Some(kid.clone()),
            Some(_) => return Err(TokenError::malformed("its kid is not a string")),
        };
        Ok(Self {
            algorithm,
            kid,
            signed,
            payload,
            signature,
        })
    }

    /// The claims; only meaningful after the signature has been verified.
    pub(super) fn payload(&self) -> Result<Map<String, Value>, TokenError> {
        object("payload", self.payload)
    }
}

fn algorithm(header: &Map<String, Value>, allowed: &[Algorithm]) -> Result<Algorithm, TokenError> {
    let Some(Value::String(name)) = header.get("alg") else {
        return Err(TokenError::malformed("its header names no algorithm"));
    };
    let named = |algorithm: &&Algorithm| algorithm.name() == name;
    let found = allowed.iter().find(named).copied();
    found.ok_or_else(|| TokenError::AlgorithmRefused { alg: quote(name) })
}

fn object(part: &str, encoded: &str) -> Result<Map<String, Value>, TokenError> {
    let bytes = URL_SAFE_NO_PAD
        .decode(encoded)
        .map_err(|_| TokenError::malformed(format!("its {part} is not base64url")))?;
    json::parse_object(&bytes).map_err(|why| TokenError::malformed(format!("its {part} is {why}")))
}

fn not_three_parts() -> TokenError {
    TokenError::malformed("it does not have three parts")
}
