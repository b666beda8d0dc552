//! The gateway's sign of life, given from the accept loop itself: a loop that is stuck gives none, and
//! then agents' connects fail in the kernel.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Interval, MissedTickBehavior, interval};

use super::health::Health;
use crate::intercept::Heartbeat;

/// How often; the kernel takes the gateway for dead when the last beat is some of these ago.
const PERIOD: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub struct Pulse {
    heartbeat: Heartbeat,
    health: Arc<Health>,
    period: Interval,
    beats: bool,
}

impl Pulse {
    pub fn new(heartbeat: Heartbeat, health: Arc<Health>) -> Self {
        let mut period = interval(PERIOD);
        period.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            heartbeat,
            health,
            period,
            beats: false,
        }
    }

    /// Waits until it is time for a beat.
    pub async fn due(&mut self) {
        self.period.tick().await;
    }

    /// A beat while all is well; otherwise agents are cut off, without waiting for the last beat to age.
    pub fn beat(&mut self) {
        if self.health.is_good() {
            match self.heartbeat.beat() {
                Ok(()) => self.beats = true,
                Err(error) => tracing::error!(%error, "no heartbeat: agents cannot connect"),
            }
        } else {
            self.stop();
        }
    }

    /// No connect succeeds from now on.
    pub fn stop(&mut self) {
        if !self.beats {
            return;
        }
        match self.heartbeat.stop() {
            Ok(()) => self.beats = false,
            Err(error) => tracing::error!(%error, "the heartbeat could not be stopped"),
        }
    }
}
