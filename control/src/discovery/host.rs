//! An embedded discovery as one thing to start and to stop: listener, service, store and journal together.
//!
//! In: an address, settings, the path of the journal. Out: [`DiscoveryHost`], which `ringwire run` holds.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::counters::DiscoveryCounters;
use super::journal::{Journal, JournalError, load};
use super::service::{DiscoveryService, DiscoverySettings, unix_now_ns};
use super::store::{Changes, MemoryStore, Record};
use crate::http::{HttpCounters, HttpServer, Limits};
use crate::throttle::Throttle;

/// How often changes are written. With the time the disk takes, the file is at most one second behind.
const WRITE_INTERVAL: Duration = Duration::from_millis(500);
/// How often expired entries are dropped (services 2.4).
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// Why an embedded discovery cannot start.
#[derive(Debug, Error)]
pub enum HostError {
    /// The journal cannot be read.
    #[error(transparent)]
    Journal(#[from] JournalError),
    /// The listener has no address.
    #[error("the listener of the discovery failed: {0}")]
    Listener(std::io::Error),
}

/// A running discovery. Dropping it cuts it off; [`stop`](Self::stop) ends it in order.
#[derive(Debug)]
pub struct DiscoveryHost {
    server: HttpServer,
    address: SocketAddr,
    store: Arc<MemoryStore>,
    counters: DiscoveryCounters,
    stopping: watch::Sender<bool>,
    journal: JoinHandle<()>,
}

impl DiscoveryHost {
    /// Takes over what the journal at `path` remembers and serves on `listener` from now on.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start(
        listener: TcpListener,
        settings: DiscoverySettings,
        path: PathBuf,
    ) -> Result<Self, HostError> {
        Self::start_with(listener, settings, path, Limits::default())
    }

    /// [`start`](Self::start) with other bounds on the listener.
    ///
    /// # Errors
    /// [`HostError`].
    pub fn start_with(
        listener: TcpListener,
        settings: DiscoverySettings,
        path: PathBuf,
        limits: Limits,
    ) -> Result<Self, HostError> {
        let address = listener.local_addr().map_err(HostError::Listener)?;
        let store = Arc::new(MemoryStore::new(settings.limits));
        if let Some(key) = settings.own_server {
            store.pin(key);
        }
        let now_ns = unix_now_ns();
        let records = remembered(&path)?.into_iter().map(|record| shorten(record, &settings, now_ns));
        let restored = store.restore(records, now_ns);
        tracing::info!(restored, "the discovery starts");
        let service = DiscoveryService::new(Arc::clone(&store), settings.clone());
        let counters = service.counters().clone();
        let mut server = HttpServer::new(service.router(), limits);
        server.listen_behind(listener, Arc::clone(&settings.proxy_from));
        let stopping = watch::Sender::new(false);
        let journal =
            tokio::spawn(keep(Arc::clone(&store), settings, Journal::new(path), stopping.subscribe()));
        Ok(Self { server, address, store, counters, stopping, journal })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL for programs on this machine.
    pub fn local_url(&self) -> String {
        let mut address = self.address;
        if address.ip().is_unspecified() {
            address.set_ip(match address {
                SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
                SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
            });
        }
        format!("http://{address}")
    }

    /// What it holds.
    pub fn store(&self) -> &Arc<MemoryStore> {
        &self.store
    }

    /// What it counts.
    pub fn counters(&self) -> (&DiscoveryCounters, &HttpCounters) {
        (&self.counters, self.server.counters())
    }

    /// Finishes requests in progress, then writes what changed.
    pub async fn stop(self) {
        self.server.stop().await;
        self.stopping.send_replace(true);
        // It ends by itself; a panic of it has been reported by the runtime.
        self.journal.await.ok();
    }
}

fn remembered(path: &Path) -> Result<Vec<Record>, JournalError> {
    let loaded = load(path)?;
    if let Some(damage) = loaded.damage {
        tracing::warn!(
            path = %path.display(),
            lines = damage.lines,
            first = damage.first,
            reason = damage.reason,
            kept = %damage.kept.display(),
            used = loaded.records.len(),
            "the discovery's file is damaged: it is kept beside, the lines that read are used, and servers and clients post \
             the rest again within minutes"
        );
    }
    Ok(loaded.records)
}

/// No entry lives longer than if it had been posted now: the clock may have been ahead when it was.
fn shorten(mut record: Record, settings: &DiscoverySettings, now_ns: i64) -> Record {
    let longest = settings.lifetime(&record.entry, false);
    if let Some(latest_ns) = Record::expiry(longest, now_ns) {
        record.expires_ns = Some(record.expires_ns.map_or(latest_ns, |expires_ns| expires_ns.min(latest_ns)));
    }
    record
}

/// Writes the journal until it is told to stop, and a last time then.
async fn keep(
    store: Arc<MemoryStore>,
    settings: DiscoverySettings,
    mut journal: Journal,
    mut stopping: watch::Receiver<bool>,
) {
    static FAILURES: Throttle = Throttle::new(crate::throttle::INTERVAL);

    let mut ticks = tokio::time::interval(WRITE_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut sweep_at = Instant::now() + SWEEP_INTERVAL;
    loop {
        let last = tokio::select! {
            _ = stopping.wait_for(|stopping| *stopping) => true,
            _ = ticks.tick() => false,
        };
        if Instant::now() >= sweep_at {
            sweep_at = Instant::now() + SWEEP_INTERVAL;
            store.sweep(unix_now_ns(), |entry| settings.lifetime(entry, false));
        }
        let changes = if journal.wants_all() { Changes::All(store.take_all()) } else { store.take_changes() };
        if !changes.is_empty() {
            let written = tokio::task::spawn_blocking(move || {
                let result = journal.write(&changes);
                (journal, result)
            });
            // Cancelled only when the runtime ends.
            let Ok((returned, result)) = written.await else { return };
            journal = returned;
            if let Err(error) = result
                && let Some(suppressed) = FAILURES.admit()
            {
                tracing::warn!(suppressed, "{error}");
            }
        }
        if last {
            return;
        }
    }
}
