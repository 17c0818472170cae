//! `ringwire keys`: secret keys in files, and the public keys that belong to them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use ringwire_proto::identity::SecretKey;
use serde::Serialize;
use zeroize::Zeroizing;

use super::output::{print_json, print_text};
use crate::state::{STATE_VARIABLE, State, key_file};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make a new key in a file that only its owner can read, and print its public key
    Generate(Generate),
    /// Print the public key of a key file
    Show(Show),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire keys generate my.key
  ringwire dmsg listen 9 --key-file my.key

A file that exists is never overwritten.")]
pub(super) struct Generate {
    /// File to make
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire keys show                     the one in the state directory
  ringwire keys show my.key
  ringwire keys show my.key --secret     the secret key too: whoever has it is you

A server whose configuration carries a key, as a Go server's does, has that one: ringwire status shows it.")]
pub(super) struct Show {
    /// Key file [default: the one in the state directory]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
    /// State directory [default: $XDG_STATE_HOME/ringwire or ~/.local/state/ringwire]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// Print the secret key as well
    #[arg(long)]
    secret: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Report<'a> {
    public_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    secret_key: Option<&'a str>,
    file: PathBuf,
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Generate(Generate { file, json }) => {
            let key = key_file::create(&file)?;
            print(&key, file, false, json)
        }
        Command::Show(Show { file, state, secret, json }) => {
            let file = match file {
                Some(file) => file,
                None => State::locate(state)?.key_path(),
            };
            let key = key_file::read(&file)?;
            print(&key, file, secret, json)
        }
    }
}

fn print(key: &SecretKey, file: PathBuf, secret: bool, json: bool) -> anyhow::Result<ExitCode> {
    let hex = key.to_hex();
    let secret_key = secret.then_some(hex.as_str());
    let public_key = key.public_key().to_string();
    match secret_key {
        _ if json => print_json(&Report { public_key, secret_key, file })?,
        None => print_text(&format!("{public_key}\n"))?,
        Some(secret_key) => {
            let text = format!("public key  {public_key}\nsecret key  {secret_key}\n");
            print_text(&Zeroizing::new(text))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
