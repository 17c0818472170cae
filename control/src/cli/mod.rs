//! The command line: what can be typed, and how a command ends.
//!
//! In: arguments and environment. Out: an exit code: 0 done, 1 failed, 2 not understood.

mod bench;
mod check;
mod dataplane;
mod dmsg;
mod doctor;
mod events;
mod keys;
mod operate;
mod output;
mod parent;
mod run;
mod runtime;
mod services;
mod show;
mod signals;
mod systemd;

use std::ffi::OsStr;
use std::io::Write as _;
use std::process::ExitCode;
use std::str::FromStr as _;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum};
use ringwire_proto::noise::Hybrid;
use tracing_appender::non_blocking::WorkerGuard;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Directive;

use crate::config::{HybridSetting, LogFilter};
use crate::supervise::{LOG_VARIABLE, SESSION_LOG};

/// What `--version` says: the number, and the commit it was built from.
const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("RINGWIRE_BUILD_COMMIT_SHORT"), ")");

/// Forwarding plane for Skywire.
#[derive(Debug, Parser)]
#[command(
    name = "ringwire",
    version = VERSION,
    about = "Ringwire: a dmsg server and the tools around it",
    after_help = "Examples:
  ringwire run                       a server on 127.0.0.1:8081, nothing else needed
  ringwire bench bridge              its speed, measured with verified bytes, in a second terminal
  ringwire bench bridge --json       the same for programs
  ringwire status                    how it does; also with the control plane dead
  ringwire show sessions             who is connected
  ringwire stop                      end it
  ringwire dmsg curl dmsg://03../    a web page over dmsg

Environment:
  RINGWIRE_STATE   directory of the key and of the note a running server leaves
  RINGWIRE_CONFIG  configuration of run, check and doctor
  RINGWIRE_LOG     log filter, such as info, debug or warn,ringwire_dataplane=trace (default: warn)
  NO_COLOR         if it is set to anything: no colours, not even on a terminal

Exit codes: 0 done, 1 failed, 2 not understood, 3 (status) one plane is missing."
)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run a dmsg server until it is told to stop (SIGINT or SIGTERM)
    Run(run::Arguments),
    /// Be the process that serves; `ringwire run` starts one by itself
    Dataplane(dataplane::Arguments),
    /// How a running server does
    Status(show::StatusArguments),
    /// What goes on in a running server
    #[command(subcommand)]
    Show(show::Show),
    /// Close the session of a client
    Close(operate::CloseArguments),
    /// Change a setting of a running server
    Set(operate::SetArguments),
    /// Let a running server end when its sessions have ended
    Drain(operate::DrainArguments),
    /// End a running server, or a data plane that was left alone
    Stop(operate::StopArguments),
    /// Check a configuration, or list the settings
    Check(check::Arguments),
    /// Look at what this machine lets a server do
    Doctor(doctor::Arguments),
    /// Talk to others over dmsg
    Dmsg {
        #[command(subcommand)]
        command: dmsg::Command,
    },
    /// Make keys, and show them
    Keys {
        #[command(subcommand)]
        command: keys::Command,
    },
    /// Measure a server
    Bench {
        #[command(subcommand)]
        command: bench::Command,
    },
}

/// The post-quantum part of handshakes, as typed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum HybridChoice {
    /// Classical handshakes only
    Off,
    /// Post-quantum with peers that can, classical with others
    Offer,
    /// Refuse peers that cannot
    Require,
}

impl From<HybridChoice> for HybridSetting {
    fn from(choice: HybridChoice) -> Self {
        match choice {
            HybridChoice::Off => Self::Off,
            HybridChoice::Offer => Self::Offer,
            HybridChoice::Require => Self::Require,
        }
    }
}

impl From<HybridChoice> for Hybrid {
    fn from(choice: HybridChoice) -> Self {
        match choice {
            HybridChoice::Off => Self::Off,
            HybridChoice::Offer => Self::Offer,
            HybridChoice::Require => Self::Require,
        }
    }
}

/// Parses the arguments, does what they say, and reports failures on the error output.
pub fn main() -> ExitCode {
    // Before there is anything to hide.
    ringwire_dataplane::process::shield();
    let parsed = command().try_get_matches();
    let arguments = match parsed.and_then(|matches| Arguments::from_arg_matches(&matches)) {
        Ok(arguments) => arguments,
        Err(message) => {
            // Nobody is left to tell when the terminal is gone.
            message.print().ok();
            return ExitCode::from(if message.use_stderr() { 2 } else { 0 });
        }
    };
    let parent = match &arguments.command {
        Command::Run(arguments) => Some(parent::is_wanted(arguments)),
        _ => None,
    };
    // A configuration is read once: one that comes through a pipe is there only once.
    let settings = match &arguments.command {
        Command::Run(arguments) if parent != Some(Ok(())) => Some(arguments.settings()),
        _ => None,
    };
    let failure = match &arguments.command {
        Command::Run(arguments) if arguments.again => ExitCode::from(parent::NOT_BEGUN),
        _ => ExitCode::FAILURE,
    };
    let file = settings.as_ref().and_then(|settings| settings.as_ref().ok());
    let log_sessions = file.is_some_and(|file| file.log_sessions == Some(true));
    // Nor is the picture of the sessions to wait for whoever reads of each of them.
    let never_wait = log_sessions || matches!(arguments.command, Command::Dataplane(_));
    let _log = start_log(never_wait, file.and_then(|file| file.log.clone()), log_sessions);
    let result = match arguments.command {
        Command::Run(arguments) => match settings {
            None => parent::run(&arguments),
            Some(settings) => settings.and_then(|settings| run::run(&arguments, &settings)),
        },
        Command::Dataplane(arguments) => dataplane::run(arguments),
        Command::Status(arguments) => show::status(&arguments),
        Command::Show(what) => show::show(&what),
        Command::Close(arguments) => operate::close(arguments),
        Command::Set(arguments) => operate::set(arguments),
        Command::Drain(arguments) => operate::drain(&arguments),
        Command::Stop(arguments) => operate::stop(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Doctor(arguments) => doctor::run(arguments),
        Command::Dmsg { command } => dmsg::run(command),
        Command::Keys { command } => keys::run(command),
        Command::Bench { command } => bench::run(command),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Error texts of this program contain their causes, so the outermost is enough.
            // Nor is anybody left to tell when the error output takes nothing.
            writeln!(std::io::stderr(), "ringwire: {error}").ok();
            failure
        }
    }
}

/// Widest help, in columns: longer lines are hard to read, and the examples fit.
const HELP_WIDTH_MAX: usize = 120;

/// Width of help that goes to no terminal, in columns.
const HELP_WIDTH: usize = 100;

/// All commands, as they are parsed and as their help is laid out.
fn command() -> clap::Command {
    let named = || std::env::var("COLUMNS").ok()?.parse().ok();
    let terminal = terminal_size::terminal_size().map(|(width, _)| usize::from(width.0));
    let width = terminal.or_else(named).filter(|&width| width > 0).unwrap_or(HELP_WIDTH);
    laid_out(either_dash(Arguments::command()), width.min(HELP_WIDTH_MAX))
}

/// A setting's name is known by its `_` in files; typed so behind `--`, it is the flag.
fn either_dash(command: clap::Command) -> clap::Command {
    let command = command.mut_args(|argument| {
        let names = argument.get_long().into_iter().chain(argument.get_all_aliases().into_iter().flatten());
        let others: Vec<_> =
            names.filter(|name| name.contains('-')).map(|name| name.replace('-', "_")).collect();
        argument.aliases(others)
    });
    command.mut_subcommands(either_dash)
}

/// Help of a width. What stands below the flags is written in lines of some length here: those of a paragraph are one again, and
/// are broken where the terminal ends.
fn laid_out(command: clap::Command, width: usize) -> clap::Command {
    let command = command.term_width(width);
    let below = command.get_after_help().map(|text| of_width(&text.to_string(), width));
    let command = match below {
        Some(below) => command.after_help(below),
        None => command,
    };
    command.mut_subcommands(|command| laid_out(command, width))
}

/// A text whose paragraphs are lines, for clap to break. Lines that are indented are examples: what is said about one is beside it, or
/// below it where that is too wide.
fn of_width(text: &str, width: usize) -> String {
    let is_example = |line: &str| line.starts_with(' ');
    let mut whole = String::with_capacity(text.len());
    let mut last = "";
    for line in text.lines() {
        let goes_on = !last.is_empty() && !line.is_empty() && !last.ends_with(':');
        match goes_on && !is_example(last) && !is_example(line) {
            true => whole.push(' '),
            false if whole.is_empty() => {}
            false => whole.push('\n'),
        }
        match line.trim_start().split_once("  ").filter(|_| is_example(line) && line.chars().count() > width)
        {
            Some((example, about)) => whole.push_str(&format!("  {example}\n      {}", about.trim_start())),
            None => whole.push_str(line),
        }
        last = line;
    }
    whole
}

/// Starts the log on the error output. With `never_wait` lines go through a bounded queue and are dropped when nobody takes
/// them: a worker must not wait for whoever reads our errors. Keep what is returned; it writes out what is queued.
/// The environment is stronger than the filter `named` in a configuration; with `log_sessions` their lines pass either.
fn start_log(never_wait: bool, named: Option<LogFilter>, log_sessions: bool) -> Option<WorkerGuard> {
    let environment = std::env::var_os(LOG_VARIABLE);
    let (filter, fault) =
        LogFilter::chosen(environment.as_deref().map(OsStr::to_string_lossy).as_deref(), named);
    let sessions = log_sessions.then(|| Directive::from_str(&format!("{SESSION_LOG}=info")).ok()).flatten();
    let directives = filter.directives();
    let filter = sessions.into_iter().fold(directives, EnvFilter::add_directive);
    let guard = start_filtered(never_wait, filter);
    if let Some(fault) = fault {
        tracing::warn!("{LOG_VARIABLE}: {fault}. Logging at info");
    }
    guard
}

fn start_filtered(never_wait: bool, filter: EnvFilter) -> Option<WorkerGuard> {
    // By the convention of no-color.org: whatever it says, if it says anything.
    let is_plain = std::env::var_os("NO_COLOR").is_some_and(|text| !text.is_empty());
    let ansi = !is_plain && std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Fails only when a subscriber is set already: then that one is meant.
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(ansi)
        // It would complain on the very output that is broken, and panic.
        .log_internal_errors(false);
    // Without room for one more thread the data plane says so when it misses its workers' threads.
    if !never_wait || runtime::try_threads(1).is_err() {
        log.with_writer(std::io::stderr).try_init().ok();
        return None;
    }
    let (writer, guard) = tracing_appender::non_blocking(std::io::stderr());
    log.with_writer(writer).try_init().ok();
    Some(guard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        command().debug_assert();
    }

    #[test]
    fn paragraphs_are_lines_and_examples_stay() {
        let text = "Examples:\n  one   first\n  two\n\nA text that\nis broken.\n\nCodes:\n  0 good";
        let whole = "Examples:\n  one   first\n  two\n\nA text that is broken.\n\nCodes:\n  0 good";
        assert_eq!(of_width(text, 80), whole);
        let narrow = "Examples:\n  one\n      first\n  two\n\nA text that is broken.\n\nCodes:\n  0 good";
        assert_eq!(of_width(text, 10), narrow);
    }
}
