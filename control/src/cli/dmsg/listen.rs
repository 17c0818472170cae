//! `ringwire dmsg listen`: streams that others dial, to standard output or on to a TCP address.

use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::carry::{Carried, carry, is_reader_gone};
use super::events::{Place, Reporter, end_asked};
use super::network::Network;
use crate::cli::signals::Signals;
use crate::dmsg::{Listener, Stream};

/// Streams forwarded at a time. More: the next one waits in the listener, whose queue then refuses further ones.
pub(super) const FORWARDS_MAX: usize = 256;

/// How long a forward waits for its TCP connection.
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// Sessions to keep: one more than needed, so that the end of a server does not make this port unreachable.
pub(super) const SESSIONS: usize = 2;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  ringwire dmsg listen 9 --key-file my.key               what arrives, stream after stream, on standard output
  ringwire dmsg listen 9 --once > file                   one stream, then the end; exit code 0 if it came whole
  ringwire dmsg listen 22 --forward 127.0.0.1:22         each stream becomes a TCP connection

Others reach it with: ringwire dmsg dial PUBLICKEY:PORT. Without --key-file its key is another one each time.
Events (ready, stream, end) go to standard output, or to the error output when standard output carries the streams. A reader of
the standard output that has read enough, such as head, ends it, and is no failure.")]
pub(in crate::cli) struct Arguments {
    /// Port to listen on
    #[arg(value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Forward each stream to this TCP address
    #[arg(long, value_name = "HOST:PORT")]
    forward: Option<String>,
    /// End after the first stream
    #[arg(long)]
    once: bool,
    /// Seconds that the other side may stay silent after the TCP connection ended, before the stream ends too
    #[arg(long, value_name = "S", default_value_t = 10)]
    linger: u32,
    /// Events as JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    network: Network,
}

#[derive(Serialize)]
struct Ready {
    event: &'static str,
    public_key: String,
    port: u16,
}

#[derive(Serialize)]
struct Opened {
    event: &'static str,
    peer: String,
}

#[derive(Serialize)]
struct Ended {
    event: &'static str,
    peer: String,
    sent: u64,
    received: u64,
    error: Option<String>,
}

pub(super) async fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let place = if arguments.forward.is_some() { Place::Output } else { Place::Errors };
    let reporter = Reporter { json: arguments.json, place };
    let mut signals = Signals::new()?;
    let client = arguments.network.connect(SESSIONS, arguments.json).await?;
    let listener = client.listen(arguments.port)?;
    let ready = Ready { event: "ready", public_key: client.public_key().to_string(), port: arguments.port };
    let text = format!("listening on {}:{}", ready.public_key, ready.port);
    reporter.tell(&ready, &text);
    let result = tokio::select! {
        () = end_asked(&mut signals) => match arguments.once {
            true => Err(anyhow!("told to end before a whole stream had come")),
            false => Ok(()),
        },
        served = serve(listener, &arguments, reporter) => served,
    };
    client.close().await;
    result.map(|()| ExitCode::SUCCESS)
}

async fn serve(mut listener: Listener, arguments: &Arguments, reporter: Reporter) -> anyhow::Result<()> {
    let linger = Duration::from_secs(arguments.linger.into());
    let slots = Arc::new(Semaphore::new(FORWARDS_MAX));
    let mut forwards = JoinSet::new();
    loop {
        // Never closed.
        let slot = Arc::clone(&slots).acquire_owned().await?;
        while forwards.try_join_next().is_some() {}
        let stream = listener.accept().await?;
        reporter.tell(
            &Opened { event: "stream", peer: peer(&stream) },
            &format!("stream from {}", peer(&stream)),
        );
        let forward = arguments.forward.clone();
        let work = async move {
            let end = handle(stream, forward.as_deref(), linger, reporter).await;
            drop(slot);
            end
        };
        if arguments.once {
            // Whoever wants one stream wants all of it, unless he has had enough.
            return work.await.map(drop).map_err(|error| {
                anyhow!(
                    "the stream did not come to its end: {error}. What arrived is not all of it; have it sent again"
                )
            });
        }
        // Standard output takes one at a time.
        if arguments.forward.is_none() {
            // Told already, and the next one is another's; but nobody would read that.
            if work.await == Ok(Next::Nobody) {
                return Ok(());
            }
        } else {
            forwards.spawn(work);
        }
    }
}

/// What comes behind a stream.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Stream,
    /// Nobody reads the standard output any more.
    Nobody,
}

/// Carries one stream, and tells how that went.
async fn handle(
    stream: Stream,
    forward: Option<&str>,
    linger: Duration,
    reporter: Reporter,
) -> Result<Next, String> {
    let peer = peer(&stream);
    let (Carried { sent, received }, end) = match forward {
        None => carry(stream, Never, tokio::io::stdout(), linger).await,
        Some(address) => match timeout(CONNECT_LIMIT, TcpStream::connect(address)).await {
            Ok(Ok(connection)) => {
                connection.set_nodelay(true).ok();
                let (input, output) = connection.into_split();
                carry(stream, input, output, linger).await
            }
            Ok(Err(error)) => {
                let text = format!("cannot connect to {address}: {error}");
                (Carried::default(), Err(std::io::Error::new(error.kind(), text)))
            }
            Err(_) => {
                let text = format!("cannot connect to {address} within {} s", CONNECT_LIMIT.as_secs());
                (Carried::default(), Err(std::io::Error::new(std::io::ErrorKind::TimedOut, text)))
            }
        },
    };
    let (next, error) = match end {
        Ok(()) => (Next::Stream, None),
        Err(error) if forward.is_none() && is_reader_gone(&error) => (Next::Nobody, None),
        Err(error) => (Next::Stream, Some(error.to_string())),
    };
    let text = match &error {
        None => format!("end of {peer}: {received} bytes received, {sent} sent"),
        Some(error) => format!("end of {peer} after {received} bytes received and {sent} sent: {error}"),
    };
    reporter.tell(&Ended { event: "end", peer, sent, received, error: error.clone() }, &text);
    error.map_or(Ok(next), Err)
}

fn peer(stream: &Stream) -> String {
    let address = stream.peer_address();
    format!("{}:{}", address.key, address.port)
}

/// An input that never has anything and never ends: this side only listens.
struct Never;

impl tokio::io::AsyncRead for Never {
    fn poll_read(
        self: std::pin::Pin<&mut Self>,
        _context: &mut std::task::Context<'_>,
        _out: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<std::io::Result<()>> {
        std::task::Poll::Pending
    }
}
