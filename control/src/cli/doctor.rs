//! `ringwire doctor`: does this machine let a server do its work?

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;

use super::output::{print_json, print_text};
use crate::config::{File, Url};
use crate::doctor::{self, Finding, Level};
use crate::state::{STATE_VARIABLE, State};
use crate::validation;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire doctor                                  the machine, the state directory, the default address
  ringwire doctor --config /etc/ringwire.toml      what that configuration needs, its discoveries too; what `run` refuses fails
  ringwire doctor --json                           for programs

Nothing is changed. Root judges another user's state directory as that user would.

Exit codes: 0 nothing fails, 1 something does.")]
pub(super) struct Arguments {
    /// Configuration whose addresses and discoveries to look at
    #[arg(long, value_name = "FILE", env = "RINGWIRE_CONFIG")]
    config: Option<PathBuf>,
    /// Discovery to look at, may be given several times
    #[arg(long, value_name = "URL")]
    discovery: Vec<Url>,
    /// State directory [default: as of `ringwire run`]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    good: bool,
    findings: &'a [Finding],
}

pub(super) fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let file = match arguments.config.as_deref().map(File::read).transpose() {
        Ok(file) => file.unwrap_or_default(),
        Err(error) => {
            if arguments.json {
                print_json(&Report { good: false, findings: &[doctor::configuration(&error)] })?;
            }
            return Err(error.into());
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let own = State::locate(arguments.state.clone()).ok();
    let mut findings = doctor::machine();
    findings.extend(doctor::settings(&validation::problems(&file, true)));
    findings.push(doctor::workers(file.workers.unwrap_or(1)));
    findings.push(doctor::buffers(file.buffer_memory, file.workers.unwrap_or(1)));
    findings.push(doctor::state(State::locate(arguments.state)));
    let other_key = own.as_ref().and_then(|own| validation::other_key(&file, own));
    findings.extend(other_key.map(doctor::other_key));
    findings.extend(runtime.block_on(validation::places(&file, own.as_ref())).iter().map(doctor::place));
    for url in file.discovery.iter().flatten().chain(&arguments.discovery) {
        findings.extend(runtime.block_on(doctor::discovery(url)));
    }
    let good = findings.iter().all(|finding| finding.level < Level::Failure);
    if arguments.json {
        print_json(&Report { good, findings: &findings })?;
    } else {
        print_text(&text(&findings))?;
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn text(findings: &[Finding]) -> String {
    let mut text = String::new();
    for finding in findings {
        let mark = match finding.level {
            Level::Good => "ok",
            Level::Warning => "warn",
            Level::Failure => "FAIL",
        };
        text.push_str(&format!("{mark:<5} {:<16} {}\n", finding.name, finding.found));
        if !finding.cure.is_empty() {
            text.push_str(&format!("{:<22} {}\n", "", finding.cure));
        }
    }
    text
}
