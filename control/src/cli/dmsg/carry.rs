//! Bytes between a dmsg stream and something local: a TCP connection, or standard input and output.
//!
//! A server ends both directions of a stream as soon as one has ended (dmsg-wire 10.4), so the end of the local input is
//! not passed on at once: what is still coming from the other side gets its time first.

use std::io;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

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
        loop {
            let length = input.read(&mut piece).await?;
            if length == 0 {
                break;
            }
            to_peer.write_all(&piece[..length]).await?;
            sent.fetch_add(length as u64, Ordering::Relaxed);
        }
        to_peer.flush().await?;
        input_ended.send_replace(true);
        Ok::<_, io::Error>(())
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
            output.write_all(&piece[..length]).await?;
            output.flush().await?;
            received.fetch_add(length as u64, Ordering::Relaxed);
        }
        output.shutdown().await
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
    use tokio::io::duplex;

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
