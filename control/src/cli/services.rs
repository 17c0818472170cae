//! The flags of what runs beside the data plane.

use std::net::SocketAddr;

use clap::Args;

use crate::config::{File, HostPort, Url};

/// Flags of discovery, registration and `/metrics`; each has the name of its setting in a file.
#[derive(Debug, Clone, Default, Args)]
pub(super) struct ServiceArguments {
    /// Discovery to register at, such as http://dmsgd.example; may be given several times [default: the embedded one]
    #[arg(long, value_name = "URL", conflicts_with = "discovery_listen", help_heading = "Discovery")]
    discovery: Vec<Url>,
    /// Where the embedded discovery listens [default: port 9090 on the loopback]
    #[arg(long, value_name = "ADDRESS", help_heading = "Discovery")]
    discovery_listen: Option<SocketAddr>,
    /// Address that clients use, HOST:PORT, where it is not one this process listens on [default: the first --listen]
    #[arg(long, value_name = "HOST:PORT", help_heading = "Discovery")]
    public_address: Option<HostPort>,
    /// Sessions advertised as possible; more are still accepted [default: 2048]
    #[arg(long, value_name = "N", help_heading = "Discovery")]
    max_sessions: Option<u32>,
    /// How often the entry is renewed, in seconds [default: 60]
    #[arg(
        long,
        value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=3600),
        help_heading = "Discovery"
    )]
    update_interval_s: Option<u32>,
    /// Address to answer /metrics and /health on [default: none]
    #[arg(long, value_name = "ADDRESS", help_heading = "Metrics and health")]
    http_listen: Option<SocketAddr>,
}

impl ServiceArguments {
    /// What was given, as settings.
    pub(super) fn settings(&self) -> File {
        File {
            discovery: (!self.discovery.is_empty()).then(|| self.discovery.clone()),
            discovery_listen: self.discovery_listen,
            public_address: self.public_address.clone(),
            max_sessions: self.max_sessions,
            update_interval_s: self.update_interval_s,
            http_listen: self.http_listen,
            ..File::default()
        }
    }
}
