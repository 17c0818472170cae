//! Connections: nothing is lost, doubled or swapped, whatever the way does; and ends are seen.

use ringwire_netem::{
    ConnectionLost, Duplex, Jitter, LineConfig, LossConfig, Nanos, Random, Rate, ReadOutcome, SECOND_NS,
    Side, StreamConfig,
};

fn pair(config: &StreamConfig, seed: u64) -> Duplex {
    Duplex::new(config.clone(), config.clone(), &Random::new(seed))
}

fn rough() -> StreamConfig {
    StreamConfig {
        line: LineConfig {
            rate: Rate::Constant(1_000_000),
            delay_ns: 20_000_000,
            jitter: Jitter::Normal { deviation_ns: 5_000_000 },
        },
        loss: LossConfig::Independent { per_million: 20_000 },
        segment_len: 1448,
        send_buffer_len: 30_000,
        receive_buffer_len: 20_000,
        ..StreamConfig::default()
    }
}

fn byte(at: usize) -> u8 {
    (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).to_be_bytes()[0]
}

/// Sends `len` bytes from A to B in odd pieces; returns when the last arrived and a number that depends on all arrivals.
fn transfer(duplex: &mut Duplex, len: usize, seed: u64) -> (Nanos, u64) {
    let mut random = Random::new(seed);
    let (mut now, mut sent, mut received, mut digest) = (0, 0, 0, 0_u64);
    while received < len {
        let piece: Vec<u8> = (sent..len.min(sent + random.range(1, 9000) as usize)).map(byte).collect();
        sent += duplex.write(now, Side::A, &piece).unwrap_or(0);
        let mut out = vec![0; random.range(1, 7000) as usize];
        while let ReadOutcome::Bytes(taken) = duplex.read(now, Side::B, &mut out) {
            assert!((0..taken).all(|at| out[at] == byte(received + at)), "at {received}");
            received += taken;
            digest = digest.rotate_left(5) ^ now ^ taken as u64;
        }
        if sent == len || duplex.room(Side::A) == 0 {
            match duplex.next_event(now) {
                Some(at) => now = now.max(at),
                None => assert_eq!(received, len, "stuck"),
            }
        }
        duplex.advance(now);
    }
    (now, digest)
}

#[test]
fn bytes_arrive_once_and_in_order_at_the_rate_of_the_line() {
    let len = 2_000_000;
    let (took, _) = transfer(&mut pair(&rough(), 1), len, 7);
    assert!(took > 2 * SECOND_NS, "not faster than the line: {took}");
    let smooth = StreamConfig { loss: LossConfig::None, ..rough() };
    let smooth = StreamConfig { receive_buffer_len: 200_000, send_buffer_len: 200_000, ..smooth };
    let (took, _) = transfer(&mut pair(&smooth, 1), len, 7);
    assert!((2 * SECOND_NS..2_200_000_000).contains(&took), "near the rate: {took}");
}

#[test]
fn the_same_seed_gives_the_same_arrivals() {
    let run = |seed| transfer(&mut pair(&rough(), seed), 300_000, 7);
    assert_eq!(run(3), run(3));
    assert_ne!(run(3), run(4));
}

#[test]
fn a_black_hole_takes_writes_until_the_buffer_is_full_and_delivers_after_it_is_restored() {
    let mut duplex = pair(&rough(), 1);
    duplex.set_cut(0, Side::A, true);
    assert_eq!(duplex.write(0, Side::A, &[7; 50_000]), Ok(30_000));
    assert_eq!((duplex.room(Side::A), duplex.next_event(0)), (0, None));
    assert_eq!(duplex.stuck_since(Side::A), Some(0));
    duplex.set_cut(5 * SECOND_NS, Side::A, false);
    let mut now = 5 * SECOND_NS;
    let mut got = 0;
    while let Some(at) = duplex.next_event(now) {
        now = now.max(at);
        duplex.advance(now);
        let mut out = [0; 4096];
        while let ReadOutcome::Bytes(taken) = duplex.read(now, Side::B, &mut out) {
            got += taken;
        }
    }
    assert_eq!((got, duplex.stuck_since(Side::A)), (30_000, None));
}

#[test]
fn with_the_way_back_cut_bytes_arrive_but_the_writer_cannot_know() {
    let config = StreamConfig { send_buffer_len: 1000, ..StreamConfig::default() };
    let mut duplex = pair(&config, 1);
    duplex.set_cut(0, Side::B, true);
    assert_eq!(duplex.write(0, Side::A, &[1; 600]), Ok(600));
    duplex.advance(0);
    assert_eq!((duplex.readable_len(Side::B), duplex.room(Side::A)), (600, 400));
    assert_eq!(duplex.stuck_since(Side::A), Some(0));
    duplex.set_cut(9, Side::B, false);
    assert_eq!((duplex.room(Side::A), duplex.stuck_since(Side::A)), (1000, None));
}

#[test]
fn an_unread_receive_buffer_blocks_the_writer() {
    let config = StreamConfig {
        send_buffer_len: 1000,
        receive_buffer_len: 500,
        segment_len: 100,
        ..StreamConfig::default()
    };
    let mut duplex = pair(&config, 1);
    assert_eq!(duplex.write(0, Side::A, &[1; 5000]), Ok(1000));
    duplex.advance(0);
    assert_eq!(duplex.write(0, Side::A, &[1; 5000]), Ok(500));
    assert_eq!((duplex.readable_len(Side::B), duplex.room(Side::A)), (500, 0));
    assert_eq!(duplex.read(1, Side::B, &mut [0; 300]), ReadOutcome::Bytes(300));
    assert_eq!(duplex.room(Side::A), 300);
}

#[test]
fn closing_delivers_what_was_written_and_then_the_end() {
    let config = StreamConfig { line: LineConfig::with_delay(10), ..StreamConfig::default() };
    let mut duplex = pair(&config, 1);
    duplex.write(0, Side::A, b"last words").unwrap();
    duplex.close(0, Side::A);
    assert_eq!(duplex.write(0, Side::A, b"more"), Err(ConnectionLost));
    assert!(!duplex.is_readable(Side::B));
    duplex.advance(10);
    let mut out = [0; 64];
    assert_eq!(duplex.read(10, Side::B, &mut out), ReadOutcome::Bytes(10));
    assert_eq!(duplex.read(10, Side::B, &mut out), ReadOutcome::End);
    // What B says now is answered with a reset, one way there and one way back.
    duplex.write(10, Side::B, b"anybody?").unwrap();
    duplex.advance(20);
    assert!(!duplex.is_lost(Side::B));
    duplex.advance(30);
    assert_eq!(duplex.read(30, Side::B, &mut out), ReadOutcome::Lost);
}

#[test]
fn a_reset_is_seen_after_the_delay_and_not_through_a_cut() {
    let config = StreamConfig { line: LineConfig::with_delay(10), ..StreamConfig::default() };
    let mut duplex = pair(&config, 1);
    duplex.reset(0, Side::B);
    assert_eq!(duplex.read(0, Side::B, &mut [0; 1]), ReadOutcome::Lost);
    duplex.advance(9);
    assert_eq!(duplex.read(9, Side::A, &mut [0; 1]), ReadOutcome::Blocked);
    duplex.advance(10);
    assert_eq!(duplex.read(10, Side::A, &mut [0; 1]), ReadOutcome::Lost);
    assert_eq!(duplex.write(10, Side::A, b"x"), Err(ConnectionLost));
    let mut cut = pair(&config, 1);
    cut.set_cut(0, Side::B, true);
    cut.reset(0, Side::B);
    assert_eq!(cut.next_event(0), None);
}

#[test]
fn a_stall_holds_everything_up_for_its_time() {
    let mut duplex = pair(&StreamConfig::default(), 1);
    duplex.stall(Side::A, SECOND_NS);
    duplex.write(0, Side::A, b"x").unwrap();
    assert_eq!(duplex.next_event(0), Some(SECOND_NS));
    duplex.advance(SECOND_NS);
    assert_eq!(duplex.readable_len(Side::B), 1);
}
