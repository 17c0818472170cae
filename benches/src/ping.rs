//! The ping process: client and echo of a 64-byte ping-pong, both in one thread, apart from the generator.
//!
//! In, on standard input: where the relay is (`Task`), then a line to begin. Out, on standard output: the echo's
//! listener (`Hello`), a line when connected, and the round trips ([`Figures`]). The thread blocks in `recv` and asks
//! for real-time priority, so that the generator on the same core delays it as little as the kernel allows. One process
//! for each row; [`PingChild`] is its handle in the measuring process.

use crate::cpu;
use crate::frames::{FIN, GO_AWAY, HEADER_LEN, Header, PING, Piece, RST, SYN, Scanner, WINDOW_UPDATE};
use crate::generator::{PING_LEN, latencies, ping_frame};
use crate::link::{Link, Route, StreamPair};
use crate::relay::{Ready, loopback_listener};
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use ringwire_proto::identity::PublicKey;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// First line of the process.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    sink: SocketAddr,
}

/// What to do.
#[derive(Debug, Serialize, Deserialize)]
struct Task {
    relay: SocketAddr,
    public_key: Option<String>,
    warmup_us: u64,
    window_us: u64,
}

/// Sent both ways: "connected", and "begin".
#[derive(Debug, Serialize, Deserialize)]
struct Signal {}

/// Round trips of one window, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// How many.
    pub count: u64,
    /// Half were faster.
    pub p50_us: f64,
    /// 99 of 100 were faster.
    pub p99_us: f64,
    /// 999 of 1000 were faster.
    pub p999_us: f64,
    /// The slowest.
    pub max_us: f64,
    /// Whether the pinging thread had real-time priority.
    pub real_time: bool,
}

impl Figures {
    /// The figures of a histogram of nanoseconds.
    #[must_use]
    pub fn of(histogram: &Histogram<u64>, real_time: bool) -> Self {
        let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1000.0;
        Self {
            count: histogram.len(),
            p50_us: at(0.5),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: histogram.max() as f64 / 1000.0,
            real_time,
        }
    }
}

/// The process's own program.
///
/// # Errors
/// When the relay or the measuring process goes away, or an answer has other content than its question.
pub fn run(core: Option<usize>) -> Result<()> {
    if let Some(core) = core {
        cpu::pin(core).with_context(|| format!("core {core} is not available"))?;
    }
    let real_time = cpu::real_time();
    let sink = loopback_listener()?;
    let mut input = std::io::stdin().lock();
    say(&Hello { sink: sink.local_addr()? })?;
    let task: Task = hear(&mut input)?;
    let mut ends = Ends::open(&task, &sink)?;
    say(&Signal {})?;
    let _begin: Signal = hear(&mut input)?;
    ends.run_for(Duration::from_micros(task.warmup_us), None)?;
    let mut histogram = latencies()?;
    ends.run_for(Duration::from_micros(task.window_us), Some(&mut histogram))?;
    say(&Figures::of(&histogram, real_time))
}

fn say(message: &impl Serialize) -> Result<()> {
    write_line(&mut std::io::stdout().lock(), message)
}

fn write_line(out: &mut impl Write, message: &impl Serialize) -> Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    out.write_all(&line)?;
    Ok(out.flush()?)
}

fn hear<T: DeserializeOwned>(input: &mut impl BufRead) -> Result<T> {
    let mut line = String::new();
    input.read_line(&mut line)?;
    serde_json::from_str(&line).context("the other process went away")
}

/// Both ends of the ping stream.
struct Ends {
    client: End,
    echo: End,
    sequence: u64,
}

/// One end: a blocking socket and the state of its stream.
struct End {
    socket: TcpStream,
    scanner: Scanner,
    stream: u32,
    credit: u64,
}

impl Ends {
    fn open(task: &Task, sink: &TcpListener) -> Result<Self> {
        let link = Link::open(&route_to(task.relay, task.public_key.as_deref(), sink)?, 0, true)?;
        let StreamPair { sender_id, sink_id, sender_credit, sink_credit } =
            link.ping.context("no ping stream")?;
        let end = |socket, stream, credit| End { socket, scanner: Scanner::default(), stream, credit };
        Ok(Self {
            client: end(link.sender, sender_id, sender_credit),
            echo: end(link.sink, sink_id, sink_credit),
            sequence: 0,
        })
    }

    fn run_for(&mut self, time: Duration, mut histogram: Option<&mut Histogram<u64>>) -> Result<()> {
        let until = Instant::now() + time;
        loop {
            let asked = Instant::now();
            if asked >= until {
                return Ok(());
            }
            let question = ping_frame(self.client.stream, self.sequence);
            self.client.send(&question)?;
            let heard = self.echo.receive()?;
            let mut answer = ping_frame(self.echo.stream, 0);
            answer[HEADER_LEN..].copy_from_slice(&heard);
            self.echo.send(&answer)?;
            let back = self.client.receive()?;
            let took = asked.elapsed();
            if back[..] != question[HEADER_LEN..] {
                bail!("the answer to ping {} has other content", self.sequence);
            }
            if let Some(histogram) = &mut histogram {
                histogram.saturating_record(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
            }
            self.sequence += 1;
        }
    }
}

impl End {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.credit = self
            .credit
            .checked_sub(PING_LEN as u64)
            .context("the relay did not return the credit of the ping stream")?;
        self.socket.write_all(frame).context("a ping connection failed")
    }

    /// Blocks until a whole ping is here.
    fn receive(&mut self) -> Result<[u8; PING_LEN]> {
        let mut ping = [0; PING_LEN];
        let mut filled = 0;
        let mut buffer = [0; 4096];
        while filled < PING_LEN {
            let len = self.socket.read(&mut buffer).context("a ping connection failed")?;
            if len == 0 {
                bail!("the relay closed a ping connection");
            }
            let mut input = &buffer[..len];
            while let Some(piece) = self.scanner.next(&mut input)? {
                match piece {
                    Piece::Header(header) => self.handle_header(header)?,
                    Piece::Payload { bytes, .. } => {
                        let rest =
                            ping.get_mut(filled..filled + bytes.len()).context("more came than was sent")?;
                        rest.copy_from_slice(bytes);
                        filled += bytes.len();
                    }
                }
            }
        }
        Ok(ping)
    }

    fn handle_header(&mut self, header: Header) -> Result<()> {
        let Header { kind, flags, stream, length } = header;
        if flags & (FIN | RST) != 0 || kind == GO_AWAY {
            bail!("the relay ended the ping stream: {header:?}");
        }
        if kind == PING && flags & SYN != 0 {
            self.socket
                .write_all(&Header { kind: PING, flags: crate::frames::ACK, stream: 0, length }.encode())?;
        }
        if kind == WINDOW_UPDATE && stream == self.stream {
            self.credit += u64::from(length);
        }
        Ok(())
    }
}

/// The way through a relay that said `ready`, for the sink with this number.
///
/// # Errors
/// When the relay does not listen for it, or its key cannot be read.
pub fn route<'a>(ready: &Ready, number: usize, sink: &'a TcpListener) -> Result<Route<'a>> {
    route_to(address_of(ready, number)?, ready.public_key.as_deref(), sink)
}

fn address_of(ready: &Ready, number: usize) -> Result<SocketAddr> {
    let number = if ready.public_key.is_some() { 0 } else { number };
    ready.addresses.get(number).copied().context("the relay does not listen for this sink")
}

fn route_to<'a>(relay: SocketAddr, public_key: Option<&str>, sink: &'a TcpListener) -> Result<Route<'a>> {
    Ok(match public_key {
        Some(text) => Route::Sessions { server: relay, key: text.parse::<PublicKey>()?, place: None },
        None => Route::Plain { relay, sink },
    })
}

/// The ping process, seen from the measuring one; killed when dropped.
pub struct PingChild {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    sink: SocketAddr,
}

impl PingChild {
    /// Starts it and learns where its echo listens.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(program: &Path, core: Option<usize>) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg("ping-peer");
        if let Some(core) = core {
            command.args(["--core", &core.to_string()]);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let input = child.stdin.take().context("the ping process has no standard input")?;
        let mut output =
            BufReader::new(child.stdout.take().context("the ping process has no standard output")?);
        let hello: Hello = hear(&mut output)?;
        Ok(Self { child, input, output, sink: hello.sink })
    }

    /// Where the relay has to connect to.
    #[must_use]
    pub fn sink(&self) -> SocketAddr {
        self.sink
    }

    /// Lets it connect through the relay, for which its sink has this number.
    ///
    /// # Errors
    /// When it cannot.
    pub fn connect(
        &mut self,
        ready: &Ready,
        number: usize,
        warmup: Duration,
        window: Duration,
    ) -> Result<()> {
        let microseconds = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let task = Task {
            relay: address_of(ready, number)?,
            public_key: ready.public_key.clone(),
            warmup_us: microseconds(warmup),
            window_us: microseconds(window),
        };
        write_line(&mut self.input, &task)?;
        let _connected: Signal = hear(&mut self.output).context("the ping process did not connect")?;
        Ok(())
    }

    /// Starts its warm-up, and its window after that.
    ///
    /// # Errors
    /// When it has ended.
    pub fn begin(&mut self) -> Result<()> {
        write_line(&mut self.input, &Signal {})
    }

    /// Waits for its figures.
    ///
    /// # Errors
    /// When it failed; its reason is on standard error.
    pub fn figures(mut self) -> Result<Figures> {
        hear(&mut self.output).context("the ping process failed")
    }
}

impl Drop for PingChild {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
