//! The one task that moves a connection's bytes: socket to [`Mux`], [`Mux`] to socket, and its timers.
//!
//! In: a connected socket whose handshake is done. Out: when the connection is over, the reason, in [`Shared`].
//! Each turn reads once, writes what is queued in one system call, and wakes streams after the lock is released.
//! A blocked write never keeps the socket from being read: window updates and ping replies come in on it.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use ringwire_proto::yamux::{HEADER_LEN, Header};
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep_until};

use super::error::Disconnected;
use super::inbound;
use super::limits::{CLOSE_LIMIT, LOCKED_BYTES, READ_BYTES, TURNS_BEFORE_YIELD, WRITE_BYTES};
use super::shared::Shared;

pub(super) struct Driver {
    socket: TcpStream,
    shared: Arc<Shared>,
    input: Box<[u8]>,
    out: Vec<u8>,
    out_at: usize,
    /// Writes header and payload of each frame by themselves.
    go_writes: bool,
    /// With `go_writes`: where the current write ends.
    cut_at: usize,
    /// With `go_writes`: payload of the frame whose header is the current write.
    payload_left: usize,
    wakes: Vec<Waker>,
    timer: Pin<Box<Sleep>>,
    /// Nothing is sent before this moment (dmsg-wire 4.4).
    hold_until: Option<Instant>,
    /// Set once closing began: the moment at which it ends, delivered or not.
    close_at: Option<Instant>,
}

impl Driver {
    pub(super) fn new(
        socket: TcpStream,
        shared: Arc<Shared>,
        first_frame_pause: Duration,
        go_writes: bool,
    ) -> Self {
        let hold_until = (!first_frame_pause.is_zero()).then(|| Instant::now() + first_frame_pause);
        Self {
            socket,
            shared,
            input: vec![0; READ_BYTES].into_boxed_slice(),
            out: Vec::with_capacity(WRITE_BYTES),
            out_at: 0,
            go_writes,
            cut_at: 0,
            payload_left: 0,
            wakes: Vec::new(),
            timer: Box::pin(sleep_until(Instant::now())),
            hold_until,
            close_at: None,
        }
    }

    /// Runs until the connection is over.
    pub(super) async fn run(mut self) {
        let reason = poll_fn(|context| self.poll(context)).await;
        tracing::debug!(server = %self.shared.server, %reason, "dmsg connection over");
        self.shared.end(reason);
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Disconnected> {
        for _ in 0..TURNS_BEFORE_YIELD {
            let result = self.turn(context);
            for waker in self.wakes.drain(..) {
                waker.wake();
            }
            match result {
                Ok(true) => {}
                Ok(false) => {
                    // While a write is blocked, new bytes would only join the queue.
                    let blocked = self.out_at < self.out.len() || self.holding();
                    if self.shared.lock().sleep(context.waker(), blocked) {
                        return Poll::Pending;
                    }
                }
                Err(reason) => {
                    self.last_words(context);
                    return Poll::Ready(reason);
                }
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn. Says whether anything moved.
    fn turn(&mut self, context: &mut Context<'_>) -> Result<bool, Disconnected> {
        let received = self.receive(context)?;
        let sent = self.send(context)?;
        let timed = self.timers(context)?;
        Ok(received || sent || timed)
    }

    fn receive(&mut self, context: &mut Context<'_>) -> Result<bool, Disconnected> {
        let mut buffer = ReadBuf::new(&mut self.input);
        match Pin::new(&mut self.socket).poll_read(context, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(self.lost(&error)),
            Poll::Ready(Ok(())) if buffer.filled().is_empty() => return Err(self.closed()),
            Poll::Ready(Ok(())) => {}
        }
        let length = buffer.filled().len();
        for part in self.input.get(..length).unwrap_or_default().chunks(LOCKED_BYTES) {
            let now_ns = self.shared.now_ns();
            self.shared.note_heard(now_ns);
            let mut mux = self.shared.lock();
            let result = mux.receive(now_ns, part);
            mux.take_wakes(&mut self.wakes);
            while let Some(slot) = mux.poll_opened() {
                inbound::spawn(&self.shared, slot);
            }
            drop(mux);
            for waker in self.wakes.drain(..) {
                waker.wake();
            }
            result?;
        }
        Ok(true)
    }

    fn send(&mut self, context: &mut Context<'_>) -> Result<bool, Disconnected> {
        let mut moved = false;
        loop {
            if self.out_at == self.out.len() {
                self.out.clear();
                self.out_at = 0;
                self.cut_at = 0;
                if self.holding() || !self.gather() {
                    return Ok(moved);
                }
            }
            let end = if self.go_writes { self.next_cut() } else { self.out.len() };
            let rest = self.out.get(self.out_at..end).unwrap_or_default();
            match Pin::new(&mut self.socket).poll_write(context, rest) {
                Poll::Pending => return Ok(moved),
                Poll::Ready(Ok(0)) => return Err(self.closed()),
                Poll::Ready(Ok(written)) => self.out_at += written,
                Poll::Ready(Err(error)) => return Err(self.lost(&error)),
            }
            moved = true;
        }
    }

    /// The end of the header or payload at `out_at`; `out` holds whole frames.
    fn next_cut(&mut self) -> usize {
        if self.out_at == self.cut_at {
            let header = self.out.get(self.out_at..).and_then(|rest| rest.first_chunk());
            self.cut_at += match (std::mem::take(&mut self.payload_left), header.map(Header::decode)) {
                (0, Some(Ok(header))) => {
                    self.payload_left = header.payload_len() as usize;
                    HEADER_LEN
                }
                (0, _) => self.out.len(),
                (payload, _) => payload,
            };
        }
        self.cut_at.min(self.out.len())
    }

    /// Fills `out` in short holds of the lock. Says whether there is anything in it.
    fn gather(&mut self) -> bool {
        loop {
            let now_ns = self.shared.now_ns();
            let mut mux = self.shared.lock();
            let more = mux.transmit(now_ns, &mut self.out);
            mux.take_wakes(&mut self.wakes);
            drop(mux);
            for waker in self.wakes.drain(..) {
                waker.wake();
            }
            if !more || self.out.len() + LOCKED_BYTES > WRITE_BYTES {
                return !self.out.is_empty();
            }
        }
    }

    fn timers(&mut self, context: &mut Context<'_>) -> Result<bool, Disconnected> {
        let mut acted = false;
        if self.hold_until.is_some_and(|until| Instant::now() >= until) {
            self.hold_until = None;
            acted = true;
        }
        let (next_ns, closing, drained) = {
            let now_ns = self.shared.now_ns();
            let mut mux = self.shared.lock();
            let result = match mux.next_timeout_ns() {
                Some(due_ns) if due_ns <= now_ns => {
                    acted = true;
                    mux.handle_timeout(now_ns)
                }
                next => Ok(next),
            };
            mux.take_wakes(&mut self.wakes);
            (result?, mux.is_closing(), mux.is_closing() && mux.is_drained())
        };
        if closing {
            let close_at = *self.close_at.get_or_insert_with(|| Instant::now() + CLOSE_LIMIT);
            if (drained && self.out_at == self.out.len()) || Instant::now() >= close_at {
                return Err(Disconnected::Here);
            }
        }
        let next = [next_ns.map(|next_ns| self.shared.instant(next_ns)), self.hold_until, self.close_at];
        if let Some(next) = next.into_iter().flatten().min() {
            if self.timer.deadline() != next {
                self.timer.as_mut().reset(next);
            }
            if self.timer.as_mut().poll(context).is_ready() {
                context.waker().wake_by_ref();
            }
        }
        Ok(acted)
    }

    fn holding(&self) -> bool {
        self.hold_until.is_some()
    }

    /// A go-away that is queued leaves if the socket takes it right now; nobody waits for it.
    fn last_words(&mut self, context: &mut Context<'_>) {
        if self.out_at == self.out.len() && !self.holding() {
            self.out.clear();
            self.out_at = 0;
            self.gather();
            if Pin::new(&mut self.socket).poll_write(context, &self.out).is_pending() {
                tracing::trace!("no room for the last bytes");
            }
        }
    }

    /// The server closed the connection.
    fn closed(&self) -> Disconnected {
        if self.shared.was_heard() { Disconnected::ByServer } else { Disconnected::Unheard }
    }

    /// A connection that the server closed while bytes were under way ends in one of these two errors.
    fn lost(&self, error: &io::Error) -> Disconnected {
        match error.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => self.closed(),
            kind => Disconnected::Io(kind),
        }
    }
}
