//! The memory a worker's buffers live in: one anonymous mapping, carved into pages by the [`Pool`](super::Pool).
//!
//! The kernel writes received bytes into pages of it while the worker reads other pages, so no Rust reference to the
//! whole mapping ever exists: only slices of single ranges, handed out by the pool, which knows who owns each page.

use std::io::{self, IoSliceMut};
use std::ptr::NonNull;
use std::sync::Arc;

/// An anonymous private mapping of fixed length, zeroed by the kernel, resident only where it was touched. This handle is the only
/// one that writes.
#[derive(Debug)]
pub(super) struct Region {
    mapping: Arc<Mapping>,
    /// As the mapping's: each frame asks for them, and this is one look-up less.
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: needed because a worker is built on one thread and may be moved to another before it runs. The address is that of the
// mapping, which this value holds and which has no tie to a thread.
unsafe impl Send for Region {}

/// A region as other threads see it: to read, and only what its owner has lent.
#[derive(Debug, Clone)]
pub(super) struct Shared(Arc<Mapping>);

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    len: usize,
}

// SAFETY: needed because a worker is built on one thread and may be moved to another before it runs, and because other workers
// hold the mapping of their lender. The mapping is owned by this value alone and has no tie to a thread.
unsafe impl Send for Mapping {}
// SAFETY: needed because other workers read what they borrowed. Through a shared mapping bytes are only read, and who may
// read which is decided by the pools: bytes that are lent out are not written until they are home.
unsafe impl Sync for Mapping {}

impl Region {
    /// Maps `len` bytes (a multiple of the system page size). Errors are the kernel's: no memory, or a limit on
    /// address space.
    pub(super) fn new(len: usize) -> io::Result<Self> {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};
        // SAFETY: needed to get memory whose address the kernel can be told; a fresh anonymous mapping aliases nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | MapFlags::NORESERVE,
            )
        }?;
        // What clients say to each other is in no core file, whoever may make one. Where the kernel does not know the advice,
        // the process's own attribute keeps it out.
        // SAFETY: needed to give advice on a range; it is the fresh mapping, and the advice changes none of its bytes.
        let _ = unsafe { rustix::mm::madvise(base, len, rustix::mm::Advice::LinuxDontDump) };
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped at address zero"))?;
        Ok(Self { mapping: Arc::new(Mapping { base, len }), base, len })
    }

    /// Dropping the region leaves the mapping in place.
    pub(super) fn leak(&self) {
        std::mem::forget(Arc::clone(&self.mapping));
    }

    /// A handle for those who borrow from it.
    pub(super) fn share(&self) -> Shared {
        Shared(Arc::clone(&self.mapping))
    }

    /// Length of the mapping in bytes.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Address of byte `offset`, for the kernel.
    pub(super) fn address(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.len, "an offset inside the region");
        self.base.as_ptr().wrapping_add(offset)
    }

    /// The bytes `offset..offset + len`. The caller (the pool) has checked that the kernel does not own them.
    pub(super) fn slice(&self, offset: usize, len: usize) -> &[u8] {
        let at = checked(self.base, self.len, offset, len);
        // SAFETY: needed to read what the kernel received. The range was checked to lie inside the mapping, the memory is
        // initialised (zeroed by the kernel), and pages the kernel may write are never handed out by the pool.
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    /// The bytes `offset..offset + len`, to write. As [`slice`](Self::slice); `&mut self` makes it the only Rust
    /// reference, and bytes a send in flight reads are never in it (the pool writes only to fresh tails of blocks).
    pub(super) fn slice_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        let at = checked(self.base, self.len, offset, len);
        // SAFETY: as in `slice`, and exclusive through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }
}

impl Region {
    /// Several ranges of `len` bytes at once, to write, one for each of `offsets`. As [`slice_mut`](Self::slice_mut); the
    /// ranges must not overlap.
    pub(super) fn slices_mut<'a>(&'a mut self, offsets: &[usize], len: usize, out: &mut [IoSliceMut<'a>]) {
        for (at, (&offset, slice)) in offsets.iter().zip(out).enumerate() {
            assert!(offsets[..at].iter().all(|other| other.abs_diff(offset) >= len), "no two ranges overlap");
            let start = checked(self.base, self.len, offset, len);
            // SAFETY: needed to let one call fill several pages. As in `slice`; `&mut self`, which the slices borrow, keeps
            // other references away, and the check above keeps them apart from each other.
            *slice = IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(start, len) });
        }
    }
}

impl Region {
    /// Gives the memory of `offset..offset + len` (whole system pages) back to the kernel: it is not resident any more, and reads as
    /// zero when it is used again. The caller (the pool) has checked that nobody refers to it.
    pub(super) fn give_back(&mut self, offset: usize, len: usize) {
        use rustix::mm::{Advice, madvise};
        let at = checked(self.base, self.len, offset, len);
        // SAFETY: needed to give back what a crowd has used. The range was checked to lie inside the mapping; no reference to it
        // exists, for its pages are free in the pool, and `&mut self` keeps new ones away.
        let outcome = unsafe { madvise(at.cast(), len, Advice::LinuxDontNeed) };
        debug_assert!(outcome.is_ok(), "part of a mapping made here can be given back");
    }
}

impl Shared {
    /// The bytes `offset..offset + len`, which the caller (the borrower's pool) has on loan.
    pub(super) fn slice(&self, offset: usize, len: usize) -> &[u8] {
        let at = checked(self.0.base, self.0.len, offset, len);
        // SAFETY: needed to send what another worker received, without a copy. As in `Region::slice`; the owner writes to no
        // byte that it has lent, and does not let the kernel.
        unsafe { std::slice::from_raw_parts(at, len) }
    }
}

/// Address of byte `offset` of a mapping in which the `len` bytes from there on lie.
fn checked(base: NonNull<u8>, mapped: usize, offset: usize, len: usize) -> *mut u8 {
    assert!(offset <= mapped && len <= mapped - offset, "a range inside the region");
    base.as_ptr().wrapping_add(offset)
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: needed to give the mapping back; it was made by `new` with this length and nothing refers to it any more
        // (the ring that could write to it is dropped before the pool: see the field order of the drivers; borrowers hold it).
        let outcome = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(outcome.is_ok(), "a mapping made here can be unmapped");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_left_out_of_core_files() {
        let region = Region::new(1 << 20).unwrap();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let start = region.address(0) as usize;
        let mut ours = maps.lines().skip_while(|line| {
            let range = line.split_once('-').and_then(|(from, rest)| {
                let (to, _) = rest.split_once(' ')?;
                Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
            });
            !range.is_some_and(|range| range.contains(&start))
        });
        let flags = ours.find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
        // `dd`: do not dump.
        assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    }
}
