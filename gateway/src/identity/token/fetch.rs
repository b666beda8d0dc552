//! Getting an issuer's key set, from a file or over HTTP, with a limit on size and time.

use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use ureq::tls::{Certificate, RootCerts, TlsConfig, TlsProvider};

use crate::config::JwksSource;

/// A key set has a few KiB; an endless answer must not fill the memory.
const MAX_JWKS: u64 = 1024 * 1024;

/// How long a session may wait for the issuer, all in all: name, connection, TLS, answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// Where distributions keep the certificates the host trusts: Debian and Ubuntu, Fedora, openSUSE, Alpine.
const SYSTEM_ROOTS: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The text of the key set, or why it could not be had.
pub(super) fn load(source: &JwksSource) -> Result<String, String> {
    match source {
        JwksSource::File(file) => read_file(file),
        JwksSource::Url(url) if url.starts_with("https:") => {
            let roots = system_roots().map_err(|why| format!("{url}: {why}"))?;
            fetch(url, roots)
        }
        // The configuration lets through http:// for loopback addresses only.
        JwksSource::Url(url) => fetch(url, Vec::new()),
    }
}

pub(super) fn read_file(file: &Path) -> Result<String, String> {
    let refuse = |why: String| format!("{}: {why}", file.display());
    let open = OpenOptions::new()
        .read(true)
        // A FIFO must be refused, not waited for.
        .custom_flags(libc::O_NONBLOCK)
        .open(file)
        .map_err(|error| refuse(error.to_string()))?;
    match open.metadata() {
        Ok(metadata) if metadata.is_file() => (),
        Ok(_) => return Err(refuse("not a regular file".to_owned())),
        Err(error) => return Err(refuse(error.to_string())),
    }
    let mut text = String::new();
    match open.take(MAX_JWKS + 1).read_to_string(&mut text) {
        Err(error) => Err(refuse(error.to_string())),
        Ok(_) if text.len() as u64 > MAX_JWKS => {
            Err(refuse(format!("larger than {MAX_JWKS} bytes")))
        }
        Ok(_) => Ok(text),
    }
}

/// `roots`: the certificates to trust for https.
fn fetch(url: &str, roots: Vec<Certificate<'static>>) -> Result<String, String> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let tls = TlsConfig::builder()
        .provider(TlsProvider::Rustls)
        .unversioned_rustls_crypto_provider(Arc::new(provider))
        .root_certs(RootCerts::from(roots))
        .build();
    let mut config = ureq::Agent::config_builder()
        .tls_config(tls)
        .timeout_global(Some(DEADLINE))
        // A redirect would let the answer come from where the operator never pointed.
        .max_redirects(0)
        .https_only(url.starts_with("https:"));
    if !url.starts_with("https:") {
        // http is for loopback only, so it must not leave the host through a proxy.
        config = config.proxy(None);
    }
    let agent = ureq::Agent::new_with_config(config.build());
    let refuse = |error: ureq::Error| format!("{url}: {error}");
    let mut response = agent.get(url).call().map_err(refuse)?;
    if response.status() != 200 {
        return Err(format!("{url}: HTTP status {}", response.status().as_u16()));
    }
    let body = response.body_mut().with_config().limit(MAX_JWKS);
    body.read_to_string().map_err(refuse)
}

fn system_roots() -> Result<Vec<Certificate<'static>>, String> {
    let bundle = SYSTEM_ROOTS
        .iter()
        .find(|path| Path::new(path).exists())
        .ok_or("this host has no bundle of CA certificates; install ca-certificates")?;
    let certificates = CertificateDer::pem_file_iter(bundle)
        .map_err(|error| format!("{bundle}: {error}"))?
        // One broken certificate among a hundred only means that it is not trusted.
        .filter_map(Result::ok)
        .map(|der| Certificate::from_der(&der).to_owned());
    Ok(certificates.collect())
}

/// [`fetch`] with one trusted certificate of a test's own server.
#[cfg(test)]
pub(super) fn tests_fetch(url: &str, root: Vec<u8>) -> Result<String, String> {
    fetch(url, vec![Certificate::from_der(&root).to_owned()])
}
