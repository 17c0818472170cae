//! What the kernel knows about a TCP connection.

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::driver::Nanos;

/// Smoothed round-trip time of a connection, in nanoseconds; `None` when the kernel does not say.
pub(crate) fn round_trip_ns(socket: BorrowedFd<'_>) -> Option<Nanos> {
    let mut info = std::mem::MaybeUninit::<libc::tcp_info>::zeroed();
    let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
    // SAFETY: needed because no safe wrapper reads this option; the pointer and the length describe one writable struct, and
    // the descriptor is borrowed for the call.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    if outcome != 0 {
        return None;
    }
    // SAFETY: needed to read what was written; the struct is plain integers and was zeroed before the kernel filled it.
    let info = unsafe { info.assume_init() };
    (info.tcpi_rtt > 0).then(|| u64::from(info.tcpi_rtt) * 1000)
}
