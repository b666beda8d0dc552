//! Idle sessions: ended when nothing was said for as long as the target's configuration allows.
//!
//! Both directions touch one [`Activity`] with every read that brings bytes. A session that waits for an answer,
//! or whose agent takes its time to read one, is not idle.

use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Instant, sleep_until};

/// When something was last said, by either side.
#[derive(Debug)]
pub struct Activity {
    began: Instant,
    /// Milliseconds after `began`.
    last: AtomicU64,
}

impl Activity {
    pub fn new() -> Self {
        Self {
            began: Instant::now(),
            last: AtomicU64::new(0),
        }
    }

    /// A reader whose every success counts.
    pub fn of<R>(&self, reader: R) -> Watched<'_, R> {
        Watched {
            reader,
            activity: self,
        }
    }

    fn touch(&self) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    fn last(&self) -> Instant {
        self.began + Duration::from_millis(self.last.load(Ordering::Relaxed))
    }

    /// Returns when nothing was said for `limit`, and `busy` says that nothing is under way; without a limit, never.
    pub async fn over(&self, limit: Option<Duration>, busy: impl Fn() -> bool) {
        let Some(limit) = limit else {
            return std::future::pending().await;
        };
        loop {
            let due = self.last() + limit;
            if due > Instant::now() {
                sleep_until(due).await;
            } else if busy() {
                // A statement that runs for long is activity as long as it runs.
                self.touch();
            } else {
                return;
            }
        }
    }
}

/// A reader that keeps its session awake.
#[derive(Debug)]
pub struct Watched<'a, R> {
    reader: R,
    activity: &'a Activity,
}

impl<R: AsyncRead + Unpin> AsyncRead for Watched<'_, R> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        let before = buffer.filled().len();
        ready!(Pin::new(&mut self.reader).poll_read(context, buffer))?;
        if buffer.filled().len() > before {
            self.activity.touch();
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn silence_ends_a_session() {
        let activity = Activity::new();
        let began = Instant::now();
        activity.over(Some(LIMIT), || false).await;
        assert!(began.elapsed() >= LIMIT);
    }

    #[tokio::test]
    async fn what_is_read_and_what_runs_counts() {
        let activity = Activity::new();
        let (mut peer, reader) = tokio::io::duplex(16);
        let mut reader = activity.of(reader);
        sleep_until(Instant::now() + LIMIT).await;
        peer.write_all(b"x").await.unwrap();
        reader.read_u8().await.unwrap();
        let read = Instant::now();
        // Busy when first asked, and not after that.
        let asked = Cell::new(0);
        let busy = || asked.replace(asked.get() + 1) == 0;
        activity.over(Some(LIMIT), busy).await;
        assert_eq!(asked.get(), 2);
        // Twice the limit, less the milliseconds that are cut off.
        assert!(read.elapsed() + Duration::from_millis(2) >= 2 * LIMIT);
    }

    #[tokio::test]
    async fn without_a_limit_a_session_may_idle_for_ever() {
        let activity = Activity::new();
        let over = activity.over(None, || false);
        assert!(tokio::time::timeout(LIMIT, over).await.is_err());
    }
}
