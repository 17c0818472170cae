//! Bytes between a dmsg stream and something local: a TCP connection, or standard input and output.
//!
//! A server ends both directions of a stream as soon as one has ended (dmsg-wire 10.4), so the end of the local input is
//! not passed on at once: what is still coming from the other side gets its time first.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::sleep;

/// Bytes read at once.
const PIECE_BYTES: usize = 64 * 1024;

/// Bytes carried each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Carried {
    /// From here to the other side.
    pub(super) sent: u64,
    /// From the other side to here.
    pub(super) received: u64,
}

/// Whoever read the local output reads no more, as `head` does when it has enough.
#[derive(Debug, Error)]
#[error("nobody reads what was received any more")]
struct ReaderGone;

/// Whether carrying ended with that.
pub(super) fn is_reader_gone(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<ReaderGone>())
}

/// What a failure of the local output is.
fn output_error(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::BrokenPipe { io::Error::new(error.kind(), ReaderGone) } else { error }
}

/// Carries until the other side has ended, or until the local input has and nothing came for `linger`. What was carried is told also
/// when it broke off.
pub(super) async fn carry(
    stream: impl AsyncRead + AsyncWrite,
    mut input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    linger: Duration,
) -> (Carried, io::Result<()>) {
    let (mut from_peer, mut to_peer) = tokio::io::split(stream);
    let (sent, received) = (AtomicU64::new(0), AtomicU64::new(0));
    let input_ended = watch::Sender::new(false);
    let mut quiet = input_ended.subscribe();
    let mut send = pin!(async {
        let mut piece = vec![0; PIECE_BYTES];
        let read = loop {
            match input.read(&mut piece).await {
                Ok(0) => break Ok(()),
                Ok(length) => {
                    to_peer.write_all(&piece[..length]).await?;
                    sent.fetch_add(length as u64, Ordering::Relaxed);
                }
                // No more of it comes either: the other side is not waited for any longer than at its end.
                Err(error) => break Err(error),
            }
        };
        to_peer.flush().await?;
        input_ended.send_replace(true);
        read
    });
    let mut receive = pin!(async {
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let length = tokio::select! {
                length = from_peer.read(&mut piece) => length?,
                () = silence(&mut quiet, linger) => 0,
            };
            if length == 0 {
                break;
            }
            output.write_all(&piece[..length]).await.map_err(output_error)?;
            output.flush().await.map_err(output_error)?;
            received.fetch_add(length as u64, Ordering::Relaxed);
        }
        output.shutdown().await.map_err(output_error)
    });
    let end = tokio::select! {
        biased;
        received = &mut receive => received,
        // What the other side said before it stopped listening is still delivered.
        sent = &mut send => receive.await.and(sent),
    };
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    (Carried { sent: count(&sent), received: count(&received) }, end)
}

/// Ends `linger` after the input has; started anew with every piece that comes.
async fn silence(input_ended: &mut watch::Receiver<bool>, linger: Duration) {
    // The sender outlives the carrying.
    input_ended.wait_for(|ended| *ended).await.ok();
    sleep(linger).await;
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use tokio::io::{ReadBuf, duplex};

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[tokio::test]
    async fn an_answer_after_the_end_of_the_input_still_arrives() {
        let (near, mut far) = duplex(16);
        let peer = tokio::spawn(async move {
            let mut question = [0; 8];
            far.read_exact(&mut question).await.unwrap();
            assert_eq!(&question, b"question");
            far.write_all(&[7; 100_000]).await.unwrap();
            // Dropped: the end.
        });
        let mut output = Vec::new();
        let (carried, end) = carry(near, &b"question"[..], &mut output, LONG).await;
        end.unwrap();
        assert_eq!(carried, Carried { sent: 8, received: 100_000 });
        assert!(output == [7; 100_000]);
        peer.await.unwrap();
    }

    #[tokio::test]
    async fn a_peer_that_stays_silent_is_left_after_a_while() {
        let (near, mut far) = duplex(64);
        let linger = Duration::from_millis(50);
        let carrying =
            tokio::spawn(async move { carry(near, &b"one way"[..], tokio::io::sink(), linger).await });
        let mut heard = Vec::new();
        far.read_to_end(&mut heard).await.unwrap();
        assert_eq!(heard, b"one way");
        let (carried, end) = carrying.await.unwrap();
        end.unwrap();
        assert_eq!(carried, Carried { sent: 7, received: 0 });
    }

    #[tokio::test]
    async fn an_input_that_fails_is_an_end_and_an_error() {
        let (near, _far) = duplex(64);
        let input = (&b"sent"[..]).chain(Failing);
        let carrying = carry(near, input, tokio::io::sink(), Duration::from_millis(50));
        let (carried, end) = tokio::time::timeout(Duration::from_secs(60), carrying).await.unwrap();
        assert_eq!(carried, Carried { sent: 4, received: 0 });
        assert!(!is_reader_gone(&end.unwrap_err()));
    }

    /// An input that cannot be read.
    struct Failing;

    impl AsyncRead for Failing {
        fn poll_read(
            self: Pin<&mut Self>,
            _context: &mut Context<'_>,
            _out: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            Poll::Ready(Err(io::ErrorKind::IsADirectory.into()))
        }
    }

    #[tokio::test]
    async fn a_reader_of_the_output_that_goes_away_is_told_apart() {
        let (near, mut far) = duplex(64);
        far.write_all(b"received").await.unwrap();
        let (output, reader) = duplex(64);
        drop(reader);
        let (_, end) = carry(near, tokio::io::empty(), output, LONG).await;
        assert!(is_reader_gone(&end.unwrap_err()));
        // A stream that breaks with the same kind of error is no such thing.
        let (closed, peer) = duplex(64);
        drop(peer);
        let (silent, far) = duplex(64);
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(50)).await;
            drop(far);
        });
        let (_, end) = carry(tokio::io::join(silent, closed), &b"sent"[..], tokio::io::sink(), LONG).await;
        assert!(!is_reader_gone(&end.unwrap_err()));
    }

    #[tokio::test]
    async fn both_directions_move_at_once() {
        let (near, far) = duplex(1024);
        let echo = tokio::spawn(async move {
            let (reader, mut writer) = tokio::io::split(far);
            tokio::io::copy(&mut reader.take(500_000), &mut writer).await.unwrap();
            // Dropped: the end.
        });
        let sent: Vec<u8> = (0..500_000_u32).map(|number| number as u8).collect();
        let mut output = Vec::new();
        let (carried, end) = carry(near, &sent[..], &mut output, LONG).await;
        end.unwrap();
        assert_eq!(carried, Carried { sent: 500_000, received: 500_000 });
        assert!(output == sent);
        echo.await.unwrap();
    }
}
