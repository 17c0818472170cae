//! The settings that START carries: names and values as JSON, read once and checked as a whole.

use std::time::Duration;

use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use serde::{Deserialize, Serialize};
use socket2::Socket;

use crate::choice::DriverChoice;
use crate::server::ServerConfig;

/// What can be set of a data plane when it starts. Names are those of the JSON object; a missing one has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Configuration {
    /// What moves the bytes: `auto`, `uring` or `poll`.
    pub driver: String,
    /// Workers, one per core.
    pub workers: usize,
    /// The post-quantum part of handshakes: `off`, `offer` or `require`.
    pub hybrid: String,
    /// Longest wait for company, in microseconds; 0: never.
    pub company_us: u32,
    /// Buffer memory in bytes; 0: half of the machine's, at most [`crate::limits::BUFFER_MEMORY_LEN`].
    pub buffer_memory: usize,
    /// End by itself after so many milliseconds without a control plane; 0: never.
    pub orphan_limit_ms: u64,
}

impl Default for Configuration {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto.to_string(),
            workers: 1,
            hybrid: "offer".into(),
            company_us: crate::worker::Settings::default().company_us_max,
            buffer_memory: 0,
            orphan_limit_ms: 0,
        }
    }
}

/// Settings that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// The text is no object of these settings.
    #[error("the settings cannot be read: {0}")]
    Unreadable(#[from] serde_json::Error),
    /// A setting has a value that is none of its values.
    #[error("{name} is `{value}`: use {allowed}")]
    Value {
        /// Which setting.
        name: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
}

impl Configuration {
    /// Reads what a START carries.
    ///
    /// # Errors
    /// [`ConfigurationError::Unreadable`]: it is no JSON, or names a setting that this build does not have.
    pub fn from_json(text: &str) -> Result<Self, ConfigurationError> {
        Ok(serde_json::from_str(text)?)
    }

    /// As the JSON that a START carries.
    pub fn to_json(&self) -> String {
        // Plain fields with text keys: there is nothing that could fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// How long the data plane may be without a control plane; `None`: for ever.
    pub fn orphan_limit(&self) -> Option<Duration> {
        (self.orphan_limit_ms > 0).then(|| Duration::from_millis(self.orphan_limit_ms))
    }

    /// What the workers are started with.
    ///
    /// # Errors
    /// [`ConfigurationError::Value`]: which setting is wrong, and what it may be.
    pub fn server(
        &self,
        secret_key: SecretKey,
        listen: Vec<std::net::SocketAddr>,
        listeners: Vec<Socket>,
    ) -> Result<ServerConfig, ConfigurationError> {
        let wrong = |name, value: &dyn ToString, allowed| ConfigurationError::Value {
            name,
            value: value.to_string(),
            allowed,
        };
        let mut config = ServerConfig::new(secret_key, listen);
        config.listeners = listeners;
        config.driver =
            self.driver.parse().map_err(|_| wrong("driver", &self.driver, "auto, uring or poll"))?;
        config.hybrid = match self.hybrid.as_str() {
            "off" => Hybrid::Off,
            "offer" => Hybrid::Offer,
            "require" => Hybrid::Require,
            _ => return Err(wrong("hybrid", &self.hybrid, "off, offer or require")),
        };
        if self.workers != 1 {
            return Err(wrong("workers", &self.workers, "1: this build serves with one worker"));
        }
        config.company_us_max = self.company_us;
        if self.buffer_memory > 0 {
            config.buffer_memory_len = self.buffer_memory;
        }
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::OsEntropy;

    #[test]
    fn settings_survive_and_wrong_ones_name_themselves() {
        let given = Configuration { hybrid: "require".into(), company_us: 7, ..Configuration::default() };
        assert_eq!(Configuration::from_json(&given.to_json()).unwrap(), given);
        assert_eq!(Configuration::from_json("{}").unwrap(), Configuration::default());
        let error = Configuration::from_json(r#"{"hybird":"off"}"#).unwrap_err().to_string();
        assert!(error.contains("hybird") && error.contains("hybrid"), "{error}");
        let server = |configuration: Configuration| {
            configuration.server(SecretKey::generate(&mut OsEntropy), Vec::new(), Vec::new())
        };
        let default = Configuration::default;
        for (configuration, name) in [
            (Configuration { driver: "dpdk".into(), ..default() }, "driver"),
            (Configuration { hybrid: "maybe".into(), ..default() }, "hybrid"),
            (Configuration { workers: 0, ..default() }, "workers"),
        ] {
            let error = server(configuration).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
        let config = server(given).unwrap();
        assert_eq!((config.hybrid, config.company_us_max), (Hybrid::Require, 7));
    }
}
