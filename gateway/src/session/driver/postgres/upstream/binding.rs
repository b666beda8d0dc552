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

    /// By `openssl req -x509 -newkey rsa:2048 -sha384 -sigopt rsa_padding_mode:pss`.
    const RSA_PSS: &str = "
        MIIDZTCCAhmgAwIBAgIUL+7FjBTmLWZkkvqV3/CPpRzN7GEwQQYJKoZIhvcNAQEKMDSgDzANBglghkgBZQMEAgIFAKEcMBoG
        CSqGSIb3DQEBCDANBglghkgBZQMEAgIFAKIDAgEgMA0xCzAJBgNVBAMMAmRiMCAXDTI2MTEyMzEzMDI0N1oYDzIxMjYxMDMw
        MTMwMjQ3WjANMQswCQYDVQQDDAJkYjCCASIwDQYJKoZIhvcNAQEBBQADggEPADCCAQoCggEBALNUYAac4uJbJXnoh+Fkbcxu
        K5NfdePxQZilOV6N2M5BvZfa1RLl78SYGzJkDo5Q0GMrpu8BZtMK3wWboMPPKNBqFz65ZMw0/k0ZuFs7WxG+gqW5O2ukTUtL
        6EPClpqkn0Xl+o0MgxzjMEjW25yvY7l2AorifGOl9CMJl2CdAqK1rQ6R4OsKf6HMkcP6mEAgKqUvh/uupVxtzLsvZCUoMijK
        8DkoimKvAqrb0AjyhpE6J52mzpBhSiPcvhKRRlbFVF6RlFSIwyLZEPy5nCEDEmGv89/5K7Mx17yn/XYNhFTqxAyDUXB8JGX5
        4DeSWtOno4wEvELqCOud4Q+2jvfbWi0CAwEAAaNTMFEwHQYDVR0OBBYEFPIJHrxnWgYv08vImtOsloMYQ2d6MB8GA1UdIwQY
        MBaAFPIJHrxnWgYv08vImtOsloMYQ2d6MA8GA1UdEwEB/wQFMAMBAf8wQQYJKoZIhvcNAQEKMDSgDzANBglghkgBZQMEAgIF
        AKEcMBoGCSqGSIb3DQEBCDANBglghkgBZQMEAgIFAKIDAgEgA4IBAQA49BDFyfhNBCd5x2fSlkZ9eVzT5E6PfHeGPipvqDkt
        Dci3JO3CuqNhjYCAQRuk9IfEtYyuUP9bL6PXEKepN2WjXB1RJAKtQWA4xoL+cFngRFe0IzSPDkHOUe8sbB/PPOiwFvmnr6V6
        lnUD1iI6VUW6vRowEALNuOEKWPzKBQJFFE0lyK5c3nv0y2Ev4rWXG1YxkTRUTpCw3gm3Ipyl1A5H3ikVypyDN8BvL6yDDfXp
        RDwll/H0mtVqlzh3BoPyw1IZF2TIX0U/tpNTQSW/GcYdJptkDA7un1LcI966NaCMKpDVzNBZxPvYK/rxl5KE+WZJesCh1Sko
        CTPyqJKpSn+7";

    #[test]
    fn the_hash_of_rsa_pss_is_among_its_parameters() {
        use base64::Engine;
        let text: String = RSA_PSS.split_whitespace().collect();
        let certificate = base64::engine::general_purpose::STANDARD
            .decode(text)
            .expect("base64");
        assert_eq!(
            server_end_point(&certificate),
            Some(Sha384::digest(&certificate).to_vec())
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
