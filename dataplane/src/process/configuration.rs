//! The settings that START carries: names and values as JSON, read once and checked as a whole.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use ringwire_ipc::message::{HybridPolicy, Setting};
use ringwire_proto::identity::SecretKey;
use ringwire_proto::noise::Hybrid;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use socket2::Socket;

use crate::choice::DriverChoice;
use crate::limits;
use crate::mail::{LiveSettings, Report};
use crate::server::ServerConfig;
use crate::worker::default_proxy_from;

/// What can be set of a data plane when it starts. Names are those of the JSON object; a missing one has its default.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Configuration {
    /// What moves the bytes: `auto`, `uring` or `poll`.
    pub driver: String,
    /// Workers, one per core.
    pub workers: usize,
    /// Core that the first of them is kept on; the others follow on those behind it. None: wherever the kernel puts them.
    pub first_core: Option<usize>,
    /// The post-quantum part of handshakes: `off`, `offer` or `require`.
    pub hybrid: String,
    /// Longest wait for company, in microseconds; 0: never.
    pub company_us: u32,
    /// Longest time for which receiving from one busy session of many is put off, in microseconds; 0: never.
    pub pause_us: u32,
    /// Buffer memory of all workers in bytes; 0: as [`crate::memory::default_buffers`] says.
    pub buffer_memory: usize,
    /// End by itself after so many milliseconds without a control plane; 0: never.
    pub orphan_limit_ms: u64,
    /// Threads that verify handshakes and signatures for all workers; 0: as [`crate::lane::default_threads`] says.
    pub handshake_threads: usize,
    /// Connections that may be in their handshake; past it the oldest of the largest address prefix is closed.
    pub half_open_max: usize,
    /// Sessions one address (IPv6: one /64) may have; 0: no limit.
    pub sessions_per_address: u32,
    /// Networks whose PROXY headers are believed.
    pub proxy_from: Vec<String>,
}

/// Threads of the handshake lane at most: more than any machine has use for.
const HANDSHAKE_THREADS_MAX: usize = 64;

impl Default for Configuration {
    fn default() -> Self {
        Self {
            driver: DriverChoice::Auto.to_string(),
            workers: 1,
            first_core: None,
            hybrid: "offer".into(),
            company_us: crate::worker::Settings::default().company_us_max,
            pause_us: limits::PAUSE_US_MAX,
            buffer_memory: 0,
            orphan_limit_ms: 0,
            handshake_threads: 0,
            half_open_max: limits::HALF_OPEN_MAX,
            sessions_per_address: 0,
            proxy_from: default_proxy_from().iter().map(ToString::to_string).collect(),
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

    /// What is in force, by the settings it was started with and what the workers say of those that have changed since. Where
    /// they differ (one of them was told and another did not answer), a list with each one's.
    pub(super) fn in_force(&self, report: &Report) -> Map<String, Value> {
        // A struct of plain fields is an object.
        let Ok(Value::Object(mut settings)) = serde_json::to_value(self) else { return Map::new() };
        let mut live = |name: &str, value: fn(&LiveSettings) -> Value| {
            let mut values: Vec<Value> = report.live.iter().map(value).collect();
            if values.windows(2).all(|two| two[0] == two[1]) {
                values.truncate(1);
            }
            let value = if values.len() == 1 { values.pop() } else { Some(Value::Array(values)) };
            settings.insert(name.to_owned(), value.unwrap_or_default());
        };
        live("hybrid", |live| hybrid_name(live.hybrid).into());
        live("company_us", |live| live.company_us.into());
        live("pause_us", |live| live.pause_us.into());
        settings.insert("buffer_memory".to_owned(), report.budget_len.into());
        settings
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
        config.hybrid = hybrid(&self.hybrid)?;
        if !(1..=limits::WORKERS_MAX).contains(&self.workers) {
            return Err(wrong("workers", &self.workers, "1 to 64, at most one for each core"));
        }
        if let Some(first) = self.first_core
            && !are_ours(first, self.workers)
        {
            return Err(wrong(
                "first_core",
                &first,
                "a core that this process may run on (`taskset -p $$`), with one behind it for each further worker",
            ));
        }
        config.core = self.first_core;
        config.company_us_max = microseconds("company_us", self.company_us)?;
        config.pause_us_max = microseconds("pause_us", self.pause_us)?;
        config.workers = self.workers;
        config.buffer_memory_len = self.buffer_memory;
        if self.handshake_threads > HANDSHAKE_THREADS_MAX {
            return Err(wrong("handshake_threads", &self.handshake_threads, "0 (by the machine) to 64"));
        }
        config.handshake_threads = self.handshake_threads;
        if self.half_open_max == 0 {
            return Err(wrong("half_open_max", &self.half_open_max, "1 or more"));
        }
        config.half_open_max = self.half_open_max;
        config.sessions_per_address = (self.sessions_per_address > 0).then_some(self.sessions_per_address);
        config.proxy_from = self
            .proxy_from
            .iter()
            .map(|network| parse_network(network).ok_or_else(|| wrong("proxy_from", network, NETWORKS)))
            .collect::<Result<_, _>>()?;
        Ok(config)
    }
}

/// The settings that change while workers run, each if it is to change. What else there is, is refused as unknown.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Changes {
    hybrid: Option<String>,
    company_us: Option<u32>,
    pause_us: Option<u32>,
}

/// Reads what a CHANGE carries.
///
/// # Errors
/// [`ConfigurationError`]: nothing is to be changed.
pub(super) fn changes(text: &str) -> Result<Vec<Setting>, ConfigurationError> {
    let changes: Changes = serde_json::from_str(text)?;
    let policy = |text: String| {
        Ok(match hybrid(&text)? {
            Hybrid::Off => HybridPolicy::Off,
            Hybrid::Offer => HybridPolicy::Offer,
            Hybrid::Require => HybridPolicy::Require,
        })
    };
    let hybrid = changes.hybrid.map(|text| policy(text).map(Setting::Hybrid));
    let company = changes.company_us.map(|us| microseconds("company_us", us).map(Setting::CompanyUsMax));
    let pause = changes.pause_us.map(|us| microseconds("pause_us", us).map(Setting::PauseUsMax));
    [hybrid, company, pause].into_iter().flatten().collect()
}

fn hybrid(text: &str) -> Result<Hybrid, ConfigurationError> {
    match text {
        "off" => Ok(Hybrid::Off),
        "offer" => Ok(Hybrid::Offer),
        "require" => Ok(Hybrid::Require),
        other => Err(ConfigurationError::Value {
            name: "hybrid",
            value: other.to_owned(),
            allowed: "off, offer or require",
        }),
    }
}

fn hybrid_name(hybrid: Hybrid) -> &'static str {
    match hybrid {
        Hybrid::Off => "off",
        Hybrid::Offer => "offer",
        Hybrid::Require => "require",
    }
}

fn microseconds(name: &'static str, value: u32) -> Result<u32, ConfigurationError> {
    if value <= limits::WAIT_US_MAX {
        return Ok(value);
    }
    let allowed = "0 (never) to 10000 microseconds";
    Err(ConfigurationError::Value { name, value: value.to_string(), allowed })
}

/// Whether this process may run on so many cores from the first one on.
fn are_ours(first: usize, count: usize) -> bool {
    let Ok(ours) = rustix::thread::sched_getaffinity(None) else { return false };
    let cores = first..first.saturating_add(count);
    cores.end <= rustix::thread::CpuSet::MAX_CPU && cores.clone().all(|core| ours.is_set(core))
}

/// What `proxy_from` may hold.
const NETWORKS: &str = "networks like 10.0.0.0/8 or 2001:db8::/32, or single addresses";

/// A network, or an address alone.
fn parse_network(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| Some(IpNet::from(text.parse::<IpAddr>().ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::entropy::OsEntropy;

    #[test]
    fn settings_survive_and_wrong_ones_name_themselves() {
        let given = Configuration {
            hybrid: "require".into(),
            company_us: 7,
            pause_us: 8,
            ..Configuration::default()
        };
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
            (Configuration { company_us: 10_001, ..default() }, "company_us"),
            (Configuration { pause_us: 2_000_000, ..default() }, "pause_us"),
            (Configuration { workers: limits::WORKERS_MAX + 1, ..default() }, "workers"),
            (Configuration { first_core: Some(1 << 20), ..default() }, "first_core"),
            (Configuration { first_core: Some(usize::MAX), ..default() }, "first_core"),
            (Configuration { handshake_threads: 1000, ..default() }, "handshake_threads"),
            (Configuration { half_open_max: 0, ..default() }, "half_open_max"),
            (Configuration { proxy_from: vec!["10.0.0.0/40".into()], ..default() }, "proxy_from"),
        ] {
            let error = server(configuration).unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        }
        let config = server(given).unwrap();
        assert_eq!((config.hybrid, config.company_us_max, config.pause_us_max), (Hybrid::Require, 7, 8));
        assert_eq!(config.proxy_from, default_proxy_from().to_vec());
        assert_eq!((config.sessions_per_address, config.workers), (None, 1));
        let proxy_from = vec!["192.0.2.7".into(), "2001:db8::/32".into()];
        let config =
            server(Configuration { proxy_from, sessions_per_address: 15, half_open_max: 9, ..default() });
        let config = config.unwrap();
        assert_eq!(config.proxy_from[0].to_string(), "192.0.2.7/32");
        assert_eq!((config.sessions_per_address, config.half_open_max), (Some(15), 9));
    }

    #[test]
    fn changes_are_read_whole_or_not_at_all() {
        let all = r#"{"hybrid":"require","company_us":0,"pause_us":10000}"#;
        let expected =
            [Setting::Hybrid(HybridPolicy::Require), Setting::CompanyUsMax(0), Setting::PauseUsMax(10_000)];
        assert_eq!(changes(all).unwrap(), expected);
        assert_eq!(changes("{}").unwrap(), []);
        for (text, word) in [
            (r#"{"hybrid":"maybe","pause_us":1}"#, "off, offer or require"),
            (r#"{"pause_us":10001}"#, "pause_us"),
            (r#"{"workers":2}"#, "workers"),
            ("[", "read"),
        ] {
            let error = changes(text).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn what_is_in_force_is_what_the_workers_say() {
        let started = Configuration { workers: 2, ..Configuration::default() };
        let live = LiveSettings { hybrid: Hybrid::Require, company_us: 7, pause_us: 8 };
        let report = |live: Vec<LiveSettings>| Report { live, budget_len: 9, ..Report::default() };
        let settings = started.in_force(&report(vec![live, live]));
        let expected = serde_json::json!({"hybrid": "require", "company_us": 7, "pause_us": 8, "workers": 2});
        for (name, value) in expected.as_object().unwrap() {
            assert_eq!(&settings[name], value);
        }
        assert_eq!(settings["buffer_memory"], 9);
        let settings = started.in_force(&report(vec![live, LiveSettings { pause_us: 0, ..live }]));
        assert_eq!((&settings["pause_us"], &settings["company_us"]), (&serde_json::json!([8, 0]), &7.into()));
    }
}
