//! The gateway's side of TLS with a target: whom it trusts, and what it shows of itself.
//!
//! The modes are libpq's. Those that do not verify (`prefer`, `require`) keep out who listens, not who sits
//! in between; `sluice check` warns of them. In all of them the peer proves that it has its certificate's
//! key, which is what SCRAM's channel binding builds on.
//!
//! One thing more than rustls does by itself: a certificate that is in the CA file is trusted as it is. That is how a
//! server with a self-signed one is trusted (`openssl req -x509`, as in PostgreSQL's manual), which claims to be an
//! authority and would be refused as a server's for that.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::file::read_owners_file;
use super::{CredentialError, Held};
use crate::config::{ClientCertificate, TargetTls, TlsMode};

/// The system's trusted roots, for targets that name no `ca_file`.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The protocol's registered name; servers of PostgreSQL 17 and later answer with it.
const ALPN: &[u8] = b"postgresql";

/// A private key in PEM is a few KiB, whatever its kind.
const MAX_KEY_FILE: usize = 64 << 10;

/// Why TLS with a target cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsSetupError {
    #[error("the CA file {} {problem}", file.display())]
    Roots { file: PathBuf, problem: String },
    #[error("the client certificate {} {problem}", file.display())]
    Certificate { file: PathBuf, problem: String },
    #[error(transparent)]
    Key(#[from] CredentialError),
    #[error("the client certificate {} cannot be used with its key: {problem}", file.display())]
    Pair {
        file: PathBuf,
        problem: rustls::Error,
    },
    #[error("TLS cannot be set up: {0}")]
    Provider(rustls::Error),
}

/// How TLS with a target is begun; `None` where it is not used.
pub fn client(tls: &TargetTls) -> Result<Option<ClientConfig>, TlsSetupError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(TlsSetupError::Provider)?;
    let demand = match tls.mode {
        TlsMode::Disable => return Ok(None),
        TlsMode::Prefer | TlsMode::Require => Demand::Nothing,
        TlsMode::VerifyCa => Demand::Trusted(Trusted::load(tls.ca_file.as_deref())?),
        TlsMode::VerifyFull => Demand::TrustedAndNamed(Trusted::load(tls.ca_file.as_deref())?),
    };
    let builder = builder
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Verifier {
            demand,
            algorithms: provider.signature_verification_algorithms,
        }));
    let mut config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let (chain, key) = own_certificate(client)?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|problem| TlsSetupError::Pair {
                    file: client.certificate.clone(),
                    problem,
                })?
        }
    };
    config.alpn_protocols = vec![ALPN.to_vec()];
    // PostgreSQL resumes no sessions; nor should anything else that answers escape the verifier.
    config.resumption = Resumption::disabled();
    Ok(Some(config))
}

fn own_certificate(
    client: &ClientCertificate,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), TlsSetupError> {
    let chain =
        certificates(&client.certificate).map_err(|problem| TlsSetupError::Certificate {
            file: client.certificate.clone(),
            problem,
        })?;
    let text = read_owners_file(Held::Key, &client.key, MAX_KEY_FILE)?;
    let key = PrivateKeyDer::from_pem_slice(text.without_line_break().expose().as_bytes())
        .map_err(|_| CredentialError::NoKey {
            file: client.key.clone(),
        })?;
    Ok((chain, key))
}

/// All certificates of a PEM file, or the rest of a sentence about it.
fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let certificates = CertificateDer::pem_file_iter(file)
        .and_then(|certificates| certificates.collect::<Result<Vec<_>, _>>())
        .map_err(|error| format!("cannot be read: {error}"))?;
    match certificates.is_empty() {
        true => Err("contains no certificate".to_owned()),
        false => Ok(certificates),
    }
}

/// What a server's certificate must show.
#[derive(Debug)]
enum Demand {
    Nothing,
    Trusted(Trusted),
    TrustedAndNamed(Trusted),
}

/// The certificates of a CA file.
#[derive(Debug)]
struct Trusted {
    roots: RootCertStore,
    certificates: Vec<CertificateDer<'static>>,
}

impl Trusted {
    fn load(file: Option<&Path>) -> Result<Self, TlsSetupError> {
        let file = file.unwrap_or(Path::new(SYSTEM_ROOTS));
        let wrong = |problem: String| TlsSetupError::Roots {
            file: file.to_owned(),
            problem,
        };
        let certificates = certificates(file).map_err(wrong)?;
        let mut roots = RootCertStore::empty();
        for certificate in &certificates {
            roots.add(certificate.clone()).map_err(|error| {
                wrong(format!("has a certificate that cannot be used: {error}"))
            })?;
        }
        Ok(Self {
            roots,
            certificates,
        })
    }

    fn verify(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
        algorithms: WebPkiSupportedAlgorithms,
    ) -> Result<(), rustls::Error> {
        if self
            .certificates
            .iter()
            .any(|trusted| trusted == certificate)
        {
            return in_its_time(certificate, now);
        }
        verify_server_cert_signed_by_trust_anchor(
            &ParsedCertificate::try_from(certificate)?,
            &self.roots,
            intermediates,
            now,
            algorithms.all,
        )
    }
}

fn in_its_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), rustls::Error> {
    let wrong = |error: CertificateError| Err(rustls::Error::InvalidCertificate(error));
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return wrong(CertificateError::BadEncoding);
    };
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    let validity = parsed.validity();
    if now < validity.not_before.timestamp() {
        return wrong(CertificateError::NotValidYet);
    }
    if now > validity.not_after.timestamp() {
        return wrong(CertificateError::Expired);
    }
    Ok(())
}

#[derive(Debug)]
struct Verifier {
    demand: Demand,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match &self.demand {
            Demand::Nothing => {}
            Demand::Trusted(trusted) => {
                trusted.verify(certificate, intermediates, now, self.algorithms)?;
            }
            Demand::TrustedAndNamed(trusted) => {
                trusted.verify(certificate, intermediates, now, self.algorithms)?;
                verify_server_name(&ParsedCertificate::try_from(certificate)?, server_name)?;
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd,
    };

    use super::*;

    const NAME: &str = "db.internal";

    /// Valid in the year 2030.
    fn params(names: &[&str], is_ca: bool) -> CertificateParams {
        let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2030, 12, 31);
        if is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        CertifiedIssuer::self_signed(params(&[], true), KeyPair::generate().unwrap()).unwrap()
    }

    /// Whom the modes verify-ca and verify-full accept, with the certificates of `ca` trusted.
    fn accepted(ca: &str, server: &CertificateDer<'_>, year: u64) -> (bool, bool) {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("ca.pem");
        std::fs::write(&file, ca).unwrap();
        let accepts = |demand: fn(Trusted) -> Demand| {
            let provider = rustls::crypto::aws_lc_rs::default_provider();
            let verifier = Verifier {
                demand: demand(Trusted::load(Some(&file)).unwrap()),
                algorithms: provider.signature_verification_algorithms,
            };
            let name = ServerName::try_from(NAME).unwrap();
            let middle = Duration::from_secs((year - 1970) * 31_557_600 + 15_000_000);
            let now = UnixTime::since_unix_epoch(middle);
            verifier
                .verify_server_cert(server, &[], &name, &[], now)
                .is_ok()
        };
        (accepts(Demand::Trusted), accepts(Demand::TrustedAndNamed))
    }

    #[test]
    fn whom_the_modes_accept() {
        let authority = authority();
        let key = KeyPair::generate().unwrap();
        let signed = |names: &[&str]| params(names, false).signed_by(&key, &authority).unwrap();
        let own = |names: &[&str], is_ca| params(names, is_ca).self_signed(&key).unwrap();
        let ca = authority.pem();
        let claims = own(&[NAME], true);
        let plain = own(&[NAME], false);
        let elsewhere = own(&["other.internal"], true);
        let good = signed(&[NAME]);
        let wrong_name = signed(&["other.internal"]);
        let stranger = own(&[NAME], true);
        for (name, trusted, server, year, expected) in [
            ("signed", &ca, good.der(), 2030, (true, true)),
            ("too late", &ca, good.der(), 2031, (false, false)),
            ("too early", &ca, good.der(), 2029, (false, false)),
            ("another name", &ca, wrong_name.der(), 2030, (true, false)),
            ("nobody's", &ca, stranger.der(), 2030, (false, false)),
            ("self-signed", &plain.pem(), plain.der(), 2030, (true, true)),
            (
                "self-signed, claims to sign",
                &claims.pem(),
                claims.der(),
                2030,
                (true, true),
            ),
            (
                "self-signed, too late",
                &claims.pem(),
                claims.der(),
                2031,
                (false, false),
            ),
            (
                "self-signed, too early",
                &claims.pem(),
                claims.der(),
                2029,
                (false, false),
            ),
            (
                "self-signed, another name",
                &elsewhere.pem(),
                elsewhere.der(),
                2030,
                (true, false),
            ),
        ] {
            assert_eq!(accepted(trusted, server, year), expected, "{name}");
        }
    }
}
