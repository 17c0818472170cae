//! Benchmarks that anybody can run against any dmsg server. Every byte is checked; a run that loses one fails.

mod bridge;
mod pattern;
mod process;
mod report;
mod transfer;

pub use bridge::{BenchError, Mode, Options, Progress, run};
pub use report::{Latency, Report};
