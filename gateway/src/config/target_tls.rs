//! `[targets.NAME.tls]`: how the gateway's own connection to a target is protected.

use std::path::PathBuf;

use super::errors::Problem;
use super::section::Section;
use super::values::{self, Root};

/// What the gateway demands of a target's TLS, and shows of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetTls {
    pub mode: TlsMode,
    /// PEM certificates to trust; the system's if absent. Only of the modes that verify.
    pub ca_file: Option<PathBuf>,
    /// The name the certificate must carry, and the one that is asked for; the dialled host if absent.
    pub server_name: Option<String>,
    pub client: Option<ClientCertificate>,
}

impl TargetTls {
    /// Whether whoever answers is the server, or one that the same authority of the operator's choice vouches for.
    /// A certificate of any of the system's authorities, for any name, proves nothing.
    pub fn proves_the_server(&self) -> bool {
        match self.mode {
            TlsMode::VerifyFull => true,
            TlsMode::VerifyCa => self.ca_file.is_some(),
            TlsMode::Require | TlsMode::Prefer | TlsMode::Disable => false,
        }
    }
}

/// The modes of libpq's `sslmode`, with its meanings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsMode {
    Disable,
    /// Unencrypted if the server says that it has no TLS: whoever is on the way can say so.
    Prefer,
    /// Encrypted, to whoever answers.
    Require,
    /// To whoever has a certificate of a trusted authority.
    VerifyCa,
    /// To whom the certificate names.
    VerifyFull,
}

impl TlsMode {
    pub fn name(self) -> &'static str {
        match self {
            TlsMode::Disable => "disable",
            TlsMode::Prefer => "prefer",
            TlsMode::Require => "require",
            TlsMode::VerifyCa => "verify-ca",
            TlsMode::VerifyFull => "verify-full",
        }
    }
}

/// With which the gateway proves itself to a target, both files PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

pub(super) fn read(mut section: Section<'_>, root: Root<'_>) -> TargetTls {
    let modes = [
        TlsMode::VerifyFull,
        TlsMode::VerifyCa,
        TlsMode::Require,
        TlsMode::Prefer,
        TlsMode::Disable,
    ]
    .map(|mode| (mode.name(), mode));
    let mode = section
        .take("mode", |value| values::choice(value, &modes))
        .unwrap_or(TlsMode::VerifyFull);
    let ca_file = section.take("ca_file", |value| root.path(value));
    let server_name = section.take("server_name", values::server_name);
    let certificate = section.take("client_certificate", |value| root.path(value));
    let key = section.take("client_key", |value| root.path(value));
    let refuse = |keys: &[&'static str], hint: &str| {
        for key in keys.iter().filter(|key| section.has(key)) {
            let problem =
                Problem::new(format!("has no effect with mode = \"{}\"", mode.name())).hint(hint);
            section.refuse(section.offset_of(key), key, problem);
        }
    };
    match mode {
        TlsMode::Disable => refuse(
            &["ca_file", "server_name", "client_certificate", "client_key"],
            "use mode = \"verify-full\", or remove the key",
        ),
        TlsMode::Prefer | TlsMode::Require => refuse(
            &["ca_file"],
            "use mode = \"verify-full\" or \"verify-ca\", or remove the key",
        ),
        TlsMode::VerifyCa | TlsMode::VerifyFull => {}
    }
    for (present, absent) in [
        ("client_certificate", "client_key"),
        ("client_key", "client_certificate"),
    ] {
        if section.has(present) && !section.has(absent) {
            let problem = Problem::new(format!("is of no use without {absent}"))
                .hint(format!("add {absent}, or remove {present}"));
            section.refuse(section.offset_of(present), present, problem);
        }
    }
    section.finish();
    TargetTls {
        mode,
        ca_file,
        server_name,
        client: certificate
            .zip(key)
            .map(|(certificate, key)| ClientCertificate { certificate, key }),
    }
}
