//! The sending half of a link.
//!
//! In: credit and ping answers from the relay. Out: frames, in the writes that the shape prescribes. Called by the
//! generator's turn only.

use super::Load;
use super::ping::Asker;
use crate::frames::{
    ACK, DATA, FIN, GO_AWAY, HEADER_LEN, Header, PING, Piece, RST, SYN, Scanner, Shape, WINDOW_UPDATE,
    content,
};
use crate::link::Link;
use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use rustix::io::Errno;
use std::io::IoSlice;
use std::net::TcpStream;
use std::time::Instant;

/// Input of a sender is credit; more than this at once does not happen outside faults.
const INPUT_LEN: usize = 64 * 1024;

pub(super) struct Sender {
    socket: Option<TcpStream>,
    load: Load,
    scanner: Scanner,
    /// Whole frames that go out before the next frame of bulk.
    control: Vec<u8>,
    streams: Vec<OutStream>,
    /// Where the search for the next stream with credit begins.
    next: usize,
    current: Option<Current>,
    asker: Option<Asker>,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) wire_sent: u64,
}

pub(super) struct OutStream {
    id: u32,
    /// Number over all links, which selects the content.
    number: u32,
    credit: u64,
    header: [u8; HEADER_LEN],
    /// Payload that was sent in whole frames.
    pub(super) payload_sent: u64,
    /// Content of the frame under way; only in verified rounds.
    own: Vec<u8>,
}

/// A frame of which `offset` bytes are out.
#[derive(Clone, Copy)]
struct Current {
    stream: usize,
    offset: usize,
}

impl Sender {
    pub(super) fn new(link: &Link, load: Load, first_number: u32) -> Result<Self> {
        let own_len = if load.verified { load.shape.payload_len() } else { 0 };
        let streams = link
            .streams
            .iter()
            .zip(first_number..)
            .map(|(pair, number)| OutStream {
                id: pair.sender_id,
                number,
                credit: pair.sender_credit,
                header: load.shape.header(pair.sender_id),
                payload_sent: 0,
                own: vec![0; own_len],
            })
            .collect();
        let asker = match &link.ping {
            Some(pair) => Some(Asker::new(pair.sender_id, pair.sender_credit)?),
            None => None,
        };
        Ok(Self {
            socket: None,
            load,
            scanner: Scanner::default(),
            control: Vec::new(),
            streams,
            next: 0,
            current: None,
            asker,
            readable: true,
            writable: true,
            wire_sent: 0,
        })
    }

    pub(super) fn with_socket(mut self, socket: TcpStream) -> Self {
        self.socket = Some(socket);
        self
    }

    pub(super) fn streams(&self) -> &[OutStream] {
        &self.streams
    }

    pub(super) fn payload_sent(&self) -> u64 {
        self.streams.iter().map(|stream| stream.payload_sent).sum()
    }

    pub(super) fn is_between_frames(&self) -> bool {
        self.current.is_none() && self.control.is_empty() && self.asker.as_ref().is_none_or(Asker::is_idle)
    }

    pub(super) fn take_latencies(&mut self) -> Option<Histogram<u64>> {
        self.asker.as_mut().map(Asker::take_latencies)
    }

    /// Whether a call of [`Sender::send`] would try to write.
    pub(super) fn can_send(&self, sending: bool) -> bool {
        self.writable
            && (self.current.is_some()
                || !self.control.is_empty()
                || (sending && (self.pick().is_some() || self.asker.as_ref().is_some_and(Asker::is_idle))))
    }

    /// Writes what was begun, then control frames, then up to `frames` new frames when `sending`. Returns how many were
    /// begun.
    pub(super) fn send(
        &mut self,
        prepared: &[u8],
        frames: usize,
        sending: bool,
        now: Instant,
    ) -> Result<usize> {
        if sending && let Some(asker) = &mut self.asker {
            asker.ask(now, &mut self.control)?;
        }
        let frames = if sending { frames } else { 0 };
        match self.load.shape {
            Shape::Bulk64k => self.send_whole(prepared, frames),
            Shape::GoClient => self.send_in_two_writes(prepared, frames),
        }
    }

    /// The next stream in turn that has credit for a frame.
    fn pick(&self) -> Option<usize> {
        let len = self.load.shape.payload_len() as u64;
        (0..self.streams.len())
            .map(|step| (self.next + step) % self.streams.len())
            .find(|index| self.streams[*index].credit >= len)
    }

    fn begin(&mut self, index: usize) {
        self.next = (index + 1) % self.streams.len();
        let stream = &mut self.streams[index];
        stream.credit -= self.load.shape.payload_len() as u64;
        if self.load.verified {
            content::fill(stream.number, stream.payload_sent, &mut stream.own);
        }
    }

    /// Notes that `written` bytes of the frame under way are out.
    fn advance(&mut self, current: Current, written: usize) {
        let payload_len = self.load.shape.payload_len();
        let offset = current.offset + written;
        self.current = (offset < HEADER_LEN + payload_len).then_some(Current { offset, ..current });
        if self.current.is_none() {
            self.streams[current.stream].payload_sent += payload_len as u64;
        }
    }

    fn flush_control(&mut self) -> Result<()> {
        if self.current.is_none() && !self.control.is_empty() {
            let written = write_some(&self.socket, &mut self.writable, &[IoSlice::new(&self.control)])?;
            self.control.drain(..written);
            self.wire_sent += written as u64;
        }
        Ok(())
    }

    /// Sends whole frames, each with one call.
    fn send_whole(&mut self, prepared: &[u8], frames: usize) -> Result<usize> {
        self.send_frames(frames, |sender, current| {
            let stream = &sender.streams[current.stream];
            let payload = if sender.load.verified { &stream.own[..] } else { prepared };
            let header = IoSlice::new(&stream.header[current.offset.min(HEADER_LEN)..]);
            let payload = IoSlice::new(&payload[current.offset.saturating_sub(HEADER_LEN)..]);
            write_some(&sender.socket, &mut sender.writable, &[header, payload])
        })
    }

    /// Sends each frame with two calls of write(2), header and body, as the Go clients do.
    fn send_in_two_writes(&mut self, prepared: &[u8], frames: usize) -> Result<usize> {
        self.send_frames(frames, |sender, current| {
            let stream = &sender.streams[current.stream];
            let payload = if sender.load.verified { &stream.own[..] } else { prepared };
            let rest = match current.offset.checked_sub(HEADER_LEN) {
                None => &stream.header[current.offset..],
                Some(offset) => &payload[offset..],
            };
            write_some(&sender.socket, &mut sender.writable, &[IoSlice::new(rest)])
        })
    }

    /// Ends the frame under way and begins up to `frames` more, `write` by `write`, with control frames between them.
    fn send_frames(
        &mut self,
        frames: usize,
        mut write: impl FnMut(&mut Self, Current) -> Result<usize>,
    ) -> Result<usize> {
        let mut begun = 0;
        while self.writable {
            self.flush_control()?;
            let current = match self.current {
                Some(current) => current,
                None => {
                    if begun >= frames || !self.control.is_empty() {
                        break;
                    }
                    let Some(index) = self.pick() else { break };
                    self.begin(index);
                    begun += 1;
                    Current { stream: index, offset: 0 }
                }
            };
            let written = write(self, current)?;
            self.wire_sent += written as u64;
            self.advance(current, written);
        }
        Ok(begun)
    }

    /// Reads what the relay returned.
    pub(super) fn receive(&mut self, scratch: &mut [u8]) -> Result<()> {
        let scratch = &mut scratch[..INPUT_LEN];
        loop {
            let socket = self.socket.as_ref().context("no socket")?;
            match rustix::io::read(socket, &mut *scratch) {
                Ok(0) => bail!("the relay closed a sender's connection"),
                Ok(len) => {
                    self.scan(&scratch[..len])?;
                    if len < INPUT_LEN {
                        self.readable = false;
                        return Ok(());
                    }
                }
                Err(Errno::AGAIN) => {
                    self.readable = false;
                    return Ok(());
                }
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context("a sender's connection failed"),
            }
        }
    }

    fn scan(&mut self, mut input: &[u8]) -> Result<()> {
        while let Some(piece) = self.scanner.next(&mut input)? {
            match piece {
                Piece::Header(header) => self.handle_header(header)?,
                Piece::Payload { bytes, .. } => match &mut self.asker {
                    Some(asker) => asker.receive(bytes)?,
                    None => bail!("payload for a stream that nobody reads"),
                },
            }
        }
        Ok(())
    }

    fn handle_header(&mut self, header: Header) -> Result<()> {
        let Header { kind, flags, stream, length } = header;
        if flags & (FIN | RST) != 0 || kind == GO_AWAY {
            bail!("the relay ended a stream or the session of a sender: {header:?}");
        }
        match kind {
            WINDOW_UPDATE => {
                if let Some(out) = self.streams.iter_mut().find(|out| out.id == stream) {
                    out.credit += u64::from(length);
                } else if let Some(asker) = self.asker.as_mut().filter(|asker| asker.stream == stream) {
                    asker.credit += u64::from(length);
                }
            }
            PING if flags & SYN != 0 => {
                self.control
                    .extend_from_slice(&Header { kind: PING, flags: ACK, stream: 0, length }.encode());
            }
            DATA if self.asker.as_ref().is_none_or(|asker| asker.stream != stream) => {
                bail!("data on stream {stream}, which nobody reads");
            }
            _ => {}
        }
        Ok(())
    }
}

/// Writes as much as the socket takes.
fn write_some(socket: &Option<TcpStream>, writable: &mut bool, slices: &[IoSlice<'_>]) -> Result<usize> {
    let len = slices.iter().map(|slice| slice.len()).sum();
    transfer(writable, len, || {
        let socket = socket.as_ref().ok_or(Errno::BADF)?;
        // A single piece goes out by write(2) itself: the Go pattern prescribes the call, not only the segments.
        match slices {
            [one] => rustix::io::write(socket, one),
            several => rustix::io::writev(socket, several),
        }
    })
}

/// Runs a sending call. Less than `len` bytes mean that the socket is full until the next event.
fn transfer(
    writable: &mut bool,
    len: usize,
    mut call: impl FnMut() -> Result<usize, Errno>,
) -> Result<usize> {
    loop {
        match call() {
            Ok(written) => {
                *writable = written == len;
                return Ok(written);
            }
            Err(Errno::AGAIN) => {
                *writable = false;
                return Ok(0);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error).context("a sender's connection failed"),
        }
    }
}
