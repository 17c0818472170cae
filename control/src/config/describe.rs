//! Every setting for people: what `ringwire check --settings` and the documents show.

/// One setting.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct SettingHelp {
    /// Its name in a file; `-` does for `_`, there as on the command line.
    pub name: &'static str,
    /// What it may be.
    pub values: &'static str,
    /// What it is unless named.
    pub default: &'static str,
    /// Whether it changes while the server runs (`ringwire set`).
    pub live: bool,
    /// What it does.
    pub help: &'static str,
}

/// The name of a setting as files have it; who types it may write `-` for `_`.
pub fn setting_name(typed: &str) -> String {
    typed.replace('-', "_")
}

/// In the order in which an operator meets them.
pub const SETTINGS: &[SettingHelp] = &[
    SettingHelp {
        name: "listen",
        values: "address, or a list of them",
        default: "127.0.0.1:8081",
        live: false,
        help: "Where sessions are accepted; IPv4 and IPv6 are listened on apart.",
    },
    SettingHelp {
        name: "public_address",
        values: "host:port",
        default: "the first of listen",
        live: false,
        help: "Where clients reach this server, when a router or proxy is in front of it.",
    },
    SettingHelp {
        name: "discovery",
        values: "URL, or a list of them",
        default: "the embedded discovery",
        live: false,
        help: "Discoveries this server registers with.",
    },
    SettingHelp {
        name: "discovery_listen",
        values: "address",
        default: "127.0.0.1:9090",
        live: false,
        help: "Where the embedded discovery answers; it runs only when no other is named, and on the loopback unless told.",
    },
    SettingHelp {
        name: "http_listen",
        values: "address",
        default: "none",
        live: false,
        help: "Where /health and /metrics answer.",
    },
    SettingHelp {
        name: "max_sessions",
        values: "number",
        default: "2048",
        live: false,
        help: "Sessions advertised as possible; no limit: what limits is the number of descriptors.",
    },
    SettingHelp {
        name: "update_interval_s",
        values: "1 to 3600 seconds",
        default: "60",
        live: false,
        help: "How often the server's entry is renewed.",
    },
    SettingHelp {
        name: "driver",
        values: "auto, uring or poll",
        default: "auto",
        live: false,
        help: "What moves the bytes: io_uring where it is allowed, or one of the two.",
    },
    SettingHelp {
        name: "workers",
        values: "1 to 64",
        default: "1",
        live: false,
        help: "Threads that forward; each has sessions of its own, and clients reach each other across them.",
    },
    SettingHelp {
        name: "first_core",
        values: "0 to 1023",
        default: "wherever the kernel puts them",
        live: false,
        help: "Keep the first worker on this core and the others on those behind it.",
    },
    SettingHelp {
        name: "hybrid",
        values: "off, offer or require",
        default: "offer",
        live: true,
        help: "The post-quantum part of session handshakes; `require` refuses classical peers.",
    },
    SettingHelp {
        name: "company_us",
        values: "0 to 10000 microseconds",
        default: "100",
        live: true,
        help: "Longest wait for more small frames to send together; 0: never wait.",
    },
    SettingHelp {
        name: "pause_us",
        values: "0 to 10000 microseconds",
        default: "3000",
        live: true,
        help: "How long a session may be left unread to take more of its small frames at a time, while many keep a core busy; 0: never.",
    },
    SettingHelp {
        name: "buffer_memory",
        values: "bytes",
        default: "0: half of what machine and control groups leave, at most 8 GiB",
        live: false,
        help: "Address space for buffers of all workers together; resident where used.",
    },
    SettingHelp {
        name: "orphan_limit_s",
        values: "0 to 31536000 seconds, fractions too",
        default: "0: never",
        live: false,
        help: "A data plane without control plane ends by itself after so long.",
    },
    SettingHelp {
        name: "orphan_limit_ms",
        values: "milliseconds",
        default: "0: never",
        live: false,
        help: "The same in milliseconds, which is what `ringwire show settings` shows; one of the two.",
    },
    SettingHelp {
        name: "handshake_threads",
        values: "number",
        default: "0: by the number of cores",
        live: false,
        help: "Threads that verify handshakes and requests beside the workers.",
    },
    SettingHelp {
        name: "half_open_max",
        values: "number",
        default: "8192",
        live: false,
        help: "Connections in their handshake; past it the oldest of the largest address prefix is closed.",
    },
    SettingHelp {
        name: "sessions_per_address",
        values: "number",
        default: "0: no limit",
        live: false,
        help: "Sessions one address (IPv6: one /64) may have; what is over it is closed at once.",
    },
    SettingHelp {
        name: "proxy_from",
        values: "network, or a list of them",
        default: "127.0.0.0/8 and ::1/128",
        live: false,
        help: "Who may tell a client's address in a PROXY header, in front of sessions and of HTTP; from anywhere else it ends the connection.",
    },
    SettingHelp {
        name: "log",
        values: "off, error, warn, info, debug or trace; of a part: warn,ringwire_dataplane=debug",
        default: "warn",
        live: false,
        help: "What is logged; RINGWIRE_LOG is stronger. Empty is the default.",
    },
    SettingHelp {
        name: "log_sessions",
        values: "true or false",
        default: "false",
        live: false,
        help: "A line in the log for every session that opens or ends, with its address, whatever `log` says.",
    },
];
