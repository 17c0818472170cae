//! One constructor per ring operation; entries are built nowhere else.
//!
//! The user data of every entry is a [`Token`]: what kind of operation it is, for which socket, and which generation of
//! that place in the socket table.

use std::os::fd::RawFd;

use io_uring::{opcode, squeue, types};

use super::probe::Features;
use crate::limits::{PAGE_LEN, RECEIVE_LEN_MAX};

/// Group id of the one buffer ring of a worker.
pub(super) const BUFFER_GROUP: u16 = 0;

/// Kind of an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Accept = 1,
    Receive = 2,
    Send = 3,
    Cancel = 4,
    Wake = 5,
}

/// User data of an entry: kind (8 bits), generation (24 bits), index (32 bits).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) generation: u32,
    pub(super) index: u32,
}

const GENERATION_MASK: u32 = 0x00ff_ffff;

impl Token {
    pub(super) fn new(kind: Kind, index: u32, generation: u32) -> Self {
        Self { kind, generation: generation & GENERATION_MASK, index }
    }

    pub(super) fn pack(self) -> u64 {
        u64::from(self.kind as u8) << 56
            | u64::from(self.generation & GENERATION_MASK) << 32
            | u64::from(self.index)
    }

    pub(super) fn unpack(data: u64) -> Option<Self> {
        let kind = match (data >> 56) as u8 {
            1 => Kind::Accept,
            2 => Kind::Receive,
            3 => Kind::Send,
            4 => Kind::Cancel,
            5 => Kind::Wake,
            _ => return None,
        };
        Some(Self { kind, generation: (data >> 32) as u32 & GENERATION_MASK, index: data as u32 })
    }

    /// Whether a socket of this generation is the one the operation was for.
    pub(super) fn is_of(self, generation: u32) -> bool {
        self.generation == generation & GENERATION_MASK
    }
}

/// Accepts connections until cancelled; each is non-blocking-agnostic (the ring does the waiting) and close-on-exec.
pub(super) fn accept(listener: RawFd, token: Token) -> squeue::Entry {
    opcode::AcceptMulti::new(types::Fd(listener)).flags(libc::SOCK_CLOEXEC).build().user_data(token.pack())
}

/// Receives once into pages of the buffer ring, at most `len_max` and `RECEIVE_LEN_MAX` bytes: a bundle where the kernel has
/// them, else one page. `wait_first`: the last receive emptied the socket, so trying before waiting would be in vain.
pub(super) fn receive(
    socket: RawFd,
    features: Features,
    len_max: usize,
    wait_first: bool,
    token: Token,
) -> squeue::Entry {
    let bundle = features.receive_bundle && len_max > PAGE_LEN;
    // Without a bundle the kernel takes the page's length where it is the smaller one; zero says so for whole pages.
    let len = match (bundle, len_max) {
        (true, _) => bundle_len(features, len_max.min(RECEIVE_LEN_MAX)),
        (false, ..PAGE_LEN) => len_max,
        (false, _) => 0,
    };
    let mut entry = opcode::Recv::new(types::Fd(socket), std::ptr::null_mut(), len as u32)
        .buf_group(BUFFER_GROUP)
        .build()
        .flags(squeue::Flags::BUFFER_SELECT)
        .user_data(token.pack());
    let mut priority = 0;
    if bundle {
        priority |= RECVSEND_BUNDLE;
    }
    if wait_first {
        priority |= RECVSEND_POLL_FIRST;
    }
    let field = (&raw mut entry).cast::<u8>().wrapping_add(SQE_PRIORITY_OFFSET).cast::<u16>();
    // SAFETY: needed because the crate's receive has no setter for these flags together with a length. The entry is a
    // `repr(C)` wrapper around the kernel's 64-byte struct (asserted below), whose bytes 2 and 3 are a u16 that every
    // value is valid for; the pointer is derived from an exclusive borrow and the struct is 8-byte aligned.
    unsafe { field.write(priority) };
    entry
}

/// What to ask of a bundle so that it brings at most `len_max` bytes, in whole pages. A kernel that appends goes on with all that is
/// queued once a receive has filled its pages; not so where the last page asked for would be filled in part, which it leaves out
/// instead: so it is asked for a byte more.
fn bundle_len(features: Features, len_max: usize) -> usize {
    len_max / PAGE_LEN * PAGE_LEN + usize::from(features.receive_leaves_part)
}

/// Place of `ioprio` in `struct io_uring_sqe`: opcode (1 byte), flags (1 byte), ioprio (2 bytes).
const SQE_PRIORITY_OFFSET: usize = 2;
const RECVSEND_POLL_FIRST: u16 = 1 << 0;
const RECVSEND_BUNDLE: u16 = 1 << 4;
const _: () = assert!(size_of::<squeue::Entry>() == 64, "an entry is exactly the kernel's struct");

/// Sends a message whose header and slices stay where they are until the completion.
pub(super) fn send(socket: RawFd, message: *const libc::msghdr, token: Token) -> squeue::Entry {
    let flags = (libc::MSG_NOSIGNAL | libc::MSG_WAITALL) as u32;
    opcode::SendMsg::new(types::Fd(socket), message).flags(flags).build().user_data(token.pack())
}

/// Cancels one operation, by the token it was made with: the kernel finds that in a table. By descriptor it would walk all that
/// is pending, and a crowd of ten thousand that leaves cost 30 s of the worker so.
pub(super) fn cancel(operation: Token, token: Token) -> squeue::Entry {
    opcode::AsyncCancel2::new(types::CancelBuilder::user_data(operation.pack()))
        .build()
        .user_data(token.pack())
}

/// Completes each time the event descriptor becomes readable.
pub(super) fn wake(event: RawFd, token: Token) -> squeue::Entry {
    opcode::PollAdd::new(types::Fd(event), libc::POLLIN as u32).multi(true).build().user_data(token.pack())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_survive_packing_and_notice_another_generation() {
        for kind in [Kind::Accept, Kind::Receive, Kind::Send, Kind::Cancel, Kind::Wake] {
            for (index, generation) in [(0, 0), (u32::MAX, 7), (1, 0x0123_4567), (12_345, u32::MAX)] {
                let token = Token::new(kind, index, generation);
                let back = Token::unpack(token.pack()).unwrap();
                assert_eq!(back, token);
                assert!(back.is_of(generation));
                assert!(!back.is_of(generation.wrapping_add(1)));
            }
        }
        assert_eq!(Token::unpack(0), None);
    }
}
