//! Queues of spans: bytes waiting for their destination, as a linked list through one table per worker.
//!
//! A queue is three words; an idle stream costs nothing more, and a busy one takes nodes from the table that an idle one
//! gave back, so that the steady state allocates nothing.

use crate::limits::NODES_AT_START;
use crate::ring::{Pool, Span};

const NONE: u32 = u32::MAX;

/// A first-in first-out queue of spans. Plain data; the nodes are in the worker's [`Nodes`].
#[derive(Debug)]
pub struct Queue {
    head: u32,
    tail: u32,
    /// The last node that was looked at for packing; none: all are still to be looked at.
    packed: u32,
    spans: u32,
    len: usize,
    /// Of these: in memory of other workers.
    borrowed_len: usize,
}

impl Default for Queue {
    fn default() -> Self {
        Self { head: NONE, tail: NONE, packed: NONE, spans: 0, len: 0, borrowed_len: 0 }
    }
}

/// The nodes of all queues of a worker. Room for `NODES_AT_START` is made at once, more when it is needed.
#[derive(Debug)]
pub struct Nodes {
    nodes: Vec<Node>,
    free: Vec<u32>,
}

#[derive(Debug, Clone, Copy)]
struct Node {
    span: Span,
    next: u32,
}

impl Queue {
    /// Bytes queued.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes queued that lie in memory of this worker.
    pub fn own_len(&self) -> usize {
        self.len - self.borrowed_len
    }

    /// Whether nothing is queued.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Queues a span; the queue takes over the caller's reference.
    pub fn push(&mut self, nodes: &mut Nodes, span: Span) {
        debug_assert!(!span.is_empty(), "a queued span has bytes");
        let node = nodes.take(span);
        if self.tail == NONE {
            self.head = node;
        } else {
            nodes.nodes[self.tail as usize].next = node;
        }
        self.tail = node;
        self.spans += 1;
        self.len += span.len();
        self.borrowed_len += span.borrowed_len();
    }

    /// Puts a span in front of all others; the queue takes over the caller's reference.
    pub fn push_front(&mut self, nodes: &mut Nodes, span: Span) {
        debug_assert!(!span.is_empty(), "a queued span has bytes");
        let node = nodes.take(span);
        nodes.nodes[node as usize].next = self.head;
        self.head = node;
        if self.tail == NONE {
            self.tail = node;
        }
        self.spans += 1;
        self.len += span.len();
    }

    /// Bytes in the first `spans` spans.
    pub fn len_of(&self, nodes: &Nodes, spans: usize) -> usize {
        if self.spans as usize <= spans {
            return self.len;
        }
        let (mut at, mut len) = (self.head, 0);
        for _ in 0..spans {
            len += nodes.nodes[at as usize].span.len();
            at = nodes.nodes[at as usize].next;
        }
        len
    }

    /// Queues a copy of `bytes`, packed behind what was copied before where there is room. Returns how many bytes found
    /// memory; fewer than all only when the buffer memory is used up.
    pub fn push_copy(&mut self, nodes: &mut Nodes, pool: &mut Pool, mut bytes: &[u8]) -> usize {
        let offered = bytes.len();
        if self.tail != NONE {
            let taken = pool.append(&mut nodes.nodes[self.tail as usize].span, bytes);
            self.len += taken;
            bytes = &bytes[taken..];
        }
        while !bytes.is_empty() {
            // Grows with what is queued, so that blocks stay at least half full whatever the size of the pieces.
            let wanted =
                bytes.len().max(self.len.min(crate::limits::PAGE_LEN / 4)).min(crate::limits::PAGE_LEN);
            let Some(mut span) = pool.allocate(wanted) else { break };
            let taken = pool.append(&mut span, bytes);
            bytes = &bytes[taken..];
            self.push(nodes, span);
        }
        offered - bytes.len()
    }

    /// Takes at most `len` bytes from the front as one span; the caller owes its release.
    pub fn pop(&mut self, nodes: &mut Nodes, pool: &mut Pool, len: usize) -> Option<Span> {
        if self.head == NONE || len == 0 {
            return None;
        }
        let node = nodes.nodes[self.head as usize];
        if node.span.len() > len {
            let front = node.span.part(0, len);
            pool.split(front);
            nodes.nodes[self.head as usize].span = node.span.part(len, node.span.len() - len);
            self.len -= len;
            self.borrowed_len -= front.borrowed_len();
            return Some(front);
        }
        nodes.give_back(self.head);
        if self.packed == self.head {
            self.packed = NONE;
        }
        self.head = node.next;
        self.spans -= 1;
        if self.head == NONE {
            self.tail = NONE;
        }
        self.len -= node.span.len();
        self.borrowed_len -= node.span.borrowed_len();
        Some(node.span)
    }

    /// Moves all of `other` behind what is queued here.
    pub fn append(&mut self, nodes: &mut Nodes, other: &mut Self) {
        let other = std::mem::take(other);
        if other.head == NONE {
            return;
        }
        if self.tail == NONE {
            self.head = other.head;
        } else {
            nodes.nodes[self.tail as usize].next = other.head;
        }
        self.tail = other.tail;
        self.spans += other.spans;
        self.len += other.len;
        self.borrowed_len += other.borrowed_len;
    }

    /// Copies the first bytes into `out`, as many as there are; returns how many.
    pub fn peek(&self, nodes: &Nodes, pool: &Pool, out: &mut [u8]) -> usize {
        let mut copied = 0;
        let mut at = self.head;
        while at != NONE && copied < out.len() {
            let node = nodes.nodes[at as usize];
            let bytes = pool.bytes(node.span);
            let taken = bytes.len().min(out.len() - copied);
            out[copied..copied + taken].copy_from_slice(&bytes[..taken]);
            copied += taken;
            at = node.next;
        }
        copied
    }

    /// Drops everything queued; returns how many bytes that was.
    pub fn clear(&mut self, nodes: &mut Nodes, pool: &mut Pool) -> usize {
        let dropped = self.len;
        while let Some(span) = self.pop(nodes, pool, usize::MAX) {
            pool.release(span);
        }
        dropped
    }

    /// Replaces spans of pages that are held for little payload by packed copies, so that the pages go back. Used when the
    /// destination is blocked; what was looked at before is not looked at again. Stops early when the memory is used up.
    pub fn pack(&mut self, nodes: &mut Nodes, pool: &mut Pool, scratch: &mut Vec<u8>) {
        let mut previous = self.packed;
        let mut at = if previous == NONE { self.head } else { nodes.nodes[previous as usize].next };
        while at != NONE {
            let Node { span, next } = nodes.nodes[at as usize];
            if pool.is_wasteful(span) {
                scratch.clear();
                scratch.extend_from_slice(pool.bytes(span));
                // The copy is this worker's own.
                let borrowed_len = span.borrowed_len();
                if previous != NONE && pool.room(nodes.nodes[previous as usize].span) >= span.len() {
                    pool.append(&mut nodes.nodes[previous as usize].span, scratch);
                    pool.release(span);
                    self.borrowed_len -= borrowed_len;
                    nodes.nodes[previous as usize].next = next;
                    nodes.give_back(at);
                    self.spans -= 1;
                    if next == NONE {
                        self.tail = previous;
                    }
                    at = next;
                    continue;
                }
                // As in `push_copy`: blocks grow with what is queued.
                let wanted = span.len().max(self.len.min(crate::limits::PAGE_LEN / 4));
                let Some(mut copy) = pool.allocate(wanted) else { break };
                pool.append(&mut copy, scratch);
                pool.release(span);
                self.borrowed_len -= borrowed_len;
                nodes.nodes[at as usize].span = copy;
            }
            previous = at;
            at = next;
        }
        self.packed = previous;
    }
}

impl Default for Nodes {
    fn default() -> Self {
        Self { nodes: Vec::with_capacity(NODES_AT_START), free: Vec::with_capacity(NODES_AT_START) }
    }
}

impl Nodes {
    fn take(&mut self, span: Span) -> u32 {
        let node = Node { span, next: NONE };
        if let Some(index) = self.free.pop() {
            self.nodes[index as usize] = node;
            return index;
        }
        self.nodes.push(node);
        (self.nodes.len() - 1) as u32
    }

    fn give_back(&mut self, index: u32) {
        self.free.push(index);
    }

    /// Gives back what a crowd needed. Only while no queue holds anything.
    pub fn shrink(&mut self) {
        if self.is_empty() && self.nodes.len() > NODES_AT_START {
            *self = Self::default();
        }
    }

    /// Nodes in use.
    pub fn len(&self) -> usize {
        self.nodes.len() - self.free.len()
    }

    /// Whether no queue holds anything.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::PAGE_LEN;

    fn drain(queue: &mut Queue, nodes: &mut Nodes, pool: &mut Pool, step: usize) -> Vec<u8> {
        let mut out = Vec::new();
        while let Some(span) = queue.pop(nodes, pool, step) {
            out.extend_from_slice(pool.bytes(span));
            pool.release(span);
        }
        out
    }

    #[test]
    fn bytes_come_out_in_order_however_they_were_queued() {
        let mut pool = Pool::new(64 * PAGE_LEN).unwrap();
        let mut nodes = Nodes::default();
        let mut queue = Queue::default();
        let mut expected = Vec::new();
        for round in 0..200_u32 {
            let bytes: Vec<u8> = (0..round % 37 + 1).map(|i| (round + i) as u8).collect();
            expected.extend_from_slice(&bytes);
            assert_eq!(queue.push_copy(&mut nodes, &mut pool, &bytes), bytes.len());
        }
        assert_eq!(queue.len(), expected.len());
        let mut head = [0; 50];
        assert_eq!(queue.peek(&nodes, &pool, &mut head), 50);
        assert_eq!(head[..], expected[..50]);
        assert_eq!(drain(&mut queue, &mut nodes, &mut pool, 7), expected);
        assert_eq!((nodes.len(), pool.held_len(), queue.len()), (0, 0, 0));
    }

    #[test]
    fn packing_gives_received_pages_back_and_keeps_the_bytes() {
        let mut pool = Pool::new(64 * PAGE_LEN).unwrap();
        let mut nodes = Nodes::default();
        let mut queue = Queue::default();
        for _ in 0..20 {
            let page = pool.lend().unwrap();
            let span = pool.received(page, 40);
            queue.push(&mut nodes, span);
        }
        assert_eq!(pool.held_len(), 20 * PAGE_LEN);
        queue.pack(&mut nodes, &mut pool, &mut Vec::new());
        assert_eq!(queue.len(), 800);
        assert!(pool.held_len() <= 2 * PAGE_LEN, "held {}", pool.held_len());
        assert_eq!(drain(&mut queue, &mut nodes, &mut pool, usize::MAX), vec![0; 800]);
        assert_eq!(pool.held_len(), 0);
    }

    #[test]
    fn memory_used_up_is_said_and_nothing_is_lost() {
        let mut pool = Pool::new(PAGE_LEN).unwrap();
        let mut nodes = Nodes::default();
        let mut queue = Queue::default();
        let bytes = vec![5; 3 * PAGE_LEN];
        assert_eq!(queue.push_copy(&mut nodes, &mut pool, &bytes), PAGE_LEN);
        assert_eq!(drain(&mut queue, &mut nodes, &mut pool, 1000), vec![5; PAGE_LEN]);
    }
}
