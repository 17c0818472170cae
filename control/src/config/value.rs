//! Types of settings: each reads itself from text and says what would be right.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};

use super::LogFilter;

/// Longest time that can be told in seconds: a year.
pub(crate) const SECONDS_MAX: f64 = 31_536_000.0;

/// Seconds, with a fraction or without, as milliseconds.
pub(super) fn seconds_as_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a number of seconds from 0 to 31536000")]
    enum Seconds {
        Whole(u32),
        Broken(f64),
    }
    let seconds = match Seconds::deserialize(deserializer)? {
        Seconds::Whole(seconds) => f64::from(seconds),
        Seconds::Broken(seconds) => seconds,
    };
    if !(0.0..=SECONDS_MAX).contains(&seconds) {
        return Err(D::Error::custom(format!("expected seconds from 0 to {SECONDS_MAX}, not {seconds}")));
    }
    Ok(Some(Duration::from_secs_f64(seconds).as_millis() as u64))
}

/// What moves the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Driver {
    /// io_uring where it is allowed.
    Auto,
    /// io_uring or nothing.
    Uring,
    /// epoll.
    Poll,
}

impl Driver {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Poll => "poll",
        }
    }
}

/// The post-quantum part of session handshakes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HybridSetting {
    /// Never.
    Off,
    /// With peers that can.
    Offer,
    /// With all, or refused.
    Require,
}

impl HybridSetting {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Offer => "offer",
            Self::Require => "require",
        }
    }
}

/// A host, by name or number, with its port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort(String);

impl HostPort {
    /// The host, without the brackets of IPv6.
    pub fn host(&self) -> &str {
        let host = self.0.rsplit_once(':').map_or(self.0.as_str(), |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

impl FromStr for HostPort {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            format!(
                "`{text}` is no host with a port: write it like relay.example.org:8081 or [2001:db8::1]:8081"
            )
        };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port: u16 = port.parse().map_err(|_| wrong())?;
        let is_v6 = host.starts_with('[') && host.ends_with(']');
        let plain = !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
        if port == 0 || !(plain || is_v6 && text.parse::<SocketAddr>().is_ok()) {
            return Err(wrong());
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// Address of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

impl Url {
    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Url {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
        match rest {
            Some(rest)
                if !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace) =>
            {
                Ok(Self(text.trim_end_matches('/').to_owned()))
            }
            _ => Err(format!("`{text}` is no address of a service: write it like http://dmsgd.example.org")),
        }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

/// A network of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network(ipnet::IpNet);

impl Network {
    /// As it is asked.
    pub fn net(&self) -> ipnet::IpNet {
        self.0
    }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |_| format!("`{text}` is no network: write it like 10.0.0.0/8 or 2001:db8::/32");
        text.parse().map(Self).map_err(wrong)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

macro_rules! from_text {
    ($($type:ty)+) => { $(
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    )+ };
}

from_text!(HostPort LogFilter Network Url);

/// A value that may stand alone or in a list.
pub(super) fn one_or_many<'de, T: Item, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Vec<T>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "expected a text or a list of texts")]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let texts = match OneOrMany::deserialize(deserializer)? {
        OneOrMany::One(text) => vec![text],
        OneOrMany::Many(texts) => texts,
    };
    texts.iter().map(|text| T::from_text(text).map_err(D::Error::custom)).collect::<Result<_, _>>().map(Some)
}

/// What can stand in such a list.
pub(super) trait Item: DeserializeOwned {
    /// From its text, or why not.
    fn from_text(text: &str) -> Result<Self, String>;
}

impl Item for SocketAddr {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse().map_err(|_| format!("`{text}` is no address: write it like 127.0.0.1:8081 or [::]:8081"))
    }
}

impl Item for Network {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl Item for Url {
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
}
