//! Where copies leave: one device for each node, one for all, this host's own stack; and where frames come from.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, net::UdpSocket, thread, time::Duration};

use replicator_common::{
    bier::BitStringLength::{self, B64, B128, B256, B1024},
    neighbor::Encapsulation,
    outcome::Outcome::{Passed, Planned, Replicated, Sent, Surplus},
};
use replicator_tests::{
    bier::{Carrier, Frame, assert_frames},
    player::Player,
    random::Random,
    rig::{Rig, to},
    wire::{Device, Port, cut_into, run},
};
use replicator_user::{
    bift::{Destination::Local, NeighborId},
    datapath::Mode,
};

const TABLE: u32 = 0x1234;

/// The frames that came out of a port.
fn parsed(port: &Port, expected: usize) -> Vec<Frame> {
    let frames = port.receive(expected).unwrap();
    frames.iter().map(|frame| Frame::parse(frame).unwrap()).collect()
}

/// A host with its ingress, and nodes behind `nodes_on[d]` nodes on each device d. Bit b is at node (b - 1) % nodes.
struct Spread {
    rig: Rig,
    ingress: Device,
    sender: Port,
    ports: Vec<Port>,
    /// Device of each node.
    device_of: Vec<usize>,
}

impl Spread {
    fn new(mode: Mode, nodes_on: &[usize]) -> Self {
        let mut rig = Rig::new().unwrap();
        let (ingress, sender) = rig.wire.pair("ingress").unwrap();
        rig.attach(&ingress, mode).unwrap();
        let (mut ports, mut device_of) = (Vec::new(), Vec::new());
        for (number, nodes) in nodes_on.iter().enumerate() {
            let (device, port) = rig.wire.pair(&format!("out{number}")).unwrap();
            for _ in 0..*nodes {
                rig.neighbor(device_of.len(), &device, Encapsulation::Ipv4, &[]).unwrap();
                device_of.push(number);
            }
            ports.push(port);
        }
        let nodes = device_of.len();
        rig.table(TABLE, B64, (0..64).map(|bit| vec![to(bit % nodes)]).collect()).unwrap();
        Self { rig, ingress, sender, ports, device_of }
    }

    fn frame(&self, bits: &[usize]) -> Frame {
        self.rig.frame(&self.ingress, Encapsulation::Ipv4, TABLE, B64, bits)
    }

    /// The copies of a frame: (device, copy), by node.
    fn copies(&self, frame: &Frame) -> Vec<(usize, Frame)> {
        let mut bits_of = BTreeMap::<_, Vec<_>>::new();
        for &bit in &frame.bits {
            bits_of.entry((bit - 1) % self.device_of.len()).or_default().push(bit);
        }
        bits_of
            .into_iter()
            .map(|(node, bits)| (self.device_of[node], self.rig.copy(frame, node, bits)))
            .collect()
    }

    /// Sends frames with random bits one by one and compares what leaves. Returns how many copies there were on each
    /// device, for each frame.
    fn check(&self, frames: usize) -> Vec<Vec<usize>> {
        let mut random = Random(7);
        (0..frames)
            .map(|round| {
                // From one bit to nearly all of them.
                let share = round % 8;
                let mut bits: Vec<_> = (1..=64).filter(|_| random.below(8) < share).collect();
                bits.push(1 + random.below(64));
                bits.sort_unstable();
                bits.dedup();
                let frame = self.frame(&bits);
                let copies = self.copies(&frame);
                self.sender.send(&frame.to_bytes()).unwrap();
                let counts = self.ports.iter().enumerate().map(|(device, port)| {
                    let copies = copies.iter().filter(|(other, _)| *other == device);
                    let expected: Vec<_> = copies.map(|(_, copy)| copy.clone()).collect();
                    assert_frames(
                        &parsed(port, expected.len()),
                        &expected,
                        format_args!("device {device}, {bits:?}"),
                    );
                    expected.len()
                });
                counts.collect()
            })
            .collect()
    }
}

/// Every copy leaves on its node's device, on that alone, and those of a device in the order of the nodes. `clones`
/// says how many of so many copies the kernel makes of a device with so many nodes.
fn spread(mode: Mode, nodes_on: &[usize], clones: fn(usize, usize) -> usize) {
    let spread = Spread::new(mode, nodes_on);
    let counts = spread.check(32);
    let copies: usize = counts.iter().flatten().sum();
    let cloned: usize =
        counts.iter().flat_map(|counts| counts.iter().zip(nodes_on)).map(|(n, most)| clones(*n, *most)).sum();
    let surplus = (cloned - copies) as u64;
    let copies = copies as u64;
    assert_eq!(
        [Replicated, Planned, Sent, Surplus, Passed].map(|outcome| spread.rig.count(outcome)),
        [32, copies, copies, surplus, 0]
    );
}

/// Up to three devices: 0, 1, 2, 3, 4, 6 or 8 clones, and never more than there are nodes.
fn rounded(copies: usize, nodes: usize) -> usize {
    [0, 1, 2, 3, 4, 6, 6, 8, 8][copies].min(nodes)
}

/// From four devices on there is one map, with each node in it.
fn whole(_: usize, nodes: usize) -> usize {
    nodes
}

#[test]
fn two_devices() {
    spread(Mode::Native, &[1, 1], rounded);
}

#[test]
fn two_devices_generic() {
    spread(Mode::Generic, &[1, 1], rounded);
}

#[test]
fn three_devices() {
    spread(Mode::Native, &[1, 1, 1], rounded);
}

#[test]
fn three_devices_generic() {
    spread(Mode::Generic, &[1, 1, 1], rounded);
}

#[test]
fn five_devices() {
    spread(Mode::Native, &[1, 1, 1, 1, 1], whole);
}

#[test]
fn five_devices_generic() {
    spread(Mode::Generic, &[1, 1, 1, 1, 1], whole);
}

#[test]
fn several_nodes_on_each_of_two_devices() {
    spread(Mode::Native, &[8, 5], rounded);
}

#[test]
fn several_nodes_on_each_of_three_devices() {
    spread(Mode::Native, &[7, 2, 6], rounded);
}

#[test]
fn several_nodes_on_each_of_three_devices_generic() {
    spread(Mode::Generic, &[7, 2, 6], rounded);
}

#[test]
fn several_nodes_on_each_of_five_devices() {
    spread(Mode::Native, &[3, 1, 2, 4, 5], whole);
}

#[test]
fn one_device_but_not_the_ingress() {
    spread(Mode::Native, &[8], |copies, _| copies);
}

/// Odd bits are at nodes 0 and 1 behind the uplink, even ones here: local copies go to the stack, rewritten for it.
fn uplink_and_local(mode: Mode, encapsulation: Encapsulation, vlans: &[u16]) {
    let mut rig = Rig::new().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    let (local, host) = rig.wire.pair("local").unwrap();
    rig.attach(&uplink, mode).unwrap();
    rig.set_local(&local, host.device.mac).unwrap();
    for node in 0..2 {
        rig.neighbor(node, &uplink, encapsulation, vlans).unwrap();
    }
    for length in BitStringLength::ALL {
        let row = |bit: usize| if bit % 2 == 1 { vec![Local] } else { vec![to(bit / 2 % 2)] };
        rig.table(TABLE, length, (0..length.bits()).map(row).collect()).unwrap();
        let last = length.bits();
        for bits in [vec![1, 2], vec![1, 2, 3, 4], vec![3, last - 2, last], (1..=last).collect()] {
            for ttl in [17, 2, 1] {
                let mut frame = rig.frame(&uplink, encapsulation, TABLE, length, &bits);
                frame.tags = vlans.iter().map(|id| (0x8100, 5 << 13 | (id + 100))).collect();
                frame.header[3] = ttl;
                frame.checksum |= ttl == 2 && encapsulation != Encapsulation::Ethernet;
                let at = |rest: &[usize]| -> Vec<_> {
                    bits.iter().copied().filter(|bit| rest.contains(&(bit % 4))).collect()
                };
                let mut remote: Vec<_> = [(0, at(&[1])), (1, at(&[3]))]
                    .into_iter()
                    .filter(|(_, bits)| !bits.is_empty() && ttl > 1)
                    .map(|(node, bits)| rig.copy(&frame, node, bits))
                    .collect();
                remote.sort_by_key(|copy| copy.destination);
                port.send(&frame.to_bytes()).unwrap();
                let note = format!("{bits:?}, TTL {ttl}");
                assert_frames(&parsed(&port, remote.len()), &remote, &note);
                assert_frames(&parsed(&host, 1), &[rig.local_copy(&frame, &at(&[0, 2]))], &note);
            }
        }
    }
    assert_eq!(rig.count(Replicated), 60);
    assert_eq!(rig.count(Planned), rig.count(Sent));
}

#[test]
fn uplink_and_local_ipv4() {
    uplink_and_local(Mode::Native, Encapsulation::Ipv4, &[]);
}

#[test]
fn uplink_and_local_ipv4_generic() {
    uplink_and_local(Mode::Generic, Encapsulation::Ipv4, &[]);
}

#[test]
fn uplink_and_local_ipv6_one_tag() {
    uplink_and_local(Mode::Native, Encapsulation::Ipv6, &[300]);
}

#[test]
fn uplink_and_local_ipv6_generic() {
    uplink_and_local(Mode::Generic, Encapsulation::Ipv6, &[]);
}

#[test]
fn uplink_and_local_ethernet_two_tags() {
    uplink_and_local(Mode::Native, Encapsulation::Ethernet, &[300, 4_000]);
}

/// Three devices and the stack, five devices and the stack: this host's copy comes beside those of the others.
#[test]
fn many_devices_and_local() {
    for remote in [3, 5] {
        let mut spread = Spread::new(Mode::Native, &vec![1; remote]);
        let (local, host) = spread.rig.wire.pair("local").unwrap();
        spread.rig.set_local(&local, host.device.mac).unwrap();
        let rows = (0..remote).map(|node| vec![to(node)]).chain([vec![Local]]).collect();
        spread.rig.table(TABLE, B64, rows).unwrap();
        for set in 1..1 << (remote + 1) {
            let bits: Vec<_> = (1..=remote + 1).filter(|bit| set >> (bit - 1) & 1 == 1).collect();
            if bits == [remote + 1] {
                continue;
            }
            let frame = spread.frame(&bits);
            spread.sender.send(&frame.to_bytes()).unwrap();
            for (node, port) in spread.ports.iter().enumerate() {
                let expected =
                    bits.contains(&(node + 1)).then(|| spread.rig.copy(&frame, node, vec![node + 1]));
                assert_frames(
                    &parsed(port, expected.iter().len()),
                    expected.as_slice(),
                    format_args!("{bits:?}"),
                );
            }
            let expected = bits.contains(&(remote + 1)).then(|| spread.rig.local_copy(&frame, &[remote + 1]));
            assert_frames(
                &parsed(&host, expected.iter().len()),
                expected.as_slice(),
                format_args!("{bits:?}"),
            );
        }
        assert_eq!(spread.rig.count(Planned), spread.rig.count(Sent));
    }
}

/// A table that cannot be served is refused, and the one in force stays: 64 members are the most on five devices.
#[test]
fn a_refused_table_changes_nothing() {
    let mut spread = Spread::new(Mode::Native, &[13, 13, 13, 13, 12]);
    let ingress = spread.ingress.clone();
    spread.rig.neighbor(64, &ingress, Encapsulation::Ipv4, &[]).unwrap();
    let error = spread.rig.table(TABLE, B128, (0..65).map(|node| vec![to(node)]).collect()).unwrap_err();
    assert!(error.to_string().starts_with("65 members leave on 6 devices"), "{error}");
    let counts = spread.check(4);
    assert_eq!(spread.rig.count(Sent), counts.iter().flatten().sum::<usize>() as u64);
}

/// This host's own programs send into a veth; `replicate` runs on its other end.
struct Origin {
    rig: Rig,
    origin: Device,
    sender: Port,
    port: Port,
    host: Port,
}

impl Origin {
    /// Bits 1 to 3 at nodes 0 to 2 behind the uplink, bit 4 here.
    fn new(mode: Mode, encapsulation: Encapsulation) -> Self {
        let mut rig = Rig::new().unwrap();
        let (origin, sender) = rig.wire.pair("origin").unwrap();
        let (uplink, port) = rig.wire.pair("uplink").unwrap();
        let (local, host) = rig.wire.pair("local").unwrap();
        rig.attach(&origin, mode).unwrap();
        rig.datapath.set_origin(origin.ifindex);
        rig.set_local(&local, host.device.mac).unwrap();
        for device in [&origin, &sender.device, &uplink, &port.device, &local, &host.device] {
            run(&["ip", "link", "set", "dev", &device.name, "mtu", "3520"]).unwrap();
        }
        for node in 0..3 {
            rig.neighbor(node, &uplink, encapsulation, &[]).unwrap();
        }
        rig.table(TABLE, B64, vec![vec![to(0)], vec![to(1)], vec![to(2)], vec![Local]]).unwrap();
        Self { rig, origin, sender, port, host }
    }

    /// Sends a frame with whatever UDP checksum; copies have the right one, or none over IPv4.
    fn check(&self, frame: &Frame, udp_checksum: u16) {
        let mut bytes = frame.to_bytes();
        if let Some(offset) = match frame.carrier {
            Carrier::Ipv4(..) => Some(14 + 20 + 6),
            Carrier::Ipv6(..) => Some(14 + 40 + 6),
            Carrier::Ethernet => None,
        } {
            bytes[offset..offset + 2].copy_from_slice(&udp_checksum.to_be_bytes());
        }
        self.sender.send(&bytes).unwrap();
        let remote = frame.bits.iter().filter(|&&bit| bit < 4);
        let remote: Vec<_> = remote.map(|&bit| self.rig.copy(frame, bit - 1, vec![bit])).collect();
        let local = frame.bits.contains(&4).then(|| self.rig.local_copy(frame, &[4]));
        let note = format!("{} bytes, checksum {udp_checksum:#06x}", frame.payload.len());
        assert_frames(&parsed(&self.port, remote.len()), &remote, &note);
        assert_frames(&parsed(&self.host, local.iter().len()), local.as_slice(), &note);
    }
}

/// What a host's stack leaves to its NIC: over IPv6 the datapath finishes it, whatever stands there.
fn origin(mode: Mode, encapsulation: Encapsulation) {
    let lab = Origin::new(mode, encapsulation);
    let mut random = Random(11);
    // Frames of 3,520 bytes are the longest.
    let headers = 14 + 40 + 8 + 12 + 8;
    let lengths = (0..=64).chain([419, 420, 421, 422, 423, 1_499, 1_500, 3_399, 3_400, 3_520 - headers]);
    for length in lengths {
        let bits = if length % 2 == 0 { &[1, 2, 3][..] } else { &[2, 4] };
        let mut frame = lab.rig.frame(&lab.origin, encapsulation, TABLE, B64, bits);
        frame.payload = random.bytes(length);
        lab.check(&frame, random.word() as u16);
    }
    // Sums of nothing but ones and zeros.
    for byte in [0x00, 0xff] {
        let mut frame = lab.rig.frame(&lab.origin, encapsulation, TABLE, B64, &[1, 4]);
        frame.payload = vec![byte; 1_001];
        lab.check(&frame, 0);
        lab.check(&frame, 0xffff);
    }
    // From anybody to anybody, and what is for this host alone.
    let mut frame = lab.rig.frame(&lab.origin, encapsulation, TABLE, B64, &[4]);
    frame.source = [2, 0, 0, 0, 7, 7];
    frame.destination = [2, 0, 0, 0, 8, 8];
    frame.carrier = match frame.carrier {
        Carrier::Ipv4(.., tos, ttl) => Carrier::Ipv4([127, 0, 0, 1], [224, 0, 0, 99], tos, ttl),
        Carrier::Ipv6(.., class, limit) => Carrier::Ipv6([1; 16], [0xff; 16], class, limit),
        Carrier::Ethernet => Carrier::Ethernet,
    };
    lab.check(&frame, 1);
    frame.bits = vec![1, 2];
    lab.check(&frame, 1);
    assert_eq!(lab.rig.count(Replicated), 65 + 10 + 4 + 2);
    assert_eq!(lab.rig.count(Planned), lab.rig.count(Sent));
}

#[test]
fn origin_ipv4() {
    origin(Mode::Native, Encapsulation::Ipv4);
}

#[test]
fn origin_ipv6() {
    origin(Mode::Native, Encapsulation::Ipv6);
}

#[test]
fn origin_ethernet() {
    origin(Mode::Native, Encapsulation::Ethernet);
}

#[test]
fn origin_ipv4_generic() {
    origin(Mode::Generic, Encapsulation::Ipv4);
}

#[test]
fn origin_ipv6_generic() {
    origin(Mode::Generic, Encapsulation::Ipv6);
}

/// A UDP socket sends 40 datagrams with one call (UDP_SEGMENT), each with its own header: the stack cuts them and
/// leaves their checksums unfinished.
fn origin_socket(encapsulation: Encapsulation) {
    const SEGMENTS: usize = 40;
    let lab = Origin::new(Mode::Native, encapsulation);
    let device = &lab.sender.device.name;
    let mac = lab.origin.mac.map(|byte| format!("{byte:02x}")).join(":");
    let (own, other) = match encapsulation {
        Encapsulation::Ipv4 => ("10.0.0.254", "10.0.0.1"),
        _ => ("fd00::fe", "fd00::1"),
    };
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6");
    std::fs::write(ipv6, "0").unwrap();
    let own_prefix = format!("{own}/{}", if own.contains(':') { 64 } else { 24 });
    let nodad: &[&str] = if own.contains(':') { &["nodad"] } else { &[] };
    run(&[&["ip", "address", "add", &own_prefix, "dev", device][..], nodad].concat()).unwrap();
    run(&["ip", "neighbor", "replace", other, "lladdr", &mac, "dev", device]).unwrap();
    // As the daemon's route into the origin veth has it; forwarded packets have less and are refused.
    run(&["ip", "route", "replace", other, "dev", device, "hoplimit", "255"]).unwrap();
    let socket = UdpSocket::bind((own, 40_000)).unwrap();
    socket.connect((other, 8138)).unwrap();

    let mut frames = Vec::new();
    for n in 0..SEGMENTS {
        let bits: Vec<_> = (1..=4).filter(|bit| (n % 15 + 1) >> (bit - 1) & 1 == 1).collect();
        let mut frame = lab.rig.frame(&lab.origin, encapsulation, TABLE, B64, &bits);
        frame.payload = vec![n as u8; 1_001];
        frame.carrier = match frame.carrier {
            Carrier::Ipv4(from, to, ..) => Carrier::Ipv4(from, to, 0, 255),
            Carrier::Ipv6(from, to, ..) => Carrier::Ipv6(from, to, 0, 255),
            Carrier::Ethernet => Carrier::Ethernet,
        };
        frames.push(frame);
    }
    let segment = frames[0].packet().len() as i32;
    cut_into(&socket, segment).unwrap();
    let datagrams: Vec<_> = frames.iter().flat_map(Frame::packet).collect();
    assert_eq!(socket.send(&datagrams).unwrap(), datagrams.len());

    let expected = |bit: usize| frames.iter().filter(move |frame| frame.bits.contains(&bit));
    let all: usize = (1..=3).map(|bit| expected(bit).count()).sum();
    let copies = parsed(&lab.port, all);
    for bit in 1..=3 {
        let expected: Vec<_> = expected(bit).map(|frame| lab.rig.copy(frame, bit - 1, vec![bit])).collect();
        let mac = expected[0].destination;
        let copies: Vec<_> = copies.iter().filter(|copy| copy.destination == mac).cloned().collect();
        assert_frames(&copies, &expected, format_args!("node {bit}"));
    }
    let local: Vec<_> = expected(4).map(|frame| lab.rig.local_copy(frame, &[4])).collect();
    assert_frames(&parsed(&lab.host, local.len()), &local, "local");
    assert_eq!(lab.rig.count(Replicated), SEGMENTS as u64);
}

#[test]
fn origin_socket_ipv4() {
    origin_socket(Encapsulation::Ipv4);
}

#[test]
fn origin_socket_ipv6() {
    origin_socket(Encapsulation::Ipv6);
}

/// The largest table: 1,024 bits at 254 nodes behind one uplink.
fn largest_table(mode: Mode) {
    const NODES: usize = 254;
    let mut rig = Rig::new().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    rig.attach(&uplink, mode).unwrap();
    for node in 0..NODES {
        rig.neighbor(node, &uplink, Encapsulation::Ipv6, &[]).unwrap();
    }
    rig.table(TABLE, B1024, (0..1_024).map(|bit| vec![to(bit % NODES)]).collect()).unwrap();
    // The ring of a veth has room for 256 frames, less up to 15 that it frees later (`ptr_ring`): 254 fit it once.
    let sets =
        [(1..=1_024).collect::<Vec<_>>(), (785..=1_024).collect(), vec![1_024], vec![64, 65, 318, 1_017]];
    for bits in sets {
        let frame = rig.frame(&uplink, Encapsulation::Ipv6, TABLE, B1024, &bits);
        let of = |node| bits.iter().copied().filter(|bit| (bit - 1) % NODES == node).collect::<Vec<_>>();
        let served = (0..NODES).map(|node| (node, of(node))).filter(|(_, bits)| !bits.is_empty());
        let expected: Vec<_> = served.map(|(node, bits)| rig.copy(&frame, node, bits)).collect();
        port.send(&frame.to_bytes()).unwrap();
        assert_frames(&parsed(&port, expected.len()), &expected, format_args!("{} bits", bits.len()));
    }
    assert_eq!(rig.count(Sent), 254 + 240 + 1 + 3);
}

#[test]
fn largest_table_native() {
    largest_table(Mode::Native);
}

#[test]
fn largest_table_generic() {
    largest_table(Mode::Generic);
}

/// Frames that one NAPI poll takes back to back, to two tables in turns: their slots are all in use at once, and each
/// copy gets its own frame's members.
fn burst(frames: usize, nodes_on: &[usize]) {
    let mut spread = Spread::new(Mode::Native, nodes_on);
    let nodes = spread.device_of.len();
    // The other way round, and longer.
    let backwards = (0..256).map(|bit| vec![to(nodes - 1 - bit % nodes)]).collect();
    spread.rig.table(TABLE + 1, B256, backwards).unwrap();
    let mut random = Random(5);
    let mut player = Player::new(&spread.sender.device, None).unwrap();
    for round in 0..4_u8 {
        let mut expected = vec![Vec::new(); nodes_on.len()];
        let mut burst = Vec::new();
        for n in 0..frames {
            let (id, length) = if n % 3 == 1 { (TABLE + 1, B256) } else { (TABLE, B64) };
            let mut bits = [1 + random.below(64), 1 + random.below(length.bits())].to_vec();
            bits.sort_unstable();
            bits.dedup();
            let mut frame = spread.rig.frame(&spread.ingress, Encapsulation::Ipv4, id, length, &bits);
            frame.payload = vec![round, n as u8];
            let node_of = |bit: usize| match id {
                TABLE => (bit - 1) % nodes,
                _ => nodes - 1 - (bit - 1) % nodes,
            };
            for node in 0..nodes {
                let bits: Vec<_> = bits.iter().copied().filter(|&bit| node_of(bit) == node).collect();
                if !bits.is_empty() {
                    expected[spread.device_of[node]].push(spread.rig.copy(&frame, node, bits));
                }
            }
            burst.push(frame.to_bytes());
        }
        player.play(&burst).unwrap();
        for (port, expected) in spread.ports.iter().zip(&expected) {
            assert_frames(&parsed(port, expected.len()), expected, format_args!("burst {round}"));
        }
    }
    assert_eq!(spread.rig.count(Replicated), 4 * frames as u64);
    assert_eq!(spread.rig.count(Planned), spread.rig.count(Sent));
}

#[test]
fn burst_of_64_on_one_device() {
    burst(64, &[8]);
}

#[test]
fn burst_of_64_on_two_devices() {
    burst(64, &[4, 4]);
}

#[test]
fn burst_of_200_on_three_devices() {
    burst(200, &[2, 2, 2]);
}

#[test]
fn burst_of_200_on_five_devices() {
    burst(200, &[1, 1, 1, 1, 1]);
}

/// Sends frames, numbered in their payload, while `change` is called again and again. Returns the copies of each.
fn while_changing(
    spread: &mut Spread,
    frames: u32,
    bits: &[usize],
    mut change: impl FnMut(&mut Rig, u32),
) -> Vec<Vec<Frame>> {
    let mut frame = spread.frame(bits);
    let Spread { rig, sender, ports, .. } = spread;
    let send = || {
        let mut copies = vec![Vec::new(); frames as usize];
        let mut sort = |copy: Frame| {
            let number = u32::from_be_bytes(copy.payload[..].try_into().unwrap());
            copies[number as usize].push(copy);
        };
        for number in 0..frames {
            frame.payload = number.to_be_bytes().to_vec();
            sender.send(&frame.to_bytes()).unwrap();
            for port in &*ports {
                while let Some(copy) = port.take().unwrap() {
                    sort(Frame::parse(&copy).unwrap());
                }
            }
        }
        ports.iter().flat_map(|port| parsed(port, 0)).for_each(sort);
        copies
    };
    thread::scope(|scope| {
        let sending = scope.spawn(send);
        let mut changes = 0;
        while !sending.is_finished() {
            change(rig, changes);
            changes += 1;
        }
        let copies = sending.join().unwrap();
        assert!(changes > 100, "{changes} changes while {frames} frames were sent");
        copies
    })
}

/// A table is replaced by another again and again: each frame meets one of them entirely.
#[test]
fn tables_swapped_under_traffic() {
    let mut spread = Spread::new(Mode::Native, &[2, 2]);
    // Node of bits 1 to 4: on the first device alone, on the second, on both, and all at one node.
    let versions = [[0, 1, 0, 1], [2, 3, 3, 2], [0, 1, 2, 3], [2, 2, 2, 2]];
    let rows = versions.map(|nodes| nodes.map(|node| vec![to(node)]).to_vec());
    spread.rig.table(TABLE, B64, rows[0].clone()).unwrap();
    let copies = while_changing(&mut spread, 20_000, &[1, 2, 3, 4], |rig, n| {
        rig.table(TABLE, B64, rows[n as usize % rows.len()].clone()).unwrap();
        // Places rest for a second: no more tables than there are places for in that time.
        thread::sleep(Duration::from_micros(200));
    });
    let mut seen = [0; 4];
    for (number, mut copies) in copies.into_iter().enumerate() {
        let mut frame = spread.frame(&[1, 2, 3, 4]);
        frame.payload = (number as u32).to_be_bytes().to_vec();
        copies.sort_by_key(|copy| copy.destination);
        let met = versions.iter().position(|nodes| {
            let of = |node| (1..=4).filter(|bit| nodes[bit - 1] == node).collect::<Vec<_>>();
            let served = (0..4).map(|node| (node, of(node))).filter(|(_, bits)| !bits.is_empty());
            copies == served.map(|(node, bits)| spread.rig.copy(&frame, node, bits)).collect::<Vec<_>>()
        });
        seen[met.unwrap_or_else(|| panic!("frame {number} met no version: {copies:?}"))] += 1;
    }
    assert!(seen.iter().all(|&frames| frames > 100), "{seen:?}");
    assert_eq!(spread.rig.count(Replicated), 20_000);
    assert_eq!(spread.rig.count(Planned), spread.rig.count(Sent));
}

/// What is known of a neighbor changes again and again: each copy is of the one kind or of the other.
#[test]
fn neighbor_swapped_under_traffic() {
    let mut spread = Spread::new(Mode::Native, &[2]);
    let [before, mut after] = [spread.rig.neighbors[&0]; 2];
    after.macs[..6].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
    after.source_ip[..4].copy_from_slice(&[10, 9, 9, 9]);
    after.destination_ip[..4].copy_from_slice(&[10, 9, 9, 8]);
    after.udp_port = 9_999_u16.to_be_bytes();
    after.hop_limit = 9;
    let id = NeighborId::remote(0).unwrap().get();
    let copies = while_changing(&mut spread, 20_000, &[1, 2], |rig, n| {
        rig.datapath.set_neighbor(id, Some(if n % 2 == 0 { &after } else { &before })).unwrap();
        thread::sleep(Duration::from_millis(1));
    });
    let mut seen = [0; 2];
    for (number, copies) in copies.iter().enumerate() {
        let mut frame = spread.frame(&[1, 2]);
        frame.payload = (number as u32).to_be_bytes().to_vec();
        let old = spread.rig.copy(&frame, 0, vec![1]);
        let mut new = Frame { destination: [2, 9, 9, 9, 9, 9], ports: (40_000, 9_999), ..old.clone() };
        new.carrier = Carrier::Ipv4([10, 9, 9, 9], [10, 9, 9, 8], 46 << 2 | 1, 9);
        let other = spread.rig.copy(&frame, 1, vec![2]);
        let met = [old, new].into_iter().position(|copy| *copies == [copy, other.clone()]);
        seen[met.unwrap_or_else(|| panic!("frame {number}: {copies:?}"))] += 1;
    }
    assert!(seen.iter().all(|&frames| frames > 100), "{seen:?}");
}
