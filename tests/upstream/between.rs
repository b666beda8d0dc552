//! Servers that are none: somebody between the gateway and the server, and listeners that say what they are told.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::harness::authority::Certificate;
use crate::harness::{Authority, Postgres};

/// The name that the test's servers have in their certificates.
pub const NAME: &str = "db.internal";

const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

/// Ends TLS on both sides, so that it reads and writes in clear. It has a certificate of the same authority as the
/// server, for the same name: TLS alone does not give it away.
pub struct Between {
    pub port: u16,
    _runtime: tokio::runtime::Runtime,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Meddling {
    Nothing,
    /// Takes SCRAM-SHA-256-PLUS out of what the server offers.
    TakesPlusAway,
}

impl Between {
    pub fn new(server: &Postgres, authority: &Authority, meddling: Meddling) -> Between {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime can be made");
        let acceptor = acceptor(&authority.certificate_for(&[NAME]));
        let connector = connector(authority);
        let server = SocketAddr::from(([127, 0, 0, 1], server.port()));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let port = listener.local_addr().expect("it is bound").port();
        listener.set_nonblocking(true).expect("it is a socket");
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("it is a listener");
            while let Ok((gateway, _)) = listener.accept().await {
                let (acceptor, connector) = (acceptor.clone(), connector.clone());
                tokio::spawn(async move {
                    // Whoever hangs up first ends it; the test looks at what the gateway says.
                    let _ = relay(gateway, server, &acceptor, &connector, meddling).await;
                });
            }
        });
        Between {
            port,
            _runtime: runtime,
        }
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn acceptor(certificate: &Certificate) -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(certificate.chain.as_bytes());
    let config = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the versions exist")
        .with_no_client_auth()
        .with_single_cert(
            chain.map(|one| one.expect("it is PEM")).collect(),
            PrivateKeyDer::from_pem_slice(certificate.key.as_bytes()).expect("it is PEM"),
        )
        .expect("they belong together");
    TlsAcceptor::from(Arc::new(config))
}

fn connector(authority: &Authority) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    let root = CertificateDer::from_pem_slice(authority.pem().as_bytes()).expect("it is PEM");
    roots.add(root).expect("it is an authority");
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("the versions exist")
        .with_root_certificates(roots)
        .with_no_client_auth();
    TlsConnector::from(Arc::new(config))
}

async fn relay(
    mut gateway: tokio::net::TcpStream,
    server: SocketAddr,
    acceptor: &TlsAcceptor,
    connector: &TlsConnector,
    meddling: Meddling,
) -> std::io::Result<()> {
    let mut request = [0; 8];
    gateway.read_exact(&mut request).await?;
    gateway.write_all(b"S").await?;
    let mut gateway = acceptor.accept(gateway).await?;
    let mut server = tokio::net::TcpStream::connect(server).await?;
    server.write_all(&SSL_REQUEST).await?;
    assert_eq!(server.read_u8().await?, b'S');
    let name = ServerName::try_from(NAME).expect("it is a name");
    let mut server = connector.connect(name, server).await?;
    if meddling == Meddling::TakesPlusAway {
        let length = gateway.read_u32().await?;
        let mut startup = vec![0; length as usize - 4];
        gateway.read_exact(&mut startup).await?;
        server.write_u32(length).await?;
        server.write_all(&startup).await?;
        let mut offer = [0; 5];
        server.read_exact(&mut offer).await?;
        let length = u32::from_be_bytes([offer[1], offer[2], offer[3], offer[4]]);
        let mut offered = vec![0; length as usize - 4];
        server.read_exact(&mut offered).await?;
        assert!(offered.starts_with(b"\0\0\0\x0aSCRAM-SHA-256-PLUS\0"));
        let less = b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0";
        gateway.write_all(less).await?;
    }
    copy_bidirectional(&mut gateway, &mut server).await?;
    Ok(())
}

/// A listener that treats every connection in one way, until it is dropped.
pub struct Fake {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Fake {
    /// At a loopback address, on any port (0) or on a certain one.
    pub fn at(
        ip: &str,
        port: u16,
        treat: impl Fn(TcpStream) -> std::io::Result<()> + Send + Sync + 'static,
    ) -> Fake {
        let ip: IpAddr = ip.parse().expect("an address");
        let listener = TcpListener::bind((ip, port)).expect("the port is free there");
        let address = listener.local_addr().expect("it is bound");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            for connection in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                if let Ok(connection) = connection {
                    // A gateway that hangs up is what some of the tests are about.
                    let _ = treat(connection);
                }
            }
        });
        Fake {
            address,
            stop,
            thread: Some(thread),
        }
    }

    /// Answers the StartupMessage with these bytes and hangs up.
    pub fn saying(bytes: Vec<u8>) -> Fake {
        Self::at("127.0.0.1", 0, move |mut gateway| {
            read_startup(&mut gateway)?;
            gateway.write_all(&bytes)?;
            // Until the gateway has read it.
            let _ = gateway.read(&mut [0; 64])?;
            Ok(())
        })
    }

    /// Accepts, and says nothing while the gateway waits.
    pub fn silent() -> Fake {
        Self::at("127.0.0.1", 0, |mut gateway| {
            let mut rest = [0; 512];
            while gateway.read(&mut rest)? > 0 {}
            Ok(())
        })
    }

    /// Says yes to TLS and then something else.
    pub fn breaking_tls(ip: &str, port: u16) -> Fake {
        Self::at(ip, port, |mut gateway| {
            gateway.read_exact(&mut [0; 8])?;
            gateway.write_all(b"Sthis is not TLS, is it")?;
            let mut rest = [0; 512];
            while gateway.read(&mut rest)? > 0 {}
            Ok(())
        })
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        // Wakes it, so that it sees that.
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn read_startup(gateway: &mut TcpStream) -> std::io::Result<()> {
    let mut length = [0; 4];
    gateway.read_exact(&mut length)?;
    let mut rest = vec![0; u32::from_be_bytes(length) as usize - 4];
    gateway.read_exact(&mut rest)
}

/// A FATAL ErrorResponse.
pub fn fatal(sqlstate: &str, message: &str) -> Vec<u8> {
    let body = format!("SFATAL\0VFATAL\0C{sqlstate}\0M{message}\0\0");
    let mut bytes = vec![b'E'];
    bytes.extend_from_slice(&(body.len() as u32 + 4).to_be_bytes());
    bytes.extend_from_slice(body.as_bytes());
    bytes
}
