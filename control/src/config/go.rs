//! The Go server's configuration of 2024, read as it is (control-plane 1.1; vector `dmsg-server-config-2024.json`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::path::Path;
use std::sync::Arc;

use ringwire_proto::identity::{PublicKey, SecretKey};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use super::{ConfigError, File, FileKey, LogFilter};

/// Field by field what the Go server writes. It takes any file that names these with the right types, whatever their case; a member
/// that is `null` is as good as absent, and names it does not know are passed over.
#[derive(Default)]
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
    /// Names of the others.
    unused: Vec<String>,
}

/// The names above.
const NAMES: [&str; 9] = [
    "public_key",
    "secret_key",
    "discovery",
    "public_address",
    "local_address",
    "health_endpoint_address",
    "log_level",
    "update_interval",
    "max_sessions",
];

/// What the Go servers of 2026 know and this one does not do (yet): for what would be missed, what to do instead.
const WITHOUT_EFFECT: [(&str, &str); 23] = [
    ("accept_peer_announcements", ""),
    ("accepted_peer_pks", ""),
    ("announce_as_peer", ""),
    ("auth_passphrase", ""),
    ("config_path", ""),
    ("disable_wt", ""),
    ("discovery_dmsg", "discoveries are asked over HTTP: name one in `discovery`"),
    (
        "dmsg",
        "its discoveries are not registered at: name one in `discovery`, and `public_address` beside it",
    ),
    ("enable_route_setup", ""),
    ("max_peer_links", ""),
    ("max_relayed_streams", ""),
    ("metrics_addr", "`/metrics` answers on `health_endpoint_address`"),
    ("peers", ""),
    ("pprof_addr", ""),
    ("pprof_mode", ""),
    ("public_address_v6", "one address is advertised, that of `public_address`"),
    ("public_address_ws", ""),
    ("public_address_wt", ""),
    ("reject_relayed_requests", ""),
    ("ws_address", ""),
    ("ws_tls_address", ""),
    ("wss_domain_suffix", ""),
    ("wt_address", ""),
];

/// Names without effect that are told one by one; of a file with more the rest is a number.
const TOLD_MAX: usize = 32;

impl<'de> Deserialize<'de> for GoFile {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Members)
    }
}

struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = GoFile;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("the settings of a Go server")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<GoFile, A::Error> {
        let mut go = GoFile::default();
        while let Some(name) = map.next_key::<String>()? {
            let place = match name.to_ascii_lowercase().as_str() {
                "public_key" => &mut go.public_key,
                "secret_key" => &mut go.secret_key,
                "discovery" => &mut go.discovery,
                "public_address" => &mut go.public_address,
                "local_address" => &mut go.local_address,
                "health_endpoint_address" => &mut go.health_endpoint_address,
                "log_level" => &mut go.log_level,
                "update_interval" => {
                    go.update_interval = map.next_value::<Option<i64>>()?.unwrap_or(go.update_interval);
                    continue;
                }
                "max_sessions" => {
                    go.max_sessions = map.next_value::<Option<i64>>()?.or(go.max_sessions);
                    continue;
                }
                _ => {
                    map.next_value::<IgnoredAny>()?;
                    go.unused.push(name);
                    continue;
                }
            };
            if let Some(text) = map.next_value::<Option<String>>()? {
                // A key that is named twice is the later one; the first must not stay behind in memory.
                drop(Zeroizing::new(std::mem::replace(place, text)));
            }
        }
        Ok(go)
    }
}

/// What to say of names without effect.
fn warnings(path: &Path, unused: &[String]) -> Vec<String> {
    let path = path.display();
    let mut said: Vec<String> = unused
        .iter()
        .take(TOLD_MAX)
        .map(|name| {
            let known = name.to_ascii_lowercase();
            match WITHOUT_EFFECT.iter().find(|(without, _)| *without == known) {
                Some((_, "")) => format!("{path}: `{name}` has no effect here yet"),
                Some((_, instead)) => format!("{path}: `{name}` has no effect here yet; {instead}"),
                None => {
                    let shown = name.escape_debug();
                    let nearest = NAMES.iter().min_by_key(|ours| strsim::damerau_levenshtein(ours, &known));
                    let meant =
                        nearest.filter(|ours| strsim::damerau_levenshtein(ours, &known) <= ours.len() / 3);
                    match meant {
                        Some(ours) => {
                            format!("{path}: `{shown}` is unknown and has no effect. Did you mean `{ours}`?")
                        }
                        None => format!("{path}: `{shown}` is unknown and has no effect"),
                    }
                }
            }
        })
        .collect();
    if let Some(rest) = unused.len().checked_sub(TOLD_MAX).filter(|rest| *rest > 0) {
        said.push(format!("{path}: {rest} further names have no effect"));
    }
    said
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
    let mut file = File { warnings: warnings(path, &go.unused), ..File::default() };
    let secret_key = Zeroizing::new(std::mem::take(&mut go.secret_key));
    if !secret_key.is_empty() {
        let secret =
            SecretKey::from_hex(&secret_key).map_err(|error| wrong("secret_key", error.to_string()))?;
        // Zeros are no key, as nothing is none.
        let named = PublicKey::parse_text(&go.public_key);
        if !matches!(named, Ok(None)) && named.ok().flatten() != Some(secret.public_key()) {
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

/// What Go listens on: without a host, and with `[::]`, every address of both families; of a host with a name its first address of
/// IPv4, or its first.
fn listen(text: &str) -> Result<Vec<SocketAddr>, String> {
    let wrong = || format!("`{text}` is no address: write it like :8081, 127.0.0.1:8081 or [::]:8081");
    let both = |port| {
        vec![
            SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port),
            SocketAddr::new(IpAddr::V6(Ipv6Addr::UNSPECIFIED), port),
        ]
    };
    if let Ok(address) = text.parse::<SocketAddr>() {
        let is_every = address.ip() == Ipv6Addr::UNSPECIFIED;
        return Ok(if is_every { both(address.port()) } else { vec![address] });
    }
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    if host.is_empty() {
        return Ok(both(port));
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), port)]);
    }
    if !host.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c)) {
        return Err(wrong());
    }
    let unknown = |reason: &dyn fmt::Display| {
        format!(
            "`{host}` is no host that this machine knows ({reason}): name an address of this machine, or a port alone, :{port}"
        )
    };
    let found: Vec<SocketAddr> = (host, port).to_socket_addrs().map_err(|error| unknown(&error))?.collect();
    let first = found.iter().find(|address| address.is_ipv4()).or(found.first());
    first.map(|address| vec![*address]).ok_or_else(|| unknown(&"it has no address"))
}

/// Levels of the Go logger as ours.
fn log(level: &str) -> Result<LogFilter, String> {
    let ours = match level.to_ascii_lowercase().as_str() {
        "trace" => "trace",
        "debug" => "debug",
        "info" | "notice" => "info",
        "warn" | "warning" => "warn",
        "error" | "fatal" | "critical" | "panic" => "error",
        _ => return Err(format!("`{level}` is no level: use trace, debug, info, warn or error")),
    };
    ours.parse()
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
        assert_eq!(file.http_listen.unwrap(), "[::]:8082".parse().unwrap());
        assert!(file.warnings.is_empty(), "{:?}", file.warnings);
        assert_eq!(
            (file.log, file.max_sessions, file.update_interval_s),
            (Some("info".parse().unwrap()), Some(2048), None)
        );
        let minute = parse(&of_vector("one_minute_update_interval_utf8")).unwrap();
        assert_eq!(minute.update_interval_s, Some(60));
    }

    /// What Go servers are run with and this one takes, too: what is read otherwise than from the generated file, and what is said.
    #[test]
    fn what_go_takes_is_taken() {
        let good = of_vector("default_config_file_utf8");
        let both = "[0.0.0.0:8081, [::]:8081]";
        let with = |member: &str| good.replacen('{', &format!("{{\n\t{member},"), 1);
        let of = |name: &str, value: &str| {
            let start = good.find(&format!("\"{name}\"")).unwrap();
            let end = start + good[start..].find([',', '}']).unwrap();
            [&good[..start], &format!("\"{name}\": {value}"), &good[end..]].concat()
        };
        for (text, listen, level, said) in [
            (of("log_level", "\"INFO\""), both, "info", vec![]),
            (of("log_level", "\"Warning\""), both, "warn", vec![]),
            (of("log_level", "\"notice\""), both, "info", vec![]),
            (of("log_level", "\"critical\""), both, "error", vec![]),
            (of("log_level", "\"\""), both, "", vec![]),
            (of("log_level", "null"), both, "", vec![]),
            (of("max_sessions", "null"), both, "info", vec![]),
            (of("update_interval", "null"), both, "info", vec![]),
            (of("public_key", "\"000000\""), both, "info", vec![]),
            (of("local_address", "\"localhost:8081\""), "[127.0.0.1:8081]", "info", vec![]),
            (of("local_address", "\"[::]:8081\""), both, "info", vec![]),
            (of("public_address", "\"my_relay.example:8081\""), both, "info", vec![]),
            (good.replace("local_address", "Local_Address"), both, "info", vec![]),
            (
                with("\"enable_route_setup\": true"),
                both,
                "info",
                vec!["`enable_route_setup` has no effect here yet"],
            ),
            (
                with("\"discovery_dmsg\": null"),
                both,
                "info",
                vec!["`discovery_dmsg` has no effect here yet; "],
            ),
            (
                with("\"public_address_v6\": \"[2001:db8::1]:8081\""),
                both,
                "info",
                vec!["`public_address_v6` has"],
            ),
            (
                with("\"peers\": [{\"a\": {}}], \"max_peer_links\": 5"),
                both,
                "info",
                vec!["`peers`", "`max_peer_links`"],
            ),
            (
                with("\"dmsg\": [{\"discovery\": \"http://x\"}]"),
                both,
                "info",
                vec!["`dmsg` has no effect here yet; "],
            ),
            (
                with("\"max_session\": 5"),
                both,
                "info",
                vec!["`max_session` is unknown", "Did you mean `max_sessions`?"],
            ),
            (with("\"comment\": \"mine\""), both, "info", vec!["`comment` is unknown and has no effect"]),
        ] {
            let file = parse(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(format!("{:?}", file.listen.unwrap()), listen, "{text}");
            assert_eq!(file.log.map(|log| log.to_string()).unwrap_or_default(), level, "{text}");
            assert_eq!(file.secret_key.unwrap().secret().public_key().to_string()[..6], *"038de3");
            let warnings = file.warnings.join("\n");
            assert_eq!(warnings.is_empty(), said.is_empty(), "{text}: {warnings}");
            for words in said {
                assert!(warnings.contains(words), "{words}: {warnings}");
            }
        }
        let many: Vec<String> = (0..100).map(|number| format!("\"x{number}\": 1")).collect();
        let warnings = parse(&with(&many.join(","))).unwrap().warnings;
        assert_eq!(warnings.len(), TOLD_MAX + 1);
        assert!(warnings[TOLD_MAX].contains("68 further"), "{warnings:?}");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let good = of_vector("default_config_file_utf8");
        for (from, to, place, words) in [
            ("2048", "-1", ":10:2:", "-1"),
            (":8081\",\n\t\"health", "no host:80\",\n\t\"health", ":6:2:", "no host"),
            ("2048", "\"many\"", ":10:", "many"),
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
