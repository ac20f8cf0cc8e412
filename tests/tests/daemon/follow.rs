//! The network changes, and copies go where its hosts are now.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, UdpSocket},
};

use replicator_tests::lab::Daemon;
use rustix::process::Signal;
use serde_json::json;

use crate::network::*;

#[test]
fn copies_follow_a_mac_address() {
    let cluster = Cluster::new(2);
    let (sender, node) = (&cluster.sender, &cluster.nodes[1]);
    let mut sinks = cluster.sinks();
    let mut sinks_v6 = cluster.sinks_v6();
    for key in ["ipv4.conf.eth0.arp_notify", "ipv6.conf.eth0.ndisc_notify"] {
        node.sysctl(&format!("net.{key}"), "1").unwrap();
    }
    let _daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    let mut v4 = dispatcher(sender, ORIGIN_V4, TABLE);
    let mut v6 = dispatcher(sender, ORIGIN_V6, TABLE_V6);
    for (number, mac) in [(1, "02:00:00:00:01:02"), (2, "02:00:00:00:01:22"), (3, "02:00:00:00:01:02")] {
        // A new address is announced by itself.
        node.ip(&format!("link set eth0 address {mac}\n")).unwrap();
        for name in ["node2", "six2"] {
            until(&format!("{name} is at {mac}"), || neighbor(sender, name)["resolution"]["mac"] == mac);
        }
        send(&mut v4, number, &[1, 2]);
        send(&mut v6, number, &[1, 2]);
        for sink in sinks.iter_mut().chain(&mut sinks_v6) {
            assert_eq!(sink.numbers(1), [number]);
        }
    }
    assert_eq!(outcomes(sender)["sent"], 12);
}

#[test]
fn a_node_that_goes_away_is_told_counted_and_found_again() {
    let cluster = Cluster::new(2);
    let sender = &cluster.sender;
    let mut sinks = cluster.sinks();
    // The kernel's own patience is half a minute and more.
    for (key, value) in [
        ("base_reachable_time_ms", "500"),
        ("delay_first_probe_time", "0"),
        ("retrans_time_ms", "100"),
        ("ucast_solicit", "1"),
    ] {
        sender.sysctl(&format!("net.ipv4.neigh.eth0.{key}"), value).unwrap();
    }
    let daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    send(&mut dispatcher, 1, &[1, 2]);
    assert_eq!(sinks.iter_mut().map(|sink| sink.numbers(1)).collect::<Vec<_>>(), [[1], [1]]);

    cluster.segment.set_port(2, "down");
    let warning = "neighbor node2 is not resolved: 10.0.1.2 does not answer for its MAC address on eth0";
    until("a warning is logged", || daemon.printed().contains(warning));
    until("it is in the status", || neighbor(sender, "node2")["resolution"]["state"] == "pending");
    let text = replicator(sender, &["status"]).stdout;
    assert!(text.contains("neighbor node2: NOT RESOLVED: 10.0.1.2 does not answer"), "{text}");
    let before = outcomes(sender);
    send(&mut dispatcher, 2, &[1, 2]);
    assert_eq!(sinks[0].numbers(1), [2], "the others get theirs");
    let after = outcomes(sender);
    assert_eq!((after["unresolved"], after["sent"] - before["sent"]), (1, 1));

    cluster.segment.set_port(2, "up");
    until("it is found again", || neighbor(sender, "node2")["resolution"]["state"] == "ready");
    send(&mut dispatcher, 3, &[1, 2]);
    assert_eq!((sinks[0].numbers(1), sinks[1].numbers(1)), (vec![3], vec![3]));
    assert_eq!(count(sender, "unresolved"), 1);

    // It has another address and tells nobody: the kernel finds out.
    let mac = "02:00:00:00:01:33";
    cluster.nodes[1].ip(&format!("link set eth0 address {mac}\n")).unwrap();
    until("it is found under its new address", || neighbor(sender, "node2")["resolution"]["mac"] == mac);
    send(&mut dispatcher, 4, &[1, 2]);
    assert_eq!((sinks[0].numbers(1), sinks[1].numbers(1)), (vec![4], vec![4]));
}

/// A sender with two uplinks, each on a segment of its own, and nodes on both.
struct TwoUplinks {
    cluster: Cluster,
    other: Segment,
}

impl TwoUplinks {
    fn new() -> Self {
        let cluster = Cluster::new(2);
        let other = Segment::new(&cluster.lab, 2);
        other.plug(&cluster.sender, "eth1", SENDER);
        Self { cluster, other }
    }
}

#[test]
fn copies_for_nodes_behind_two_uplinks_leave_on_both() {
    let TwoUplinks { cluster, other } = TwoUplinks::new();
    let third = cluster.lab.host("node3").unwrap();
    other.plug(&third, "eth0", 3);
    let mut sinks = cluster.sinks();
    sinks.push(Sink::open(&third, SocketAddr::new(other.v4(3), 8138)));
    let config = cluster
        .config()
        .replace("[eth0]", "[eth0, eth1]")
        .replace("neighbors:\n", "neighbors:\n  third: { address: 10.0.2.3 }\n")
        .replace("2: node2 }", "2: node2, 3: third }");
    let _daemon = Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let mut dispatcher = dispatcher(&cluster.sender, ORIGIN_V4, TABLE);
    for (number, bits) in [(1, &[1, 2, 3][..]), (2, &[1, 3]), (3, &[3]), (4, &[1, 2])] {
        send(&mut dispatcher, number, bits);
    }
    assert_eq!(sinks[0].numbers(3), [1, 2, 4]);
    assert_eq!(sinks[1].numbers(2), [1, 4]);
    assert_eq!(sinks[2].numbers(3), [1, 2, 3]);
    assert_eq!(outcomes(&cluster.sender)["sent"], 8);
}

/// The first node has an address that is reached over either of its devices.
fn loopback_address(uplinks: &TwoUplinks) -> (String, Sink) {
    let TwoUplinks { cluster, other } = uplinks;
    let node = &cluster.nodes[0];
    other.plug(node, "eth1", 1);
    node.ip("address add 10.9.0.1/32 dev lo\n").unwrap();
    cluster.sender.ip("route add 10.9.0.1 via 10.0.1.1\n").unwrap();
    let config = cluster
        .config()
        .replace("[eth0]", "[eth0, eth1]")
        .replace("node1: { address: \"10.0.1.1\" }", "node1: { address: 10.9.0.1 }");
    (config, Sink::open(node, "10.9.0.1:8138".parse().unwrap()))
}

#[test]
fn copies_follow_a_route_to_another_interface_under_a_new_id() {
    let uplinks = TwoUplinks::new();
    let (config, mut sink) = loopback_address(&uplinks);
    let TwoUplinks { cluster, .. } = &uplinks;
    let (sender, node) = (&cluster.sender, &cluster.nodes[0]);
    let mut second = cluster.sinks().remove(1);
    let _daemon = Daemon::start(sender, &binary(), &config).unwrap();
    let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    let ifindex = |device: &str| links(sender)[device]["ifindex"].clone();
    let received = |device: &str| -> u64 {
        shell(node, &format!("cat /sys/class/net/{device}/statistics/rx_packets")).trim().parse().unwrap()
    };
    let first_id = neighbor(sender, "node1")["id"].as_u64().unwrap();
    assert_eq!(neighbor(sender, "node1")["resolution"]["ifindex"], ifindex("eth0"));
    let mut number = 0;
    let mut last_id = first_id;
    for (router, device) in [("10.0.2.1", "eth1"), ("10.0.1.1", "eth0")] {
        sender.ip(&format!("route replace 10.9.0.1 via {router}\n")).unwrap();
        until("it is known there", || neighbor(sender, "node1")["resolution"]["ifindex"] == ifindex(device));
        let id = neighbor(sender, "node1")["id"].as_u64().unwrap();
        assert_ne!(id, last_id, "an id never changes device");
        last_id = id;
        let before = received(device);
        for _ in 0..20 {
            number += 1;
            send(&mut dispatcher, number, &[1, 2]);
        }
        assert_eq!(sink.numbers(20), (number - 19..=number).collect::<Vec<_>>());
        assert_eq!(second.numbers(20).len(), 20);
        assert!(received(device) >= before + 20, "they came over {device}");
    }
}

/// While a route goes to and fro every frame is delivered once, but for what is on its way at that very moment.
#[test]
fn no_frame_meets_half_a_move() {
    /// A move may meet a burst of the stream's, eight frames, in the microseconds of its poll: some do, few of them.
    const MET: u64 = 2 * 8;
    const MOVES: u64 = 10;
    let uplinks = TwoUplinks::new();
    let (config, sink) = loopback_address(&uplinks);
    let TwoUplinks { cluster, other } = &uplinks;
    let sender = &cluster.sender;
    let _daemon = Daemon::start(sender, &binary(), &config).unwrap();
    // The kernel knows the way before it is taken.
    let to = SocketAddr::new(other.v4(1), 9);
    sender.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(b"", to)?)).unwrap();
    until("the router is known", || shell(sender, "ip neigh show 10.0.2.1").contains("REACHABLE"));
    let dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    let second = cluster.sinks().remove(1);
    let moves = || {
        for turn in 0..MOVES {
            let (router, device) = if turn % 2 == 0 { ("10.0.2.1", "eth1") } else { ("10.0.1.1", "eth0") };
            sender.ip(&format!("route replace 10.9.0.1 via {router}\n")).unwrap();
            let ifindex = links(sender)[device]["ifindex"].clone();
            until("it is known there", || neighbor(sender, "node1")["resolution"]["ifindex"] == ifindex);
        }
    };
    let ((), stream) = Stream::run(dispatcher, &[1, 2], vec![sink, second], moves);
    let (lost, sent) = (stream.lost(), u64::from(stream.sent));
    let mut outcomes = outcomes(sender);
    let mut of = |outcome: &str| outcomes.remove(outcome).unwrap_or_default();
    let [_, replicated, planned, sent_copies, unresolved] =
        ["passed", "replicated", "planned", "sent", "unresolved"].map(&mut of);
    assert_eq!((replicated, planned, sent_copies), (sent, 2 * sent, 2 * sent - unresolved));
    assert_eq!((u64::from(lost[0]), lost[1]), (unresolved, 0));
    assert!(unresolved <= MET, "{unresolved} of {sent} copies were lost");
    assert_eq!(outcomes, BTreeMap::new());
}

#[test]
fn an_interface_that_comes_back_is_attached_again() {
    let cluster = Cluster::new(2);
    let sender = &cluster.sender;
    let mut sinks = cluster.sinks();
    let daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    send(&mut dispatcher, 1, &[1, 2]);
    let first = links(sender)["eth0"]["ifindex"].as_u64().unwrap() as u32;
    // The kernel gives a new device the next number; a card that is put back by hand may have its old one.
    for (number, index) in [(2, None), (3, Some(first))] {
        let arrived: Vec<_> = sinks.iter_mut().map(|sink| sink.numbers(1)).collect();
        assert_eq!(arrived, [[number - 1], [number - 1]]);
        let gone = daemon.printed().matches("eth0 is gone").count();
        sender.ip("link del eth0\n").unwrap();
        until("that it is gone is logged", || daemon.printed().matches("eth0 is gone").count() > gone);
        assert!(programs(sender).keys().eq(["replicator0p"]));
        assert_eq!(shell(sender, "ls /sys/fs/bpf/replicator/*/links | wc -l"), "1\n");
        cluster.segment.plug_as(sender, "eth0", SENDER, index);
        until("it is attached", || programs(sender).keys().eq(["eth0", "replicator0p"]));
        let ifindex = links(sender)["eth0"]["ifindex"].clone();
        assert_eq!(ifindex == json!(first), index.is_some());
        for name in ["node1", "node2"] {
            until("it is found", || {
                neighbor(sender, name)["resolution"]["ifindex"] == ifindex
                    && neighbor(sender, name)["resolution"]["state"] == "ready"
            });
        }
        assert_eq!(shell(sender, "ls /sys/fs/bpf/replicator/*/links | wc -l"), "2\n");
        send(&mut dispatcher, number, &[1, 2]);
    }
    let arrived: Vec<_> = sinks.iter_mut().map(|sink| sink.numbers(1)).collect();
    assert_eq!(arrived, [[3], [3]], "{}", daemon.printed());
}

#[test]
fn an_origin_that_is_removed_is_made_anew() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let mut sinks = cluster.sinks();
    let mut own = Sink::open(sender, "0.0.0.0:8138".parse().unwrap());
    let config = cluster
        .config()
        .replace("1: node1 }", "1: node1, 2: local }")
        .replace("origin: {}", "origin: {}\nthis-node: { ipv4: 10.0.1.100 }");
    let daemon = Daemon::start(sender, &binary(), &config).unwrap();
    for number in [1, 2] {
        send(&mut dispatcher(sender, ORIGIN_V4, TABLE), number, &[1, 2]);
        assert_eq!((sinks[0].numbers(1), own.numbers(1)), (vec![number], vec![number]));
        sender.ip("link del replicator0\n").unwrap();
        let made = "the origin veth was removed and is back";
        until("it is made anew", || daemon.printed().matches(made).count() == number as usize);
        assert!(programs(sender).keys().eq(["eth0", "replicator0p"]));
        assert_eq!(shell(sender, "ls /sys/fs/bpf/replicator/*/links | wc -l"), "2\n");
    }
    assert!(daemon.stop().unwrap().success());
    assert_eq!(replicator(sender, &["detach"]).stdout, "detached from eth0, replicator0p\n");
    assert_nothing_left(sender);
}

#[test]
fn a_device_may_be_exchanged_while_no_daemon_runs() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let mut sinks = cluster.sinks();
    let first = links(sender)["eth0"]["ifindex"].as_u64().unwrap() as u32;
    for (number, index) in [(1, Some(first)), (2, None), (3, None)] {
        let daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
        send(&mut dispatcher(sender, ORIGIN_V4, TABLE), number, &[1]);
        assert_eq!(sinks[0].numbers(1), [number]);
        assert!(daemon.stop().unwrap().success());
        assert_eq!(shell(sender, "ls /sys/fs/bpf/replicator/*/links | wc -l"), "2\n");
        sender.ip("link del eth0\n").unwrap();
        cluster.segment.plug_as(sender, "eth0", SENDER, index);
    }
}

/// Faster than the daemon looks: it learns of everything at once.
#[test]
fn a_device_that_flaps_ends_up_attached() {
    let TwoUplinks { cluster, other } = TwoUplinks::new();
    let sender = &cluster.sender;
    let third = cluster.lab.host("node3").unwrap();
    other.plug(&third, "eth0", 3);
    let mut sink = Sink::open(&third, SocketAddr::new(other.v4(3), 8138));
    let config = cluster
        .config()
        .replace("[eth0]", "[eth0, eth1]")
        .replace("neighbors:\n", "neighbors:\n  third: { address: 10.0.2.3 }\n")
        .replace("2: node2 }", "2: node2, 3: third }");
    let mut daemon = Daemon::start(sender, &binary(), &config).unwrap();
    let first = links(sender)["eth1"]["ifindex"].as_u64().unwrap() as u32;
    let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    for (number, index) in [(1, None), (2, Some(first)), (3, Some(first)), (4, None)] {
        daemon.process().signal(Signal::STOP).unwrap();
        for _ in 0..2 {
            sender.ip("link del eth1\n").unwrap();
            other.plug_as(sender, "eth1", SENDER, index);
        }
        daemon.process().signal(Signal::CONT).unwrap();
        until("it is attached", || programs(sender).keys().eq(["eth0", "eth1", "replicator0p"]));
        let ifindex = links(sender)["eth1"]["ifindex"].clone();
        until("the node is found behind it", || {
            let resolution = neighbor(sender, "third")["resolution"].clone();
            resolution["state"] == "ready" && resolution["ifindex"] == ifindex
        });
        send(&mut dispatcher, number, &[3]);
        assert_eq!(sink.numbers(1), [number]);
    }
    assert!(daemon.process().poll().unwrap().is_none(), "{}", daemon.printed());
    assert!(cluster.sinks().iter_mut().all(|sink| sink.take(0).is_empty()));
}
