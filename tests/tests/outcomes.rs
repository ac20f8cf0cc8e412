//! Every outcome is provoked and its counter read: it moves as far as it should, and no other counter moves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aya::maps::Array;
use etherparse::Ipv4Header;
use replicator_common::{
    bier::BitStringLength,
    limits::{MAX_FRAME_BYTES, SLOTS},
    neighbor::Encapsulation,
    outcome::Outcome::{self, BitStringLength as WrongLength, *},
    table::Table,
};
use replicator_tests::{
    bier::{Carrier, Frame},
    player::Player,
    rig::{OWN_IPV4, OWN_IPV6, Rig, SENDER_IPV4, SENDER_IPV6, SENDER_MAC, to},
    wire::{Device, Port, run},
};
use replicator_user::{bift::Destination::Local, datapath::Mode};

/// The table that frames go to: bit 1 at node 0, bit 2 at node 1, bit 3 here, bit 4 at node 2, bit 5 at node 3.
const TABLE: u32 = 0x00010;

/// Bytes before the payload in a frame over IPv4 to a table of 64 bits.
const IPV4_HEADERS: usize = 14 + 20 + 8 + 12 + 8;

/// A host with an uplink, nodes behind it, and a way to its own stack.
struct Lab {
    rig: Rig,
    uplink: Device,
    /// The other end of the uplink.
    port: Port,
    /// What the uplink hands to the stack.
    stack: Port,
    /// The stack's end of the local pair.
    host: Port,
}

impl Lab {
    fn new() -> Self {
        let mut rig = Rig::new().unwrap();
        rig.wire.stay_on_cpu().unwrap();
        let (uplink, port) = rig.wire.pair("uplink").unwrap();
        let (local, host) = rig.wire.pair("local").unwrap();
        let stack = Port::open(uplink.clone()).unwrap();
        rig.attach(&uplink, Mode::Native).unwrap();
        rig.set_local(&local, host.device.mac).unwrap();
        let mut lab = Self { rig, uplink, port, stack, host };
        lab.nodes(Encapsulation::Ipv4);
        let rows = vec![vec![to(0)], vec![to(1)], vec![Local], vec![to(2)], vec![to(3)]];
        lab.rig.table(TABLE, BitStringLength::B64, rows).unwrap();
        lab
    }

    /// All nodes take this encapsulation.
    fn nodes(&mut self, encapsulation: Encapsulation) {
        for node in 0..4 {
            self.rig.neighbor(node, &self.uplink, encapsulation, &[]).unwrap();
        }
    }

    /// A frame over IPv4 with these bits.
    fn ipv4(&self, bits: &[usize]) -> Frame {
        self.rig.frame(&self.uplink, Encapsulation::Ipv4, TABLE, BitStringLength::B64, bits)
    }

    /// A frame over IPv6 with these bits.
    fn ipv6(&self, bits: &[usize]) -> Frame {
        self.rig.frame(&self.uplink, Encapsulation::Ipv6, TABLE, BitStringLength::B64, bits)
    }

    /// A straight Ethernet frame with these bits.
    fn ethernet(&self, bits: &[usize]) -> Frame {
        self.rig.frame(&self.uplink, Encapsulation::Ethernet, TABLE, BitStringLength::B64, bits)
    }

    /// Receives a frame: exactly these outcomes are counted, so often; the stack gets the frame, byte for byte, where it
    /// passes and else nothing; and as many copies leave as were sent. Returns these, remote ones first.
    fn expect(&self, frame: &[u8], outcomes: &[(Outcome, u64)]) -> Vec<Frame> {
        let before = self.rig.counts();
        self.port.send(frame).unwrap();
        self.settle(&before, outcomes);
        let count = |outcome| outcomes.iter().find(|(other, _)| *other == outcome).map_or(0, |(_, n)| *n);
        let passed = count(Passed) + count(Delivered);
        assert_eq!(self.stack.receive(passed as usize).unwrap(), vec![frame; passed as usize]);
        self.copies(count(Sent))
    }

    /// Exactly these outcomes are counted since.
    fn settle(&self, before: &BTreeMap<&str, u64>, outcomes: &[(Outcome, u64)]) {
        let expected: BTreeMap<_, _> = outcomes.iter().map(|(outcome, n)| (outcome.label(), *n)).collect();
        let deadline = Instant::now() + Duration::from_secs(2);
        loop {
            let mut moved = self.rig.counts();
            moved.iter_mut().for_each(|(outcome, n)| *n -= before.get(outcome).unwrap_or(&0));
            moved.retain(|_, n| *n > 0);
            if moved == expected {
                return;
            }
            assert!(Instant::now() < deadline, "{moved:?} instead of {expected:?}");
        }
    }

    /// The copies that left, and no more than so many.
    fn copies(&self, sent: u64) -> Vec<Frame> {
        let remote = self.port.receive(0).unwrap();
        let local = self.host.receive(0).unwrap();
        assert_eq!(remote.len() + local.len(), sent as usize);
        remote.iter().chain(&local).map(|copy| Frame::parse(copy).unwrap()).collect()
    }

    /// Changes the table's entry as no one should.
    fn damage(&mut self, change: impl FnOnce(&mut Table)) {
        let map = self.rig.datapath.ebpf().map_mut("TABLES").unwrap();
        let mut tables = Array::<_, Table>::try_from(map).unwrap();
        let mut table = tables.get(&0, 0).unwrap();
        change(&mut table);
        tables.set(0, table, 0).unwrap();
    }

    /// A device with frames in it that are longer than usual.
    fn mtu(&self, bytes: usize) {
        for device in [&self.uplink, &self.port.device] {
            run(&["ip", "link", "set", "dev", &device.name, "mtu", &bytes.to_string()]).unwrap();
        }
    }
}

/// Makes a test of each case, that fails where the outcome did not occur. This compiles only while every outcome has
/// a case.
macro_rules! every_outcome {
    ($($outcome:ident: $case:ident,)*) => {
        $(
            #[test]
            fn $case() {
                let mut lab = Lab::new();
                cases::$case(&mut lab);
                assert!(lab.rig.count($outcome) > 0, "{:?} was not provoked", $outcome);
            }
        )*
        const _: fn(Outcome) = |outcome| match outcome { $($outcome => (),)* };
    };
}

every_outcome! {
    Passed: passed,
    Delivered: delivered,
    Replicated: replicated,
    Malformed: malformed,
    UnknownVersion: unknown_version,
    UnknownBift: unknown_bift,
    WrongLength: bitstring_length,
    EmptyBitString: empty_bitstring,
    NoNeighbor: no_neighbor,
    TtlExpired: ttl_expired,
    SourceNotAllowed: source_not_allowed,
    FrameTooLong: frame_too_long,
    MultiBuffer: multi_buffer,
    IpFragment: ip_fragment,
    IpOptions: ip_options,
    ChecksumMissing: checksum_missing,
    NoFanOut: no_fan_out,
    NoSlot: no_slot,
    Planned: planned,
    Sent: sent,
    Surplus: surplus,
    WrongCookie: wrong_cookie,
    SlotOverrun: slot_overrun,
    NeverRan: never_ran,
    Unresolved: unresolved,
    OtherFamily: other_family,
    OtherTagCount: other_tag_count,
    CopyMalformed: copy_malformed,
    BitWithoutRow: bit_without_row,
    BitTtlExpired: bit_ttl_expired,
}

/// One function for each outcome.
mod cases {
    use super::*;

    pub(super) fn passed(lab: &mut Lab) {
        let ours = lab.ipv4(&[1, 2]);
        let elsewhere = |carrier| Frame { carrier, ..ours.clone() }.to_bytes();
        let mut tcp = ours.to_bytes();
        tcp[14 + 9] = 6;
        let mut second_fragment = ours.to_bytes();
        second_fragment[14 + 7] = 1;
        let mut version_5 = ours.to_bytes();
        version_5[14] = 0x55;
        let mut short_header = ours.to_bytes();
        short_header[14] = 0x44;
        let mut three_tags = ours.clone();
        three_tags.tags = vec![(0x88a8, 1), (0x8100, 2), (0x8100, 3)];
        let mut hop_by_hop = lab.ipv6(&[1]).to_bytes();
        hop_by_hop[14 + 6] = 0;
        let mut second_fragment6 = lab.ipv6(&[1]).to_bytes();
        second_fragment6[14 + 6] = 44;
        second_fragment6[14 + 40..14 + 44].copy_from_slice(&[17, 0, 0, 8]);
        let arp = [&[0xff; 6], &SENDER_MAC, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1][..], &[0; 20]].concat();
        for frame in [
            arp,
            tcp,
            second_fragment,
            version_5,
            short_header,
            three_tags.to_bytes(),
            hop_by_hop,
            second_fragment6,
            Frame { ports: (8138, 8139), ..ours.clone() }.to_bytes(),
            elsewhere(Carrier::Ipv4(SENDER_IPV4, [10, 0, 0, 2], 0, 64)),
            elsewhere(Carrier::Ipv4(SENDER_IPV4, SENDER_IPV4, 0, 64)),
            elsewhere(Carrier::Ipv6(SENDER_IPV6, SENDER_IPV6, 0, 64)),
            Frame { destination: SENDER_MAC, ..lab.ethernet(&[1]) }.to_bytes(),
            // To us by IP address, but another's by MAC.
            Frame { destination: SENDER_MAC, ..ours.clone() }.to_bytes(),
            Frame { destination: [0xff; 6], ..lab.ipv6(&[1, 3]) }.to_bytes(),
            // To us by MAC does not make an IP packet ours, nor do the addresses of another family.
            elsewhere(Carrier::Ipv4([10, 0, 0, 253], [10, 0, 0, 2], 0, 64)),
            // Ends before its port, before its IP header does, and right behind the ethertype.
            ours.to_bytes()[..14 + 20 + 3].to_vec(),
            ours.to_bytes()[..14 + 19].to_vec(),
            ours.to_bytes()[..14].to_vec(),
            lab.ipv6(&[1]).to_bytes()[..14 + 39].to_vec(),
        ] {
            assert_eq!(lab.expect(&frame, &[(Passed, 1)]), []);
        }
    }

    pub(super) fn delivered(lab: &mut Lab) {
        for mut frame in [lab.ipv4(&[3]), lab.ipv6(&[3]), lab.ethernet(&[3])] {
            assert_eq!(lab.expect(&frame.to_bytes(), &[(Delivered, 1)]), []);
            frame.tags = vec![(0x88a8, 1), (0x8100, 7 << 13 | 2)];
            assert_eq!(lab.expect(&frame.to_bytes(), &[(Delivered, 1)]), []);
            // The last hop needs no TTL.
            frame.header[3] = 1;
            assert_eq!(lab.expect(&frame.to_bytes(), &[(Delivered, 1)]), []);
        }
    }

    pub(super) fn replicated(lab: &mut Lab) {
        for (encapsulation, frame) in [
            (Encapsulation::Ipv4, lab.ipv4(&[1, 2, 3])),
            (Encapsulation::Ipv6, lab.ipv6(&[1, 2, 3])),
            (Encapsulation::Ethernet, lab.ethernet(&[1, 2, 3])),
        ] {
            lab.nodes(encapsulation);
            let mut copies = lab.expect(&frame.to_bytes(), &[(Replicated, 1), (Planned, 3), (Sent, 3)]);
            copies.sort_by_key(|copy| copy.bits.clone());
            let expected = [
                lab.rig.copy(&frame, 0, vec![1]),
                lab.rig.copy(&frame, 1, vec![2]),
                lab.rig.local_copy(&frame, &[3]),
            ];
            assert_eq!(copies, expected);
        }
    }

    pub(super) fn malformed(lab: &mut Lab) {
        let ours = lab.ipv4(&[1, 2]).to_bytes();
        let with = |at: usize, length: usize| {
            let mut frame = ours.clone();
            frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
            frame
        };
        let (ip, udp) = (ours.len() - 14, ours.len() - 34);
        // Both lengths at once: they agree with each other, not with the frame or the header.
        let with_both = |ip: usize| {
            let mut frame = with(16, ip);
            frame[38..40].copy_from_slice(&(ip as u16).wrapping_sub(20).to_be_bytes());
            frame
        };
        let (ipv6, ethernet) = (lab.ipv6(&[1]).to_bytes(), lab.ethernet(&[1]).to_bytes());
        let mut ipv6_payload = ipv6.clone();
        ipv6_payload[19] += 1;
        for frame in [
            with(38, udp - 1),
            with(38, udp + 1),
            with(38, 0),
            with(16, ip - 1),
            with(16, ip + 1),
            with(16, 19),
            with(16, 0),
            with_both(ip + 1),
            with_both(65_535),
            // The BitString ends behind the datagram, though not behind the frame.
            with_both(20 + 8 + 12 + 7),
            with_both(20 + 8 + 11),
            with_both(20 + 7),
            // The frame ends within BitString, BIER header, UDP header.
            ours[..IPV4_HEADERS - 1].to_vec(),
            ours[..14 + 20 + 8 + 11].to_vec(),
            ours[..14 + 20 + 8].to_vec(),
            ipv6_payload,
            ipv6[..ipv6.len() - 1].to_vec(),
            ethernet[..14 + 12 + 7].to_vec(),
            ethernet[..14 + 11].to_vec(),
            ethernet[..14].to_vec(),
        ] {
            assert_eq!(lab.expect(&frame, &[(Malformed, 1)]), [], "{frame:02x?}");
        }
        // The shortest that is whole.
        let whole = Frame { payload: vec![], ..lab.ipv4(&[1]) };
        assert_eq!(
            lab.expect(&whole.to_bytes(), &[(Replicated, 1), (Planned, 1), (Sent, 1)]),
            [lab.rig.copy(&whole, 0, vec![1])]
        );
    }

    pub(super) fn unknown_version(lab: &mut Lab) {
        for version in [1, 15] {
            for mut frame in [lab.ipv4(&[1]), lab.ipv6(&[3]), lab.ethernet(&[1])] {
                frame.header[4] |= version;
                assert_eq!(lab.expect(&frame.to_bytes(), &[(UnknownVersion, 1)]), []);
            }
        }
    }

    pub(super) fn unknown_bift(lab: &mut Lab) {
        for id in [0, TABLE - 1, TABLE + 1, TABLE << 12, TABLE | 1 << 19, (1 << 20) - 1] {
            let frame = lab.rig.frame(&lab.uplink, Encapsulation::Ipv4, id, BitStringLength::B64, &[1]);
            assert_eq!(lab.expect(&frame.to_bytes(), &[(UnknownBift, 1)]), [], "{id:#x}");
        }
        lab.rig.datapath.remove(replicator_common::bier::BiftId::new(TABLE).unwrap());
        assert_eq!(lab.expect(&lab.ipv4(&[1]).to_bytes(), &[(UnknownBift, 1)]), []);
    }

    pub(super) fn bitstring_length(lab: &mut Lab) {
        // Code 0 is what drafts before the RFC gave to 64 bits.
        for code in [0, 2, 5, 6, 15] {
            let mut frame = lab.ipv4(&[1]);
            frame.header[5] = code << 4;
            assert_eq!(lab.expect(&frame.to_bytes(), &[(WrongLength, 1)]), [], "code {code}");
        }
    }

    pub(super) fn empty_bitstring(lab: &mut Lab) {
        for frame in [lab.ipv4(&[]), lab.ipv6(&[]), lab.ethernet(&[])] {
            assert_eq!(lab.expect(&frame.to_bytes(), &[(EmptyBitString, 1)]), []);
        }
    }

    pub(super) fn no_neighbor(lab: &mut Lab) {
        let frame = lab.ipv4(&[6, 64]);
        assert_eq!(lab.expect(&frame.to_bytes(), &[(NoNeighbor, 1), (BitWithoutRow, 2)]), []);
    }

    pub(super) fn ttl_expired(lab: &mut Lab) {
        for (ttl, bits) in [(0, &[1, 2][..]), (0, &[3]), (0, &[1, 3]), (1, &[1]), (1, &[1, 2, 4])] {
            for mut frame in [lab.ipv4(bits), lab.ipv6(bits), lab.ethernet(bits)] {
                frame.header[3] = ttl;
                assert_eq!(lab.expect(&frame.to_bytes(), &[(TtlExpired, 1)]), [], "TTL {ttl}, {bits:?}");
            }
        }
    }

    pub(super) fn source_not_allowed(lab: &mut Lab) {
        let other_ipv6 = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfd];
        for frame in [
            Frame { carrier: Carrier::Ipv4([10, 0, 0, 253], OWN_IPV4, 0, 64), ..lab.ipv4(&[1]) },
            Frame { carrier: Carrier::Ipv6(other_ipv6, OWN_IPV6, 0, 64), ..lab.ipv6(&[1]) },
            Frame { source: [2, 0, 0, 0, 0, 0xfd], ..lab.ethernet(&[1]) },
            // This host's own address is not a source's.
            Frame { carrier: Carrier::Ipv4(OWN_IPV4, OWN_IPV4, 0, 64), ..lab.ipv4(&[1]) },
            // Not even for what ends here.
            Frame { carrier: Carrier::Ipv4([10, 0, 0, 253], OWN_IPV4, 0, 64), ..lab.ipv4(&[3]) },
        ] {
            assert_eq!(lab.expect(&frame.to_bytes(), &[(SourceNotAllowed, 1)]), []);
        }
        forwarded(lab);
        // A prefix lets in what it covers, for its own family.
        let prefix = replicator_common::neighbor::SourcePrefix {
            kind: (Encapsulation::Ipv4 as u32).to_be_bytes(),
            address: replicator_common::neighbor::Endpoint::ipv4([10, 0, 0, 252]).address,
        };
        lab.rig.datapath.admission().set_prefixes(vec![(prefix, 31)]).unwrap();
        for (last, outcomes) in [
            (251, &[(SourceNotAllowed, 1)][..]),
            (252, &[(Replicated, 1), (Planned, 1), (Sent, 1)]),
            (253, &[(Replicated, 1), (Planned, 1), (Sent, 1)]),
        ] {
            let frame = Frame { carrier: Carrier::Ipv4([10, 0, 0, last], OWN_IPV4, 0, 64), ..lab.ipv4(&[1]) };
            lab.expect(&frame.to_bytes(), outcomes);
        }
        let ipv6 = Frame { carrier: Carrier::Ipv6([0; 16], OWN_IPV6, 0, 64), ..lab.ipv6(&[1]) };
        lab.expect(&ipv6.to_bytes(), &[(SourceNotAllowed, 1)]);
        lab.rig.datapath.admission().set_prefixes(vec![]).unwrap();
        let frame = Frame { carrier: Carrier::Ipv4([10, 0, 0, 253], OWN_IPV4, 0, 64), ..lab.ipv4(&[1]) };
        lab.expect(&frame.to_bytes(), &[(SourceNotAllowed, 1)]);
    }

    /// What this host forwards into the origin veth has lost a hop: nobody else sends by way of it.
    fn forwarded(lab: &mut Lab) {
        lab.rig.datapath.set_origin(lab.uplink.ifindex);
        for hop_limit in [0, 1, 64, 254] {
            for frame in [
                Frame { carrier: Carrier::Ipv4(OWN_IPV4, OWN_IPV4, 0, hop_limit), ..lab.ipv4(&[1]) },
                Frame { carrier: Carrier::Ipv6(SENDER_IPV6, OWN_IPV6, 0, hop_limit), ..lab.ipv6(&[3]) },
            ] {
                assert_eq!(lab.expect(&frame.to_bytes(), &[(SourceNotAllowed, 1)]), []);
            }
        }
        let frame = Frame { carrier: Carrier::Ipv4([127, 0, 0, 1], [1, 2, 3, 4], 0, 255), ..lab.ipv4(&[1]) };
        lab.expect(&frame.to_bytes(), &[(Replicated, 1), (Planned, 1), (Sent, 1)]);
        lab.rig.datapath.set_origin(0);
    }

    pub(super) fn frame_too_long(lab: &mut Lab) {
        lab.mtu(9_000);
        let of = |bytes: usize| Frame { payload: vec![7; bytes - IPV4_HEADERS], ..lab.ipv4(&[1, 2]) };
        // The veth would put a longer frame of a socket into several buffers. From the kernel it comes in one.
        let mut player = Player::new(&lab.port.device, None).unwrap();
        for (bytes, outcomes) in [
            (MAX_FRAME_BYTES, &[(Replicated, 1), (Planned, 2), (Sent, 2)][..]),
            (MAX_FRAME_BYTES + 1, &[(FrameTooLong, 1)]),
            (MAX_FRAME_BYTES + 40, &[(FrameTooLong, 1)]),
        ] {
            let before = lab.rig.counts();
            let frame = of(bytes);
            player.play(&[frame.to_bytes()]).unwrap();
            lab.settle(&before, outcomes);
            let copies = lab.copies(if bytes > MAX_FRAME_BYTES { 0 } else { 2 });
            for (node, copy) in copies.iter().enumerate() {
                assert_eq!(*copy, lab.rig.copy(&frame, node, vec![node + 1]));
            }
        }
        assert_eq!(MAX_FRAME_BYTES, 3_520);
    }

    pub(super) fn multi_buffer(lab: &mut Lab) {
        lab.mtu(9_000);
        for bytes in [4_000, 8_900] {
            let frame = Frame { payload: vec![7; bytes], ..lab.ipv4(&[1, 2]) };
            assert_eq!(lab.expect(&frame.to_bytes(), &[(MultiBuffer, 1)]), []);
        }
        // What is not ours passes in any number of buffers.
        let frame = Frame { payload: vec![7; 8_900], ports: (1, 2), ..lab.ipv4(&[1, 2]) };
        lab.expect(&frame.to_bytes(), &[(Passed, 1)]);
        // The longest that a socket's frame may be.
        let frame = Frame { payload: vec![7; 3_520 - IPV4_HEADERS], ..lab.ipv4(&[1, 2]) };
        lab.expect(&frame.to_bytes(), &[(Replicated, 1), (Planned, 2), (Sent, 2)]);
    }

    pub(super) fn ip_fragment(lab: &mut Lab) {
        let mut frame = lab.ipv4(&[1, 2]).to_bytes();
        frame[20] |= 0x20;
        assert_eq!(lab.expect(&frame, &[(IpFragment, 1)]), []);
        let ipv6 = lab.ipv6(&[1, 2]).to_bytes();
        for (offset_and_flag, outcome) in [([0, 1], IpFragment), ([0, 0], IpFragment), ([0, 9], Passed)] {
            let header = [&[17, 0][..], &offset_and_flag, &[0, 0, 0, 1]].concat();
            let mut frame = [&ipv6[..54], &header, &ipv6[54..]].concat();
            frame[20] = 44;
            frame[19] += 8;
            assert_eq!(lab.expect(&frame, &[(outcome, 1)]), []);
        }
    }

    pub(super) fn ip_options(lab: &mut Lab) {
        let ours = lab.ipv4(&[1, 2]).to_bytes();
        for words in [1, 10] {
            let mut frame = [&ours[..34], &vec![1; 4 * words], &ours[34..]].concat();
            frame[14] += words as u8;
            let length = (frame.len() - 14) as u16;
            frame[16..18].copy_from_slice(&length.to_be_bytes());
            assert_eq!(lab.expect(&frame, &[(IpOptions, 1)]), []);
        }
    }

    pub(super) fn checksum_missing(lab: &mut Lab) {
        lab.nodes(Encapsulation::Ipv6);
        let mut frame = lab.ipv6(&[1, 2]).to_bytes();
        frame[14 + 40 + 6..14 + 40 + 8].fill(0);
        assert_eq!(lab.expect(&frame, &[(ChecksumMissing, 1)]), []);
    }

    pub(super) fn no_fan_out(lab: &mut Lab) {
        // An index without a map: the daemon makes every map before a table that needs it is in force.
        lab.damage(|table| table.fanout = 30_000);
        assert_eq!(lab.expect(&lab.ipv4(&[1, 2]).to_bytes(), &[(NoFanOut, 1)]), []);
    }

    pub(super) fn no_slot(lab: &mut Lab) {
        // A table that points out of the pools: not of this program's making.
        lab.damage(|table| table.fbms = u32::MAX / 2);
        assert_eq!(lab.expect(&lab.ipv4(&[1, 2]).to_bytes(), &[(NoSlot, 1)]), []);
    }

    pub(super) fn planned(lab: &mut Lab) {
        // One for each node, not for each bit, and one for this host.
        lab.rig.table(TABLE, BitStringLength::B64, vec![vec![to(0)], vec![to(0)], vec![Local]]).unwrap();
        let frame = lab.ipv4(&[1, 2, 3]);
        let copies = lab.expect(&frame.to_bytes(), &[(Replicated, 1), (Planned, 2), (Sent, 2)]);
        assert_eq!(copies, [lab.rig.copy(&frame, 0, vec![1, 2]), lab.rig.local_copy(&frame, &[3])]);
    }

    pub(super) fn sent(lab: &mut Lab) {
        let mut frame = lab.ipv4(&[1, 4]).to_bytes();
        // Identification and "don't fragment": kept, as everything that needs not change.
        frame[18..21].copy_from_slice(&[0x12, 0x34, 0x40]);
        let (ip, _) = Ipv4Header::from_slice(&frame[14..]).unwrap();
        frame[24..26].copy_from_slice(&ip.calc_header_checksum().to_be_bytes());
        lab.port.send(&frame).unwrap();
        let copies = lab.port.receive(2).unwrap();
        assert_eq!(copies.len(), 2);
        for copy in &copies {
            assert_eq!(copy[18..21], [0x12, 0x34, 0x40]);
            Frame::parse(copy).unwrap();
        }
        lab.expect(&lab.ipv4(&[4]).to_bytes(), &[(Replicated, 1), (Planned, 1), (Sent, 1)]);
        // Ids of neighbors follow the three of this host.
        let neighbors = lab.rig.datapath.counters().unwrap().neighbors;
        let traffic: Vec<_> = neighbors.iter().map(|n| (n.id, n.copies, n.bytes)).collect();
        let bytes = IPV4_HEADERS as u64 + 201;
        assert_eq!(traffic, [(3, 1, bytes), (5, 2, 2 * bytes)]);
    }

    pub(super) fn surplus(lab: &mut Lab) {
        let (second, _port) = lab.rig.wire.pair("second").unwrap();
        for node in 4..11 {
            let device = if node == 10 { &second } else { &lab.uplink };
            lab.rig.neighbor(node, device, Encapsulation::Ipv4, &[]).unwrap();
        }
        lab.rig.table(TABLE, BitStringLength::B64, (4..11).map(|node| vec![to(node)]).collect()).unwrap();
        // On two devices counts are rounded: 5 become 6.
        let frame = lab.ipv4(&[1, 2, 3, 4, 5]);
        let copies = lab.expect(&frame.to_bytes(), &[(Replicated, 1), (Planned, 5), (Sent, 5), (Surplus, 1)]);
        let expected: Vec<_> = (0..5).map(|n| lab.rig.copy(&frame, 4 + n, vec![n + 1])).collect();
        assert_eq!(copies, expected);
        let outcomes = [(Replicated, 1), (Planned, 6), (Sent, 6)];
        lab.expect(&lab.ipv4(&[1, 2, 3, 4, 5, 6]).to_bytes(), &outcomes);
    }

    /// A copy on its way from `replicate` to `rewrite`: one of two planned for nodes 0 and 1.
    fn stashed(lab: &mut Lab) -> Vec<u8> {
        let before = lab.rig.counts();
        let frame = lab.ipv4(&[1, 2]).to_bytes();
        let (_, stashed) = lab.rig.replicate(&frame).unwrap();
        lab.settle(&before, &[(Replicated, 1), (Planned, 2)]);
        stashed
    }

    /// Frames that go through `rewrite` on their way out of the uplink, made by somebody else.
    fn foreign(lab: &mut Lab, frames: &[Vec<u8>], outcomes: &[(Outcome, u64)]) {
        let before = lab.rig.counts();
        let rewrite = lab.rig.rewrite().unwrap();
        Player::new(&lab.uplink, Some(&rewrite)).unwrap().play(frames).unwrap();
        lab.settle(&before, outcomes);
    }

    pub(super) fn wrong_cookie(lab: &mut Lab) {
        let stashed = stashed(lab);
        // Another load's, and frames that are no copies at all.
        let mut other_load = stashed.clone();
        other_load[11] ^= 1;
        let mut other_source = stashed.clone();
        other_source[5] ^= 1;
        let frames = [other_load, other_source, lab.ipv4(&[1]).to_bytes(), vec![0; 14]];
        foreign(lab, &frames, &[(WrongCookie, 4)]);
        lab.copies(0);
        // The one with the mark, as often as it was planned and once more.
        foreign(lab, &[stashed.clone(), stashed.clone(), stashed], &[(Sent, 2), (Surplus, 1)]);
        lab.copies(2);
    }

    pub(super) fn slot_overrun(lab: &mut Lab) {
        let late = stashed(lab);
        for _ in 0..SLOTS - 1 {
            lab.rig.replicate(&lab.ipv4(&[1]).to_bytes()).unwrap();
        }
        foreign(lab, std::slice::from_ref(&late), &[(Sent, 1)]);
        let before = lab.rig.counts();
        lab.rig.replicate(&lab.ipv4(&[1]).to_bytes()).unwrap();
        lab.settle(&before, &[(Replicated, 1), (Planned, 1), (NeverRan, 1)]);
        lab.copies(1);
        foreign(lab, &[late], &[(SlotOverrun, 1)]);
        lab.copies(0);
    }

    pub(super) fn never_ran(lab: &mut Lab) {
        let (dead, _port) = lab.rig.wire.pair("dead").unwrap();
        let (narrow, narrow_port) = lab.rig.wire.pair("narrow").unwrap();
        for (node, device) in [(4, &dead), (5, &narrow), (6, &narrow)] {
            lab.rig.neighbor(node, device, Encapsulation::Ipv4, &[]).unwrap();
        }
        let rows = vec![vec![to(0)], vec![to(4)], vec![to(5)], vec![to(6)]];
        lab.rig.table(TABLE, BitStringLength::B64, rows).unwrap();
        run(&["ip", "link", "set", "dev", "dead", "down"]).unwrap();
        let frame = lab.ipv4(&[1, 2, 3, 4]);
        // Without its Ethernet header the frame has one byte more than the MTU and a VLAN tag.
        let mtu = (frame.to_bytes().len() - 14 - 4 - 1).to_string();
        run(&["ip", "link", "set", "dev", "narrow", "mtu", &mtu]).unwrap();
        // The kernel says nothing of three of four copies...
        lab.expect(&frame.to_bytes(), &[(Replicated, 1), (Planned, 4), (Sent, 1)]);
        assert_eq!(narrow_port.receive(0).unwrap().len(), 0);
        // ... until their slot's turn comes again.
        let other = lab.ipv4(&[1]).to_bytes();
        for _ in 0..SLOTS - 1 {
            lab.port.send(&other).unwrap();
        }
        assert_eq!(lab.port.receive(SLOTS - 1).unwrap().len(), SLOTS - 1);
        assert_eq!(lab.rig.count(NeverRan), 0);
        lab.expect(&other, &[(Replicated, 1), (Planned, 1), (Sent, 1), (NeverRan, 3)]);
        assert_eq!(SLOTS, 1_024);
    }

    pub(super) fn unresolved(lab: &mut Lab) {
        lab.rig.datapath.set_neighbor(3, None).unwrap();
        let frame = lab.ipv4(&[1, 2]);
        let outcomes = [(Replicated, 1), (Planned, 2), (Sent, 1), (Unresolved, 1)];
        assert_eq!(lab.expect(&frame.to_bytes(), &outcomes), [lab.rig.copy(&frame, 1, vec![2])]);
        // A neighbor that is said to be behind another device now: its id should have changed.
        let local = lab.host.device.clone();
        lab.rig.neighbor(0, &local, Encapsulation::Ipv4, &[]).unwrap();
        assert_eq!(lab.expect(&frame.to_bytes(), &outcomes), [lab.rig.copy(&frame, 1, vec![2])]);
    }

    pub(super) fn other_family(lab: &mut Lab) {
        let outcomes = [(Replicated, 1), (Planned, 2), (Sent, 1), (OtherFamily, 1)];
        let uplink = lab.uplink.clone();
        for (one, other, frame) in [
            (Encapsulation::Ipv4, Encapsulation::Ipv6, lab.ipv4(&[1, 2])),
            (Encapsulation::Ipv6, Encapsulation::Ethernet, lab.ipv6(&[1, 2])),
            (Encapsulation::Ethernet, Encapsulation::Ipv4, lab.ethernet(&[1, 2])),
        ] {
            lab.rig.neighbor(0, &uplink, other, &[]).unwrap();
            lab.rig.neighbor(1, &uplink, one, &[]).unwrap();
            assert_eq!(lab.expect(&frame.to_bytes(), &outcomes), [lab.rig.copy(&frame, 1, vec![2])]);
        }
    }

    pub(super) fn other_tag_count(lab: &mut Lab) {
        let uplink = lab.uplink.clone();
        lab.rig.neighbor(1, &uplink, Encapsulation::Ipv4, &[7]).unwrap();
        lab.rig.neighbor(2, &uplink, Encapsulation::Ipv4, &[7, 8]).unwrap();
        let outcomes = [(Replicated, 1), (Planned, 3), (Sent, 1), (OtherTagCount, 2)];
        for tags in 0..3 {
            let mut frame = lab.ipv4(&[1, 2, 4]);
            frame.tags = vec![(0x8100, 3 << 13 | 99); tags];
            let bit = [1, 2, 4][tags];
            let expected = lab.rig.copy(&frame, tags, vec![bit]);
            assert_eq!(lab.expect(&frame.to_bytes(), &outcomes), [expected]);
        }
    }

    pub(super) fn copy_malformed(lab: &mut Lab) {
        // Nothing stands between plan and rewrite but the kernel: cut what was planned.
        for bytes in [IPV4_HEADERS - 1, 14] {
            let mut cut = stashed(lab);
            cut.truncate(bytes);
            foreign(lab, &[cut], &[(CopyMalformed, 1)]);
            lab.copies(0);
        }
    }

    pub(super) fn bit_without_row(lab: &mut Lab) {
        let frame = lab.ipv4(&[1, 6, 64]);
        let outcomes = [(Replicated, 1), (Planned, 1), (Sent, 1), (BitWithoutRow, 2)];
        assert_eq!(lab.expect(&frame.to_bytes(), &outcomes), [lab.rig.copy(&frame, 0, vec![1])]);
        // The stack leaves bits of others alone: still untouched.
        lab.expect(&lab.ipv4(&[3, 6]).to_bytes(), &[(Delivered, 1), (BitWithoutRow, 1)]);
    }

    pub(super) fn bit_ttl_expired(lab: &mut Lab) {
        let mut frame = lab.ipv4(&[1, 2, 3, 5]);
        frame.header[3] = 1;
        let outcomes = [(Replicated, 1), (Planned, 1), (Sent, 1), (BitTtlExpired, 3)];
        assert_eq!(lab.expect(&frame.to_bytes(), &outcomes), [lab.rig.local_copy(&frame, &[3])]);
    }
}
