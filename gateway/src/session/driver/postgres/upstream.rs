//! The target's side of the start: dial, TLS, log in with the stored credential.
//!
//! ```text
//! leg      TCP and TLS to one address          login    what the server asks, answered; pure
//! binding  what ties the login to its TLS
//! ```

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

use crate::app::Place;
use crate::config::Target;
use crate::credentials::Credential;
use crate::protocol::postgres::backend;
use crate::protocol::postgres::{LONGEST_ANSWER, Message, ProtocolError, Sender, decode, encode};
use crate::session::watch::{self, within};

mod binding;
mod leg;
mod login;

pub use login::LoginError;

use login::{Channel, Login, Next};

/// The longest message before the session is open; PostgreSQL's own limit for authentication
/// (`PG_MAX_AUTH_TOKEN_LENGTH`). Nothing that a server says then comes near.
const MAX_LOGIN_MESSAGE: usize = 65_535;

/// How much of the login is read at once, in bytes: what a server says at its end comes together.
const AT_ONCE: usize = 1 << 10;

/// What a server may say of the session at the start; PostgreSQL says less than 1 KiB.
const MAX_ANNOUNCED: usize = 1 << 20;

/// The longest secret of a cancel key in any version of the protocol.
const MAX_KEY: usize = 256;

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
    /// What the target said of the session once the gateway was in, in order: ParameterStatus and NoticeResponse.
    pub announced: Vec<Message>,
    pub backend_pid: u32,
    pub backend_key: Vec<u8>,
    /// The session's place among those that the target takes; the gateway's own connections need none.
    pub place: Option<Place>,
    channel: Channel,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("backend_pid", &self.backend_pid)
            .field("tls", &self.tls())
            .finish_non_exhaustive()
    }
}

/// Why there is no connection to the target.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    #[error("the target cannot be reached: {0}")]
    Dial(io::Error),
    #[error(
        "the target did not let the gateway in within {} s (connect_timeout_seconds, shared among its addresses)",
        .0.as_millis().div_ceil(1000)
    )]
    TimedOut(Duration),
    #[error("TLS with the target failed: {0}")]
    Tls(io::Error),
    #[error("the target does not offer TLS, which its configuration demands")]
    NoTls,
    #[error("the target's answer to the request for TLS is neither yes nor no")]
    NoTlsAnswer,
    #[error("the connection to the target broke: {0}")]
    Io(#[from] io::Error),
    #[error("the target does not speak PostgreSQL's protocol: {0}")]
    Protocol(#[from] ProtocolError),
    #[error("the target closed the connection during the login")]
    Closed,
    #[error("logging in to the target failed: {0}")]
    Login(#[from] LoginError),
    /// The target's own refusal, as it said it.
    #[error("the target refused the login with SQLSTATE {sqlstate}")]
    Refused { sqlstate: String, message: Message },
    #[error(
        "the target has standard_conforming_strings off, which statement analysis does not allow"
    )]
    Strings,
    #[error("the target answers for another version of the protocol than 3.0")]
    Version,
    #[error("the target failed a question of the gateway with SQLSTATE {0}")]
    Question(String),
    #[error("the target's answer to a question of the gateway does not end")]
    Endless,
    #[error("a question of the gateway to the target went unanswered")]
    Unanswered,
}

impl UpstreamError {
    /// Whether another address of the same target may do better. Whoever refuses a login speaks for the target;
    /// a server that is starting up (57P03) does not yet.
    pub fn is_of_the_address(&self) -> bool {
        match self {
            UpstreamError::Dial(_)
            | UpstreamError::TimedOut(_)
            | UpstreamError::Tls(_)
            | UpstreamError::NoTls
            | UpstreamError::NoTlsAnswer
            | UpstreamError::Io(_)
            | UpstreamError::Protocol(_)
            | UpstreamError::Closed => true,
            UpstreamError::Refused { sqlstate, .. } => sqlstate == "57P03",
            UpstreamError::Login(_)
            | UpstreamError::Strings
            | UpstreamError::Version
            | UpstreamError::Question(_)
            | UpstreamError::Endless
            | UpstreamError::Unanswered => false,
        }
    }

    /// The target's message, if it refused in words.
    pub fn said(&self) -> Option<String> {
        let UpstreamError::Refused { message, .. } = self else {
            return None;
        };
        let fields = backend::error_fields(message).ok()?;
        let (_, text) = fields.iter().find(|(code, _)| *code == b'M')?;
        Some(String::from_utf8_lossy(text).into_owned())
    }
}

/// Dials, secures and logs in; `settings` are start-up parameters beside user and database.
pub async fn connect(
    dial: &Dial,
    settings: &[(String, String)],
) -> Result<Connection, UpstreamError> {
    connect_within(dial.target.connect_timeout, dial, settings).await
}

/// The same in less time than the target's own limit.
pub async fn connect_within(
    limit: Duration,
    dial: &Dial,
    settings: &[(String, String)],
) -> Result<Connection, UpstreamError> {
    match timeout(limit, log_in(dial, settings)).await {
        Ok(connected) => connected,
        Err(_) => Err(UpstreamError::TimedOut(limit)),
    }
}

async fn log_in(dial: &Dial, settings: &[(String, String)]) -> Result<Connection, UpstreamError> {
    let mut connection = leg::open(dial).await?;
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
    connection.send(&out).await?;
    authenticate(&mut connection, &dial.credential).await?;
    settle(&mut connection).await?;
    Ok(connection)
}

impl Connection {
    fn new(reader: Reader, writer: Writer, channel: Channel) -> Self {
        Self {
            reader,
            writer,
            buffer: BytesMut::new(),
            announced: Vec::new(),
            backend_pid: 0,
            backend_key: Vec::new(),
            place: None,
            channel,
        }
    }

    pub fn tls(&self) -> bool {
        self.channel != Channel::Plain
    }

    /// A message of the login.
    async fn early_message(&mut self) -> Result<Message, UpstreamError> {
        loop {
            if let Some(message) = decode(&mut self.buffer, Sender::Backend, MAX_LOGIN_MESSAGE)? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<(), UpstreamError> {
        self.buffer.reserve(AT_ONCE);
        match self.reader.read_buf(&mut self.buffer).await? {
            0 => Err(UpstreamError::Closed),
            _ => Ok(()),
        }
    }

    async fn message(&mut self) -> Result<Message, UpstreamError> {
        loop {
            if let Some(message) = decode(&mut self.buffer, Sender::Backend, LONGEST_ANSWER)? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), UpstreamError> {
        self.writer.write_all(bytes).await?;
        self.writer.flush().await?;
        Ok(())
    }
}

async fn authenticate(
    connection: &mut Connection,
    credential: &Credential,
) -> Result<(), UpstreamError> {
    let channel = connection.channel.clone();
    let mut login = Login::new(credential, &channel);
    loop {
        let message = connection.early_message().await?;
        match message.tag() {
            b'R' => {}
            b'E' => return Err(refused(message)),
            // Notices during the login are about the gateway's credential, which is no concern of the agent's.
            b'N' => continue,
            b'v' => {
                understood(&message)?;
                continue;
            }
            tag => return Err(ProtocolError::Unexpected { tag }.into()),
        }
        let (then, next) = login.next(&backend::authentication(&message)?)?;
        login = then;
        match next {
            Next::Answer(reply) => connection.send(reply.expose().bytes()).await?,
            Next::Read => {}
            Next::In => return Ok(()),
        }
    }
}

/// Reads a NegotiateProtocolVersion. The gateway asks for 3.0 and no options, which leaves nothing to negotiate;
/// one that says just that does no harm.
fn understood(message: &Message) -> Result<(), UpstreamError> {
    match message.body() {
        [0, 3, 0, 0, 0, 0, 0, 0] => Ok(()),
        _ => Err(UpstreamError::Version),
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
    let mut said = 0;
    loop {
        let message = connection.early_message().await?;
        said += message.bytes().len();
        if said > MAX_ANNOUNCED {
            return Err(ProtocolError::Refused("what is said at the start does not end").into());
        }
        match message.tag() {
            b'Z' => return Ok(()),
            b'S' => {
                let (name, value) = backend::parameter_status(&message)?;
                if name == b"standard_conforming_strings" && value != b"on" {
                    return Err(UpstreamError::Strings);
                }
                connection.announced.push(message);
            }
            b'K' => {
                let (pid, key) = backend::backend_key(&message)?;
                if key.len() > MAX_KEY {
                    return Err(ProtocolError::Refused("the cancel key is too long").into());
                }
                connection.backend_pid = pid;
                connection.backend_key = key.to_vec();
            }
            b'N' => connection.announced.push(message),
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
        let mut out = BytesMut::new();
        encode::query(&mut out, question);
        connection.send(&out).await?;
        let mut rows = Vec::new();
        let mut failed = None;
        loop {
            let message = connection.message().await?;
            match message.tag() {
                b'D' if rows.len() >= MAX_ANSWER_ROWS => {
                    return Err(UpstreamError::Endless);
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
    match timeout(watch::DIAL, asked).await {
        Ok(answer) => answer,
        Err(_) => Err(UpstreamError::Unanswered),
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
        let mut connection = leg::open(dial).await.map_err(io::Error::other)?;
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
