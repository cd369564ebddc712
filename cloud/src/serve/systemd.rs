//! What systemd is told, where it started the daemon.

use sd_notify::NotifyState;

/// Tells systemd that the runtime still turns; the broker's own watch ends the daemon when that is dead.
pub async fn watchdog() {
    let Some(every) = sd_notify::watchdog_enabled() else { return std::future::pending().await };
    loop {
        notify(&[NotifyState::Watchdog]);
        tokio::time::sleep(every / 3).await;
    }
}

/// Tells it this much.
pub fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "cannot tell systemd");
    }
}
