//! The local certificate authority: what agents trust, so that the gateway can answer in a target's name.
//!
//! It is made at the first start, as the gateway's user, below `tls.directory`:
//!
//! ```text
//! ca.key      0600  the private key, PKCS#8; it never leaves this process and this file
//! ca.pem      0644  the certificate, which agents trust
//! bundle.pem  0644  the system's authorities with this one, written anew at every start
//! ```
//!
//! Certificates for targets are [minted](mint) in memory when an agent asks, and live for a day.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use x509_parser::prelude::{FromDer, X509Certificate};
use zeroize::{Zeroize, Zeroizing};

use self::mint::{Leaves, P256};
use super::{SecretFileError, read_secret_file};
use crate::config::Tls;

mod mint;

pub use mint::Leaf;

/// Where distributions keep the authorities that the system trusts; the first that is there counts.
const SYSTEM_AUTHORITIES: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// A key is a few hundred bytes; more is another file.
const MAX_KEY_FILE: usize = 16 << 10;

/// How long an authority is valid: longer than a host lives, as nothing renews it.
const VALIDITY: Duration = Duration::from_secs(20 * 365 * 24 * 3600);

/// Hosts and containers with a slow clock shall trust it too.
const BACKDATED: Duration = Duration::from_secs(24 * 3600);

/// From here on the log says at every start that the authority has to be replaced.
const SOON: Duration = Duration::from_secs(90 * 24 * 3600);

/// RFC 5280's upper bound of a common name.
const MAX_COMMON_NAME: usize = 64;

/// Mints certificates for the names of targets.
pub struct Authority {
    issuer: Issuer<'static, P256>,
    /// Sent along with a leaf, if the authority is itself certified by another.
    intermediate: Option<CertificateDer<'static>>,
    leaves: Leaves,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").finish_non_exhaustive()
    }
}

/// Why there is no authority. Never contains any part of the key.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{doing} {}: {cause}", file.display())]
    File {
        doing: &'static str,
        file: PathBuf,
        cause: io::Error,
    },
    #[error(
        "the folder {} can be written by others than its owner (mode {mode:04o}), who could put an authority of their own there; run: chmod 755 {}",
        folder.display(), folder.display()
    )]
    OpenFolder { folder: PathBuf, mode: u32 },
    #[error("the key {} {problem}", file.display())]
    Key {
        file: PathBuf,
        problem: SecretFileError,
    },
    #[error(
        "the key {} can be read or written by others than its owner (mode {mode:04o}): whoever has it can pose as any server; run: chmod 600 {}, and make a new authority if somebody may have read it",
        file.display(), file.display()
    )]
    Exposed { file: PathBuf, mode: u32 },
    #[error(
        "the key {} is not an ECDSA P-256 key in PKCS#8 (PEM); to make a new authority, remove it",
        file.display()
    )]
    NotAKey { file: PathBuf },
    #[error("the certificate {} {problem}; to make a new authority, remove ca.key beside it", file.display())]
    Certificate { file: PathBuf, problem: String },
    #[error("a certificate could not be made: {0}")]
    Minting(String),
}

fn failed(doing: &'static str, file: &Path) -> impl FnOnce(io::Error) -> AuthorityError {
    move |cause| AuthorityError::File {
        doing,
        file: file.to_owned(),
        cause,
    }
}

fn minting(error: impl std::fmt::Display) -> AuthorityError {
    AuthorityError::Minting(error.to_string())
}

impl Authority {
    /// Takes the authority in `tls.directory`, or makes one for the host `host_name`, and writes the bundle.
    ///
    /// # Errors
    /// A key that others can read, a certificate that is none of this key's, or no longer valid, a folder that
    /// cannot be used. Nothing is replaced then: agents trust what is there.
    pub fn open(tls: &Tls, host_name: &str, now: SystemTime) -> Result<Self, AuthorityError> {
        let folder = &tls.directory;
        prepare_folder(folder)?;
        let key_file = folder.join("ca.key");
        let there = key_file
            .try_exists()
            .map_err(failed("looking for", &key_file))?;
        if !there {
            create(&key_file, &tls.authority(), host_name, now)?;
        }
        let (authority, certificate) = load(&key_file, &tls.authority(), now)?;
        write_bundle(&tls.bundle(), &certificate)?;
        Ok(authority)
    }

    /// A certificate for `names` (host names and addresses, the most telling first) that is valid now and for
    /// some hours more.
    ///
    /// # Errors
    /// No names, or names that no certificate can carry.
    pub fn leaf(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<std::sync::Arc<Leaf>, AuthorityError> {
        self.leaves.find(names, now, || {
            mint::mint(&self.issuer, self.intermediate.as_ref(), names, now)
        })
    }
}

/// Agents must be able to look into it, and only its owner may change it.
fn prepare_folder(folder: &Path) -> Result<(), AuthorityError> {
    fs::create_dir_all(folder).map_err(failed("making the folder", folder))?;
    let metadata = folder
        .metadata()
        .map_err(failed("looking at the folder", folder))?;
    let mode = metadata.mode() & 0o7777;
    if mode & 0o022 != 0 {
        return Err(AuthorityError::OpenFolder {
            folder: folder.to_owned(),
            mode,
        });
    }
    // A service manager makes its service's folders for that service alone.
    if mode & 0o055 != 0o055 && metadata.uid() == nix::unistd::geteuid().as_raw() {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755))
            .map_err(failed("opening the folder to agents", folder))?;
    }
    Ok(())
}

/// Certificate first: where there is a key, there is its certificate.
fn create(
    key_file: &Path,
    certificate_file: &Path,
    host_name: &str,
    now: SystemTime,
) -> Result<(), AuthorityError> {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(minting)?;
    let key = P256::from_pkcs8(document.as_ref()).ok_or_else(|| minting("the key is unusable"))?;
    let mut name = format!("Sluice local authority of {host_name}");
    while name.len() > MAX_COMMON_NAME {
        name.pop();
    }
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = (now - BACKDATED).into();
    params.not_after = (now + VALIDITY).into();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(minting)?;
    write(certificate_file, certificate.pem().as_bytes(), 0o644)?;
    let pem = Zeroizing::new(pem("PRIVATE KEY", document.as_ref()));
    write(key_file, pem.as_bytes(), 0o600)?;
    tracing::info!(certificate = %certificate_file.display(), "a local certificate authority was made: let agents trust it");
    Ok(())
}

fn load(
    key_file: &Path,
    certificate_file: &Path,
    now: SystemTime,
) -> Result<(Authority, CertificateDer<'static>), AuthorityError> {
    let key = load_key(key_file)?;
    let wrong = |problem: String| AuthorityError::Certificate {
        file: certificate_file.to_owned(),
        problem,
    };
    let certificate = CertificateDer::from_pem_file(certificate_file)
        .map_err(|error| wrong(format!("cannot be used: {error}")))?;
    let (_, parsed) = X509Certificate::from_der(&certificate)
        .map_err(|error| wrong(format!("cannot be read: {error}")))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public() {
        return Err(wrong("belongs to another key than ca.key".to_owned()));
    }
    if !parsed.is_ca() {
        return Err(wrong("is not that of an authority".to_owned()));
    }
    let seconds = |at: SystemTime| {
        let since = at.duration_since(SystemTime::UNIX_EPOCH);
        i64::try_from(since.unwrap_or_default().as_secs()).unwrap_or(i64::MAX)
    };
    let validity = parsed.validity();
    let (begins, ends) = (
        validity.not_before.timestamp(),
        validity.not_after.timestamp(),
    );
    if !(begins..=ends).contains(&seconds(now)) {
        return Err(wrong(format!(
            "is valid from {} to {}, which is not now",
            validity.not_before, validity.not_after
        )));
    }
    if ends < seconds(now + SOON) {
        tracing::warn!(certificate = %certificate_file.display(), until = %validity.not_after, "the local certificate authority ends soon: make a new one");
    }
    let intermediate = parsed.subject() != parsed.issuer();
    let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(minting)?;
    let authority = Authority {
        issuer,
        intermediate: intermediate.then(|| certificate.clone()),
        leaves: Leaves::default(),
    };
    Ok((authority, certificate))
}

fn load_key(file: &Path) -> Result<P256, AuthorityError> {
    let read = read_secret_file(file, MAX_KEY_FILE).map_err(|problem| AuthorityError::Key {
        file: file.to_owned(),
        problem,
    })?;
    if read.mode & 0o077 != 0 {
        return Err(AuthorityError::Exposed {
            file: file.to_owned(),
            mode: read.mode,
        });
    }
    let text = read.without_line_break();
    let not_a_key = || AuthorityError::NotAKey {
        file: file.to_owned(),
    };
    let mut der =
        PrivatePkcs8KeyDer::from_pem_slice(text.expose().as_bytes()).map_err(|_| not_a_key())?;
    let key = P256::from_pkcs8(der.secret_pkcs8_der());
    der.zeroize();
    key.ok_or_else(not_a_key)
}

/// Programs that take one file for all authorities get one with the system's and ours.
fn write_bundle(file: &Path, ours: &CertificateDer<'_>) -> Result<(), AuthorityError> {
    let mut bundle = SYSTEM_AUTHORITIES
        .iter()
        .find_map(|file| fs::read(file).ok())
        .unwrap_or_default();
    if bundle.last().is_some_and(|last| *last != b'\n') {
        bundle.push(b'\n');
    }
    bundle.extend_from_slice(pem("CERTIFICATE", ours).as_bytes());
    match fs::read(file) {
        Ok(before) if before == bundle => Ok(()),
        _ => write(file, &bundle, 0o644),
    }
}

/// Whole or not at all, and never readable by more than `mode` says.
fn write(file: &Path, bytes: &[u8], mode: u32) -> Result<(), AuthorityError> {
    let mut unfinished = file.as_os_str().to_owned();
    unfinished.push(".new");
    let unfinished = PathBuf::from(unfinished);
    match fs::remove_file(&unfinished) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(failed("removing", &unfinished)(error));
        }
        _ => {}
    }
    let written = (|| {
        let mut out = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(&unfinished)?;
        // The process's umask may have taken more away than it should.
        out.set_permissions(fs::Permissions::from_mode(mode))?;
        out.write_all(bytes)?;
        out.sync_all()?;
        fs::rename(&unfinished, file)?;
        match file.parent() {
            Some(folder) => fs::File::open(folder)?.sync_all(),
            None => Ok(()),
        }
    })();
    written.map_err(failed("writing", file))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let body = Zeroizing::new(base64::engine::general_purpose::STANDARD.encode(der));
    // Room for all of it at once: a growing buffer leaves copies behind that nothing wipes.
    let mut out = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 64);
    out.push_str("-----BEGIN ");
    out.push_str(label);
    out.push_str("-----\n");
    for (at, character) in body.char_indices() {
        if at > 0 && at % 64 == 0 {
            out.push('\n');
        }
        out.push(character);
    }
    out.push_str("\n-----END ");
    out.push_str(label);
    out.push_str("-----\n");
    out
}

#[cfg(test)]
mod tests {
    use x509_parser::extensions::GeneralName;

    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn open(folder: &Path) -> Result<Authority, AuthorityError> {
        let tls = Tls {
            directory: folder.to_owned(),
        };
        Authority::open(&tls, "host.example", SystemTime::now())
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn leaves_are_for_their_names_and_a_day() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        let now = SystemTime::now();
        let long = format!("{}.example", "a".repeat(60));
        let leaf = authority
            .leaf(&names(&[&long, "db.example", "10.0.0.7", "fd00::1"]), now)
            .unwrap();
        let chain = &leaf.key.cert;
        assert_eq!(chain.len(), 1);
        let (_, parsed) = X509Certificate::from_der(&chain[0]).unwrap();
        let pem = fs::read(folder.path().join("ca.pem")).unwrap();
        let ours = CertificateDer::from_pem_slice(&pem).unwrap();
        let (_, ours) = X509Certificate::from_der(&ours).unwrap();
        parsed.verify_signature(Some(ours.public_key())).unwrap();
        assert_eq!(parsed.issuer(), ours.subject());
        assert!(!parsed.is_ca());
        let subject = parsed.subject_alternative_name().unwrap().unwrap();
        let found: Vec<String> = subject
            .value
            .general_names
            .iter()
            .map(|name| match name {
                GeneralName::DNSName(name) => (*name).to_owned(),
                GeneralName::IPAddress(bytes) => format!("{} bytes", bytes.len()),
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(found, [&long, "db.example", "4 bytes", "16 bytes"]);
        let validity = parsed.validity();
        let seconds = validity.not_after.timestamp() - validity.not_before.timestamp();
        assert_eq!(seconds, 24 * 3600);
        assert!(authority.leaf(&[], now).is_err());
        assert!(authority.leaf(&names(&["nö"]), now).is_err());
    }

    #[test]
    fn leaves_are_kept_and_renewed() {
        let folder = tempfile::tempdir().unwrap();
        let authority = open(folder.path()).unwrap();
        let now = SystemTime::now();
        let end_point = |name: &str, at| authority.leaf(&names(&[name]), at).unwrap().end_point;
        let first = end_point("a.example", now);
        assert_eq!(end_point("a.example", now + 10 * HOUR), first);
        assert_ne!(end_point("b.example", now), first);
        let renewed = end_point("a.example", now + 12 * HOUR);
        assert_ne!(renewed, first);
        // A clock that goes back: what is not valid yet is not shown.
        assert_ne!(end_point("a.example", now), renewed);
    }

    #[test]
    fn an_authority_of_ones_own_below_another() {
        let folder = tempfile::tempdir().unwrap();
        let root_key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "root");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = Issuer::new(params.clone(), root_key);
        let key = rcgen::KeyPair::generate().unwrap();
        params.distinguished_name.push(DnType::CommonName, "below");
        let ours = params.signed_by(&key, &root).unwrap();
        write(
            &folder.path().join("ca.key"),
            key.serialize_pem().as_bytes(),
            0o600,
        )
        .unwrap();
        write(&folder.path().join("ca.pem"), ours.pem().as_bytes(), 0o644).unwrap();
        let authority = open(folder.path()).unwrap();
        let leaf = authority.leaf(&names(&["a.example"]), SystemTime::now());
        let chain = &leaf.unwrap().key.cert;
        assert_eq!(&chain[1..], [ours.der().clone()]);
    }

    #[test]
    fn what_is_unsafe_or_unfit_is_refused() {
        type Spoil = fn(&Path);
        let cases: [(&str, Spoil, &str); 6] = [
            (
                "the group reads the key",
                |folder| {
                    let mode = fs::Permissions::from_mode(0o640);
                    fs::set_permissions(folder.join("ca.key"), mode).unwrap();
                },
                "chmod 600",
            ),
            (
                "others write the folder",
                |folder| {
                    let mode = fs::Permissions::from_mode(0o757);
                    fs::set_permissions(folder, mode).unwrap();
                },
                "chmod 755",
            ),
            (
                "no certificate",
                |folder| fs::remove_file(folder.join("ca.pem")).unwrap(),
                "remove ca.key",
            ),
            (
                "no key",
                |folder| fs::write(folder.join("ca.key"), "-----BEGIN").unwrap(),
                "not an ECDSA P-256 key",
            ),
            (
                "a key of another kind",
                |folder| {
                    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
                    fs::write(folder.join("ca.key"), key.serialize_pem()).unwrap();
                },
                "not an ECDSA P-256 key",
            ),
            (
                "another's certificate",
                |folder| {
                    let other = tempfile::tempdir().unwrap();
                    open(other.path()).unwrap();
                    fs::copy(other.path().join("ca.pem"), folder.join("ca.pem")).unwrap();
                },
                "another key",
            ),
        ];
        for (name, spoil, expected) in cases {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("tls");
            open(&folder).unwrap();
            spoil(&folder);
            let error = open(&folder).unwrap_err().to_string();
            assert!(error.contains(expected), "{name}: {error}");
            assert!(!error.contains("PRIVATE"), "{name}: {error}");
        }
    }

    #[test]
    fn an_authority_out_of_its_time_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        open(folder.path()).unwrap();
        let tls = Tls {
            directory: folder.path().to_owned(),
        };
        let later = SystemTime::now() + VALIDITY + HOUR;
        let error = Authority::open(&tls, "host", later)
            .unwrap_err()
            .to_string();
        assert!(error.contains("is valid from"), "{error}");
    }
}
