//! What the service manager hears (sd_notify(3)). Without one, nothing.

use sd_notify::NotifyState;

pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// SIGHUP arrived. The time lets systemd tell which READY=1 answers it.
pub fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Another process is the service now. One message, because it is the last this process may send.
pub fn handed_over(successor: u32) {
    tell(&[NotifyState::MainPid(successor), NotifyState::Ready]);
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "the service manager was not told");
    }
}
