//! What the targets' names really lead to: asked by the gateway itself, and kept for as long as the answer
//! says. An agent's own idea of a name plays no part in where the gateway dials.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

/// Answers that may not be kept at all are still kept this long: the gateway dials what it checked.
const MIN_PIN: Duration = Duration::from_secs(5);

/// A target that moves is found again within this time, whatever its records say.
const MAX_PIN: Duration = Duration::from_secs(300);

/// How long an answer is used after its time while no resolver answers.
const STALE: Duration = Duration::from_secs(600);

/// How long a name that has no answer is not asked again.
const FAILED: Duration = Duration::from_secs(1);

/// No client tries more, and no answer that is meant well has more.
const MAX_ADDRESSES: usize = 16;

/// What resolution is: name → addresses. The system's own in a gateway, a table in tests.
pub trait Lookup: fmt::Debug + Send + Sync {
    fn lookup<'a>(
        &'a self,
        name: &'a str,
    ) -> Pin<Box<dyn Future<Output = Result<Found, LookupError>> + Send + 'a>>;
}

/// The addresses of a name, in the order in which to try them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub addresses: Vec<IpAddr>,
    pub ttl: Duration,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name} cannot be resolved: {reason}")]
pub struct LookupError {
    pub name: String,
    pub reason: String,
}

/// The names the gateway may have to resolve, each with its last answer.
#[derive(Debug)]
pub struct Pins {
    lookup: Box<dyn Lookup>,
    names: HashMap<String, Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    pinned: Option<Pinned>,
    failed: Option<(Instant, LookupError)>,
}

/// An answer, and until when it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinned {
    pub addresses: Vec<IpAddr>,
    pub until: Instant,
}

impl Pins {
    pub fn new(lookup: Box<dyn Lookup>, names: BTreeSet<String>) -> Self {
        let names = names.into_iter().map(|name| (name, Mutex::default()));
        Self {
            lookup,
            names: names.collect(),
        }
    }

    /// The addresses of a name, from the pin or from a resolver. Whoever asks meanwhile waits for the same answer.
    pub async fn addresses(&self, name: &str) -> Result<Pinned, LookupError> {
        let Some(state) = self.names.get(name) else {
            return Err(error(name, "no target has this name"));
        };
        let mut state = state.lock().await;
        let now = Instant::now();
        if let Some(pinned) = state.pinned.as_ref().filter(|pinned| now < pinned.until) {
            return Ok(pinned.clone());
        }
        if let Some((at, error)) = &state.failed
            && now.saturating_duration_since(*at) < FAILED
        {
            return state.stale(now).ok_or_else(|| error.clone());
        }
        match self
            .lookup
            .lookup(name)
            .await
            .and_then(|found| checked(name, found))
        {
            Ok(found) => {
                let pinned = Pinned {
                    addresses: found.addresses,
                    until: Instant::now() + found.ttl.clamp(MIN_PIN, MAX_PIN),
                };
                *state = State {
                    pinned: Some(pinned.clone()),
                    failed: None,
                };
                Ok(pinned)
            }
            Err(error) => {
                tracing::warn!(%error, "resolution failed");
                state.failed = Some((Instant::now(), error.clone()));
                state.stale(now).ok_or(error)
            }
        }
    }
}

impl State {
    fn stale(&self, now: Instant) -> Option<Pinned> {
        self.pinned
            .clone()
            .filter(|pinned| now < pinned.until + STALE)
    }
}

fn checked(name: &str, mut found: Found) -> Result<Found, LookupError> {
    let mut seen = BTreeSet::new();
    found.addresses = found
        .addresses
        .into_iter()
        .map(|address| address.to_canonical())
        .filter(|address| seen.insert(*address))
        .take(MAX_ADDRESSES)
        .collect();
    match found.addresses.is_empty() {
        true => Err(error(name, "it has no address")),
        false => Ok(found),
    }
}

pub fn error(name: &str, reason: impl Into<String>) -> LookupError {
    LookupError {
        name: name.to_owned(),
        reason: reason.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::intercept::dns::tests::Scripted;

    fn pins(script: &Scripted) -> Pins {
        Pins::new(Box::new(script.clone()), BTreeSet::from(["db".to_owned()]))
    }

    fn ips(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[tokio::test]
    async fn an_answer_is_pinned() {
        let script = Scripted::default();
        script.answer(
            "db",
            &["10.0.0.1", "10.0.0.2", "10.0.0.1", "::ffff:10.0.0.2"],
            0,
        );
        let pins = pins(&script);
        let first = pins.addresses("db").await.unwrap();
        assert_eq!(first.addresses, ips(&["10.0.0.1", "10.0.0.2"]));
        // A second answer would be another one: this is what rebinding attacks rely on.
        script.answer("db", &["127.0.0.1"], 60);
        assert_eq!(pins.addresses("db").await.unwrap(), first);
        assert_eq!(script.asked(), 1);
    }

    #[tokio::test]
    async fn lifetimes_have_bounds() {
        for (ttl, least, most) in [(0, 4, 5), (60, 59, 60), (1_000_000, 299, 300)] {
            let script = Scripted::default();
            script.answer("db", &["10.0.0.1"], ttl);
            let pinned = pins(&script).addresses("db").await.unwrap();
            let left = pinned.until - Instant::now();
            assert!((Duration::from_secs(least)..=Duration::from_secs(most)).contains(&left));
        }
    }

    #[tokio::test]
    async fn one_question_for_all_who_wait() {
        let script = Scripted::default();
        script.answer("db", &["10.0.0.1"], 60);
        let pins = pins(&script);
        let asked = [(); 20].map(|()| pins.addresses("db"));
        let answers = futures(asked).await;
        assert!(answers.iter().all(Result::is_ok));
        assert_eq!(script.asked(), 1);
    }

    async fn futures<F: Future, const N: usize>(all: [F; N]) -> Vec<F::Output> {
        let mut outputs = Vec::new();
        for one in all {
            outputs.push(one.await);
        }
        outputs
    }

    #[tokio::test]
    async fn failures() {
        let script = Scripted::default();
        let pins = pins(&script);
        for _ in 0..5 {
            let error = pins.addresses("db").await.unwrap_err();
            assert_eq!(error.to_string(), "db cannot be resolved: no such name");
        }
        assert_eq!(script.asked(), 1, "a failure is remembered for a moment");
        assert!(pins.addresses("elsewhere").await.is_err());
        assert_eq!(script.asked(), 1, "only names of targets are asked");
        script.answer("db", &[], 60);
        tokio::time::sleep(FAILED).await;
        let error = pins.addresses("db").await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "db cannot be resolved: it has no address"
        );
    }
}
