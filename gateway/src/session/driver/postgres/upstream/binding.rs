//! `tls-server-end-point` (RFC 5929, section 4.1): what ties SCRAM to the TLS connection it runs over.

use sha2::{Digest, Sha224, Sha256, Sha384, Sha512};
use x509_parser::prelude::{FromDer, X509Certificate};
use x509_parser::signature_algorithm::SignatureAlgorithm;

/// What a certificate's signature hashes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hash {
    Sha224,
    Sha256,
    Sha384,
    Sha512,
}

/// The hash of a certificate with its signature's hash, SHA-256 where that is MD5 or SHA-1.
///
/// `None` where the signature has no hash of its own (Ed25519): RFC 5929 does not say what to use then, and
/// PostgreSQL binds to no such certificate either.
pub fn server_end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let algorithm = &parsed.signature_algorithm;
    let signature = algorithm.algorithm.to_id_string();
    let hash = match SignatureAlgorithm::try_from(algorithm) {
        // The hash is among the parameters, as X509_get_signature_info finds it.
        Ok(SignatureAlgorithm::RSASSA_PSS(parameters)) => {
            of_digest(&parameters.hash_algorithm_oid().to_id_string())
        }
        _ => of_signature(&signature),
    }?;
    Some(match hash {
        Hash::Sha224 => Sha224::digest(certificate).to_vec(),
        Hash::Sha256 => Sha256::digest(certificate).to_vec(),
        Hash::Sha384 => Sha384::digest(certificate).to_vec(),
        Hash::Sha512 => Sha512::digest(certificate).to_vec(),
    })
}

/// By the object identifiers of RFC 3279, RFC 4055 and RFC 5758.
fn of_signature(algorithm: &str) -> Option<Hash> {
    match algorithm {
        // md5, sha1, sha256 WithRSAEncryption; ecdsa-with-SHA1, -SHA256; dsa-with-sha1, -sha256
        "1.2.840.113549.1.1.4"
        | "1.2.840.113549.1.1.5"
        | "1.2.840.113549.1.1.11"
        | "1.2.840.10045.4.1"
        | "1.2.840.10045.4.3.2"
        | "1.2.840.10040.4.3"
        | "2.16.840.1.101.3.4.3.2" => Some(Hash::Sha256),
        "1.2.840.113549.1.1.14" | "1.2.840.10045.4.3.1" | "2.16.840.1.101.3.4.3.1" => {
            Some(Hash::Sha224)
        }
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(Hash::Sha384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(Hash::Sha512),
        _ => None,
    }
}

fn of_digest(algorithm: &str) -> Option<Hash> {
    match algorithm {
        // md5, sha1, sha256
        "1.2.840.113549.2.5" | "1.3.14.3.2.26" | "2.16.840.1.101.3.4.2.1" => Some(Hash::Sha256),
        "2.16.840.1.101.3.4.2.4" => Some(Hash::Sha224),
        "2.16.840.1.101.3.4.2.2" => Some(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Some(Hash::Sha512),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, SignatureAlgorithm};

    use super::*;

    fn certificate(algorithm: &'static SignatureAlgorithm) -> Vec<u8> {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        let params = CertificateParams::new(["db".to_owned()]).expect("a name");
        params.self_signed(&key).expect("signed").der().to_vec()
    }

    #[test]
    fn a_certificate_is_hashed_with_its_signatures_hash() {
        let p256 = certificate(&rcgen::PKCS_ECDSA_P256_SHA256);
        assert_eq!(
            server_end_point(&p256),
            Some(Sha256::digest(&p256).to_vec())
        );
        let p384 = certificate(&rcgen::PKCS_ECDSA_P384_SHA384);
        assert_eq!(
            server_end_point(&p384),
            Some(Sha384::digest(&p384).to_vec())
        );
    }

    #[test]
    fn what_has_no_hash_is_not_bound_to() {
        let ed25519 = certificate(&rcgen::PKCS_ED25519);
        assert_eq!(server_end_point(&ed25519), None);
        assert_eq!(server_end_point(b"not a certificate"), None);
    }

    #[test]
    fn weak_hashes_are_replaced_by_sha_256() {
        for weak in [
            "1.2.840.113549.1.1.4",
            "1.2.840.113549.1.1.5",
            "1.2.840.10045.4.1",
        ] {
            assert_eq!(of_signature(weak), Some(Hash::Sha256), "{weak}");
        }
        for weak in ["1.2.840.113549.2.5", "1.3.14.3.2.26"] {
            assert_eq!(of_digest(weak), Some(Hash::Sha256), "{weak}");
        }
    }
}
