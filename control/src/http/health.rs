//! The answer of `/health`, which all services share (services 1.3).

use axum::http::StatusCode;
use serde::{Deserialize, Serialize};

use super::Reply;

/// What the build did not set.
const UNKNOWN: &str = "unknown";

/// How a service is. Members that are empty are left out, unknown ones are passed over.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Health {
    /// For instance `dmsg-discovery` or `dmsg-server`; empty for programs of 2024.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub service_name: String,
    /// What was built, and from what.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub build_info: Option<BuildInfo>,
    /// Start of the process, RFC 3339.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started_at: String,
    /// The service's key, hex.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub public_key: String,
    /// `key:port` where it is reached over dmsg.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dmsg_address: String,
    /// The discovery it is registered at.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub dmsg_discovery: String,
    /// Keys of the servers it has sessions with, hex.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dmsg_servers: Vec<String>,
    /// Why nobody should be sent to it now; empty: it is ready.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub not_ready: String,
}

impl Health {
    /// As the answer to whoever asks whether it is ready: 200, or 503 with the reason in it.
    pub fn readiness(&self) -> (StatusCode, Reply) {
        let status = if self.not_ready.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
        (status, Reply::json(self))
    }
}

/// Version, commit and date of a build; `unknown` where the build did not say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildInfo {
    /// Version number.
    pub version: String,
    /// Commit of the source.
    pub commit: String,
    /// Date of the build.
    pub date: String,
}

impl BuildInfo {
    /// Of the program that runs. The commit is that of the sources, as `build.rs` found it; the date is that of the environment it
    /// was built in.
    pub fn of_this_program() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: env!("RINGWIRE_BUILD_COMMIT").to_owned(),
            date: option_env!("RINGWIRE_BUILD_DATE").unwrap_or(UNKNOWN).to_owned(),
        }
    }
}

impl Default for BuildInfo {
    fn default() -> Self {
        Self { version: UNKNOWN.to_owned(), commit: UNKNOWN.to_owned(), date: UNKNOWN.to_owned() }
    }
}
