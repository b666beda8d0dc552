//! Reception: TLS toward the agent, in the name of the target that it dialled.
//!
//! As a PostgreSQL server does it: TLS 1.2 and 1.3, `postgresql` by ALPN if the client offers ALPN at all, no
//! session tickets. A client may show a certificate: it is asked for one, because some insist on that, and what it
//! shows is not looked at. Who an agent is says the kernel, not its certificate.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{Acceptor, NoServerSessionStorage};
use rustls::sign::SingleCertAndKey;
use rustls::{
    AlertDescription, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::LazyConfigAcceptor;

use super::agent_stream::AgentStream;
use crate::config::Target;
use crate::credentials::authority::{Authority, AuthorityError, Leaf};

/// What PostgreSQL is called in TLS (IANA's registry of ALPN identifiers).
const ALPN: &[u8] = b"postgresql";

/// A fatal alert, `no_application_protocol` (RFC 8446 §6, RFC 7301 §3.2), as a record of its own.
const NO_APPLICATION_PROTOCOL: [u8; 7] = [0x15, 3, 3, 0, 2, 2, 120];

/// How a connection comes to TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// With an SSLRequest, which was answered with `S`.
    Requested,
    /// At once (`sslnegotiation=direct`): then ALPN must say that PostgreSQL is meant, lest the client take this for
    /// another service.
    Direct,
}

/// Why no TLS connection came about.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Authority(#[from] AuthorityError),
    #[error("{0}")]
    Setup(#[from] rustls::Error),
    #[error("it began with TLS, without an ALPN extension that says \"postgresql\"")]
    NoAlpn,
    #[error("the TLS handshake did not end in time")]
    Timeout,
}

impl HandshakeError {
    /// What may help the agent.
    pub(super) fn hint(&self) -> &'static str {
        use AlertDescription::{
            BadCertificate, CertificateExpired, CertificateUnknown, DecryptError,
            NoApplicationProtocol, UnknownCA,
        };
        match self.tls() {
            Some(rustls::Error::AlertReceived(
                UnknownCA | BadCertificate | CertificateUnknown | CertificateExpired | DecryptError,
            )) => {
                "The client does not trust the gateway's certificate: let it trust the authority in tls.directory (ca.pem; PGSSLROOTCERT or sslrootcert), and dial a name of the target."
            }
            Some(
                rustls::Error::NoApplicationProtocol
                | rustls::Error::AlertReceived(NoApplicationProtocol),
            ) => "The client asks for another protocol by ALPN than postgresql.",
            _ if matches!(self, HandshakeError::NoAlpn) => {
                "A client that begins with TLS must name postgresql by ALPN (libpq 17 does); or let it ask first (sslnegotiation=postgres)."
            }
            _ => {
                "Use a client with TLS 1.2 or 1.3; the connection does not leave the host, so sslmode=disable is safe as well."
            }
        }
    }

    fn tls(&self) -> Option<&rustls::Error> {
        match self {
            HandshakeError::Io(error) => error.get_ref()?.downcast_ref(),
            HandshakeError::Setup(error) => Some(error),
            _ => None,
        }
    }
}

/// In whose name the gateway answers one connection.
#[derive(Debug)]
pub(super) struct Reception<'a> {
    authority: &'a Authority,
    target: Option<Arc<Target>>,
    /// Besides what the client names itself, if that is true.
    names: Vec<String>,
}

impl<'a> Reception<'a> {
    /// `host`: the name that `address` was given to the agent for. A stranger has none, and learns no name that it
    /// does not know.
    pub(super) fn new(
        authority: &'a Authority,
        target: Option<Arc<Target>>,
        host: Option<&str>,
        address: IpAddr,
    ) -> Self {
        let mut names: Vec<String> = host.map(str::to_owned).into_iter().collect();
        names.push(address.to_canonical().to_string());
        Self {
            authority,
            target,
            names,
        }
    }

    /// What the certificate is made for. The name that the client asks for (SNI) counts only if it is one of the
    /// target's: nothing is ever certified under a foreign name.
    pub(super) fn names(&self, asked_for: Option<&str>) -> Vec<String> {
        let mut names = Vec::with_capacity(3);
        if let (Some(asked_for), Some(target)) = (asked_for, &self.target) {
            let asked_for = asked_for.trim_end_matches('.').to_ascii_lowercase();
            let mut known = target.addresses.iter();
            if known.any(|address| address.host == asked_for) {
                names.push(asked_for);
            }
        }
        for name in &self.names {
            if !names.contains(name) {
                names.push(name.clone());
            }
        }
        names
    }

    /// Makes TLS of a connection, until `deadline`.
    pub(super) async fn shake_hands(
        &self,
        socket: TcpStream,
        beginning: Beginning,
        deadline: Instant,
    ) -> Result<(AgentStream, Arc<Leaf>), HandshakeError> {
        let shaken = timeout_at(deadline, self.handshake(socket, beginning)).await;
        shaken.unwrap_or(Err(HandshakeError::Timeout))
    }

    async fn handshake(
        &self,
        socket: TcpStream,
        beginning: Beginning,
    ) -> Result<(AgentStream, Arc<Leaf>), HandshakeError> {
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let hello = start.client_hello();
        // Another protocol by ALPN than ours alone is refused by the handshake itself.
        let offers_alpn = hello.alpn().is_some();
        let names = self.names(hello.server_name());
        if beginning == Beginning::Direct && !offers_alpn {
            start.io.write_all(&NO_APPLICATION_PROTOCOL).await?;
            start.io.shutdown().await?;
            return Err(HandshakeError::NoAlpn);
        }
        let leaf = self.authority.leaf(&names, SystemTime::now())?;
        let stream = start.into_stream(Arc::new(server(&leaf)?)).await?;
        Ok((AgentStream::Tls(Box::new(stream)), leaf))
    }
}

fn server(leaf: &Leaf) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let schemes = provider
        .signature_verification_algorithms
        .supported_schemes();
    let key = SingleCertAndKey::from((*leaf.key).clone());
    let mut server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(Arc::new(AnyClient(schemes)))
        .with_cert_resolver(Arc::new(key));
    server.alpn_protocols = vec![ALPN.to_vec()];
    // Neither resumed sessions nor early data: a certificate's names hold for one connection.
    server.session_storage = Arc::new(NoServerSessionStorage {});
    server.send_tls13_tickets = 0;
    Ok(server)
}

/// Asks for a certificate and takes any, or none. Nothing follows from what a client shows, so it is not even
/// parsed: fewer hostile bytes are read, and no odd certificate keeps a client out.
#[derive(Debug)]
struct AnyClient(Vec<SignatureScheme>);

impl ClientCertVerifier for AnyClient {
    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.clone()
    }
}
