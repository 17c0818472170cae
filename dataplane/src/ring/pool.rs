//! Buffer memory of one worker: pages for receiving, and small blocks for what must be copied.
//!
//! A page is free, with the kernel (in its receive ring), received (holds what arrived, counted by the spans that refer
//! to it), or split into equal blocks (each counted likewise). What goes in: requests for pages and blocks. What comes
//! out: [`Span`]s, eight bytes each, that name bytes and hold a reference on them until they are released.
//!
//! Budgets count pages at their true size, whatever little of them is payload: [`Pool::held_len`].
//!
//! A span may also lie in memory of another worker, on loan (`loans`). It is used like any other; its page number is none of
//! this pool's, so what is known of the pool's own pages costs no more for it.

use std::io::{self, IoSliceMut};

use super::loans::{LOANS_FROM, Lender, Loans};
use super::region::Region;
use crate::limits::{PAGE_LEN, PAGES_AT_START, PAGES_KEPT, RECEIVE_LEN_MAX};

/// Pages one [`Pool::fill`] takes at most.
pub const PAGES_PER_FILL_MAX: usize = RECEIVE_LEN_MAX / PAGE_LEN;

/// Bytes inside one page. Plain data: whoever holds it owes one [`Pool::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    page: u32,
    offset: u16,
    len: u16,
}

impl Span {
    /// Length in bytes.
    pub fn len(self) -> usize {
        usize::from(self.len)
    }

    /// Whether it names no bytes.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }

    /// The page it lies in.
    pub fn page(self) -> u32 {
        self.page
    }

    /// How many of its bytes lie in memory of another worker: all, or none.
    pub fn borrowed_len(self) -> usize {
        if self.page >= LOANS_FROM { self.len() } else { 0 }
    }

    /// The sub-span `from..from + len`. Holds no reference of its own.
    pub fn part(self, from: usize, len: usize) -> Self {
        assert!(from + len <= self.len(), "a part inside the span");
        // Both fit: the sum is at most a length that was 16 bits.
        Self { page: self.page, offset: self.offset + from as u16, len: len as u16 }
    }

    /// The span as one word, for a mailbox.
    pub fn word(self) -> u64 {
        u64::from(self.page) << 32 | u64::from(self.offset) << 16 | u64::from(self.len)
    }

    /// The span behind a [`word`](Self::word).
    pub fn from_word(word: u64) -> Self {
        // Truncations: each takes the bits that `word` put there.
        Self { page: (word >> 32) as u32, offset: (word >> 16) as u16, len: word as u16 }
    }

    pub(super) fn offset(self) -> usize {
        usize::from(self.offset)
    }

    /// The same bytes of another page.
    pub(super) fn on_page(self, page: u32) -> Self {
        Self { page, ..self }
    }

    /// Whether another span lies in this one, whatever their pages.
    pub(super) fn contains(self, other: Self) -> bool {
        self.offset() <= other.offset() && other.offset() + other.len() <= self.offset() + self.len()
    }
}

/// What a [`Pool::fill`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filled {
    /// Bytes written.
    pub len: usize,
    /// Bytes there was room for.
    pub room: usize,
}

/// Block sizes a page can be split into, in bytes. Four steps keep waste below half of the payload plus one block a
/// stream.
const BLOCK_LENS: [usize; 4] = [256, 1024, 4096, PAGE_LEN];
const BLOCKS_PER_PAGE_MAX: usize = PAGE_LEN / BLOCK_LENS[0];
const _: () = assert!(BLOCKS_PER_PAGE_MAX == 64, "a page's free blocks are the bits of a u64");

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    Free,
    Kernel,
    Received,
    Blocks(u8),
}

#[derive(Debug, Clone, Copy)]
struct Page {
    owner: Owner,
    /// Received: spans that refer to it. Blocks: blocks in use.
    refs: u16,
    /// Received: bytes its spans name.
    payload: u32,
    /// Blocks: one bit for each free block. A page with a free block is in its class's list, linked by the next two.
    free_blocks: u64,
    previous: u32,
    next: u32,
}

const NONE: u32 = u32::MAX;
const FREE: Page =
    Page { owner: Owner::Free, refs: 0, payload: 0, free_blocks: 0, previous: NONE, next: NONE };

/// The pages of one worker. See the module's head.
#[derive(Debug)]
pub struct Pool {
    region: Region,
    /// Grows to the highest page ever used; those behind it are free.
    pages: Vec<Page>,
    /// Free pages among them whose memory is resident.
    free: Vec<u32>,
    /// Free pages whose memory was given back to the kernel.
    cold: Vec<u32>,
    /// The fewest resident free pages there were since [`trim`](Self::trim).
    free_low: usize,
    /// Pages of the region.
    count: u32,
    /// References on each block of each page; used while the page is split.
    block_refs: Vec<u8>,
    /// Per block size, the first page with a free block.
    partial: [u32; BLOCK_LENS.len()],
    held: usize,
    with_kernel: usize,
    held_high: usize,
    /// Spans of this pool that other workers have, and theirs that this one has.
    lent_out: usize,
    loans: Loans,
}

impl Pool {
    /// Maps `len` bytes of buffer memory, rounded down to whole pages.
    pub fn new(len: usize) -> io::Result<Self> {
        let pages = len / PAGE_LEN;
        let count = u32::try_from(pages)
            .ok()
            .filter(|&count| count <= LOANS_FROM)
            .ok_or_else(|| io::Error::other("buffer memory of more than 2^31 pages"))?;
        Ok(Self {
            region: Region::new(pages * PAGE_LEN)?,
            pages: Vec::with_capacity(PAGES_AT_START),
            free: Vec::with_capacity(PAGES_AT_START),
            cold: Vec::with_capacity(PAGES_AT_START),
            free_low: 0,
            count,
            block_refs: Vec::with_capacity(PAGES_AT_START * BLOCKS_PER_PAGE_MAX),
            partial: [NONE; BLOCK_LENS.len()],
            held: 0,
            with_kernel: 0,
            held_high: 0,
            lent_out: 0,
            loans: Loans::default(),
        })
    }

    /// Keeps the memory mapped for good, also what is borrowed: the kernel may still write to the one and read the other.
    pub(super) fn leak(&self) {
        self.region.leak();
        self.loans.leak();
    }

    /// Bytes of pages that hold received data or blocks, at their true size.
    pub fn held_len(&self) -> usize {
        self.held * PAGE_LEN
    }

    /// The largest [`held_len`](Self::held_len) seen, in bytes.
    pub fn held_len_max(&self) -> usize {
        self.held_high * PAGE_LEN
    }

    /// Bytes of buffer memory in all.
    pub fn len(&self) -> usize {
        self.region.len()
    }

    /// Whether there is no buffer memory at all.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Pages nobody owns.
    pub fn free_pages(&self) -> usize {
        self.free.len() + self.cold.len() + self.count as usize - self.pages.len()
    }

    /// Resident free pages beyond those that are kept for the next burst.
    pub fn surplus_pages(&self) -> usize {
        self.free.len().saturating_sub(PAGES_KEPT)
    }

    /// Gives memory back to the kernel that was free since the last call: up to `most` pages, beyond those that are kept.
    /// Returns how many pages that was.
    pub fn trim(&mut self, most: usize) -> usize {
        let unused = self.free_low.min(self.free.len()).saturating_sub(PAGES_KEPT).min(most);
        self.free_low = self.free.len() - unused;
        if unused == 0 {
            return 0;
        }
        // Those at the front have been free for longest.
        let from = self.cold.len();
        self.cold.extend(self.free.drain(..unused));
        let given = &mut self.cold[from..];
        given.sort_unstable_by(|a, b| b.cmp(a));
        // Neighbours go in one call.
        for run in given.chunk_by(|&page, &next| page == next + 1) {
            if let Some(&first) = run.last() {
                self.region.give_back(first as usize * PAGE_LEN, run.len() * PAGE_LEN);
            }
        }
        unused
    }

    /// A free page: one that was used before, so that memory once touched serves again.
    fn take_free(&mut self) -> Option<u32> {
        if let Some(page) = self.free.pop() {
            self.free_low = self.free_low.min(self.free.len());
            return Some(page);
        }
        if let Some(page) = self.cold.pop() {
            return Some(page);
        }
        let page = self.pages.len() as u32;
        if page == self.count {
            return None;
        }
        self.pages.push(FREE);
        self.block_refs.resize(self.pages.len() * BLOCKS_PER_PAGE_MAX, 0);
        Some(page)
    }

    /// Pages in the kernel's receive ring.
    pub fn kernel_pages(&self) -> usize {
        self.with_kernel
    }

    /// Takes a free page for the kernel to fill.
    pub fn lend(&mut self) -> Option<u32> {
        let page = self.take_free()?;
        self.pages[page as usize].owner = Owner::Kernel;
        self.with_kernel += 1;
        Some(page)
    }

    /// Address of a page lent to the kernel.
    pub fn address(&self, page: u32) -> *mut u8 {
        debug_assert_eq!(
            self.pages[page as usize].owner,
            Owner::Kernel,
            "only lent pages are given to the kernel"
        );
        self.region.address(page as usize * PAGE_LEN)
    }

    /// The bytes of a lent page, for drivers that fill it themselves instead of giving its address to the kernel.
    pub fn lent_mut(&mut self, page: u32) -> &mut [u8] {
        assert_eq!(self.pages[page as usize].owner, Owner::Kernel, "only a lent page is filled");
        self.region.slice_mut(page as usize * PAGE_LEN, PAGE_LEN)
    }

    /// Lets `read` write to up to `count` free pages (at most [`PAGES_PER_FILL_MAX`]) in order, for drivers that receive by
    /// a call instead of giving addresses to the kernel. `read` says how many bytes it wrote; their spans, which hold the
    /// first reference on their pages, are appended to `spans`. Pages not written to are free again. `None` when no page
    /// is free; otherwise an error is that of `read`.
    pub fn fill<E>(
        &mut self,
        count: usize,
        spans: &mut Vec<Span>,
        read: impl FnOnce(&mut [IoSliceMut<'_>]) -> Result<usize, E>,
    ) -> Option<Result<Filled, E>> {
        let mut pages = [0; PAGES_PER_FILL_MAX];
        let mut offsets = [0; PAGES_PER_FILL_MAX];
        let mut lent = 0;
        while lent < count.clamp(1, PAGES_PER_FILL_MAX) {
            let Some(page) = self.lend() else { break };
            pages[lent] = page;
            offsets[lent] = page as usize * PAGE_LEN;
            lent += 1;
        }
        if lent == 0 {
            return None;
        }
        let mut slices: [_; PAGES_PER_FILL_MAX] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
        self.region.slices_mut(&offsets[..lent], PAGE_LEN, &mut slices);
        let outcome = read(&mut slices[..lent]);
        let len = *outcome.as_ref().unwrap_or(&0);
        let used = len.div_ceil(PAGE_LEN);
        assert!(used <= lent, "no more is written than there was room for");
        for (at, &page) in pages[..used].iter().enumerate() {
            spans.push(self.received(page, (len - at * PAGE_LEN).min(PAGE_LEN)));
        }
        // In reverse: the next fill takes the same pages in the same order, while they are in the cache.
        for &page in pages[used..lent].iter().rev() {
            self.unlend(page);
        }
        Some(outcome.map(|len| Filled { len, room: lent * PAGE_LEN }))
    }

    /// The kernel filled the first `len` bytes of a lent page; the span returned holds the first reference on it.
    pub fn received(&mut self, page: u32, len: usize) -> Span {
        assert!(len <= PAGE_LEN, "a page's worth");
        let entry = &mut self.pages[page as usize];
        assert_eq!(entry.owner, Owner::Kernel, "only a lent page is filled");
        *entry = Page { owner: Owner::Received, refs: 1, payload: len as u32, ..FREE };
        self.with_kernel -= 1;
        self.grow_held();
        Span { page, offset: 0, len: len as u16 }
    }

    /// A lent page comes back unused.
    pub fn unlend(&mut self, page: u32) {
        assert_eq!(self.pages[page as usize].owner, Owner::Kernel, "only a lent page comes back");
        self.with_kernel -= 1;
        self.pages[page as usize].owner = Owner::Free;
        self.free.push(page);
    }

    /// An empty span with room for at least `len` bytes (at most a page) behind it; fill it with
    /// [`append`](Self::append). `None` when the memory is used up.
    pub fn allocate(&mut self, len: usize) -> Option<Span> {
        let class = BLOCK_LENS.iter().position(|&block| len <= block)?;
        if self.partial[class] == NONE {
            let page = self.take_free()?;
            let blocks = PAGE_LEN / BLOCK_LENS[class];
            self.pages[page as usize] =
                Page { owner: Owner::Blocks(class as u8), free_blocks: u64::MAX >> (64 - blocks), ..FREE };
            self.link(class, page);
            self.grow_held();
        }
        let page = self.partial[class];
        let entry = &mut self.pages[page as usize];
        let block = entry.free_blocks.trailing_zeros() as usize;
        entry.free_blocks &= entry.free_blocks - 1;
        entry.refs += 1;
        if entry.free_blocks == 0 {
            self.unlink(class, page);
        }
        self.block_refs[page as usize * BLOCKS_PER_PAGE_MAX + block] = 1;
        Some(Span { page, offset: (block * BLOCK_LENS[class]) as u16, len: 0 })
    }

    /// Appends as much of `bytes` behind `span` as its block has room for, and returns how many that was. Only the span
    /// that ends last in its block may grow; for received pages there is never room.
    pub fn append(&mut self, span: &mut Span, bytes: &[u8]) -> usize {
        // A span that reaches the end of its block lies, by its end alone, in the next one: its start decides. An empty
        // remainder at the very end cannot occur, because spans are released when used up.
        let taken = self.room(*span).min(bytes.len());
        if taken == 0 {
            return 0;
        }
        let end = usize::from(span.offset) + span.len();
        self.region.slice_mut(span.page as usize * PAGE_LEN + end, taken).copy_from_slice(&bytes[..taken]);
        span.len += taken as u16;
        taken
    }

    /// The bytes a span names.
    pub fn bytes(&self, span: Span) -> &[u8] {
        let Some(page) = self.pages.get(span.page as usize) else { return self.loans.bytes(span) };
        assert!(
            page.refs > 0 && !matches!(page.owner, Owner::Free | Owner::Kernel),
            "a span of a page the worker holds"
        );
        self.region.slice(span.page as usize * PAGE_LEN + usize::from(span.offset), span.len())
    }

    /// Writes bytes right in front of a span in its page, whoever they belong to.
    #[doc(hidden)]
    pub fn write_before(&mut self, span: Span, bytes: &[u8]) {
        if let Some(from) = usize::from(span.offset).checked_sub(bytes.len()) {
            let at = span.page as usize * PAGE_LEN + from;
            self.region.slice_mut(at, bytes.len()).copy_from_slice(bytes);
        }
    }

    /// One more span refers to these bytes.
    pub fn retain(&mut self, span: Span) {
        if let Some(page) = self.pages.get_mut(span.page as usize) {
            page.payload += u32::from(span.len);
        }
        self.split(span);
    }

    /// One span becomes two that together name the same bytes; `span` is either of them.
    pub fn split(&mut self, span: Span) {
        let page = span.page as usize;
        let Some(entry) = self.pages.get_mut(page) else { return self.loans.retain(span) };
        match entry.owner {
            Owner::Received => entry.refs += 1,
            Owner::Blocks(class) => self.block_refs[block_slot(span, class)] += 1,
            Owner::Free | Owner::Kernel => unreachable!("a span of a page the worker holds"),
        }
    }

    /// The span leaves its queue for a send: its page no longer counts it as payload that is waited for.
    pub fn depart(&mut self, span: Span) {
        let Some(page) = self.pages.get_mut(span.page as usize) else { return };
        if page.owner == Owner::Received {
            page.payload -= u32::from(span.len);
        }
    }

    /// The span is done with; the last one frees the block or the page.
    pub fn release(&mut self, span: Span) {
        self.depart(span);
        self.release_departed(span);
    }

    /// As [`release`](Self::release), for a span that has departed.
    pub fn release_departed(&mut self, span: Span) {
        let page = span.page as usize;
        let Some(entry) = self.pages.get_mut(page) else { return self.loans.release(span) };
        match entry.owner {
            Owner::Received => {
                entry.refs -= 1;
                if entry.refs == 0 {
                    self.free_page(span.page);
                }
            }
            Owner::Blocks(class) => {
                let slot = block_slot(span, class);
                assert!(self.block_refs[slot] > 0, "a block is released once per reference");
                self.block_refs[slot] -= 1;
                if self.block_refs[slot] > 0 {
                    return;
                }
                let class = usize::from(class);
                if self.pages[page].free_blocks == 0 {
                    self.link(class, span.page);
                }
                self.pages[page].free_blocks |= 1 << (slot % BLOCKS_PER_PAGE_MAX);
                self.pages[page].refs -= 1;
                if self.pages[page].refs == 0 {
                    self.unlink(class, span.page);
                    self.free_page(span.page);
                }
            }
            Owner::Free | Owner::Kernel => unreachable!("a span is released once"),
        }
    }

    /// Room behind a span in its block, in bytes; for received pages there is none.
    pub fn room(&self, span: Span) -> usize {
        let Some(&Page { owner: Owner::Blocks(class), .. }) = self.pages.get(span.page as usize) else {
            return 0;
        };
        let block = BLOCK_LENS[usize::from(class)];
        (usize::from(span.offset) / block + 1) * block - (usize::from(span.offset) + span.len())
    }

    /// Whether the page behind a span was received and is held for little payload that waits: less than half of it.
    pub fn is_wasteful(&self, span: Span) -> bool {
        let Some(page) = self.pages.get(span.page as usize) else { return self.loans.is_wasteful(span) };
        page.owner == Owner::Received && (page.payload as usize) < PAGE_LEN / 2
    }

    /// This memory, for a worker that is to borrow from it.
    pub fn lender(&self) -> Lender {
        Lender(self.region.share())
    }

    /// Spans of worker `lender` can be borrowed from here on.
    pub fn know_lender(&mut self, lender: u16, memory: Lender) {
        self.loans.know(lender, memory);
    }

    /// The caller's reference on a span goes to another worker, whose it is until the span has come home. See `loans`.
    pub fn lend_out(&mut self, span: Span) {
        debug_assert!((span.page as usize) < self.pages.len(), "what is borrowed is not lent on");
        self.lent_out += 1;
    }

    /// A span that was lent out is back, and nobody else refers to it for that loan.
    pub fn came_home(&mut self, span: Span) {
        assert!(self.lent_out > 0, "what comes home was lent");
        self.lent_out -= 1;
        self.release(span);
    }

    /// Spans that other workers have.
    pub fn lent_out(&self) -> usize {
        self.lent_out
    }

    /// A span that `lender` has lent out; used and released like one of this pool. Call it once for each loan.
    pub fn borrow(&mut self, lender: u16, span: Span) -> Span {
        self.loans.borrow(lender, span)
    }

    /// Loans of other workers that are not released yet. They count in the budget of their owner, not here.
    pub fn borrowed(&self) -> usize {
        self.loans.count()
    }

    /// What is released and to go home, with its lender; whoever sends it there takes it out.
    pub fn homeward(&mut self) -> &mut Vec<(u16, Span)> {
        self.loans.homeward()
    }

    fn free_page(&mut self, page: u32) {
        self.pages[page as usize] = FREE;
        self.free.push(page);
        self.held -= 1;
    }

    /// Puts a page first in the list of those with a free block of this size.
    fn link(&mut self, class: usize, page: u32) {
        let next = self.partial[class];
        self.pages[page as usize].previous = NONE;
        self.pages[page as usize].next = next;
        if next != NONE {
            self.pages[next as usize].previous = page;
        }
        self.partial[class] = page;
    }

    fn unlink(&mut self, class: usize, page: u32) {
        let Page { previous, next, .. } = self.pages[page as usize];
        if previous == NONE {
            self.partial[class] = next;
        } else {
            self.pages[previous as usize].next = next;
        }
        if next != NONE {
            self.pages[next as usize].previous = previous;
        }
    }

    fn grow_held(&mut self) {
        self.held += 1;
        self.held_high = self.held_high.max(self.held);
    }
}

fn block_slot(span: Span, class: u8) -> usize {
    span.page as usize * BLOCKS_PER_PAGE_MAX + usize::from(span.offset) / BLOCK_LENS[usize::from(class)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_a_crowd_used_goes_back_and_serves_again() {
        let count = PAGES_KEPT + 1000;
        let mut pool = Pool::new((count + 10) * PAGE_LEN).unwrap();
        let use_all = |pool: &mut Pool| -> Vec<Span> {
            let pages: Vec<u32> = (0..count).map(|_| pool.lend().unwrap()).collect();
            pages.into_iter().map(|page| pool.received(page, 5)).collect()
        };
        for span in use_all(&mut pool) {
            pool.release(span);
        }
        let free = pool.free_pages();
        assert_eq!(pool.trim(usize::MAX), 0, "it was used since the last look");
        assert_eq!(pool.trim(600), 600);
        assert_eq!((pool.trim(600), pool.trim(600)), (400, 0), "what is kept for the next burst stays");
        assert_eq!((pool.free_pages(), pool.surplus_pages()), (free, 0));
        let again = use_all(&mut pool);
        assert!(again.iter().all(|&span| pool.bytes(span) == [0; 5] || pool.bytes(span).len() == 5));
        let mut pages: Vec<u32> = again.iter().map(|span| span.page()).collect();
        pages.sort_unstable();
        pages.dedup();
        assert_eq!(pages.len(), count, "each once");
        again.into_iter().for_each(|span| pool.release(span));
        assert_eq!((pool.held_len(), pool.free_pages()), (0, free));
    }

    #[test]
    fn a_received_page_comes_back_with_its_last_span() {
        let mut pool = Pool::new(4 * PAGE_LEN).unwrap();
        let page = pool.lend().unwrap();
        assert_eq!((pool.free_pages(), pool.kernel_pages(), pool.held_len()), (3, 1, 0));
        let whole = pool.received(page, 100);
        let part = whole.part(10, 20);
        pool.retain(part);
        pool.release(whole);
        assert!(pool.is_wasteful(part));
        assert_eq!(pool.held_len(), PAGE_LEN);
        assert_eq!(pool.bytes(part).len(), 20);
        pool.release(part);
        assert_eq!((pool.free_pages(), pool.held_len()), (4, 0));
    }

    #[test]
    fn a_fill_takes_what_it_wrote_and_gives_the_rest_back() {
        let mut pool = Pool::new(4 * PAGE_LEN).unwrap();
        let mut spans = Vec::new();
        let filled = pool.fill::<()>(3, &mut spans, |pages| {
            assert_eq!(pages.len(), 3);
            for (mark, page) in (1..).zip(pages.iter_mut()) {
                page.fill(mark);
            }
            Ok(PAGE_LEN + 5)
        });
        assert_eq!(filled, Some(Ok(Filled { len: PAGE_LEN + 5, room: 3 * PAGE_LEN })));
        assert_eq!(spans.iter().map(|span| span.len()).collect::<Vec<_>>(), [PAGE_LEN, 5]);
        assert_eq!(pool.bytes(spans[0]), [1; PAGE_LEN]);
        assert_eq!(pool.bytes(spans[1]), [2; 5]);
        assert_eq!((pool.free_pages(), pool.kernel_pages(), pool.held_len()), (2, 0, 2 * PAGE_LEN));
        // Nothing written, or an error: nothing taken.
        assert_eq!(pool.fill(9, &mut spans, |_| Err("no")), Some(Err("no")));
        let room = 2 * PAGE_LEN;
        assert_eq!(pool.fill::<()>(9, &mut spans, |_| Ok(0)), Some(Ok(Filled { len: 0, room })));
        assert_eq!((spans.len(), pool.free_pages()), (2, 2));
        pool.fill::<()>(9, &mut spans, |_| Ok(room));
        assert_eq!(pool.fill::<()>(1, &mut spans, |_| unreachable!("no page is free")), None);
        for span in spans {
            pool.release(span);
        }
        assert_eq!((pool.free_pages(), pool.held_len()), (4, 0));
    }

    #[test]
    fn blocks_fill_to_their_size_and_their_page_comes_back() {
        let mut pool = Pool::new(2 * PAGE_LEN).unwrap();
        let mut first = pool.allocate(200).unwrap();
        assert_eq!(pool.append(&mut first, &[1; 200]), 200);
        assert_eq!(pool.append(&mut first, &[2; 100]), 56);
        assert_eq!(pool.append(&mut first, &[3; 1]), 0);
        let mut second = pool.allocate(1).unwrap();
        pool.append(&mut second, &[9]);
        assert_eq!(pool.held_len(), PAGE_LEN);
        assert_eq!(pool.bytes(first)[199..202], [1, 2, 2]);
        assert_eq!(pool.bytes(second), [9]);
        // Half of a block sent, half still queued: both hold it.
        pool.split(first.part(0, 128));
        pool.release(first.part(0, 128));
        pool.release(first.part(128, 128));
        assert_eq!(pool.held_len(), PAGE_LEN);
        pool.release(second);
        assert_eq!((pool.held_len(), pool.free_pages()), (0, 2));
        // The page serves another block size afterwards: no free block of the old one is left behind.
        let a = pool.allocate(4000).unwrap();
        let b = pool.allocate(PAGE_LEN).unwrap();
        assert_eq!(pool.allocate(1), None);
        pool.release(a);
        pool.release(b);
        assert_eq!(pool.free_pages(), 2);
    }

    #[test]
    #[should_panic(expected = "released once")]
    fn a_span_released_twice_is_a_broken_invariant() {
        let mut pool = Pool::new(PAGE_LEN).unwrap();
        let page = pool.lend().unwrap();
        let span = pool.received(page, 1);
        pool.release(span);
        pool.release(span);
    }
}
