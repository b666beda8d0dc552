//! `[targets.NAME.credential]` and `[targets.NAME.credentials.*]`: as whom the gateway logs in at a target.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use toml::de::DeValue;

use super::errors::Problem;
use super::section::Section;
use super::target_tls::{TargetTls, TlsMode};
use super::values::{self, Root};

/// What the gateway logs in with; the agent never sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialSource {
    pub user: String,
    /// Absent where the server asks for none: `trust`, or a client certificate.
    pub password_file: Option<PathBuf>,
    /// The ways to log in that are accepted; `None`: all, but a password in clear only over verified TLS.
    pub require_auth: Option<BTreeSet<LoginMethod>>,
    pub channel_binding: ChannelBinding,
}

/// How a server may ask for the password: the words of libpq's `require_auth`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LoginMethod {
    ScramSha256,
    Md5,
    /// In clear.
    Password,
    /// Not at all.
    None,
}

impl LoginMethod {
    const ALL: [LoginMethod; 4] = [
        LoginMethod::ScramSha256,
        LoginMethod::Md5,
        LoginMethod::Password,
        LoginMethod::None,
    ];

    pub fn name(self) -> &'static str {
        match self {
            LoginMethod::ScramSha256 => "scram-sha-256",
            LoginMethod::Md5 => "md5",
            LoginMethod::Password => "password",
            LoginMethod::None => "none",
        }
    }
}

/// Whether SCRAM is tied to the TLS connection (`SCRAM-SHA-256-PLUS`), so that nobody can sit in between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChannelBinding {
    Disable,
    /// Where the server offers it.
    Prefer,
    Require,
}

/// The credential of the target.
pub(super) fn read_default(
    section: &mut Section<'_>,
    root: Root<'_>,
    tls: &TargetTls,
) -> Option<CredentialSource> {
    match section.has("credential") {
        true => read(section.table("credential"), root, tls),
        false => section.require("credential", |_| Ok(None)).flatten(),
    }
}

/// The ones that policies name, or `None` if one of them could not be read.
pub(super) fn read_named(
    section: &mut Section<'_>,
    root: Root<'_>,
    tls: &TargetTls,
) -> Option<BTreeMap<String, CredentialSource>> {
    let sections = section.named_tables("credentials");
    let read: Vec<_> = sections
        .into_iter()
        .map(|(name, section)| Some((name, read(section, root, tls)?)))
        .collect();
    read.into_iter().collect()
}

fn read(mut section: Section<'_>, root: Root<'_>, tls: &TargetTls) -> Option<CredentialSource> {
    let user = section.require("user", values::owned_text);
    let password_file = section.take("password_file", |value| root.path(value));
    let require_auth = read_methods(&mut section, password_file.is_some());
    let channel_binding = section.take("channel_binding", |value| {
        values::choice(
            value,
            &[
                ("prefer", ChannelBinding::Prefer),
                ("require", ChannelBinding::Require),
                ("disable", ChannelBinding::Disable),
            ],
        )
    });
    if channel_binding == Some(ChannelBinding::Require) {
        let problem = match (tls.mode, password_file.is_some()) {
            (TlsMode::Disable, _) => Some("cannot be \"require\" with tls.mode = \"disable\""),
            (_, false) => Some("cannot be \"require\" without password_file"),
            _ => None,
        };
        if let Some(problem) = problem {
            let problem = Problem::new(problem).hint("only SCRAM over TLS can be bound to it");
            section.refuse(
                section.offset_of("channel_binding"),
                "channel_binding",
                problem,
            );
        }
    }
    section.finish();
    Some(CredentialSource {
        user: user?,
        password_file,
        require_auth,
        channel_binding: channel_binding.unwrap_or(ChannelBinding::Prefer),
    })
}

fn read_methods(section: &mut Section<'_>, has_password: bool) -> Option<BTreeSet<LoginMethod>> {
    let entries = section.list("require_auth", method)?;
    if entries.is_empty() {
        let problem = Problem::new("is empty, so no login could succeed")
            .hint("remove it, or write [\"scram-sha-256\"]");
        section.refuse(section.offset_of("require_auth"), "require_auth", problem);
    }
    let methods: BTreeSet<LoginMethod> = entries.iter().map(|entry| entry.value).collect();
    if !has_password && !methods.is_empty() && !methods.contains(&LoginMethod::None) {
        let problem = Problem::new("names methods that need password_file, which is absent")
            .hint("add password_file, or write [\"none\"]");
        section.refuse(section.offset_of("require_auth"), "require_auth", problem);
    }
    Some(methods)
}

fn method(value: &DeValue<'_>) -> Result<LoginMethod, Problem> {
    let choices = LoginMethod::ALL.map(|method| (method.name(), method));
    values::choice(value, &choices)
}
