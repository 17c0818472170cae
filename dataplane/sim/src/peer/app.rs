//! One stream of a peer: the objects at its head, then the bytes of its bridge, then its end.

use ringwire_netem::Nanos;
use ringwire_proto::identity::{PublicKey, SecretKey};
use ringwire_proto::object::{
    Generation, RawAddress, StreamRequest, StreamResponse, object_hash, open_request, open_response,
    sign_object,
};
use ringwire_proto::yamux::StreamError;

use super::{Context, Open, Peer, Stage};
use crate::ledger::{Ending, Role, pattern, pattern_label};
use crate::log::Event;
use crate::plan::{Answer, BridgePlan, EndPlan, FlowPlan, Reader};

/// See the module's head.
#[derive(Debug)]
pub(super) struct App {
    /// Which bridge it belongs to; unknown at a destination until the request came.
    pub(super) bridge: Option<usize>,
    pub(super) role: Role,
    /// The multiplexer reported a reset by the server.
    pub(super) was_reset: bool,
    /// When it has something to do by the clock.
    pub(super) timer_at: Nanos,
    step: Step,
    /// The object in the making, prefix included.
    inbox: Vec<u8>,
    /// Objects that the multiplexer did not take yet.
    outbox: Vec<u8>,
    writes_at: Nanos,
    reads_at: Nanos,
    /// It called finish, close or reset.
    has_left: bool,
    /// The stream's end was seen.
    is_over: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Nothing was said and nothing will be.
    Idle,
    /// An object is due.
    Object,
    /// The destination answers at this time.
    Answering(Nanos),
    /// Payload.
    Flowing,
}

impl App {
    /// A stream the server opened.
    pub(super) fn destination() -> Self {
        Self::new(None, Role::Destination, Step::Object)
    }

    /// A stream on which nothing is said.
    pub(super) fn idle() -> Self {
        Self::new(None, Role::Source, Step::Idle)
    }

    fn new(bridge: Option<usize>, role: Role, step: Step) -> Self {
        Self {
            bridge,
            role,
            was_reset: false,
            timer_at: Nanos::MAX,
            step,
            inbox: Vec::new(),
            outbox: Vec::new(),
            writes_at: 0,
            reads_at: 0,
            has_left: false,
            is_over: false,
        }
    }
}

impl Peer {
    /// Dials what was asked for while there is a session.
    pub(super) fn dial_waiting(&mut self, context: &mut Context<'_>) {
        while let (Stage::Open(open), Some(&bridge)) = (&mut self.stage, self.dials.front()) {
            let Ok(stream) = open.mux.open(context.now) else { return };
            self.dials.pop_front();
            context.log.note(context.now, Event::Dials { bridge, peer: self.index, stream });
            let plan = &context.ledger.plan.bridges[bridge];
            let destination = plan.destination.map_or(*context.absent, |peer| context.keys[peer]);
            let request = StreamRequest {
                timestamp_ns: 1 + context.now as i64,
                source: RawAddress { key: Some(self.key), port: 49_153 },
                destination: RawAddress { key: Some(destination), port: 80 },
                ip_info: false,
                geo_info: false,
                noise_message: [&(bridge as u64).to_be_bytes()[..], &[0x5a; 41]].concat(),
            };
            let mut app = App::new(Some(bridge), Role::Source, Step::Object);
            let signed = sign_object(&self.secret, &request.encode(Generation::Go2024));
            open.seal(&signed, &mut app.outbox);
            context.ledger.bridges[bridge].request = signed;
            context.ledger.bridges[bridge].dialled_at = context.now;
            context.ledger.end(bridge, Role::Source).began = true;
            open.apps.insert(stream, app);
        }
    }

    /// Every stream does what it can.
    pub(super) fn run_apps(&mut self, context: &mut Context<'_>) {
        let is_go = self.is_go();
        let Stage::Open(open) = &mut self.stage else { return };
        let streams: Vec<u32> = open.apps.keys().copied().collect();
        for stream in streams {
            let Some(mut app) = open.apps.remove(&stream) else { continue };
            app.timer_at = Nanos::MAX;
            let handed_len = self.sent_len + (self.out.len() - self.out_sent) as u64;
            let mut turn = Turn {
                open,
                app: &mut app,
                stream,
                peer: self.index,
                context,
                secret: &self.secret,
                out: is_go.then_some(&mut self.out),
                handed_len,
                answers_finish: self.plan.answers_finish,
            };
            turn.run();
            let gone = !open.mux.has(stream);
            if gone && let Some(bridge) = app.bridge {
                let ending = if app.was_reset && !app.has_left { Ending::Reset } else { Ending::Own };
                context.ledger.saw(context.now, context.log, bridge, app.role, ending);
            }
            if !gone || (!app.is_over && !app.has_left && !app.was_reset) {
                open.apps.insert(stream, app);
            }
        }
    }
}

impl Open {
    /// Appends an object in its packet, with its length in front (dmsg-wire 7).
    pub(super) fn seal(&mut self, signed: &[u8], out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 2]);
        self.sealer.seal(signed, out);
        let len = (out.len() - start - 2) as u16;
        out[start..start + 2].copy_from_slice(&len.to_be_bytes());
    }
}

/// One stream's turn.
struct Turn<'a, 'b> {
    open: &'a mut Open,
    app: &'a mut App,
    stream: u32,
    peer: usize,
    context: &'a mut Context<'b>,
    secret: &'a SecretKey,
    /// Where each write goes at once, for a client that makes a frame of each.
    out: Option<&'a mut Vec<u8>>,
    /// Bytes for its connection that lie in front of whatever it writes now.
    handed_len: u64,
    answers_finish: bool,
}

/// Bytes a Go client writes at a time.
const GO_WRITE_LEN: usize = 4096;
/// What a client of that kind lets pile up for its connection.
const GO_OUT_MAX: usize = 64 * 1024;

impl Turn<'_, '_> {
    fn run(&mut self) {
        self.flush_outbox();
        if self.app.step == Step::Object {
            self.read_object();
        }
        if let Step::Answering(at) = self.app.step {
            if self.context.now >= at {
                self.answer();
            } else {
                self.app.timer_at = self.app.timer_at.min(at);
            }
        }
        let Some(bridge) = self.app.bridge else { return self.run_idle() };
        let plan = self.context.ledger.plan.bridges[bridge].clone();
        let flow = self.writes(&plan);
        if self.app.step == Step::Flowing {
            self.write(bridge, flow);
        } else if self.app.role == Role::Source {
            self.write(bridge, FlowPlan { len: flow.len.min(plan.eager_len), ..flow });
        }
        if self.app.step == Step::Flowing {
            self.read(bridge, self.reads(&plan));
            self.end_as_planned(bridge, &plan);
        }
        if self.context.ledger.is_quiescing && !self.app.has_left {
            self.close(bridge);
        }
    }

    fn writes(&self, plan: &BridgePlan) -> FlowPlan {
        if self.app.role == Role::Source { plan.forth } else { plan.back }
    }

    fn reads(&self, plan: &BridgePlan) -> FlowPlan {
        if self.app.role == Role::Source { plan.back } else { plan.forth }
    }

    /// A stream without a bridge: the server is expected to end it.
    fn run_idle(&mut self) {
        let mut nothing = [0; 64];
        if self.app.step == Step::Idle
            && !self.app.has_left
            && matches!(self.open.mux.read(self.stream, &mut nothing), Ok(0))
        {
            self.app.is_over = true;
        }
        if self.app.is_over && self.answers_finish && !self.app.has_left {
            self.app.has_left = true;
            self.open.mux.finish(self.context.now, self.stream);
        }
        if self.context.ledger.is_quiescing && !self.app.has_left && self.answers_finish {
            self.app.has_left = true;
            self.open.mux.close(self.context.now, self.stream);
        }
    }

    fn flush_outbox(&mut self) {
        while !self.app.outbox.is_empty() {
            let Ok(taken) = self.open.mux.write(self.stream, &self.app.outbox) else { return };
            self.app.outbox.drain(..taken);
        }
    }

    /// Reads an object byte-exact: what follows it is payload.
    fn read_object(&mut self) {
        loop {
            let wanted = match self.app.inbox.first_chunk::<2>() {
                None => 2,
                Some(prefix) => 2 + usize::from(u16::from_be_bytes(*prefix)),
            };
            if self.app.inbox.len() == wanted && wanted > 2 {
                let mut packet = std::mem::take(&mut self.app.inbox);
                return self.take_object(&mut packet[2..]);
            }
            let mut buffer = vec![0; wanted - self.app.inbox.len()];
            match self.open.mux.read(self.stream, &mut buffer) {
                Ok(0) => return self.see_end(),
                Ok(len) => self.app.inbox.extend_from_slice(&buffer[..len]),
                Err(_) => return,
            }
        }
    }

    fn take_object(&mut self, packet: &mut [u8]) {
        let now = self.context.now;
        let signed = match self.open.opener.open(packet) {
            Ok(signed) => signed.to_vec(),
            Err(fault) => {
                return self
                    .context
                    .ledger
                    .fail(now, format!("an object of the server was not opened: {fault}"));
            }
        };
        match self.app.role {
            Role::Source => self.take_response(&signed),
            Role::Destination => self.take_request(&signed),
        }
    }

    fn take_request(&mut self, signed: &[u8]) {
        let now = self.context.now;
        let request = match open_request(signed) {
            Ok(request) => request,
            Err(fault) => {
                return self.context.ledger.fail(now, format!("a request was not verified: {fault}"));
            }
        };
        let named = request.noise_message.first_chunk::<8>().map(|id| u64::from_be_bytes(*id) as usize);
        let Some(bridge) = named.filter(|bridge| *bridge < self.context.ledger.bridges.len()) else {
            return self.context.ledger.fail(now, "a request names no bridge".into());
        };
        let state = &self.context.ledger.bridges[bridge];
        if state.request != signed || state.ends[Role::Destination as usize].began {
            return self
                .context
                .ledger
                .fail(now, format!("bridge {bridge}: not the request that was sent, or twice"));
        }
        self.context.log.note(now, Event::Requested { bridge, peer: self.peer, stream: self.stream });
        self.app.bridge = Some(bridge);
        self.context.ledger.end(bridge, Role::Destination).began = true;
        self.app.step = match self.context.ledger.plan.bridges[bridge].answer {
            Answer::Accepts(after) => Step::Answering(now + after),
            Answer::Forged | Answer::Refuses | Answer::Finishes => Step::Answering(now),
            // Payload will not come, but the end may.
            Answer::Silent => Step::Flowing,
        };
    }

    fn answer(&mut self) {
        let now = self.context.now;
        let Some(bridge) = self.app.bridge else { return };
        let answer = self.context.ledger.plan.bridges[bridge].answer;
        self.app.step = Step::Flowing;
        if answer == Answer::Finishes {
            return self.finish(bridge, "finishes instead of answering");
        }
        let response = StreamResponse {
            request_hash: object_hash(&self.context.ledger.bridges[bridge].request),
            accepted: answer != Answer::Refuses,
            noise_message: vec![0xa5; 49],
            ..StreamResponse::default()
        };
        let gob = response.encode(Generation::Go2024);
        let signed = match answer {
            // The secret key 1: somebody, but not the destination.
            Answer::Forged => {
                let mut other = [0; 32];
                other[31] = 1;
                SecretKey::from_bytes(&other).map(|key| sign_object(&key, &gob)).unwrap_or_default()
            }
            _ => sign_object(self.secret, &gob),
        };
        self.context.log.note(now, Event::Answered { bridge });
        self.context.ledger.answered(now, bridge, self.handed_len);
        self.open.seal(&signed, &mut self.app.outbox);
        self.flush_outbox();
    }

    fn take_response(&mut self, signed: &[u8]) {
        let now = self.context.now;
        let Some(bridge) = self.app.bridge else { return };
        let plan = &self.context.ledger.plan.bridges[bridge];
        let Some(destination): Option<PublicKey> = plan.destination.map(|peer| self.context.keys[peer])
        else {
            return self
                .context
                .ledger
                .fail(now, format!("bridge {bridge}: nobody answered, yet there is a response"));
        };
        let hash = object_hash(&self.context.ledger.bridges[bridge].request);
        if let Err(fault) = open_response(signed, &hash, &destination) {
            return self
                .context
                .ledger
                .fail(now, format!("bridge {bridge}: a bad response was passed on: {fault}"));
        }
        self.context.log.note(now, Event::Established { bridge });
        self.context.ledger.bridges[bridge].established_at = Some(now);
        self.app.step = Step::Flowing;
    }

    fn write(&mut self, bridge: usize, flow: FlowPlan) {
        let now = self.context.now;
        let label = pattern_label(bridge, self.app.role);
        let mut bytes = Vec::new();
        while !self.app.has_left && !self.app.is_over && self.app.outbox.is_empty() {
            let wrote = self.context.ledger.end(bridge, self.app.role).wrote;
            let left = flow.len.saturating_sub(wrote) as usize;
            if left == 0 || self.answer_is_no(bridge) {
                return;
            }
            if now < self.app.writes_at {
                self.app.timer_at = self.app.timer_at.min(self.app.writes_at);
                return;
            }
            let mut len = left.min(flow.write_len);
            if let Some(out) = &self.out {
                if out.len() > GO_OUT_MAX {
                    return;
                }
                len = len.min(GO_WRITE_LEN);
            }
            bytes.clear();
            pattern(label, wrote, &mut bytes, len);
            let Ok(taken) = self.open.mux.write(self.stream, &bytes) else { return };
            self.context.ledger.wrote(now, self.context.log, bridge, self.app.role, taken);
            if let Some(out) = &mut self.out {
                self.open.mux.poll_transmit(out, usize::MAX / 2);
            }
            if flow.pause_ns > 0 {
                // A client that cuts its writes smaller is not slower for it.
                self.app.writes_at = now + flow.pause_ns * taken as u64 / flow.write_len as u64;
            }
        }
    }

    /// A destination that does not accept sends no payload.
    fn answer_is_no(&self, bridge: usize) -> bool {
        self.app.role == Role::Destination
            && !matches!(self.context.ledger.plan.bridges[bridge].answer, Answer::Accepts(_))
    }

    fn read(&mut self, bridge: usize, flow: FlowPlan) {
        let now = self.context.now;
        let mut buffer = [0; 16 * 1024];
        while !self.app.is_over {
            let have = self.context.ledger.end(bridge, self.app.role).read;
            let len = match flow.reader {
                Reader::Eager => buffer.len(),
                Reader::Pauses { from, until } if now < from || now >= until => buffer.len(),
                Reader::Pauses { until, .. } => {
                    self.app.timer_at = self.app.timer_at.min(until);
                    return;
                }
                Reader::Slow { len, .. } if now >= self.app.reads_at => len.min(buffer.len()),
                Reader::Slow { .. } => {
                    self.app.timer_at = self.app.timer_at.min(self.app.reads_at);
                    return;
                }
                Reader::StopsAfter(stop) => match stop.saturating_sub(have) as usize {
                    0 => return,
                    left => left.min(buffer.len()),
                },
            };
            match self.open.mux.read(self.stream, &mut buffer[..len]) {
                Ok(0) => return self.see_end(),
                Ok(len) => {
                    self.context.ledger.read(now, self.context.log, bridge, self.app.role, &buffer[..len]);
                    if let Reader::Slow { every_ns, .. } = flow.reader {
                        self.app.reads_at = now + every_ns;
                    }
                }
                Err(
                    StreamError::Blocked | StreamError::Finished | StreamError::Gone | StreamError::Closed,
                ) => return,
            }
        }
    }

    /// The server finished the stream: so do we.
    fn see_end(&mut self) {
        self.app.is_over = true;
        let Some(bridge) = self.app.bridge else {
            return self.finish_quietly();
        };
        self.context.ledger.saw(self.context.now, self.context.log, bridge, self.app.role, Ending::Finished);
        if self.answers_finish {
            self.finish(bridge, "finishes too");
        }
        if self.app.has_left && self.open.mux.is_smux() {
            // Bytes that wait for credit would wait for ever: a Go client's blocked write fails when the end comes, and its FIN
            // goes out at once. yamux has a reset for that.
            self.open.mux.reset(self.stream);
        }
    }

    fn finish_quietly(&mut self) {
        if self.answers_finish && !self.app.has_left {
            self.app.has_left = true;
            self.open.mux.finish(self.context.now, self.stream);
        }
    }

    fn end_as_planned(&mut self, bridge: usize, plan: &BridgePlan) {
        if self.app.has_left || !self.app.outbox.is_empty() {
            return;
        }
        let is_source = self.app.role == Role::Source;
        let end = *self.context.ledger.end(bridge, self.app.role);
        let has_sent = end.wrote >= self.writes(plan).len;
        let has_both = has_sent && end.read >= self.reads(plan).len;
        match plan.end {
            EndPlan::SourceAfterBoth if is_source && has_both => self.finish(bridge, "finishes after both"),
            EndPlan::DestinationAfterBoth if !is_source && has_both => {
                self.finish(bridge, "finishes after both");
            }
            EndPlan::SourceWhenSent if is_source && has_sent => self.finish(bridge, "finishes when sent"),
            EndPlan::DestinationWhenSent if !is_source && has_sent => {
                self.finish(bridge, "finishes when sent");
            }
            EndPlan::SourceResets(after) if is_source && end.read + end.wrote >= after => self.reset(bridge),
            EndPlan::DestinationResets(after) if !is_source && end.read + end.wrote >= after => {
                self.reset(bridge);
            }
            _ => {}
        }
    }

    fn finish(&mut self, bridge: usize, how: &'static str) {
        if !self.app.has_left {
            self.app.has_left = true;
            self.context.ledger.left(self.context.now, self.context.log, bridge, self.app.role, how);
            self.open.mux.finish(self.context.now, self.stream);
        }
    }

    fn close(&mut self, bridge: usize) {
        if self.app.is_over && !self.answers_finish {
            // One that forgets to close; the server has to notice.
            return;
        }
        self.app.has_left = true;
        self.context.ledger.left(self.context.now, self.context.log, bridge, self.app.role, "closes");
        self.open.mux.close(self.context.now, self.stream);
    }

    fn reset(&mut self, bridge: usize) {
        self.app.has_left = true;
        self.context.ledger.left(self.context.now, self.context.log, bridge, self.app.role, "resets");
        self.open.mux.reset(self.stream);
    }
}
