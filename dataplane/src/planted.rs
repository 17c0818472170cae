//! Thirteen deliberate bugs for the simulator to catch: proof that its oracle sees. Compiled in with the feature `planted` only;
//! without it every question is answered "no" at compile time.
//!
//! Chosen per thread, so that tests on several threads do not disturb each other.

/// One of the thirteen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// A blocked stream sends one byte more than its credit.
    CreditOffByOne,
    /// A FIN overtakes what is still queued.
    FinishBeforeData,
    /// A received page goes back although a queue refers to it.
    SlotReturnedTwice,
    /// Keys of former tenants find their successors.
    StaleGeneration,
    /// A session whose send completed is not looked at again.
    LostWakeUp,
    /// A receive that found no page is not armed again.
    QueueFullForgotten,
    /// The rest of a partly sent gather is dropped when one of its streams is gone.
    HalfFrameOnReset,
    /// A timer acts on whoever has the place now.
    TimerOnDeadSlot,
    /// The newest bulk stream always goes first.
    StarvationOfOneStream,
    /// A header is written in place in front of its payload, over the bytes of a neighbour.
    HeaderOverNeighbour,
    /// A session whose receiving was put off is never asked again.
    PauseForgotten,
    /// A loan goes home as soon as it is queued.
    LoanReturnedEarly,
    /// The letter that says FIN overtakes those with the payload before it.
    FinishBeforeLetters,
}

impl Bug {
    /// All of them; the last two show only between several workers.
    pub const ALL: [Self; 13] = [
        Self::CreditOffByOne,
        Self::FinishBeforeData,
        Self::SlotReturnedTwice,
        Self::StaleGeneration,
        Self::LostWakeUp,
        Self::QueueFullForgotten,
        Self::HalfFrameOnReset,
        Self::TimerOnDeadSlot,
        Self::StarvationOfOneStream,
        Self::HeaderOverNeighbour,
        Self::PauseForgotten,
        Self::LoanReturnedEarly,
        Self::FinishBeforeLetters,
    ];
}

#[cfg(feature = "planted")]
std::thread_local! {
    static ACTIVE: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug into the workers of this thread, or takes it out.
#[cfg(feature = "planted")]
pub fn set(bug: Option<Bug>) {
    ACTIVE.set(bug);
}

/// Whether this bug is planted in this thread.
#[cfg(feature = "planted")]
pub fn is(bug: Bug) -> bool {
    ACTIVE.get() == Some(bug)
}

/// Whether this bug is planted: never, without the feature.
#[cfg(not(feature = "planted"))]
#[inline(always)]
pub const fn is(_bug: Bug) -> bool {
    false
}
