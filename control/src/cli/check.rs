//! `ringwire check`: is this configuration right, and what would hold?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use super::output::{print_json, print_text};
use crate::config::{File, SETTINGS};
use crate::state::State;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire check --config /etc/ringwire.toml     is it right? Nothing is started
  ringwire check --config config.json            a Go server's file is read as it is
  ringwire check --config config.json --state /var/lib/ringwire     and could a server use that directory?
  ringwire check --settings                      every setting, its values and its default
  ringwire check --settings --json               the same for programs

Exit codes: 0 right, 1 wrong; the message names file, line and column.")]
pub(super) struct Arguments {
    /// Configuration to check
    #[arg(long, value_name = "FILE", required_unless_present_any = ["settings", "state"])]
    config: Option<PathBuf>,
    /// State directory to check as well; nothing in it is changed
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// List every setting
    #[arg(long)]
    settings: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.settings {
        list(arguments.json)?;
    }
    let file = arguments.config.as_deref().map(File::read).transpose()?;
    let warnings = file.as_ref().map_or(&[][..], |file| &file.warnings);
    let named = file.as_ref().map(named);
    let standing = match &arguments.state {
        Some(directory) => Some((directory, State::locate(Some(directory.clone()))?.look()?)),
        None => None,
    };
    if arguments.json && (named.is_some() || standing.is_some()) {
        let mut report = serde_json::Map::from_iter([("good".to_owned(), true.into())]);
        if let Some(named) = named {
            let settings = named.into_iter().map(|(name, value)| (name.to_owned(), value.into()));
            report.insert("settings".to_owned(), serde_json::Value::Object(settings.collect()));
            report.insert("warnings".to_owned(), warnings.into());
        }
        if let Some((directory, key)) = standing {
            let key = key.map(|key| key.to_string());
            let state = serde_json::json!({ "directory": directory, "public_key": key });
            report.insert("state".to_owned(), state);
        }
        print_json(&report)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = String::new();
    if let (Some(path), Some(named)) = (&arguments.config, named) {
        text.push_str(&format!("{} is right. It names:\n", path.display()));
        for (name, value) in named {
            text.push_str(&format!("  {name:<18} {value}\n"));
        }
        for warning in warnings {
            text.push_str(&format!("warning: {warning}\n"));
        }
    }
    if let Some((directory, key)) = standing {
        let key =
            key.map_or_else(|| "a key is made at the first start".to_owned(), |key| format!("key {key}"));
        text.push_str(&format!("{} can be used: {key}\n", directory.display()));
    }
    print_text(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn list(json: bool) -> anyhow::Result<()> {
    if json {
        return print_json(&SETTINGS);
    }
    let mut text = String::new();
    for setting in SETTINGS {
        let live = if setting.live { ", changes live" } else { "" };
        text.push_str(&format!("{} = {}\n", setting.name, setting.values));
        text.push_str(&format!("    {} [default: {}{live}]\n", setting.help, setting.default));
    }
    print_text(&text)
}

/// What a file names, as text, in the order of [`SETTINGS`].
fn named(file: &File) -> Vec<(&'static str, String)> {
    let File {
        listen,
        public_address,
        discovery,
        discovery_listen,
        http_listen,
        max_sessions,
        update_interval_s,
        driver,
        workers,
        first_core,
        hybrid,
        company_us,
        pause_us,
        buffer_memory,
        orphan_limit_ms,
        handshake_threads,
        half_open_max,
        sessions_per_address,
        proxy_from,
        log,
        secret_key,
        warnings: _,
    } = file;
    fn joined<T: ToString>(values: &[T]) -> String {
        values.iter().map(T::to_string).collect::<Vec<_>>().join(", ")
    }
    let values = [
        ("listen", listen.as_deref().map(joined)),
        ("public_address", public_address.as_ref().map(ToString::to_string)),
        ("discovery", discovery.as_deref().map(joined)),
        ("discovery_listen", discovery_listen.map(|address| address.to_string())),
        ("http_listen", http_listen.map(|address| address.to_string())),
        ("max_sessions", max_sessions.map(|number| number.to_string())),
        ("update_interval_s", update_interval_s.map(|number| number.to_string())),
        ("driver", driver.map(|driver| driver.name().to_owned())),
        ("workers", workers.map(|number| number.to_string())),
        ("first_core", first_core.map(|number| number.to_string())),
        ("hybrid", hybrid.map(|hybrid| hybrid.name().to_owned())),
        ("company_us", company_us.map(|number| number.to_string())),
        ("pause_us", pause_us.map(|number| number.to_string())),
        ("buffer_memory", buffer_memory.map(|number| number.to_string())),
        ("orphan_limit_ms", orphan_limit_ms.map(|number| number.to_string())),
        ("handshake_threads", handshake_threads.map(|number| number.to_string())),
        ("half_open_max", half_open_max.map(|number| number.to_string())),
        ("sessions_per_address", sessions_per_address.map(|number| number.to_string())),
        ("proxy_from", proxy_from.as_deref().map(joined)),
        ("log", log.as_ref().map(ToString::to_string)),
        // Of the key nothing but what everybody may know.
        ("public_key", secret_key.as_ref().map(|key| key.secret().public_key().to_string())),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
