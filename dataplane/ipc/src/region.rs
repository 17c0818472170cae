//! Shared memory between two processes: a memory file of fixed size, sealed so that neither side can change that size,
//! mapped by both. The only module of the package with unsafe code.
//!
//! ```text
//!   0     header: magic, layout version, kind, layout hash, epoch
//!   128   body: a ring or a counter page; zeroed memory is its start
//! ```
//!
//! The data plane makes a [`Region`] and passes its descriptor; the control plane opens it: a `Region` for what both
//! write, a [`ReadRegion`] for what the maker alone writes. A descriptor is checked in an order that leaves the other
//! side nothing to change: seals (only memory files have them, so no access to it can wait for a third party), then
//! size (fixed by the seals), then mapping, then header. An access can then neither fault nor leave the file.
#![allow(unsafe_code, reason = "shared memory is reached through raw addresses")]

use std::io;
use std::marker::PhantomData;
use std::mem::{align_of, offset_of, size_of};
use std::ops::Deref;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, fstat, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::counters::CounterPage;
use crate::ring::Ring;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::{LAYOUT_VERSION, layout_hash};

/// First word of every region: "RINGWIRE" in memory on little-endian machines.
const MAGIC: u64 = u64::from_le_bytes(*b"RINGWIRE");

/// No region is resized by anyone, and no seal is added later.
const SEALS: SealFlags = SealFlags::SHRINK.union(SealFlags::GROW).union(SealFlags::SEAL);

/// What a region can hold.
///
/// # Safety
/// The type has a fixed C layout, consists of atomics alone (any bytes are a valid value, writes by another process are no
/// data race), is valid when zeroed, needs no drop, and is aligned to at most 128 bytes. With [`MAKER_WRITES`](Self::MAKER_WRITES)
/// it offers no way to store through a shared reference outside of what takes a [`Region`] by value.
pub unsafe trait Body: Sync + 'static {
    /// What kind of body this is, in the header.
    const KIND: u32;
    /// Hash of its sizes and offsets.
    const LAYOUT_HASH: u64;
    /// Whether only the maker may write; the kernel then refuses everybody else a writable mapping.
    const MAKER_WRITES: bool;
}

// SAFETY: needed to put rings into regions. `repr(C)`, atomics only; zeroed is empty, with its consumer awake.
unsafe impl<const SLOTS: usize, const WORDS: usize> Body for Ring<SLOTS, WORDS> {
    const KIND: u32 = 1;
    const LAYOUT_HASH: u64 = Self::LAYOUT_HASH;
    const MAKER_WRITES: bool = false;
}

// SAFETY: needed to put counters into regions. `repr(C)`, atomics only; zeroed is nothing counted; the one type that
// stores, `CounterWriter`, takes a region by value.
unsafe impl Body for CounterPage {
    const KIND: u32 = 2;
    const LAYOUT_HASH: u64 = Self::LAYOUT_HASH;
    const MAKER_WRITES: bool = true;
}

/// Why there is no region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The kernel refused a step of making or mapping one.
    #[error("cannot {step} shared memory: {error}. {}", cure(.error))]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// What the kernel said.
        error: io::Error,
    },
    /// The descriptor is no memory file.
    #[error("the descriptor is no memory file")]
    NotMemory,
    /// The descriptor lacks seals, so that the other side could change its size under our feet.
    #[error("the memory file is not sealed: seals are {found:#x}, needed are {needed:#x}")]
    Unsealed {
        /// Seals it has, as the kernel's bits.
        found: u32,
        /// Seals it needs.
        needed: u32,
    },
    /// The memory file has another size than this layout.
    #[error("the memory file has {found} bytes instead of {expected}")]
    Size {
        /// Its size in bytes; what the kernel said if that is negative.
        found: i64,
        /// The size of this layout in bytes.
        expected: usize,
    },
    /// A field of the header has another value than this process expects.
    #[error("the region's {field} is {found:#x} instead of {expected:#x}")]
    Header {
        /// Which field: `magic`, `layout version`, `kind`, `layout hash` or `epoch`.
        field: &'static str,
        /// What it says.
        found: u64,
        /// What it should say.
        expected: u64,
    },
}

/// What helps when the kernel refuses. Memory files count as files: also against the limit on their size.
fn cure(error: &io::Error) -> &'static str {
    match error.raw_os_error().map(Errno::from_raw_os_error) {
        Some(Errno::FBIG) => "Raise the limit of file sizes (`ulimit -f unlimited`, `LimitFSIZE=` in a unit)",
        Some(Errno::MFILE) => "Raise the limit of open files (`ulimit -n`)",
        Some(Errno::NFILE) => "Raise the machine's limit of open files (`sysctl fs.file-max`)",
        Some(Errno::NOMEM | Errno::NOSPC) => "Give it more memory, or address space (`ulimit -v`)",
        _ => "Shared memory is what memfd_create(2), ftruncate(2) and mmap(2) make: see what forbids them",
    }
}

fn kernel(step: &'static str) -> impl FnOnce(Errno) -> RegionError {
    move |error| RegionError::Kernel { step, error: error.into() }
}

#[derive(Debug)]
#[repr(C)]
struct Header {
    magic: AtomicU64,
    version: AtomicU32,
    kind: AtomicU32,
    layout: AtomicU64,
    epoch: AtomicU64,
}

#[repr(C, align(128))]
struct Layout<B> {
    header: Header,
    body: Aligned<B>,
}

#[repr(C, align(128))]
struct Aligned<B>(B);

impl<B: Body> Layout<B> {
    const LEN: usize = {
        assert!(align_of::<B>() <= 128 && !std::mem::needs_drop::<B>());
        assert!(offset_of!(Self, body) == 128);
        size_of::<Self>()
    };
    const HASH: u64 = layout_hash(&[
        Self::LEN,
        offset_of!(Header, magic),
        offset_of!(Header, version),
        offset_of!(Header, kind),
        offset_of!(Header, layout),
        offset_of!(Header, epoch),
        offset_of!(Self, body),
        (B::LAYOUT_HASH >> 32) as usize,
        (B::LAYOUT_HASH & 0xffff_ffff) as usize,
    ]);

    fn needed_seals() -> SealFlags {
        if B::MAKER_WRITES { SEALS | SealFlags::FUTURE_WRITE } else { SEALS }
    }

    fn stamp(&self, epoch: u64) {
        self.header.version.store(LAYOUT_VERSION, Ordering::Relaxed);
        self.header.kind.store(B::KIND, Ordering::Relaxed);
        self.header.layout.store(Self::HASH, Ordering::Relaxed);
        self.header.epoch.store(epoch, Ordering::Relaxed);
        // Release: partner is the Acquire load in `check`. (Passing the descriptor orders them already.)
        self.header.magic.store(MAGIC, Ordering::Release);
    }

    fn check(&self, epoch: u64) -> Result<(), RegionError> {
        // Acquire: partner is the Release store in `stamp`. Each field is loaded once.
        let magic = self.header.magic.load(Ordering::Acquire);
        let fields = [
            ("magic", magic, MAGIC),
            ("layout version", self.header.version.load(Ordering::Relaxed).into(), LAYOUT_VERSION.into()),
            ("kind", self.header.kind.load(Ordering::Relaxed).into(), B::KIND.into()),
            ("layout hash", self.header.layout.load(Ordering::Relaxed), Self::HASH),
            ("epoch", self.header.epoch.load(Ordering::Relaxed), epoch),
        ];
        for (field, found, expected) in fields {
            if found != expected {
                return Err(RegionError::Header { field, found, expected });
            }
        }
        Ok(())
    }
}

const _: () = {
    assert!(size_of::<Header>() == 32);
    assert!(offset_of!(Header, magic) == 0);
    assert!(offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, kind) == 12);
    assert!(offset_of!(Header, layout) == 16);
    assert!(offset_of!(Header, epoch) == 24);
    assert!(Layout::<crate::CommandRing>::LEN == 128 + 384 + 256 * 64);
    assert!(Layout::<crate::EventRing>::LEN == 128 + 384 + 4096 * 128);
    assert!(Layout::<CounterPage>::LEN == 4096);
    assert!(Layout::<crate::CommandRing>::HASH != Layout::<crate::EventRing>::HASH);
};

/// A mapping of a whole region, unmapped on drop.
struct Mapping<B: Body> {
    base: NonNull<Layout<B>>,
    owned: PhantomData<Layout<B>>,
}

// SAFETY: needed because a region is made on one thread and used on another. The mapping has no tie to a thread.
unsafe impl<B: Body> Send for Mapping<B> {}
// SAFETY: needed to share a region between handles on several threads. A body is `Sync` and is only lent out shared.
unsafe impl<B: Body> Sync for Mapping<B> {}

impl<B: Body> Mapping<B> {
    /// Maps `descriptor`, whose size the caller has made or checked to be [`Layout::LEN`] and sealed, or will seal before
    /// anyone else has it.
    fn new(descriptor: &OwnedFd, protection: ProtFlags) -> Result<Self, RegionError> {
        // Populated, so that a worker's turn meets no page fault.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: needed to share memory with another process; the kernel picks the address, so nothing is aliased.
        let base = unsafe { mmap(std::ptr::null_mut(), Layout::<B>::LEN, protection, flags, descriptor, 0) }
            .map_err(kernel("map"))?;
        let base = NonNull::new(base.cast()).ok_or_else(|| kernel("map")(Errno::NOMEM))?;
        Ok(Self { base, owned: PhantomData })
    }

    fn layout(&self) -> &Layout<B> {
        // SAFETY: needed to reach the mapped words. The mapping is as long as the layout, page-aligned, backed by a file
        // of that size for as long as this value lives, and made of atomics, which any bytes and any writer leave valid.
        unsafe { self.base.as_ref() }
    }
}

impl<B: Body> Drop for Mapping<B> {
    fn drop(&mut self) {
        // SAFETY: needed to give the address range back. It was mapped with this length and no reference outlives `self`.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), Layout::<B>::LEN) };
        debug_assert!(unmapped.is_ok(), "a mapping made by `new` can be unmapped");
    }
}

/// A region that this process may write. See the module's head.
// The order of the two fields does not matter: a mapping keeps its file alive.
pub struct Region<B: Body> {
    mapping: Mapping<B>,
    descriptor: OwnedFd,
}

impl<B: Body> Region<B> {
    /// Makes a region for attach number `epoch`. Its descriptor ([`AsFd`]) is what the other process opens.
    ///
    /// # Errors
    /// [`RegionError::Kernel`]: descriptors, memory or address space are used up.
    pub fn create(epoch: u64) -> Result<Self, RegionError> {
        let descriptor = memory_file().map_err(kernel("create"))?;
        ftruncate(&descriptor, Layout::<B>::LEN as u64).map_err(kernel("size"))?;
        let mapping = Mapping::<B>::new(&descriptor, ProtFlags::READ | ProtFlags::WRITE)?;
        mapping.layout().stamp(epoch);
        // After mapping: the seal that reserves writing to the maker counts from here on.
        fcntl_add_seals(&descriptor, Layout::<B>::needed_seals()).map_err(kernel("seal"))?;
        Ok(Self { mapping, descriptor })
    }

    /// Opens what the other process made, to write as well as to read.
    ///
    /// # Errors
    /// The descriptor is not what [`create`](Self::create) of the same build makes for this body and `epoch`; or
    /// [`RegionError::Kernel`], also for a body that only its maker may write.
    pub fn open(descriptor: OwnedFd, epoch: u64) -> Result<Self, RegionError> {
        let mapping = open_mapping(&descriptor, epoch, ProtFlags::READ | ProtFlags::WRITE)?;
        Ok(Self { mapping, descriptor })
    }
}

impl<B: Body> Deref for Region<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.mapping.layout().body.0
    }
}

impl<B: Body> AsFd for Region<B> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor.as_fd()
    }
}

impl<B: Body> std::fmt::Debug for Region<B> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Region").field("descriptor", &self.descriptor).finish_non_exhaustive()
    }
}

/// A region that this process can only read. For bodies that only their maker writes. See the module's head.
pub struct ReadRegion<B: Body>(Mapping<B>);

impl<B: Body> ReadRegion<B> {
    const READABLE: () = assert!(B::MAKER_WRITES, "the handles of this body store into it");

    /// Opens what the other process made. The descriptor is not needed any longer then, and is closed.
    ///
    /// # Errors
    /// As [`Region::open`].
    pub fn open(descriptor: OwnedFd, epoch: u64) -> Result<Self, RegionError> {
        let () = Self::READABLE;
        let mapping = open_mapping(&descriptor, epoch, ProtFlags::READ);
        drop(descriptor);
        Ok(Self(mapping?))
    }
}

impl<B: Body> Deref for ReadRegion<B> {
    type Target = B;

    fn deref(&self) -> &B {
        &self.0.layout().body.0
    }
}

impl<B: Body> std::fmt::Debug for ReadRegion<B> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("ReadRegion").finish_non_exhaustive()
    }
}

fn memory_file() -> rustix::io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // Hardened systems insist on "never executable"; kernels before 6.3 do not know it.
    match memfd_create("ringwire", flags | MemfdFlags::NOEXEC_SEAL) {
        Err(Errno::INVAL) => memfd_create("ringwire", flags),
        made => made,
    }
}

fn open_mapping<B: Body>(
    descriptor: &OwnedFd,
    epoch: u64,
    protection: ProtFlags,
) -> Result<Mapping<B>, RegionError> {
    let needed = Layout::<B>::needed_seals();
    let found = match fcntl_get_seals(descriptor) {
        Ok(found) => found,
        Err(Errno::INVAL) => return Err(RegionError::NotMemory),
        Err(error) => return Err(kernel("inspect")(error)),
    };
    if !found.contains(needed) {
        return Err(RegionError::Unsealed { found: found.bits(), needed: needed.bits() });
    }
    let expected = Layout::<B>::LEN;
    let found = fstat(descriptor).map_err(kernel("inspect"))?.st_size;
    if usize::try_from(found) != Ok(expected) {
        return Err(RegionError::Size { found, expected });
    }
    let mapping = Mapping::new(descriptor, protection)?;
    mapping.layout().check(epoch)?;
    Ok(mapping)
}
