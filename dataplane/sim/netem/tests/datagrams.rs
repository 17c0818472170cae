//! Packet paths: each fault happens as configured, and nothing else.

use ringwire_netem::{
    DatagramConfig, Datagrams, Full, Jitter, LineConfig, LossConfig, QueuePolicy, Random, Rate,
};

fn config() -> DatagramConfig {
    DatagramConfig {
        line: LineConfig { rate: Rate::Constant(1_000_000), delay_ns: 1_000_000, jitter: Jitter::None },
        loss: LossConfig::None,
        queue_len: 10_000,
        policy: QueuePolicy::DropTail,
        duplicate: 0,
        corrupt: 0,
        reorder: false,
    }
}

/// Sends 1000 numbered datagrams of 100 bytes, one every 200 us, and returns what arrives.
fn run(config: DatagramConfig, seed: u64) -> Vec<Vec<u8>> {
    let mut path = Datagrams::new(config, Random::new(seed));
    let mut arrived = Vec::new();
    let mut now = 0;
    for number in 0..1000_u32 {
        let mut datagram = vec![0; 100];
        datagram[..4].copy_from_slice(&number.to_be_bytes());
        assert_eq!(path.send(now, datagram), Ok(()));
        now += 200_000;
        arrived.extend(std::iter::from_fn(|| path.poll(now)));
    }
    while let Some(at) = path.next_event(now) {
        now = now.max(at);
        arrived.extend(std::iter::from_fn(|| path.poll(now)));
    }
    arrived
}

fn number(datagram: &[u8]) -> u32 {
    datagram[..4].iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
}

#[test]
fn a_clean_path_delivers_all_in_order_even_with_jitter() {
    let jitter = Jitter::Uniform { max_ns: 5_000_000 };
    for jitter in [Jitter::None, jitter] {
        let clean = DatagramConfig { line: LineConfig { jitter, ..config().line }, ..config() };
        assert!(run(clean, 1).iter().map(|datagram| number(datagram)).eq(0..1000));
    }
}

#[test]
fn each_fault_shows_as_itself() {
    let lossy = DatagramConfig { loss: LossConfig::Independent { per_million: 100_000 }, ..config() };
    assert!((850..950).contains(&run(lossy, 2).len()));
    let doubled = run(DatagramConfig { duplicate: 100_000, ..config() }, 2);
    assert!((1050..1150).contains(&doubled.len()));
    let jitter = Jitter::Uniform { max_ns: 5_000_000 };
    let mixed = DatagramConfig { line: LineConfig { jitter, ..config().line }, reorder: true, ..config() };
    let mixed = run(mixed, 2);
    assert_eq!(mixed.len(), 1000);
    assert!(!mixed.is_sorted_by_key(|datagram| number(datagram)));
    let bad = run(DatagramConfig { corrupt: 100_000, ..config() }, 2);
    let changed = bad.iter().filter(|datagram| datagram[4..].iter().any(|byte| *byte != 0)).count();
    assert!((60..140).contains(&changed), "{changed}");
}

#[test]
fn a_full_queue_drops_or_blocks() {
    let mut dropping = Datagrams::new(config(), Random::new(1));
    let blocking = DatagramConfig { policy: QueuePolicy::BlockWriter, ..config() };
    let mut blocking = Datagrams::new(blocking, Random::new(1));
    for _ in 0..11 {
        assert_eq!(dropping.send(0, vec![0; 1000]), Ok(()));
        assert_eq!(blocking.send(0, vec![0; 1000]), Ok(()));
    }
    assert_eq!((dropping.send(0, vec![0; 1000]), dropping.queued_len()), (Ok(()), 10_000));
    assert_eq!(blocking.send(0, vec![0; 1000]), Err(Full));
    assert_eq!(blocking.send(1_000_000, vec![0; 1000]), Ok(()));
}

#[test]
fn a_cut_path_loses_everything_and_says_nothing() {
    let mut path = Datagrams::new(config(), Random::new(1));
    path.set_cut(true);
    path.send(0, vec![1]).unwrap();
    assert_eq!(path.next_event(0), None);
    path.set_cut(false);
    path.send(1_000_000, vec![2]).unwrap();
    assert_eq!(path.poll(9_000_000), Some(vec![2]));
}
