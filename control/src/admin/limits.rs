//! The bounds of the data plane that an operator can run into, with what is used of them.

use ringwire_dataplane::limits;
use ringwire_ipc::socket::Memory;

use super::model::{DataPlaneStatus, Limit, Limits};

/// All of them, as things are.
pub(super) fn list(status: &DataPlaneStatus, memory: Memory) -> Limits {
    let workers = u64::from(status.workers);
    let seconds = |ns: u64| ns / limits::SECOND_NS;
    let share = |percent: usize| memory.budget / 100 * percent as u64;
    let used = Some(memory.held.saturating_add(memory.promised));
    let half_open = Some(status.half_open);
    let connections = Some(status.sessions + status.half_open);
    let rows = [
        ("buffer-memory", used, memory.budget, "bytes", "the stream that has been stuck longest is reset"),
        (
            "buffer-memory-for-new-streams",
            used,
            share(limits::NEW_STREAMS_PERCENT),
            "bytes",
            "new streams are refused",
        ),
        (
            "buffer-memory-for-larger-windows",
            used,
            share(limits::EXTRA_CREDIT_PERCENT),
            "bytes",
            "streams keep the windows they have",
        ),
        (
            "buffer-memory-of-one-session",
            None,
            share(limits::SESSION_PERCENT),
            "bytes",
            "its next stream is refused",
        ),
        ("connections", connections, status.connections_max, "connections", "the next connection is closed"),
        (
            "half-open-connections",
            half_open,
            status.half_open_max,
            "connections",
            "one of those that have not authenticated is closed",
        ),
        (
            "streams-per-session",
            None,
            limits::STREAMS_PER_SESSION_MAX.into(),
            "streams",
            "the next stream is refused",
        ),
        ("stream-window", None, limits::STREAM_WINDOW_MAX.into(), "bytes", "the sender waits"),
        (
            "handshakes-waiting",
            None,
            workers * limits::STRANGER_JOBS_MAX as u64,
            "messages",
            "the next connection is closed",
        ),
        (
            "requests-waiting",
            None,
            workers * limits::ESTABLISHED_JOBS_MAX as u64,
            "requests",
            "the next request is refused",
        ),
        ("handshake-timeout", None, seconds(limits::HANDSHAKE_TIMEOUT_NS), "s", "the connection is closed"),
        ("first-byte-timeout", None, seconds(limits::FIRST_BYTE_TIMEOUT_NS), "s", "the session is closed"),
        ("request-timeout", None, seconds(limits::REQUEST_TIMEOUT_NS), "s", "the stream is closed"),
        ("response-timeout", None, seconds(limits::FORWARD_TIMEOUT_NS), "s", "both streams are closed"),
        (
            "bridge-idle-timeout",
            None,
            seconds(limits::BRIDGE_IDLE_TIMEOUT_NS),
            "s",
            "both streams are closed",
        ),
        (
            "drain-timeout",
            None,
            seconds(limits::DRAIN_TIMEOUT_NS),
            "s",
            "what a closed bridge still held is dropped",
        ),
        (
            "delivery-stall-timeout",
            None,
            seconds(limits::DELIVERY_STALL_TIMEOUT_NS),
            "s",
            "what a finished stream still held is dropped",
        ),
        ("close-timeout", None, seconds(limits::CLOSE_GRACE_NS), "s", "the stream is reset"),
        ("unacknowledged-data-timeout", None, limits::USER_TIMEOUT_MS.into(), "ms", "the session is closed"),
    ];
    let limits = rows.into_iter().map(|(name, used, value, unit, when_reached)| Limit {
        name: name.to_owned(),
        used,
        value,
        unit: unit.to_owned(),
        when_reached: when_reached.to_owned(),
    });
    Limits { limits: limits.collect() }
}
