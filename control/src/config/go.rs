//! The Go server's configuration of 2024, read as it is (control-plane 1.1; vector `dmsg-server-config-2024.json`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use ringwire_proto::identity::{PublicKey, SecretKey};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{ConfigError, File, FileKey};

/// Field by field what the Go server writes.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct GoFile {
    public_key: String,
    secret_key: String,
    discovery: String,
    public_address: String,
    local_address: String,
    health_endpoint_address: String,
    log_level: String,
    /// Nanoseconds; 0: the default.
    update_interval: i64,
    max_sessions: Option<i64>,
}

pub(super) fn parse(path: &Path, text: &str) -> Result<File, ConfigError> {
    let mut go: GoFile = serde_json::from_str(text).map_err(|error| {
        // The parser ends its message with the place, which we say in front.
        let message = error.to_string();
        let message = message.split(" at line ").next().unwrap_or(&message).to_owned();
        ConfigError::Line {
            path: path.to_owned(),
            line: error.line(),
            column: error.column(),
            message,
            cure: "This file begins with `{`, so it is read as the Go server's; ours are TOML".into(),
        }
    })?;
    let wrong = |key: &str, message: String| {
        let (line, column) = place(text, key);
        ConfigError::Line {
            path: path.to_owned(),
            line,
            column,
            message: format!("{key}: {message}"),
            cure: "Correct the value, or remove the key".into(),
        }
    };
    let mut file = File::default();
    let secret_key = Zeroizing::new(std::mem::take(&mut go.secret_key));
    if !secret_key.is_empty() {
        let secret =
            SecretKey::from_hex(&secret_key).map_err(|error| wrong("secret_key", error.to_string()))?;
        if !go.public_key.is_empty()
            && PublicKey::parse_text(&go.public_key).ok().flatten() != Some(secret.public_key())
        {
            return Err(wrong(
                "public_key",
                format!("it does not belong to the secret key, {} does", secret.public_key()),
            ));
        }
        file.secret_key = Some(FileKey(Arc::new(secret)));
    }
    if !go.discovery.is_empty() {
        file.discovery = Some(vec![go.discovery.parse().map_err(|error| wrong("discovery", error))?]);
    }
    if !go.public_address.is_empty() {
        file.public_address =
            Some(go.public_address.parse().map_err(|error| wrong("public_address", error))?);
    }
    if !go.local_address.is_empty() {
        file.listen = Some(listen(&go.local_address).map_err(|error| wrong("local_address", error))?);
    }
    if !go.health_endpoint_address.is_empty() {
        let addresses =
            listen(&go.health_endpoint_address).map_err(|error| wrong("health_endpoint_address", error))?;
        // One listener for both families, as Go's.
        file.http_listen = addresses.last().copied();
    }
    if !go.log_level.is_empty() {
        file.log = Some(log(&go.log_level).map_err(|error| wrong("log_level", error))?);
    }
    if go.update_interval < 0 {
        return Err(wrong(
            "update_interval",
            format!("{} nanoseconds; it cannot be negative", go.update_interval),
        ));
    }
    if go.update_interval > 0 {
        // Whole seconds are what a discovery can tell apart.
        let seconds = (go.update_interval.unsigned_abs() / 1_000_000_000).max(1);
        file.update_interval_s = Some(u32::try_from(seconds).unwrap_or(u32::MAX));
    }
    if let Some(sessions) = go.max_sessions {
        let sessions = u32::try_from(sessions)
            .map_err(|_| wrong("max_sessions", format!("{sessions}; use 0 to 4294967295")))?;
        file.max_sessions = Some(sessions);
    }
    Ok(file)
}

/// What Go means by an address without a host: every one of both families.
fn listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let Some(port) = text.strip_prefix(':') else {
        return text.parse().map(|address| vec![address]).map_err(|_| {
            format!("`{text}` is no address: write it like :8081, 127.0.0.1:8081 or [::]:8081")
        });
    };
    let port = port.parse().map_err(|_| format!("`{text}` is no port"))?;
    Ok(vec![
        SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
        SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
    ])
}

/// Levels of the Go logger as ours.
fn log(level: &str) -> Result<String, String> {
    match level {
        "trace" | "debug" | "info" | "error" => Ok(level.to_owned()),
        "warn" | "warning" => Ok("warn".to_owned()),
        "fatal" | "panic" => Ok("error".to_owned()),
        other => Err(format!("`{other}` is no level: use trace, debug, info, warn or error")),
    }
}

/// Line and column of a key in the text, from 1.
fn place(text: &str, key: &str) -> (usize, usize) {
    let at = text.find(&format!("\"{key}\"")).unwrap_or(0);
    let before = &text[..at];
    (before.matches('\n').count() + 1, before.len() - before.rfind('\n').map_or(0, |newline| newline + 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VECTOR: &str = include_str!("../../tests/vectors/dmsg-server-config-2024.json");

    fn of_vector(name: &str) -> String {
        let vector: serde_json::Value = serde_json::from_str(VECTOR).unwrap();
        vector[name].as_str().unwrap().to_owned()
    }

    fn parse(text: &str) -> Result<File, ConfigError> {
        super::parse(Path::new("config.json"), text)
    }

    #[test]
    fn the_generated_file_is_read_as_it_is() {
        let file = parse(&of_vector("default_config_file_utf8")).unwrap();
        let key = file.secret_key.as_ref().unwrap().secret().public_key();
        assert_eq!(key.to_string(), "038de3497028c8ff351d5e2de4c14f55541b63c0f9b49d8706808309d78d31f6fd");
        assert!(!format!("{file:?}").contains("1aff158f"), "no key in what is shown");
        let listen = file.listen.unwrap();
        assert_eq!(listen, ["0.0.0.0:8081".parse().unwrap(), "[::]:8081".parse().unwrap()]);
        assert_eq!(file.discovery.unwrap()[0].as_str(), "http://dmsgd.skywire.skycoin.com");
        assert_eq!(file.public_address.unwrap().to_string(), "127.0.0.1:8081");
        assert_eq!(file.http_listen.unwrap().port(), 8082);
        assert_eq!(
            (file.log.as_deref(), file.max_sessions, file.update_interval_s),
            (Some("info"), Some(2048), None)
        );
        let minute = parse(&of_vector("one_minute_update_interval_utf8")).unwrap();
        assert_eq!(minute.update_interval_s, Some(60));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let good = of_vector("default_config_file_utf8");
        for (from, to, place, words) in [
            ("max_sessions", "max_session", ":10:", "max_session"),
            ("2048", "-1", ":10:2:", "-1"),
            (":8081\",\n\t\"health", ":x\",\n\t\"health", ":6:2:", ":x"),
            ("info", "loud", ":8:2:", "loud"),
            ("038de3", "028de3", ":2:2:", "038de3"),
            ("1aff15", "zzff15", ":3:2:", "secret_key"),
            ("http://", "htp://", ":4:2:", "htp://"),
            ("2048\n}", "2048", ":10:", "EOF"),
        ] {
            let text = good.replacen(from, to, 1);
            assert_ne!(text, good, "{from}");
            let error = parse(&text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json{place}")), "{error}");
            assert!(error.contains(words), "{error}");
            assert!(!error.contains("1aff158f"), "{error}");
        }
    }
}
