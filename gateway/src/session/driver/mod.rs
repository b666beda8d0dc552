//! What differs per protocol: one folder each, behind two functions.

use crate::app::Gateway;
use crate::audit::event::Stage;
use crate::config::Protocol;
use crate::store::log::Log;

use super::accept::reset;
use super::identify::{Identified, Refused};
use super::record::denial_event;

pub mod postgres;

/// Runs a session in its target's protocol.
pub async fn serve(identified: Identified, gateway: &Gateway) {
    match identified.target().protocol {
        Protocol::Postgres => postgres::serve(identified, gateway).await,
    }
}

/// Says no in the target's own words, or with a reset where there is no target to speak for.
pub async fn refuse(refused: Box<Refused>, log: &Log) {
    let Refused {
        socket,
        session,
        who,
        target,
        denial,
    } = *refused;
    tracing::warn!(%session, agent = who.agent, rule = denial.rule, "session refused");
    let event = denial_event(Some(session), &who, Stage::Identify, None, None, &denial);
    if let Err(error) = log.append(&event) {
        tracing::error!(%error, "a denial could not be written");
    }
    match target.map(|target| target.protocol) {
        Some(Protocol::Postgres) => postgres::refuse(socket, &denial).await,
        None => reset(socket),
    }
}
