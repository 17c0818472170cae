//! Frames and descriptors on a Unix socket, with deadlines.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use prost::Message as _;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zeroize::Zeroizing;

use super::message::{Reply, ReplyFrame, Request, RequestFrame};

/// Longest message, in bytes: a status with its addresses is some hundred.
pub const FRAME_LEN_MAX: usize = 1 << 20;

/// Most descriptors beside one frame, such as the listeners of a server: as many as the kernel passes in one message.
pub const DESCRIPTORS_MAX: usize = 253;

const HEADER_LEN: usize = 8;

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The kernel's.
    #[error("the data plane's socket failed: {0}")]
    Kernel(#[from] io::Error),
    /// The other side did not answer in time.
    #[error("no answer within {0:?}")]
    Timeout(Duration),
    /// The other side closed the connection.
    #[error("the other side closed the connection")]
    Closed,
    /// A frame is longer than any message.
    #[error("a frame of {0} bytes; the longest message has {FRAME_LEN_MAX}")]
    TooLong(usize),
    /// The descriptors beside a frame are not as many as it says.
    #[error("a frame with {found} descriptors that announced {announced}")]
    Descriptors {
        /// What arrived.
        found: usize,
        /// What it said.
        announced: usize,
    },
    /// The message cannot be decoded.
    #[error("a message that cannot be decoded: {0}")]
    Malformed(#[from] prost::DecodeError),
    /// The message is of a kind that this build does not know, or empty.
    #[error("a message of unknown kind: the other side is of a newer build")]
    Unknown,
}

/// One end of a conversation. See [`super`].
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
    timeout: Duration,
}

impl Connection {
    /// A conversation on this stream, each of whose sends and receives may take `timeout`.
    pub fn new(stream: UnixStream, timeout: Duration) -> Self {
        Self { stream, timeout }
    }

    /// Changes how long a send or a receive may take; zero: no limit.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The stream, to watch or to shut down.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a request with descriptors.
    ///
    /// # Errors
    /// The connection's; the conversation is over.
    pub fn send_request(
        &mut self,
        request: Request,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        let frame = RequestFrame { request: Some(request) };
        // A request may carry the secret key.
        let mut bytes = Zeroizing::new(Vec::with_capacity(HEADER_LEN + frame.encoded_len()));
        bytes.extend_from_slice(&header(frame.encoded_len(), descriptors.len()));
        frame.encode_raw(&mut *bytes);
        self.send(&bytes, descriptors)
    }

    /// Sends a reply with descriptors.
    ///
    /// # Errors
    /// The connection's; the conversation is over.
    pub fn send_reply(
        &mut self,
        reply: Reply,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<(), ConnectionError> {
        let frame = ReplyFrame { reply: Some(reply) };
        let mut bytes = Vec::with_capacity(HEADER_LEN + frame.encoded_len());
        bytes.extend_from_slice(&header(frame.encoded_len(), descriptors.len()));
        frame.encode_raw(&mut bytes);
        self.send(&bytes, descriptors)
    }

    /// The next request, with its descriptors.
    ///
    /// # Errors
    /// The connection's. [`ConnectionError::Unknown`] and [`ConnectionError::Malformed`] leave the conversation usable.
    pub fn receive_request(&mut self) -> Result<(Request, Vec<OwnedFd>), ConnectionError> {
        let (bytes, descriptors) = self.receive()?;
        let frame = RequestFrame::decode(bytes.as_slice())?;
        Ok((frame.request.ok_or(ConnectionError::Unknown)?, descriptors))
    }

    /// The next reply, with its descriptors.
    ///
    /// # Errors
    /// The connection's. [`ConnectionError::Unknown`] and [`ConnectionError::Malformed`] leave the conversation usable.
    pub fn receive_reply(&mut self) -> Result<(Reply, Vec<OwnedFd>), ConnectionError> {
        let (bytes, descriptors) = self.receive()?;
        let frame = ReplyFrame::decode(bytes.as_slice())?;
        Ok((frame.reply.ok_or(ConnectionError::Unknown)?, descriptors))
    }

    fn send(&mut self, mut bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> Result<(), ConnectionError> {
        let deadline = self.deadline();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(descriptors)) {
            return Err(ConnectionError::Descriptors {
                found: descriptors.len(),
                announced: DESCRIPTORS_MAX,
            });
        }
        while !bytes.is_empty() {
            self.stream.set_write_timeout(self.left(deadline)?)?;
            match sendmsg(&self.stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
                Ok(sent) => {
                    bytes = &bytes[sent..];
                    // They went with the first byte.
                    ancillary.clear();
                }
                Err(error) => self.check(error.into())?,
            }
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(Zeroizing<Vec<u8>>, Vec<OwnedFd>), ConnectionError> {
        let deadline = self.deadline();
        let mut descriptors = Vec::new();
        let mut head = [0; HEADER_LEN];
        self.fill(&mut head, &mut descriptors, deadline)?;
        let [l0, l1, l2, l3, d0, d1, d2, d3] = head;
        let len = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        let announced = u32::from_le_bytes([d0, d1, d2, d3]) as usize;
        if len > FRAME_LEN_MAX {
            return Err(ConnectionError::TooLong(len));
        }
        let mut bytes = Zeroizing::new(vec![0; len]);
        self.fill(&mut bytes, &mut descriptors, deadline)?;
        if descriptors.len() != announced {
            return Err(ConnectionError::Descriptors { found: descriptors.len(), announced });
        }
        Ok((bytes, descriptors))
    }

    fn fill(
        &mut self,
        mut place: &mut [u8],
        descriptors: &mut Vec<OwnedFd>,
        deadline: Option<Instant>,
    ) -> Result<(), ConnectionError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        while !place.is_empty() {
            self.stream.set_read_timeout(self.left(deadline)?)?;
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let received =
                recvmsg(&self.stream, &mut [IoSliceMut::new(place)], &mut ancillary, RecvFlags::CMSG_CLOEXEC);
            let received = match received {
                Ok(received) => received,
                Err(error) => {
                    self.check(error.into())?;
                    continue;
                }
            };
            for message in ancillary.drain() {
                if let RecvAncillaryMessage::ScmRights(received) = message {
                    descriptors.extend(received);
                }
            }
            if received.bytes == 0 {
                return Err(ConnectionError::Closed);
            }
            if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > DESCRIPTORS_MAX {
                return Err(ConnectionError::Descriptors { found: descriptors.len(), announced: 0 });
            }
            place = &mut std::mem::take(&mut place)[received.bytes..];
        }
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        (!self.timeout.is_zero()).then(|| Instant::now() + self.timeout)
    }

    /// What is left of a deadline, as the kernel wants it: never zero, which would mean "no limit".
    fn left(&self, deadline: Option<Instant>) -> Result<Option<Duration>, ConnectionError> {
        let Some(deadline) = deadline else { return Ok(None) };
        match deadline.checked_duration_since(Instant::now()) {
            Some(left) if left >= Duration::from_micros(1) => Ok(Some(left)),
            _ => Err(ConnectionError::Timeout(self.timeout)),
        }
    }

    fn check(&self, error: io::Error) -> Result<(), ConnectionError> {
        match error.kind() {
            // A signal; and the deadline, which the next round finds to be over.
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock => Ok(()),
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => Err(ConnectionError::Closed),
            _ => Err(error.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

fn header(len: usize, descriptors: usize) -> [u8; HEADER_LEN] {
    // Both are far below 2^32: a message is built here, descriptors are checked when sent.
    let mut header = [0; HEADER_LEN];
    header[..4].copy_from_slice(&(len as u32).to_le_bytes());
    header[4..].copy_from_slice(&(descriptors as u32).to_le_bytes());
    header
}
