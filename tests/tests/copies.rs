//! Which copies leave, and what is in them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use replicator_common::{bier::BitStringLength, neighbor::Encapsulation, outcome::Outcome};
use replicator_tests::{
    bier::{Frame, assert_frames},
    rig::{Rig, to},
};
use replicator_user::datapath::Mode;

const NODES: usize = 8;

/// Sends a frame and compares what comes out with one copy for each node that hosts a bit; bit b is at node (b-1) % 8.
fn replicate(mode: Mode, encapsulation: Encapsulation, vlans: &[u16], checksum: bool) {
    let mut rig = Rig::new().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    rig.attach(&uplink, mode).unwrap();
    for node in 0..NODES {
        rig.neighbor(node, &uplink, encapsulation, &vlans.iter().map(|id| id + 1).collect::<Vec<_>>())
            .unwrap();
    }
    let tags: Vec<_> = vlans.iter().map(|id| (0x8100, 5 << 13 | id)).collect();
    for length in BitStringLength::ALL {
        let bits = length.bits();
        rig.table(0x1234, length, (0..bits).map(|bit| vec![to(bit % NODES)]).collect()).unwrap();
        for set in
            [vec![1], vec![bits], vec![3, 4, 11], (1..=bits).step_by(3).collect(), (1..=bits).collect()]
        {
            let mut frame = rig.frame(&uplink, encapsulation, 0x1234, length, &set);
            frame.tags.clone_from(&tags);
            frame.checksum |= checksum;
            let mut expected: Vec<_> = (0..NODES)
                .map(|node| {
                    (
                        node,
                        frame
                            .bits
                            .iter()
                            .copied()
                            .filter(|bit| (bit - 1) % NODES == node)
                            .collect::<Vec<_>>(),
                    )
                })
                .filter(|(_, bits)| !bits.is_empty())
                .map(|(node, bits)| rig.copy(&frame, node, bits))
                .collect();
            port.send(&frame.to_bytes()).unwrap();
            let mut copies: Vec<_> = port
                .receive(expected.len())
                .unwrap()
                .iter()
                .map(|copy| Frame::parse(copy).unwrap())
                .collect();
            copies.sort_by_key(|copy| copy.destination);
            expected.sort_by_key(|copy| copy.destination);
            assert_frames(&copies, &expected, format_args!("{bits} bits, {:?}", frame.bits));
        }
    }
    assert_eq!(rig.count(Outcome::Replicated), 25);
    assert_eq!(rig.count(Outcome::Planned), rig.count(Outcome::Sent));
}

#[test]
fn native_ipv4() {
    replicate(Mode::Native, Encapsulation::Ipv4, &[], false);
}

#[test]
fn native_ipv4_with_checksum() {
    replicate(Mode::Native, Encapsulation::Ipv4, &[], true);
}

#[test]
fn native_ipv6() {
    replicate(Mode::Native, Encapsulation::Ipv6, &[], true);
}

#[test]
fn native_ethernet() {
    replicate(Mode::Native, Encapsulation::Ethernet, &[], false);
}

#[test]
fn native_one_vlan_tag() {
    replicate(Mode::Native, Encapsulation::Ipv4, &[100], false);
}

#[test]
fn native_two_vlan_tags() {
    replicate(Mode::Native, Encapsulation::Ipv6, &[100, 200], true);
}

#[test]
fn generic_ipv4() {
    replicate(Mode::Generic, Encapsulation::Ipv4, &[], false);
}

#[test]
fn generic_ipv6() {
    replicate(Mode::Generic, Encapsulation::Ipv6, &[], true);
}

#[test]
fn generic_ethernet() {
    replicate(Mode::Generic, Encapsulation::Ethernet, &[], false);
}

/// A copy whose UDP checksum comes out as 0: that would mean "none", so it is written as ff ff.
#[test]
fn a_checksum_of_0_is_written_as_ones() {
    let mut rig = Rig::new().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    rig.attach(&uplink, Mode::Native).unwrap();
    for (encapsulation, at) in [(Encapsulation::Ipv4, 14 + 20 + 6), (Encapsulation::Ipv6, 14 + 40 + 6)] {
        rig.neighbor(0, &uplink, encapsulation, &[]).unwrap();
        rig.table(0x1234, BitStringLength::B64, vec![vec![to(0)]]).unwrap();
        let mut frame = rig.frame(&uplink, encapsulation, 0x1234, BitStringLength::B64, &[1]);
        frame.checksum = true;
        frame.payload = vec![0, 0];
        // What its sum lacks to all ones.
        frame.payload = rig.copy(&frame, 0, vec![1]).to_bytes()[at..at + 2].to_vec();
        port.send(&frame.to_bytes()).unwrap();
        let copies = port.receive(1).unwrap();
        assert_eq!(copies.len(), 1);
        assert_eq!(copies[0][at..at + 2], [0xff, 0xff]);
        assert_eq!(Frame::parse(&copies[0]).unwrap(), rig.copy(&frame, 0, vec![1]));
    }
}
