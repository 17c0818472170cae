//! What a server must reach beside an attack, and whether it did.
//!
//! In: what one run found. Out: a sentence for each target that was missed. Called by [`super::report`].

use super::report::Found;
use std::time::Duration;

/// One thing to be reached. Figures of the honest client are those beside the attack.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    /// At least 99 % of the honest opens succeed.
    OpensOk,
    /// 99 of 100 honest opens take at most so many milliseconds.
    OpenP99Ms(f64),
    /// 99 of 100 honest pings come back within so many milliseconds, and all of them come.
    PingP99Ms(f64),
    /// No honest handshake is lost.
    HandshakesKept,
    /// No lasting session of the honest client ends.
    SessionsKept,
    /// Resident memory grows by at most so many MiB.
    GrowthMib(f64),
    /// Resident memory grows by at most so many times the answer that was asked for, and so many MiB more.
    GrowthOverAnswers {
        /// Copies of the answer.
        times: f64,
        /// MiB beside them.
        spare_mib: f64,
    },
    /// Within the row's time resident memory is at most `factor` times what it was before, and so many MiB more.
    MemoryBack {
        /// Share of the start.
        factor: f64,
        /// MiB beside it.
        spare_mib: f64,
    },
    /// The server uses at most so many seconds of processor time beside the attack.
    ServerCpuS(f64),
    /// The server's own entry and the honest client's are never missing at the discovery.
    EntriesThere,
    /// At least 99 % of the honest posts are stored.
    PostsOk,
    /// The attack counted at most so much of something.
    AtMost(&'static str, f64),
}

/// Targets of attacks on the buffer budget.
pub const OPENS_BESIDE: &[Target] = &[Target::OpensOk, Target::OpenP99Ms(20.0)];
/// How long memory is looked at after an attack where no target asks for more.
pub const SETTLE_SHORT: Duration = Duration::from_secs(2);
/// Share of opens, posts and the like that must succeed.
const SHARE_MIN: f64 = 0.99;
const MIB: f64 = (1_u64 << 20) as f64;

impl Target {
    /// Whether it is about how fast the honest client is served, which a busy machine spoils.
    #[must_use]
    pub fn is_of_time(&self) -> bool {
        matches!(self, Self::OpenP99Ms(_) | Self::PingP99Ms(_))
    }

    /// What is wrong, with the numbers; nothing when the target is met.
    #[must_use]
    pub fn missed(&self, found: &Found) -> Option<String> {
        let during = &found.honest.during;
        let grown_mib = found.rss_max_bytes.saturating_sub(found.rss_start_bytes) as f64 / MIB;
        let at_most = |what: &str, value: f64, limit: f64, unit: &str| {
            (value > limit).then(|| format!("{what} {value:.1} {unit}, at most {limit:.1} wanted"))
        };
        match *self {
            Self::OpensOk => {
                let share = during.opened_share().unwrap_or(0.0);
                (share < SHARE_MIN).then(|| {
                    let all = during.opens_ok + during.opens_failed;
                    format!(
                        "{} of {all} honest opens ({:.1} %), at least 99 % wanted",
                        during.opens_ok,
                        share * 100.0
                    )
                })
            }
            Self::OpenP99Ms(_) if during.opens_ok == 0 => Some("no honest open has a time".into()),
            Self::OpenP99Ms(limit) => at_most("honest open p99", during.open_p99_ms, limit, "ms"),
            Self::PingP99Ms(_) if during.pings_lost > 0 => {
                Some(format!("{} honest pings were not answered", during.pings_lost))
            }
            Self::PingP99Ms(limit) => at_most("honest ping p99", during.ping_p99_ms, limit, "ms"),
            Self::HandshakesKept => (during.handshakes_failed > 0 || during.handshakes_ok == 0).then(|| {
                let all = during.handshakes_ok + during.handshakes_failed;
                format!("{} of {all} honest handshakes were lost", during.handshakes_failed)
            }),
            Self::SessionsKept => (during.sessions_lost > 0)
                .then(|| format!("{} lasting honest sessions ended", during.sessions_lost)),
            Self::GrowthMib(limit) => at_most("memory grew by", grown_mib, limit, "MiB"),
            Self::GrowthOverAnswers { times, spare_mib } => {
                let answer = found.counted("answer_bytes") / MIB;
                at_most("memory grew by", grown_mib, times * answer + spare_mib, "MiB")
            }
            Self::MemoryBack { factor, spare_mib } => {
                let limit = found.rss_start_bytes as f64 / MIB * factor + spare_mib;
                at_most("memory ended at", found.rss_end_bytes as f64 / MIB, limit, "MiB")
            }
            Self::ServerCpuS(limit) => at_most("the server used", found.server_cpu_s, limit, "s"),
            Self::EntriesThere => {
                let seen = during.discovery.clone().unwrap_or_default();
                (seen.looks == 0 || seen.own_entry_gone + seen.client_entry_gone + seen.unanswered > 0).then(
                    || {
                        format!(
                            "in {} looks the server's entry was gone {} times, the honest client's {}, and {} requests \
                             were not answered",
                            seen.looks, seen.own_entry_gone, seen.client_entry_gone, seen.unanswered
                        )
                    },
                )
            }
            Self::PostsOk => {
                let seen = during.discovery.clone().unwrap_or_default();
                let all = (seen.posts_ok + seen.posts_failed) as f64;
                (all == 0.0 || (seen.posts_ok as f64) < all * SHARE_MIN)
                    .then(|| format!("{} of {all} honest posts were stored", seen.posts_ok))
            }
            Self::AtMost(what, limit) => {
                let counted = found.counted(what);
                (counted > limit)
                    .then(|| format!("{counted} {}, at most {limit} wanted", what.replace('_', " ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flood::honest::Figures;

    fn found(change: impl FnOnce(&mut Found)) -> Found {
        let mut found = Found { rss_start_bytes: 40 << 20, rss_max_bytes: 60 << 20, ..Found::default() };
        found.rss_end_bytes = 50 << 20;
        found.honest.during = Figures {
            opens_ok: 99,
            opens_failed: 1,
            open_p99_ms: 3.0,
            ping_p99_ms: 1.0,
            handshakes_ok: 5,
            discovery: Some(super::super::discovery::Figures { looks: 3, posts_ok: 3, ..Default::default() }),
            ..Figures::default()
        };
        found.attack.insert("answer_bytes".into(), 4 << 20);
        change(&mut found);
        found
    }

    const ALL: [Target; 12] = [
        Target::OpensOk,
        Target::OpenP99Ms(20.0),
        Target::PingP99Ms(2.0),
        Target::HandshakesKept,
        Target::SessionsKept,
        Target::GrowthMib(20.0),
        Target::GrowthOverAnswers { times: 2.0, spare_mib: 12.0 },
        Target::MemoryBack { factor: 1.5, spare_mib: 0.0 },
        Target::ServerCpuS(1.0),
        Target::EntriesThere,
        Target::PostsOk,
        Target::AtMost("answer_bytes", (4 << 20) as f64),
    ];

    #[test]
    fn what_is_just_reached_is_met() {
        for target in ALL {
            assert_eq!(target.missed(&found(|_| {})), None, "{target:?}");
        }
    }

    #[test]
    fn each_miss_is_named_by_its_target_alone() {
        let changes: [fn(&mut Found); 12] = [
            |found| found.honest.during.opens_failed = 2,
            |found| found.honest.during.open_p99_ms = 20.1,
            |found| found.honest.during.pings_lost = 1,
            |found| found.honest.during.handshakes_failed = 1,
            |found| found.honest.during.sessions_lost = 1,
            |found| found.rss_max_bytes += 1 << 20,
            |found| _ = found.attack.insert("answer_bytes".into(), 3 << 20),
            |found| found.rss_end_bytes = 61 << 20,
            |found| found.server_cpu_s = 1.5,
            |found| found.honest.during.discovery.as_mut().unwrap().own_entry_gone = 1,
            |found| found.honest.during.discovery.as_mut().unwrap().posts_failed = 1,
            |found| _ = found.attack.insert("answer_bytes".into(), 5 << 20),
        ];
        for (index, change) in changes.into_iter().enumerate() {
            let spoiled = found(change);
            let missed: Vec<usize> =
                (0..ALL.len()).filter(|other| ALL[*other].missed(&spoiled).is_some()).collect();
            // Growth is judged in two ways, here by the same limit.
            let both = if index == 5 { vec![5, 6] } else { vec![index] };
            assert_eq!(missed, both, "{:?}", ALL[index].missed(&spoiled));
        }
    }

    #[test]
    fn an_honest_client_that_did_nothing_has_reached_nothing() {
        let nothing = Found::default();
        for target in [Target::OpensOk, Target::OpenP99Ms(20.0), Target::HandshakesKept, Target::EntriesThere]
        {
            assert!(target.missed(&nothing).is_some(), "{target:?}");
        }
    }
}
