//! What a service manager is told (sd_notify(3)): ready, reloading, stopping, and that we are alive.
//!
//! Without one, nothing happens. One that doesn't listen is no reason to stop.

use std::time::Duration;

use sd_notify::NotifyState;

/// How often to say that we are alive, if anybody wants to know: twice in the time after which we would be killed.
pub(super) fn alive_every() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|within| within / 2).filter(|every| !every.is_zero())
}

/// Mail is taken.
pub(super) fn ready(said: &str) {
    tell(&[NotifyState::Ready, NotifyState::Status(said)]);
}

/// The configuration is being read again; [`ready`] ends it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// No more mail is taken.
pub(super) fn stopping(said: &str) {
    tell(&[NotifyState::Stopping, NotifyState::Status(said)]);
}

/// The main loop turns.
pub(super) fn alive() {
    tell(&[NotifyState::Watchdog]);
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager can't be told");
    }
}
