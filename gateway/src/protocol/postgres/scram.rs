//! The server's side of SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), as `auth-scram.c` plays it.
//!
//! ```text
//! R sasl ──►           the mechanisms ([`Demand::mechanisms`])
//!        ◄── p first   mechanism, nonce, what to bind to        [`Demand::challenge`]
//! R continue ──►       both nonces, salt, iterations
//!        ◄── p final   the client's proof                       [`Challenge::verify`]
//! R final ──►          the server's
//! ```

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::protocol::cursor::Cursor;

pub mod client;

pub const PLAIN: &str = "SCRAM-SHA-256";
pub const PLUS: &str = "SCRAM-SHA-256-PLUS";

/// SHA-256 of a certificate, which a client binds its proof to (`tls-server-end-point`).
pub type EndPoint = [u8; 32];

/// What a server knows of a password.
pub struct Verifier {
    salt: String,
    iterations: u32,
    stored_key: [u8; 32],
    server_key: [u8; 32],
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier(..)")
    }
}

/// Why a client did not prove that it knows the password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ScramError {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("the client selected an authentication mechanism that was not offered")]
    Mechanism,
    #[error("the client requires something of SCRAM that is not supported: {0}")]
    Unsupported(&'static str),
    /// Another certificate than ours lies between, or a list of mechanisms other than ours.
    #[error("SCRAM channel binding check failed: {0}")]
    Binding(&'static str),
    #[error("the password is another one")]
    Password,
}

use ScramError::Malformed;

impl Verifier {
    /// The verifier of a password, with a salt of its own and 4096 iterations, as PostgreSQL makes them.
    pub fn of(password: &str) -> Option<Self> {
        Self::parse(&postgres_protocol::password::scram_sha_256(
            password.as_bytes(),
        ))
    }

    /// Reads `SCRAM-SHA-256$4096:salt$StoredKey:ServerKey`.
    fn parse(text: &str) -> Option<Self> {
        let (iterations, rest) = text.strip_prefix("SCRAM-SHA-256$")?.split_once(':')?;
        let (salt, keys) = rest.split_once('$')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text| BASE64.decode(text).ok()?.try_into().ok();
        Some(Self {
            salt: salt.to_owned(),
            iterations: iterations.parse().ok()?,
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }
}

/// A demand for SCRAM. `end_point`: of the certificate that this connection's TLS was made with.
#[derive(Debug, Clone, Copy)]
pub struct Demand<'a> {
    pub verifier: &'a Verifier,
    pub end_point: Option<EndPoint>,
}

/// What the client has to prove now.
#[derive(Debug)]
pub struct Challenge<'a> {
    verifier: &'a Verifier,
    /// `c=`, as the client must repeat it.
    binding: String,
    /// Of both sides.
    nonce: String,
    client_first: String,
    server_first: String,
}

impl<'a> Demand<'a> {
    /// The mechanisms to choose from.
    pub fn mechanisms(&self) -> &'static [&'static str] {
        match self.end_point {
            Some(_) => &[PLUS, PLAIN],
            None => &[PLAIN],
        }
    }

    /// Reads a SASLInitialResponse. `nonce`: fresh, printable, without a comma.
    ///
    /// # Errors
    /// Everything that a server refuses at this point.
    pub fn challenge(&self, answer: &[u8], nonce: &str) -> Result<Challenge<'a>, ScramError> {
        let (mechanism, first) = initial_response(answer)?;
        let plus = match (mechanism, self.end_point) {
            (PLUS, Some(_)) => true,
            (PLAIN, _) => false,
            _ => return Err(ScramError::Mechanism),
        };
        let (flag, rest) = first
            .split_once(',')
            .ok_or(Malformed("no channel binding flag"))?;
        let (identity, bare) = rest
            .split_once(',')
            .ok_or(Malformed("no authorization identity"))?;
        if !identity.is_empty() {
            return Err(ScramError::Unsupported("an authorization identity"));
        }
        let mut bound = format!("{flag},,").into_bytes();
        match (flag, plus, self.end_point) {
            ("p=tls-server-end-point", true, Some(end_point)) => {
                bound.extend_from_slice(&end_point);
            }
            ("n", false, _) | ("y", false, None) => {}
            // The client could bind, and did not hear that we can: somebody changed our list.
            ("y", false, Some(_)) => {
                return Err(ScramError::Binding(
                    "the client thinks that the server cannot bind",
                ));
            }
            (flag, true, _) if flag.starts_with("p=") => {
                return Err(ScramError::Unsupported("another type of channel binding"));
            }
            _ => {
                return Err(Malformed(
                    "the channel binding flag contradicts the mechanism",
                ));
            }
        }
        let mut attributes = bare.split(',');
        let user = attributes.next().unwrap_or_default();
        if user.starts_with("m=") {
            return Err(ScramError::Unsupported("a mandatory extension"));
        }
        // Whose name it is was said when the session was asked for.
        if !user.starts_with("n=") {
            return Err(Malformed("no user name"));
        }
        let theirs = attributes.next().and_then(|nonce| nonce.strip_prefix("r="));
        let theirs = theirs
            .filter(|nonce| !nonce.is_empty() && nonce.bytes().all(|byte| byte.is_ascii_graphic()))
            .ok_or(Malformed("no nonce"))?;
        let nonce = format!("{theirs}{nonce}");
        let Verifier {
            salt, iterations, ..
        } = self.verifier;
        Ok(Challenge {
            verifier: self.verifier,
            binding: BASE64.encode(bound),
            server_first: format!("r={nonce},s={salt},i={iterations}"),
            nonce,
            client_first: bare.to_owned(),
        })
    }
}

/// The mechanism and the first message.
fn initial_response(answer: &[u8]) -> Result<(&str, &str), ScramError> {
    let mut cursor = Cursor::new(answer);
    let mechanism = cursor
        .cstr("mechanism")
        .map_err(|_| Malformed("no mechanism"))?;
    let length = cursor
        .i32("length")
        .map_err(|_| Malformed("no initial response"))?;
    let length = usize::try_from(length).map_err(|_| Malformed("no initial response"))?;
    let first = cursor
        .take(length, "initial response")
        .map_err(|_| Malformed("the initial response is cut short"))?;
    cursor
        .end()
        .map_err(|_| Malformed("bytes follow the initial response"))?;
    Ok((text(mechanism)?, text(first)?))
}

fn text(bytes: &[u8]) -> Result<&str, ScramError> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("not UTF-8"))
}

impl Challenge<'_> {
    /// What the client hears (AuthenticationSASLContinue).
    pub fn message(&self) -> &[u8] {
        self.server_first.as_bytes()
    }

    /// Reads a SASLResponse. Answers the server's own proof (AuthenticationSASLFinal).
    ///
    /// # Errors
    /// Another password above all.
    pub fn verify(&self, answer: &[u8]) -> Result<Vec<u8>, ScramError> {
        let (unproven, proof) = text(answer)?
            .rsplit_once(",p=")
            .ok_or(Malformed("no proof"))?;
        let mut attributes = unproven.split(',');
        let binding = attributes.next().and_then(|said| said.strip_prefix("c="));
        let nonce = attributes.next().and_then(|said| said.strip_prefix("r="));
        let binding = binding.ok_or(Malformed("no channel binding"))?;
        if binding != self.binding {
            return Err(ScramError::Binding(
                "the client saw another certificate than ours",
            ));
        }
        if nonce != Some(self.nonce.as_str()) {
            return Err(Malformed("the nonce is another one"));
        }
        let proof = BASE64
            .decode(proof)
            .map_err(|_| Malformed("the proof is not base64"))?;
        let said = format!("{},{},{unproven}", self.client_first, self.server_first);
        let signature = sign(&self.verifier.stored_key, &said);
        if proof.len() != signature.as_ref().len() {
            return Err(Malformed("the proof has another length"));
        }
        let key: Vec<u8> = proof
            .iter()
            .zip(signature.as_ref())
            .map(|(proof, signature)| proof ^ signature)
            .collect();
        verify_slices_are_equal(digest(&SHA256, &key).as_ref(), &self.verifier.stored_key)
            .map_err(|_| ScramError::Password)?;
        let ours = sign(&self.verifier.server_key, &said);
        Ok(format!("v={}", BASE64.encode(ours)).into_bytes())
    }
}

fn sign(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    use super::*;

    const END_POINT: EndPoint = [7; 32];

    fn initial(mechanism: &str, first: &[u8]) -> Vec<u8> {
        let mut body = mechanism.as_bytes().to_vec();
        body.push(0);
        body.extend_from_slice(&(first.len() as u32).to_be_bytes());
        body.extend_from_slice(first);
        body
    }

    fn play(
        demand: &Demand<'_>,
        password: &str,
        mechanism: &str,
        binding: ChannelBinding,
    ) -> Result<(), ScramError> {
        let mut client = ScramSha256::new(password.as_bytes(), binding);
        let challenge = demand.challenge(&initial(mechanism, client.message()), "ours")?;
        client.update(challenge.message()).expect("it is readable");
        let last = challenge.verify(client.message())?;
        client.finish(&last).expect("the server's proof is right");
        Ok(())
    }

    #[test]
    fn a_real_client_and_what_it_may_choose() {
        let verifier = Verifier::of("pencil").expect("a password");
        let demand = |end_point| Demand {
            verifier: &verifier,
            end_point,
        };
        let bound = |end_point: EndPoint| ChannelBinding::tls_server_end_point(end_point.to_vec());
        let tls = Some(END_POINT);
        for (name, demand, password, mechanism, binding, expected) in [
            (
                "no TLS",
                demand(None),
                "pencil",
                PLAIN,
                ChannelBinding::unsupported(),
                Ok(()),
            ),
            (
                "could bind, no TLS",
                demand(None),
                "pencil",
                PLAIN,
                ChannelBinding::unrequested(),
                Ok(()),
            ),
            (
                "does not bind",
                demand(tls),
                "pencil",
                PLAIN,
                ChannelBinding::unsupported(),
                Ok(()),
            ),
            (
                "binds",
                demand(tls),
                "pencil",
                PLUS,
                bound(END_POINT),
                Ok(()),
            ),
            (
                "another certificate",
                demand(tls),
                "pencil",
                PLUS,
                bound([8; 32]),
                Err(ScramError::Binding(
                    "the client saw another certificate than ours",
                )),
            ),
            (
                "our list was changed",
                demand(tls),
                "pencil",
                PLAIN,
                ChannelBinding::unrequested(),
                Err(ScramError::Binding(
                    "the client thinks that the server cannot bind",
                )),
            ),
            (
                "binds without TLS",
                demand(None),
                "pencil",
                PLUS,
                bound(END_POINT),
                Err(ScramError::Mechanism),
            ),
            (
                "another password",
                demand(tls),
                "pen",
                PLUS,
                bound(END_POINT),
                Err(ScramError::Password),
            ),
        ] {
            assert_eq!(
                play(&demand, password, mechanism, binding),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn what_no_client_says() {
        let verifier = Verifier::of("pencil").expect("a password");
        let demand = Demand {
            verifier: &verifier,
            end_point: Some(END_POINT),
        };
        for (mechanism, first) in [
            ("SCRAM-SHA-1", "n,,n=,r=abc"),
            (PLAIN, ""),
            (PLAIN, "n"),
            (PLAIN, "n,"),
            (PLAIN, "n,,"),
            (PLAIN, "n,,n="),
            (PLAIN, "n,,n=,r="),
            (PLAIN, "n,,n=,r=a b"),
            (PLAIN, "n,a=root,n=,r=abc"),
            (PLAIN, "n,,m=x,n=,r=abc"),
            (PLAIN, "p=tls-server-end-point,,n=,r=abc"),
            (PLUS, "n,,n=,r=abc"),
            (PLUS, "y,,n=,r=abc"),
            (PLUS, "p=tls-unique,,n=,r=abc"),
        ] {
            let answer = initial(mechanism, first.as_bytes());
            assert!(
                demand.challenge(&answer, "ours").is_err(),
                "{mechanism} {first}"
            );
        }
        let answer = initial(PLAIN, b"n,,n=,r=abc");
        let challenge = demand.challenge(&answer, "ours").expect("it is in order");
        for last in [
            "",
            "c=biws",
            "c=biws,r=abcours",
            "c=biws,r=abcours,p=",
            "c=biws,r=abcours,p=!",
            "c=biws,r=abc,p=AAAA",
            "c=eSws,r=abcours,p=AAAA",
            "c=biws,r=abcours,p=AAAA",
        ] {
            assert!(challenge.verify(last.as_bytes()).is_err(), "{last}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let verifier = Verifier {
                salt: "c2FsdA==".to_owned(),
                iterations: 4096,
                stored_key: [1; 32],
                server_key: [2; 32],
            };
            let demand = Demand { verifier: &verifier, end_point: Some(END_POINT) };
            let _ = demand.challenge(&bytes, "ours");
            let _ = demand.challenge(&initial(PLAIN, &bytes), "ours");
            let challenge = demand.challenge(&initial(PLAIN, b"n,,n=,r=abc"), "ours").expect("in order");
            prop_assert!(challenge.verify(&bytes).is_err());
        }
    }
}
