//! What is not ours: a million frames of every kind and length meet the programs and reach the stack byte for byte.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use replicator_common::{bier::BitStringLength::B64, neighbor::Encapsulation, outcome::Outcome::Passed};
use replicator_tests::{
    bier::{Carrier, Frame},
    random::Random,
    rig::{OWN_IPV4, OWN_IPV6, Rig, SENDER_IPV4, SENDER_IPV6, SENDER_MAC, to},
    wire::{Port, run},
};
use replicator_user::datapath::Mode;

const FRAMES: u64 = 1_000_000;

/// Frames on their way at once: rings and sockets hold more.
const BATCH: u64 = 64;

/// Mostly short, sometimes as long as an Ethernet frame, a page or several.
fn length(random: &mut Random) -> usize {
    let most = match random.below(100) {
        0 => 8_900,
        1..=4 => 3_500,
        5..=14 => 1_500,
        _ => 120,
    };
    random.below(most)
}

/// Makes foreign frames; `ours` are such that are not, for each encapsulation, to be spoiled.
struct Foreign {
    random: Random,
    ours: [Vec<u8>; 3],
    own_mac: [u8; 6],
}

impl Foreign {
    /// MAC addresses: to us, to all, to anybody, from the allowed sender or from anybody.
    fn macs(&mut self) -> Vec<u8> {
        let anybody = self.random.word().to_ne_bytes();
        let to = self.random.one_of(&[self.own_mac, [0xff; 6], *anybody.first_chunk().unwrap()]);
        let from = self.random.one_of(&[SENDER_MAC, [2, anybody[7], 0, 1, 2, 3]]);
        [to, from].concat()
    }

    /// Up to three VLAN tags, and what they are for.
    fn tags(&mut self) -> Vec<u8> {
        let tags = self.random.below(12).saturating_sub(8);
        let mut bytes = Vec::new();
        for _ in 0..tags {
            bytes.extend(self.random.one_of(&[[0x81, 0x00], [0x88, 0xa8]]));
            bytes.extend(self.random.bytes(2));
        }
        bytes
    }

    fn any(&mut self, ethertype: [u8; 2]) -> Vec<u8> {
        // The kernel itself drops a tagged frame that ends within two bytes of its ethertype (`skb_vlan_untag`).
        let length = length(&mut self.random) + 2;
        [self.macs(), self.tags(), ethertype.to_vec(), self.random.bytes(length)].concat()
    }

    /// An IPv4 packet of this protocol, with this header behind its own.
    fn ipv4(&mut self, protocol: u8, destination: [u8; 4], fragment: [u8; 2], behind: &[u8]) -> Vec<u8> {
        let length = length(&mut self.random);
        let total = (20 + behind.len() + length) as u16;
        let source = self.random.one_of(&[SENDER_IPV4, [192, 0, 2, 1], [0, 0, 0, 0]]);
        let [a, b] = total.to_be_bytes();
        let [c, d] = fragment;
        let ip = [0x45, 0, a, b, 1, 2, c, d, 64, protocol, 0, 0];
        let macs = [self.macs(), self.tags(), vec![0x08, 0x00]].concat();
        [&macs[..], &ip, &source, &destination, behind, &self.random.bytes(length)].concat()
    }

    /// An IPv6 packet, likewise.
    fn ipv6(&mut self, next_header: u8, destination: [u8; 16], behind: &[u8]) -> Vec<u8> {
        let length = length(&mut self.random);
        let [a, b] = ((behind.len() + length) as u16).to_be_bytes();
        let ip = [0x60, 0, 0, 0, a, b, next_header, 64];
        let macs = [self.macs(), self.tags(), vec![0x86, 0xdd]].concat();
        [&macs[..], &ip, &SENDER_IPV6, &destination, behind, &self.random.bytes(length)].concat()
    }

    fn next(&mut self) -> Vec<u8> {
        // Ports 40000 and 8138, the other way round, and near misses.
        let bier = [0x9c, 0x40, 0x1f, 0xca, 0, 32, 0, 0];
        let ports =
            self.random.one_of(&[[0x1f, 0xca, 0x9c, 0x40], [0, 53, 0x1f, 0xcb], [0x1f, 0xca, 0x1f, 0xc9]]);
        let other_udp = [&ports[..], &[0, 32, 0, 0]].concat();
        let other_ipv4 = self.random.one_of(&[[10, 0, 0, 2], [224, 0, 0, 251], [255; 4], SENDER_IPV4]);
        let mut other_ipv6 = OWN_IPV6;
        other_ipv6[self.random.below(16)] ^= 1 << self.random.below(8);
        match self.random.below(20) {
            0 => {
                let ethertype = self.random.bytes(2);
                match ethertype[..] {
                    [0x81, 0x00] | [0x88, 0xa8] | [0xab, 0x37] => self.any([0x08, 0x06]),
                    [a, b] => self.any([a, b]),
                    _ => unreachable!("two bytes"),
                }
            }
            1 => self.any([0x08, 0x06]),
            // IPv4, IPv6 of random bytes, MPLS, PPPoE, LLDP, an 802.3 length.
            2 => {
                let ethertype = self.random.one_of(&[
                    [8, 0],
                    [0x86, 0xdd],
                    [0x88, 0x47],
                    [0x88, 0x64],
                    [0x88, 0xcc],
                    [0, 60],
                ]);
                self.any(ethertype)
            }
            3 => self.ipv4(6, OWN_IPV4, [0x40, 0], &[]),
            4 => {
                let protocol = self.random.one_of(&[1, 2, 6, 47, 50, 132, 255]);
                self.ipv4(protocol, OWN_IPV4, [0, 0], &bier)
            }
            5..=7 => self.ipv4(17, OWN_IPV4, [0, 0], &other_udp),
            8..=9 => self.ipv4(17, other_ipv4, [0, 0], &bier),
            10 => self.ipv4(17, other_ipv4, [0x20, 0], &bier),
            // Fragments but the first.
            11 => {
                let fragment = self.random.one_of(&[[0x20, 1], [0, 2], [0x3f, 0xff]]);
                self.ipv4(17, OWN_IPV4, fragment, &bier)
            }
            12 => {
                let next_header = self.random.one_of(&[0, 6, 43, 58, 59, 60, 135]);
                self.ipv6(next_header, OWN_IPV6, &bier)
            }
            13..=14 => self.ipv6(17, OWN_IPV6, &other_udp),
            15 => self.ipv6(17, other_ipv6, &bier),
            16 => self.ipv6(44, OWN_IPV6, &[&[17, 0, 0, 9, 0, 0, 0, 1], &bier[..]].concat()),
            // BIER, but to another MAC.
            17 => {
                let kind = self.random.below(3);
                let mut frame = self.ours[kind].clone();
                frame[self.random.below(6)] ^= 1 << self.random.below(8);
                frame
            }
            // Ours, but it ends before that can be told.
            18 => {
                let kind = self.random.below(2);
                let end = [14 + 20 + 8, 14 + 40 + 8][kind];
                self.ours[kind][..14 + self.random.below(end - 14)].to_vec()
            }
            // Ours, but another IP version, or too short a header.
            _ => {
                let mut frame = self.ours[0].clone();
                frame[14] = self.random.one_of(&[0x05, 0x55, 0x65, 0xf5, 0x40, 0x41, 0x44]);
                frame
            }
        }
    }
}

#[test]
fn a_million_frames_untouched() {
    let mut rig = Rig::new().unwrap();
    // One CPU keeps the order of frames.
    rig.wire.stay_on_cpu().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    for device in [&uplink, &port.device] {
        run(&["ip", "link", "set", "dev", &device.name, "mtu", "9000"]).unwrap();
    }
    rig.attach(&uplink, Mode::Native).unwrap();
    // The kernel switches GRO on with XDP; it would make one frame of several.
    run(&["ethtool", "-K", &uplink.name, "gro", "off"]).unwrap();
    let stack = Port::open(uplink.clone()).unwrap();
    rig.neighbor(0, &uplink, Encapsulation::Ipv4, &[]).unwrap();
    rig.table(0x10, B64, vec![vec![to(0)]]).unwrap();

    let ours = [Encapsulation::Ipv4, Encapsulation::Ipv6, Encapsulation::Ethernet]
        .map(|encapsulation| rig.frame(&uplink, encapsulation, 0x10, B64, &[1]));
    assert!(matches!(ours[0], Frame { carrier: Carrier::Ipv4(..), .. }));
    let ours = ours.map(|frame| frame.to_bytes());
    let mut foreign = Foreign { random: Random(0x5eed), ours, own_mac: uplink.mac };
    let start = Instant::now();
    let mut bytes = 0;
    for _ in 0..FRAMES / BATCH {
        let batch: Vec<_> = (0..BATCH).map(|_| foreign.next()).collect();
        for frame in &batch {
            port.send(frame).unwrap();
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        for frame in &batch {
            let received = loop {
                match stack.take().unwrap() {
                    Some(received) => break received,
                    None => assert!(Instant::now() < deadline, "lost {frame:02x?}"),
                }
            };
            assert!(received == *frame, "{frame:02x?} became {received:02x?}");
            bytes += frame.len();
        }
    }
    println!("{FRAMES} frames, {} MB: {:.1?}", bytes >> 20, start.elapsed());
    assert!(stack.take().unwrap().is_none());
    assert_eq!(port.receive(0).unwrap().len(), 0);
    let counts: Vec<_> = rig.counts().into_iter().collect();
    assert_eq!(counts, [(Passed.label(), FRAMES)]);
}
