//! Reaching the target: a place, an address that answers, a login, and the words when there is none.
//!
//! What the target says about itself is passed on in its own words (it is starting up, it is full, there is no such
//! database). What it says about the gateway's login is not: that is the operator's to know.

use std::net::SocketAddr;
use std::time::Instant;

use super::{Opening, Refusal, refusal};
use crate::app::{Gateway, Place};
use crate::audit::event::Stage;
use crate::intercept::dns::DnsError;
use crate::policy::Login;
use crate::session::driver::postgres::upstream::{self, Connection, Dial, UpstreamError};

/// Where the session looks up names that have no schema, in order and as an array; pg_catalog is left out. As rows
/// it would take a server that has just started a quarter longer.
const SCHEMAS: &str = "SELECT pg_catalog.current_schemas(false)::pg_catalog.text";

/// Refusals that are about the target, or about what the agent brought along, and not about the gateway's login:
/// values and names of settings, the database, room for connections, and starting, stopping and recovering.
const ABOUT_THE_TARGET: &[&str] = &[
    "22023", "3D000", "42501", "42704", "53300", "53400", "55000", "57P01", "57P02", "57P03",
    "57P04",
];

const BETWEEN: &str = "This is between the gateway and the target: ask the operator.";

impl Opening {
    /// One of the sessions that the target takes.
    pub(super) fn place(&self, gateway: &Gateway) -> Result<Place, Refusal> {
        gateway.place(&self.target).ok_or_else(|| {
            refusal(
                Stage::Upstream,
                "53300",
                "target:full",
                "sorry, too many clients already".to_owned(),
                format!(
                    "Rule target:full: all {} sessions of target \"{}\" (max_connections) are in use; the gateway says so, not the target.",
                    self.target.max_connections.unwrap_or_default(),
                    self.target.name
                ),
                "Close a session, or try again later.",
            )
        })
    }

    /// Logs in at the first address of the target that will have it. All of them together have the target's
    /// connect_timeout, each an equal share of what is left of it.
    pub(super) async fn connect(
        &mut self,
        database: &str,
        login: &Login,
        settings: &[(String, String)],
        gateway: &Gateway,
    ) -> Result<(Dial, Connection), Refusal> {
        let dns = gateway.identities.dns();
        let addresses = dns
            .dial_addresses(&self.target, self.host.as_deref(), self.original)
            .await
            .map_err(|error| self.unresolved(&error))?;
        let deadline = Instant::now() + self.target.connect_timeout;
        let mut failed = UpstreamError::Dial(std::io::ErrorKind::AddrNotAvailable.into());
        for (tried, &address) in addresses.iter().enumerate() {
            let dial = self.dial(address, database, login, gateway)?;
            self.who.db_role = Some(dial.credential.user.clone());
            let untried = u32::try_from(addresses.len() - tried).unwrap_or(u32::MAX);
            let share = deadline.saturating_duration_since(Instant::now()) / untried.max(1);
            match upstream::connect_within(share, &dial, settings).await {
                Ok(connection) => return Ok((dial, connection)),
                Err(error) => {
                    tracing::warn!(session = %self.session, target = self.target.name, %address, %error, said = error.said(), "no connection to an address of the target");
                    failed = error;
                    if !failed.is_of_the_address() {
                        break;
                    }
                }
            }
        }
        Err(self.unreachable(&failed))
    }

    fn dial(
        &self,
        address: SocketAddr,
        database: &str,
        login: &Login,
        gateway: &Gateway,
    ) -> Result<Dial, Refusal> {
        let host = self.host.as_deref();
        let credential = login.credential.as_deref();
        gateway
            .dial(&self.target, address, host, database, credential)
            .ok_or_else(|| {
                let detail = match credential {
                    None => "Rule target:credential: its credential is not loaded.".to_owned(),
                    Some(name) => format!(
                        "Rule target:credential: a policy chose credential \"{name}\", which this target does not have."
                    ),
                };
                refusal(
                    Stage::Upstream,
                    "08001",
                    "target:credential",
                    format!("target \"{}\" is not ready", self.target.name),
                    detail,
                    "Ask the operator to run `sluice check`.",
                )
            })
    }

    fn unresolved(&self, error: &DnsError) -> Refusal {
        tracing::warn!(session = %self.session, target = self.target.name, %error, "no address of the target");
        refusal(
            Stage::Upstream,
            "08001",
            "target:unresolved",
            format!(
                "target \"{}\" has no address to connect to",
                self.target.name
            ),
            error.to_string(),
            "This is between the gateway and its resolver: ask the operator.",
        )
    }

    /// Names without a schema are decided as tables of `public`. A role whose search_path finds them
    /// elsewhere (`ALTER ROLE … SET search_path`, or a schema of the role's own name) would run
    /// something else than what was decided.
    pub(super) async fn plain_search_path(
        &self,
        connection: &mut Connection,
    ) -> Result<(), Refusal> {
        let rows = upstream::ask(connection, SCHEMAS)
            .await
            .map_err(|error| self.unreachable(&error))?;
        let array = rows
            .into_iter()
            .flatten()
            .flatten()
            .next()
            .unwrap_or_default();
        if let "{}" | "{public}" = array.as_str() {
            return Ok(());
        }
        let schemas = array.trim_matches(['{', '}']).replace(',', ", ");
        Err(refusal(
            Stage::Upstream,
            "42501",
            "target:search-path",
            format!(
                "target \"{}\" looks tables up in other schemas than public",
                self.target.name
            ),
            format!("Rule target:search-path: the database role's search_path is {schemas}."),
            "Ask the operator to give the role the search_path \"public\"; other schemas can be named in statements.",
        ))
    }

    fn unreachable(&self, error: &UpstreamError) -> Refusal {
        let target = &self.target.name;
        match error {
            UpstreamError::Refused { sqlstate, .. }
                if ABOUT_THE_TARGET.contains(&sqlstate.as_str()) =>
            {
                // Of these, the words name only what the agent brought along.
                let names_no_role = matches!(sqlstate.as_str(), "22023" | "3D000" | "42704");
                // The name of the role that the gateway logs in as does not reach the agent.
                let role = self.who.db_role.as_deref();
                let said = error
                    .said()
                    .filter(|said| names_no_role || role.is_none_or(|role| !said.contains(role)));
                refusal(
                    Stage::Upstream,
                    sqlstate.as_str(),
                    "target:refused",
                    said.unwrap_or_else(|| format!("target \"{target}\" refused the connection")),
                    format!("Rule target:refused: target \"{target}\" said so, not the gateway."),
                    hint(sqlstate),
                )
            }
            _ => refusal(
                Stage::Upstream,
                "08006",
                "target:unreachable",
                format!("no connection to target \"{target}\""),
                error.to_string(),
                BETWEEN,
            ),
        }
    }
}

fn hint(sqlstate: &str) -> &'static str {
    match sqlstate {
        "53300" | "57P01" | "57P02" | "57P03" => "Try again later.",
        "22023" | "42704" => "Connect without this setting, or with another value.",
        _ => BETWEEN,
    }
}
