//! The clock of the drivers that have a kernel below them.

use crate::driver::Nanos;
use crate::limits;

/// Nanoseconds of CLOCK_MONOTONIC.
pub(crate) fn monotonic() -> Nanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as u64 * limits::SECOND_NS + time.tv_nsec as u64
}
