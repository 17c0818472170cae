//! The client's own entry: when it is posted and what stands in it (control-plane 5, dmsg-wire 12.5).
//!
//! In: the servers this client has sessions with, the time. Out: requests to the [`Directory`], as few as possible: none
//! at all while the servers are the ones posted last and no refresh is due. Used by [`super::keeper`] alone: it asks
//! [`Registration::due`], runs [`post`] beside its other work, one at a time, and files the outcome.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringwire_proto::entry::{ClientPart, ENTRY_VERSION, Entry};
use ringwire_proto::identity::{PublicKey, SecretKey};
use tokio::time::{Instant, sleep, timeout};

use super::backoff::Backoff;
use super::directory::{Directory, DirectoryError, delegated_servers};
use crate::discovery::withdrawal;

/// Attempts to follow a sequence that somebody else raised (dmsg-wire 12.4).
const SEQUENCE_ATTEMPTS: u32 = 5;

/// The first pause between those; it doubles.
const SEQUENCE_PAUSE: Duration = Duration::from_millis(100);

/// When entries are posted.
#[derive(Debug, Clone, Copy)]
pub struct PostTimes {
    /// An entry is posted again after this time, changed or not.
    pub refresh: Duration,
    /// A change is posted this long after it showed, so that a short absence costs no request.
    pub settle: Duration,
    /// One request of the discovery.
    pub request_limit: Duration,
    /// After failures.
    pub retry: Backoff,
}

/// What is known of the own entry.
pub(super) struct Registration {
    times: PostTimes,
    /// The servers of the last successful post.
    posted: Option<Vec<PublicKey>>,
    /// Its sequence: an entry with another one is not ours to remove.
    sequence: Option<u64>,
    /// The servers of the post that is being made.
    under_way: Option<Vec<PublicKey>>,
    refresh_at: Instant,
    changed_at: Option<Instant>,
    retry_at: Option<Instant>,
    failures: u32,
}

impl Registration {
    pub(super) fn new(times: PostTimes, now: Instant) -> Self {
        Self {
            times,
            posted: None,
            sequence: None,
            under_way: None,
            refresh_at: now,
            changed_at: None,
            retry_at: None,
            failures: 0,
        }
    }

    pub(super) fn is_posted(&self) -> bool {
        self.posted.is_some()
    }

    /// When a post of these servers is due; `None` while there is nothing to post, or a post is under way. A client without any session keeps
    /// its last entry: what it had is where it will be again soonest.
    pub(super) fn due(&mut self, servers: &[PublicKey], now: Instant) -> Option<Instant> {
        if servers.is_empty() || self.under_way.is_some() {
            return None;
        }
        let changed = self.posted.as_deref() != Some(servers);
        if !changed {
            self.changed_at = None;
        }
        let due = match (&self.posted, changed) {
            // Nobody can reach this client before its first entry.
            (None, _) => now,
            (Some(_), true) => *self.changed_at.get_or_insert(now) + self.times.settle,
            (Some(_), false) => self.refresh_at,
        };
        Some(self.retry_at.map_or(due, |retry_at| retry_at.max(due)))
    }

    /// A [`post`] of these servers starts.
    pub(super) fn start(&mut self, servers: Vec<PublicKey>) {
        self.under_way = Some(servers);
    }

    /// Files the outcome of the post that was under way. A failure is retried later.
    pub(super) fn finish(&mut self, sequence: Result<u64, &DirectoryError>, now: Instant, random: u64) {
        let servers = self.under_way.take();
        match sequence {
            Ok(sequence) => {
                self.sequence = Some(sequence);
                self.posted = servers;
                self.refresh_at = now + self.times.refresh;
                self.changed_at = None;
                self.retry_at = None;
                self.failures = 0;
            }
            Err(_) => {
                self.failures = self.failures.saturating_add(1);
                self.retry_at = Some(now + self.times.retry.pause(self.failures, random));
            }
        }
    }

    /// Takes the entry away on a clean stop: only one that this client posted last, and of an entry that is a server's
    /// too only the client's part.
    pub(super) async fn withdraw(
        &mut self,
        directory: &dyn Directory,
        secret_key: &SecretKey,
    ) -> Result<(), DirectoryError> {
        let limit = self.times.request_limit;
        let (last, under_way) = (self.sequence.take(), self.under_way.take());
        if last.is_none() && under_way.is_none() {
            return Ok(());
        }
        // A post that was cut off may have arrived.
        let is_ours = |stored: &Entry| {
            Some(stored.sequence) == last || under_way.as_deref() == Some(delegated_servers(stored))
        };
        let stored = within(limit, directory.entry(secret_key.public_key())).await?;
        let Some(mut entry) = stored.filter(is_ours) else { return Ok(()) };
        entry.sequence = entry.sequence.saturating_add(1);
        entry.timestamp_ns = unix_time_ns().max(entry.timestamp_ns);
        if entry.server.is_some() {
            entry.client = None;
            entry.sign(secret_key);
            return within(limit, directory.put(entry)).await;
        }
        let mut entry = withdrawal(entry);
        entry.sign(secret_key);
        within(limit, directory.remove(entry)).await
    }
}

/// Posts the entry of `secret_key` with these servers and returns its sequence. `limit` bounds each request.
pub(super) async fn post(
    directory: &dyn Directory,
    secret_key: &SecretKey,
    servers: &[PublicKey],
    limit: Duration,
) -> Result<u64, DirectoryError> {
    let key = secret_key.public_key();
    let client = ClientPart { delegated_servers: Some(servers.to_vec()) };
    let mut pause = SEQUENCE_PAUSE;
    let mut ours_ns = i64::MAX;
    let mut attempt = 0;
    loop {
        attempt += 1;
        // An error here is no sign that there is no entry: only an answer is (control-plane 5).
        let stored = within(limit, directory.entry(key)).await?;
        if let Some(stored) = stored.as_ref().filter(|stored| stored.timestamp_ns > ours_ns) {
            return Err(DirectoryError::Sequence(format!(
                "somebody else posted sequence {} meanwhile; does another client use this key?",
                stored.sequence
            )));
        }
        let mut entry = stored.map_or_else(
            || Entry { version: ENTRY_VERSION.to_owned(), ..Entry::default() },
            |stored| Entry { sequence: stored.sequence.saturating_add(1), ..stored },
        );
        entry.client = Some(client.clone());
        // A clock that was set back must not make the entry older than the stored one (services 2.2).
        entry.timestamp_ns = unix_time_ns().max(entry.timestamp_ns);
        ours_ns = entry.timestamp_ns;
        entry.sign(secret_key);
        let sequence = entry.sequence;
        match within(limit, directory.put(entry)).await {
            Err(DirectoryError::Sequence(_)) if attempt < SEQUENCE_ATTEMPTS => {}
            result => return result.map(|()| sequence),
        }
        sleep(pause).await;
        pause *= 2;
    }
}

async fn within<T>(
    limit: Duration,
    request: impl Future<Output = Result<T, DirectoryError>>,
) -> Result<T, DirectoryError> {
    timeout(limit, request).await.unwrap_or(Err(DirectoryError::TimedOut(limit)))
}

/// Unix time in nanoseconds.
fn unix_time_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
