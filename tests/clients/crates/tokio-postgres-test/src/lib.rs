//! Where the server is. tokio-postgres' own tests expect it on port 5433 of the loopback; in the copy that is made
//! of them, these functions stand where they name that port.

use tokio_postgres::tls::{NoTls, NoTlsStream};
use tokio_postgres::{Client, Connection, Error, Socket};

/// As the tests write it.
const AS_WRITTEN: &str = "5433";

/// The server's, as libpq's variable has it.
fn port() -> String {
    std::env::var("PGPORT").expect("PGPORT names the server's port")
}

/// Where `127.0.0.1:5433` was written.
pub fn address() -> String {
    format!("127.0.0.1:{}", port())
}

/// `tokio_postgres::connect`, with the port replaced.
pub async fn connect(text: &str, tls: NoTls) -> Result<(Client, Connection<Socket, NoTlsStream>), Error> {
    tokio_postgres::connect(&text.replace(AS_WRITTEN, &port()), tls).await
}
