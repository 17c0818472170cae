//! When to read, post and delete the own entry at one discovery. Decides and does nothing: events and the time in,
//! [`Action`]s out.
//!
//! ```text
//!            due ┌─────────┐ found, or the discovery says there is none ┌─────────┐
//!   Idle ───────►│ Reading │───────────────────────────────────────────►│ Posting │───► Idle, due in a minute
//!    ▲           └─────────┘                                            └─────────┘
//!    │                │ any other failure: wait, doubling                    │ sequence: read again, five times
//!    └────────────────┴──────────────────────────────────────────────────────┘
//! ```
//!
//! The rule that matters (control-plane 5): an entry with sequence 0 is posted only after the discovery itself said that
//! there is none. Any other failure of a read is waited out.

use std::time::{Duration, Instant};

use ringwire_proto::entry::{Entry, TIMESTAMP_FUTURE_MAX_NS};

use super::content::Content;

/// How often an entry is refreshed that does not change (dmsg-wire 12.4). Servers expire after twice this time.
pub const UPDATE_INTERVAL: Duration = Duration::from_secs(60);
/// How long changes are collected before they are posted (dmsg-wire 12.4).
const DEBOUNCE: Duration = Duration::from_secs(1);
/// First wait after a failure; doubles up to the last.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How often a refused sequence is tried anew in one update, and the waits between (dmsg-wire 12.4).
const SEQUENCE_RETRIES_MAX: u32 = 5;
const SEQUENCE_RETRY_MIN: Duration = Duration::from_millis(100);
const SEQUENCE_RETRY_MAX: Duration = Duration::from_secs(2);

/// What is to be done now. One at a time; the answer goes into the `handle_` of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Read the own entry.
    Read,
    /// Sign this entry and post it.
    Post(Entry),
    /// Sign this entry and have the own one removed.
    Delete(Entry),
}

/// How a request failed, as far as it matters for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The discovery itself says that there is no entry.
    NotFound,
    /// Another entry of the key has this sequence or a greater one, or a later time.
    Sequence,
    /// It may work later, not before this time has passed.
    Transient(Duration),
    /// It will not work until somebody changes something.
    Permanent,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Step {
    /// Nothing under way; the next update starts when one of the times has come.
    Idle,
    Reading,
    Posting {
        content: Box<Content>,
        timestamp_ns: i64,
    },
    Deleting,
    Stopped,
}

/// The registration at one discovery. See the module's head.
#[derive(Debug)]
pub struct Machine {
    content: Content,
    step: Step,
    /// What the discovery is known to hold.
    pushed: Option<Content>,
    /// A change is to be posted at this time, unless it is undone before.
    change_at: Option<Instant>,
    /// The entry is to be refreshed at this time.
    refresh_at: Instant,
    /// Nothing is sent before this time.
    blocked_until: Option<Instant>,
    failures: u32,
    sequence_retries: u32,
    /// The time under the entry whose sequence was refused last.
    refused_timestamp_ns: Option<i64>,
    stopping: bool,
    /// An entry of ours may be there.
    present: bool,
    interval: Duration,
    random: fastrand::Rng,
}

impl Machine {
    /// A machine that wants `content` posted, at once and then every `interval`. `seed` spreads the waits of many
    /// machines.
    pub fn new(content: Content, interval: Duration, now: Instant, seed: u64) -> Self {
        Self {
            content,
            interval,
            step: Step::Idle,
            pushed: None,
            change_at: None,
            refresh_at: now,
            blocked_until: None,
            failures: 0,
            sequence_retries: 0,
            refused_timestamp_ns: None,
            stopping: false,
            present: false,
            random: fastrand::Rng::with_seed(seed),
        }
    }

    /// The entry is to say this from now on.
    pub fn set_content(&mut self, content: Content, now: Instant) {
        self.content = content;
        if self.pushed.as_ref() != Some(&self.content) && self.change_at.is_none() {
            self.change_at = Some(now + DEBOUNCE);
        }
    }

    /// The entry is to be removed; [`is_stopped`](Self::is_stopped) says when there is nothing left to do.
    pub fn stop(&mut self) {
        self.stopping = true;
        if self.step == Step::Idle && !self.present {
            self.step = Step::Stopped;
        }
    }

    /// True at the end of [`stop`](Self::stop).
    pub fn is_stopped(&self) -> bool {
        self.step == Step::Stopped
    }

    /// What the discovery is known to hold.
    pub fn pushed(&self) -> Option<&Content> {
        self.pushed.as_ref()
    }

    /// What is to be done at `now`, if anything.
    pub fn next_action(&mut self, now: Instant, unix_now_ns: i64) -> Option<Action> {
        if self.step != Step::Idle {
            return None;
        }
        if self.stopping {
            self.step = Step::Deleting;
            return Some(Action::Delete(self.content.entry(0, unix_now_ns)));
        }
        if self.blocked_until.is_some_and(|until| now < until) {
            return None;
        }
        if self.change_at.is_some_and(|at| now >= at) {
            self.change_at = None;
            if self.pushed.as_ref() != Some(&self.content) {
                return Some(self.read());
            }
        }
        (now >= self.refresh_at).then(|| self.read())
    }

    fn read(&mut self) -> Action {
        self.blocked_until = None;
        self.step = Step::Reading;
        Action::Read
    }

    /// When [`next_action`](Self::next_action) is to be asked again; `None` while an answer is awaited.
    pub fn next_time(&self) -> Option<Instant> {
        if self.step != Step::Idle {
            return None;
        }
        let due = self.change_at.map_or(self.refresh_at, |at| at.min(self.refresh_at));
        Some(self.blocked_until.map_or(due, |until| due.max(until)))
    }

    /// How [`Action::Read`] went. What is to be posted, if anything, is the result.
    pub fn handle_read(
        &mut self,
        read: Result<&Entry, Failure>,
        now: Instant,
        unix_now_ns: i64,
    ) -> Option<Action> {
        if self.step != Step::Reading {
            return None;
        }
        let (sequence, earliest_ns) = match read {
            Ok(stored) => {
                self.present = true;
                if self.refused_timestamp_ns.take().is_some_and(|ours_ns| stored.timestamp_ns > ours_ns) {
                    // Somebody else posts for this key, and later than we: leave it to the next update.
                    return self.update_is_over(now);
                }
                (stored.sequence.saturating_add(1), stored.timestamp_ns)
            }
            Err(Failure::NotFound) => (0, i64::MIN),
            Err(failure) => return self.wait(failure, now),
        };
        if self.stopping {
            return self.update_is_over(now);
        }
        // A clock that was set back must not make a time earlier than the stored one; but one that is farther ahead than any
        // discovery takes is refused by all, and ours knows that it is the stored one that is wrong.
        let ahead = earliest_ns.saturating_sub(unix_now_ns) > TIMESTAMP_FUTURE_MAX_NS;
        let timestamp_ns = if ahead { unix_now_ns } else { unix_now_ns.max(earliest_ns) };
        self.step = Step::Posting { content: Box::new(self.content.clone()), timestamp_ns };
        Some(Action::Post(self.content.entry(sequence, timestamp_ns)))
    }

    /// How [`Action::Post`] went.
    pub fn handle_post(&mut self, posted: Result<(), Failure>, now: Instant) {
        let Step::Posting { content, timestamp_ns } = std::mem::replace(&mut self.step, Step::Idle) else {
            return;
        };
        // Even a post that failed on the way back may have arrived.
        self.present = true;
        match posted {
            Ok(()) => {
                self.failures = 0;
                if *content == self.content {
                    self.change_at = None;
                }
                self.pushed = Some(*content);
                self.update_is_over(now);
            }
            Err(Failure::Sequence) if self.sequence_retries < SEQUENCE_RETRIES_MAX => {
                let wait = SEQUENCE_RETRY_MIN * 2u32.pow(self.sequence_retries);
                self.sequence_retries += 1;
                self.refused_timestamp_ns = Some(timestamp_ns);
                self.refresh_at = now;
                self.blocked_until = Some(now + wait.min(SEQUENCE_RETRY_MAX));
            }
            Err(Failure::Sequence) => {
                self.update_is_over(now);
            }
            Err(failure) => {
                self.wait(failure, now);
            }
        }
    }

    /// How [`Action::Delete`] went; there is no second try, because the entry expires by itself.
    pub fn handle_delete(&mut self) {
        if self.step == Step::Deleting {
            self.step = Step::Stopped;
        }
    }

    fn update_is_over(&mut self, now: Instant) -> Option<Action> {
        self.sequence_retries = 0;
        self.refused_timestamp_ns = None;
        self.blocked_until = None;
        // Up to a tenth early: servers that started together drift apart, and none comes late.
        self.refresh_at = now + self.interval.mul_f64(0.9 + 0.1 * self.random.f64());
        self.become_idle()
    }

    fn wait(&mut self, failure: Failure, now: Instant) -> Option<Action> {
        let wait = match failure {
            Failure::Permanent => self.interval,
            Failure::Transient(at_least) => {
                let doubled = RETRY_MIN * 2u32.pow(self.failures.min(5));
                self.failures = self.failures.saturating_add(1);
                let jittered = doubled.min(RETRY_MAX).mul_f64(0.5 + 0.5 * self.random.f64());
                jittered.max(at_least)
            }
            Failure::NotFound | Failure::Sequence => RETRY_MIN,
        };
        self.refused_timestamp_ns = None;
        self.sequence_retries = 0;
        self.refresh_at = now;
        self.blocked_until = Some(now + wait);
        self.become_idle()
    }

    fn become_idle(&mut self) -> Option<Action> {
        self.step = if self.stopping && !self.present { Step::Stopped } else { Step::Idle };
        None
    }
}

#[cfg(test)]
mod tests;
