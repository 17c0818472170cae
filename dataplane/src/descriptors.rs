//! How many connections this process may have: the limit of open files, less what is in use and kept free.
//!
//! In: the limits of the process. Out: the bound that workers keep, so that accepting never fails for want of a descriptor and
//! what is one too many can be closed instead of waiting in the listener. Asked by [`crate::Server::start`].

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::limits;

/// What a process without any limit gets: more than the tables of a driver name.
const UNLIMITED: u64 = 1 << 24;

/// Raises the soft limit of open files to the hard one, and returns how many connections it permits: at least one.
pub(crate) fn connections_max(workers: usize) -> usize {
    let limit = raise();
    bound(limit, in_use(), workers)
}

fn bound(limit: u64, in_use: usize, workers: usize) -> usize {
    let limit = usize::try_from(limit.min(UNLIMITED)).unwrap_or(usize::MAX);
    let reserved = limits::DESCRIPTORS_RESERVED + limits::DESCRIPTORS_RESERVED_PER_WORKER * (workers - 1);
    limit.saturating_sub(in_use + reserved).max(1)
}

fn raise() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let current = limit.current.unwrap_or(UNLIMITED);
    let most = limit.maximum.unwrap_or(UNLIMITED).min(UNLIMITED);
    if most <= current {
        return current;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: Some(most), maximum: limit.maximum }) {
        Ok(()) => most,
        Err(error) => {
            tracing::warn!(%error, current, "the limit of open files cannot be raised to its hard limit");
            current
        }
    }
}

/// Descriptors that are open now, as far as the kernel tells.
fn in_use() -> usize {
    std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bound_leaves_a_reserve_and_is_never_nothing() {
        let reserved = limits::DESCRIPTORS_RESERVED;
        assert_eq!(bound(20_000, 100, 1), 20_000 - 100 - reserved);
        assert!(bound(20_000, 100, 3) < bound(20_000, 100, 1), "each worker has some for itself");
        assert_eq!(bound(reserved as u64, 10, 1), 1);
        assert_eq!(bound(u64::MAX, 0, 1), UNLIMITED as usize - reserved);
    }

    #[test]
    fn this_process_has_room_and_its_soft_limit_is_raised() {
        assert!(connections_max(1) > 1);
        let limit = getrlimit(Resource::Nofile);
        assert!(limit.current >= limit.maximum.map(|most| most.min(UNLIMITED)));
    }
}
