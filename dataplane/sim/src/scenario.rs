//! Draws the plan of a seed: a theme, its peers and bridges, the kernel's faults, and when what is due.

use ringwire_dataplane::Share;
use ringwire_netem::{Jitter, LineConfig, LossConfig, Nanos, Random, Rate, SECOND_NS, Side, StreamConfig};

use ringwire_proto::smux::Version;

use crate::plan::{
    Answer, BridgePlan, Character, EndPlan, Errand, Fault, FlowPlan, Manner, PeerPlan, Plan, Reader,
    Rudeness, Strangeness, effective_rate,
};

/// A kind of scenario and what draws it.
type Theme = (&'static str, fn(&mut Draw<'_>));

const MS: Nanos = 1_000_000;

/// The plan of a seed. Seed 0 is the thinnest there is: two peers, one bridge, no faults.
pub fn draw(seed: u64) -> Plan {
    let mut random = Random::new(seed);
    let themes: [Theme; 14] = [
        ("mixture", mixture),
        ("churn", churn),
        ("crowd", crowd),
        ("deaths", deaths),
        ("stalls", stalls),
        ("strangers", strangers),
        ("refusals", refusals),
        ("slow readers", slow_readers),
        ("resets", resets),
        ("turmoil", turmoil),
        ("turmoil", turmoil),
        ("tight", tight),
        ("idle", idle),
        ("long paths", long_paths),
    ];
    let (theme, draw) = if seed == 0 { ("walk", walk as fn(&mut Draw<'_>)) } else { *random.pick(&themes) };
    let mut plan = Plan::empty(seed, theme);
    let mut drawing = Draw { random: &mut random, plan: &mut plan };
    if seed != 0 {
        drawing.kernel();
    }
    draw(&mut drawing);
    for peer in 0..plan.peers.len() {
        if seed != 0 && random.chance(300_000) {
            let errands = [Errand::Ping, Errand::AskForAddress, Errand::LieAboutSource];
            let mut times: Vec<Nanos> =
                (0..random.range(1, 3)).map(|_| random.range(4, 11) * SECOND_NS).collect();
            times.sort_unstable_by(|a, b| b.cmp(a));
            plan.peers[peer].errands = times.into_iter().map(|at| (at, *random.pick(&errands))).collect();
        }
    }
    for peer in 0..plan.peers.len() {
        if seed != 0 && random.chance(250_000) {
            let version = if random.chance(250_000) { Version::V1 } else { Version::V2 };
            let peer = &mut plan.peers[peer];
            peer.smux = Some(version);
            // It speaks at once, as clients of 2026 do: a silent one would be taken for yamux when it is dialled.
            peer.errands.push((peer.connects_at, Errand::Ping));
        }
    }
    plan.stops_with_sessions = seed != 0 && random.chance(200_000);
    if seed != 0 && random.chance(60_000) {
        plan.stops_at = Some(random.range(2 * SECOND_NS, 10 * SECOND_NS));
    }
    if seed != 0 && random.chance(250_000) {
        for _ in 0..random.range(1, 3) {
            plan.handovers.push(random.range(4 * SECOND_NS, 11 * SECOND_NS));
        }
    }
    if !plan.handovers.is_empty() {
        // A cancel that outlasts the freeze costs its session; here none may be lost.
        plan.kernel.cancel_ns = plan.kernel.cancel_ns.min(MS);
    }
    set_times(&mut plan);
    // Drawn last: what else a seed is does not depend on it.
    if seed != 0 && random.chance(450_000) {
        plan.workers = random.range(2, 3) as usize;
        plan.kernel.pauses = *random.pick(&[0, 2_000, 20_000]);
        plan.kernel.pause_ns = *random.pick(&[5 * MS, 400 * MS]);
    }
    if seed != 0 {
        // Such a load as coalescing waits for is not simulated; less will do.
        plan.kernel.busy_frames_per_second = *random.pick(&[0, 50, plan.kernel.busy_frames_per_second]);
        // Nor do honest clients bring more at a time than the share of a turn.
        let small =
            [Share { frames: 1, len: 1 }, Share { frames: 3, len: 5000 }, Share { frames: 40, len: 100 }];
        plan.kernel.share =
            *random.pick(&[small[0], small[1], small[2], plan.kernel.share, plan.kernel.share]);
    }
    plan
}

struct Draw<'a> {
    random: &'a mut Random,
    plan: &'a mut Plan,
}

/// Two peers, one bridge, verified bytes, no faults.
fn walk(draw: &mut Draw<'_>) {
    for _ in 0..2 {
        let (up, down) = (StreamConfig::default(), StreamConfig::default());
        draw.add_peer(PeerPlan { up, down, ..honest(2 * SECOND_NS) });
    }
    draw.plan.bridges.push(BridgePlan {
        source: 0,
        destination: Some(1),
        at: 3 * SECOND_NS,
        forth: FlowPlan { len: 200_000, write_len: 7001, pause_ns: 0, reader: Reader::Eager },
        back: FlowPlan { len: 100_000, write_len: 3000, pause_ns: 0, reader: Reader::Eager },
        end: EndPlan::SourceAfterBoth,
        answer: Answer::Accepts(0),
        eager_len: 0,
    });
}

/// A few peers, a few bridges of all sizes.
fn mixture(draw: &mut Draw<'_>) {
    draw.peers(2, 4);
    let count = draw.random.range(2, 8);
    draw.bridges(count as usize, 300_000, 5 * SECOND_NS);
}

/// Many short bridges one after another: every slot is used again and again.
fn churn(draw: &mut Draw<'_>) {
    draw.peers(2, 3);
    let count = draw.random.range(12, 30);
    draw.bridges(count as usize, 3_000, 14 * SECOND_NS);
    for bridge in &mut draw.plan.bridges {
        if draw.random.chance(300_000) {
            // Waiting for its response while timers of former streams fire.
            bridge.answer = Answer::Accepts(draw.random.range(500 * MS, 4_000 * MS));
        }
    }
}

/// Several bulk streams to one destination whose link is the bottleneck, and a small one among them.
fn crowd(draw: &mut Draw<'_>) {
    draw.peers(3, 4);
    let rate = draw.random.range(200_000, 400_000);
    let target = &mut draw.plan.peers[0];
    target.connects_at = SECOND_NS;
    target.down.line.rate = Rate::Constant(rate);
    target.down.line.delay_ns = target.down.line.delay_ns.min(20 * MS);
    target.down.receive_buffer_len = 128 * 1024;
    for peer in &mut draw.plan.peers[1..] {
        peer.up = fast_way(20 * MS);
        peer.down = fast_way(20 * MS);
        peer.faults.clear();
    }
    let sources = draw.plan.peers.len() - 1;
    let count = draw.random.range(4, 6) as usize;
    for index in 0..count {
        let len = if index == count - 1 { 20_000 } else { draw.random.range(800_000, 1_500_000) };
        let at = 5 * SECOND_NS + draw.random.range(0, 200 * MS);
        let mut bridge = draw.bridge(1, at);
        bridge.source = 1 + index % sources;
        bridge.destination = Some(0);
        bridge.forth = FlowPlan { len, write_len: 16_384, pause_ns: 0, reader: Reader::Eager };
        bridge.back.len = bridge.back.len.min(1000);
        bridge.end = EndPlan::SourceAfterBoth;
        draw.plan.bridges.push(bridge);
    }
}

/// Sessions die in every way while bridges run; others must not notice.
fn deaths(draw: &mut Draw<'_>) {
    draw.peers(3, 5);
    let count = draw.random.range(4, 9);
    draw.bridges(count as usize, 200_000, 6 * SECOND_NS);
    let dying = draw.random.range(1, 2) as usize;
    for peer in 0..dying {
        let at = draw.random.range(4 * SECOND_NS, 12 * SECOND_NS);
        let bytes = draw.random.range(100, 250_000);
        let fault = match draw.random.below(14) {
            // While much is under way.
            10.. => Fault::CloseAt(6 * SECOND_NS + draw.random.range(0, SECOND_NS)),
            0 => Fault::ResetAfterReceived(bytes),
            1 => Fault::ResetAfterSent(bytes),
            2 => Fault::ResetAt(at),
            3 => Fault::CloseAt(at),
            4 | 7 | 8 => Fault::BlackHole(at),
            9 => Fault::GoAwayAt(at),
            5 => Fault::CutOneWay(at, if draw.random.chance(500_000) { Side::A } else { Side::B }),
            _ => Fault::PauseFor(at, 60 * SECOND_NS),
        };
        draw.plan.peers[peer].faults.push(fault);
    }
    if draw.random.chance(500_000) {
        // A second session of the same key displaces the first.
        let mut again = draw.plan.peers[0].clone();
        again.connects_at = draw.random.range(5 * SECOND_NS, 10 * SECOND_NS);
        again.faults.clear();
        draw.plan.peers.push(again);
    }
}

/// Interruptions that every session must survive.
fn stalls(draw: &mut Draw<'_>) {
    draw.peers(2, 4);
    let count = draw.random.range(2, 6);
    draw.bridges(count as usize, 200_000, 5 * SECOND_NS);
    for peer in 0..draw.plan.peers.len() {
        if draw.random.chance(700_000) {
            let at = draw.random.range(5 * SECOND_NS, 9 * SECOND_NS);
            let ns = draw.random.range(50 * MS, 3 * SECOND_NS);
            let side = if draw.random.chance(500_000) { Side::A } else { Side::B };
            let fault = match draw.random.below(3) {
                0 => Fault::CutFor(at, ns),
                1 => Fault::StallFor(at, ns, side),
                _ => Fault::PauseFor(at, ns),
            };
            draw.plan.peers[peer].faults.push(fault);
        }
    }
}

/// Connections that never become sessions, sessions that break the rules, streams that say nothing.
fn strangers(draw: &mut Draw<'_>) {
    draw.peers(2, 3);
    let count = draw.random.range(2, 5);
    draw.bridges(count as usize, 60_000, 5 * SECOND_NS);
    for _ in 0..draw.random.range(1, 4) {
        let character = match draw.random.below(9) {
            0 => Character::Stranger(Strangeness::Silent),
            1 => Character::Stranger(Strangeness::Noise),
            2 => Character::Stranger(Strangeness::Half),
            3 => Character::Stranger(Strangeness::Stops),
            4 => Character::Opener(draw.random.range(1, 40) as u32),
            number => {
                let rudeness =
                    [Rudeness::Overrun, Rudeness::Version, Rudeness::Reopen, Rudeness::SecondFinish]
                        [number as usize - 5];
                Character::Rude(draw.random.range(0, 6 * SECOND_NS), rudeness)
            }
        };
        let peer = draw.peer();
        draw.add_peer(PeerPlan { character, ..peer });
    }
}

/// Dials that come to nothing.
fn refusals(draw: &mut Draw<'_>) {
    draw.peers(2, 4);
    let count = draw.random.range(6, 14);
    draw.bridges(count as usize, 20_000, 10 * SECOND_NS);
    for index in 0..draw.plan.bridges.len() {
        let bridge = &mut draw.plan.bridges[index];
        match draw.random.below(8) {
            0 | 1 => bridge.destination = None,
            2 => bridge.answer = Answer::Silent,
            3 => bridge.answer = Answer::Finishes,
            4 => bridge.answer = Answer::Forged,
            5 => bridge.answer = Answer::Refuses,
            _ => {}
        }
    }
}

/// Readers that are slow or stop, beside others that are not.
fn slow_readers(draw: &mut Draw<'_>) {
    draw.peers(2, 4);
    let count = draw.random.range(3, 8);
    draw.bridges(count as usize, 500_000, 4 * SECOND_NS);
    for index in 0..draw.plan.bridges.len() {
        let reader = match draw.random.below(5) {
            0 => Reader::StopsAfter(draw.random.range(0, 300_000)),
            3 => Reader::Slow { len: 16_000, every_ns: draw.random.range(500 * MS, 1000 * MS) },
            1 => Reader::Slow { len: 16_000, every_ns: draw.random.range(20 * MS, 200 * MS) },
            2 => Reader::Slow { len: 1000, every_ns: draw.random.range(MS, 4 * MS) },
            _ => Reader::Eager,
        };
        let bridge = &mut draw.plan.bridges[index];
        if draw.random.chance(500_000) {
            bridge.forth.reader = reader;
        } else {
            bridge.back.reader = reader;
        }
    }
}

/// Streams that are reset at any byte, and streams nobody ends.
fn resets(draw: &mut Draw<'_>) {
    draw.peers(2, 4);
    let count = draw.random.range(5, 14);
    draw.bridges(count as usize, 150_000, 6 * SECOND_NS);
    for index in 0..draw.plan.bridges.len() {
        let after = draw.random.range(0, 150_000);
        let bridge = &mut draw.plan.bridges[index];
        match draw.random.below(4) {
            0 => bridge.end = EndPlan::SourceResets(after),
            1 => bridge.end = EndPlan::DestinationResets(after),
            2 => bridge.end = EndPlan::Never,
            _ => {}
        }
    }
}

/// Many large frames under way on slow links, and streams that vanish under them while others begin in their places; in
/// half of the seeds the worker is replaced again and again meanwhile.
fn turmoil(draw: &mut Draw<'_>) {
    draw.peers(2, 3);
    for peer in &mut draw.plan.peers {
        peer.manner = Manner::Native;
        peer.up.line.rate = Rate::Constant(draw.random.range(200_000, 500_000));
        peer.up.segment_len = 1448;
        peer.up.send_buffer_len = 32 * 1024;
    }
    for _ in 0..draw.random.range(20, 40) {
        let at = 5 * SECOND_NS + draw.random.range(0, 4 * SECOND_NS);
        let mut bridge = draw.bridge(60_000, at);
        bridge.forth.write_len = 65_536;
        bridge.back.write_len = 65_536;
        let after = draw.random.range(0, 60_000);
        match draw.random.below(5) {
            0 | 1 => bridge.end = EndPlan::SourceResets(after),
            2 | 3 => bridge.end = EndPlan::DestinationResets(after),
            _ => {}
        }
        draw.plan.bridges.push(bridge);
    }
    if draw.random.chance(500_000) {
        for _ in 0..draw.random.range(5, 15) {
            draw.plan.handovers.push(draw.random.range(5 * SECOND_NS, 10 * SECOND_NS));
        }
    }
}

/// Buffer memory for a few bridges, wanted by many, with readers that do not read.
fn tight(draw: &mut Draw<'_>) {
    draw.peers(3, 5);
    draw.plan.is_tight = true;
    draw.plan.kernel.memory_pages = draw.random.range(96, 512) as usize;
    draw.plan.kernel.ring_pages = draw.plan.kernel.ring_pages.min(32);
    let count = draw.random.range(8, 20);
    draw.bridges(count as usize, 400_000, 6 * SECOND_NS);
    for index in 0..draw.plan.bridges.len() {
        if draw.random.chance(500_000) {
            let bridge = &mut draw.plan.bridges[index];
            bridge.forth.reader = Reader::StopsAfter(draw.random.range(0, 100_000));
            bridge.end = EndPlan::Never;
        }
    }
}

/// Bulk over long paths: windows larger than the base one, granted, used and taken back.
fn long_paths(draw: &mut Draw<'_>) {
    draw.peers(2, 3);
    for index in 0..draw.plan.peers.len() {
        let delay_ns = draw.random.range(20 * MS, 120 * MS);
        let peer = &mut draw.plan.peers[index];
        for way in [&mut peer.up, &mut peer.down] {
            way.line.delay_ns = delay_ns;
            way.line.jitter = Jitter::None;
            way.line.rate = Rate::Constant(draw.random.range(2_000_000, 30_000_000));
            way.retransmit_ns = 200 * MS + 2 * delay_ns;
            way.segment_len = 16_384;
            // Room for what the path holds.
            way.send_buffer_len = draw.random.range(512, 2048) as usize * 1024;
            way.receive_buffer_len = 2 * way.send_buffer_len;
        }
    }
    for _ in 0..draw.random.range(1, 3) {
        let at = 5 * SECOND_NS + draw.random.range(0, SECOND_NS);
        let mut bridge = draw.bridge(3000, at);
        let len = draw.random.range(1_500_000, 6_000_000);
        let reader = if draw.random.chance(300_000) {
            Reader::Slow { len: 16_000, every_ns: draw.random.range(5 * MS, 20 * MS) }
        } else {
            Reader::Eager
        };
        bridge.forth = FlowPlan { len, write_len: 65_536, pause_ns: 0, reader };
        bridge.end = *draw.random.pick(&[EndPlan::SourceAfterBoth, EndPlan::SourceWhenSent]);
        draw.plan.bridges.push(bridge);
    }
}

/// Bridges on which nothing moves for longer than the limit, and others that speak just often enough.
fn idle(draw: &mut Draw<'_>) {
    draw.peers(2, 3);
    for _ in 0..draw.random.range(2, 5) {
        let at = 5 * SECOND_NS + draw.random.range(0, 5 * SECOND_NS);
        let mut bridge = draw.bridge(300, at);
        if draw.random.chance(500_000) {
            bridge.end = EndPlan::Never;
        } else {
            bridge.forth = FlowPlan { len: 60, write_len: 10, pause_ns: 0, reader: Reader::Eager };
            bridge.forth.pause_ns = draw.random.range(30 * SECOND_NS, 280 * SECOND_NS);
            bridge.back.len = 0;
            bridge.end = EndPlan::SourceAfterBoth;
        }
        draw.plan.bridges.push(bridge);
    }
    draw.plan.quiesce_at = 330 * SECOND_NS;
}

/// An honest client on a perfect link.
pub(crate) fn honest(connects_at: Nanos) -> PeerPlan {
    PeerPlan {
        identity: 0,
        connects_at,
        up: StreamConfig::default(),
        down: StreamConfig::default(),
        hybrid: false,
        manner: Manner::Native,
        smux: None,
        pings: true,
        character: Character::Honest,
        answers_finish: true,
        errands: Vec::new(),
        faults: Vec::new(),
    }
}

fn fast_way(delay_ns: Nanos) -> StreamConfig {
    StreamConfig { line: LineConfig::with_delay(delay_ns), ..StreamConfig::default() }
}

impl Draw<'_> {
    fn add_peer(&mut self, peer: PeerPlan) {
        let identity = self.plan.peers.len();
        self.plan.peers.push(PeerPlan { identity, ..peer });
    }

    fn peers(&mut self, from: u64, to: u64) {
        for _ in 0..self.random.range(from, to) {
            let peer = self.peer();
            self.add_peer(peer);
        }
    }

    fn peer(&mut self) -> PeerPlan {
        let random = &mut *self.random;
        PeerPlan {
            connects_at: random.range(SECOND_NS, 3 * SECOND_NS),
            hybrid: random.chance(300_000),
            manner: if random.chance(500_000) { Manner::Go } else { Manner::Native },
            pings: random.chance(500_000),
            answers_finish: random.chance(850_000),
            up: self.way(),
            down: self.way(),
            ..honest(0)
        }
    }

    /// One direction of a link.
    fn way(&mut self) -> StreamConfig {
        let random = &mut *self.random;
        let delay_ns = *random.pick(&[20_000, MS, 5 * MS, 20 * MS, 60 * MS, 120 * MS]);
        let rate = match random.below(4) {
            0 => Rate::Unlimited,
            1 => Rate::Constant(random.range(300_000, 2_000_000)),
            2 => Rate::Constant(random.range(2_000_000, 50_000_000)),
            _ => {
                let step = random.range(3 * SECOND_NS, 8 * SECOND_NS);
                Rate::Steps(vec![
                    (0, random.range(400_000, 1_000_000)),
                    (step, random.range(1_000_000, 9_000_000)),
                    (2 * step, random.range(400_000, 9_000_000)),
                ])
            }
        };
        let jitter = match random.below(3) {
            0 => Jitter::None,
            1 => Jitter::Uniform { max_ns: delay_ns / 2 },
            _ => Jitter::Normal { deviation_ns: delay_ns / 8 },
        };
        let loss = match random.below(6) {
            0 => LossConfig::Independent { per_million: 5_000 },
            1 => LossConfig::Burst { to_bad: 2_000, to_good: 200_000, good: 0, bad: 200_000 },
            _ => LossConfig::None,
        };
        StreamConfig {
            line: LineConfig { rate, delay_ns, jitter },
            loss,
            retransmit_ns: 200 * MS + 2 * delay_ns,
            segment_len: *random.pick(&[1448, 4096, 16_384]),
            send_buffer_len: random.range(16, 160) as usize * 1024,
            receive_buffer_len: random.range(32, 256) as usize * 1024,
        }
    }

    fn bridges(&mut self, count: usize, len_max: u64, within_ns: Nanos) {
        for _ in 0..count {
            let at = 5 * SECOND_NS + self.random.range(0, within_ns);
            let bridge = self.bridge(len_max, at);
            self.plan.bridges.push(bridge);
        }
    }

    fn bridge(&mut self, len_max: u64, at: Nanos) -> BridgePlan {
        let peers = self.plan.peers.len() as u64;
        let source = self.random.below(peers) as usize;
        // Now and then a peer dials itself.
        let destination = if self.random.chance(30_000) {
            source
        } else {
            (source + 1 + self.random.below(peers - 1) as usize) % peers as usize
        };
        let end = match self.random.below(6) {
            0 => EndPlan::SourceWhenSent,
            1 => EndPlan::DestinationWhenSent,
            2 | 3 => EndPlan::DestinationAfterBoth,
            _ => EndPlan::SourceAfterBoth,
        };
        BridgePlan {
            source,
            destination: Some(destination),
            at,
            forth: self.flow(len_max),
            back: self.flow(len_max),
            end,
            answer: Answer::Accepts(if self.random.chance(200_000) {
                self.random.range(0, 300 * MS)
            } else {
                0
            }),
            // Well below what a session may send ahead of its bridges, whatever else does.
            eager_len: if self.random.chance(100_000) { 4096 } else { 0 },
        }
    }

    fn flow(&mut self, len_max: u64) -> FlowPlan {
        let random = &mut *self.random;
        let len = match random.below(4) {
            0 => random.range(0, 100.min(len_max)),
            1 => random.range(0, 3000.min(len_max)),
            _ => random.range(0, len_max),
        };
        let write_len = match random.below(4) {
            0 => 12 + random.below(100),
            1 => 4096,
            2 => random.range(1000, 20_000),
            _ => 65_536,
        };
        // Trickles take a second or two at most.
        let writes = len / write_len + 1;
        let pause_ns = if random.chance(300_000) { random.range(0, 2 * SECOND_NS / writes) } else { 0 };
        // Tiny writes of much are many events and nothing new.
        let write_len = write_len.max(len / 400) as usize;
        FlowPlan { len, write_len, pause_ns, reader: Reader::Eager }
    }

    /// Half of the seeds have an unkind kernel.
    fn kernel(&mut self) {
        let random = &mut *self.random;
        let kernel = &mut self.plan.kernel;
        if random.chance(150_000) {
            return;
        }
        kernel.ring_pages = *random.pick(&[1, 2, 3, 8, 64, 256]);
        kernel.batch_max = *random.pick(&[1, 2, 5, 64, 1024]);
        kernel.short_receive = *random.pick(&[0, 0, 200_000, 800_000]);
        kernel.split_receive = *random.pick(&[0, 0, 100_000, 500_000]);
        kernel.short_send = *random.pick(&[0, 0, 200_000, 800_000]);
        kernel.reorder = random.chance(500_000);
        kernel.latency_ns = *random.pick(&[0, 10_000, 300_000]);
        kernel.cancel_ns = *random.pick(&[0, MS, 300 * MS, 2 * SECOND_NS]);
        kernel.accept_fails = *random.pick(&[0, 0, 200_000]);
        kernel.turn_ns = *random.pick(&[1_000, 20_000, 100_000]);
        kernel.company_us_max = *random.pick(&[0, 100]);
        kernel.lane.hands = *random.pick(&[1, 2]);
        kernel.lane.cost_ns = *random.pick(&[0, 200_000, 20 * MS]);
    }
}

/// From the loads of the links: when everything that must complete has to be complete.
pub(crate) fn set_times(plan: &mut Plan) {
    let mut slowest_ns = 0;
    for peer in 0..plan.peers.len() {
        let (mut up, mut down) = (0, 0);
        for bridge in &plan.bridges {
            if bridge.source == peer {
                up += bridge.forth.len;
                down += bridge.back.len;
            }
            if bridge.destination == Some(peer) {
                up += bridge.back.len;
                down += bridge.forth.len;
            }
        }
        let links = &plan.peers[peer];
        let time = |len: u64, way: &StreamConfig| len * SECOND_NS / effective_rate(way);
        let held = links.faults.iter().filter_map(|fault| fault.survivable_ns()).sum::<Nanos>();
        slowest_ns = slowest_ns.max(time(up, &links.up) + time(down, &links.down) + 2 * held);
    }
    let mut last_ns = 0;
    for bridge in &plan.bridges {
        let mut takes_ns = 0;
        for flow in [&bridge.forth, &bridge.back] {
            takes_ns += flow.len / flow.write_len as u64 * flow.pause_ns;
            if let Reader::Slow { len, every_ns } = flow.reader {
                takes_ns += flow.len / len as u64 * every_ns;
            }
        }
        if let Answer::Accepts(after) = bridge.answer {
            takes_ns += after;
        }
        // Round trips: open, request, response, and a window each.
        // Half a window at a time; that of an smux client is a quarter.
        let mut peers = [Some(bridge.source), bridge.destination].into_iter().flatten();
        let is_smux = peers.any(|peer| plan.peers[peer].smux.is_some());
        let windows = (bridge.forth.len + bridge.back.len) / if is_smux { 32_768 } else { 131_072 };
        let round_ns: Nanos = [Some(bridge.source), bridge.destination]
            .into_iter()
            .flatten()
            .map(|peer| 2 * (plan.peers[peer].up.line.delay_ns + plan.peers[peer].down.line.delay_ns))
            .sum();
        last_ns = last_ns.max(bridge.at + takes_ns + (6 + windows) * round_ns);
    }
    plan.quiesce_at = plan.quiesce_at.max(last_ns.max(6 * SECOND_NS) + 10 * SECOND_NS + 3 * slowest_ns);
    let detection_ns = 100 * SECOND_NS;
    plan.settled_at = plan.quiesce_at + detection_ns;
}
