//! An issuer's public keys (RFC 7517), reduced to those that can verify a token.

use jsonwebtoken::{DecodingKey, DecodingKeyKind};
use serde_json::Value;

use super::TokenError;
use super::error::quote;
use super::jws::Unverified;
use crate::config::Algorithm;

/// Below 2048 bits RSA keys can be factored; above 8192 verifying is a way to keep the gateway busy.
const RSA_MODULUS_BYTES: std::ops::RangeInclusive<usize> = 256..=1024;

/// The usable keys of one key set; never empty.
#[derive(Debug)]
pub(super) struct KeySet(Vec<Key>);

/// One key, with the only algorithm it is ever used for: a token cannot choose another one.
#[derive(Debug)]
struct Key {
    kid: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

impl KeySet {
    /// Keys of other types and uses are skipped, as RFC 7517 §5 wants. Private keys are refused: a set that
    /// contains one was published by mistake, and what it signs proves nothing.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let set: Value = serde_json::from_str(text)
            .map_err(|error| format!("the key set is not JSON (line {})", error.line()))?;
        let Some(Value::Array(entries)) = set.get("keys") else {
            return Err("the key set is not a JSON object with a list \"keys\"".to_owned());
        };
        if entries.iter().any(|entry| entry.get("d").is_some()) {
            return Err(
                "the key set contains a private key; publish the public keys only".to_owned(),
            );
        }
        let keys: Vec<Key> = entries.iter().filter_map(Key::read).collect();
        match keys.is_empty() {
            true => Err("the key set has no key for RS256, ES256 or EdDSA signatures".to_owned()),
            false => Ok(Self(keys)),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is a key that the token can have been signed with.
    pub(super) fn knows(&self, token: &Unverified<'_>) -> bool {
        self.candidates(token).next().is_some()
    }

    /// Verifies the signature with the key that the token names, or, if it names none, with the only key
    /// there is for its algorithm.
    pub(super) fn verify(&self, token: &Unverified<'_>) -> Result<(), TokenError> {
        let candidates: Vec<&Key> = self.candidates(token).collect();
        let unknown = |key: String| Err(TokenError::UnknownKey { key });
        match (&token.kid, candidates.len()) {
            (Some(kid), 0) => unknown(format!("kid {}, {}", quote(kid), token.algorithm.name())),
            (None, 0) => unknown(format!("no kid, {}", token.algorithm.name())),
            (None, 2..) => unknown("no kid, and several keys it could be".to_owned()),
            _ if candidates.iter().any(|key| key.verifies(token)) => Ok(()),
            _ => Err(TokenError::BadSignature),
        }
    }

    fn candidates(&self, token: &Unverified<'_>) -> impl Iterator<Item = &Key> {
        self.0.iter().filter(|key| {
            key.algorithm == token.algorithm && (token.kid.is_none() || key.kid == token.kid)
        })
    }
}

impl Key {
    fn read(jwk: &Value) -> Option<Self> {
        let text = |name: &str| jwk.get(name).and_then(Value::as_str);
        let (algorithm, key) = match (text("kty")?, text("crv")) {
            ("RSA", _) => (Algorithm::Rs256, rsa(text("n")?, text("e")?)?),
            ("EC", Some("P-256")) => (Algorithm::Es256, p256(text("x")?, text("y")?)?),
            ("OKP", Some("Ed25519")) => (Algorithm::EdDsa, ed25519(text("x")?)?),
            _ => return None,
        };
        if !is_for_signatures(jwk) || !names_algorithm(jwk.get("alg"), algorithm) {
            return None;
        }
        let kid = match jwk.get("kid") {
            None => None,
            Some(kid) => Some(kid.as_str()?.to_owned()),
        };
        Some(Self {
            kid,
            algorithm,
            key,
        })
    }

    fn verifies(&self, token: &Unverified<'_>) -> bool {
        let algorithm = match self.algorithm {
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        };
        let signed = token.signed.as_bytes();
        jsonwebtoken::crypto::verify(token.signature, signed, &self.key, algorithm).unwrap_or(false)
    }
}

fn rsa(modulus: &str, exponent: &str) -> Option<DecodingKey> {
    let key = DecodingKey::from_rsa_components(modulus, exponent).ok()?;
    let DecodingKeyKind::RsaModulusExponent { n, .. } = key.kind() else {
        return None;
    };
    RSA_MODULUS_BYTES.contains(&n.len()).then_some(key)
}

/// An uncompressed point: one byte and two coordinates of 32.
fn p256(x: &str, y: &str) -> Option<DecodingKey> {
    let key = DecodingKey::from_ec_components(x, y).ok()?;
    (key.try_get_as_bytes().ok()?.len() == 65).then_some(key)
}

fn ed25519(x: &str) -> Option<DecodingKey> {
    let key = DecodingKey::from_ed_components(x).ok()?;
    (key.try_get_as_bytes().ok()?.len() == 32).then_some(key)
}

/// `use` and `key_ops` (RFC 7517 §4.2, §4.3) are optional; where present they must allow verifying.
fn is_for_signatures(jwk: &Value) -> bool {
    let by_use = jwk.get("use").is_none_or(|usage| usage == "sig");
    let by_operations = jwk.get("key_ops").is_none_or(|operations| {
        let operations = operations.as_array().map(Vec::as_slice);
        operations
            .unwrap_or_default()
            .contains(&Value::from("verify"))
    });
    by_use && by_operations
}

/// `alg` is optional; where present it must be ours. `Ed25519` is RFC 9864's name for it.
fn names_algorithm(alg: Option<&Value>, algorithm: Algorithm) -> bool {
    alg.is_none_or(|alg| {
        alg == algorithm.name() || (alg == "Ed25519" && algorithm == Algorithm::EdDsa)
    })
}
