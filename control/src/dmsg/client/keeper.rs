//! The task that keeps a client connected and announced.
//!
//! In: the clock, ends of sessions, doubts of dials, the directory's lists. Out: sessions in the table, pings, posts of
//! the entry, [`Status`] for those who wait. One per client; it ends with the client. Connecting, pinging, listing and
//! posting run beside it, one of each kind and server at a time; posts of the entry never overlap.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use ringwire_proto::identity::PublicKey;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use super::directory::DirectoryError;
use super::error::SessionError;
use super::inner::{Awaited, Inner, Status, Stop, random};
use super::registration::{Registration, post};
use super::table::SessionId;
use crate::dmsg::address::ServerAddress;
use crate::dmsg::error::PingError;
use crate::dmsg::session::Session;

/// A session that did not answer its first ping counts as usable after this time: servers of 2024 never answer.
const PROVEN_AFTER: Duration = Duration::from_secs(1);

pub(super) struct Keeper {
    inner: Arc<Inner>,
    registration: Registration,
    work: JoinSet<Done>,
    connecting: HashSet<PublicKey>,
    listing: bool,
    /// A list was asked for because there is no server to connect to, and none came about since.
    listed_for_want: bool,
    list_at: Instant,
    list_failures: u32,
    idle_at: Instant,
}

/// What came of something that ran beside the keeper.
enum Done {
    Connected(PublicKey, Result<Session, SessionError>),
    Listed(Result<Vec<ServerAddress>, DirectoryError>),
    Pinged(SessionId, Result<Duration, PingError>),
    Posted(Result<u64, DirectoryError>),
}

impl Keeper {
    pub(super) fn new(inner: Arc<Inner>) -> Self {
        let now = Instant::now();
        Self {
            registration: Registration::new(inner.config.post, now),
            work: JoinSet::new(),
            connecting: HashSet::new(),
            listing: false,
            listed_for_want: false,
            list_at: now,
            list_failures: 0,
            idle_at: now + inner.config.idle_interval,
            inner,
        }
    }

    /// Runs until the client is closed.
    pub(super) async fn run(mut self) {
        let mut status = self.inner.status.subscribe();
        let stop = {
            let stopped = async {
                // The sender lives in `inner`, so waiting cannot fail.
                status.wait_for(|status| status.stop.is_some()).await.ok().and_then(|status| status.stop)
            };
            tokio::select! {
                stop = stopped => stop,
                () = self.keep() => None,
            }
        };
        self.stop(stop.unwrap_or(Stop::AtOnce)).await;
    }

    async fn keep(&mut self) {
        let inner = Arc::clone(&self.inner);
        loop {
            // Registered before the look, so that nothing that changes during it is missed.
            let changed = inner.changed.notified();
            let next = self.look();
            tokio::select! {
                () = changed => {}
                () = sleep_until(next) => {}
                Some(done) = self.work.join_next() => {
                    // No task of these panics; a release build would have ended with it.
                    if let Ok(done) = done {
                        self.finish(done);
                    }
                }
            }
        }
    }

    /// Starts what is due and returns when to look again.
    fn look(&mut self) -> Instant {
        let now = Instant::now();
        let mut next = now + Duration::from_secs(60);
        let mut at = |due: Option<Instant>| next = due.map_or(next, |due| due.min(next));

        at(self.list(now));
        at(self.connect(now));
        at(self.ping(now));
        if self.idle_at <= now {
            self.idle_at = now + self.inner.config.idle_interval;
            self.close_idle();
        }
        at(Some(self.idle_at));
        at(self.announce(now));
        self.update_status();
        if self.inner.status.borrow().proven == 0 && self.inner.table().len() > 0 {
            at(Some(now + PROVEN_AFTER / 4));
        }
        next
    }

    /// Asks for servers: often while sessions are missing, now and then otherwise.
    fn list(&mut self, now: Instant) -> Option<Instant> {
        let config = &self.inner.config;
        if self.listing {
            return None;
        }
        let short = self.inner.table().healthy() < config.sessions_min;
        let due = if short { self.list_at } else { self.list_at + config.list_interval };
        if due > now {
            return Some(due);
        }
        self.listing = true;
        let (directory, limit) = (Arc::clone(&self.inner.directory), config.post.request_limit);
        self.work.spawn(async move {
            let listed = timeout(limit, directory.available_servers()).await;
            let listed = listed.unwrap_or(Err(DirectoryError::TimedOut(limit)));
            Done::Listed(listed.map(|entries| entries.iter().filter_map(ServerAddress::of_entry).collect()))
        });
        None
    }

    /// Replaces stale sessions, and makes new ones up to the number wanted.
    fn connect(&mut self, now: Instant) -> Option<Instant> {
        let inner = Arc::clone(&self.inner);
        let (stale, healthy) = {
            let table = inner.table();
            (table.stale(), table.healthy())
        };
        self.listed_for_want &= healthy < inner.config.sessions_min;
        let mut missing = inner.config.sessions_min.saturating_sub(healthy + self.connecting.len());
        for (server, _) in stale {
            let rests = inner.candidates().resting(&server.key, now).is_some();
            if !rests && !self.connecting.contains(&server.key) {
                missing = missing.saturating_sub(1);
                self.start_connecting(server);
            }
        }
        while missing > 0 {
            let excluded = |key: &PublicKey| {
                *key == inner.key || self.connecting.contains(key) || inner.table().get(key).is_some()
            };
            let candidate = inner.candidates().take(now, excluded);
            let Some(server) = candidate else {
                // Perhaps others have come since the last list: the server that drains is not the only one any more.
                if !std::mem::replace(&mut self.listed_for_want, true) && self.list_at > now {
                    self.list_at = now;
                    return Some(now);
                }
                return inner.candidates().next_due(excluded);
            };
            missing -= 1;
            self.start_connecting(server);
        }
        None
    }

    fn start_connecting(&mut self, server: ServerAddress) {
        self.connecting.insert(server.key);
        let inner = Arc::clone(&self.inner);
        self.work.spawn(async move { Done::Connected(server.key, inner.obtain(&server).await) });
    }

    fn ping(&mut self, now: Instant) -> Option<Instant> {
        let (due, next) = {
            let mut table = self.inner.table();
            (table.take_pings(now), table.next_ping())
        };
        for (id, session) in due {
            self.work.spawn(async move { Done::Pinged(id, session.ping().await) });
        }
        next
    }

    fn close_idle(&mut self) {
        let idle = self.inner.table().take_idle(self.inner.config.sessions_min);
        for seat in idle {
            tracing::debug!(server = %seat.server.key, "idle dmsg session closed");
            seat.session.begin_close();
        }
    }

    /// Posts the entry if that is due.
    fn announce(&mut self, now: Instant) -> Option<Instant> {
        let directory = Arc::clone(&self.inner.directory);
        if !directory.takes_posts() {
            return None;
        }
        let servers = self.inner.table().delegated();
        let due = self.registration.due(&servers, now)?;
        if due > now {
            return Some(due);
        }
        self.registration.start(servers.clone());
        let (inner, limit) = (Arc::clone(&self.inner), self.inner.config.post.request_limit);
        self.work.spawn(async move {
            Done::Posted(post(&*directory, &inner.config.secret_key, &servers, limit).await)
        });
        None
    }

    fn finish(&mut self, done: Done) {
        let now = Instant::now();
        let config = &self.inner.config;
        match done {
            Done::Connected(key, result) => {
                self.connecting.remove(&key);
                if let Err(error) = result {
                    tracing::debug!(server = %key, %error, "no dmsg session");
                    self.trouble(Awaited::Server, error.to_string());
                }
            }
            Done::Listed(Ok(servers)) => {
                self.listing = false;
                self.list_failures = 0;
                self.list_at = now + config.redial.longest;
                self.directory_answered(true);
                if servers.is_empty() {
                    let text = "the discovery lists no server with free sessions".to_owned();
                    self.trouble(Awaited::Server, text);
                }
                self.inner.candidates().set(servers, random);
            }
            Done::Listed(Err(error)) => {
                self.listing = false;
                self.list_failures = self.list_failures.saturating_add(1);
                self.list_at = now + config.redial.pause(self.list_failures, random());
                // The servers known so far stay candidates.
                self.directory_answered(false);
                self.trouble(Awaited::Discovery, format!("servers could not be listed: {error}"));
            }
            Done::Posted(result) => {
                self.registration.finish(result.as_ref().copied(), now, random());
                self.directory_answered(result.is_ok());
                if let Err(error) = result {
                    tracing::warn!(%error, "the client's entry could not be posted; it is tried again");
                    self.trouble(Awaited::Discovery, format!("the entry could not be posted: {error}"));
                }
            }
            Done::Pinged(id, result) => {
                let took = match result {
                    Ok(took) => Some(took),
                    // Its end is noticed elsewhere.
                    Err(PingError::Disconnected(_)) => return,
                    Err(error) => {
                        tracing::debug!(server = %id.0, %error, "a dmsg ping failed");
                        None
                    }
                };
                let dead = self.inner.table().pinged(id, took, now + config.ping_interval);
                if dead {
                    tracing::warn!(server = %id.0, "a dmsg session stopped answering pings and is closed");
                    self.inner.drop_session(id);
                }
            }
        }
    }

    fn trouble(&self, with: Awaited, text: String) {
        self.inner.status.send_if_modified(|status| {
            status.trouble = Some((with, text));
            false
        });
    }

    fn directory_answered(&self, answers: bool) {
        self.inner.status.send_if_modified(|status| {
            status.directory_answers = answers;
            false
        });
    }

    fn update_status(&self) {
        let announced = !self.inner.directory.takes_posts() || self.registration.is_posted();
        self.inner.update_status(announced, PROVEN_AFTER);
    }

    async fn stop(mut self, stop: Stop) {
        self.work.shutdown().await;
        let inner = &self.inner;
        if stop == Stop::InOrder && inner.directory.takes_posts() {
            let (directory, secret_key) = (&*inner.directory, &inner.config.secret_key);
            if let Err(error) = self.registration.withdraw(directory, secret_key).await {
                tracing::warn!(%error, "the client's entry could not be removed; it expires by itself");
            }
        }
        let sessions = inner.table().close();
        inner.ports.close();
        let mut closing = JoinSet::new();
        for session in sessions {
            closing.spawn(async move { session.close().await });
        }
        closing.join_all().await;
        inner.release_key();
        inner.status.send_modify(|status: &mut Status| status.stopped = true);
    }
}
