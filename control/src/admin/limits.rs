//! The bounds of the data plane that an operator can run into, with what is used of them.

use ringwire_dataplane::limits;
use ringwire_ipc::socket::Memory;

use super::model::{DataPlaneStatus, Limit, Limits};

/// All of them, as things are.
pub(super) fn list(status: &DataPlaneStatus, memory: Memory) -> Limits {
    let row = |name: &str, used: Option<u64>, value: u64, unit: &str, when_reached: &str| Limit {
        name: name.to_owned(),
        used,
        value,
        unit: unit.to_owned(),
        when_reached: when_reached.to_owned(),
    };
    let seconds = |ns: u64| ns / limits::SECOND_NS;
    let share = |percent: usize| memory.budget / 100 * percent as u64;
    let used = memory.held.saturating_add(memory.promised);
    Limits {
        limits: vec![
            row(
                "buffer-memory",
                Some(used),
                memory.budget,
                "bytes",
                "the stream that has been stuck longest is reset",
            ),
            row(
                "buffer-memory-for-new-streams",
                Some(used),
                share(limits::NEW_STREAMS_PERCENT),
                "bytes",
                "new streams are refused",
            ),
            row(
                "buffer-memory-for-larger-windows",
                Some(used),
                share(limits::EXTRA_CREDIT_PERCENT),
                "bytes",
                "streams keep the windows they have",
            ),
            row(
                "half-open-connections",
                Some(status.half_open),
                status.half_open_max,
                "connections",
                "one of those that have not authenticated is closed",
            ),
            row(
                "streams-per-session",
                None,
                limits::STREAMS_PER_SESSION_MAX.into(),
                "streams",
                "the next stream is refused",
            ),
            row("stream-window", None, limits::STREAM_WINDOW_MAX.into(), "bytes", "the sender waits"),
            row(
                "handshake-timeout",
                None,
                seconds(limits::HANDSHAKE_TIMEOUT_NS),
                "s",
                "the connection is closed",
            ),
            row("request-timeout", None, seconds(limits::REQUEST_TIMEOUT_NS), "s", "the stream is closed"),
            row(
                "response-timeout",
                None,
                seconds(limits::FORWARD_TIMEOUT_NS),
                "s",
                "both streams are closed",
            ),
            row(
                "bridge-idle-timeout",
                None,
                seconds(limits::BRIDGE_IDLE_TIMEOUT_NS),
                "s",
                "both streams are closed",
            ),
            row(
                "unacknowledged-data-timeout",
                None,
                limits::USER_TIMEOUT_MS.into(),
                "ms",
                "the session is closed",
            ),
        ],
    }
}
