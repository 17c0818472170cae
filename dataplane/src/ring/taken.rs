//! What the peer's kernel has acknowledged on a TCP connection.
//!
//! Here because it takes an unsafe call: neither `rustix` nor `socket2` reads `TCP_INFO`. Called by both drivers.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::driver::Taken;

/// `struct tcp_info` up to `tcpi_notsent_bytes` (Linux 4.6), in bytes.
const INFO_LEN: usize = 148;
/// Places in it: `tcpi_unacked` (segments, u32), `tcpi_bytes_acked` (u64), `tcpi_notsent_bytes` (u32).
const UNACKED_AT: usize = 24;
const BYTES_ACKED_AT: usize = 120;
const NOTSENT_AT: usize = 144;

/// `None`: it is no TCP connection, or the kernel does not tell.
pub(crate) fn taken(socket: BorrowedFd<'_>) -> Option<Taken> {
    let mut info = [0_u8; INFO_LEN];
    let mut len = INFO_LEN as libc::socklen_t;
    // SAFETY: needed for an option that no safe wrapper reads. The descriptor is borrowed for the call; the kernel writes at most
    // `len` bytes, which is the length of the array, and says in `len` how many that were.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if outcome != 0 || (len as usize) < INFO_LEN {
        return None;
    }
    let unacked = u32::from_ne_bytes(*info[UNACKED_AT..].first_chunk()?);
    let notsent = u32::from_ne_bytes(*info[NOTSENT_AT..].first_chunk()?);
    let len = u64::from_ne_bytes(*info[BYTES_ACKED_AT..].first_chunk()?);
    Some(Taken { len, is_all: unacked == 0 && notsent == 0 })
}

/// See [`Driver::hold_back`](crate::driver::Driver::hold_back). An error is of a connection that is over, which is told elsewhere.
pub(crate) fn hold_back(socket: BorrowedFd<'_>, len: u32) {
    socket2::SockRef::from(&socket).set_tcp_notsent_lowat(len).ok();
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn what_a_reader_takes_is_seen_and_what_nobody_reads_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (mut reader, _) = listener.accept().unwrap();
        let wait = |is_so: &dyn Fn(Taken) -> bool, sender: &TcpStream| {
            let deadline = Instant::now() + Duration::from_secs(30);
            loop {
                let now = taken(sender.as_fd()).unwrap();
                if is_so(now) {
                    return now.len;
                }
                assert!(Instant::now() < deadline, "{now:?}");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        let before = wait(&|now| now.is_all, &sender);
        sender.write_all(&[7; 1000]).unwrap();
        assert_eq!(wait(&|now| now.is_all, &sender), before + 1000);
        // Until the kernels take no more.
        sender.set_nonblocking(true).unwrap();
        let mut idle_since = Instant::now();
        while idle_since.elapsed() < Duration::from_millis(500) {
            match sender.write(&[7; 65_536]) {
                Ok(written) if written > 0 => idle_since = Instant::now(),
                Ok(_) => {}
                Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
            }
        }
        let full = taken(sender.as_fd()).unwrap();
        assert!(!full.is_all);
        reader.read_exact(&mut [0; 1 << 18]).unwrap();
        wait(&|now| now.len > full.len, &sender);
        assert_eq!(taken(std::os::unix::net::UnixStream::pair().unwrap().0.as_fd()), None);
    }
}
