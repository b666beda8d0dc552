//! The target's side of the start: dial, TLS, log in with the stored credential.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::config::{Target, TargetTls};
use crate::credentials::Credential;
use crate::protocol::postgres::backend::{self, Authentication};
use crate::protocol::postgres::{LONGEST_ANSWER, Message, ProtocolError, Sender, decode, encode};
use crate::session::watch::{self, within};

/// A server that asks for more rounds than this is spending our time, not protecting a password.
/// PostgreSQL's default is 4096.
const MAX_SCRAM_ITERATIONS: u32 = 1_000_000;

/// Rows of the gateway's own questions; no catalogue answer comes near.
const MAX_ANSWER_ROWS: usize = 1_000_000;

/// Where and as whom to log in.
#[derive(Clone)]
pub struct Dial {
    pub target: Arc<Target>,
    pub address: SocketAddr,
    /// The name that the agent connected to, if it was a name.
    pub host: Option<String>,
    pub database: String,
    pub credential: Arc<Credential>,
    pub tls: Option<Arc<rustls::ClientConfig>>,
}

impl fmt::Debug for Dial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial")
            .field("target", &self.target.name)
            .field("address", &self.address)
            .field("host", &self.host)
            .field("database", &self.database)
            .field("user", &self.credential.user)
            .finish_non_exhaustive()
    }
}

type Reader = Box<dyn AsyncRead + Send + Sync + Unpin>;
type Writer = Box<dyn AsyncWrite + Send + Sync + Unpin>;

/// A logged-in connection to a target.
pub struct Connection {
    pub reader: Reader,
    pub writer: Writer,
    /// Bytes read but not yet decoded.
    pub buffer: BytesMut,
    /// The ParameterStatus messages of the login, in order.
    pub parameters: Vec<Message>,
    pub backend_pid: u32,
    pub backend_key: Vec<u8>,
    pub tls: bool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("backend_pid", &self.backend_pid)
            .field("tls", &self.tls)
            .finish_non_exhaustive()
    }
}

/// Why there is no connection to the target.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the target cannot be reached: {0}")]
    Dial(io::Error),
    #[error("TLS with the target failed: {0}")]
    Tls(io::Error),
    #[error("the target does not offer TLS, which its configuration demands")]
    NoTls,
    #[error("the connection to the target broke: {0}")]
    Io(#[from] io::Error),
    #[error("the target does not speak PostgreSQL's protocol: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the target closed the connection during the login")]
    Closed,
    #[error("logging in to the target failed: {0}")]
    Login(String),
    /// The target's own refusal, as it said it.
    #[error("the target refused the login with SQLSTATE {sqlstate}")]
    Refused { sqlstate: String, message: Message },
    #[error("the target failed a question of the gateway with SQLSTATE {0}")]
    Question(String),
}

/// Dials, secures and logs in; `settings` are start-up parameters beside user and database.
pub async fn connect(
    dial: &Dial,
    settings: &[(String, String)],
) -> Result<Connection, UpstreamError> {
    match tokio::time::timeout(watch::DIAL, log_in(dial, settings)).await {
        Ok(connected) => connected,
        Err(_) => Err(UpstreamError::Dial(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("no login within {} s", watch::DIAL.as_secs()),
        ))),
    }
}

async fn log_in(dial: &Dial, settings: &[(String, String)]) -> Result<Connection, UpstreamError> {
    let mut connection = open(dial).await?;
    let mut parameters = vec![
        ("user", dial.credential.user.as_str()),
        ("database", dial.database.as_str()),
    ];
    parameters.extend(
        settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str())),
    );
    let mut out = BytesMut::new();
    encode::startup(&mut out, &parameters);
    connection.writer.write_all(&out).await?;
    connection.writer.flush().await?;
    authenticate(&mut connection, &dial.credential).await?;
    settle(&mut connection).await?;
    Ok(connection)
}

/// Dials and, where the target wants it, turns on TLS.
async fn open(dial: &Dial) -> Result<Connection, UpstreamError> {
    let reached = TcpStream::connect(dial.address);
    let mut socket = within(watch::REACH, "reaching the target", reached)
        .await
        .map_err(UpstreamError::Dial)?;
    socket.set_nodelay(true)?;
    let Some(config) = &dial.tls else {
        let (reader, writer) = socket.into_split();
        return Ok(Connection::new(Box::new(reader), Box::new(writer), false));
    };
    let mut request = BytesMut::new();
    encode::ssl_request(&mut request);
    socket.write_all(&request).await?;
    // Exactly one byte: anything more would be data slipped in before TLS (CVE-2021-23222).
    if socket.read_u8().await? != b'S' {
        return Err(UpstreamError::NoTls);
    }
    let name = server_name(dial)?;
    let stream = TlsConnector::from(Arc::clone(config))
        .connect(name, socket)
        .await
        .map_err(UpstreamError::Tls)?;
    let (reader, writer) = tokio::io::split(stream);
    Ok(Connection::new(Box::new(reader), Box::new(writer), true))
}

/// The name that the target's certificate must carry.
fn server_name(dial: &Dial) -> Result<ServerName<'static>, UpstreamError> {
    let configured = match &dial.target.tls {
        TargetTls::VerifyFull {
            server_name: Some(name),
            ..
        } => Some(name.clone()),
        _ => dial.target.dial.as_ref().map(|dial| dial.host.clone()),
    };
    let name = configured
        .or_else(|| dial.host.clone())
        .unwrap_or_else(|| dial.address.ip().to_string());
    ServerName::try_from(name)
        .map_err(|error| UpstreamError::Tls(io::Error::new(io::ErrorKind::InvalidInput, error)))
}

impl Connection {
    fn new(reader: Reader, writer: Writer, tls: bool) -> Self {
        Self {
            reader,
            writer,
            buffer: BytesMut::new(),
            parameters: Vec::new(),
            backend_pid: 0,
            backend_key: Vec::new(),
            tls,
        }
    }

    async fn message(&mut self) -> Result<Message, UpstreamError> {
        loop {
            if let Some(message) = decode(&mut self.buffer, Sender::Backend, LONGEST_ANSWER)? {
                return Ok(message);
            }
            if self.reader.read_buf(&mut self.buffer).await? == 0 {
                return Err(UpstreamError::Closed);
            }
        }
    }

    async fn send(&mut self, write: impl FnOnce(&mut BytesMut)) -> Result<(), UpstreamError> {
        let mut out = BytesMut::new();
        write(&mut out);
        self.writer.write_all(&out).await?;
        self.writer.flush().await?;
        Ok(())
    }
}

async fn authenticate(
    connection: &mut Connection,
    credential: &Credential,
) -> Result<(), UpstreamError> {
    let password = credential.password.expose().as_bytes();
    let mut scram: Option<ScramSha256> = None;
    let mut verified = true;
    loop {
        let message = connection.message().await?;
        match message.tag() {
            b'R' => {}
            b'E' => return Err(refused(message)),
            // Notices during login are the server's small talk.
            b'N' | b'v' => continue,
            tag => return Err(ProtocolError::Unexpected { tag }.into()),
        }
        match backend::authentication(&message)? {
            Authentication::Ok if verified => return Ok(()),
            Authentication::Ok => {
                return Err(login(
                    "the target skipped proving that it knows the password",
                ));
            }
            Authentication::Cleartext => {
                connection
                    .send(|out| encode::password(out, password))
                    .await?;
            }
            Authentication::Md5 { salt } => {
                let digest = md5_hash(credential.user.as_bytes(), password, salt);
                connection
                    .send(|out| encode::password(out, digest.as_bytes()))
                    .await?;
            }
            Authentication::Sasl { mechanisms } => {
                if !mechanisms.contains(&SCRAM_SHA_256.as_bytes()) {
                    return Err(login("the target offers no SCRAM-SHA-256"));
                }
                // With TLS we could bind, but do not offer to; without, we cannot.
                let exchange = ScramSha256::new(password, ChannelBinding::unsupported());
                connection
                    .send(|out| encode::sasl_initial(out, SCRAM_SHA_256, exchange.message()))
                    .await?;
                scram = Some(exchange);
                verified = false;
            }
            Authentication::SaslContinue { data } => {
                let exchange = scram.as_mut().ok_or_else(|| login("SASL out of order"))?;
                bounded_iterations(data)?;
                exchange
                    .update(data)
                    .map_err(|error| login(&error.to_string()))?;
                let answer = exchange.message().to_vec();
                connection
                    .send(|out| encode::sasl_response(out, &answer))
                    .await?;
            }
            Authentication::SaslFinal { data } => {
                let exchange = scram.as_mut().ok_or_else(|| login("SASL out of order"))?;
                exchange
                    .finish(data)
                    .map_err(|error| login(&error.to_string()))?;
                verified = true;
            }
            Authentication::Unsupported(method) => {
                return Err(login(&format!(
                    "the target wants authentication method {method}, which is not supported"
                )));
            }
        }
    }
}

fn login(reason: &str) -> UpstreamError {
    UpstreamError::Login(reason.to_owned())
}

fn bounded_iterations(server_first: &[u8]) -> Result<(), UpstreamError> {
    let text = String::from_utf8_lossy(server_first);
    let iterations = text.split(',').find_map(|part| part.strip_prefix("i="));
    match iterations.and_then(|count| count.parse::<u32>().ok()) {
        Some(count) if count <= MAX_SCRAM_ITERATIONS => Ok(()),
        _ => Err(login(
            "the target asks for an unreasonable number of SCRAM iterations",
        )),
    }
}

fn refused(message: Message) -> UpstreamError {
    let sqlstate = backend::error_fields(&message)
        .map(|fields| backend::sqlstate(&fields))
        .unwrap_or_else(|_| "XX000".to_owned());
    UpstreamError::Refused { sqlstate, message }
}

/// Reads what follows the login, up to the first ReadyForQuery.
async fn settle(connection: &mut Connection) -> Result<(), UpstreamError> {
    loop {
        let message = connection.message().await?;
        match message.tag() {
            b'Z' => return Ok(()),
            b'S' => {
                let (name, value) = backend::parameter_status(&message)?;
                if name == b"standard_conforming_strings" && value != b"on" {
                    return Err(login(
                        "the target has standard_conforming_strings off, which statement analysis does not allow",
                    ));
                }
                connection.parameters.push(message);
            }
            b'K' => {
                let (pid, key) = backend::backend_key(&message)?;
                connection.backend_pid = pid;
                connection.backend_key = key.to_vec();
            }
            b'N' => {}
            b'E' => return Err(refused(message)),
            tag => return Err(ProtocolError::Unexpected { tag }.into()),
        }
    }
}

/// Asks a question of the gateway's own in one simple query; rows as text.
pub async fn ask(
    connection: &mut Connection,
    question: &str,
) -> Result<Vec<Vec<Option<String>>>, UpstreamError> {
    let asked = async {
        connection.send(|out| encode::query(out, question)).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let message = connection.message().await?;
            match message.tag() {
                b'D' if rows.len() >= MAX_ANSWER_ROWS => {
                    return Err(login("the target's catalogue answer does not end"));
                }
                b'D' => rows.push(text_row(&message)?),
                b'E' => {
                    let fields = backend::error_fields(&message)?;
                    failed = Some(backend::sqlstate(&fields));
                }
                b'Z' => break,
                _ => {}
            }
        }
        match failed {
            Some(sqlstate) => Err(UpstreamError::Question(sqlstate)),
            None => Ok(rows),
        }
    };
    match tokio::time::timeout(watch::DIAL, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(login("a question to the target went unanswered")),
    }
}

fn text_row(message: &Message) -> Result<Vec<Option<String>>, ProtocolError> {
    backend::data_row(message)?
        .map(|value| Ok(value?.map(|bytes| String::from_utf8_lossy(bytes).into_owned())))
        .collect()
}

/// Passes a cancel request on; the server closes without an answer.
pub async fn cancel(dial: &Dial, pid: u32, key: &[u8]) -> Result<(), UpstreamError> {
    let work = async {
        let mut connection = open(dial).await.map_err(io::Error::other)?;
        let mut out = BytesMut::new();
        encode::cancel_request(&mut out, pid, key);
        connection.writer.write_all(&out).await?;
        connection.writer.flush().await?;
        // The server closes when it has signalled the backend; it never answers.
        connection.reader.read_buf(&mut connection.buffer).await?;
        Ok(())
    };
    within(watch::DIAL, "a cancel request", work).await?;
    Ok(())
}
