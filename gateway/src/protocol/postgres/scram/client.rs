//! The client's side of SCRAM-SHA-256 (RFC 5802, RFC 7677), with its costly step set apart.
//!
//! Deriving keys from a password takes thousands of hashes, and gives the same for the same salt. Whoever
//! logs in often derives them once and keeps them ([`Keys`]).
//!
//! ```text
//! first ──►            binding and nonce                  [`Greeting::message`]
//!         ◄── challenge  both nonces, salt, iterations    [`Greeting::challenged`]
//! proof ──►            that the password is known         [`Challenged::prove`]
//!         ◄── verifier   that the server knows it too     [`Proof::verify`]
//! ```

use std::num::NonZeroU32;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::{hmac, pbkdf2};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::sign;

/// A server may ask for this many iterations; PostgreSQL's default is 4,096.
pub const MOST_ITERATIONS: u32 = 100_000;

/// A longer salt is none. PostgreSQL's has 16 bytes.
const LONGEST_SALT: usize = 1024;

/// What a client says about tying the login to its TLS connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Binding {
    /// It cannot.
    Unsupported,
    /// It could, and the server did not offer it.
    NotOffered,
    /// To this digest of the server's certificate (`tls-server-end-point`).
    EndPoint(Vec<u8>),
}

impl Binding {
    fn header(&self) -> &'static str {
        match self {
            Binding::Unsupported => "n,,",
            Binding::NotOffered => "y,,",
            Binding::EndPoint(_) => "p=tls-server-end-point,,",
        }
    }

    fn data(&self) -> &[u8] {
        match self {
            Binding::EndPoint(data) => data,
            _ => &[],
        }
    }
}

/// Why the server's part is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    #[error("malformed SCRAM message: {0}")]
    Malformed(&'static str),
    #[error("the nonce is not a continuation of ours")]
    Nonce,
    #[error("the server asks for an unreasonable number of iterations")]
    Iterations,
    #[error("the server says: {0}")]
    Said(String),
    #[error("the server does not know the password")]
    Unproven,
}

use ServerError::Malformed;

/// What a password comes to with one salt. Worth as much as the password.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct Keys {
    salt: Vec<u8>,
    iterations: u32,
    client: [u8; 32],
    stored: [u8; 32],
    server: [u8; 32],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Keys(..)")
    }
}

impl Keys {
    /// Takes a few hundred microseconds for PostgreSQL's 4,096 iterations.
    pub fn derive(password: &str, challenged: &Challenged) -> Self {
        let Challenged {
            salt, iterations, ..
        } = challenged;
        // As the server prepared it when the password was set: it takes what cannot be prepared as it is.
        let prepared = stringprep::saslprep(password);
        let prepared = prepared.as_deref().unwrap_or(password);
        let mut salted = [0; 32];
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            *iterations,
            salt,
            prepared.as_bytes(),
            &mut salted,
        );
        let key = |name| -> [u8; 32] {
            let mut key = [0; 32];
            key.copy_from_slice(sign(&salted, name).as_ref());
            key
        };
        let (client, server) = (key("Client Key"), key("Server Key"));
        let mut stored = [0; 32];
        stored.copy_from_slice(digest(&SHA256, &client).as_ref());
        salted.zeroize();
        Self {
            salt: salt.clone(),
            iterations: iterations.get(),
            client,
            stored,
            server,
        }
    }

    /// Whether they were derived for this salt and count.
    pub fn fit(&self, challenged: &Challenged) -> bool {
        self.salt == challenged.salt && self.iterations == challenged.iterations.get()
    }
}

/// The client has greeted.
#[derive(Debug)]
pub struct Greeting {
    binding: Binding,
    nonce: String,
}

impl Greeting {
    /// `nonce`: fresh, printable, without a comma.
    pub fn new(binding: Binding, nonce: String) -> Self {
        Self { binding, nonce }
    }

    /// The first message. Whose password it is was said when the session was asked for.
    pub fn message(&self) -> String {
        format!("{}{}", self.binding.header(), self.bare())
    }

    fn bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    /// Reads what the server asks.
    ///
    /// # Errors
    /// Another nonce, too many iterations, an extension that must be understood.
    pub fn challenged(self, message: &[u8]) -> Result<Challenged, ServerError> {
        let message = text(message)?;
        let mut attributes = message.split(',');
        let mut attribute = |name: &str, what| {
            let said = attributes.next().and_then(|it| it.strip_prefix(name));
            said.ok_or(Malformed(what))
        };
        let nonce = attribute("r=", "no nonce")?;
        let salt = attribute("s=", "no salt")?;
        let iterations = attribute("i=", "no iteration count")?;
        let iterations: u32 = iterations
            .parse()
            .map_err(|_| Malformed("the iteration count is no number"))?;
        let iterations = NonZeroU32::new(iterations)
            .filter(|count| count.get() <= MOST_ITERATIONS)
            .ok_or(ServerError::Iterations)?;
        let own = nonce.strip_prefix(self.nonce.as_str());
        if own.is_none_or(str::is_empty) || !nonce.bytes().all(|it| it.is_ascii_graphic()) {
            return Err(ServerError::Nonce);
        }
        let salt = BASE64
            .decode(salt)
            .ok()
            .filter(|salt| !salt.is_empty() && salt.len() <= LONGEST_SALT)
            .ok_or(Malformed("the salt is not base64, or too long"))?;
        let mut bound = self.binding.header().as_bytes().to_vec();
        bound.extend_from_slice(self.binding.data());
        let unproven = format!("c={},r={nonce}", BASE64.encode(bound));
        Ok(Challenged {
            salt,
            iterations,
            signed: format!("{},{message},{unproven}", self.bare()),
            unproven,
        })
    }
}

/// The server wants a proof.
#[derive(Debug)]
pub struct Challenged {
    salt: Vec<u8>,
    iterations: NonZeroU32,
    /// All that was said so far, which both sides sign.
    signed: String,
    /// The last message without its proof.
    unproven: String,
}

impl Challenged {
    /// Proves that the password is known; `keys` must fit.
    pub fn prove(self, keys: &Keys) -> Proof {
        let signature = sign(&keys.stored, &self.signed);
        let proof: Vec<u8> = keys
            .client
            .iter()
            .zip(signature.as_ref())
            .map(|(key, signature)| key ^ signature)
            .collect();
        Proof {
            message: format!("{},p={}", self.unproven, BASE64.encode(proof)),
            expected: sign(&keys.server, &self.signed),
        }
    }
}

/// The client's proof, and the one that the server owes.
#[derive(Debug)]
pub struct Proof {
    message: String,
    expected: hmac::Tag,
}

impl Proof {
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Reads the server's last message.
    ///
    /// # Errors
    /// A server that does not know the password either.
    pub fn verify(&self, message: &[u8]) -> Result<(), ServerError> {
        let message = text(message)?;
        let said = message.split(',').next().unwrap_or_default();
        if let Some(error) = said.strip_prefix("e=") {
            return Err(ServerError::Said(error.chars().take(100).collect()));
        }
        let proof = said.strip_prefix("v=").ok_or(Malformed("no verifier"))?;
        let proof = BASE64
            .decode(proof)
            .map_err(|_| Malformed("the verifier is not base64"))?;
        verify_slices_are_equal(&proof, self.expected.as_ref()).map_err(|_| ServerError::Unproven)
    }
}

fn text(bytes: &[u8]) -> Result<&str, ServerError> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("not UTF-8"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::postgres::scram::{Demand, Verifier};

    /// The exchange in RFC 7677, section 3, but for the user's name, which PostgreSQL leaves out.
    const CHALLENGE: &str =
        "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";

    fn greeting(binding: Binding) -> Greeting {
        Greeting::new(binding, "rOprNGfwEbeRWgbNEkqO".to_owned())
    }

    #[test]
    fn the_keys_are_those_of_the_standards_example() {
        let challenged = greeting(Binding::Unsupported)
            .challenged(CHALLENGE.as_bytes())
            .expect("in order");
        let keys = Keys::derive("pencil", &challenged);
        // The proof and the verifier that RFC 7677 gives were signed with the name in it.
        let signed = format!(
            "n=user,r=rOprNGfwEbeRWgbNEkqO,{CHALLENGE},c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
        );
        let proof = Challenged {
            signed,
            ..challenged
        }
        .prove(&keys);
        assert!(
            proof
                .message()
                .ends_with(",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
        );
        let last = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(proof.verify(last), Ok(()));
    }

    #[test]
    fn a_login_at_a_server_that_knows_the_password_and_at_one_that_does_not() {
        let end_point = [7; 32];
        for (mechanism, binding) in [
            ("SCRAM-SHA-256", Binding::Unsupported),
            ("SCRAM-SHA-256-PLUS", Binding::EndPoint(end_point.to_vec())),
        ] {
            for (password, known) in [("pencil", true), ("I\u{ad}X", true), ("pen", false)] {
                let verifier = Verifier::of(if known { password } else { "other" });
                let verifier = verifier.expect("a password");
                let demand = Demand {
                    verifier: &verifier,
                    end_point: (mechanism != "SCRAM-SHA-256").then_some(end_point),
                };
                let greeting = greeting(binding.clone());
                let first = greeting.message();
                let mut initial = mechanism.as_bytes().to_vec();
                initial.push(0);
                initial
                    .extend_from_slice(&u32::try_from(first.len()).expect("short").to_be_bytes());
                initial.extend_from_slice(first.as_bytes());
                let challenge = demand.challenge(&initial, "theirs").expect("in order");
                let challenged = greeting.challenged(challenge.message()).expect("in order");
                let keys = Keys::derive(password, &challenged);
                assert!(keys.fit(&challenged));
                let proof = challenged.prove(&keys);
                let answer = challenge.verify(proof.message().as_bytes());
                assert_eq!(answer.is_ok(), known, "{mechanism} {password}");
                if let Ok(answer) = answer {
                    assert_eq!(proof.verify(&answer), Ok(()));
                    assert_eq!(proof.verify(b"v=AAAA"), Err(ServerError::Unproven));
                }
            }
        }
    }

    #[test]
    fn what_no_server_says() {
        let nonce = "rOprNGfwEbeRWgbNEkqO";
        for (message, error) in [
            ("", Malformed("no nonce")),
            ("e=other-error", Malformed("no nonce")),
            ("m=x,r=a,s=YQ==,i=1", Malformed("no nonce")),
            ("r=other,s=YQ==,i=4096", ServerError::Nonce),
            (&format!("r={nonce},s=YQ==,i=4096"), ServerError::Nonce),
            (&format!("r={nonce}ä,s=YQ==,i=4096"), ServerError::Nonce),
            (&format!("r={nonce}x"), Malformed("no salt")),
            (
                &format!("r={nonce}x,s=!,i=1"),
                Malformed("the salt is not base64, or too long"),
            ),
            (
                &format!("r={nonce}x,s=YQ=="),
                Malformed("no iteration count"),
            ),
            (&format!("r={nonce}x,s=YQ==,i=0"), ServerError::Iterations),
            (
                &format!("r={nonce}x,s=YQ==,i=100001"),
                ServerError::Iterations,
            ),
        ] {
            let challenged = greeting(Binding::Unsupported).challenged(message.as_bytes());
            assert_eq!(challenged.err(), Some(error), "{message}");
        }
        let challenged = greeting(Binding::Unsupported)
            .challenged(CHALLENGE.as_bytes())
            .expect("in order");
        let keys = Keys::derive("pencil", &challenged);
        let proof = challenged.prove(&keys);
        for (message, error) in [
            (
                "e=invalid-proof",
                ServerError::Said("invalid-proof".to_owned()),
            ),
            ("", Malformed("no verifier")),
            ("v=!", Malformed("the verifier is not base64")),
            ("v=", ServerError::Unproven),
        ] {
            assert_eq!(proof.verify(message.as_bytes()), Err(error), "{message}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = greeting(Binding::NotOffered).challenged(&bytes);
            let tail = [&b"r=rOprNGfwEbeRWgbNEkqO"[..], &bytes].concat();
            let _ = greeting(Binding::NotOffered).challenged(&tail);
        }
    }
}
