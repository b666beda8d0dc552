//! A throw-away token issuer: signs what it is asked to, right or wrong.

use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize};
use serde_json::{Map, Value, json};

pub const ISSUER: &str = "https://issuer.test";
pub const AUDIENCE: &str = "sluice";

/// One key pair and the name it is published under.
pub struct Issuer {
    key: EncodingKey,
    algorithm: Algorithm,
    key_id: String,
}

impl Issuer {
    /// An issuer with a new key for RS256, ES256 or EdDSA.
    pub fn signing_with(algorithm: Algorithm) -> Issuer {
        let pair = match algorithm {
            Algorithm::RS256 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048),
            Algorithm::ES256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256),
            Algorithm::EdDSA => KeyPair::generate_for(&PKCS_ED25519),
            other => panic!("the test issuer has no {other:?} keys"),
        }
        .expect("a key can be made");
        let key = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(pair.serialize_pem().as_bytes())
                .expect("PKCS #8 holds an RSA key"),
            Algorithm::ES256 => EncodingKey::from_ec_der(&pair.serialize_der()),
            _ => EncodingKey::from_ed_der(&without_public_half(&pair.serialize_der())),
        };
        Issuer {
            key,
            algorithm,
            key_id: "key-1".to_owned(),
        }
    }

    /// The published key set.
    pub fn jwks(&self) -> String {
        let mut key = Jwk::from_encoding_key(&self.key, self.algorithm).expect("the key is ours");
        key.common.key_id = Some(self.key_id.clone());
        json!({ "keys": [key] }).to_string()
    }

    /// A token as `sluice` wants it for `subject`, to be changed before it is signed.
    pub fn token_for(&self, subject: &str) -> Token<'_> {
        let now = unix_now();
        let claims = json!({
            "iss": ISSUER, "aud": AUDIENCE, "sub": subject, "groups": ["reporting"],
            "iat": now, "nbf": now - 5, "exp": now + 3600, "jti": format!("jti-{now}"),
        });
        let Value::Object(claims) = claims else {
            unreachable!("an object literal")
        };
        let mut header = Header::new(self.algorithm);
        header.kid = Some(self.key_id.clone());
        Token {
            issuer: self,
            header,
            claims,
        }
    }
}

/// A token before it is signed.
pub struct Token<'a> {
    issuer: &'a Issuer,
    header: Header,
    claims: Map<String, Value>,
}

impl Token<'_> {
    /// Sets a claim.
    pub fn with(mut self, claim: &str, value: impl Into<Value>) -> Self {
        self.claims.insert(claim.to_owned(), value.into());
        self
    }

    /// Leaves a claim out.
    pub fn without(mut self, claim: &str) -> Self {
        self.claims.remove(claim);
        self
    }

    /// Names another key in the header.
    pub fn naming_key(mut self, key_id: &str) -> Self {
        self.header.kid = Some(key_id.to_owned());
        self
    }

    /// Signs it with the issuer's key.
    pub fn sign(self) -> String {
        encode(&self.header, &self.claims, &self.issuer.key).expect("the issuer can sign")
    }

    /// The same claims under the header `{"alg":"none"}`, with no signature.
    pub fn unsigned(self) -> String {
        let signed = self.sign();
        let claims = signed.split('.').nth(1).expect("a token has three parts");
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    }
}

pub fn unix_now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("the clock is past 1970")
        .as_secs()
}

/// RFC 8410: a version-1 key of 48 bytes, the only shape jsonwebtoken derives a JWK from.
fn without_public_half(der: &[u8]) -> Vec<u8> {
    const HEADER: [u8; 16] = [
        0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04,
        0x20,
    ];
    let at = der
        .windows(4)
        .position(|window| window == [0x04, 0x22, 0x04, 0x20])
        .expect("an Ed25519 key in PKCS #8")
        + 4;
    [&HEADER[..], &der[at..at + 32]].concat()
}
