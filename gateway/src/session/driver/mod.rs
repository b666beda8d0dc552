//! What differs per protocol: one folder each, behind two functions.

use super::accept::reset;
use super::identify::{Identified, Refused};
use super::record::denial_event;
use crate::app::Gateway;
use crate::audit::event::Stage;
use crate::config::Protocol;

pub mod postgres;

/// Runs a session in its target's protocol.
pub async fn serve(identified: Identified, gateway: &Gateway) {
    match identified.target().protocol {
        Protocol::Postgres => postgres::serve(identified, gateway).await,
    }
}

/// Says no in the target's own words, or with a reset where there is no target to speak for.
pub async fn refuse(refused: Box<Refused>, gateway: &Gateway) {
    let Refused {
        socket,
        session,
        who,
        target,
        original,
        denial,
    } = *refused;
    tracing::warn!(%session, agent = who.agent, rule = denial.rule, "session refused");
    let event = denial_event(Some(session), &who, Stage::Identify, None, None, &denial);
    if let Err(error) = gateway.log.append(&event) {
        tracing::error!(%error, "a denial could not be written");
    }
    match target {
        Some(target) => match target.protocol {
            Protocol::Postgres => {
                postgres::refuse(socket, target, original, &denial, gateway).await;
            }
        },
        None => reset(socket),
    }
}
