//! Benchmarks that anybody can run against any dmsg server. Every byte is checked; a run that loses one fails.
//!
//! ```text
//!   run ──► bridge (bulk, latency) ──► transfer: checked bytes over streams that stay
//!       ├─► opens ───────────────────► streams that come and go
//!       ├─► streams ─────────────────► streams that stay and do nothing
//!       └─► sessions (handshakes, idle)
//!   each within a cost::Meter; all of it in a Report
//! ```

mod bridge;
mod cost;
mod opens;
mod pattern;
mod process;
mod report;
mod sessions;
mod streams;
mod transfer;

use std::sync::Arc;

pub use bridge::{BenchError, Mode, Options, Progress};
pub use report::{Latency, Report};

/// Runs a benchmark.
///
/// # Errors
/// See [`BenchError`]; only before the run has begun. What fails later gives a report with `verified: false`.
pub async fn run(options: Options, progress: Arc<Progress>) -> Result<Report, BenchError> {
    match options.mode {
        Mode::Bulk | Mode::Latency => bridge::transfers(&options, &progress).await,
        Mode::Handshakes => {
            let outcome = sessions::handshakes(&options, &progress).await?;
            Ok(Report::of_handshakes(&options, outcome))
        }
        Mode::Opens => Ok(Report::of_opens(&options, opens::run(&options, &progress).await?)),
        Mode::Idle => Ok(Report::of_idle(&options, sessions::idle(&options, &progress).await?)),
        Mode::IdleStreams => Ok(Report::of_idle_streams(&options, streams::idle(&options, &progress).await?)),
    }
}
