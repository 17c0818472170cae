//! What the workers of one data plane share: the directory of sessions, the mailboxes between workers, and who waits for proofs of
//! identity. Everything else
//! belongs to one worker alone. The reasons are in `docs/design/0003-several-workers.md`.
//!
//! ```text
//!   session begins ──► Directory::insert ──► displaced elsewhere ──► Mailbox::send(close) ──► that worker closes it
//!   stream opens   ──► Directory::find   ──► (worker, session)   ──► Mailbox::send(dial)  ──► that worker opens a stream
//!   session ends   ──► Directory::remove (only what it inserted)
//! ```
//!
//! Nothing here makes a system call: whom to wake is an answer, waking is the caller's. With the feature `loom` locks and
//! atomics are loom's, and `tests/loom.rs` runs this code through every schedule.
#![forbid(unsafe_code)]

pub mod directory;
pub mod mailbox;
pub mod proofs;
mod sync;

/// Number of a worker, from 0.
pub type WorkerIndex = u16;
