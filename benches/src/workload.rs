//! The loads of the comparison, as one table.
//!
//! In: nothing. Out: [`Workload`]s, selected by patterns of the command line. A new row of the report is a new entry
//! here.

use crate::frames::Shape;
use crate::relay::Relay;

/// One load, moved through every relay.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    /// Name in rows and patterns.
    pub name: &'static str,
    /// What it is, for the legend.
    pub words: &'static str,
    /// Bulk, if any.
    pub bulk: Option<Bulk>,
    /// Where the ping is, if there is one.
    pub ping: Ping,
    /// The relay has to be busy, or the row says nothing about its cost under load.
    pub saturates_relay: bool,
}

/// The bulk part of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bulk {
    /// Frames and writes.
    pub shape: Shape,
    /// Session pairs; for a reference relay, pairs of connections.
    pub pairs: usize,
    /// Streams on each pair; a reference relay sees the same frames without knowing.
    pub streams: usize,
    /// Bytes for each second; as fast as possible when absent.
    pub bytes_per_second: Option<u64>,
}

/// Where the ping of a load is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ping {
    /// There is none.
    None,
    /// A process and a session pair of its own.
    OwnSession,
    /// A stream beside the bulk ones. A reference relay, which has no streams, carries it on a connection of its own;
    /// in both cases the generator's loop asks and answers.
    SameSession,
}

const fn bulk(shape: Shape, pairs: usize, streams: usize, bytes_per_second: Option<u64>) -> Option<Bulk> {
    Some(Bulk { shape, pairs, streams, bytes_per_second })
}

/// All loads, in the order of the rows.
pub const ALL: [Workload; 12] = [
    Workload {
        name: "bulk64k-1x8",
        words: "64 KiB frames, one session pair, 8 streams",
        bulk: bulk(Shape::Bulk64k, 1, 8, None),
        ping: Ping::None,
        saturates_relay: true,
    },
    Workload {
        name: "bulk64k-8x1",
        words: "64 KiB frames, 8 session pairs, one stream each",
        bulk: bulk(Shape::Bulk64k, 8, 1, None),
        ping: Ping::None,
        saturates_relay: true,
    },
    Workload {
        name: "goframes-1x8",
        words: "12 B + 4096 B in two writes, one session pair, 8 streams, as fast as the generator can",
        bulk: bulk(Shape::GoClient, 1, 8, None),
        ping: Ping::None,
        saturates_relay: false,
    },
    Workload {
        name: "goframes-64x1",
        words: "12 B + 4096 B in two writes, 64 session pairs, one stream each",
        bulk: bulk(Shape::GoClient, 64, 1, None),
        ping: Ping::None,
        saturates_relay: false,
    },
    Workload {
        name: "goframes-paced",
        words: "12 B + 4096 B in two writes, one session pair, 8 streams, 0.5 Gbit/s",
        bulk: bulk(Shape::GoClient, 1, 8, Some(62_500_000)),
        ping: Ping::None,
        saturates_relay: false,
    },
    Workload {
        name: "ping-idle",
        words: "64 B ping-pong, nothing else",
        bulk: None,
        ping: Ping::OwnSession,
        saturates_relay: false,
    },
    Workload {
        name: "ping-paced",
        words: "64 B ping-pong beside 30 MB/s of 12 B + 4096 B on another session pair",
        bulk: bulk(Shape::GoClient, 1, 1, Some(30_000_000)),
        ping: Ping::OwnSession,
        saturates_relay: false,
    },
    Workload {
        name: "ping-gopaced",
        words: "64 B ping-pong beside 12 B + 4096 B in two writes, 8 streams, 0.5 Gbit/s, on another session pair",
        bulk: bulk(Shape::GoClient, 1, 8, Some(62_500_000)),
        ping: Ping::OwnSession,
        saturates_relay: false,
    },
    Workload {
        name: "ping-bulk",
        words: "64 B ping-pong beside unthrottled 64 KiB frames on another session pair, one stream",
        bulk: bulk(Shape::Bulk64k, 1, 1, None),
        ping: Ping::OwnSession,
        saturates_relay: false,
    },
    Workload {
        name: "ping-same-session",
        words: "64 B ping-pong on the session of an unthrottled stream of 64 KiB frames (reference relays: on a connection of its own)",
        bulk: bulk(Shape::Bulk64k, 1, 1, None),
        ping: Ping::SameSession,
        saturates_relay: false,
    },
    Workload {
        name: "ping-go64",
        words: "64 B ping-pong beside unthrottled 12 B + 4096 B in two writes on 64 other session pairs",
        bulk: bulk(Shape::GoClient, 64, 1, None),
        ping: Ping::OwnSession,
        saturates_relay: false,
    },
    Workload {
        name: "ping-go64-same-session",
        words: "the same on one of these session pairs (reference relays: on a connection of its own)",
        bulk: bulk(Shape::GoClient, 64, 1, None),
        ping: Ping::SameSession,
        saturates_relay: false,
    },
];

impl Workload {
    /// Whether this load is moved through `relay`. The poll driver, its yardstick and two workers are compared on bulk; the further
    /// references where they say something new. Every load through every relay would take twice the time.
    #[must_use]
    pub fn concerns(&self, relay: Relay) -> bool {
        match relay {
            Relay::Ringwire | Relay::Tokio64k | Relay::Tokio256k | Relay::Splice => true,
            Relay::RingwirePoll | Relay::Epoll | Relay::TwoTogether | Relay::TwoApart => self.saturates_relay,
            Relay::TokioUring | Relay::Haproxy => {
                self.bulk.is_none_or(|bulk| bulk.bytes_per_second.is_none() && self.ping == Ping::None)
            }
        }
    }
}

/// The loads and relays that the patterns leave. A pattern is a part of a name; one that names loads limits the loads,
/// one that names relays the relays, and without any of a kind all of that kind stay.
///
/// # Errors
/// A pattern that names neither.
pub fn select(patterns: &[String]) -> anyhow::Result<(Vec<Workload>, Vec<Relay>)> {
    for pattern in patterns {
        let known = ALL.iter().any(|load| load.name.contains(pattern.as_str()))
            || Relay::ALL.iter().any(|relay| relay.name().contains(pattern.as_str()));
        if !known {
            anyhow::bail!("no workload and no relay has {pattern:?} in its name");
        }
    }
    let matching = |name: &str| patterns.iter().any(|pattern| name.contains(pattern.as_str()));
    let mut loads: Vec<_> = ALL.into_iter().filter(|load| matching(load.name)).collect();
    let mut relays: Vec<_> = Relay::ALL.into_iter().filter(|relay| matching(relay.name())).collect();
    if loads.is_empty() {
        loads = ALL.to_vec();
    }
    if relays.is_empty() {
        relays = Relay::ALL.to_vec();
    }
    Ok((loads, relays))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_select_loads_and_relays() {
        let names = |patterns: &[&str]| {
            let patterns: Vec<String> = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
            let (loads, relays) = select(&patterns).unwrap();
            (loads.len(), relays.iter().map(|relay| relay.name()).collect::<Vec<_>>())
        };
        let all = [
            "ringwire",
            "ringwire-poll",
            "ringwire-2-together",
            "ringwire-2-apart",
            "tokio64k",
            "tokio256k",
            "tokio-uring",
            "epoll",
            "splice",
            "haproxy",
        ];
        assert_eq!(names(&[]), (12, all.to_vec()));
        assert_eq!(names(&["bulk64k", "tokio"]), (2, vec!["tokio64k", "tokio256k", "tokio-uring"]));
        assert_eq!(
            names(&["splice", "ringwire"]),
            (12, all[..4].iter().chain(&["splice"]).copied().collect())
        );
        assert!(select(&["nginx".into()]).is_err());
    }

    #[test]
    fn each_load_concerns_us_and_a_reference() {
        for workload in &ALL {
            let concerned: Vec<_> =
                Relay::ALL.into_iter().filter(|relay| workload.concerns(*relay)).collect();
            assert!(concerned.contains(&Relay::Ringwire) && concerned.contains(&Relay::Tokio64k));
            let poll = concerned.contains(&Relay::RingwirePoll);
            assert_eq!(poll, concerned.contains(&Relay::Epoll), "{} is compared or it is not", workload.name);
        }
        assert!(ALL.iter().any(|workload| workload.concerns(Relay::RingwirePoll)));
    }
}
