//! How targets are reached: their credentials and their certificates.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;

use crate::config::{Config, Target, TargetTls};
use crate::credentials::{self, Credential};

/// The system's trusted roots, for targets that name no `ca_file`.
const SYSTEM_ROOTS: &str = "/etc/ssl/certs/ca-certificates.crt";

/// How one target is reached.
pub(super) struct Upstream {
    pub(super) credential: Arc<Credential>,
    pub(super) tls: Option<Arc<rustls::ClientConfig>>,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upstream")
            .field("user", &self.credential.user)
            .field("tls", &self.tls.is_some())
            .finish()
    }
}

/// Every target's, by its name.
pub(super) fn load(config: &Config) -> Result<HashMap<String, Upstream>> {
    let mut upstreams = HashMap::new();
    for target in config.targets.values() {
        let upstream =
            upstream(target).with_context(|| format!("preparing target \"{}\"", target.name))?;
        upstreams.insert(target.name.clone(), upstream);
    }
    Ok(upstreams)
}

fn upstream(target: &Target) -> Result<Upstream> {
    let tls = match &target.tls {
        TargetTls::Disable => None,
        TargetTls::VerifyFull { ca_file, .. } => {
            let file = ca_file
                .clone()
                .unwrap_or_else(|| std::path::PathBuf::from(SYSTEM_ROOTS));
            Some(Arc::new(tls_client(&file)?))
        }
    };
    Ok(Upstream {
        credential: Arc::new(credentials::load(&target.credential)?),
        tls,
    })
}

fn tls_client(roots_file: &std::path::Path) -> Result<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(roots_file)
        .with_context(|| format!("reading {}", roots_file.display()))?;
    for certificate in certificates {
        let certificate =
            certificate.with_context(|| format!("reading {}", roots_file.display()))?;
        roots
            .add(certificate)
            .with_context(|| format!("a certificate in {}", roots_file.display()))?;
    }
    if roots.is_empty() {
        bail!("{} holds no certificate", roots_file.display());
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    Ok(rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
