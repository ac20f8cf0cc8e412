//! Replicators behind replicators, and what passes through them meanwhile.

use std::{
    io::{Read, Write},
    mem::MaybeUninit,
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::Duration,
};

use replicator_tests::lab::{Daemon, Host, tool};
use socket2::{Domain, Protocol, Socket, Type};

use crate::network::*;

/// sender -- transit (a replicator) -- node1, node2 on another segment, and on a third
///                                  -- expert (a replicator for itself and node4 beside it)
///
/// Bits 1 and 2 are the nodes, 3 the expert, 4 node4.
struct Tree {
    near: Segment,
    racks: [Segment; 2],
    sender: Host,
    outsider: Host,
    transit: Host,
    expert: Host,
    nodes: [Host; 3],
    _daemons: [Daemon; 2],
}

const OUTSIDER: u8 = 66;
const TRANSIT: u8 = 254;
const EXPERT: u8 = 3;

impl Tree {
    fn new() -> Self {
        let cluster = Cluster::new(0);
        let Cluster { lab, segment: near, sender, .. } = cluster;
        let racks = [2, 3].map(|number| Segment::new(&lab, number));
        let plugged = |name: &str, segment: &Segment, number| {
            let host = lab.host(name).unwrap();
            segment.plug(&host, "eth0", number);
            host
        };
        let (outsider, transit) = (plugged("outsider", &near, OUTSIDER), plugged("transit", &near, TRANSIT));
        racks[0].plug(&transit, "eth1", TRANSIT);
        racks[1].plug(&transit, "eth2", TRANSIT);
        let nodes =
            [plugged("node1", &racks[0], 1), plugged("node2", &racks[0], 2), plugged("node4", &racks[1], 4)];
        let expert = plugged("expert", &racks[1], EXPERT);
        for (host, gateway) in [(&sender, &near), (&expert, &racks[1])] {
            for router in [gateway.v4(TRANSIT), gateway.v6(TRANSIT)] {
                host.ip(&format!("route add default via {router}\n")).unwrap();
            }
            // Frames on a wire have their checksums; those of a veth would be left to a card that never comes.
            let mut ethtool = tool("ethtool");
            ethtool.args(["-K", "eth0", "tx", "off"]);
            host.output(ethtool).unwrap();
        }
        for key in ["ipv4.ip_forward", "ipv6.conf.all.forwarding"] {
            transit.sysctl(&format!("net.{key}"), "1").unwrap();
        }
        let transit_config = format!(
            "interfaces: [eth0, eth1, eth2]
sources: [{sender}]
neighbors:
  node1: {{ address: {node1} }}
  node2: {{ address: {node2} }}
  expert: {{ address: {expert} }}
node-tables:
  - {{ name: tree, bift-id: {TABLE:#x}, bit-string-length: 64, bits: {{ 1: node1, 2: node2, 3-4: expert }} }}
",
            sender = near.v4(SENDER),
            node1 = racks[0].v4(1),
            node2 = racks[0].v4(2),
            expert = racks[1].v4(EXPERT),
        );
        let expert_config = format!(
            "origin: {{}}
this-node: {{ ipv4: {expert} }}
interfaces: [eth0]
sources: [{transit}]
neighbors:
  node4: {{ address: {node4} }}
node-tables:
  - {{ name: tree, bift-id: {TABLE:#x}, bit-string-length: 64, bits: {{ 3: local, 4: node4 }} }}
",
            expert = racks[1].v4(EXPERT),
            transit = racks[1].v4(TRANSIT),
            node4 = racks[1].v4(4),
        );
        let daemons = [(&transit, &transit_config), (&expert, &expert_config)];
        let daemons = daemons.map(|(host, config)| Daemon::start(host, &binary(), config).unwrap());
        Self { near, racks, sender, outsider, transit, expert, nodes, _daemons: daemons }
    }

    /// What arrives for bits 1 to 4.
    fn sinks(&self) -> [Sink; 4] {
        let [rack, far] = &self.racks;
        let sink = |host, address| Sink::open(host, SocketAddr::new(address, 8138));
        [
            sink(&self.nodes[0], rack.v4(1)),
            sink(&self.nodes[1], rack.v4(2)),
            sink(&self.expert, far.v4(EXPERT)),
            sink(&self.nodes[2], far.v4(4)),
        ]
    }
}

fn arrival(number: u32, ttl: u8, bit: usize) -> Arrival {
    Arrival { entropy: number, ttl, bits: vec![bit], payload: format!("frame {number}").into_bytes() }
}

#[test]
fn frames_go_down_a_tree_and_into_the_stack_where_they_are_wanted() {
    let tree = Tree::new();
    let mut sinks = tree.sinks();
    let to_transit = format!("{}:8138", tree.near.v4(TRANSIT));
    let mut dispatcher = dispatcher(&tree.sender, &to_transit, TABLE);
    for (number, bits) in
        [(1, &[1][..]), (2, &[1, 2]), (3, &[3]), (4, &[3, 4]), (5, &[4]), (6, &[1, 2, 3, 4])]
    {
        send(&mut dispatcher, number, bits);
    }
    // One replicator on the way, and a second one to node4. Delivery to a replicator's own stack is no hop.
    assert_eq!(sinks[0].take(3), [arrival(1, 63, 1), arrival(2, 63, 1), arrival(6, 63, 1)]);
    assert_eq!(sinks[1].take(2), [arrival(2, 63, 2), arrival(6, 63, 2)]);
    assert_eq!(sinks[2].take(3), [arrival(3, 63, 3), arrival(4, 63, 3), arrival(6, 63, 3)]);
    assert_eq!(sinks[3].take(3), [arrival(4, 62, 4), arrival(5, 62, 4), arrival(6, 62, 4)]);
    let counts = |host: &Host| {
        let outcomes = outcomes(host);
        ["replicated", "delivered", "planned", "sent", "source_not_allowed", "never_ran"]
            .map(|outcome| outcomes.get(outcome).copied().unwrap_or_default())
    };
    // The transit host sends one copy for both bits behind the expert.
    assert_eq!(counts(&tree.transit), [6, 0, 9, 9, 0, 0]);
    assert_eq!(counts(&tree.expert), [3, 1, 5, 5, 0, 0]);
    assert_eq!(stats(&tree.expert)["neighbors"]["local"]["copies"], 2);
    for host in tree.nodes.iter().chain([&tree.expert]) {
        let counters = protocol_counters(host);
        assert_eq!((counters["UdpInErrors"], counters["UdpInCsumErrors"], counters["UdpNoPorts"]), (0, 0, 0));
    }

    // A stranger beside the sender, and the sender past the transit host: nobody amplifies for them.
    let mut stranger = crate::network::dispatcher(&tree.outsider, &to_transit, TABLE);
    send(&mut stranger, 7, &[1, 2, 3]);
    let to_expert = format!("{}:8138", tree.racks[1].v4(EXPERT));
    let mut shortcut = crate::network::dispatcher(&tree.sender, &to_expert, TABLE);
    send(&mut shortcut, 8, &[3]);
    send(&mut shortcut, 9, &[3, 4]);
    until("they are dropped", || [&tree.transit, &tree.expert].map(|host| counts(host)[4]) == [1, 2]);
    for sink in &mut sinks {
        assert_eq!(sink.take(0), []);
    }
}

#[test]
fn other_traffic_passes_meanwhile() {
    let tree = Tree::new();
    let far = &tree.racks[1];
    let listeners = [far.v4(EXPERT), far.v6(EXPERT)]
        .map(|address| tree.expert.run(|| Ok(TcpListener::bind(SocketAddr::new(address, 0))?)).unwrap());
    let to_transit = format!("{}:8138", tree.near.v4(TRANSIT));
    let dispatcher = dispatcher(&tree.sender, &to_transit, TABLE);
    let foreign = || {
        thread::scope(|scope| {
            for listener in &listeners {
                scope.spawn(|| echo(listener));
                scope.spawn(|| converse(&tree.sender, listener.local_addr().unwrap()));
            }
            ping(&tree.sender, far.v4(EXPERT));
            ping(&tree.outsider, tree.near.v4(TRANSIT));
        });
    };
    let ((), stream) = Stream::run(dispatcher, &[1, 2, 3, 4], tree.sinks().into(), foreign);
    assert_eq!(stream.lost(), [0, 0, 0, 0]);
    let sent = u64::from(stream.sent);
    assert_eq!((count(&tree.transit, "sent"), count(&tree.expert, "sent")), (3 * sent, 2 * sent));
}

/// Bytes of a conversation each way.
const CONVERSATION: usize = 4 << 20;

fn pattern(at: usize) -> u8 {
    (at ^ (at >> 8) ^ (at >> 16)) as u8
}

/// Sends everything back to one who asks.
fn echo(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut bytes = vec![0; CONVERSATION];
    stream.read_exact(&mut bytes).unwrap();
    stream.write_all(&bytes).unwrap();
}

fn converse(host: &Host, with: SocketAddr) {
    let mut stream = host.run(|| Ok(TcpStream::connect_timeout(&with, PATIENCE)?)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let said: Vec<u8> = (0..CONVERSATION).map(pattern).collect();
    stream.write_all(&said).unwrap();
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).unwrap();
    assert!(heard == said, "{} bytes of {} came back from {with}", heard.len(), said.len());
}

/// Five echo requests (RFC 792), each answered with what it carried.
fn ping(host: &Host, to: IpAddr) {
    let socket = host.run(|| Ok(Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::ICMPV4))?)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(&SocketAddr::new(to, 0).into()).unwrap();
    for sequence in 1..=5_u8 {
        let mut request = [8, 0, 0, 0, 0, 77, 0, sequence].to_vec();
        request.extend((0..1400).map(pattern));
        let sum: u32 = request.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        let sum = (sum & 0xffff) + (sum >> 16);
        request[2..4].copy_from_slice(&(!((sum & 0xffff) + (sum >> 16)) as u16).to_be_bytes());
        socket.send(&request).unwrap();
        let mut answer = [MaybeUninit::zeroed(); 2048];
        let count = socket.recv(&mut answer).unwrap();
        // SAFETY: zeros where the kernel wrote nothing.
        let answer: Vec<u8> = answer[..count].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        // Behind an IP header without options: an echo reply with the same identifier, sequence and data.
        assert_eq!((answer[20], &answer[24..]), (0, &request[4..]), "{to} answers {sequence}");
        thread::sleep(Duration::from_millis(20));
    }
}
