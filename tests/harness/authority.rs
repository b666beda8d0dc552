//! A throw-away certificate authority.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SignatureAlgorithm,
};

/// Signs the certificates of one test.
pub struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

/// A server's certificate and key, PEM.
pub struct Certificate {
    pub chain: String,
    pub key: String,
}

impl Authority {
    pub fn new() -> Authority {
        Self::signing_with(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// Its signatures are of this kind.
    pub fn signing_with(algorithm: &'static SignatureAlgorithm) -> Authority {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to refuse");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name than the certificates' own, which OpenSSL would take for self-signed.
        let name = &mut params.distinguished_name;
        name.push(DnType::CommonName, "the authority of one test");
        let key = KeyPair::generate_for(algorithm).expect("a key can be made");
        let issuer = CertifiedIssuer::self_signed(params, key).expect("it can sign itself");
        Authority { issuer }
    }

    /// A certificate for the host `names`.
    pub fn certificate_for(&self, names: &[&str]) -> Certificate {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        self.sign(CertificateParams::new(names).expect("the names are host names"))
    }

    /// A certificate for the database's user `name`.
    pub fn certificate_for_user(&self, name: &str) -> Certificate {
        let mut params = CertificateParams::new(Vec::new()).expect("no names to refuse");
        params.distinguished_name.push(DnType::CommonName, name);
        self.sign(params)
    }

    fn sign(&self, params: CertificateParams) -> Certificate {
        let key = KeyPair::generate().expect("a key can be made");
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("the authority can sign");
        Certificate {
            chain: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// What a client needs to trust it, PEM.
    pub fn pem(&self) -> String {
        self.issuer.pem()
    }
}

/// A server's certificate that nobody else signed, and that claims to be an authority's.
pub fn self_signed(name: &str) -> Certificate {
    let mut params = CertificateParams::new([name.to_owned()]).expect("it is a host name");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key can be made");
    Certificate {
        chain: params.self_signed(&key).expect("it can sign itself").pem(),
        key: key.serialize_pem(),
    }
}
