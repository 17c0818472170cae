//! A worker's counters in shared memory: one page of cells, written by the worker, read by the control plane.
//!
//! One writer, so counting is a relaxed load and a relaxed store, without a locked instruction. A reader sees every
//! cell whole, but two cells may be from different moments; totals that belong together are read as a pair of opened
//! and closed, never as a difference kept here. The kernel refuses the control plane a writable mapping.

use std::mem::{offset_of, size_of};

use crate::layout_hash;
use crate::region::{ReadRegion, Region};
use crate::sync::{AtomicU64, Ordering};

/// Cells of a page: with the region's header they fill 4 KiB.
pub const CELLS: usize = 496;

/// Shared memory of a worker's counters. See the module's head.
#[derive(Debug)]
#[repr(C, align(128))]
pub struct CounterPage {
    cells: [AtomicU64; CELLS],
}

const _: () = {
    assert!(size_of::<CounterPage>() == 3968);
    assert!(offset_of!(CounterPage, cells) == 0);
};

impl CounterPage {
    /// Hash of sizes and offsets; two builds that share a page must agree on it.
    pub const LAYOUT_HASH: u64 = layout_hash(&[size_of::<Self>(), offset_of!(Self, cells), CELLS]);
}

/// Names a cell of a page. Which counter has which is agreed between the two programs of a build, not here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CellIndex(usize);

impl CellIndex {
    /// The cell with this number, if a page has so many. Usable in constants, to find out at compile time.
    pub const fn new(number: usize) -> Option<Self> {
        if number < CELLS { Some(Self(number)) } else { None }
    }
}

/// The worker's end: one thread alone adds; others of its process may read.
#[derive(Debug)]
pub struct CounterWriter(Home);

/// Where the cells are.
#[derive(Debug)]
enum Home {
    Shared(Region<CounterPage>),
    /// For tests and the simulator: nobody else reads them.
    Private(Box<CounterPage>),
}

impl CounterWriter {
    /// The writer of a region that this process made.
    pub fn new(region: Region<CounterPage>) -> Self {
        Self(Home::Shared(region))
    }

    /// A writer whose page no other process can read.
    pub fn private() -> Self {
        Self(Home::Private(Box::new(CounterPage { cells: [const { AtomicU64::new(0) }; CELLS] })))
    }

    /// Adds to a cell; wraps around at 2^64. Only one thread may add: another one's addition could be lost.
    #[inline]
    pub fn add(&self, cell: CellIndex, amount: u64) {
        let value = &self.page().cells[cell.0];
        // Relaxed: no partner, a total orders nothing else. Load and store because there is no other writer.
        value.store(value.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// One total.
    pub fn read(&self, cell: CellIndex) -> u64 {
        // Relaxed: no partner, see `add`.
        self.page().cells[cell.0].load(Ordering::Relaxed)
    }

    /// The region, whose descriptor readers need; `None` if the page is private.
    pub fn region(&self) -> Option<&Region<CounterPage>> {
        match &self.0 {
            Home::Shared(region) => Some(region),
            Home::Private(_) => None,
        }
    }

    #[inline]
    fn page(&self) -> &CounterPage {
        match &self.0 {
            Home::Shared(region) => region,
            Home::Private(page) => page,
        }
    }
}

/// The control plane's end. What it reads is what the worker claims.
#[derive(Debug)]
pub struct CounterReader(ReadRegion<CounterPage>);

impl CounterReader {
    /// A reader of a region that the data plane made.
    pub fn new(region: ReadRegion<CounterPage>) -> Self {
        Self(region)
    }

    /// One total.
    pub fn read(&self, cell: CellIndex) -> u64 {
        // Relaxed: no partner, see `CounterWriter::add`.
        self.0.cells[cell.0].load(Ordering::Relaxed)
    }

    /// All totals, each whole, not all of one moment.
    pub fn snapshot(&self) -> [u64; CELLS] {
        std::array::from_fn(|cell| self.0.cells[cell].load(Ordering::Relaxed))
    }
}
