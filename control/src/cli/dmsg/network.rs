//! What every dmsg command needs: who it is, and over which servers it talks.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, PublicKey, SecretKey};

use crate::cli::HybridChoice;
use crate::discovery::DiscoveryClient;
use crate::dmsg::{Client, ClientConfig, Directory, KnownServers, ServerAddress};
use crate::state::{STATE_VARIABLE, State, key_file};

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

impl Network {
    /// A client that is connected to `sessions` servers, or will be: one is there.
    pub(super) async fn connect(&self, sessions: usize) -> anyhow::Result<Client> {
        let client = self.start(sessions)?;
        if let Err(error) = client.ready(Duration::from_secs(self.connect_limit.into())).await {
            client.close().await;
            return Err(error.into());
        }
        Ok(client)
    }

    fn start(&self, sessions: usize) -> anyhow::Result<Client> {
        let key = match &self.key_file {
            Some(path) => key_file::read(path)?,
            None => SecretKey::generate(&mut OsEntropy),
        };
        let config = ClientConfig {
            sessions_min: sessions,
            hybrid: self.hybrid.into(),
            ..ClientConfig::new(key, self.directory()?)
        };
        Ok(Client::start(config)?)
    }

    fn directory(&self) -> anyhow::Result<Arc<dyn Directory>> {
        if let Some(url) = &self.discovery {
            return Ok(Arc::new(DiscoveryClient::new(url)?));
        }
        if !self.server.is_empty() {
            return Ok(Arc::new(KnownServers::new(self.server.clone())));
        }
        let note = State::locate(self.state.clone())?.read_note()?;
        if let Some(url) = &note.discovery {
            return Ok(Arc::new(DiscoveryClient::new(url)?));
        }
        let key =
            note.key().map_err(|error| anyhow!("the public key in server.json is not valid: {error}"))?;
        let server = ServerAddress { key, address: note.address.to_string() };
        Ok(Arc::new(KnownServers::new(vec![server])))
    }
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
