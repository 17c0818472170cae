//! What a data plane is set up with, and how what is asked for compares with what a living one has.
//!
//! Some settings hold for the life of a data plane; those are its *configuration*, which it keeps as JSON and returns to
//! whoever attaches. The others change while it runs ([`Setting`]); what is in force of them the data plane says when it is asked.
//!
//! At an attach to a living data plane what was named here is checked (the first kind, `difference`) or changed there
//! (the second, `changes`), and what was not named is taken over from it (`adopt`): a successor is started
//! with what was in force, whoever set it.

use std::fmt;
use std::net::SocketAddr;

use ringwire_ipc::message::{HybridPolicy, Setting};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::File;

/// Where a server listens unless told otherwise.
pub const LISTEN_DEFAULT: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8081);

/// Settings as somebody named them, under the names of the data plane's configuration
/// (`process::Configuration` there); what is `None` was not named: a new data plane takes the default, a living one stays
/// as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Addresses to accept sessions on. Port 0 takes a free one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub listen: Option<Vec<SocketAddr>>,
    /// `auto`, `uring` or `poll`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// Threads that forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workers: Option<u16>,
    /// Core that the first of them is kept on; the others follow on those behind it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_core: Option<u16>,
    /// A data plane without control plane ends after this long, in milliseconds; 0: never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub orphan_limit_ms: Option<u64>,
    /// Buffer memory in bytes; 0: by the size of the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_memory: Option<u64>,
    /// `off`, `offer` or `require`. Changes while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hybrid: Option<String>,
    /// Longest wait for company, in microseconds. Changes while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub company_us: Option<u32>,
    /// Longest time for which receiving from one busy session is put off, in microseconds. Changes while it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pause_us: Option<u32>,
    /// Threads of the handshake lane; 0: by the number of cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub handshake_threads: Option<u16>,
    /// Connections that may be in their handshake.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub half_open_max: Option<u32>,
    /// Sessions one address may have; 0: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sessions_per_address: Option<u32>,
    /// Networks whose PROXY headers are believed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy_from: Option<Vec<String>>,
}

/// Names of the settings that change while a data plane runs.
const LIVE: [&str; 3] = ["hybrid", "company_us", "pause_us"];

/// A setting with two values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Its name.
    pub name: String,
    /// Of the living data plane.
    pub theirs: String,
    /// Asked for.
    pub ours: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "its {} is {} where {} is asked for", self.name, self.theirs, self.ours)
    }
}

impl From<&File> for Settings {
    fn from(file: &File) -> Self {
        Self {
            listen: file.listen.clone(),
            driver: file.driver.map(|driver| driver.name().to_owned()),
            workers: file.workers,
            first_core: file.first_core,
            orphan_limit_ms: file.orphan_limit_ms,
            buffer_memory: file.buffer_memory,
            hybrid: file.hybrid.map(|hybrid| hybrid.name().to_owned()),
            company_us: file.company_us,
            pause_us: file.pause_us,
            handshake_threads: file.handshake_threads,
            half_open_max: file.half_open_max,
            sessions_per_address: file.sessions_per_address,
            proxy_from: file
                .proxy_from
                .as_ref()
                .map(|networks| networks.iter().map(ToString::to_string).collect()),
        }
    }
}

impl Settings {
    /// Where to listen.
    pub fn listen(&self) -> &[SocketAddr] {
        self.listen.as_deref().unwrap_or(&[LISTEN_DEFAULT])
    }

    /// What a data plane keeps and returns: every setting that holds for its life, as named or by default.
    pub(super) fn configuration(&self) -> Vec<u8> {
        let resolved = Self {
            listen: Some(self.listen().to_vec()),
            driver: Some(self.driver.clone().unwrap_or_else(|| "auto".to_owned())),
            ..self.clone()
        };
        let mut named = resolved.named();
        named.retain(|name, _| !LIVE.contains(&name.as_str()));
        serde_json::to_vec(&named).unwrap_or_default()
    }

    /// For START: everything that was named, except the addresses, which travel apart.
    pub(crate) fn for_start(&self) -> String {
        let mut named = self.named();
        named.remove("listen");
        Value::Object(named).to_string()
    }

    /// The first setting that was named here and has another value in a living data plane's configuration.
    pub(super) fn difference(&self, configuration: &[u8]) -> Option<Difference> {
        let theirs: Map<String, Value> = serde_json::from_slice(configuration).unwrap_or_default();
        let named = self.named();
        let asked = named.iter().filter(|(name, _)| !LIVE.contains(&name.as_str()));
        asked
            .filter(|(name, ours)| theirs.get(*name) != Some(ours))
            .map(|(name, ours)| Difference {
                name: name.replace('_', "-"),
                theirs: theirs.get(name).map_or_else(|| "the default".to_owned(), text),
                ours: text(ours),
            })
            .next()
    }

    /// The settings that change while a data plane runs, that were named here, and that have another value in a living one.
    /// `in_force` is what that one says of itself. With what it has to be told.
    pub(super) fn changes(&self, in_force: &str) -> (Vec<Difference>, String) {
        let theirs: Map<String, Value> = serde_json::from_str(in_force).unwrap_or_default();
        let mut named = self.named();
        named.retain(|name, ours| LIVE.contains(&name.as_str()) && theirs.get(name) != Some(ours));
        let differences = named.iter().map(|(name, ours)| Difference {
            name: name.clone(),
            theirs: theirs.get(name).map_or_else(|| "unknown".to_owned(), text),
            ours: text(ours),
        });
        (differences.collect(), Value::Object(named).to_string())
    }

    /// These settings, and where one was not named, that of a living data plane: by its configuration, or if it changes while it
    /// runs, what is in force.
    #[must_use]
    pub(super) fn adopt(&self, configuration: &[u8], in_force: &str) -> Self {
        let mut both: Map<String, Value> = serde_json::from_slice(configuration).unwrap_or_default();
        let in_force: Map<String, Value> = serde_json::from_str(in_force).unwrap_or_default();
        both.extend(in_force.into_iter().filter(|(name, _)| LIVE.contains(&name.as_str())));
        both.extend(self.named());
        // What makes no sense here, such as a list because workers differ, is not taken over.
        serde_json::from_value(Value::Object(both)).unwrap_or_else(|_| self.clone())
    }

    /// The same with one of those that change while a data plane runs.
    pub(super) fn keep(&mut self, setting: Setting) {
        match setting {
            Setting::Hybrid(policy) => {
                let name = match policy {
                    HybridPolicy::Off => "off",
                    HybridPolicy::Offer => "offer",
                    HybridPolicy::Require => "require",
                };
                self.hybrid = Some(name.to_owned());
            }
            Setting::CompanyUsMax(us) => self.company_us = Some(us),
            Setting::PauseUsMax(us) => self.pause_us = Some(us),
            Setting::BudgetLen(len) => self.buffer_memory = Some(len),
        }
    }

    fn named(&self) -> Map<String, Value> {
        match serde_json::to_value(self) {
            Ok(Value::Object(named)) => named,
            // A struct of plain fields is an object.
            Ok(_) | Err(_) => Map::new(),
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_named_differs_from_nothing() {
        let listen = Some(vec!["127.0.0.1:1".parse().unwrap(), "[::1]:2".parse().unwrap()]);
        let living = Settings { listen, hybrid: Some("off".into()), ..Settings::default() };
        let configuration = living.configuration();
        assert_eq!(Settings::default().difference(&configuration), None);
        assert_eq!(living.difference(&configuration), None);
        let hybrid = Some("require".into());
        let live = Settings { hybrid, company_us: Some(7), pause_us: Some(8), ..Settings::default() };
        assert_eq!(live.difference(&configuration), None, "changes while it runs");

        let driver = Settings { driver: Some("poll".into()), ..Settings::default() };
        let text = driver.difference(&configuration).unwrap().to_string();
        assert_eq!(text, "its driver is auto where poll is asked for");
        let elsewhere = Settings { listen: Some(vec![LISTEN_DEFAULT]), ..Settings::default() };
        let text = elsewhere.difference(&configuration).unwrap().to_string();
        assert_eq!(text, "its listen is 127.0.0.1:1, [::1]:2 where 127.0.0.1:8081 is asked for");
        assert!(elsewhere.difference(b"nonsense").is_some());
        assert_eq!(elsewhere.difference(&Settings::default().configuration()), None, "the default, named");
    }

    #[test]
    fn what_changes_while_it_runs_is_changed_at_an_attach_and_everything_else_taken_over() {
        let in_force = r#"{"hybrid":"offer","company_us":100,"pause_us":[1,2],"workers":4,"driver":"uring"}"#;
        let ours = Settings { hybrid: Some("require".into()), company_us: Some(100), ..Settings::default() };
        let (differences, told) = ours.changes(in_force);
        let expected = [Difference { name: "hybrid".into(), theirs: "offer".into(), ours: "require".into() }];
        assert_eq!((differences.as_slice(), told.as_str()), (&expected[..], r#"{"hybrid":"require"}"#));
        let named = Settings { pause_us: Some(1), ..Settings::default() };
        assert_eq!(named.changes(in_force).1, r#"{"pause_us":1}"#, "one of its workers has another");
        assert_eq!(Settings::default().changes(in_force), (Vec::new(), "{}".to_owned()));
        assert_eq!(named.changes("").0.len(), 1, "of a build that does not say");

        let living = Settings { workers: Some(4), first_core: Some(1), ..Settings::default() };
        let mut adopted = ours.adopt(&living.configuration(), in_force);
        assert_eq!(adopted, ours, "what makes no sense is not taken over");
        let in_force = r#"{"hybrid":"offer","company_us":100,"pause_us":9,"workers":4,"driver":"uring"}"#;
        adopted = ours.adopt(&living.configuration(), in_force);
        assert_eq!((adopted.hybrid.as_deref(), adopted.pause_us), (Some("require"), Some(9)));
        assert_eq!((adopted.workers, adopted.first_core), (Some(4), Some(1)));
        assert_eq!(adopted.driver.as_deref(), Some("auto"), "as it was asked for, not what came of it");
        assert_eq!(adopted.difference(&living.configuration()), None);
        assert_eq!(adopted.buffer_memory, None);
        for setting in [
            Setting::Hybrid(HybridPolicy::Off),
            Setting::CompanyUsMax(3),
            Setting::PauseUsMax(4),
            Setting::BudgetLen(5),
        ] {
            adopted.keep(setting);
        }
        assert_eq!((adopted.hybrid.as_deref(), adopted.company_us), (Some("off"), Some(3)));
        assert_eq!((adopted.pause_us, adopted.buffer_memory), (Some(4), Some(5)));
    }

    #[test]
    fn a_start_says_what_was_named_and_addresses_apart() {
        let settings = Settings {
            listen: Some(vec![LISTEN_DEFAULT]),
            hybrid: Some("off".into()),
            workers: Some(2),
            ..Settings::default()
        };
        let start: Value = serde_json::from_str(&settings.for_start()).unwrap();
        assert_eq!(start, serde_json::json!({"hybrid": "off", "workers": 2}));
        assert_eq!(settings.listen(), [LISTEN_DEFAULT]);
        assert_eq!(Settings::default().for_start(), "{}");
    }
}
