//! Late lines: what nothing waits for, written together with the next line that something waits for.
//!
//! That a statement may run must be in the log before it does. How it ended is told to nobody but the log, so
//! it can wait for company: one write(2) for both is half the price. It waits for [`PATIENCE`] at most.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;

use super::{Log, LogError};
use crate::audit::chain::Draft;

/// How long a line waits for another one to be written with.
pub const PATIENCE: Duration = Duration::from_millis(5);

/// How many bytes wait, at most.
const ROOM: usize = 64 << 10;

/// Lines that wait, oldest first.
#[derive(Debug, Default)]
pub(super) struct Late {
    waiting: Mutex<Waiting>,
    /// Told of each that comes.
    came: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    drafts: Vec<Draft>,
    bytes: usize,
}

impl Late {
    pub(super) fn take(&self) -> Vec<Draft> {
        let mut waiting = self.waiting();
        waiting.bytes = 0;
        std::mem::take(&mut waiting.drafts)
    }

    /// Puts back what could not be written, in front of what has come since.
    pub(super) fn put_back(&self, mut drafts: Vec<Draft>) {
        let mut waiting = self.waiting();
        waiting.bytes += drafts.iter().map(Draft::len).sum::<usize>();
        drafts.append(&mut waiting.drafts);
        waiting.drafts = drafts;
    }

    /// Answers how many bytes wait.
    fn add(&self, drafts: impl IntoIterator<Item = Draft>) -> usize {
        let mut waiting = self.waiting();
        for draft in drafts {
            waiting.bytes += draft.len();
            waiting.drafts.push(draft);
        }
        waiting.bytes
    }

    fn is_empty(&self) -> bool {
        self.waiting().drafts.is_empty()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    /// Appends events that nothing waits for: [`PATIENCE`] from now they are in the file, if
    /// [`Log::write_late_lines`] runs, or sooner, in the order in which they came and before any event that is
    /// appended from now on.
    ///
    /// # Errors
    /// When the log is closed, or too many wait and cannot be written: nothing may follow from them. They stay, to be written
    /// when the log is open again.
    pub fn append_late(&self, drafts: impl IntoIterator<Item = Draft>) -> Result<(), LogError> {
        if self.late.add(drafts) >= ROOM || !self.is_open() {
            return self.write_late();
        }
        self.late.came.notify_one();
        Ok(())
    }

    /// Writes late lines whose time has come, for ever.
    pub async fn write_late_lines(&self) {
        loop {
            self.late.came.notified().await;
            tokio::time::sleep(PATIENCE).await;
            if let Err(error) = self.write_late() {
                // They stay. Whoever waits for a line sees the same, and health says it aloud.
                tracing::debug!(%error, "late lines could not be written");
            }
        }
    }

    fn write_late(&self) -> Result<(), LogError> {
        match self.late.is_empty() {
            true => Ok(()),
            false => self.append_drafts(SystemTime::now(), Vec::new()).map(drop),
        }
    }
}
