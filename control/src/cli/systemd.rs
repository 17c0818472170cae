//! What systemd is told of the two planes: ready, how it goes, that they live. Without systemd nothing is said.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;
use tokio::sync::Mutex;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::supervise::{Plane, PlaneStatus};

/// The data plane's socket is open: a control plane may come.
pub(super) fn listening() {
    notify(&[NotifyState::Ready, NotifyState::Status("waiting for a control plane, or serving")]);
}

/// The watchdog of the data plane's process, fed from its loop.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// Half of the time after which systemd would give the process up; none without a watchdog.
    pause: Option<Duration>,
    fed: Option<Instant>,
}

impl Watchdog {
    pub(super) fn from_environment() -> Self {
        Self { pause: sd_notify::watchdog_enabled().map(|limit| limit / 2), fed: None }
    }

    /// The loop goes round. Costs a system call twice in the watchdog's time.
    pub(super) fn feed(&mut self, now: Instant) {
        let Some(pause) = self.pause else { return };
        if self.fed.is_none_or(|fed| now.duration_since(fed) >= pause) {
            self.fed = Some(now);
            notify(&[NotifyState::Watchdog]);
        }
    }
}

/// The control plane's side.
#[derive(Debug)]
pub(super) struct Systemd {
    /// Ticks twice in the time after which systemd would give the process up.
    watchdog: Option<Mutex<Interval>>,
}

impl Systemd {
    /// Must be called inside a tokio runtime.
    pub(super) fn from_environment() -> Self {
        let watchdog = sd_notify::watchdog_enabled().map(|limit| {
            let mut ticks = interval((limit / 2).max(Duration::from_millis(1)));
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Mutex::new(ticks)
        });
        Self { watchdog }
    }

    /// The listeners are open and clients are served.
    pub(super) fn ready(&self, status: &PlaneStatus) {
        notify(&[NotifyState::Ready, NotifyState::Status(&text(status))]);
    }

    /// Something has changed.
    pub(super) fn status(&self, status: &PlaneStatus) {
        notify(&[NotifyState::Status(&text(status))]);
    }

    /// The end has begun.
    pub(super) fn stopping(&self) {
        notify(&[NotifyState::Stopping]);
    }

    /// Returns when the watchdog wants to be fed; never without one.
    pub(super) async fn watchdog_due(&self) {
        match &self.watchdog {
            Some(ticks) => {
                ticks.lock().await.tick().await;
            }
            None => std::future::pending().await,
        }
    }

    /// Tells the watchdog that the supervision answers. If it does not, nobody tells.
    pub(super) async fn feed(&self, plane: &Plane) {
        if plane.table().await.is_some() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn text(status: &PlaneStatus) -> String {
    if let Some(reason) = status.unready() {
        reason
    } else {
        let addresses: Vec<_> = status.addresses.iter().map(ToString::to_string).collect();
        format!("attached to data plane {}, listening on {}", status.pid, addresses.join(", "))
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_listens_no_more_is_not_said_to() {
        let status = PlaneStatus {
            attached: true,
            pid: 7,
            addresses: vec!["127.0.0.1:8081".parse().unwrap()],
            ..PlaneStatus::default()
        };
        assert_eq!(text(&status), "attached to data plane 7, listening on 127.0.0.1:8081");
        let draining = text(&PlaneStatus { draining: true, ..status });
        assert!(draining.contains("draining") && !draining.contains("listening"), "{draining}");
    }
}
