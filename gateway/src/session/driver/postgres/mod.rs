//! PostgreSQL: one session from greeting to goodbye.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use self::agent_stream::AgentStream;
use self::greeting::{Greeted, Greeting, GreetingError, Misunderstood, fatal};
use self::open::Open;
use self::opening::{Opening, Refusal};
use self::reception::{HandshakeError, Reception};
use self::upstream::Connection;
use crate::app::Gateway;
use crate::audit::event::Stage;
use crate::config::Target;
use crate::policy::Denial;
use crate::protocol::postgres::encode;
use crate::protocol::postgres::scram::Demand;
use crate::protocol::postgres::startup::{Negotiation, Startup};
use crate::session::identify::Identified;
use crate::session::watch::{self, within};

mod agent_stream;
mod bound;
pub mod cancel;
pub mod catalogue;
mod conversation;
mod greeting;
mod idle;
mod login;
mod open;
mod opening;
mod parameters;
mod reception;
mod relay;
mod replication;
pub mod upstream;

/// Runs one connection of an identified agent.
pub async fn serve(identified: Identified, gateway: &Gateway) {
    // Boxed, so that its memory goes when it is over: most sessions wait most of the time.
    let admitted = Box::pin(admit(identified, gateway)).await;
    if let Some(Admitted {
        open,
        connection,
        stream,
        buffer,
    }) = admitted
    {
        open.run(connection, stream, buffer, gateway).await;
    }
}

/// A session that may begin.
struct Admitted {
    open: Box<Open>,
    connection: Connection,
    stream: AgentStream,
    /// What the agent has said behind its start-up.
    buffer: BytesMut,
}

/// From the first byte to the login at the target, or to a refusal that has been said.
async fn admit(identified: Identified, gateway: &Gateway) -> Option<Admitted> {
    let mut opening = Opening::new(&identified);
    let reception = Reception::new(
        &gateway.authority,
        Some(Arc::clone(identified.target())),
        identified.host(),
        identified.accepted().flow().original.ip(),
    );
    let socket = identified.into_socket();
    opening.keep_alive(&socket);
    let greeted = match greeting::read(socket, &reception).await {
        Ok(greeted) => greeted,
        Err(misunderstood) => {
            let Misunderstood { error, stream } = *misunderstood;
            if let GreetingError::Tls(HandshakeError::Left) = error {
                opening.silent(gateway);
                return None;
            }
            let denial = malformed_greeting(&error);
            opening.deny(Stage::Protocol, &denial, gateway);
            if let Some(stream) = stream {
                greeting::refuse(stream, &fatal(&denial, "08P01")).await;
            }
            return None;
        }
    };
    let Greeted {
        greeting,
        stream,
        buffer,
        leaf,
    } = greeted;
    opening.came_with(stream.tls_version());
    match greeting {
        Greeting::Session(startup) => {
            let end_point = leaf.map(|leaf| leaf.end_point);
            return session(opening, &startup, stream, buffer, end_point, gateway).await;
        }
        Greeting::Cancel { pid, key } => {
            opening.cancel(pid, &key, gateway).await;
            greeting::close(stream).await;
        }
        Greeting::Nothing => match leaf {
            None => opening.silent(gateway),
            Some(leaf) => opening.deny(Stage::Protocol, &left_after_tls(&leaf.names), gateway),
        },
    }
    None
}

/// A client that wants a session: the version, the login, the decision.
async fn session(
    mut opening: Opening,
    startup: &Startup,
    mut stream: AgentStream,
    mut buffer: BytesMut,
    end_point: Option<[u8; 32]>,
    gateway: &Gateway,
) -> Option<Admitted> {
    let opened = async {
        Opening::version(startup)?;
        if let Some(negotiation) = startup.negotiation() {
            negotiate(&negotiation, &mut stream).await;
        }
        if let Some(verifier) = gateway.logins.get(opening.agent()) {
            let demand = Demand {
                verifier,
                end_point,
            };
            login::demand(demand, &mut stream, &mut buffer)
                .await
                .map_err(|error| {
                    let role = startup.parameter("user").unwrap_or_default();
                    let (denial, sqlstate) = error.refusal(opening.agent(), role);
                    Refusal::new(Stage::Startup, sqlstate, denial)
                })?;
        }
        opening.open(startup, gateway).await
    };
    match opened.await {
        Ok((open, connection)) => Some(Admitted {
            open,
            connection,
            stream,
            buffer,
        }),
        Err(refusal) => {
            opening.deny(refusal.stage, &refusal.denial, gateway);
            greeting::refuse(stream, &refusal.text()).await;
            None
        }
    }
}

/// Comes before everything else, so that the client knows in which version to read that.
async fn negotiate(negotiation: &Negotiation<'_>, stream: &mut AgentStream) {
    let mut out = BytesMut::new();
    encode::negotiate_version(&mut out, negotiation);
    let sent = within(watch::STARTUP, "a negotiation", async {
        stream.write_all(&out).await?;
        stream.flush().await
    });
    if let Err(error) = sent.await {
        // Whoever writes next finds the same, and says so.
        tracing::debug!(%error, "a negotiation did not reach its client");
    }
}

/// Reads what the client wants, only to tell it no. Its certificate has no name that it does not say itself.
pub async fn refuse(
    socket: TcpStream,
    target: Arc<Target>,
    original: SocketAddr,
    denial: &Denial,
    gateway: &Gateway,
) {
    let reception = Reception::new(&gateway.authority, Some(target), None, original.ip());
    let stream = match greeting::read(socket, &reception).await {
        Ok(Greeted {
            greeting: Greeting::Session(_),
            stream,
            ..
        }) => Some(stream),
        Ok(_) => None,
        Err(misunderstood) => misunderstood.stream,
    };
    if let Some(stream) = stream {
        let sqlstate = match denial.rule.as_str() {
            "sessions:full" => "53300",
            _ => "28000",
        };
        greeting::refuse(stream, &fatal(denial, sqlstate)).await;
    }
}

fn malformed_greeting(error: &GreetingError) -> Denial {
    match error {
        GreetingError::Tls(error) => Denial {
            rule: "protocol:tls".to_owned(),
            message: "no TLS connection with the client came about".to_owned(),
            detail: error.to_string(),
            hint: error.hint().to_owned(),
        },
        GreetingError::Protocol(_) | GreetingError::Io(_) => Denial {
            rule: "protocol:startup".to_owned(),
            message: "the connection does not begin as PostgreSQL's protocol does".to_owned(),
            detail: error.to_string(),
            hint: "Use a PostgreSQL client.".to_owned(),
        },
    }
}

/// libpq compares the name after the handshake, and leaves without a word when it is another one.
fn left_after_tls(names: &[String]) -> Denial {
    Denial {
        rule: "protocol:tls".to_owned(),
        message: "the client left when it had seen the gateway's certificate".to_owned(),
        detail: format!("The certificate is for {}.", names.join(", ")),
        hint: "If the client verifies the name (sslmode=verify-full), let it dial a name or an address that the target has in its list of addresses.".to_owned(),
    }
}
