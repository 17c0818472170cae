//! `ringwire check`: is this configuration right, and what would hold?

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;

use super::output::{print_json, print_text};
use super::runtime::runtime;
use crate::config::{ConfigError, File, SETTINGS};
use crate::state::{Look, STATE_VARIABLE, State};
use crate::validation::{self, Place, Problem};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire check --config /etc/ringwire.toml     is it right? Nothing is started
  ringwire check --config config.json            a Go server's file is read as it is
  ringwire check --config config.json --state /var/lib/ringwire     and could a server use that directory?
  ringwire check --settings                      every setting, its values and its default
  ringwire check --settings --json               the same for programs

What `ringwire run` would refuse is wrong here too, addresses that somebody else listens on included; what the server of the
state directory listens on itself is right. Root judges another user's state directory as that user would.

Exit codes: 0 right, 1 wrong; the message names file, line and column, or the setting. With --json what is wrong is told on the
standard output as well.")]
pub(super) struct Arguments {
    /// Configuration to check
    #[arg(long, value_name = "FILE", env = "RINGWIRE_CONFIG", required_unless_present_any = ["settings", "state"])]
    config: Option<PathBuf>,
    /// State directory to check as well; nothing in it is changed
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// List every setting, and do nothing else
    #[arg(long)]
    settings: bool,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    if arguments.settings {
        list(arguments.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    match judge(arguments) {
        Ok(verdict) if verdict.problems.is_empty() => {
            if arguments.json {
                print_json(&verdict.report())?;
            } else {
                print_text(&verdict.text())?;
            }
            Ok(ExitCode::SUCCESS)
        }
        wrong => {
            let (report, error) = match wrong {
                Ok(verdict) => (verdict.report(), verdict.error()),
                Err(error) => (serde_json::Map::from_iter([wrong_by(&error)]), error),
            };
            if arguments.json {
                let good = ("good".to_owned(), false.into());
                print_json(&report.into_iter().chain([good]).collect::<serde_json::Map<_, _>>())?;
            }
            Err(error)
        }
    }
}

/// What is wrong with a file that cannot be read as settings, as a problem of the report: with its place, if it has one.
fn wrong_by(error: &anyhow::Error) -> (String, serde_json::Value) {
    let mut problem = serde_json::json!({ "message": error.to_string() });
    match error.downcast_ref() {
        Some(ConfigError::Line { line, column, .. }) => {
            problem["line"] = (*line).into();
            problem["column"] = (*column).into();
        }
        Some(ConfigError::Together { names, .. }) => problem["setting"] = (*names).into(),
        _ => {}
    }
    ("problems".to_owned(), vec![problem].into())
}

/// What was found of a file and a directory that can be read.
struct Verdict {
    file: Option<(PathBuf, File)>,
    /// What `run` would refuse.
    problems: Vec<Problem>,
    state: Option<(PathBuf, Look)>,
}

/// Looks at what was named.
fn judge(arguments: &Arguments) -> anyhow::Result<Verdict> {
    let mut file = match &arguments.config {
        Some(path) => Some((path.clone(), File::read(path)?)),
        None => None,
    };
    let state = match &arguments.state {
        Some(directory) => {
            Some((directory.clone(), State::locate(Some(directory.clone()))?.look_as_owner()?))
        }
        None => None,
    };
    let problems = match &mut file {
        Some((_, file)) => {
            // Whose living server may have the addresses: the one named, or the usual one.
            let named =
                arguments.state.clone().or_else(|| std::env::var_os(STATE_VARIABLE).map(PathBuf::from));
            let own = State::locate(named).ok();
            file.warnings.extend(own.as_ref().and_then(|own| validation::other_key(file, own)));
            let mut problems = validation::problems(file, true);
            let places = runtime(Some(1))?.block_on(validation::places(file, own.as_ref()));
            problems.extend(places.iter().filter_map(Place::problem));
            problems
        }
        None => Vec::new(),
    };
    Ok(Verdict { file, problems, state })
}

impl Verdict {
    fn report(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut report = serde_json::Map::from_iter([("good".to_owned(), self.problems.is_empty().into())]);
        if !self.problems.is_empty() {
            report.insert("problems".to_owned(), serde_json::json!(self.problems));
        }
        if let Some((_, file)) = &self.file {
            let settings = named(file).into_iter().map(|(name, value)| (name.to_owned(), value.into()));
            report.insert("settings".to_owned(), serde_json::Value::Object(settings.collect()));
            report.insert("warnings".to_owned(), serde_json::json!(file.warnings));
        }
        if let Some((directory, look)) = &self.state {
            let key = look.key.map(|key| key.to_string());
            let state = serde_json::json!({ "directory": directory, "public_key": key, "judged_as_user": look.owner });
            report.insert("state".to_owned(), state);
        }
        report
    }

    fn text(&self) -> String {
        let mut text = String::new();
        if let Some((path, file)) = &self.file {
            text.push_str(&format!("{} is right. It names:\n", path.display()));
            for (name, value) in named(file) {
                text.push_str(&format!("  {name:<18} {value}\n"));
            }
            for warning in &file.warnings {
                text.push_str(&format!("warning: {warning}\n"));
            }
        }
        if let Some((directory, look)) = &self.state {
            let key = look
                .key
                .map_or_else(|| "a key is made at the first start".to_owned(), |key| format!("key {key}"));
            let by = look.owner.map(|user| format!(" by user {user}, who owns it")).unwrap_or_default();
            text.push_str(&format!("{} can be used{by}: {key}\n", directory.display()));
        }
        text
    }

    /// All problems as one.
    fn error(&self) -> anyhow::Error {
        let problems: Vec<_> = self.problems.iter().map(ToString::to_string).collect();
        let path = self.file.as_ref().map(|(path, _)| path.display().to_string()).unwrap_or_default();
        match problems.as_slice() {
            [problem] => anyhow!("{path}: {problem}"),
            problems => anyhow!("{path}:\n  {}", problems.join("\n  ")),
        }
    }
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
        // One setting with the former, which has it.
        orphan_limit_s: _,
        handshake_threads,
        half_open_max,
        sessions_per_address,
        proxy_from,
        log,
        log_sessions,
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
        ("log_sessions", log_sessions.map(|is_on| is_on.to_string())),
        // Of the key nothing but what everybody may know.
        ("public_key", secret_key.as_ref().map(|key| key.secret().public_key().to_string())),
    ];
    values.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
}
