//! What an attacker found: each test says what should hold, and fails where it does not.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::UdpSocket,
    os::fd::AsRawFd as _,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::maps::Array;
use replicator_common::{
    bier::BitStringLength::B64,
    neighbor::Encapsulation,
    outcome::Outcome::{Planned, Replicated, Sent, SourceNotAllowed},
};
use replicator_tests::{
    bier::{Carrier, Frame},
    rig::{OWN_IPV4, Rig, to},
    wire::run,
};
use replicator_user::{
    bift::Destination::Local,
    client::{Receiver, ReceiverSettings, Source},
    datapath::Mode,
};

const TABLE: u32 = 0x00010;

fn place(rig: &mut Rig, id: u32) -> u64 {
    let map = rig.datapath.ebpf().map("BIFTS").unwrap();
    let bifts: Array<_, u64> = map.try_into().unwrap();
    bifts.get(&id, 0).unwrap()
}

/// A place rests from when its table goes out of force, not from when the installation of the next one began.
#[test]
fn a_place_rests_although_the_installation_took_long() {
    let mut rig = Rig::new().unwrap();
    let devices: Vec<_> =
        ["first", "second", "third"].iter().map(|name| rig.wire.pair(name).unwrap()).collect();
    let (local, host) = rig.wire.pair("local").unwrap();
    rig.set_local(&local, host.device.mac).unwrap();
    for node in 0..240 {
        rig.neighbor(node, &devices[node % 3].0, Encapsulation::Ipv4, &[]).unwrap();
    }
    rig.table(TABLE, B64, vec![vec![to(0)]]).unwrap();
    let old = place(&mut rig, TABLE);
    // The first table on three devices: many fan-out maps have to be made.
    let length = replicator_common::bier::BitStringLength::B256;
    let before = Instant::now();
    let rows = (0..240).map(|node| vec![to(node)]).chain([vec![Local]]);
    rig.table(TABLE, length, rows.collect()).unwrap();
    let took = before.elapsed();
    // A microsecond ago frames were resolved with the old place.
    rig.table(TABLE + 1, B64, vec![vec![to(1)]]).unwrap();
    let new = place(&mut rig, TABLE + 1);
    eprintln!("installation took {took:?}; old place {old:#x}, next table's place {new:#x}");
    assert_ne!(old, new, "the place of a table that was in force a moment ago is written over");
}

/// What the host forwards for others has been through a router: it must not get in where only this host's programs may.
#[test]
fn a_forwarded_packet_is_not_replicated_at_the_origin() {
    for encapsulation in [Encapsulation::Ipv4, Encapsulation::Ipv6] {
        let mut rig = Rig::new().unwrap();
        let (origin, sender) = rig.wire.pair("origin").unwrap();
        rig.attach(&origin, Mode::Native).unwrap();
        rig.datapath.set_origin(origin.ifindex);
        rig.neighbor(0, &origin, encapsulation, &[]).unwrap();
        rig.table(TABLE, B64, vec![vec![to(0)]]).unwrap();
        let own = rig.frame(&origin, encapsulation, TABLE, B64, &[1]);
        let mut forwarded = own.clone();
        match &mut forwarded.carrier {
            Carrier::Ipv4(_, _, _, ttl) => *ttl = 254,
            Carrier::Ipv6(_, _, _, hop_limit) => *hop_limit = 254,
            Carrier::Ethernet => {}
        }
        sender.send(&forwarded.to_bytes()).unwrap();
        sender.send(&own.to_bytes()).unwrap();
        assert_eq!(sender.receive(1).unwrap().len(), 1, "{encapsulation:?}");
        assert_eq!((rig.count(SourceNotAllowed), rig.count(Replicated)), (1, 1), "{encapsulation:?}");
    }
}

/// What a switch floods is for somebody else, whatever the IP address.
#[test]
fn a_frame_for_another_mac_is_not_replicated() {
    let mut rig = Rig::new().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    rig.attach(&uplink, Mode::Native).unwrap();
    rig.neighbor(0, &uplink, Encapsulation::Ipv4, &[]).unwrap();
    rig.table(TABLE, B64, vec![vec![to(0)]]).unwrap();
    let mut frame = rig.frame(&uplink, Encapsulation::Ipv4, TABLE, B64, &[1]);
    for destination in [[2, 9, 9, 9, 9, 9], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
        frame.destination = destination;
        port.send(&frame.to_bytes()).unwrap();
    }
    port.receive(0).unwrap();
    assert_eq!(rig.count(Replicated), 0, "{:?} {OWN_IPV4:?}", rig.counts());
}

/// Garbage does not keep `receive` beyond its timeout.
#[test]
fn a_flood_of_garbage_does_not_hold_up_receive() {
    let source = Source::Udp { bind: "127.0.0.1:0".parse().unwrap(), share: false };
    let mut receiver =
        Receiver::open(&source, &ReceiverSettings { batch: 1, ..ReceiverSettings::default() }).unwrap();
    receiver.set_timeout(Some(Duration::from_millis(50)));
    let address = receiver.local_address().unwrap();
    let stop = AtomicBool::new(false);
    let mut worst = Duration::ZERO;
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                socket.connect(address).unwrap();
                let segment = 1_i32;
                // SAFETY: the option's value is one integer.
                unsafe {
                    libc::setsockopt(
                        socket.as_raw_fd(),
                        libc::SOL_UDP,
                        libc::UDP_SEGMENT,
                        (&raw const segment).cast(),
                        4,
                    )
                };
                let began = Instant::now();
                while !stop.load(Ordering::Relaxed) && began.elapsed() < Duration::from_secs(6) {
                    let _ = socket.send(&[0; 64]);
                }
            });
        }
        thread::sleep(Duration::from_millis(100));
        for _ in 0..3 {
            let began = Instant::now();
            assert!(receiver.receive().unwrap().is_none());
            worst = worst.max(began.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("longest receive with a timeout of 50 ms: {worst:?}, {:?}", receiver.counts());
    assert!(worst < Duration::from_secs(1), "{worst:?}");
}

/// 70,000 frames on one CPU, every third with a copy that never runs: no copy is of another frame.
#[test]
fn a_wrap_of_sequences_mixes_nothing_up() {
    let mut rig = Rig::new().unwrap();
    rig.wire.stay_on_cpu().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    let (other, dead) = rig.wire.pair("other").unwrap();
    rig.attach(&uplink, Mode::Native).unwrap();
    rig.neighbor(0, &uplink, Encapsulation::Ipv4, &[]).unwrap();
    rig.neighbor(1, &other, Encapsulation::Ipv4, &[]).unwrap();
    rig.neighbor(2, &uplink, Encapsulation::Ipv4, &[]).unwrap();
    rig.table(TABLE, B64, vec![vec![to(0)], vec![to(1)], vec![to(2)]]).unwrap();
    run(&["ip", "link", "set", &dead.device.name, "down"]).unwrap();
    let sets: [&[usize]; 4] = [&[1, 2], &[2], &[1, 3], &[1, 2, 3]];
    let mut frames = 0_u32;
    while frames < 70_000 {
        let mut expected = Vec::new();
        for _ in 0..50 {
            let set = sets[frames as usize % 4];
            let mut frame = rig.frame(&uplink, Encapsulation::Ipv4, TABLE, B64, set);
            frame.payload = frames.to_be_bytes().to_vec();
            port.send(&frame.to_bytes()).unwrap();
            for bit in set.iter().copied().filter(|bit| *bit != 2) {
                expected.push(rig.copy(&frame, bit - 1, vec![bit]));
            }
            frames += 1;
        }
        let mut copies = Vec::new();
        let began = Instant::now();
        while copies.len() < expected.len() && began.elapsed() < Duration::from_secs(2) {
            if let Some(copy) = port.take().unwrap() {
                copies.push(Frame::parse(&copy).unwrap());
            }
        }
        let key = |frame: &Frame| (frame.payload.clone(), frame.destination);
        copies.sort_by_key(key);
        expected.sort_by_key(key);
        assert!(copies == expected, "around frame {frames}: {} of {}", copies.len(), expected.len());
    }
    eprintln!("{:?} {}", rig.counts(), rig.count(Planned) - rig.count(Sent));
}
