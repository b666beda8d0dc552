//! An issuer's keys over time: loaded when first needed, kept, renewed when the issuer changes them.
//!
//! A key set from a file is read anew for every token, so a removed key is refused at once; as long as its text
//! is the same, it is not parsed again. A signature that was verified with these very keys is not computed
//! again either: the token's times and claims are checked whenever it is used. One from a URL is
//! kept for [`MAX_AGE`]; a token with an unknown key is taken as a sign of rotation and has it fetched early,
//! but not more often than [`ROTATION_PAUSE`], or tokens with invented key ids would turn the gateway against
//! the issuer. While the issuer cannot be reached, the last good set serves for [`MAX_STALE`].

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, SystemTime};

use sha2::{Digest, Sha256};

use super::claims::{self, Claims};
use super::jwks::KeySet;
use super::jws::Unverified;
use super::{TokenError, fetch};
use crate::config::{Issuer, JwksSource};

/// How long a fetched set is used without asking again.
const MAX_AGE: Duration = Duration::from_secs(300);
/// The least time between two fetches for the sake of unknown key ids.
const ROTATION_PAUSE: Duration = Duration::from_secs(30);
/// How many tokens' signatures are not computed again: as many as a host has agents, and more.
const MOST_PROVEN: usize = 4096;
/// How long a failed fetch is answered with the same failure, so that sessions do not queue for the deadline.
const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// How long keys serve that could not be renewed: the longest that a withdrawn key can survive an outage.
const MAX_STALE: Duration = Duration::from_secs(3600);

/// Verifies the tokens of one issuer. Shared by all sessions.
#[derive(Debug)]
pub struct Keyring {
    issuer: Arc<Issuer>,
    /// `None`: the keys were given, and never change.
    source: Option<JwksSource>,
    cache: Mutex<Cache>,
    /// Held by the one session that is fetching.
    fetching: Mutex<()>,
}

#[derive(Debug, Default)]
struct Cache {
    keys: Option<(Arc<KeySet>, SystemTime)>,
    /// What those keys were parsed from.
    text: String,
    proven: Proven,
    failure: Option<(String, SystemTime)>,
    last_rotation: Option<SystemTime>,
}

/// SHA-256 of the tokens whose signatures were verified with these keys.
#[derive(Debug, Default)]
struct Proven {
    keys: Option<Arc<KeySet>>,
    tokens: HashSet<[u8; 32]>,
}

impl Proven {
    fn has(&self, token: &[u8; 32], keys: &Arc<KeySet>) -> bool {
        let same = self.keys.as_ref().is_some_and(|it| Arc::ptr_eq(it, keys));
        same && self.tokens.contains(token)
    }

    fn add(&mut self, token: [u8; 32], keys: &Arc<KeySet>) {
        let same = self.keys.as_ref().is_some_and(|it| Arc::ptr_eq(it, keys));
        if !same || self.tokens.len() >= MOST_PROVEN {
            self.tokens.clear();
            self.keys = Some(Arc::clone(keys));
        }
        self.tokens.insert(token);
    }
}

impl Keyring {
    /// A keyring that loads the issuer's keys when the first token comes.
    pub fn new(issuer: Arc<Issuer>) -> Self {
        Self {
            source: Some(issuer.jwks.clone()),
            issuer,
            cache: Mutex::default(),
            fetching: Mutex::default(),
        }
    }

    /// A keyring with a key set that never changes. Touches neither disk nor network.
    pub fn with_jwks(issuer: Arc<Issuer>, jwks: &str) -> Result<Self, TokenError> {
        let keys = Arc::new(KeySet::parse(jwks).map_err(TokenError::Jwks)?);
        Ok(Self {
            issuer,
            source: None,
            cache: Mutex::new(Cache {
                keys: Some((keys, SystemTime::UNIX_EPOCH)),
                ..Cache::default()
            }),
            fetching: Mutex::default(),
        })
    }

    /// Verifies a token at the time `now`. May block for the key set, 5 s at most per fetch.
    pub fn verify(&self, token: &str, now: SystemTime) -> Result<Claims, TokenError> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        let token = Unverified::parse(token, &self.issuer.algorithms)?;
        let mut keys = self.keys(now)?;
        if !keys.knows(&token)
            && let Some(rotated) = self.keys_after_rotation(now)
        {
            keys = rotated;
        }
        if !self.cache().proven.has(&digest, &keys) {
            keys.verify(&token)?;
            self.cache().proven.add(digest, &keys);
        }
        claims::check(&token.payload()?, &self.issuer, now)
    }

    fn keys(&self, now: SystemTime) -> Result<Arc<KeySet>, TokenError> {
        let Some(source) = &self.source else {
            return self.cache().keys_or_failure();
        };
        if let Some(answer) = self.cache().answer(source, now) {
            return answer;
        }
        let _turn = match self.fetching.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let turn = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
                // Whoever was fetching has the answer for everybody who waited.
                if let Some(answer) = self.cache().answer(source, now) {
                    return answer;
                }
                turn
            }
        };
        self.fetch(source, now);
        self.cache().after_fetch(now)
    }

    /// Fetches early because of an unknown key, if that is due. Files are always current.
    fn keys_after_rotation(&self, now: SystemTime) -> Option<Arc<KeySet>> {
        let source = self
            .source
            .as_ref()
            .filter(|source| matches!(source, JwksSource::Url(_)))?;
        let _turn = self.fetching.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cache = self.cache();
        let recent = |time: SystemTime| distance(now, time) < ROTATION_PAUSE;
        if !cache.last_rotation.is_some_and(recent) {
            cache.last_rotation = Some(now);
            drop(cache);
            self.fetch(source, now);
        } else {
            drop(cache);
        }
        self.cache().after_fetch(now).ok()
    }

    /// Loads the key set and notes the outcome. The caller holds the turn.
    fn fetch(&self, source: &JwksSource, now: SystemTime) {
        let loaded = fetch::load(source);
        let mut cache = self.cache();
        let known = cache.keys.as_ref().map(|(keys, _)| Arc::clone(keys));
        if let (Ok(text), Some(keys)) = (&loaded, known)
            && *text == cache.text
        {
            cache.keys = Some((keys, now));
            cache.failure = None;
            return;
        }
        match loaded.and_then(|text| Ok((KeySet::parse(&text)?, text))) {
            Ok((keys, text)) => {
                cache.keys = Some((Arc::new(keys), now));
                cache.text = text;
                cache.failure = None;
            }
            Err(why) => {
                tracing::warn!(identity = %self.issuer.name, "cannot load the issuer's keys: {why}");
                cache.failure = Some((why, now));
            }
        }
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Cache {
    /// What can be said without fetching.
    fn answer(
        &self,
        source: &JwksSource,
        now: SystemTime,
    ) -> Option<Result<Arc<KeySet>, TokenError>> {
        if matches!(source, JwksSource::File(_)) {
            return None;
        }
        let fresh = |time: SystemTime| distance(now, time) < MAX_AGE;
        if let Some((keys, loaded)) = &self.keys
            && fresh(*loaded)
        {
            return Some(Ok(Arc::clone(keys)));
        }
        let (_, failed) = self.failure.as_ref()?;
        (distance(now, *failed) < RETRY_PAUSE).then(|| self.after_fetch(now))
    }

    /// The keys if they are not too old, even if the last fetch failed.
    fn after_fetch(&self, now: SystemTime) -> Result<Arc<KeySet>, TokenError> {
        match &self.keys {
            Some((keys, loaded)) if distance(now, *loaded) < MAX_STALE => Ok(Arc::clone(keys)),
            _ => Err(TokenError::Jwks(self.failure_text())),
        }
    }

    fn keys_or_failure(&self) -> Result<Arc<KeySet>, TokenError> {
        match &self.keys {
            Some((keys, _)) => Ok(Arc::clone(keys)),
            None => Err(TokenError::Jwks(self.failure_text())),
        }
    }

    fn failure_text(&self) -> String {
        match &self.failure {
            Some((why, _)) => why.clone(),
            None => "not loaded yet".to_owned(),
        }
    }
}

/// How far apart two times are. A clock that was set back must not make old keys look young for long, nor
/// young ones ancient.
fn distance(now: SystemTime, then: SystemTime) -> Duration {
    now.duration_since(then)
        .unwrap_or_else(|ahead| ahead.duration())
}
