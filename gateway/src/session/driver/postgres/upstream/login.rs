//! The login at a target: what it asks, answered with the stored credential. Pure: requests in, replies out.
//!
//! A server, or whoever poses as one, may ask for less than it should: the password in clear, nothing at all,
//! SCRAM without the binding to the TLS connection. What the credential does not accept ends the login.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::BytesMut;
use postgres_protocol::authentication::md5_hash;

use crate::config::{ChannelBinding, LoginMethod};
use crate::credentials::{Credential, Secret};
use crate::protocol::postgres::backend::Authentication;
use crate::protocol::postgres::encode;
use crate::protocol::postgres::scram::client::{Binding, Greeting, Proof, ServerError};
use crate::protocol::postgres::scram::{PLAIN, PLUS};

/// Longer than any reply: a buffer that grows leaves copies behind that nothing wipes. A password has 4 KiB at most.
const LONGEST_REPLY: usize = 8 << 10;

/// What the connection to the server is worth.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Channel {
    Plain,
    Tls {
        /// An authority vouches for the server.
        verified: bool,
        /// What SCRAM can be bound to, if the server's certificate has it.
        end_point: Option<Vec<u8>>,
    },
}

/// Why the gateway does not go on with a login.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    #[error("the target asks for the login method {asked}, which its require_auth does not accept")]
    NotAccepted { asked: &'static str },
    #[error(
        "the target asks for the password in clear, on a connection without verified TLS; require_auth = [\"password\"] would accept that"
    )]
    InClear,
    #[error("the target asks for a password, and its credential has none")]
    NoPassword,
    #[error("the target wants authentication method {0}, which is not supported")]
    Unsupported(u32),
    #[error("the target offers no SCRAM-SHA-256")]
    NoMechanism,
    #[error(
        "channel_binding is \"require\", and the target does not offer SCRAM-SHA-256-PLUS over TLS"
    )]
    NotBound,
    #[error(
        "channel_binding is \"require\", and the target's certificate has a signature that cannot be bound to"
    )]
    NothingToBindTo,
    #[error("the target offers SCRAM-SHA-256-PLUS without TLS")]
    PlusWithoutTls,
    #[error("the target asks for an unreasonable number of SCRAM iterations")]
    Iterations,
    #[error("the target's part of SCRAM is wrong: {0}")]
    Scram(ServerError),
    #[error("the target skipped proving that it knows the password")]
    Unproven,
    #[error("no randomness for a nonce")]
    Randomness,
    #[error("the target's authentication requests are out of order")]
    Order,
}

/// What is to be done after a request.
#[derive(Debug)]
pub enum Next {
    /// Send this; it holds the password or what proves it.
    Answer(Secret<Reply>),
    /// Read on.
    Read,
    /// Logged in.
    In,
}

/// A message that is wiped when it has been sent.
pub struct Reply(BytesMut);

impl Reply {
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl zeroize::Zeroize for Reply {
    fn zeroize(&mut self) {
        self.0.as_mut().zeroize();
    }
}

/// A login under way.
#[derive(Debug)]
pub struct Login<'a> {
    credential: &'a Credential,
    channel: &'a Channel,
    state: State,
}

enum State {
    Begun,
    /// The password was sent, in clear or hashed.
    Answered,
    /// SCRAM's first message was sent.
    Greeted(Greeting),
    /// SCRAM's proof was sent.
    Proved(Proof),
    /// The server has proven itself too.
    Mutual,
}

impl std::fmt::Debug for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            State::Begun => "Begun",
            State::Answered => "Answered",
            State::Greeted(_) => "Greeted",
            State::Proved(_) => "Proved",
            State::Mutual => "Mutual",
        })
    }
}

impl<'a> Login<'a> {
    pub fn new(credential: &'a Credential, channel: &'a Channel) -> Self {
        Self {
            credential,
            channel,
            state: State::Begun,
        }
    }

    /// Answers one request of the server.
    pub fn next(self, request: &Authentication<'_>) -> Result<(Self, Next), LoginError> {
        let Login {
            credential,
            channel,
            state,
        } = self;
        let (state, next) = match (state, request) {
            (State::Begun, Authentication::Ok) => {
                accept(credential, channel, LoginMethod::None)?;
                (State::Begun, Next::In)
            }
            (State::Answered | State::Mutual, Authentication::Ok) => (State::Mutual, Next::In),
            (State::Greeted(_) | State::Proved(_), Authentication::Ok) => {
                return Err(LoginError::Unproven);
            }
            (State::Begun, Authentication::Cleartext) => {
                accept(credential, channel, LoginMethod::Password)?;
                let password = password(credential)?;
                let reply = reply(|out| encode::password(out, password));
                (State::Answered, reply)
            }
            (State::Begun, Authentication::Md5 { salt }) => {
                accept(credential, channel, LoginMethod::Md5)?;
                let digest = md5_hash(credential.user.as_bytes(), password(credential)?, *salt);
                let digest = Secret::new(digest);
                let reply = reply(|out| encode::password(out, digest.expose().as_bytes()));
                (State::Answered, reply)
            }
            (State::Begun, Authentication::Sasl { mechanisms }) => {
                accept(credential, channel, LoginMethod::ScramSha256)?;
                let (mechanism, binding) = mechanism(credential, channel, mechanisms)?;
                password(credential)?;
                let greeting = Greeting::new(binding, nonce()?);
                let first = greeting.message();
                let reply = reply(|out| encode::sasl_initial(out, mechanism, first.as_bytes()));
                (State::Greeted(greeting), reply)
            }
            (State::Greeted(greeting), Authentication::SaslContinue { data }) => {
                let challenged = greeting.challenged(data).map_err(wrong)?;
                let keys = credential.scram_keys(&challenged);
                let proof = challenged.prove(&*keys.ok_or(LoginError::NoPassword)?);
                let message = proof.message().as_bytes();
                let reply = reply(|out| encode::sasl_response(out, message));
                (State::Proved(proof), reply)
            }
            (State::Proved(proof), Authentication::SaslFinal { data }) => {
                proof.verify(data).map_err(wrong)?;
                (State::Mutual, Next::Read)
            }
            (_, Authentication::Unsupported(method)) => {
                return Err(LoginError::Unsupported(*method));
            }
            _ => return Err(LoginError::Order),
        };
        let login = Login {
            credential,
            channel,
            state,
        };
        Ok((login, next))
    }
}

fn reply(write: impl FnOnce(&mut BytesMut)) -> Next {
    let mut reply = Reply(BytesMut::with_capacity(LONGEST_REPLY));
    write(&mut reply.0);
    Next::Answer(Secret::new(reply))
}

fn password(credential: &Credential) -> Result<&[u8], LoginError> {
    let password = credential.password.as_ref().ok_or(LoginError::NoPassword)?;
    Ok(password.expose().as_bytes())
}

fn wrong(error: ServerError) -> LoginError {
    match error {
        ServerError::Iterations => LoginError::Iterations,
        error => LoginError::Scram(error),
    }
}

/// As many bytes of randomness as PostgreSQL's own client takes.
fn nonce() -> Result<String, LoginError> {
    let mut bytes = [0; 18];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| LoginError::Randomness)?;
    Ok(BASE64.encode(bytes))
}

fn accept(
    credential: &Credential,
    channel: &Channel,
    method: LoginMethod,
) -> Result<(), LoginError> {
    let verified = matches!(channel, Channel::Tls { verified: true, .. });
    if !credential.accepts(method, verified) {
        return Err(match (method, &credential.require_auth) {
            (LoginMethod::Password, None) => LoginError::InClear,
            _ => LoginError::NotAccepted {
                asked: method.name(),
            },
        });
    }
    match (method, credential.channel_binding) {
        (LoginMethod::ScramSha256, _) => Ok(()),
        (_, ChannelBinding::Require) => Err(LoginError::NotBound),
        _ => Ok(()),
    }
}

/// Which SCRAM, and what it says about binding: `y` (we could, you do not offer it) lets a server that did
/// offer it notice that somebody took the offer away.
fn mechanism(
    credential: &Credential,
    channel: &Channel,
    offered: &[&[u8]],
) -> Result<(&'static str, Binding), LoginError> {
    let plus = offered.contains(&PLUS.as_bytes());
    let plain = offered.contains(&PLAIN.as_bytes());
    let required = credential.channel_binding == ChannelBinding::Require;
    let disabled = credential.channel_binding == ChannelBinding::Disable;
    let end_point = match channel {
        Channel::Plain if plus => return Err(LoginError::PlusWithoutTls),
        Channel::Plain => None,
        Channel::Tls { .. } if disabled => None,
        Channel::Tls { end_point, .. } => end_point.as_ref(),
    };
    match end_point {
        Some(end_point) if plus => Ok((PLUS, Binding::EndPoint(end_point.clone()))),
        None if required && plus => Err(LoginError::NothingToBindTo),
        _ if required => Err(LoginError::NotBound),
        _ if !plain => Err(LoginError::NoMechanism),
        Some(_) => Ok((PLAIN, Binding::NotOffered)),
        None => Ok((PLAIN, Binding::Unsupported)),
    }
}

#[cfg(test)]
mod tests;
