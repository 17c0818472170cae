//! The receiving half of a link.
//!
//! In: what the relay delivers. Out: counts, a comparison with what was sent, credit, and answers to pings. Called by
//! the generator's turn only.

use super::Load;
use super::ping::Echo;
use super::sender::Sender;
use crate::frames::{
    ACK, FIN, GO_AWAY, HEADER_LEN, Header, PING, Piece, RST, SYN, Scanner, WINDOW_UPDATE, content,
};
use crate::link::Link;
use anyhow::{Context, Result, bail};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use std::net::TcpStream;

/// A stream's credit is renewed after this much payload; far below the 1 GiB granted at the start.
const TOP_UP_LEN: u64 = 256 << 20;
/// Receives of one turn, so that the sender is not kept waiting.
const RECEIVES_PER_TURN: usize = 4;

pub(super) struct Sink {
    socket: Option<TcpStream>,
    mode: Mode,
    windowed: bool,
    scanner: Scanner,
    control: Vec<u8>,
    streams: Vec<InStream>,
    echo: Option<Echo>,
    mismatch: Option<String>,
    pub(super) readable: bool,
    pub(super) wire_received: u64,
}

/// What is done with received bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Dropped inside the kernel.
    Discard,
    /// Parsed for pings; bulk is counted.
    Parse,
    /// Parsed and compared byte for byte.
    Verify,
}

struct InStream {
    id: u32,
    number: u32,
    payload_received: u64,
    topped_up_at: u64,
}

impl Sink {
    pub(super) fn new(link: &Link, load: Load, first_number: u32) -> Result<Self> {
        let mode = match (load.verified, &link.ping) {
            (true, _) => Mode::Verify,
            (false, Some(_)) => Mode::Parse,
            (false, None) => Mode::Discard,
        };
        let streams = link
            .streams
            .iter()
            .zip(first_number..)
            .map(|(pair, number)| InStream { id: pair.sink_id, number, payload_received: 0, topped_up_at: 0 })
            .collect();
        Ok(Self {
            socket: None,
            mode,
            windowed: link.windowed,
            scanner: Scanner::default(),
            control: Vec::new(),
            streams,
            echo: link.ping.as_ref().map(|pair| Echo::new(pair.sink_id, pair.sink_credit)),
            mismatch: None,
            readable: true,
            wire_received: 0,
        })
    }

    pub(super) fn with_socket(mut self, socket: TcpStream) -> Self {
        self.socket = Some(socket);
        self
    }

    pub(super) fn receive(&mut self, scratch: &mut [u8]) -> Result<()> {
        // For the ping's sake a parsing sink takes smaller bites; a discarding one costs the same whatever the length.
        let scratch = match self.mode {
            Mode::Discard => scratch,
            Mode::Parse | Mode::Verify => &mut scratch[..128 * 1024],
        };
        let flags = if self.mode == Mode::Discard { RecvFlags::TRUNC } else { RecvFlags::empty() };
        for _ in 0..RECEIVES_PER_TURN {
            let socket = self.socket.as_ref().context("no socket")?;
            match rustix::net::recv(socket, &mut *scratch, flags) {
                Ok((_, 0)) => bail!("the relay closed a sink's connection"),
                Ok((_, len)) => {
                    self.wire_received += len as u64;
                    if self.mode != Mode::Discard {
                        self.scan(&scratch[..len])?;
                    }
                    if len < scratch.len() {
                        self.readable = false;
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("a sink's connection failed"),
            }
        }
        Ok(())
    }

    fn scan(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(piece) = self.scanner.next(&mut input)? {
            match piece {
                Piece::Header(header) => self.handle_header(header)?,
                Piece::Payload { stream, bytes, .. } => self.handle_payload(stream, bytes)?,
            }
        }
        Ok(())
    }

    fn handle_header(&mut self, header: Header) -> Result<()> {
        let Header { kind, flags, stream, length } = header;
        if flags & (FIN | RST) != 0 || kind == GO_AWAY {
            bail!("the relay ended a stream or the session of a sink: {header:?}");
        }
        if kind == PING && flags & SYN != 0 {
            self.control.extend_from_slice(&Header { kind: PING, flags: ACK, stream: 0, length }.encode());
        }
        if kind == WINDOW_UPDATE
            && let Some(echo) = self.echo.as_mut().filter(|echo| echo.stream == stream)
        {
            echo.credit += u64::from(length);
        }
        Ok(())
    }

    fn handle_payload(&mut self, stream: u32, bytes: &[u8]) -> Result<()> {
        if let Some(echo) = self.echo.as_mut().filter(|echo| echo.stream == stream) {
            return echo.receive(bytes, &mut self.control);
        }
        let Some(incoming) = self.streams.iter_mut().find(|incoming| incoming.id == stream) else {
            bail!("the relay delivered data on stream {stream}, which does not exist");
        };
        if self.mode == Mode::Verify
            && self.mismatch.is_none()
            && !content::matches(incoming.number, incoming.payload_received, bytes)
        {
            let position = incoming.payload_received;
            self.mismatch = Some(format!("wrong content on stream {stream} behind byte {position}"));
        }
        incoming.payload_received += bytes.len() as u64;
        Ok(())
    }

    /// Renews the credit of each stream by what its sender has sent since the last time. The relay cannot have
    /// delivered more, so the credit it holds never exceeds what was granted at the start.
    pub(super) fn top_up(&mut self, sender: &Sender) {
        if !self.windowed {
            return;
        }
        for (incoming, outgoing) in self.streams.iter_mut().zip(sender.streams()) {
            let due = outgoing.payload_sent - incoming.topped_up_at;
            if due >= TOP_UP_LEN {
                let increment = u32::try_from(due).unwrap_or(u32::MAX);
                incoming.topped_up_at += u64::from(increment);
                self.control.extend_from_slice(&Header::window_update(incoming.id, 0, increment).encode());
            }
        }
    }

    /// Writes credit and answers. What a full socket does not take goes with the next turn.
    pub(super) fn flush(&mut self) -> Result<()> {
        if self.control.is_empty() {
            return Ok(());
        }
        match rustix::io::write(self.socket.as_ref().context("no socket")?, &self.control) {
            Ok(written) => {
                self.control.drain(..written);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(error) => Err(error).context("a sink's connection failed"),
        }
    }

    /// Whether everything that `sender` sent is here; `quiet` says that nothing came for a while.
    pub(super) fn is_drained(&self, sender: &Sender, quiet: bool) -> bool {
        match self.mode {
            Mode::Parse | Mode::Verify => self.payload_received() >= sender.payload_sent(),
            Mode::Discard if self.windowed => quiet && self.wire_received >= sender.payload_sent(),
            Mode::Discard => self.wire_received >= sender.wire_sent,
        }
    }

    /// Missing payload bytes, and what is wrong in words.
    pub(super) fn compare(&self, sender: &Sender) -> (u64, Option<String>) {
        let sent = sender.payload_sent();
        if let Some(mismatch) = &self.mismatch {
            return (0, Some(mismatch.clone()));
        }
        if self.mode != Mode::Discard {
            let received = self.payload_received();
            let words = format!("{sent} payload bytes sent, {received} received");
            return (sent.saturating_sub(received), (sent != received).then_some(words));
        }
        let wire = self.wire_received;
        if !self.windowed {
            let words = format!("{} bytes sent, {wire} received", sender.wire_sent);
            return (sender.wire_sent.saturating_sub(wire), (wire != sender.wire_sent).then_some(words));
        }
        match wire.checked_sub(sent) {
            None => (sent - wire, Some(format!("{sent} payload bytes sent, {wire} received with headers"))),
            Some(headers) if headers % HEADER_LEN as u64 != 0 => {
                // A lost frame of either shape leaves a remainder: neither 4096 nor 65536 is a multiple of 12.
                (
                    1,
                    Some(format!(
                        "{sent} payload bytes sent, {wire} received: not payload and whole headers"
                    )),
                )
            }
            Some(_) => (0, None),
        }
    }

    fn payload_received(&self) -> u64 {
        self.streams.iter().map(|stream| stream.payload_received).sum()
    }
}
