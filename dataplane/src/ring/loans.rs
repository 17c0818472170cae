//! Pages of other workers that this one sends from: what is borrowed, and what is to go home.
//!
//! A page belongs to the worker in whose region it lies. Its owner keeps one reference for each span it has lent
//! ([`Pool::lend_out`](super::Pool::lend_out)) until that span is home ([`Pool::came_home`](super::Pool::came_home)); the borrower
//! only reads. The borrower counts the references of its own queues here, under a page number of its own that no region
//! has, and the last release puts the span in the list of those that go home.
//!
//! Why the bytes may be read: as long as a span is referred to, its owner writes behind it or elsewhere, and the kernel nowhere
//! near it. What carries spans between workers must order memory (a mailbox does): the owner's writes before the borrower's
//! reads on the way out, these before the owner's reuse on the way home. Lenders outlive loans because the borrower holds
//! their mapping.

use super::pool::Span;
use super::region::Shared;
use crate::limits::PAGE_LEN;

/// The first page number that stands for a loan.
pub(super) const LOANS_FROM: u32 = 1 << 31;

/// One worker's buffer memory, to be read by others. Made by [`Pool::lender`](super::Pool::lender).
#[derive(Debug, Clone)]
pub struct Lender(pub(super) Shared);

/// See the module's head.
#[derive(Debug, Default)]
pub(super) struct Loans {
    lenders: Vec<Option<Lender>>,
    loans: Vec<Loan>,
    free: Vec<u32>,
    homeward: Vec<(u16, Span)>,
}

#[derive(Debug, Clone, Copy)]
struct Loan {
    lender: u16,
    /// As the owner lent it.
    lent: Span,
    /// Spans of this worker that refer to it; 0: the place is free.
    refs: u16,
}

impl Loans {
    /// Spans of `lender` can be borrowed from now on.
    pub(super) fn know(&mut self, lender: u16, memory: Lender) {
        let place = usize::from(lender);
        if self.lenders.len() <= place {
            self.lenders.resize(place + 1, None);
        }
        self.lenders[place] = Some(memory);
    }

    /// Keeps the lenders' memory mapped for good.
    pub(super) fn leak(&self) {
        std::mem::forget(self.lenders.clone());
    }

    pub(super) fn borrow(&mut self, lender: u16, lent: Span) -> Span {
        assert!(self.lenders.get(usize::from(lender)).is_some_and(Option::is_some), "a lender that is known");
        let loan = Loan { lender, lent, refs: 1 };
        let index = if let Some(index) = self.free.pop() {
            self.loans[index as usize] = loan;
            index
        } else {
            self.loans.push(loan);
            (self.loans.len() - 1) as u32
        };
        lent.on_page(LOANS_FROM + index)
    }

    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        let loan = &self.loans[index(span)];
        assert!(loan.refs > 0 && loan.lent.contains(span), "a span of a loan that is still held");
        let Some(Lender(memory)) = &self.lenders[usize::from(loan.lender)] else {
            unreachable!("nothing was borrowed of a lender that is not known")
        };
        memory.slice(loan.lent.page() as usize * PAGE_LEN + span.offset(), span.len())
    }

    pub(super) fn retain(&mut self, span: Span) {
        let loan = &mut self.loans[index(span)];
        assert!(loan.refs > 0, "a span of a loan that is still held");
        loan.refs += 1;
    }

    /// The last release sends the loan home.
    pub(super) fn release(&mut self, span: Span) {
        let place = index(span);
        let loan = &mut self.loans[place];
        assert!(loan.refs > 0, "a span is released once");
        loan.refs -= 1;
        if loan.refs == 0 {
            self.homeward.push((loan.lender, loan.lent));
            self.free.push(place as u32);
        }
    }

    /// Whether a loan holds up its owner's page for little: it is small itself. What else waits in the page only the owner
    /// knows; a copy too many costs the destination that is blocked.
    pub(super) fn is_wasteful(&self, span: Span) -> bool {
        self.loans[index(span)].lent.len() < PAGE_LEN / 2
    }

    pub(super) fn count(&self) -> usize {
        self.loans.len() - self.free.len()
    }

    pub(super) fn homeward(&mut self) -> &mut Vec<(u16, Span)> {
        &mut self.homeward
    }
}

fn index(span: Span) -> usize {
    (span.page() - LOANS_FROM) as usize
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::sync_channel;
    use std::thread;

    use super::super::Pool;
    use super::*;
    use crate::queue::{Nodes, Queue};

    /// A page of `pool` with one span on it, all bytes of it `mark`.
    fn filled(pool: &mut Pool, len: usize, mark: u8) -> Option<Span> {
        let mut spans = Vec::new();
        let read = |pages: &mut [std::io::IoSliceMut<'_>]| {
            pages[0][..len].fill(mark);
            Ok::<_, ()>(len)
        };
        pool.fill(1, &mut spans, read)?.unwrap();
        spans.pop()
    }

    fn owner_and_borrower() -> (Pool, Pool) {
        let owner = Pool::new(4 * PAGE_LEN).unwrap();
        let mut borrower = Pool::new(4 * PAGE_LEN).unwrap();
        borrower.know_lender(3, owner.lender());
        (owner, borrower)
    }

    #[test]
    fn a_loan_goes_home_with_its_last_part() {
        let (mut owner, mut borrower) = owner_and_borrower();
        let span = filled(&mut owner, 1000, 7).unwrap();
        let lent = span.part(100, 800);
        owner.retain(lent);
        owner.lend_out(lent);
        owner.release(span);
        assert_eq!((owner.held_len(), owner.lent_out(), owner.free_pages()), (PAGE_LEN, 1, 3));

        let whole = borrower.borrow(3, Span::from_word(lent.word()));
        assert_eq!(borrower.bytes(whole), [7; 800]);
        assert_eq!((borrower.held_len(), borrower.borrowed(), borrower.room(whole)), (0, 1, 0));
        let (front, back) = (whole.part(0, 300), whole.part(300, 500));
        borrower.split(front);
        borrower.depart(front);
        borrower.release_departed(front);
        assert!(borrower.homeward().is_empty());
        assert_eq!(borrower.bytes(back), [7; 500]);
        borrower.release(back);
        assert_eq!(borrower.homeward().drain(..).collect::<Vec<_>>(), [(3, lent)]);
        assert_eq!(borrower.borrowed(), 0);
        owner.came_home(lent);
        assert_eq!((owner.held_len(), owner.lent_out(), owner.free_pages()), (0, 0, 4));
    }

    #[test]
    fn a_copy_behind_a_loan_takes_memory_of_its_own() {
        let (mut owner, mut borrower) = owner_and_borrower();
        let (mut nodes, mut queue) = (Nodes::default(), Queue::default());
        let span = filled(&mut owner, 2000, 1).unwrap();
        owner.lend_out(span);
        let borrowed = borrower.borrow(3, span);
        queue.push(&mut nodes, borrowed);
        assert_eq!(queue.push_copy(&mut nodes, &mut borrower, &[2; 10]), 10);
        assert_eq!(borrower.held_len(), PAGE_LEN);
        // Its destination is blocked: the owner's page is not kept for 2,000 bytes.
        queue.pack(&mut nodes, &mut borrower, &mut Vec::new());
        assert_eq!(borrower.homeward().drain(..).collect::<Vec<_>>(), [(3, span)]);
        let mut bytes = vec![0; 2010];
        assert_eq!(queue.peek(&nodes, &borrower, &mut bytes), 2010);
        assert!(bytes[..2000].iter().all(|&byte| byte == 1) && bytes[2000..] == [2; 10]);
        queue.clear(&mut nodes, &mut borrower);
        assert_eq!((borrower.held_len(), borrower.borrowed()), (0, 0));
    }

    #[test]
    #[should_panic(expected = "released once")]
    fn a_loan_released_twice_is_a_broken_invariant() {
        let (mut owner, mut borrower) = owner_and_borrower();
        let span = filled(&mut owner, 10, 1).unwrap();
        let borrowed = borrower.borrow(3, span);
        borrower.release(borrowed);
        borrower.release(borrowed);
    }

    /// The borrower's mapping is its own hold on the memory: the owner may be gone first.
    #[test]
    fn memory_outlives_its_owner_while_somebody_can_read_it() {
        let (mut owner, mut borrower) = owner_and_borrower();
        let span = filled(&mut owner, PAGE_LEN, 9).unwrap();
        owner.lend_out(span);
        let borrowed = borrower.borrow(3, span);
        drop(owner);
        assert_eq!(borrower.bytes(borrowed), [9; PAGE_LEN]);
    }

    /// Two threads, four pages, and 10,000 spans: what is read is what was written, though every page is written again as soon as
    /// its loans are home.
    #[test]
    fn pages_that_come_home_serve_again_while_others_are_read() {
        let (mut owner, mut borrower) = owner_and_borrower();
        let (out, lent) = sync_channel::<u64>(64);
        let (back, home) = sync_channel::<u64>(64);
        let reading = thread::spawn(move || {
            let (mut nodes, mut queue) = (Nodes::default(), Queue::default());
            let mut expected = 0_u8;
            for (count, word) in lent.iter().enumerate() {
                let span = borrower.borrow(3, Span::from_word(word));
                queue.push(&mut nodes, span);
                // In pieces that do not fall together with the spans.
                while let Some(piece) = queue.pop(&mut nodes, &mut borrower, 700 + count % 300) {
                    let mark = expected.wrapping_mul(31);
                    assert!(
                        borrower.bytes(piece).iter().all(|&byte| byte == mark),
                        "span {count} was overwritten"
                    );
                    borrower.release(piece);
                }
                expected = expected.wrapping_add(1);
                for (lender, span) in borrower.homeward().drain(..) {
                    assert_eq!(lender, 3);
                    back.send(span.word()).unwrap();
                }
            }
            assert_eq!(borrower.borrowed(), 0);
        });
        let mut number = 0_u8;
        for _ in 0..10_000 {
            let mark = number.wrapping_mul(31);
            let span = loop {
                if let Some(span) = filled(&mut owner, 2000, mark) {
                    break span;
                }
                owner.came_home(Span::from_word(home.recv().unwrap()));
            };
            owner.lend_out(span);
            out.send(span.word()).unwrap();
            number = number.wrapping_add(1);
            while let Ok(word) = home.try_recv() {
                owner.came_home(Span::from_word(word));
            }
        }
        drop(out);
        while let Ok(word) = home.recv() {
            owner.came_home(Span::from_word(word));
        }
        reading.join().unwrap();
        assert_eq!((owner.held_len(), owner.lent_out(), owner.free_pages()), (0, 0, 4));
    }
}
