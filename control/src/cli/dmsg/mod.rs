//! `ringwire dmsg`: the client's side of dmsg for people and scripts.

mod carry;
mod curl;
mod dial;
mod events;
mod listen;
mod network;
mod part;
mod ping;
mod serve;

use std::process::ExitCode;

use clap::Subcommand;

use super::runtime::runtime;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Measure round trips to a server, or to a port of a client
    Ping(ping::Arguments),
    /// Make an HTTP request over dmsg
    Curl(curl::Arguments),
    /// Take streams on a port: to standard output, or on to a TCP address
    Listen(listen::Arguments),
    /// Open a stream from standard input and output, or from a local TCP port
    Dial(dial::Arguments),
    /// Serve a directory or a local web server over dmsg
    Serve(serve::Arguments),
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    let runtime = runtime(None)?;
    let result = runtime.block_on(async {
        match command {
            Command::Ping(arguments) => ping::run(arguments).await,
            Command::Curl(arguments) => curl::run(arguments).await,
            Command::Listen(arguments) => listen::run(arguments).await,
            Command::Dial(arguments) => dial::run(arguments).await,
            Command::Serve(arguments) => serve::run(arguments).await,
        }
    });
    // A blocked read of standard input must not keep the process.
    runtime.shutdown_background();
    result
}
