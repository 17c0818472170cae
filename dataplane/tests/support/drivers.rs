//! Server tests on every driver, and what happens where a host lacks one.
//!
//! A test function is named in [`on_each_driver!`] instead of carrying the attribute itself; the servers it starts then run on
//! the driver of the moment ([`current`]).
#![allow(unused_imports, unused_macros, reason = "each test file uses its part")]

use std::cell::Cell;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};

use ringwire_dataplane::{DriverChoice, ring};

/// Makes each of the named functions a test on each driver: `uring::name` and `poll::name`.
///
/// A driver that this host does not have fails its tests, unless [`ALLOW_SKIP`] says that it may be missing.
macro_rules! on_each_driver {
    ($($test:ident),+ $(,)?) => {
        mod uring {
            $(#[test]
            fn $test() {
                $crate::support::drivers::on_uring(stringify!($test), super::$test);
            })+
        }
        mod poll {
            $(#[test]
            fn $test() {
                $crate::support::drivers::on_poll(super::$test);
            })+
        }
    };
}
pub(crate) use on_each_driver;

/// Environment variable that names the driver a host may lack: `uring`.
pub const ALLOW_SKIP: &str = "RINGWIRE_ALLOW_SKIP";

/// Environment variable with the file that gets a line for each skipped test: `cargo xtask test` counts them in its summary.
pub const SKIP_LOG: &str = "RINGWIRE_SKIP_LOG";

thread_local! {
    static CURRENT: Cell<DriverChoice> = const { Cell::new(DriverChoice::Auto) };
}

/// The driver of servers that this thread's test starts.
pub fn current() -> DriverChoice {
    CURRENT.get()
}

pub fn on_poll(test: fn()) {
    CURRENT.set(DriverChoice::Poll);
    test();
}

/// Runs a test on io_uring. Where that cannot be used: panics, or prints a line `skipped: N` with the number of tests this
/// program has skipped so far.
pub fn on_uring(name: &str, test: fn()) {
    static SKIPPED: AtomicUsize = AtomicUsize::new(0);
    let Err(error) = ring::probe() else {
        CURRENT.set(DriverChoice::Uring);
        return test();
    };
    let allowed = std::env::var(ALLOW_SKIP).is_ok_and(|names| names.split(',').any(|name| name == "uring"));
    assert!(allowed, "{error} (To skip such tests: {ALLOW_SKIP}=uring)");
    let count = SKIPPED.fetch_add(1, Ordering::Relaxed) + 1;
    if let Some(path) = std::env::var_os(SKIP_LOG)
        && let Ok(mut log) = std::fs::OpenOptions::new().create(true).append(true).open(path)
    {
        let _ = writeln!(log, "uring::{name}");
    }
    // To the handle itself: the test harness keeps what the macros print to itself when a test passes.
    let _ = writeln!(std::io::stderr().lock(), "skipped: {count} (uring::{name}: {error})");
}
