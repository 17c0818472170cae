//! Where the data plane's counters come from.

use std::future::Future;

use ringwire_dataplane::counters::Counter;

/// The data plane's counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Totals {
    /// Whether the data plane is attached and takes its turns; when it is not, the rows are those of the last time it did.
    pub attached: bool,
    /// One row per worker, each with one cell per counter in the order of [`Counter::ALL`].
    pub workers: Vec<Vec<u64>>,
}

impl Totals {
    /// A counter, all workers together.
    pub fn sum(&self, counter: Counter) -> u64 {
        let cells = self.workers.iter().filter_map(|row| row.get(counter as usize));
        cells.fold(0, |sum, cell| sum.wrapping_add(*cell))
    }

    /// How many of a thing there are, from the counters of its beginnings and ends. They may be from different moments,
    /// so the difference can be one that never was; it is never negative.
    pub fn open(&self, opened: Counter, closed: Counter) -> u64 {
        self.sum(opened).saturating_sub(self.sum(closed))
    }
}

/// Reads the data plane's counters.
pub trait CounterSource: Send + Sync + 'static {
    /// What they are now; `None` when there is no data plane to ask.
    fn totals(&self) -> impl Future<Output = Option<Totals>> + Send;
}

impl CounterSource for crate::supervise::Plane {
    async fn totals(&self) -> Option<Totals> {
        let workers = self.counters().await?;
        let status = self.status();
        Some(Totals { attached: status.attached && status.silent_worker.is_none(), workers })
    }
}
