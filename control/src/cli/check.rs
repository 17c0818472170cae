//! `ringwire check`: is this configuration right, and what would hold?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;

use crate::config::{File, SETTINGS};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire check --config /etc/ringwire.toml     is it right? Nothing is started
  ringwire check --config config.json            a Go server's file is read as it is
  ringwire check --settings                      every setting, its values and its default
  ringwire check --settings --json               the same for programs

Exit codes: 0 right, 1 wrong; the message names file, line and column.")]
pub(super) struct Arguments {
    /// Configuration to check
    #[arg(long, value_name = "FILE", required_unless_present = "settings")]
    config: Option<PathBuf>,
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
    if let Some(path) = &arguments.config {
        let file = File::read(path)?;
        let named = named(&file);
        if arguments.json {
            let settings: serde_json::Map<_, _> =
                named.iter().map(|(name, value)| ((*name).to_owned(), value.clone().into())).collect();
            println!("{}", serde_json::json!({ "good": true, "settings": settings }));
        } else {
            println!("{} is right. It names:", path.display());
            for (name, value) in named {
                println!("  {name:<18} {value}");
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn list(json: bool) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string(SETTINGS)?);
        return Ok(());
    }
    for setting in SETTINGS {
        let live = if setting.live { ", changes live" } else { "" };
        println!("{} = {}", setting.name, setting.values);
        println!("    {} [default: {}{live}]", setting.help, setting.default);
    }
    Ok(())
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
        ("hybrid", hybrid.map(|hybrid| hybrid.name().to_owned())),
        ("company_us", company_us.map(|number| number.to_string())),
        ("pause_us", pause_us.map(|number| number.to_string())),
        ("buffer_memory", buffer_memory.map(|number| number.to_string())),
        ("orphan_limit_ms", orphan_limit_ms.map(|number| number.to_string())),
        ("handshake_threads", handshake_threads.map(|number| number.to_string())),
        ("half_open_max", half_open_max.map(|number| number.to_string())),
        ("sessions_per_address", sessions_per_address.map(|number| number.to_string())),
        ("proxy_from", proxy_from.as_deref().map(joined)),
        ("log", log.clone()),
        // Of the key nothing but what everybody may know.
        ("public_key", secret_key.as_ref().map(|key| key.secret().public_key().to_string())),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
