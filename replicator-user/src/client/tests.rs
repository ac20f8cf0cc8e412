//! Dispatcher and receiver over the loopback device.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    ops::ControlFlow,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use proptest::prelude::*;
use replicator_common::bier::{BiftId, BitStringLength};

use super::*;

const TABLE: BiftId = match BiftId::expert(4, 2) {
    Some(id) => id,
    None => panic!(),
};

fn receiver_on(address: impl Into<std::net::IpAddr>) -> (Receiver, SocketAddr) {
    let source = Source::Udp { bind: SocketAddr::new(address.into(), 0), share: false };
    let mut receiver = Receiver::open(&source, &ReceiverSettings::default()).unwrap();
    receiver.set_timeout(Some(Duration::from_secs(5)));
    let at = receiver.local_address().unwrap();
    (receiver, at)
}

fn dispatcher(to: SocketAddr, length: BitStringLength) -> Dispatcher {
    let transport = Transport::Udp { to, interface: None };
    Dispatcher::open(&transport, &DispatcherSettings::new(TABLE, length, 7)).unwrap()
}

fn pair() -> (Dispatcher, Receiver) {
    let (receiver, at) = receiver_on(Ipv4Addr::LOCALHOST);
    (dispatcher(at, BitStringLength::B256), receiver)
}

#[test]
fn every_length_arrives_as_it_was_sent_over_both_families() {
    for address in [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), SocketAddr::from((Ipv6Addr::LOCALHOST, 0))] {
        let (mut receiver, at) = receiver_on(address.ip());
        for length in BitStringLength::ALL {
            let settings = DispatcherSettings {
                ttl: 9,
                dscp: 46,
                proto: 61,
                ..DispatcherSettings::new(TABLE, length, 0xbeef)
            };
            let transport = Transport::Udp { to: at, interface: None };
            let mut dispatcher = Dispatcher::open(&transport, &settings).unwrap();
            let last = length.bits() as u32 - 1;
            dispatcher.dispatch(Destinations::Experts(&[last, 0, 5, 5]), 0xfff_ffff, b"token").unwrap();
            dispatcher.dispatch(Destinations::Bits(&[1, last + 1]), 1, b"").unwrap();
            assert_eq!(dispatcher.flush().unwrap(), 2);

            let delivery = receiver.receive().unwrap().unwrap();
            assert_eq!(delivery.bift_id(), TABLE);
            assert_eq!(delivery.source_rank(), 0xbeef);
            let header = delivery.header;
            assert_eq!(
                (header.ttl(), header.dscp(), header.proto(), header.entropy()),
                (9, 46, 61, 0xf_ffff)
            );
            assert!(delivery.experts().eq([0, 5, last]));
            assert_eq!(delivery.bits.as_bytes().len(), length.bytes());
            assert_eq!(delivery.payload, b"token");
            let delivery = receiver.receive().unwrap().unwrap();
            assert!(delivery.experts().eq([0, last]) && delivery.payload.is_empty());
        }
        assert_eq!(receiver.counts(), ReceiveCounts { delivered: 10, ..ReceiveCounts::default() });
    }
}

#[test]
fn a_receiver_on_the_ipv6_wildcard_takes_ipv4() {
    let (mut receiver, at) = receiver_on(Ipv6Addr::UNSPECIFIED);
    let mut dispatcher = dispatcher((Ipv4Addr::LOCALHOST, at.port()).into(), BitStringLength::B64);
    dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"four").unwrap();
    dispatcher.flush().unwrap();
    assert_eq!(receiver.receive().unwrap().unwrap().payload, b"four");
}

/// Sends payloads of these lengths, and checks that each arrives once, in order and whole.
fn send_and_check(dispatcher: &mut Dispatcher, receiver: &mut Receiver, lengths: &[usize]) {
    let payload = |number: usize, length: usize| -> Vec<u8> {
        (0..length).map(|at| (number * 31 + at) as u8).collect()
    };
    let mut handed = 0;
    for (number, &length) in lengths.iter().enumerate() {
        let expert = number as u32 % 256;
        handed += dispatcher
            .dispatch(Destinations::Experts(&[expert]), number as u32, &payload(number, length))
            .unwrap();
    }
    handed += dispatcher.flush().unwrap();
    assert_eq!((handed, dispatcher.waiting()), (lengths.len(), 0));
    for (number, &length) in lengths.iter().enumerate() {
        let delivery = receiver.receive().unwrap().expect("a frame was lost");
        assert_eq!(delivery.header.entropy(), number as u32);
        assert!(delivery.experts().eq([number as u32 % 256]));
        assert_eq!(delivery.payload, payload(number, length));
    }
    receiver.set_timeout(Some(Duration::ZERO));
    assert!(receiver.receive().unwrap().is_none(), "a frame was doubled");
    receiver.set_timeout(Some(Duration::from_secs(5)));
}

#[test]
fn batches_of_one_length_are_segmented_by_the_kernel() {
    let (mut dispatcher, mut receiver) = pair();
    for count in [1, 2, 31, 32, 33, 100] {
        send_and_check(&mut dispatcher, &mut receiver, &vec![2048; count]);
    }
    assert!(dispatcher.segmenting(), "the loopback device can do it");
    assert_eq!(dispatcher.queued(), 199);
}

#[test]
fn batches_of_many_lengths_arrive_in_order() {
    let (mut dispatcher, mut receiver) = pair();
    let lengths: Vec<usize> =
        (0..150).map(|n| [2048, 2048, 100, 0, 3000, 2048, 2048, 2048, 1][n % 9]).collect();
    send_and_check(&mut dispatcher, &mut receiver, &lengths);
}

#[test]
fn where_the_kernel_refuses_to_segment_frames_go_one_by_one() {
    let (mut dispatcher, mut receiver) = pair();
    // UDP_SEGMENT wants checksums: with SO_NO_CHECK the kernel says EINVAL.
    socket::set_option(&socket2::SockRef::from(&dispatcher), libc::SOL_SOCKET, libc::SO_NO_CHECK, 1).unwrap();
    send_and_check(&mut dispatcher, &mut receiver, &[2048; 70]);
    assert!(!dispatcher.segmenting());
    send_and_check(&mut dispatcher, &mut receiver, &[2048; 70]);
}

#[test]
fn the_longest_payload_arrives_and_one_byte_more_is_refused() {
    for (address, limit) in [
        (SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), 3498 - 28 - 44),
        (SocketAddr::from((Ipv6Addr::LOCALHOST, 0)), 3498 - 48 - 44),
    ] {
        let (mut receiver, at) = receiver_on(address.ip());
        let mut dispatcher = dispatcher(at, BitStringLength::B256);
        assert_eq!(dispatcher.max_payload(), limit);
        let error =
            dispatcher.dispatch(Destinations::Experts(&[1]), 0, &vec![1; limit + 1]).unwrap_err().to_string();
        assert!(error.starts_with(&format!("a payload of {} bytes does not fit", limit + 1)), "{error}");
        assert_eq!((dispatcher.waiting(), dispatcher.queued()), (0, 0));
        send_and_check(&mut dispatcher, &mut receiver, &[limit; 40]);
        dispatcher.set_table(TABLE, BitStringLength::B1024);
        assert_eq!(dispatcher.max_payload(), limit - 96);
    }
}

#[test]
fn a_refused_set_leaves_the_queue_as_it_was() {
    let (mut dispatcher, mut receiver) = pair();
    dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"one").unwrap();
    assert!(matches!(
        dispatcher.dispatch(Destinations::Experts(&[3, 256]), 0, b"two"),
        Err(DispatchError::Expert { expert: 256, bits: 256 })
    ));
    assert!(matches!(dispatcher.dispatch(Destinations::Bits(&[]), 0, b"two"), Err(DispatchError::Empty)));
    dispatcher.dispatch(Destinations::Experts(&[2]), 0, b"three").unwrap();
    assert_eq!(dispatcher.flush().unwrap(), 2);
    assert_eq!(receiver.receive().unwrap().unwrap().payload, b"one");
    assert_eq!(receiver.receive().unwrap().unwrap().payload, b"three");
}

#[test]
fn a_table_named_on_the_way_holds_for_later_frames_alone() {
    let (mut dispatcher, mut receiver) = pair();
    dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"").unwrap();
    dispatcher.set_table(BiftId::expert(9, 1).unwrap(), BitStringLength::B64);
    dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"").unwrap();
    dispatcher.flush().unwrap();
    assert_eq!(receiver.receive().unwrap().unwrap().bift_id(), TABLE);
    let delivery = receiver.receive().unwrap().unwrap();
    assert_eq!((delivery.bift_id().table(), delivery.bits.as_bytes().len()), (Some(9), 8));
}

#[test]
fn a_peer_that_refuses_is_reported_and_stops_nothing() {
    // A port that was free a moment ago.
    let at = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let mut dispatcher = dispatcher(at, BitStringLength::B256);
    let mut handed = 0;
    for number in 0..100 {
        // Lengths differ, so that every frame is a message of its own.
        handed += dispatcher.dispatch(Destinations::Experts(&[1]), 0, &vec![0; 1 + number]).unwrap();
    }
    handed += dispatcher.flush().unwrap();
    assert_eq!(handed, 100);
    assert!(dispatcher.reports() > 0);
}

#[test]
fn what_waits_is_sent_when_the_dispatcher_goes() {
    let (mut dispatcher, mut receiver) = pair();
    dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"last").unwrap();
    drop(dispatcher);
    assert_eq!(receiver.receive().unwrap().unwrap().payload, b"last");
}

#[test]
fn what_cannot_be_opened_says_what_and_where() {
    let settings = DispatcherSettings::new(TABLE, BitStringLength::B64, 0);
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let open = |transport: &Transport, settings: &DispatcherSettings| {
        Dispatcher::open(transport, settings).err().expect("must not open").to_string()
    };
    let udp = Transport::Udp { to, interface: None };
    assert_eq!(open(&udp, &DispatcherSettings { dscp: 64, ..settings }), "DSCP is 64: it must be 0 to 63");
    assert!(open(&udp, &DispatcherSettings { ttl: 0, ..settings }).starts_with("TTL is 0"));
    assert!(open(&udp, &DispatcherSettings { batch: 0, ..settings }).starts_with("batch is 0"));
    let nowhere = Transport::Udp { to, interface: Some("no-such-device".into()) };
    assert_eq!(open(&nowhere, &settings), "interface no-such-device: No such device (os error 19)");

    let (_taken, at) = receiver_on(Ipv4Addr::LOCALHOST);
    let source = Source::Udp { bind: at, share: false };
    let error = Receiver::open(&source, &ReceiverSettings::default()).err().unwrap().to_string();
    assert_eq!(error, format!("{at}: cannot bind: Address already in use (os error 98)"));
}

#[test]
fn receivers_may_share_a_port() {
    let source = |port| Source::Udp { bind: (Ipv4Addr::LOCALHOST, port).into(), share: true };
    let first = Receiver::open(&source(0), &ReceiverSettings::default()).unwrap();
    let port = first.local_address().unwrap().port();
    assert!(Receiver::open(&source(port), &ReceiverSettings::default()).is_ok());
}

#[test]
fn bytes_that_are_no_frame_are_counted_by_kind_and_skipped() {
    let (mut receiver, at) = receiver_on(Ipv4Addr::LOCALHOST);
    let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut good = [0u8; 25];
    (good[4], good[5]) = (0x50, 0x10);
    let mut version = good;
    version[4] = 0x51;
    let mut length = good;
    length[5] = 0x60;
    for packet in [&b""[..], &good[..11], &good[..19], &version, &length, &[0x50; 4097], &good] {
        sender.send_to(packet, at).unwrap();
    }
    assert_eq!(receiver.receive().unwrap().unwrap().payload.len(), 5);
    let expected =
        ReceiveCounts { delivered: 1, truncated: 3, version: 1, length: 1, foreign: 0, too_long: 1 };
    assert_eq!(receiver.counts(), expected);
    assert_eq!(receiver.counts().skipped(), 6);
}

#[test]
fn a_receiver_stops_at_its_timeout_and_at_its_flag() {
    let (mut receiver, _) = receiver_on(Ipv4Addr::LOCALHOST);
    let start = Instant::now();
    receiver.set_timeout(Some(Duration::from_millis(30)));
    assert!(receiver.receive().unwrap().is_none());
    assert!(start.elapsed() >= Duration::from_millis(30));
    receiver.for_each(&AtomicBool::new(false), |_| ControlFlow::Continue(())).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(60));

    receiver.set_timeout(None);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiving = scope.spawn(|| receiver.for_each(&stop, |_| ControlFlow::Continue(())));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!receiving.is_finished());
        stop.store(true, Ordering::Relaxed);
        receiving.join().unwrap().unwrap();
    });
}

#[test]
fn a_break_keeps_the_rest_of_the_batch() {
    let (mut dispatcher, mut receiver) = pair();
    for entropy in 0..10 {
        dispatcher.dispatch(Destinations::Experts(&[1]), entropy, b"x").unwrap();
    }
    dispatcher.flush().unwrap();
    let go_on = AtomicBool::new(false);
    let mut seen = Vec::new();
    let mut take = |most: usize| {
        let mut taken = 0;
        receiver
            .for_each(&go_on, |delivery| {
                seen.push(delivery.header.entropy());
                taken += 1;
                if taken == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .unwrap();
    };
    take(3);
    take(7);
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
}

#[test]
fn what_the_kernel_drops_is_seen() {
    let source = Source::Udp { bind: (Ipv4Addr::LOCALHOST, 0).into(), share: false };
    let settings = ReceiverSettings { buffer: 64 << 10, batch: 64 };
    let mut receiver = Receiver::open(&source, &settings).unwrap();
    receiver.set_timeout(Some(Duration::ZERO));
    assert_eq!((receiver.dropped().unwrap(), receiver.buffer().unwrap()), (0, 128 << 10));
    let mut dispatcher = dispatcher(receiver.local_address().unwrap(), BitStringLength::B256);
    for _ in 0..500 {
        dispatcher.dispatch(Destinations::Experts(&[1]), 0, &[0; 2048]).unwrap();
    }
    dispatcher.flush().unwrap();
    while receiver.receive().unwrap().is_some() {}
    let dropped = receiver.dropped().unwrap();
    assert!(dropped > 300, "{dropped}");
    assert_eq!(receiver.counts().delivered + u64::from(dropped), 500);
}

#[test]
fn both_ends_may_move_to_another_thread() {
    fn movable<T: Send>() {}
    movable::<Dispatcher>();
    movable::<Receiver>();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever comes in is either handed out or counted.
    #[test]
    fn every_datagram_is_accounted_for(packets in prop::collection::vec(
        prop::collection::vec(any::<u8>(), 0..200), 1..20)) {
        let (mut receiver, at) = receiver_on(Ipv4Addr::LOCALHOST);
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        for packet in &packets {
            sender.send_to(packet, at).unwrap();
        }
        receiver.set_timeout(Some(Duration::ZERO));
        while receiver.receive().unwrap().is_some() {}
        let counts = receiver.counts();
        prop_assert_eq!(counts.delivered + counts.skipped(), packets.len() as u64);
    }
}
