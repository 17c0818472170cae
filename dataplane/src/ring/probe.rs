//! Whether io_uring can be used here, and if not, which of the ways it is forbidden and what to change.

use std::io;

use io_uring::IoUring;

use super::buffers::ReceiveRing;
use super::uring::restrict;
use crate::driver::DriverError;
use crate::limits::{COMPLETION_ENTRIES, SUBMISSION_ENTRIES};

/// What this kernel's io_uring offers above our floor (Linux 6.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Features {
    /// One receive may fill several pages (Linux 6.10).
    pub receive_bundle: bool,
    /// A receive that would fill its last page in part leaves it out, and appends nothing to what it has (Linux 6.16). Linux 6.15
    /// appends whatever is queued; what that is more than a turn takes waits for the next.
    pub receive_leaves_part: bool,
    /// A wait may ask for company with a time limit (Linux 6.12).
    pub minimum_wait: bool,
}

/// Makes a ring as a worker does and reports what it can do; the ring is dropped again. Uses each of the three system
/// calls once, since a seccomp profile may forbid any of them. The error says which of the ways it is forbidden, and the
/// cure.
///
/// Done on a thread of its own: when a ring is dropped, the kernel notifies the thread that used it as if by a signal, and
/// a blocking call of the caller would end with EINTR.
pub fn probe() -> Result<Features, DriverError> {
    let thread = std::thread::Builder::new().name("probe".into()).spawn(try_out);
    let thread = thread.map_err(|error| DriverError::Call { call: "starting a thread", error })?;
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn try_out() -> Result<Features, DriverError> {
    let ring = build()?;
    let receive_ring = ReceiveRing::register(&ring).map_err(|error| explain(&error))?;
    let outcome = restrict(&ring)
        .and_then(|()| ring.submitter().register_enable_rings())
        .and_then(|()| ring.submitter().submit())
        .map(|_| features(&ring))
        .map_err(|error| explain(&error));
    // Before the memory that is registered with it.
    drop(ring);
    drop(receive_ring);
    outcome
}

/// A ring in the state the kernel creates it in when asked to start disabled: single issuer, deferred task work (both
/// Linux 6.1; measured worth 28 % of the CPU per round trip).
pub(super) fn build() -> Result<IoUring, DriverError> {
    IoUring::builder()
        .dontfork()
        .setup_r_disabled()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(COMPLETION_ENTRIES)
        .build(SUBMISSION_ENTRIES)
        .map_err(|error| explain(&error))
}

pub(super) fn features(ring: &IoUring) -> Features {
    Features {
        receive_bundle: ring.params().is_feature_recvsend_bundle(),
        receive_leaves_part: kernel_version().is_some_and(|version| version >= (6, 16)),
        minimum_wait: ring.params().is_feature_min_timeout(),
    }
}

/// Major and minor number of the running kernel.
fn kernel_version() -> Option<(u32, u32)> {
    version_of(&std::fs::read_to_string("/proc/sys/kernel/osrelease").ok()?)
}

/// Of a release such as `6.18.44-1-amd64`.
fn version_of(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Tells the three ways in which io_uring is forbidden apart by the error and by the system switch.
fn explain(error: &io::Error) -> DriverError {
    let switch = std::fs::read_to_string("/proc/sys/kernel/io_uring_disabled").unwrap_or_default();
    refusal(error, switch.trim())
}

/// The error for what ring creation said and the content of `kernel.io_uring_disabled`.
pub(crate) fn refusal(error: &io::Error, switch: &str) -> DriverError {
    let (reason, cure) = diagnose(error.raw_os_error(), switch);
    DriverError::Unavailable { reason: format!("{reason} ({error})"), cure }
}

/// The reason and the cure for an errno of ring creation and the content of `kernel.io_uring_disabled`.
fn diagnose(errno: Option<i32>, switch: &str) -> (&'static str, &'static str) {
    match (errno, switch) {
        (Some(libc::EPERM), "2") => (
            "the system switch kernel.io_uring_disabled is 2: off for everybody",
            "Run `sysctl -w kernel.io_uring_disabled=0` on the host, or start with `--driver poll`.",
        ),
        (Some(libc::EPERM), "1") => (
            "the system switch kernel.io_uring_disabled is 1: off for the unprivileged",
            "Run with CAP_SYS_ADMIN, or set kernel.io_uring_group to a group of this user, or `sysctl -w kernel.io_uring_disabled=0`, or start with `--driver poll`.",
        ),
        (Some(libc::EPERM), _) => (
            "a seccomp profile forbids it, as the default profiles of Docker and containerd do",
            "Allow io_uring_setup, io_uring_enter and io_uring_register in the container's seccomp profile, or start with `--driver poll`.",
        ),
        (Some(libc::ENOSYS), _) => (
            "this kernel is built without it, or a sandbox hides it",
            "Use a kernel from 6.1 on with CONFIG_IO_URING, or start with `--driver poll`.",
        ),
        (Some(libc::EINVAL), _) => (
            "this kernel is older than 6.1 and lacks deferred task work",
            "Use a kernel from 6.1 on, or start with `--driver poll`.",
        ),
        (Some(libc::ENOMEM), _) => (
            "ring memory is charged against RLIMIT_MEMLOCK, which is used up",
            "Raise the limit (`LimitMEMLOCK=` in the unit, `ulimit -l` in a shell), or use fewer workers.",
        ),
        _ => ("the kernel refused to make a ring", "Run `ringwire run --driver poll` meanwhile."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probing_does_not_interrupt_the_caller() {
        use std::io::Read;
        let (mut socket, _peer) = std::os::unix::net::UnixStream::pair().unwrap();
        socket.set_read_timeout(Some(std::time::Duration::from_millis(100))).unwrap();
        for _ in 0..3 {
            let _ = probe();
            assert_eq!(socket.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        }
    }

    #[test]
    fn releases_are_read() {
        assert_eq!(version_of("6.18.44-1-amd64\n"), Some((6, 18)));
        assert_eq!(version_of("6.1-rc3"), Some((6, 1)));
        assert_eq!(version_of("10.0.0+"), Some((10, 0)));
        assert_eq!(version_of("unknown"), None);
        assert!(kernel_version().is_some_and(|version| version >= (4, 0)));
    }

    #[test]
    fn each_way_of_forbidding_it_has_its_own_cure() {
        let ways = [
            (libc::EPERM, "2"),
            (libc::EPERM, "1"),
            (libc::EPERM, "0"),
            (libc::ENOSYS, ""),
            (libc::EINVAL, "0"),
        ];
        let mut reasons: Vec<_> =
            ways.iter().map(|&(errno, switch)| diagnose(Some(errno), switch).0).collect();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), ways.len());
    }
}
