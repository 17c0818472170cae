//! What the two ends of one benchmark stream say to each other.
//!
//! ```text
//!   sender                                             receiver
//!   length (4, BE) || length bytes of the pattern  ──►  checks every byte         (bulk: again and again)
//!                                                  ◄──  the same bytes back       (latency: one at a time)
//!   0000_0000 || total (8, BE)                     ──►  compares its own count
//!                                                  ◄──  verdict (1) || its count (8, BE)
//!   end of stream                                  ──►
//! ```
//!
//! A server ends both directions of a stream as soon as one has ended (dmsg-wire 10.4): so nobody ends the stream
//! before the receiver's verdict has arrived, and no byte can be lost in the closing.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use hdrhistogram::Histogram;
use thiserror::Error;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};

use super::pattern::Pattern;
use crate::dmsg::Stream;

/// Length field in front of each piece of pattern.
pub(super) const PREFIX_BYTES: usize = 4;

/// Application bytes of one ping and of one pong in latency mode.
pub(super) const PING_BYTES: usize = 64;

const VERDICT_GOOD: u8 = 1;
const VERDICT_BAD: u8 = 0;

/// Longest round trip a histogram holds, in nanoseconds: a minute.
const ROUND_TRIP_MAX_NS: u64 = 60_000_000_000;

/// Why a stream's transfer is not a success.
#[derive(Debug, Error)]
pub(super) enum TransferError {
    #[error("stream {stream}: {source}")]
    Io { stream: u64, source: io::Error },
    #[error("stream {stream}: the bytes before offset {offset} are not the ones that were sent")]
    Different { stream: u64, offset: u64 },
    #[error("stream {stream}: {sent} bytes were sent, {received} were received")]
    Length { stream: u64, sent: u64, received: u64 },
}

/// Round trips in nanoseconds.
pub(super) fn histogram() -> Histogram<u64> {
    #[allow(clippy::expect_used, reason = "the bounds are constants, and the tests make one")]
    Histogram::new_with_bounds(1, ROUND_TRIP_MAX_NS, 3).expect("1 to a minute with three digits is valid")
}

/// Sends for as long as `until` lies ahead, in writes of `write_bytes`, then waits for the verdict. Returns the
/// application bytes sent.
pub(super) async fn send_bulk(
    stream: &mut Stream,
    number: u64,
    write_bytes: usize,
    until: Instant,
) -> Result<u64, TransferError> {
    let failed = |source| TransferError::Io { stream: number, source };
    let mut pattern = Pattern::new(number);
    let mut piece = vec![0; write_bytes.max(PREFIX_BYTES + 1)];
    let body_bytes = piece.len() - PREFIX_BYTES;
    // Sizes are limited to 16 MiB by the caller.
    let length = u32::try_from(body_bytes).unwrap_or(u32::MAX);
    piece[..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    let mut sent = 0_u64;
    while Instant::now() < until {
        pattern.fill(&mut piece[PREFIX_BYTES..]);
        stream.write_all(&piece).await.map_err(failed)?;
        sent += piece.len() as u64;
    }
    finish(stream, number, sent).await?;
    Ok(sent)
}

/// Sends pings one at a time, each after the pong of the one before, for as long as `until` lies ahead.
pub(super) async fn send_pings(
    stream: &mut Stream,
    number: u64,
    until: Instant,
    round_trips: &mut Histogram<u64>,
) -> Result<u64, TransferError> {
    let failed = |source| TransferError::Io { stream: number, source };
    let mut pattern = Pattern::new(number);
    let mut ping = [0; PING_BYTES];
    let mut pong = [0; PING_BYTES];
    let length = u32::try_from(PING_BYTES - PREFIX_BYTES).unwrap_or(u32::MAX);
    ping[..PREFIX_BYTES].copy_from_slice(&length.to_be_bytes());
    let mut sent = 0_u64;
    while Instant::now() < until {
        pattern.fill(&mut ping[PREFIX_BYTES..]);
        let started = Instant::now();
        stream.write_all(&ping).await.map_err(failed)?;
        stream.read_exact(&mut pong).await.map_err(failed)?;
        let round_trip_ns = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        round_trips.saturating_record(round_trip_ns);
        if pong != ping {
            return Err(TransferError::Different { stream: number, offset: pattern.offset() });
        }
        sent += PING_BYTES as u64;
    }
    finish(stream, number, sent).await?;
    Ok(sent)
}

/// Checks what arrives, adds it to `progress_bytes` as it comes, and answers with the verdict. With `echo` every piece
/// goes back. Returns the application bytes received.
pub(super) async fn receive(
    stream: &mut Stream,
    number: u64,
    echo: bool,
    progress_bytes: &AtomicU64,
) -> Result<u64, TransferError> {
    let failed = |source| TransferError::Io { stream: number, source };
    let mut pattern = Pattern::new(number);
    let mut received = 0_u64;
    let mut prefix = [0; PREFIX_BYTES];
    let mut back = Vec::new();
    let mut good = true;
    loop {
        stream.read_exact(&mut prefix).await.map_err(failed)?;
        let length = u32::from_be_bytes(prefix) as usize;
        if length == 0 {
            break;
        }
        received += PREFIX_BYTES as u64;
        back.clear();
        back.extend_from_slice(&prefix);
        let mut left = length;
        while left > 0 {
            let arrived = stream.fill_buf().await.map_err(failed)?;
            if arrived.is_empty() {
                return Err(failed(io::ErrorKind::UnexpectedEof.into()));
            }
            let part = arrived.len().min(left);
            good &= pattern.check(&arrived[..part]);
            if echo {
                back.extend_from_slice(&arrived[..part]);
            }
            stream.consume(part);
            left -= part;
            received += part as u64;
            progress_bytes.fetch_add(part as u64, Ordering::Relaxed);
        }
        progress_bytes.fetch_add(PREFIX_BYTES as u64, Ordering::Relaxed);
        if echo {
            stream.write_all(&back).await.map_err(failed)?;
        }
    }
    let sent = stream.read_u64().await.map_err(failed)?;
    let whole = sent == received;
    stream.write_u8(if good && whole { VERDICT_GOOD } else { VERDICT_BAD }).await.map_err(failed)?;
    stream.write_u64(received).await.map_err(failed)?;
    // The sender ends the stream once it has the verdict; a server may turn that end into a reset.
    let mut rest = [0; 1];
    match stream.read(&mut rest).await {
        Ok(0) | Err(_) => {}
        Ok(_) => good = false,
    }
    if !whole {
        return Err(TransferError::Length { stream: number, sent, received });
    }
    if !good {
        return Err(TransferError::Different { stream: number, offset: pattern.offset() });
    }
    Ok(received)
}

async fn finish(stream: &mut Stream, number: u64, sent: u64) -> Result<(), TransferError> {
    let failed = |source| TransferError::Io { stream: number, source };
    let mut last = [0; PREFIX_BYTES + 8];
    last[PREFIX_BYTES..].copy_from_slice(&sent.to_be_bytes());
    stream.write_all(&last).await.map_err(failed)?;
    let verdict = stream.read_u8().await.map_err(failed)?;
    let received = stream.read_u64().await.map_err(failed)?;
    // The receiver has all it needs; a connection that is gone by now changes nothing.
    stream.shutdown().await.ok();
    if received != sent {
        return Err(TransferError::Length { stream: number, sent, received });
    }
    if verdict != VERDICT_GOOD {
        return Err(TransferError::Different { stream: number, offset: received });
    }
    Ok(())
}
