//! Replicas share the load by entropy: each frame takes the variant that its entropy names, and no other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};

use replicator_common::{
    bier::BitStringLength::{self, B64, B1024},
    neighbor::Encapsulation,
    outcome::Outcome::{Delivered, Planned, Replicated, Sent},
    table::{LOCAL_MEMBER, NO_MEMBER},
};
use replicator_tests::{
    bier::{Frame, assert_frames, header},
    rig::{Rig, to},
    wire::{Device, Port},
};
use replicator_user::{
    bift::{Birt, Destination, Destination::Local},
    datapath::Mode,
};

const TABLE: u32 = 0x8_0101;
const NODES: usize = 16;

struct Lab {
    rig: Rig,
    uplink: Device,
    port: Port,
    host: Port,
}

impl Lab {
    fn new() -> Self {
        let mut rig = Rig::new().unwrap();
        let (uplink, port) = rig.wire.pair("uplink").unwrap();
        let (local, host) = rig.wire.pair("local").unwrap();
        rig.attach(&uplink, Mode::Native).unwrap();
        rig.set_local(&local, host.device.mac).unwrap();
        for node in 0..NODES {
            rig.neighbor(node, &uplink, Encapsulation::Ipv4, &[]).unwrap();
        }
        Self { rig, uplink, port, host }
    }

    /// Sends a frame with this entropy. `members` says which node serves each bit, `None` is this host.
    fn check(
        &self,
        length: BitStringLength,
        entropy: u32,
        bits: &[usize],
        members: &[(usize, Option<usize>)],
    ) {
        let mut frame = self.rig.frame(&self.uplink, Encapsulation::Ipv4, TABLE, length, bits);
        frame.header = header(TABLE, 17, length.bits(), entropy);
        let (mut remote, mut local) = (BTreeMap::<_, Vec<_>>::new(), Vec::new());
        for &(bit, node) in members {
            match node {
                Some(node) => remote.entry(node).or_default().push(bit),
                None => local.push(bit),
            }
        }
        self.port.send(&frame.to_bytes()).unwrap();
        let remote: Vec<_> =
            remote.into_iter().map(|(node, bits)| self.rig.copy(&frame, node, bits)).collect();
        let local: Vec<_> =
            (!local.is_empty()).then(|| self.rig.local_copy(&frame, &local)).into_iter().collect();
        for (port, expected) in [(&self.port, &remote), (&self.host, &local)] {
            let found = port.receive(expected.len()).unwrap();
            let found: Vec<_> = found.iter().map(|copy| Frame::parse(copy).unwrap()).collect();
            assert_frames(&found, expected, format_args!("entropy {entropy:#x}"));
        }
    }
}

/// Bit 1 at nodes 0 and 1, bit 2 at node 2 alone, bit 3 at nodes 1 and 0: two variants, told by the lowest bit of the
/// entropy alone.
#[test]
fn two_replicas_by_hand() {
    let mut lab = Lab::new();
    lab.rig.table(TABLE, B64, vec![vec![to(0), to(1)], vec![to(2)], vec![to(1), to(0)]]).unwrap();
    let even = [(1, Some(0)), (2, Some(2)), (3, Some(1))];
    let odd = [(1, Some(1)), (2, Some(2)), (3, Some(0))];
    for entropy in [0, 2, 0x8_0000, 0xf_fffe] {
        lab.check(B64, entropy, &[1, 2, 3], &even);
    }
    for entropy in [1, 3, 0x8_0001, 0xf_ffff] {
        lab.check(B64, entropy, &[1, 2, 3], &odd);
    }
}

/// A bit that this host serves too is never sent elsewhere, in no variant.
#[test]
fn local_replica_wins() {
    let mut lab = Lab::new();
    let rows = vec![vec![to(0), Local], vec![to(1), to(2), to(3)], vec![Local, to(5), to(6), to(7)]];
    lab.rig.install(TABLE, &Birt::new(B64, rows, Some(4)).unwrap()).unwrap();
    let mut seen = BTreeSet::new();
    for entropy in 0..16 {
        lab.port.send(&alone(&lab, entropy).to_bytes()).unwrap();
        assert_eq!(lab.port.receive(0).unwrap().len(), 0);
        let frame = Frame { bits: vec![1, 2, 3], ..alone(&lab, entropy) };
        lab.port.send(&frame.to_bytes()).unwrap();
        let found = lab.port.receive(1).unwrap();
        let [copy] = &found[..] else { panic!("{} copies", found.len()) };
        let copy = Frame::parse(copy).unwrap();
        let node = usize::from(copy.destination[5]);
        assert_eq!(copy, lab.rig.copy(&frame, node, vec![2]));
        seen.insert((entropy % 4, node));
        let local: Vec<_> =
            lab.host.receive(1).unwrap().iter().map(|copy| Frame::parse(copy).unwrap()).collect();
        assert_frames(&local, &[lab.rig.local_copy(&frame, &[1, 3])], "local");
    }
    // One node for each variant, each of the three for one at least.
    assert_eq!(seen.len(), 4, "{seen:?}");
    let nodes: BTreeSet<_> = seen.iter().map(|(_, node)| *node).collect();
    assert_eq!(nodes, BTreeSet::from([1, 2, 3]));
    assert_eq!(lab.rig.count(Delivered), 16);
}

/// A frame for the bits that this host serves alone.
fn alone(lab: &Lab, entropy: u32) -> Frame {
    let mut frame = lab.rig.frame(&lab.uplink, Encapsulation::Ipv4, TABLE, B64, &[1, 3]);
    frame.header = header(TABLE, 17, 64, entropy);
    frame
}

/// Every number of variants, over tables with up to 17 replicas of a bit: the datapath does what the rows say.
fn compiled(length: BitStringLength, variants: usize) {
    let mut lab = Lab::new();
    let bits = length.bits();
    // Bit b has b % 17 nodes, from node b on; every 23rd bit is here too. Bits without a node have no row.
    let rows = (1..=bits).map(|bit| -> Vec<Destination> {
        let nodes = (0..bit % 17).map(|n| to((bit + n) % NODES));
        nodes.chain((bit % 23 == 0).then_some(Local)).collect()
    });
    let birt = Birt::new(length, rows.collect(), Some(variants)).unwrap();
    lab.rig.install(TABLE, &birt).unwrap();
    let bift = birt.compile();
    assert_eq!(bift.variants.len(), variants);
    let mut chosen = vec![BTreeSet::new(); bits + 1];
    let mut copies = 0;
    for entropy in (0..20).map(|n| (n * 0xa_aaab) & 0xf_ffff) {
        let rows = &bift.variants[entropy as usize % variants].rows;
        for (first, step) in [(1, 1), (2, 7), (5, 64)] {
            let set: Vec<_> = (first..=bits).step_by(step).collect();
            let members: Vec<_> = set
                .iter()
                .filter(|&&bit| rows[bit - 1] != NO_MEMBER)
                .map(|&bit| {
                    let member = rows[bit - 1];
                    (bit, (member != LOCAL_MEMBER).then(|| usize::from(member) - 1))
                })
                .collect();
            lab.check(length, entropy, &set, &members);
            members.iter().for_each(|&(bit, node)| _ = chosen[bit].insert(node));
            copies += members.iter().map(|(_, node)| node).collect::<BTreeSet<_>>().len() as u64;
        }
    }
    // Entropies met every variant, so as many replicas as there are variants were used.
    for (bit, nodes) in chosen.iter().enumerate().skip(1) {
        let replicas = if bit % 23 == 0 { 1 } else { bit % 17 };
        assert_eq!(nodes.len(), replicas.min(variants), "bit {bit}: {nodes:?}");
    }
    assert_eq!([Replicated, Planned, Sent].map(|outcome| lab.rig.count(outcome)), [60, copies, copies]);
}

#[test]
fn one_variant() {
    compiled(B64, 1);
}

#[test]
fn two_variants() {
    compiled(B64, 2);
}

#[test]
fn four_variants_of_1024_bits() {
    compiled(B1024, 4);
}

#[test]
fn eight_variants() {
    compiled(BitStringLength::B256, 8);
}

#[test]
fn sixteen_variants_of_1024_bits() {
    compiled(B1024, 16);
}
