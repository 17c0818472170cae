//! What every dmsg command needs: who it is, and over which servers it talks.

use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use serde::Serialize;
use tokio::time::timeout;

use super::events::{Place, Reporter};
use crate::cli::HybridChoice;
use crate::discovery::DiscoveryClient;
use crate::dmsg::{Awaited, Client, ClientConfig, Directory, KnownServers, Obstacle, ServerAddress};
use crate::state::{STATE_VARIABLE, State, key_file};

/// When it is said what a connection waits for: before anybody wonders, and after a usual one is there.
const SILENT_AT_MOST: Duration = Duration::from_millis(1500);

#[derive(Debug, Args)]
pub(super) struct Network {
    /// Server to use, as PUBLICKEY@HOST:PORT, may be given several times: no discovery is asked, and whoever is
    /// dialled must be connected to one of them [default: the server of server.json in the state directory]
    #[arg(long, value_name = "PK@HOST:PORT", conflicts_with = "discovery", help_heading = "Network")]
    server: Vec<ServerAddress>,
    /// Discovery that knows servers and clients, such as http://dmsgd.example
    #[arg(long, value_name = "URL", help_heading = "Network")]
    discovery: Option<String>,
    /// State directory of the server on this machine
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE, help_heading = "Network")]
    state: Option<PathBuf>,
    /// File with the secret key to use, made by: ringwire keys generate FILE [default: a new key each time]
    #[arg(long, value_name = "FILE", help_heading = "Network")]
    key_file: Option<PathBuf>,
    /// How long to wait for a connection, in seconds
    #[arg(long, value_name = "S", default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..=600), help_heading = "Network")]
    connect_limit: u16,
    /// The post-quantum part of the handshakes
    #[arg(long, value_enum, default_value_t = HybridChoice::Offer, help_heading = "Network")]
    hybrid: HybridChoice,
}

#[derive(Serialize)]
struct Waiting<'a> {
    event: &'static str,
    /// `discovery` or `server`.
    r#for: &'static str,
    discovery: Option<&'a str>,
    trouble: Option<&'a str>,
    limit_s: u64,
}

impl Network {
    /// A client that is connected to `sessions` servers, or will be: one is there. On the way it is said, as JSON or as
    /// text, what is waited for when that takes long.
    pub(super) async fn connect(&self, sessions: usize, json: bool) -> anyhow::Result<Client> {
        let key = match &self.key_file {
            Some(path) => key_file::read(path)?,
            None => SecretKey::generate(&mut OsEntropy),
        };
        let (directory, discovery) = self.directory()?;
        let config = ClientConfig {
            sessions_min: sessions,
            hybrid: self.hybrid.into(),
            ..ClientConfig::new(key, directory)
        };
        let client = Client::start(config)?;
        let limit = Duration::from_secs(self.connect_limit.into());
        let told = || {
            if let Some(obstacle) = client.obstacle() {
                tell(&obstacle, discovery.as_deref(), limit, json);
            }
        };
        let Err(error) = after(SILENT_AT_MOST, told, client.ready(limit)).await else { return Ok(client) };
        let obstacle = client.obstacle();
        client.close().await;
        let at_discovery = obstacle.is_some_and(|obstacle| obstacle.awaited == Awaited::Discovery);
        Err(match discovery.filter(|_| at_discovery) {
            Some(url) => anyhow!("{error}; {}", discovery_cure(&url)),
            None => error.into(),
        })
    }

    /// Where entries come from, and its URL when that is a discovery.
    fn directory(&self) -> anyhow::Result<(Arc<dyn Directory>, Option<String>)> {
        let discovery = |url: &str| {
            let client = DiscoveryClient::new(url)?;
            let url = client.url().to_owned();
            anyhow::Ok((Arc::new(client) as Arc<dyn Directory>, Some(url)))
        };
        if let Some(url) = &self.discovery {
            return discovery(url);
        }
        if !self.server.is_empty() {
            return Ok((Arc::new(KnownServers::new(self.server.clone())), None));
        }
        let note = State::locate(self.state.clone())?.read_note()?;
        if let Some(url) = &note.discovery {
            return discovery(url);
        }
        let key =
            note.key().map_err(|error| anyhow!("the public key in server.json is not valid: {error}"))?;
        let server = ServerAddress { key, address: note.address.to_string() };
        Ok((Arc::new(KnownServers::new(vec![server])), None))
    }
}

/// Does `work`, and `aside` once when it takes longer than that.
async fn after<T>(time: Duration, aside: impl FnOnce(), work: impl Future<Output = T>) -> T {
    let mut work = pin!(work);
    match timeout(time, work.as_mut()).await {
        Ok(done) => done,
        Err(_) => {
            aside();
            work.await
        }
    }
}

/// Says on the error output, which carries nothing else that is waited for, why nothing happens yet.
fn tell(obstacle: &Obstacle, discovery: Option<&str>, limit: Duration, json: bool) {
    let trouble = obstacle.trouble.as_deref();
    let seconds = limit.as_secs();
    let because = trouble.map(|text| format!(" ({text})")).unwrap_or_default();
    let patience = format!("trying for {seconds} s in all (--connect-limit)");
    let (awaited, text) = match (obstacle.awaited, discovery) {
        (Awaited::Discovery, Some(url)) => {
            let cure = discovery_cure(url);
            ("discovery", format!("the discovery {url} does not answer{because}; {patience}; {cure}"))
        }
        _ => ("server", format!("no server answers yet{because}; {patience}")),
    };
    let event = Waiting { event: "waiting", r#for: awaited, discovery, trouble, limit_s: seconds };
    Reporter { json, place: Place::Errors }.tell(&event, &format!("ringwire: {text}"));
}

fn discovery_cure(url: &str) -> String {
    format!(
        "is that its URL, and does it run? ringwire doctor --discovery {url} looks closer, --server PK@HOST:PORT needs none"
    )
}

/// A key, and a port if one was typed: `PK` or `PK:PORT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) key: PublicKey,
    pub(super) port: Option<u16>,
}

impl std::str::FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (key, port) = match text.split_once(':') {
            Some((key, port)) => (key, Some(port)),
            None => (text, None),
        };
        let port = match port.map(str::parse::<u16>) {
            Some(Ok(0) | Err(_)) => return Err("expected a port from 1 to 65535 behind the colon".to_owned()),
            Some(Ok(port)) => Some(port),
            None => None,
        };
        let key = key.parse().map_err(|error| format!("expected PK or PK:PORT: {error}"))?;
        Ok(Self { key, port })
    }
}

/// A key with its port: `PK:PORT`.
pub(super) fn address(text: &str) -> Result<Address, String> {
    let target: Target = text.parse()?;
    let port = target.port.ok_or("expected PK:PORT, found no port")?;
    Ok(Address { key: target.key, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";

    #[test]
    fn targets_have_a_port_or_none() {
        let parsed = |text: &str| text.parse::<Target>();
        assert_eq!(parsed(KEY).unwrap().port, None);
        assert_eq!(parsed(&format!("{KEY}:80")).unwrap().port, Some(80));
        for text in ["", "02", &format!("{KEY}:"), &format!("{KEY}:0"), &format!("{KEY}:65536"), ":80"] {
            assert!(parsed(text).is_err(), "{text}");
        }
        assert!(address(KEY).unwrap_err().contains("PK:PORT"));
        assert_eq!(address(&format!("{KEY}:7")).unwrap().port, 7);
    }
}
