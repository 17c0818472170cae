//! Records: every value survives, and any bytes are a value in its one form or a typed fault.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};

use proptest::prelude::*;
use ringwire_ipc::Fault;
use ringwire_ipc::message::{
    Answer, BridgeNote, Command, Event, HybridPolicy, Order, PeerKey, Reason, RecordError, SessionNote,
    Setting,
};

fn key() -> impl Strategy<Value = PeerKey> {
    (2_u8..4, any::<[u8; 32]>()).prop_map(|(form, rest)| {
        let mut bytes = [form; 33];
        bytes[1..].copy_from_slice(&rest);
        PeerKey::new(bytes).unwrap()
    })
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<[u8; 4]>(), any::<u16>()).prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into()),
        (any::<[u8; 16]>(), any::<u16>(), any::<u32>()).prop_map(|(ip, port, scope)| SocketAddrV6::new(
            Ipv6Addr::from(ip),
            port,
            0,
            scope
        )
        .into()),
    ]
}

fn command() -> impl Strategy<Value = Command> {
    let policy = prop_oneof![Just(HybridPolicy::Off), Just(HybridPolicy::Offer), Just(HybridPolicy::Require)];
    let order = prop_oneof![
        Just(Order::ListSessions),
        Just(Order::ListBridges),
        any::<u64>().prop_map(|value| Order::Change(Setting::BudgetLen(value))),
        key().prop_map(Order::CloseSession),
        any::<u64>().prop_map(|deadline_ns| Order::Drain { deadline_ns }),
        policy.prop_map(|policy| Order::Change(Setting::Hybrid(policy))),
        any::<u32>().prop_map(|value| Order::Change(Setting::CompanyUsMax(value))),
        any::<u32>().prop_map(|value| Order::Change(Setting::PauseUsMax(value))),
    ];
    (any::<u64>(), order).prop_map(|(request, order)| Command { request, order })
}

fn note() -> impl Strategy<Value = SessionNote> {
    (any::<u64>(), key(), address(), any::<[bool; 2]>(), any::<u64>()).prop_map(
        |(session, peer, address, [hybrid, stands_by], at_ns)| SessionNote {
            session,
            peer,
            address,
            hybrid,
            stands_by,
            at_ns,
        },
    )
}

fn bridge() -> impl Strategy<Value = BridgeNote> {
    (key(), key(), any::<[u64; 3]>(), any::<[u32; 2]>(), any::<[bool; 2]>()).prop_map(
        |(source, destination, [forth, back, since_ns], queued, limited)| BridgeNote {
            source,
            destination,
            forth,
            back,
            forth_queued: queued[0],
            back_queued: queued[1],
            forth_limited: limited[0],
            back_limited: limited[1],
            since_ns,
        },
    )
}

fn event() -> impl Strategy<Value = Event> {
    let reason = prop_oneof![
        Just(Reason::PeerClosed),
        any::<i32>().prop_map(Reason::ConnectionFailed),
        Just(Reason::Displaced),
        Just(Reason::Violation),
        Just(Reason::Dead),
        Just(Reason::Ordered),
        Just(Reason::Stopping),
        Just(Reason::AddressShare),
    ];
    let answer =
        prop_oneof![any::<u64>().prop_map(Answer::Done), Just(Answer::NotFound), Just(Answer::Refused)];
    prop_oneof![
        note().prop_map(Event::Opened),
        (note(), reason).prop_map(|(session, reason)| Event::Closed(session, reason)),
        (any::<u64>(), note()).prop_map(|(request, session)| Event::Listed { request, session }),
        (any::<u64>(), answer).prop_map(|(request, answer)| Event::Answered { request, answer }),
        any::<u64>().prop_map(|dropped| Event::Resync { dropped }),
        (any::<u64>(), bridge()).prop_map(|(request, bridge)| Event::Bridged { request, bridge }),
    ]
}

proptest! {
    #[test]
    fn commands_survive(command in command()) {
        prop_assert_eq!(Command::decode(&command.encode()), Ok(command));
    }

    #[test]
    fn events_survive(event in event()) {
        prop_assert_eq!(Event::decode(&event.encode()), Ok(event));
    }

    /// Arbitrary records never panic.
    #[test]
    fn arbitrary_records(command in any::<[u64; 8]>(), event in any::<[u64; 16]>(), kind in 0_u64..8) {
        let with_kind = |word: u64| word & !0xff | kind;
        let (mut near_command, mut near_event) = (command, event);
        near_command[0] = with_kind(command[0]);
        near_event[0] = with_kind(event[0]);
        for record in [command, near_command] {
            if let Ok(command) = Command::decode(&record) {
                prop_assert_eq!(command.encode(), record);
            }
        }
        for record in [event, near_event] {
            if let Ok(event) = Event::decode(&record) {
                prop_assert_eq!(event.encode(), record);
            }
        }
    }

    /// One changed byte of a good command gives another good command in its one form, or a fault.
    #[test]
    fn changed_commands(command in command(), word in 0_usize..8, shift in 0_u32..8, byte in any::<u8>()) {
        let mut record = command.encode();
        record[word] ^= u64::from(byte) << (shift * 8);
        match Command::decode(&record) {
            Ok(decoded) => prop_assert_eq!(decoded.encode(), record),
            Err(fault) => prop_assert!(matches!(fault, Fault::Record(_))),
        }
    }

    /// The same for events.
    #[test]
    fn changed_events(event in event(), word in 0_usize..16, shift in 0_u32..8, byte in any::<u8>()) {
        let mut record = event.encode();
        record[word] ^= u64::from(byte) << (shift * 8);
        match Event::decode(&record) {
            Ok(decoded) => prop_assert_eq!(decoded.encode(), record),
            Err(fault) => prop_assert!(matches!(fault, Fault::Record(_))),
        }
    }
}

#[test]
fn what_nobody_encodes_is_named() {
    let fault = |field, value| Fault::Record(RecordError::Value { field, value });
    assert_eq!(Command::decode(&[0; 8]), Err(fault("command kind", 0)));
    assert_eq!(Event::decode(&[0; 16]), Err(fault("event kind", 0)));
    assert_eq!(Event::decode(&[9; 16]), Err(fault("event kind", 9)));
    assert_eq!(PeerKey::new([4; 33]), Err(RecordError::Value { field: "key form", value: 4 }));
    let mut record = Command { request: 7, order: Order::ListSessions }.encode();
    record[7] = 1 << 63;
    assert_eq!(Command::decode(&record), Err(Fault::Record(RecordError::Rest)));
}

/// Both processes are of one build, but the layout version must be raised when a record changes: this notices.
#[test]
fn records_of_version_4() {
    assert_eq!(ringwire_ipc::LAYOUT_VERSION, 4);
    let bytes = |record: &[u64]| record.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let peer = PeerKey::new([2; 33]).unwrap();
    let command = bytes(&Command { request: 0x0102, order: Order::CloseSession(peer) }.encode());
    assert_eq!(command[..10], [2, 2, 1, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(command[9..42], [2; 33]);
    let pause = Order::Change(Setting::PauseUsMax(0x0304));
    let command = bytes(&Command { request: 1, order: pause }.encode());
    assert_eq!(command[..13], [8, 1, 0, 0, 0, 0, 0, 0, 0, 4, 3, 0, 0]);
    let address = "192.0.2.7:513".parse().unwrap();
    let note = SessionNote { session: 9, peer, address, hybrid: true, stands_by: false, at_ns: 5 };
    let event = bytes(&Event::Closed(note, Reason::ConnectionFailed(104)).encode());
    assert_eq!(event[..10], [2, 9, 0, 0, 0, 0, 0, 0, 0, 2]);
    assert_eq!(event[42..51], [4, 192, 0, 2, 7, 1, 2, 1, 0]);
    assert_eq!(event[51..64], [5, 0, 0, 0, 0, 0, 0, 0, 2, 104, 0, 0, 0]);
}
