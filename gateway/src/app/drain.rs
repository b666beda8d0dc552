//! The way out: told to stop, or after a hand-over.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use super::handover::{Successor, ToPredecessor};
use super::notify;
use super::serve::{Request, Server, report};
use crate::audit::event::Event;

/// How long open sessions get to hear that the gateway stops.
const DRAIN: Duration = Duration::from_secs(10);

impl Server {
    /// Ends every session. Agents cannot connect from the beginning of this.
    pub async fn stop(&mut self, reason: &str) {
        self.pulse.stop();
        notify::stopping();
        self.end_sessions(reason).await;
    }

    /// After a hand-over: serves the sessions that are open to their end, however long that takes. Answers
    /// why it ended.
    pub async fn drain(&mut self, mut successor: Successor) -> &'static str {
        // The successor does it now.
        self.examination.abort();
        let pid = successor.pid();
        let open = self.sessions.len();
        tracing::info!(
            successor = pid,
            open,
            "handed over; the open sessions end here"
        );
        notify::handed_over(pid);
        let handed_over = Event::GatewayHandover {
            pid: std::process::id(),
            successor: pid,
            open_sessions: open as u64,
        };
        if let Err(error) = self.gateway.log.append(&handed_over) {
            tracing::error!(%error, "the hand-over could not be written");
        }
        let mut successor_lives = true;
        loop {
            let drained = self.sessions.is_empty();
            // The successor reaches its sessions through this process.
            let predecessor_gone = self
                .predecessor
                .as_ref()
                .is_none_or(JoinHandle::is_finished);
            if drained && predecessor_gone {
                return "handed over, and drained";
            }
            tokio::select! {
                Some(ended) = self.sessions.join_next() => report(ended),
                question = successor.question(), if successor_lives => match question {
                    Some(question) => self.answer(question, &successor),
                    None => {
                        successor_lives = false;
                        tracing::error!(successor = pid, "the successor has ended: agents cannot connect");
                    }
                },
                Some(listeners) = self.registered.recv() => successor.also_take(listeners).await,
                () = gone(&mut self.predecessor) => {}
                request = self.signals.next() => match request {
                    Request::Stop(signal) => {
                        self.end_sessions(signal).await;
                        return signal;
                    }
                    Request::HandOver => tracing::warn!("SIGHUP: this gateway has handed over already"),
                },
            }
        }
    }

    fn answer(&self, question: ToPredecessor, successor: &Successor) {
        let (request, pid, key, agent, who) = match question {
            ToPredecessor::Cancel {
                request,
                pid,
                key,
                agent,
                who,
            } => (request, pid, key, agent, who),
            ToPredecessor::Failed { reason } => {
                return tracing::error!(reason, "the successor fails");
            }
            ToPredecessor::Ready {} | ToPredecessor::Serving {} => {
                return tracing::error!("the successor makes no sense");
            }
        };
        let gateway = Arc::clone(&self.gateway);
        let answer = successor.answering();
        tokio::spawn(async move {
            let keys = &gateway.cancel_keys;
            let found = keys.cancel(pid, &key, &agent, *who, &gateway.log).await;
            // Blocks if the successor does not read.
            let _ = tokio::task::spawn_blocking(move || answer(request, found)).await;
        });
    }

    async fn end_sessions(&mut self, reason: &str) {
        tracing::info!(reason, open = self.sessions.len(), "stopping");
        let _ = self.stop.send(true);
        let ended = tokio::time::timeout(DRAIN, async {
            while let Some(ended) = self.sessions.join_next().await {
                report(ended);
            }
        });
        if ended.await.is_err() {
            tracing::warn!(open = self.sessions.len(), "sessions did not end in time");
        }
    }
}

/// When the predecessor's predecessor is gone; never without one.
async fn gone(predecessor: &mut Option<JoinHandle<()>>) {
    match predecessor {
        Some(task) if !task.is_finished() => {
            let _ = task.await;
        }
        _ => std::future::pending().await,
    }
}
