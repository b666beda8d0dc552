//! Issuing tokens, for tests. The product verifies and never signs.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::EncodingKey;
use serde_json::{Value, json};

use crate::config::Algorithm;

/// A throw-away private key of an issuer.
pub(crate) struct Signer {
    algorithm: Algorithm,
    kid: String,
    key: EncodingKey,
    public: Vec<u8>,
    pub(crate) public_pem: String,
}

impl Signer {
    pub(crate) fn generate(algorithm: Algorithm, kid: &str) -> Self {
        let kind = match algorithm {
            Algorithm::Rs256 => &rcgen::PKCS_RSA_SHA256,
            Algorithm::Es256 => &rcgen::PKCS_ECDSA_P256_SHA256,
            Algorithm::EdDsa => &rcgen::PKCS_ED25519,
        };
        let pair = rcgen::KeyPair::generate_for(kind).unwrap();
        let pem = pair.serialize_pem();
        Self {
            algorithm,
            kid: kid.to_owned(),
            key: match algorithm {
                Algorithm::Rs256 => EncodingKey::from_rsa_pem(pem.as_bytes()).unwrap(),
                Algorithm::Es256 => EncodingKey::from_ec_pem(pem.as_bytes()).unwrap(),
                Algorithm::EdDsa => EncodingKey::from_ed_der(&pair.serialize_der()),
            },
            public: pair.public_key_raw().to_vec(),
            public_pem: pair.public_key_pem(),
        }
    }

    /// The public half, as it stands in a key set.
    pub(crate) fn jwk(&self) -> Value {
        let mut jwk = match self.algorithm {
            Algorithm::Rs256 => {
                let jwk = jsonwebtoken::jwk::Jwk::from_encoding_key(&self.key, self.algorithm());
                serde_json::to_value(jwk.unwrap()).unwrap()
            }
            Algorithm::Es256 => json!({
                "kty": "EC",
                "crv": "P-256",
                "x": encode(&self.public[1..33]),
                "y": encode(&self.public[33..]),
            }),
            Algorithm::EdDsa => json!({
                "kty": "OKP",
                "crv": "Ed25519",
                "x": encode(&self.public),
            }),
        };
        jwk["alg"] = json!(self.algorithm.name());
        jwk["kid"] = json!(self.kid);
        jwk["use"] = json!("sig");
        jwk
    }

    /// The header a token of this key has.
    pub(crate) fn header(&self) -> Value {
        json!({"alg": self.algorithm.name(), "typ": "JWT", "kid": self.kid})
    }

    /// Signs any header over any claims: what is wrong with them is up to the test.
    pub(crate) fn sign(&self, header: &str, claims: &str) -> String {
        let signed = format!("{}.{}", encode(header), encode(claims));
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &self.key, self.algorithm());
        format!("{signed}.{}", signature.unwrap())
    }

    fn algorithm(&self) -> jsonwebtoken::Algorithm {
        match self.algorithm {
            Algorithm::Rs256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::Es256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

/// A proper token with these claims.
pub(crate) fn issue_token(signer: &Signer, claims: &Value) -> String {
    signer.sign(&signer.header().to_string(), &claims.to_string())
}

/// The key set of an issuer with these keys.
pub(crate) fn key_set(signers: &[&Signer]) -> String {
    let keys: Vec<Value> = signers.iter().map(|signer| signer.jwk()).collect();
    json!({ "keys": keys }).to_string()
}

pub(crate) fn encode(part: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(part)
}
