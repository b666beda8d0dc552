//! Certificates for the names an agent dialled: made on demand, in memory, for a day.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, Issuer, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey,
};
use rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use zeroize::Zeroize;

use super::{AuthorityError, MAX_COMMON_NAME, minting};

/// A client's clock may be this much behind.
const BACKDATED: Duration = Duration::from_secs(3600);

/// With what it is back-dated by, 24 hours.
const VALIDITY: Duration = Duration::from_secs(23 * 3600);

/// A leaf with less than this left is replaced: a client's clock may be ahead, too.
const RENEWED: Duration = Duration::from_secs(12 * 3600);

/// Synthetic addresses come and go; more leaves than this are thrown away and made again.
const MAX_LEAVES: usize = 1024;

/// An ECDSA P-256 key. AWS-LC wipes it when it is dropped.
pub(super) struct P256(EcdsaKeyPair);

impl P256 {
    pub(super) fn from_pkcs8(der: &[u8]) -> Option<Self> {
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, der)
            .ok()
            .map(Self)
    }

    /// The uncompressed point.
    pub(super) fn public(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }
}

impl PublicKeyData for P256 {
    fn der_bytes(&self) -> &[u8] {
        self.public()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for P256 {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0
            .sign(&SystemRandom::new(), message)
            .map(|signature| signature.as_ref().to_owned())
            .map_err(|_| rcgen::Error::RingUnspecified)
    }
}

/// A certificate for some names, with its key.
#[derive(Debug)]
pub struct Leaf {
    pub key: Arc<CertifiedKey>,
    /// What SCRAM binds to (`tls-server-end-point`, RFC 5929 §4.1): the certificate's hash, SHA-256 as in its
    /// signature.
    pub end_point: [u8; 32],
    /// What it is for.
    pub names: Vec<String>,
    not_after: SystemTime,
}

pub(super) fn mint(
    issuer: &Issuer<'static, P256>,
    intermediate: Option<&CertificateDer<'static>>,
    names: &[String],
    now: SystemTime,
) -> Result<Leaf, AuthorityError> {
    let document =
        EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new())
            .map_err(minting)?;
    let public =
        P256::from_pkcs8(document.as_ref()).ok_or_else(|| minting("the key is unusable"))?;
    let not_after = now + VALIDITY;
    let mut params = CertificateParams::new(names.to_vec()).map_err(minting)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    match names.first() {
        None => return Err(minting("there is no name to make it for")),
        // Longer ones stand among the alternative names only, which is where clients look first.
        Some(name) if name.len() > MAX_COMMON_NAME => {}
        Some(name) => params.distinguished_name.push(DnType::CommonName, name),
    }
    params.not_before = (now - BACKDATED).into();
    params.not_after = not_after.into();
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.use_authority_key_identifier_extension = true;
    let certificate = params.signed_by(&public, issuer).map_err(minting)?;
    let mut der = PrivateKeyDer::Pkcs8(document.as_ref().to_vec().into());
    let key = any_ecdsa_type(&der).map_err(minting);
    der.zeroize();
    let end_point = digest(&SHA256, certificate.der());
    let mut chain = vec![certificate.der().clone()];
    chain.extend(intermediate.cloned());
    Ok(Leaf {
        key: Arc::new(CertifiedKey::new(chain, key?)),
        end_point: end_point
            .as_ref()
            .try_into()
            .map_err(|_| minting("SHA-256 has 32 bytes"))?,
        names: names.to_vec(),
        not_after,
    })
}

/// The leaves made so far, by their names.
#[derive(Debug, Default)]
pub(super) struct Leaves(Mutex<HashMap<Vec<String>, Arc<Leaf>>>);

impl Leaves {
    pub(super) fn find(
        &self,
        names: &[String],
        now: SystemTime,
        mint: impl FnOnce() -> Result<Leaf, AuthorityError>,
    ) -> Result<Arc<Leaf>, AuthorityError> {
        let fresh = |leaf: &Arc<Leaf>| {
            // A clock that was put back shall not keep a leaf that is not valid yet.
            let left = leaf.not_after.duration_since(now).unwrap_or_default();
            (RENEWED..=VALIDITY).contains(&left)
        };
        let mut leaves = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(leaf) = leaves.get(names).filter(|leaf| fresh(leaf)) {
            return Ok(Arc::clone(leaf));
        }
        // Making one takes less than a millisecond: not worth letting others make the same meanwhile.
        let leaf = Arc::new(mint()?);
        if leaves.len() >= MAX_LEAVES {
            leaves.retain(|_, leaf| fresh(leaf));
        }
        if leaves.len() >= MAX_LEAVES {
            leaves.clear();
        }
        leaves.insert(names.to_vec(), Arc::clone(&leaf));
        Ok(leaf)
    }
}
