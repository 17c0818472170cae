//! The relays under test. Each is a process of its own: this program, started again with a hidden subcommand.
//!
//! In: a core, and the sink's listeners for the reference relays. Out: one line of JSON ([`Ready`]) on standard output
//! once it listens; then it relays until it is killed or its standard input ends. A reference relay listens once for
//! each sink, connects to that sink for each connection it accepts, and copies both ways. Whatever a relay prints on
//! standard error makes its row invalid.

pub mod child;
pub mod epoll_copy;
pub mod haproxy;
pub mod ringwire;
pub mod splice;
pub mod tokio_copy;
pub mod uring_copy;

use serde::{Deserialize, Serialize};
use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};

/// One relay of the comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relay {
    /// Our server, dmsg sessions on both sides.
    Ringwire,
    /// The same on its poll driver, for hosts that forbid io_uring.
    RingwirePoll,
    /// The same with two workers, both ends of each session pair on one of them.
    TwoTogether,
    /// The same with two workers, the ends of each session pair on different ones.
    TwoApart,
    /// tokio, current-thread runtime, `copy_bidirectional` with two buffers of 64 KiB for each connection.
    Tokio64k,
    /// The same with two buffers of 256 KiB.
    Tokio256k,
    /// tokio-uring, one buffer of 64 KiB for each direction.
    TokioUring,
    /// epoll, read(2) and write(2), one buffer of 64 KiB for each direction: the plainest loop there is.
    Epoll,
    /// epoll and splice(2) through a pipe for each direction.
    Splice,
    /// HAProxy in TCP mode, one thread, as its package sets it; only where it is installed.
    Haproxy,
}

impl Relay {
    /// All of them, in the order of the rows.
    pub const ALL: [Self; 10] = [
        Self::Ringwire,
        Self::RingwirePoll,
        Self::TwoTogether,
        Self::TwoApart,
        Self::Tokio64k,
        Self::Tokio256k,
        Self::TokioUring,
        Self::Epoll,
        Self::Splice,
        Self::Haproxy,
    ];

    /// Name in rows and patterns.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Ringwire => "ringwire",
            Self::RingwirePoll => "ringwire-poll",
            Self::TwoTogether => "ringwire-2-together",
            Self::TwoApart => "ringwire-2-apart",
            Self::Tokio64k => "tokio64k",
            Self::Tokio256k => "tokio256k",
            Self::TokioUring => "tokio-uring",
            Self::Epoll => "epoll",
            Self::Splice => "splice",
            Self::Haproxy => "haproxy",
        }
    }

    /// Whether it is our server, on whichever driver: sessions on both sides, and counters at the end.
    #[must_use]
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Ringwire | Self::RingwirePoll | Self::TwoTogether | Self::TwoApart)
    }

    /// Whether the ends of a session pair are to be on different workers; none where that is not asked.
    #[must_use]
    pub fn apart(self) -> Option<bool> {
        match self {
            Self::TwoTogether => Some(false),
            Self::TwoApart => Some(true),
            _ => None,
        }
    }
}

/// What a relay says when it listens.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Where to connect; one for each sink of a reference relay, one in all of ours.
    pub addresses: Vec<SocketAddr>,
    /// Our server's public key, 66 hex digits.
    pub public_key: Option<String>,
    /// What moves the bytes, for the header of the report.
    pub driver: String,
    /// Longest wait for company of our server's worker in microseconds.
    pub company_us_max: Option<u32>,
}

impl Ready {
    /// Prints the line.
    ///
    /// # Errors
    /// When standard output is closed.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, self)?;
        out.write_all(b"\n")?;
        Ok(out.flush()?)
    }
}

/// A listener on a free port of the loopback interface with a backlog for all connections of the largest workload.
///
/// # Errors
/// The kernel's.
pub fn loopback_listener() -> std::io::Result<TcpListener> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
}
