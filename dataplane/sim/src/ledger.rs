//! The oracle: what was promised to each bridge, what became of it, and the first broken promise.
//!
//! In: what peers wrote, read and saw. Out: a [`Failure`]. It holds that every byte sent arrives once and in order, or
//! that both ends learn that it did not; that what must complete completes in time; and that nobody starves.

use ringwire_netem::{Nanos, SECOND_NS};
use ringwire_proto::smux::Version;

use crate::log::{Event, Log};
use crate::plan::{EndPlan, Plan};

/// A broken promise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// When it was noticed.
    pub at: Nanos,
    /// Which.
    pub what: String,
}

/// An end of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Dialled.
    Source,
    /// Was dialled.
    Destination,
}

impl Role {
    /// The other end.
    pub fn other(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }
}

/// How an end learned that its stream is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// The server finished it.
    Finished,
    /// The server reset it.
    Reset,
    /// Its whole session ended.
    Session,
    /// The end itself closed or reset it.
    Own,
}

impl Ending {
    /// As the trace says it.
    pub fn words(self) -> &'static str {
        match self {
            Self::Finished => "the end",
            Self::Reset => "a reset",
            Self::Session => "the end of its session",
            Self::Own => "what it did itself",
        }
    }
}

/// What one end of a bridge did and saw.
#[derive(Debug, Clone, Copy, Default)]
pub struct EndState {
    /// It has a stream.
    pub began: bool,
    /// It called finish, close or reset.
    pub left_at: Option<Nanos>,
    /// Bytes it wrote.
    pub wrote: u64,
    /// Bytes it read.
    pub read: u64,
    /// When it read last, or its peer's first unread byte was written.
    pub progress_at: Nanos,
    /// What it saw.
    pub saw: Option<(Ending, Nanos)>,
}

/// One bridge's history.
#[derive(Debug, Clone, Default)]
pub struct BridgeState {
    /// Source, destination.
    pub ends: [EndState; 2],
    /// When the source dialled.
    pub dialled_at: Nanos,
    /// The signed request, as sent.
    pub request: Vec<u8>,
    /// When the destination's response went out.
    pub answered_at: Option<Nanos>,
    /// How many bytes of the destination's connection lie in front of its response, at least.
    pub answer_behind: Option<u64>,
    /// When the server had taken these.
    pub answer_reached_at: Option<Nanos>,
    /// When the source had the response.
    pub established_at: Option<Nanos>,
    /// When an end's session died.
    pub lost_at: Option<Nanos>,
    /// Which end closed its connection in order, with everything that it had written in it.
    pub closed: Option<Role>,
}

impl BridgeState {
    /// When a byte last arrived, or the response.
    fn moved_at(&self) -> Nanos {
        let [source, destination] = &self.ends;
        source.progress_at.max(destination.progress_at).max(self.established_at.unwrap_or(0))
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct Ledger {
    /// What was planned.
    pub plan: Plan,
    /// What became of each bridge.
    pub bridges: Vec<BridgeState>,
    /// The first broken promise.
    pub failure: Option<Failure>,
    /// Everybody is to end what is left.
    pub is_quiescing: bool,
    /// Sessions end on purpose from now on.
    pub is_ending: bool,
    must_complete: Vec<bool>,
    patience_ns: Vec<Nanos>,
    /// Sealed in objects and found again at the destination.
    pub bytes_delivered: u64,
    /// Bytes the server took from each peer's connection.
    taken: Vec<u64>,
    /// How many these were when one was seen to be left unread.
    unread_at: Vec<Option<u64>>,
}

/// A bridge on which nothing moves for this long is closed.
const IDLE_LIMIT_NS: Nanos = ringwire_dataplane::limits::BRIDGE_IDLE_TIMEOUT_NS;
/// A dial to nobody is refused within this time and what the links take.
const REFUSED_WITHIN_NS: Nanos = SECOND_NS;
/// After one end is gone, how long the other may take to learn of it: a keepalive interval, a reply limit, and some.
const LEARNS_WITHIN_NS: Nanos = 75 * SECOND_NS;
/// A destination that has not answered for so long is given up.
const FORWARD_LIMIT_NS: Nanos = ringwire_dataplane::limits::FORWARD_TIMEOUT_NS;
/// A session of smux version 1 with so many undelivered bytes may be left unread: its only flow control. A window, less the rest
/// of a frame that has begun: it counts from its header on.
const UNREAD_FROM_LEN: u64 = ringwire_proto::smux::INITIAL_WINDOW as u64 - u16::MAX as u64;

impl Ledger {
    /// Nothing has happened yet.
    pub fn new(plan: Plan) -> Self {
        Self {
            bridges: plan.bridges.iter().map(|_| BridgeState::default()).collect(),
            must_complete: plan.bridges.iter().map(|bridge| plan.must_complete(bridge)).collect(),
            patience_ns: plan.bridges.iter().map(|bridge| plan.patience_ns(bridge)).collect(),
            taken: vec![0; plan.peers.len()],
            unread_at: vec![None; plan.peers.len()],
            plan,
            failure: None,
            is_quiescing: false,
            is_ending: false,
            bytes_delivered: 0,
        }
    }

    /// Notes a broken promise; the first one counts.
    pub fn fail(&mut self, now: Nanos, what: String) {
        self.failure.get_or_insert(Failure { at: now, what });
    }

    /// An end's state.
    pub fn end(&mut self, bridge: usize, role: Role) -> &mut EndState {
        &mut self.bridges[bridge].ends[role as usize]
    }

    /// An end wrote bytes.
    pub fn wrote(&mut self, now: Nanos, log: &mut Log, bridge: usize, role: Role, len: usize) {
        log.note(now, Event::Wrote { bridge, forth: role == Role::Source, len });
        let wrote = self.end(bridge, role).wrote;
        let reader = self.end(bridge, role.other());
        if reader.read == wrote {
            reader.progress_at = now;
        }
        self.end(bridge, role).wrote += len as u64;
    }

    /// An end read bytes: they must be the next of those its partner wrote.
    pub fn read(&mut self, now: Nanos, log: &mut Log, bridge: usize, role: Role, bytes: &[u8]) {
        log.note(now, Event::Read { bridge, forth: role == Role::Destination, len: bytes.len() });
        let writer_wrote = self.end(bridge, role.other()).wrote;
        let reader = self.end(bridge, role);
        let from = reader.read;
        reader.read += bytes.len() as u64;
        reader.progress_at = now;
        let total = reader.read;
        self.bytes_delivered += bytes.len() as u64;
        if total > writer_wrote {
            return self.fail(
                now,
                format!("bridge {bridge}: {role:?} read {total} bytes of {writer_wrote} written"),
            );
        }
        let label = pattern_label(bridge, role.other());
        if let Some(wrong) = (0..bytes.len()).find(|at| bytes[*at] != pattern_byte(label, from + *at as u64))
        {
            let at = from + wrong as u64;
            self.fail(now, format!("bridge {bridge}: {role:?} read a wrong byte at {at} of its direction"));
        }
    }

    /// A destination's response goes out, behind so many bytes of its connection.
    pub fn answered(&mut self, now: Nanos, bridge: usize, behind: u64) {
        let state = &mut self.bridges[bridge];
        (state.answered_at, state.answer_behind) = (Some(now), Some(behind));
    }

    /// The server took bytes from a peer's connection.
    pub fn took(&mut self, now: Nanos, peer: usize, len: usize) {
        self.taken[peer] += len as u64;
        let taken = self.taken[peer];
        for (plan, state) in self.plan.bridges.iter().zip(&mut self.bridges) {
            if plan.destination == Some(peer) && state.answer_behind.is_some_and(|behind| behind < taken) {
                state.answer_reached_at.get_or_insert(now);
            }
        }
    }

    /// Which connections are left unread is looked at afresh.
    pub fn forget_unread(&mut self) {
        self.unread_at.fill(None);
    }

    /// The server leaves bytes of a peer's connection unread, with so many bytes in sends under way that may have arrived. For a
    /// moment it may: true to look again. With version 1 of smux it may also while what it took before waits for others; else
    /// nothing excuses it.
    pub fn check_unread(&mut self, now: Nanos, peer: usize, moved: u64) -> bool {
        let bridges = self.plan.bridges.iter().zip(&self.bridges);
        let delivered: u64 = bridges
            .map(|(plan, state)| {
                let of_source =
                    if plan.source == peer { state.ends[Role::Destination as usize].read } else { 0 };
                let is_here = plan.destination == Some(peer);
                of_source + if is_here { state.ends[Role::Source as usize].read } else { 0 }
            })
            .sum();
        let held = (self.taken[peer] + moved).saturating_sub(delivered);
        if self.plan.peers[peer].smux == Some(Version::V1) && held >= UNREAD_FROM_LEN {
            return false;
        }
        if self.unread_at[peer] == Some(self.taken[peer]) {
            self.fail(
                now,
                format!("peer {peer}: its connection is left unread with {held} bytes undelivered"),
            );
        }
        self.unread_at[peer] = Some(self.taken[peer]);
        true
    }

    /// Whether the server may have given up the destination of a bridge although it answered: the response of an smux client of
    /// version 1 waits behind what its other streams sent, as long as those they send to do not take that (dmsg-wire 6).
    fn is_held_up(&self, now: Nanos, bridge: usize) -> bool {
        let (plan, state) = (&self.plan.bridges[bridge], &self.bridges[bridge]);
        let given_up_at = state.dialled_at + FORWARD_LIMIT_NS;
        plan.destination.is_some_and(|peer| self.plan.peers[peer].smux == Some(Version::V1))
            && state.established_at.is_none()
            && state.answered_at.is_some()
            && now >= given_up_at
            && state.answer_reached_at.is_none_or(|at| at >= given_up_at)
    }

    /// An end called finish, close or reset.
    pub fn left(&mut self, now: Nanos, log: &mut Log, bridge: usize, role: Role, how: &'static str) {
        if self.end(bridge, role).left_at.is_none() {
            log.note(now, Event::Ends { bridge, source: role == Role::Source, how });
            self.end(bridge, role).left_at = Some(now);
        }
    }

    /// An end closed its connection in order, with everything that it had written in it: the other end is to get that, and a clean end.
    pub fn closed(&mut self, now: Nanos, bridge: usize, role: Role) {
        let state = &mut self.bridges[bridge];
        if state.lost_at.is_none() && state.ends.iter().all(|end| end.left_at.is_none() && end.saw.is_none())
        {
            state.closed = Some(role);
            state.ends[role as usize].left_at = Some(now);
        }
    }

    /// An end's session died.
    pub fn lost(&mut self, now: Nanos, bridge: usize) {
        if self.bridges[bridge].closed.is_some() {
            return;
        }
        self.bridges[bridge].lost_at.get_or_insert(now);
    }

    /// An end saw the end of its stream.
    pub fn saw(&mut self, now: Nanos, log: &mut Log, bridge: usize, role: Role, ending: Ending) {
        if self.end(bridge, role).saw.is_some() {
            return;
        }
        log.note(now, Event::Ended { bridge, source: role == Role::Source, how: ending.words() });
        self.end(bridge, role).saw = Some((ending, now));
        if matches!(ending, Ending::Session | Ending::Own) {
            return;
        }
        self.check_cause(now, bridge, role, ending);
    }

    /// What an end saw must have a cause, and a clean end brings every byte that was finished.
    fn check_cause(&mut self, now: Nanos, bridge: usize, role: Role, ending: Ending) {
        let state = &self.bridges[bridge];
        let (own, partner) = (state.ends[role as usize], state.ends[role.other() as usize]);
        let (lost_at, established) = (state.lost_at, state.established_at.is_some());
        let plan = &self.plan.bridges[bridge];
        let must = self.must_complete[bridge];
        // smux has no reset: what one would say looks like an end.
        let peer = if role == Role::Source { Some(plan.source) } else { plan.destination };
        let may_be_reset = !must && peer.is_some_and(|peer| self.plan.peers[peer].smux.is_some());
        if let Some(left) = partner.left_at.or(lost_at)
            && own.left_at.is_none()
            && now > left + LEARNS_WITHIN_NS + self.patience_ns[bridge]
        {
            let waited = (now - left) / SECOND_NS;
            return self.fail(
                now,
                format!("bridge {bridge}: {role:?} learned of its partner's end after {waited} s"),
            );
        }
        // Workers stop one after another: what one closes, another may still tell.
        if own.left_at.is_some() || lost_at.is_some() || self.is_quiescing || self.is_ending {
            return;
        }
        let told_after = now - self.bridges[bridge].dialled_at;
        if plan.destination.is_none() && told_after > REFUSED_WITHIN_NS + self.patience_ns[bridge] {
            let told_after = told_after / 1_000_000;
            return self.fail(now, format!("bridge {bridge}: the refusal took {told_after} ms"));
        }
        if ending == Ending::Finished && self.is_held_up(now, bridge) {
            self.must_complete[bridge] = false;
            return;
        }
        let refused = plan.destination.is_none() || !plan.answer.is_in_time();
        // Nothing else may have ended it, so a reset says that bytes are missing, and none are.
        let is_healthy = !self.plan.is_tight && peer.is_some_and(|peer| self.plan.is_healthy(peer));
        let is_whole = established && is_healthy && state.closed == Some(role.other()) && !may_be_reset;
        match ending {
            Ending::Reset if is_whole => {
                let (read, wrote) = (own.read, partner.wrote);
                self.fail(
                    now,
                    format!("bridge {bridge}: {role:?} saw a reset after {read} of {wrote} bytes, and its partner closed in order"),
                );
            }
            Ending::Finished if partner.left_at.is_some() => {
                let resets = matches!(plan.end, EndPlan::SourceResets(_) | EndPlan::DestinationResets(_));
                if own.read != partner.wrote && !resets && !refused && !may_be_reset && (established || must)
                {
                    let (read, wrote) = (own.read, partner.wrote);
                    self.fail(
                        now,
                        format!("bridge {bridge}: {role:?} saw a clean end after {read} of {wrote} bytes that were finished"),
                    );
                }
            }
            Ending::Finished if refused => {}
            // The idle limit is a cause.
            Ending::Finished
                if now + self.patience_ns[bridge] >= self.bridges[bridge].moved_at() + IDLE_LIMIT_NS => {}
            _ if must || (partner.left_at.is_none() && self.must_live(bridge)) => {
                let words = ending.words();
                self.fail(now, format!("bridge {bridge}: {role:?} saw {words} without a cause"));
            }
            _ => {}
        }
    }

    /// Nothing that may end this bridge by itself was planned, save its own ends.
    fn must_live(&self, bridge: usize) -> bool {
        let plan = &self.plan.bridges[bridge];
        let Some(destination) = plan.destination else { return false };
        !self.plan.is_tight
            && plan.answer.is_in_time()
            && self.plan.is_healthy(plan.source)
            && self.plan.is_healthy(destination)
            && !self.plan.may_be_held_up(plan.source)
            && !self.plan.may_be_held_up(destination)
    }

    /// Whether somebody has waited too long for bytes that were sent.
    pub fn check_starvation(&mut self, now: Nanos) {
        for bridge in 0..self.bridges.len() {
            if !self.must_complete[bridge] {
                continue;
            }
            let state = &self.bridges[bridge];
            if state.ends.iter().any(|end| end.left_at.is_some() || end.saw.is_some()) {
                continue;
            }
            let patience = self.patience_ns[bridge];
            for role in [Role::Source, Role::Destination] {
                let reader = state.ends[role as usize];
                let wrote = state.ends[role.other() as usize].wrote;
                if state.established_at.is_some()
                    && reader.read < wrote
                    && now > reader.progress_at + patience
                {
                    let (read, waited) = (reader.read, (now - reader.progress_at) / 1_000_000);
                    return self.fail(
                        now,
                        format!("bridge {bridge}: {role:?} starves: {read} of {wrote} bytes, nothing for {waited} ms"),
                    );
                }
            }
        }
    }

    /// What must be complete is complete.
    pub fn check_complete(&mut self, now: Nanos) {
        for bridge in 0..self.bridges.len() {
            if !self.must_complete[bridge] {
                continue;
            }
            let (plan, state) = (&self.plan.bridges[bridge], &self.bridges[bridge]);
            let [source, destination] = state.ends;
            let both = matches!(plan.end, EndPlan::SourceAfterBoth | EndPlan::DestinationAfterBoth);
            let forth = both || plan.end == EndPlan::SourceWhenSent;
            let back = both || plan.end == EndPlan::DestinationWhenSent;
            let lacks = (forth && destination.read < plan.forth.len) || (back && source.read < plan.back.len);
            if state.established_at.is_none() || lacks || source.saw.is_none() || destination.saw.is_none() {
                let what = format!(
                    "bridge {bridge} is not complete: established {}, forth {} of {}, back {} of {}, source saw {:?}, \
                     destination saw {:?}",
                    state.established_at.is_some(),
                    destination.read,
                    plan.forth.len,
                    source.read,
                    plan.back.len,
                    source.saw.map(|(ending, _)| ending),
                    destination.saw.map(|(ending, _)| ending),
                );
                return self.fail(now, what);
            }
        }
    }

    /// Every end knows.
    pub fn check_settled(&mut self, now: Nanos) {
        for bridge in 0..self.bridges.len() {
            for role in [Role::Source, Role::Destination] {
                let end = self.bridges[bridge].ends[role as usize];
                // Where memory is short a stream may be reset while an smux client's bytes wait for credit: nothing tells it, and
                // its end waits behind them.
                let (source, destination) =
                    (self.plan.bridges[bridge].source, self.plan.bridges[bridge].destination);
                let peer = if role == Role::Source { Some(source) } else { destination };
                let waits =
                    self.plan.is_tight && peer.is_some_and(|peer| self.plan.peers[peer].smux.is_some());
                if end.began && end.saw.is_none() && !waits {
                    return self
                        .fail(now, format!("bridge {bridge}: {role:?} never learned that it is over"));
                }
            }
        }
    }
}

/// Which bytes a direction carries.
pub fn pattern_label(bridge: usize, writer: Role) -> u64 {
    (bridge as u64 * 2 + writer as u64 + 1).wrapping_mul(0xd1b5_4a32_d192_ed03)
}

/// The byte at a place: depends on the place, so that a lost, doubled or swapped piece is seen.
pub fn pattern_byte(label: u64, at: u64) -> u8 {
    let word = (at / 8).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ label;
    (word ^ word >> 29).to_le_bytes()[(at % 8) as usize]
}

/// Fills `out` with the bytes from a place on.
pub fn pattern(label: u64, from: u64, out: &mut Vec<u8>, len: usize) {
    out.extend((from..from + len as u64).map(|at| pattern_byte(label, at)));
}
