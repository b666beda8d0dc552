//! The pipeline: what happens to one connection, in order.
//!
//! `Accepted → Identified → Permit → Masked → Recorded`. Each of these types is built only in the file
//! of its name, and [`forward`] takes nothing but `Recorded`: a stage that is left out does not compile.

#![cfg_attr(
    not(test),
    deny(
        clippy::as_conversions,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        clippy::string_slice,
        clippy::unwrap_used
    )
)]

use std::sync::Arc;

use tokio::net::TcpStream;

use crate::app::Gateway;

pub mod accept;
pub mod buffers;
pub mod decide;
pub mod driver;
pub mod forward;
pub mod identify;
pub mod keepalive;
pub mod mask;
pub mod record;
pub mod watch;

/// A name server's port, RFC 1035 §4.2.
const DNS: u16 = 53;

/// Tells one connection more than the configured number of sessions that it has to wait.
pub async fn refuse_full(socket: TcpStream, gateway: Arc<Gateway>) {
    if let Some(accepted) = accept::accept(socket, &gateway.flows, &gateway.log) {
        let refused = identify::refuse_full(accepted, &gateway.identities);
        driver::refuse(refused, &gateway).await;
    }
}

/// Takes one connection from accept to its last leaf.
pub async fn serve(socket: TcpStream, gateway: Arc<Gateway>) {
    let Some(accepted) = accept::accept(socket, &gateway.flows, &gateway.log) else {
        return;
    };
    // The kernel programs send every connection to a resolver here.
    if accepted.flow().original.port() == DNS {
        let flow = accepted.flow().clone();
        let dns = Arc::clone(gateway.identities.dns());
        let answers = Box::pin(dns.serve_tcp(accepted.into_socket(), flow));
        return tokio::select! {
            () = answers => {}
            () = gateway.stopping() => {}
        };
    }
    // Boxed, so that each has its memory while it lasts.
    match Box::pin(identify::identify(accepted, &gateway.identities)).await {
        Ok(identified) => driver::serve(identified, &gateway).await,
        Err(refused) => Box::pin(driver::refuse(refused, &gateway)).await,
    }
}
