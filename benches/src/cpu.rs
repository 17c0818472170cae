//! Which core a process runs on, at which priority, and how much processor time it has used.
//!
//! In: core numbers and process ids. Out: the kernel's answers. Called by the relays and the ping process about
//! themselves, and by [`crate::measure`] about all of them. The three calls that rustix lacks are the only `unsafe` of
//! this package.

use rustix::thread::CpuSet;
use std::io;
use std::time::Duration;

/// Binds the calling thread, and every thread it starts later, to one core.
///
/// # Errors
/// The kernel's, among them `EINVAL` for a core that does not exist or is not allowed here.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    if core >= CpuSet::MAX_CPU {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("core {core} is out of range")));
    }
    set.set(core);
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

/// Asks for `SCHED_FIFO` at the lowest real-time priority for the calling thread. False where that is not allowed.
#[must_use]
pub fn real_time() -> bool {
    let parameters = libc::sched_param { sched_priority: 1 };
    // Why unsafe: no safe wrapper exists for the scheduling policy.
    // SAFETY: pid 0 is the calling thread; the pointer is to a live, initialised structure that the call only reads.
    unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) == 0 }
}

/// The clock that counts the processor time of one process, all its threads together, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct CpuClock(libc::clockid_t);

impl CpuClock {
    /// The clock of the process with this id.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(process: u32) -> io::Result<Self> {
        let process = libc::pid_t::try_from(process)
            .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "process id out of range"))?;
        let mut clock = 0;
        // Why unsafe: no safe wrapper exists for the clock of another process.
        // SAFETY: the pointer is to a live integer, which the call writes.
        let error = unsafe { libc::clock_getcpuclockid(process, &raw mut clock) };
        if error != 0 {
            return Err(io::Error::from_raw_os_error(error));
        }
        Ok(Self(clock))
    }

    /// The clock of this process.
    ///
    /// # Errors
    /// None in practice; the signature is that of [`CpuClock::of`].
    pub fn of_this_process() -> io::Result<Self> {
        Self::of(std::process::id())
    }

    /// Processor time used so far.
    ///
    /// # Errors
    /// When the process has ended.
    pub fn used(self) -> io::Result<Duration> {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // Why unsafe: rustix reads only the clocks of the calling process.
        // SAFETY: the pointer is to a live structure, which the call writes.
        if unsafe { libc::clock_gettime(self.0, &raw mut time) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let seconds = u64::try_from(time.tv_sec).unwrap_or(0);
        let nanoseconds = u32::try_from(time.tv_nsec).unwrap_or(0);
        Ok(Duration::new(seconds, nanoseconds))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    #[test]
    fn own_clock_counts_work() {
        let clock = CpuClock::of_this_process().unwrap();
        let before = clock.used().unwrap();
        let began = Instant::now();
        while began.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        assert!(clock.used().unwrap() > before);
    }

    #[test]
    fn absent_core_is_an_error() {
        assert!(pin(CpuSet::MAX_CPU).is_err());
        assert!(pin(CpuSet::MAX_CPU - 1).is_err());
    }
}
