//! The memory a worker's buffers live in: one anonymous mapping, carved into pages by the [`Pool`](super::Pool).
//!
//! The kernel writes received bytes into pages of it while the worker reads other pages, so no Rust reference to the
//! whole mapping ever exists: only slices of single ranges, handed out by the pool, which knows who owns each page.

use std::io::{self, IoSliceMut};
use std::ptr::NonNull;

/// An anonymous private mapping of fixed length, zeroed by the kernel, resident only where it was touched.
#[derive(Debug)]
pub(super) struct Region {
    base: NonNull<u8>,
    len: usize,
    leaked: bool,
}

// SAFETY: needed because a worker is built on one thread and may be moved to another before it runs. The mapping is
// owned by this value alone and has no tie to a thread.
unsafe impl Send for Region {}

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
        let base =
            NonNull::new(base.cast()).ok_or_else(|| io::Error::other("the kernel mapped at address zero"))?;
        Ok(Self { base, len, leaked: false })
    }

    /// Dropping the region leaves the mapping in place.
    pub(super) fn leak(&mut self) {
        self.leaked = true;
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
        assert!(offset <= self.len && len <= self.len - offset, "a range inside the region");
        let at = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: needed to read what the kernel received. The range was checked to lie inside the mapping, the memory is
        // initialised (zeroed by the kernel), and pages the kernel may write are never handed out by the pool.
        unsafe { std::slice::from_raw_parts(at, len) }
    }

    /// The bytes `offset..offset + len`, to write. As [`slice`](Self::slice); `&mut self` makes it the only Rust
    /// reference, and bytes a send in flight reads are never in it (the pool writes only to fresh tails of blocks).
    pub(super) fn slice_mut(&mut self, offset: usize, len: usize) -> &mut [u8] {
        assert!(offset <= self.len && len <= self.len - offset, "a range inside the region");
        let at = self.base.as_ptr().wrapping_add(offset);
        // SAFETY: as in `slice`, and exclusive through `&mut self`.
        unsafe { std::slice::from_raw_parts_mut(at, len) }
    }
}

impl Region {
    /// Several ranges of `len` bytes at once, to write, one for each of `offsets`. As [`slice_mut`](Self::slice_mut); the
    /// ranges must not overlap.
    pub(super) fn slices_mut<'a>(&'a mut self, offsets: &[usize], len: usize, out: &mut [IoSliceMut<'a>]) {
        for (at, (&offset, slice)) in offsets.iter().zip(out).enumerate() {
            assert!(offset <= self.len && len <= self.len - offset, "a range inside the region");
            assert!(offsets[..at].iter().all(|other| other.abs_diff(offset) >= len), "no two ranges overlap");
            let start = self.base.as_ptr().wrapping_add(offset);
            // SAFETY: needed to let one call fill several pages. As in `slice`; `&mut self`, which the slices borrow, keeps
            // other references away, and the check above keeps them apart from each other.
            *slice = IoSliceMut::new(unsafe { std::slice::from_raw_parts_mut(start, len) });
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.leaked {
            return;
        }
        // SAFETY: needed to give the mapping back; it was made by `new` with this length and nothing refers to it any more
        // (the ring that could write to it is dropped before the pool: see the field order of the drivers).
        let outcome = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.len) };
        debug_assert!(outcome.is_ok(), "a mapping made here can be unmapped");
    }
}
