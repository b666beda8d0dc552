//! Who vouches for agents: an OpenID Connect issuer, and what its tokens must look like.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use toml::de::DeValue;

use super::errors::Problem;
use super::section::Section;
use super::values::{self, Root};

/// `[identity.NAME]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Issuer {
    pub name: String,
    /// What a token's `iss` must be.
    pub issuer: String,
    /// What a token's `aud` must contain.
    pub audience: String,
    pub jwks: JwksSource,
    /// Signature algorithms that are accepted; never empty.
    pub algorithms: Vec<Algorithm>,
    /// The claim with the agent's groups; dots lead into nested objects.
    pub groups_claim: String,
    /// How far the issuer's clock may be off.
    pub leeway: Duration,
}

/// Where the issuer's public keys come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JwksSource {
    File(PathBuf),
    /// `https://`, or `http://` to a loopback address.
    Url(String),
}

/// The signature algorithms that can be allowed. Symmetric ones cannot: with them, who verifies can sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Algorithm {
    Rs256,
    Es256,
    EdDsa,
}

impl Algorithm {
    const NAMES: [(&'static str, Self); 3] = [
        ("RS256", Self::Rs256),
        ("ES256", Self::Es256),
        ("EdDSA", Self::EdDsa),
    ];

    /// As in a token's `alg` header (RFC 7518 §3.1, RFC 8037 §3.1).
    pub fn name(self) -> &'static str {
        match self {
            Self::Rs256 => "RS256",
            Self::Es256 => "ES256",
            Self::EdDsa => "EdDSA",
        }
    }
}

/// Every declared name, with `None` for those that could not be read: a reference to such a one is no error.
pub(super) type Issuers = BTreeMap<String, Option<Arc<Issuer>>>;

pub(super) fn read_all(sections: Vec<(String, Section<'_>)>, root: Root<'_>) -> Issuers {
    sections
        .into_iter()
        .map(|(name, section)| (name.clone(), read(name, section, root).map(Arc::new)))
        .collect()
}

fn read(name: String, mut section: Section<'_>, root: Root<'_>) -> Option<Issuer> {
    let issuer = section.require("issuer", values::owned_text);
    let audience = section.require("audience", values::owned_text);
    let jwks = section.require("jwks", |value| jwks_source(value, root));
    let algorithms = match section.has("algorithms") {
        true => read_algorithms(&mut section),
        false => Some(Algorithm::NAMES.map(|(_, algorithm)| algorithm).to_vec()),
    };
    let groups_claim = section.take("groups_claim", values::owned_text);
    let leeway = section.take("leeway_seconds", |value| values::number(value, 0, 300));
    section.finish();
    Some(Issuer {
        name,
        issuer: issuer?,
        audience: audience?,
        jwks: jwks?,
        algorithms: algorithms?,
        groups_claim: groups_claim.unwrap_or_else(|| "groups".to_owned()),
        leeway: Duration::from_secs(leeway.unwrap_or(30)),
    })
}

fn read_algorithms(section: &mut Section<'_>) -> Option<Vec<Algorithm>> {
    let algorithms = section.list("algorithms", |value| {
        values::choice(value, &Algorithm::NAMES)
    })?;
    if algorithms.is_empty() {
        let problem = Problem::new("is empty, so no token could be accepted")
            .hint("leave the key out to accept RS256, ES256 and EdDSA");
        section.refuse(section.offset_of("algorithms"), "algorithms", problem);
        return None;
    }
    Some(algorithms.into_iter().map(|entry| entry.value).collect())
}

fn jwks_source(value: &DeValue<'_>, root: Root<'_>) -> Result<JwksSource, Problem> {
    let text = values::text(value)?;
    if text.starts_with('/') {
        return Ok(JwksSource::File(root.place(text)));
    }
    let shape = || {
        Problem::new(format!(
            "must be an absolute path or an https:// URL, not {text:?}"
        ))
    };
    let url: ureq::http::Uri = text.parse().map_err(|_| shape())?;
    let (scheme, authority) = url.scheme_str().zip(url.authority()).ok_or_else(shape)?;
    if authority.as_str().contains('@') {
        return Err(Problem::new("must not carry a user or password")
            .hint("a JWKS is public; if yours is not, fetch it into a file"));
    }
    match scheme {
        "https" => Ok(JwksSource::Url(text.to_owned())),
        "http" if is_loopback(authority.host()) => Ok(JwksSource::Url(text.to_owned())),
        "http" => Err(Problem::new(
            "must use https://: whoever sits on the way could supply their own keys",
        )
        .hint("http:// is accepted for loopback addresses only")),
        _ => Err(shape()),
    }
}

fn is_loopback(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}
