//! The runtimes of commands that have threads, made only where there is room for these: a runtime that misses one panics.

use std::io;
use std::num::NonZero;
use std::sync::Mutex;
use std::thread;

use anyhow::anyhow;
use tokio::runtime::{Builder, Runtime};

/// Threads at a time besides the runtime's own: what blocks, such as a name service.
const SPARE_THREADS: usize = 4;

/// A runtime with so many threads, or one for each core.
pub(super) fn runtime(threads: Option<usize>) -> anyhow::Result<Runtime> {
    let threads = threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get));
    try_threads(threads + SPARE_THREADS).map_err(|error| {
        anyhow!(
            "cannot start a thread: {error}; raise the limit of processes and threads (`ulimit -u`, `TasksMax=` in a \
             unit, `--pids-limit` of a container)"
        )
    })?;
    let built = Builder::new_multi_thread().worker_threads(threads).enable_all().build();
    built.map_err(|error| anyhow!("cannot begin: {error}; raise the limit of open files (`ulimit -n`)"))
}

/// Whether so many threads can be started: they are, all at a time, and end at once.
pub(super) fn try_threads(count: usize) -> io::Result<()> {
    let gate = Mutex::new(());
    thread::scope(|scope| {
        let closed = gate.lock();
        let started = (0..count)
            .try_for_each(|_| thread::Builder::new().spawn_scoped(scope, || drop(gate.lock())).map(drop));
        drop(closed);
        started
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_are_tried_and_gone() {
        assert!(try_threads(8).is_ok());
        let runtime = runtime(Some(1)).unwrap();
        assert_eq!(runtime.block_on(async { tokio::task::spawn_blocking(|| 7).await.unwrap() }), 7);
    }
}
