//! May agents connect at all? Only while the kernel side is as it should be and evidence can be written.
//!
//! Once a second the broker is asked for the state of the guard, and the disk is looked at. Where something
//! is wrong the pulse stops, which denies every connect, and a leaf says why; another one says when it is
//! over. The same round becomes the log's only writer again once gateways that drained are gone.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::audit::event::Event;
use crate::broker::{self, GuardState};
use crate::config;
use crate::intercept::MapsId;
use crate::store::log::Log;
use crate::store::recordings;

const ROUND: Duration = Duration::from_secs(1);

/// How old what is known may be. The broker may be restarted meanwhile.
const FRESH: Duration = Duration::from_secs(10);

/// Less free space than this on the log's or the recordings' disk is a full disk.
const ROOM: u64 = 1 << 20;

/// How many alarms wait for a disk that is full.
const MAX_UNTOLD: usize = 32;

/// The guard was unloaded and loaded again: a beat would go where no kernel program looks.
pub const REPLACED: &str = "the kernel's maps were replaced: restart the gateway";

/// What the last rounds found.
#[derive(Debug)]
pub struct Health {
    log: Arc<Log>,
    found: Mutex<Found>,
    /// Rounds so far.
    rounds: watch::Sender<u64>,
    /// Namespaces that no agent is in any more.
    abandoned: watch::Sender<Vec<u64>>,
}

#[derive(Debug, Default)]
struct Found {
    guard_good: Option<Instant>,
    storage_good: Option<Instant>,
    maps_replaced: bool,
}

impl Health {
    /// Looks once a second from now on, until the handle is used.
    pub fn watch(
        broker: Arc<broker::Client>,
        maps: MapsId,
        log: Arc<Log>,
        storage: &config::Storage,
    ) -> (Arc<Self>, AbortHandle) {
        let health = Arc::new(Self {
            log,
            found: Mutex::default(),
            rounds: watch::Sender::new(0),
            abandoned: watch::Sender::new(Vec::new()),
        });
        let examiner = Examiner {
            health: Arc::clone(&health),
            broker,
            maps,
            storage: storage.clone(),
            alarm: None,
            untold: Vec::new(),
        };
        let task = tokio::spawn(examiner.run()).abort_handle();
        (health, task)
    }

    /// Whether agents may connect.
    pub fn is_good(&self) -> bool {
        let found = self.found();
        let is_fresh = |seen: Option<Instant>| seen.is_some_and(|seen| seen.elapsed() < FRESH);
        is_fresh(found.guard_good) && is_fresh(found.storage_good) && self.log.is_open()
    }

    /// Returns when there was a first look.
    pub async fn examined(&self) {
        let mut rounds = self.rounds.subscribe();
        // The sender lives in `self`.
        let _ = rounds.wait_for(|rounds| *rounds > 0).await;
    }

    /// Whether the kernel programs use other maps than this gateway. Only a new start gets the new ones.
    pub fn are_maps_replaced(&self) -> bool {
        self.found().maps_replaced
    }

    /// The namespaces that no agent is in any more, whenever that changes.
    pub fn abandoned(&self) -> watch::Receiver<Vec<u64>> {
        self.abandoned.subscribe()
    }

    fn found(&self) -> std::sync::MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Alarm {
    problems: Vec<String>,
    frozen: bool,
}

struct Examiner {
    health: Arc<Health>,
    broker: Arc<broker::Client>,
    /// Those that this gateway holds.
    maps: MapsId,
    storage: config::Storage,
    /// The alarm that is not over.
    alarm: Option<Alarm>,
    /// What the log has not heard yet, because its disk is full.
    untold: Vec<Event>,
}

impl Examiner {
    async fn run(mut self) {
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            // All of it blocks: on the broker, on a disk that hangs.
            match tokio::task::spawn_blocking(move || self.round()).await {
                Ok(examiner) => self = examiner,
                Err(error) => {
                    // Nothing is fresh any more soon: agents are cut off.
                    tracing::error!(%error, "the gateway's own examination ended");
                    return;
                }
            }
        }
    }

    fn round(mut self) -> Self {
        let guard = self.guard();
        let mut problems = guard.problems;
        problems.extend(self.disk());
        let frozen = guard.frozen;
        self.note((!problems.is_empty()).then_some(Alarm { problems, frozen }));
        self.tell();
        if self.alarm.is_none() {
            self.settle();
        }
        self.health.rounds.send_modify(|rounds| *rounds += 1);
        self
    }

    fn guard(&self) -> GuardState {
        let answer = self.broker.state();
        let mut found = self.health.found();
        match answer {
            Ok(mut state) => {
                found.maps_replaced = state.maps.is_some_and(|pinned| pinned != self.maps);
                if found.maps_replaced {
                    state.problems.push(REPLACED.to_owned());
                }
                found.guard_good = state.problems.is_empty().then(Instant::now);
                self.health.abandoned.send_if_modified(|abandoned| {
                    let changed = *abandoned != state.abandoned;
                    abandoned.clone_from(&state.abandoned);
                    changed
                });
                state
            }
            Err(error) => {
                let patience = found.guard_good.is_some_and(|seen| seen.elapsed() < FRESH);
                tracing::warn!(%error, "the broker does not answer");
                GuardState {
                    problems: match patience {
                        true => Vec::new(),
                        false => vec![format!("nobody watches the kernel programs: {error}")],
                    },
                    frozen: false,
                    abandoned: Vec::new(),
                    maps: None,
                }
            }
        }
    }

    /// What is wrong with the places that evidence is written to.
    fn disk(&self) -> Vec<String> {
        let folders = [&self.storage.log, &self.storage.recordings];
        let mut problems: Vec<String> = folders.into_iter().filter_map(|at| is_full(at)).collect();
        // An attempt makes sense only where there is room. Also when it works there was something wrong,
        // and this round's alarm says so.
        if problems.is_empty() && !self.health.log.is_open() {
            problems.push(match self.health.log.reopen(SystemTime::now()) {
                Ok(()) => "an event could not be written".to_owned(),
                Err(error) => error.to_string(),
            });
        }
        self.health.found().storage_good = problems.is_empty().then(Instant::now);
        problems
    }

    fn note(&mut self, alarm: Option<Alarm>) {
        if alarm == self.alarm {
            return;
        }
        let event = match &alarm {
            None => {
                tracing::info!("all is well again: agents may connect");
                Event::GuardCleared {}
            }
            Some(Alarm { problems, frozen }) => {
                let frozen = *frozen;
                tracing::error!(?problems, frozen, "ALARM: agents are cut off");
                Event::GuardAlarm {
                    problems: problems.clone(),
                    frozen,
                }
            }
        };
        self.alarm = alarm;
        // A disk that is full for days: the first words and the last ones say enough.
        if self.untold.len() == MAX_UNTOLD {
            self.untold.pop();
        }
        self.untold.push(event);
    }

    fn tell(&mut self) {
        while let Some(event) = self.untold.first() {
            if let Err(error) = self.health.log.append(event) {
                tracing::error!(%error, "an alarm is not in the log yet");
                return;
            }
            self.untold.remove(0);
        }
    }

    fn settle(&self) {
        let recordings = self.storage.recordings.clone();
        let digest = |session| recordings::digest(&recordings, session).ok();
        if let Err(error) = self.health.log.settle(SystemTime::now(), digest) {
            tracing::error!(%error, "what gateways that are gone left in the log could not be finished");
        }
    }
}

fn is_full(folder: &Path) -> Option<String> {
    match nix::sys::statvfs::statvfs(folder) {
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            (free < ROOM).then(|| {
                format!(
                    "less than 1 MiB is free on the disk of {}",
                    folder.display()
                )
            })
        }
        // The recordings' folder may be made with the first recording.
        Err(nix::errno::Errno::ENOENT) => is_full(folder.parent()?),
        Err(error) => Some(format!("{} cannot be examined: {error}", folder.display())),
    }
}
