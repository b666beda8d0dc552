//! The gateway's side of TLS with a target: whom it trusts, and what it shows of itself.
//!
//! The modes are libpq's. Those that do not verify (`prefer`, `require`) keep out who listens, not who sits
//! in between; `sluice check` warns of them. In all of them the peer proves that it has its certificate's
//! key, which is what SCRAM's channel binding builds on.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

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
    let accepting = |whom| {
        Arc::new(NamelessVerifier {
            whom,
            algorithms: provider.signature_verification_algorithms,
        })
    };
    let roots = || roots(tls.ca_file.as_deref());
    let builder = match tls.mode {
        TlsMode::Disable => return Ok(None),
        TlsMode::Prefer | TlsMode::Require => builder
            .dangerous()
            .with_custom_certificate_verifier(accepting(Whom::Anybody)),
        TlsMode::VerifyCa => builder
            .dangerous()
            .with_custom_certificate_verifier(accepting(Whom::SignedBy(roots()?))),
        TlsMode::VerifyFull => builder.with_root_certificates(roots()?),
    };
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
    Ok(Some(config))
}

fn roots(file: Option<&Path>) -> Result<RootCertStore, TlsSetupError> {
    let file = file.unwrap_or(Path::new(SYSTEM_ROOTS));
    let wrong = |problem: String| TlsSetupError::Roots {
        file: file.to_owned(),
        problem,
    };
    let mut roots = RootCertStore::empty();
    for certificate in certificates(file).map_err(wrong)? {
        roots
            .add(certificate)
            .map_err(|error| wrong(format!("has a certificate that cannot be used: {error}")))?;
    }
    Ok(roots)
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

/// Whose certificate will do.
#[derive(Debug)]
enum Whom {
    Anybody,
    SignedBy(RootCertStore),
}

/// Does not look at the name in the certificate; that its key is the server's is still proven.
#[derive(Debug)]
struct NamelessVerifier {
    whom: Whom,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for NamelessVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Whom::SignedBy(roots) = &self.whom {
            let certificate = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &certificate,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
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
