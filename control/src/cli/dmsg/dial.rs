//! `ringwire dmsg dial`: a stream to a port of another client, from standard input and output or from local TCP
//! connections.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use ringwire_proto::identity::Address;
use serde::Serialize;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::carry::{Carried, carry, is_reader_gone};
use super::events::{Place, Reporter, end_asked};
use super::listen::FORWARDS_MAX;
use super::network::{Network, address};
use crate::cli::signals::Signals;
use crate::dmsg::Client;
use crate::http::bind;

/// Pause after a failed accept: out of descriptors, mostly.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  echo hello | ringwire dmsg dial 03..:9                  standard input and output
  ringwire dmsg dial 03..:22 --from 127.0.0.1:2222        each TCP connection to 2222 becomes a stream
  ssh -p 2222 localhost                                   then, from another terminal

A dmsg server ends both directions of a stream when one ends. So the end of the input is passed on only when nothing more
has come back for --linger seconds.

With standard input and output it exits with 0 only when the stream ended in order, or when whoever reads the output has read
enough, such as head.")]
pub(in crate::cli) struct Arguments {
    /// Whom to dial
    #[arg(value_name = "PK:PORT", value_parser = address)]
    destination: Address,
    /// Take TCP connections here and dial for each; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS")]
    from: Option<SocketAddr>,
    /// Seconds that the other side may stay silent after the input ended, before the stream ends too
    #[arg(long, value_name = "S", default_value_t = 2)]
    linger: u32,
    /// Events as JSON: to standard output with --from, else to the error output
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: Network,
}

#[derive(Serialize)]
struct Ready {
    event: &'static str,
    address: SocketAddr,
}

#[derive(Serialize)]
struct Ended {
    event: &'static str,
    from: Option<SocketAddr>,
    sent: u64,
    received: u64,
    error: Option<String>,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let linger = Duration::from_secs(arguments.linger.into());
    let mut signals = Signals::new()?;
    // Taken first: a busy port is told before anything else is done.
    let listener = match arguments.from {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let client = arguments.network.connect(1, arguments.json).await?;
    let result = match listener {
        Some(listener) => {
            let reporter = Reporter { json: arguments.json, place: Place::Output };
            tokio::select! {
                () = end_asked(&mut signals) => Ok(()),
                served = serve(listener, &client, arguments.destination, linger, reporter) => served,
            }
        }
        None => {
            let carried = tokio::select! {
                () = end_asked(&mut signals) => Err(anyhow!("told to end before the stream had")),
                carried = once(&client, arguments.destination, linger) => carried.map(Some),
            };
            carried.map(|carried| {
                if let (Some(Carried { sent, received }), true) = (carried, arguments.json) {
                    let reporter = Reporter { json: true, place: Place::Errors };
                    reporter.tell(&Ended { event: "end", from: None, sent, received, error: None }, "");
                }
            })
        }
    };
    client.close().await;
    result.map(|()| ExitCode::SUCCESS)
}

async fn once(client: &Client, destination: Address, linger: Duration) -> anyhow::Result<Carried> {
    let stream = client.dial(destination).await?;
    let (carried, end) = carry(stream, tokio::io::stdin(), tokio::io::stdout(), linger).await;
    end.or_else(|error| if is_reader_gone(&error) { Ok(()) } else { Err(error) }).map_err(|error| {
        anyhow!(
            "the stream broke off after {} bytes received and {} sent: {error}; what is missing must be asked for again",
            carried.received,
            carried.sent
        )
    })?;
    Ok(carried)
}

async fn serve(
    listener: TcpListener,
    client: &Client,
    destination: Address,
    linger: Duration,
    reporter: Reporter,
) -> anyhow::Result<()> {
    let address = listener.local_addr()?;
    reporter.tell(
        &Ready { event: "ready", address },
        &format!("{address} leads to {}:{}", destination.key, destination.port),
    );
    let slots = Arc::new(Semaphore::new(FORWARDS_MAX));
    let mut forwards = JoinSet::new();
    loop {
        // Never closed.
        let slot = Arc::clone(&slots).acquire_owned().await?;
        while forwards.try_join_next().is_some() {}
        let (connection, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept TCP connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let client = client.clone();
        forwards.spawn(async move {
            let (Carried { sent, received }, error) =
                match forward(connection, &client, destination, linger).await {
                    Ok((carried, end)) => (carried, end.err().map(|error| error.to_string())),
                    Err(error) => (Carried::default(), Some(error.to_string())),
                };
            let text = match &error {
                None => format!("end of {from}: {received} bytes received, {sent} sent"),
                Some(error) => format!("end of {from}: {error}"),
            };
            reporter.tell(&Ended { event: "end", from: Some(from), sent, received, error }, &text);
            drop(slot);
        });
    }
}

async fn forward(
    connection: TcpStream,
    client: &Client,
    destination: Address,
    linger: Duration,
) -> anyhow::Result<(Carried, std::io::Result<()>)> {
    connection.set_nodelay(true).ok();
    let stream = client.dial(destination).await?;
    let (input, output) = connection.into_split();
    Ok(carry(stream, input, output, linger).await)
}
