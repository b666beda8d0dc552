//! PostgreSQL: one session from greeting to goodbye.

use bytes::BytesMut;
use tokio::net::TcpStream;

use self::greeting::{Greeting, GreetingError, fatal};
use self::opening::Opening;
use crate::app::Gateway;
use crate::audit::event::Stage;
use crate::policy::Denial;
use crate::session::identify::Identified;
use crate::session::watch;

pub mod cancel;
pub mod catalogue;
mod conversation;
mod greeting;
mod open;
mod opening;
mod parameters;
mod relay;
mod replication;
pub mod upstream;

/// Runs one connection of an identified agent.
pub async fn serve(identified: Identified, gateway: &Gateway) {
    let mut opening = Opening::new(&identified);
    let mut socket = identified.into_socket();
    let mut buffer = BytesMut::new();
    match greet(&mut socket, &mut buffer).await {
        Ok(Greeting::Session(startup)) => match opening.open(&startup, gateway).await {
            Ok(open) => open.run(socket, buffer, gateway).await,
            Err(refusal) => {
                opening.deny(refusal.stage, &refusal.denial, gateway);
                greeting::refuse(socket, &refusal.text()).await;
            }
        },
        Ok(Greeting::Cancel { pid, key }) => opening.cancel(pid, &key, gateway).await,
        Ok(Greeting::Nothing) => opening.silent(gateway),
        Err(error) => {
            let denial = malformed_greeting(&error);
            opening.deny(Stage::Protocol, &denial, gateway);
            greeting::refuse(socket, &fatal(&denial, "08P01")).await;
        }
    }
}

/// Reads what the client wants, only to tell it no.
pub async fn refuse(mut socket: TcpStream, denial: &Denial) {
    let mut buffer = BytesMut::new();
    match greet(&mut socket, &mut buffer).await {
        Ok(Greeting::Session(_)) | Err(_) => {
            let sqlstate = match denial.rule.as_str() {
                "sessions:full" => "53300",
                _ => "28000",
            };
            greeting::refuse(socket, &fatal(denial, sqlstate)).await;
        }
        Ok(Greeting::Cancel { .. } | Greeting::Nothing) => {}
    }
}

async fn greet(socket: &mut TcpStream, buffer: &mut BytesMut) -> Result<Greeting, GreetingError> {
    match tokio::time::timeout(watch::STARTUP, greeting::read(socket, buffer)).await {
        Ok(greeting) => greeting,
        Err(_) => Err(std::io::Error::new(
            std::io::ErrorKind::TimedOut,
            "the start-up packet did not come in time",
        )
        .into()),
    }
}

fn malformed_greeting(error: &GreetingError) -> Denial {
    Denial {
        rule: "protocol:startup".to_owned(),
        message: "the connection does not begin as PostgreSQL's protocol does".to_owned(),
        detail: error.to_string(),
        hint: "Use a PostgreSQL client.".to_owned(),
    }
}
