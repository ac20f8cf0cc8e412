//! Expectations are written by hand from the text beside them: lines and columns are counted, not copied.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
};

use replicator_common::{
    bier::{BiftId, BitStringLength},
    neighbor::VlanTag,
};

use super::*;
use crate::bift::Destination;

const START: &str = "\
interfaces: [eth0]
neighbors:
  node1: { address: 10.0.0.2, interface: eth0 }
  node2: { address: 10.0.0.3, interface: eth0 }
";

fn valid(text: &str) -> Config {
    parse(text, "f").unwrap_or_else(|error| panic!("{error}"))
}

/// The lines of the error.
fn faults(text: &str) -> Vec<String> {
    match parse(text, "f") {
        Ok(_) => Vec::new(),
        Err(error) => error.to_string().lines().map(str::to_owned).collect(),
    }
}

/// The lines of the error where `text` follows [`START`], whose lines are not counted.
fn faults_after_start(text: &str) -> Vec<String> {
    let shifted = |fault: String| {
        let mut parts = fault.splitn(3, ':');
        let (file, line, rest) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
        let line = line.parse::<usize>().map_or(line.to_owned(), |line| (line - 4).to_string());
        format!("{file}:{line}:{rest}")
    };
    faults(&format!("{START}{text}")).into_iter().map(shifted).collect()
}

fn to(index: usize) -> Destination {
    Destination::Neighbor(NeighborId::remote(index).unwrap())
}

#[test]
fn everything_at_once() {
    let config = valid(
        r#"
udp-port: 6635
mode: generic
pin-path: /sys/fs/bpf/other
trace-drops: true
origin: { interface: bier0, ipv4: 192.0.2.5/31, ipv6: "fd00::2/126", queues: 4 }
api:
  socket: /run/r/api.sock
  tcp: { listen: "[2001:db8::1]:8139", certificate: /etc/r/tls.crt, key: /etc/r/tls.key, token-file: /etc/r/token }
state-path: /srv/replicator
epoch-grace: 3600
this-node: { name: node7, ipv4: 10.0.0.1, ipv6: "2001:db8::1" }
interfaces: [eth0, eth1]
sources: [10.0.0.0/24, "2001:db8::/64", 02:00:00:00:00:01]
neighbors:
  node1: { address: 10.0.0.2, interface: eth0, mac: 02:00:00:00:00:02, udp-port: 7000, hop-limit: 3,
           vlans: [100, { id: 200, protocol: 802.1ad }] }
  node2: { address: "2001:db8::3" }
  node9: { mac: 02:00:00:00:00:09, interface: eth1 }
node-tables:
  - name: sync
    bift-id: 0x10001
    bit-string-length: 64
    draft-lengths: true
    variants: 4
    bits: { 1: node1, 2-4: [node1, node2], 64: local }
expert-tables:
  - model: m
    experts: 3
    first-table: 5
    generation: 7
    layers:
      1-2: { 0-1: node2, 2: local }
      4: { 1: node9 }
"#,
    );
    assert_eq!(config.udp_port, 6635);
    assert_eq!(config.mode, Mode::Generic);
    assert_eq!(config.pin_path, PathBuf::from("/sys/fs/bpf/other"));
    assert!(config.trace_drops);
    let tcp = Tcp {
        listen: "[2001:db8::1]:8139".parse().unwrap(),
        certificate: "/etc/r/tls.crt".into(),
        key: "/etc/r/tls.key".into(),
        token_file: "/etc/r/token".into(),
    };
    assert_eq!(config.api, Api { socket: "/run/r/api.sock".into(), tcp: Some(tcp) });
    assert_eq!(config.state_path, Some("/srv/replicator".into()));
    assert_eq!(config.epoch_grace, Duration::from_secs(3600));
    assert_eq!(config.this_node.name.as_deref(), Some("node7"));
    let origin = config.origin.as_ref().unwrap();
    assert_eq!((origin.interface.as_str(), origin.peer.as_str(), origin.queues), ("bier0", "bier0p", 4));
    assert_eq!(
        (origin.ipv4.stack, origin.ipv4.peer),
        (Ipv4Addr::new(192, 0, 2, 5), Ipv4Addr::new(192, 0, 2, 4))
    );
    assert_eq!((origin.ipv4.prefix_length, origin.ipv6.prefix_length), (31, 126));
    assert_eq!(origin.ipv6.peer.to_string(), "fd00::1");
    assert_eq!(config.this_node.ipv4, Some(Ipv4Addr::new(10, 0, 0, 1)));
    assert_eq!(config.this_node.ipv6.unwrap().to_string(), "2001:db8::1");
    let names: Vec<_> = config.interfaces.iter().map(InterfaceName::as_str).collect();
    assert_eq!(names, ["eth0", "eth1"]);
    let sources: Vec<_> = config.sources.iter().map(Source::to_string).collect();
    assert_eq!(sources, ["10.0.0.0/24", "2001:db8::/64", "02:00:00:00:00:01"]);

    let [node1, node2, node9] = &config.neighbors[..] else { panic!() };
    assert_eq!(
        node1.tags,
        [VlanTag { protocol: [0x81, 0x00], id: [0, 100] }, VlanTag { protocol: [0x88, 0xa8], id: [0, 200] },]
    );
    assert_eq!(
        node1.hop,
        NextHop::Udp {
            address: IpAddr::V4(Ipv4Addr::new(10, 0, 0, 2)),
            udp_port: 7000,
            hop_limit: 3,
            interface: Some("eth0".parse().unwrap()),
            mac: Some("02:00:00:00:00:02".parse().unwrap()),
        }
    );
    assert_eq!(
        node2.hop,
        NextHop::Udp {
            address: "2001:db8::3".parse().unwrap(),
            udp_port: 6635,
            hop_limit: 64,
            interface: None,
            mac: None,
        }
    );
    let mac = "02:00:00:00:00:09".parse().unwrap();
    assert_eq!(node9.hop, NextHop::Ethernet { mac, interface: "eth1".parse().unwrap() });
    assert_eq!(config.neighbor(NeighborId::remote(2).unwrap()), Some(node9));

    let [sync, one, two, four] = &config.tables[..] else { panic!("{:?}", config.tables) };
    assert_eq!(sync.name, TableName::Nodes { name: "sync".to_owned() });
    assert_eq!(sync.bift_ids, [BiftId::new(0x10001).unwrap()]);
    assert_eq!((sync.birt.length(), sync.birt.bsl_code()), (BitStringLength::B64, 0));
    assert_eq!(sync.birt.variants(), 4);
    let rows = sync.birt.replicas();
    assert_eq!(rows[0], [to(0)]);
    assert_eq!(rows[1], [to(0), to(1)]);
    assert_eq!(rows[3], [to(0), to(1)]);
    assert_eq!(rows[4], []);
    assert_eq!(rows[63], [Destination::Local]);

    assert_eq!(one.name, TableName::Experts { model: "m".into(), layer: 1, experts: 3 });
    assert_eq!(one.name.to_string(), "m layer 1");
    // Top bit, table 5 + 1, generation 7; and the alias.
    assert_eq!(one.bift_ids, [BiftId::new(0x80607).unwrap(), BiftId::new(0x80600).unwrap()]);
    assert_eq!(two.bift_ids, [BiftId::new(0x80707).unwrap(), BiftId::new(0x80700).unwrap()]);
    assert!(Arc::ptr_eq(&one.birt, &two.birt));
    // Expert e is bit e + 1, and that is row e.
    assert_eq!(one.birt.replicas()[..4], [vec![to(1)], vec![to(1)], vec![Destination::Local], vec![]]);
    assert_eq!((one.birt.length(), one.birt.bsl_code()), (BitStringLength::B64, 1));
    assert_eq!(four.bift_ids[0], BiftId::new(0x80907).unwrap());
    assert_eq!(four.birt.replicas()[..2], [vec![], vec![to(2)]]);
}

#[test]
fn almost_nothing() {
    let config = valid("origin:\n");
    assert_eq!((config.udp_port, config.mode, config.trace_drops), (8138, Mode::Native, false));
    assert_eq!(config.pin_path, PathBuf::from("/sys/fs/bpf/replicator"));
    let origin = config.origin.unwrap();
    assert_eq!((origin.interface.as_str(), origin.peer.as_str()), ("replicator0", "replicator0p"));
    assert_eq!(
        (origin.ipv4.stack.to_string(), origin.ipv4.peer.to_string()),
        ("169.254.81.1".into(), "169.254.81.2".into())
    );
    assert_eq!((origin.ipv6.stack.to_string(), origin.queues), ("fd00:8138::1".into(), 1));
    assert_eq!(config.this_node, ThisNode::default());
    assert_eq!(config.api, Api { socket: "/run/replicator/control.sock".into(), tcp: None });
    assert_eq!((config.state_path, config.epoch_grace), (None, Duration::from_secs(10)));
    for text in ["", "# only a comment", "interfaces: []\n", "interfaces:\n", "mode: native"] {
        assert_eq!(
            faults(text).iter().map(|fault| fault.splitn(4, ':').nth(3).unwrap()).collect::<Vec<_>>(),
            [
                " nothing to attach to; name the NICs in `interfaces`, or give this host's programs an `origin: {}`"
            ],
            "{text}"
        );
    }
}

#[test]
fn all_faults_come_at_once_in_the_order_of_the_file() {
    let found = faults(
        "\
udp-prot: 8138
mode: nativ
pin-path: /sys/fs/bpf/replicator.v1
interfaces: [eth0, eth/1]
neighbors:
  node1: { adress: 10.0.0.2, mac: 02:00:00:00:00:02, interface: eth0 }
  node2: { address: 10.0.0.300 }
  node3: { address: 10.0.0.4, hop-limit: 0 }
node-tables:
  - name: t
    bift-id: 1
    bit-string-length: 100
    bits: { 1: nod1 }
  - bift-id: 0x80001
    bit-string-length: 64
    bits: { 1: nod1, 2: node2, 65: node3 }
",
    );
    let expected = [
        "f:1:1: unknown key `udp-prot`; did you mean `udp-port`?",
        "f:2:7: mode: is `nativ`; it must be native or generic",
        "f:3:11: pin-path: is `/sys/fs/bpf/replicator.v1`; it must be an absolute path without `.` in it (bpffs refuses names with one)",
        "f:4:20: interfaces[1]: is `eth/1`; it must be an interface's name: 1 to 15 bytes without blanks, `/` and `:`, and not `.` or `..`",
        "f:6:12: neighbors.node1: unknown key `adress`; did you mean `address`?",
        "f:7:21: neighbors.node2.address: is `10.0.0.300`; it must be the neighbor's IP address, such as 10.0.0.2",
        "f:8:42: neighbors.node3.hop-limit: is 0; it must be a TTL or hop limit, 1 to 255",
        "f:12:24: node-tables[0].bit-string-length: is 100; it must be 64, 128, 256, 512 or 1024 bits",
        "f:14:5: node-tables[1]: `name` is missing; reports call the table by it",
        "f:14:14: node-tables[1].bift-id: is 524289; it must be a BIFT-id below 0x80000: the ids from there on belong to expert tables",
        "f:16:16: node-tables[1].bits.1: unknown neighbor `nod1`; did you mean `node1`?",
        "f:16:36: node-tables[1].bits.65: bits go from 1 to 64",
    ];
    assert_eq!(found, expected);
}

#[test]
fn the_api_is_never_open_by_mistake() {
    let why = "over TCP there is no API without TLS and a token";
    assert_eq!(
        faults_after_start("api: { tcp: { listen: '10.0.0.1:8139', certificate: /a, key: /b } }\n"),
        [format!("f:1:8: api.tcp: `token-file` is missing; {why}")]
    );
    assert_eq!(
        faults_after_start("api: { tcp: }\n"),
        ["listen", "certificate", "key", "token-file"]
            .map(|key| format!("f:1:8: api.tcp: `{key}` is missing; {why}"))
    );
    let listen = "an IP address and a port, such as 10.0.0.1:8139 or '[2001:db8::1]:8139'";
    for (written, told) in [("10.0.0.1", "10.0.0.1"), ("10.0.0.1:0", "10.0.0.1:0"), ("node1:80", "node1:80")]
    {
        let keys = "certificate: /a, key: /b, token-file: /c";
        assert_eq!(
            faults_after_start(&format!("api: {{ tcp: {{ {keys}, listen: '{written}' }} }}\n")),
            [format!("f:1:65: api.tcp.listen: is `{told}`; it must be {listen}")]
        );
    }
    let socket = |path: &str| faults_after_start(&format!("api: {{ socket: {path} }}\n"));
    assert_eq!(socket(&format!("/{}", "x".repeat(106))), [""; 0]);
    for wrong in [format!("/{}", "x".repeat(107)), "control.sock".into(), "/".into(), "/run/..".into()] {
        let found = socket(&wrong);
        assert!(found.len() == 1 && found[0].starts_with("f:1:16: api.socket: is `"), "{found:?}");
    }
    assert_eq!(
        faults_after_start("epoch-grace: 3601\nstate-path: state\n"),
        [
            "f:1:14: epoch-grace: is 3601; it must be a number of seconds, 0 to 3600",
            "f:2:13: state-path: is `state`; it must be a folder's absolute path, such as /var/lib/replicator",
        ]
    );
}

#[test]
fn this_host_has_a_name_of_its_own() {
    let what = "a name as neighbors have, 1 to 63 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`, and not `local`";
    assert_eq!(
        faults_after_start("this-node: { name: local }\n"),
        [format!("f:1:20: this-node.name: is `local`; it must be {what}")]
    );
    assert_eq!(
        faults_after_start("this-node: { name: node2 }\n"),
        ["f:0:3: neighbors.node2: is what `this-node.name` calls this host; give one of them another name"]
    );
}

#[test]
fn keys_that_resemble_nothing_list_what_there_is() {
    assert_eq!(
        faults("origin: { colour: red }\n"),
        ["f:1:11: origin: unknown key `colour`; keys: `interface`, `ipv4`, `ipv6`, `queues`"]
    );
    assert_eq!(
        faults_after_start(
            "node-tables:\n - { name: t, bift-id: 1, bit-string-length: 64, bits: { 1: xyz } }\n"
        ),
        ["f:2:61: node-tables[0].bits.1: unknown neighbor `xyz`; neighbors: `local`, `node1`, `node2`"]
    );
}

#[test]
fn keys_stand_once() {
    assert_eq!(
        faults("interfaces: [eth0]\nmode: native\nmode: generic\n"),
        ["f:3:1: `mode` stands here twice; keep one"]
    );
    let table = "node-tables:\n  - name: t\n    bift-id: 1\n    bit-string-length: 64\n    bits:\n      3: node1\n      3: node2\n";
    assert_eq!(faults_after_start(table), ["f:7:7: node-tables[0].bits: `3` stands here twice; keep one"]);
    assert_eq!(
        faults("interfaces: [eth0, eth0]\n"),
        ["f:1:20: interfaces[1]: eth0 stands here twice; keep one"]
    );
}

#[test]
fn ranges_do_not_overlap() {
    let table = |bits: &str| {
        format!(
            "node-tables:\n  - name: t\n    bift-id: 1\n    bit-string-length: 64\n    bits: {{ {bits} }}\n"
        )
    };
    for (bits, fault) in [
        (
            "1-4: node1, 3: node2",
            "f:5:28: node-tables[0].bits.3: bit 3 stands in `1-4` already; give it one row",
        ),
        (
            "3: node1, 1-4: node2",
            "f:5:28: node-tables[0].bits.1-4: bit 3 stands in `3` already; give it one row",
        ),
        (
            "3-9: node1, 1-4: node2",
            "f:5:30: node-tables[0].bits.1-4: bit 3 stands in `3-9` already; give it one row",
        ),
        (
            "1-4: node1, 04: node2",
            "f:5:29: node-tables[0].bits.04: bit 4 stands in `1-4` already; give it one row",
        ),
        ("0: node1", "f:5:16: node-tables[0].bits.0: bits go from 1 to 64"),
        ("60-65: node1", "f:5:20: node-tables[0].bits.60-65: bits go from 1 to 64"),
        ("1-1000000000000: node1", "f:5:30: node-tables[0].bits.1-1000000000000: bits go from 1 to 64"),
        (
            "4-1: node1",
            "f:5:18: node-tables[0].bits.4-1: `4-1` is no bit; write a number such as 1 or a range such as 1-2",
        ),
        (
            "-1: node1",
            "f:5:17: node-tables[0].bits.-1: `-1` is no bit; write a number such as 1 or a range such as 1-2",
        ),
        (
            "1.5: node1",
            "f:5:18: node-tables[0].bits.1.5: `1.5` is no bit; write a number such as 1 or a range such as 1-2",
        ),
        (
            "99999999999999999999999: node1",
            "f:5:38: node-tables[0].bits.99999999999999999999999: `99999999999999999999999` is no bit; write a number \
             such as 1 or a range such as 1-2",
        ),
    ] {
        assert_eq!(faults_after_start(&table(bits)), [fault], "{bits}");
    }
    assert_eq!(faults_after_start(&table("1-4: node1, 5: node2, 6 - 8: node1, 9-64: node2")), [""; 0]);
}

#[test]
fn rows_name_nodes() {
    let table = |row: &str| {
        format!("node-tables:\n- {{ name: t, bift-id: 1, bit-string-length: 64, bits: {{ 1: {row} }} }}\n")
    };
    for (row, fault) in [
        ("[]", "f:2:57: node-tables[0].bits.1: no node; name one, or leave the row out (at most 16 nodes)"),
        ("[node1, node1]", "f:2:68: node-tables[0].bits.1[1]: stands here twice; keep one"),
        (
            "7",
            "f:2:60: node-tables[0].bits.1: is 7, which YAML takes for a number or truth value; put it in quotes",
        ),
        (
            "{ a: b }",
            "f:2:57: node-tables[0].bits.1: is a map; it must be the name of a neighbor, or `local`, or a list of them",
        ),
        (
            "",
            "f:2:57: node-tables[0].bits.1: is empty; it must be the name of a neighbor, or `local`, or a list of them",
        ),
    ] {
        assert_eq!(faults_after_start(&table(row)), [fault], "{row}");
    }
    let many = vec!["node1"; 17].join(", ");
    let many = faults_after_start(&table(&format!("[{many}]")));
    assert_eq!(many[0], "f:2:57: node-tables[0].bits.1: has 17 entries; at most 16 fit");
}

#[test]
fn expert_tables_have_a_generation_and_a_place() {
    let model = |text: &str| faults_after_start(&format!("expert-tables:\n  - model: m\n{text}"));
    assert_eq!(
        model("    experts: 8\n    generation: 0\n    layers: {}\n"),
        [
            "f:4:17: expert-tables[0].generation: is 0; it must be 1 to 255; 0 is the alias of the newest and comes by itself"
        ]
    );
    assert_eq!(model("    experts: 8\n    generation: 256\n    layers: {}\n").len(), 1);
    assert_eq!(
        model("    experts: 1025\n    layers: {}\n"),
        ["f:3:14: expert-tables[0].experts: is 1025; it must be the number of experts in a layer, 1 to 1024"]
    );
    assert_eq!(
        model("    experts: 8\n    layers: { 0: { 8: node1 } }\n"),
        ["f:4:23: expert-tables[0].layers.0.8: experts go from 0 to 7"]
    );
    assert_eq!(
        model("    experts: 8\n    first-table: 2040\n    layers: { 0-8: { 0: node1 } }\n"),
        ["f:5:15: expert-tables[0].layers.0-8: layers go from 0 to 7"]
    );
    assert_eq!(
        model("    experts: 8\n    variants: 3\n    layers: {}\n"),
        ["f:4:15: expert-tables[0].variants: is 3; it must be 1, 2, 4, 8 or 16 variants"]
    );
    assert_eq!(model("    experts: 8\n    first-table: 2047\n    layers: { 0: { 0: node1 } }\n"), [""; 0]);
}

#[test]
fn bift_ids_and_names_are_unique() {
    let table = |name: &str, id: &str| {
        format!("- {{ name: {name}, bift-id: {id}, bit-string-length: 64, bits: {{ 1: node1 }} }}\n")
    };
    let twice = format!("node-tables:\n{}{}", table("a", "0x10"), table("b", "16"));
    assert_eq!(
        faults_after_start(&twice),
        ["f:3:3: node-tables[1]: b has BIFT-id 0x00010, which a has too; give it another `bift-id`"]
    );
    let twice = format!("node-tables:\n{}{}", table("a", "1"), table("a", "2"));
    assert_eq!(
        faults_after_start(&twice),
        ["f:3:11: node-tables[1].name: `a` names another table or model too; give each its own name"]
    );
    let model = |name: &str, first: u16, layers: &str| {
        format!(
            "- {{ model: {name}, experts: 8, first-table: {first}, layers: {{ {layers}: {{ 0: node1 }} }} }}\n"
        )
    };
    let overlap = format!("expert-tables:\n{}{}", model("a", 0, "0-3"), model("b", 2, "1-2"));
    assert_eq!(
        faults_after_start(&overlap),
        [
            "f:3:53: expert-tables[1].layers.1-2: b layer 1 has BIFT-id 0x80301, which a layer 3 has too; give the \
             model another `first-table`"
        ]
    );
    let beside = format!("expert-tables:\n{}{}", model("a", 0, "0-3"), model("b", 2, "2-3"));
    assert_eq!(faults_after_start(&beside), [""; 0]);
}

#[test]
fn neighbors_can_be_reached() {
    let neighbor = |text: &str| faults(&format!("interfaces: [eth0]\nneighbors:\n  n: {{ {text} }}\n"));
    let why =
        "a neighbor without `address` gets BIER straight over Ethernet, and nothing else says where it is";
    assert_eq!(
        neighbor(""),
        [
            format!("f:3:3: neighbors.n: `mac` is missing; {why}"),
            format!("f:3:3: neighbors.n: `interface` is missing; {why}")
        ]
    );
    assert_eq!(
        neighbor("mac: 02:00:00:00:00:01, interface: eth0, udp-port: 1"),
        [
            "f:3:59: neighbors.n.udp-port: means nothing without `address`: BIER goes straight over Ethernet; remove one or \
          add the other"
        ]
    );
    assert_eq!(
        neighbor("address: 'fe80::1'"),
        ["f:3:3: neighbors.n: `interface` is missing; a link-local address says nothing about the link"]
    );
    assert_eq!(
        neighbor("address: 10.0.0.1, interface: eth0, vlans: [7]"),
        [
            "f:3:3: neighbors.n: `mac` is missing; the kernel's neighbor table does not know what is behind VLAN tags"
        ]
    );
    for address in [
        "0.0.0.0",
        "224.0.0.1",
        "255.255.255.255",
        "127.0.0.1",
        "'::1'",
        "'ff02::1'",
        "'::ffff:10.0.0.1'",
        "example.org",
    ] {
        assert_eq!(neighbor(&format!("address: {address}")).len(), 1, "{address}");
    }
    for vlans in
        ["[0]", "[4095]", "[1, 2, 3]", "7", "[{ protocol: 802.1Q }]", "[{ id: 1, protocol: 802.1X }]"]
    {
        let text = format!("address: 10.0.0.1, interface: eth0, mac: 02:00:00:00:00:01, vlans: {vlans}");
        assert_eq!(neighbor(&text).len(), 1, "{vlans}");
    }
    assert_eq!(
        faults(
            "interfaces: [eth0]\nneighbors:\n  local: { address: 10.0.0.1 }\n  a b: { address: 10.0.0.2 }\n"
        )
        .len(),
        2
    );
    assert_eq!(
        faults(
            "interfaces: [eth0]\nneighbors:\n  a: { address: 10.0.0.1 }\n  b: { address: 10.0.0.1, hop-limit: 9 }\n"
        ),
        ["f:4:3: neighbors.b: is the same node as `a`; keep one of them"]
    );
    assert_eq!(
        faults(
            "interfaces: [eth0]\nthis-node: { ipv4: 10.0.0.1 }\nneighbors: { a: { address: 10.0.0.1 } }\n"
        ),
        ["f:3:28: neighbors.a.address: 10.0.0.1 is this host's own address; tables call this host `local`"]
    );
    assert_eq!(
        faults("origin: {}\nneighbors: { a: { address: 10.0.0.1, interface: replicator0p } }\n"),
        [
            "f:2:49: neighbors.a.interface: replicator0p belongs to `origin`, which is made and attached anyway; name a NIC \
          that leads to other hosts"
        ]
    );
}

#[test]
fn local_copies_have_a_way_and_an_address() {
    let text = |top: &str, bits: &str| {
        format!(
            "{top}\ninterfaces: [eth0]\nneighbors:\n  v4: {{ address: 10.0.0.2 }}\n  v6: {{ address: '2001:db8::2' }}\n  \
             mac: {{ mac: 02:00:00:00:00:02, interface: eth0 }}\nnode-tables:\n- {{ name: t, bift-id: 1, \
             bit-string-length: 64, bits: {{ {bits} }} }}\n"
        )
    };
    let fault = |rest: &str| format!("f:8:49: node-tables[0].bits: has a row with `local`, and {rest}");
    assert_eq!(
        faults(&text("this-node: { ipv4: 10.0.0.1 }", "1: local")),
        [fault("no `origin` gives local copies a way; add `origin: {}`")]
    );
    for (this_node, bits, missing) in [
        ("", "1: local", "`ipv4` or `ipv6`"),
        ("ipv6: '2001:db8::1'", "1: local, 2: v4", "`ipv4`"),
        ("ipv4: 10.0.0.1", "1: local, 2: v4, 3: v6", "`ipv6`"),
    ] {
        let top = format!("this-node: {{ {this_node} }}");
        let text = text(&top, bits).replace("interfaces: [eth0]", "origin: {}");
        let rest = format!("local copies need an address to go to; add {missing} to `this-node`");
        assert_eq!(faults(&text), [fault(&rest)], "{this_node} {bits}");
    }
    for (this_node, bits) in [
        ("ipv4: 10.0.0.1", "1: local"),
        ("ipv4: 10.0.0.1", "1: local, 2: v4"),
        ("", "1: local, 2: mac"),
        ("", "2: v4"),
    ] {
        let top = format!("this-node: {{ {this_node} }}");
        assert_eq!(faults(&text(&top, bits).replace("interfaces: [eth0]", "origin: {}")), [""; 0]);
    }
}

/// `count` neighbors n0, n1 ... on interfaces by turns.
fn many_neighbors(count: usize, interfaces: usize) -> String {
    let mut text = String::from("interfaces: [eth0]\nneighbors:\n");
    for i in 0..count {
        let (a, b) = (i / 250, i % 250 + 1);
        writeln!(text, "  n{i}: {{ address: 10.0.{a}.{b}, interface: e{} }}", i % interfaces).unwrap();
    }
    text
}

fn a_bit_each(count: usize) -> String {
    let bits: Vec<_> = (0..count).map(|i| format!("{}: n{i}", i + 1)).collect();
    format!(
        "node-tables:\n- {{ name: t, bift-id: 1, bit-string-length: 1024, bits: {{ {} }} }}\n",
        bits.join(", ")
    )
}

#[test]
fn limits_of_the_datapath_are_told() {
    assert_eq!(valid(&many_neighbors(1021, 1)).neighbors.len(), 1021);
    assert_eq!(faults(&many_neighbors(1022, 1)), ["f:2:1: neighbors: has 1022 neighbors; at most 1021 fit"]);
    let members =
        |count, interfaces| faults(&format!("{}{}", many_neighbors(count, interfaces), a_bit_each(count)));
    assert_eq!(members(254, 1), [""; 0]);
    assert_eq!(members(254, 3), [""; 0]);
    assert_eq!(
        members(255, 1),
        [
            "f:259:51: node-tables[0].bits: the table has 256 members (this host is one), 255 fit; split it, or let \
          other replicators reach some of the nodes"
        ]
    );
    assert_eq!(members(64, 4), [""; 0]);
    assert_eq!(
        members(65, 4),
        [
            "f:69:51: node-tables[0].bits: 65 members leave on 4 devices; on more than 3 devices a table may have 64 \
          members: split the table, or use fewer devices"
        ]
    );
    assert_eq!(members(16, 16), [""; 0]);
    assert_eq!(
        members(17, 17),
        [
            "f:21:51: node-tables[0].bits: the members leave on 17 devices (this host's stack is one if it has bits), a \
          table may have 16; split the table"
        ]
    );
    let sources: Vec<_> = (0..1025).map(|i| format!("10.{}.{}.0/24", i / 256, i % 256)).collect();
    assert_eq!(
        faults(&format!("interfaces: [eth0]\nsources: [{}]\n", sources.join(", "))),
        ["f:2:1: sources: has 1025 entries; at most 1024 fit"]
    );
}

#[test]
fn the_tables_together_fit() {
    let models = format!(
        "{}expert-tables:\n- {{ model: m, experts: 1024, variants: 16, layers: {{ 0-2047: {{ {} }} }} }}\n",
        many_neighbors(200, 1),
        (0..200).map(|i| format!("{i}: n{i}")).collect::<Vec<_>>().join(", ")
    );
    // 2,048 tables of 16 variants, 16 chunks of rows, 202 x 4 chunks of F-BMs and 201 members.
    assert_eq!(
        faults(&models),
        [
            "f:1:1: the tables take 524288 row chunks and 131072 fit; use fewer tables, variants or members",
            "f:1:1: the tables take 26476544 F-BM chunks and 1048576 fit; use fewer tables, variants or members",
        ]
    );
    let ids = format!(
        "{START}node-tables:\n- {{ name: t, bift-id: 1, bit-string-length: 64, bits: {{}} }}\nexpert-tables:\n\
         - {{ model: m, experts: 8, layers: {{ 0-2047: {{ 0: node1 }} }} }}\n"
    );
    assert_eq!(
        faults(&ids),
        ["f:1:1: the tables take 4097 BIFT-ids and 4096 fit; use fewer tables, variants or members"]
    );
}

#[test]
fn usage_is_what_the_tables_take() {
    let config = valid(&format!(
        "{START}expert-tables:\n- {{ model: m, experts: 300, layers: {{ 0-9: {{ 0: [node1, node2], 1: node2 }} }} }}\n"
    ));
    let usage = Usage::of(&config);
    // 512 bits: 8 words, 2 chunks; 2 variants; 3 members with this host, and a union. One group of 0, 1 or 2 copies,
    // of which two maps are made, with 1 and 2 entries.
    assert_eq!(
        usage,
        Usage {
            bift_ids: 20,
            row_chunks: 10 * 2 * 8,
            fbm_chunks: 10 * 2 * 4 * 2,
            members: 30,
            shares: 10,
            fanout_maps: 2,
            fanout_bytes: 344 + 72 + 344 + 144,
        }
    );
}

#[test]
fn what_is_not_yaml_has_a_line() {
    assert_eq!(
        faults("interfaces: [eth0\nmode: native\n"),
        [
            "f:2:5: not a configuration in YAML: did not find expected ',' or ']' at line 2 column 5, while parsing a flow \
          sequence at line 1 column 13"
        ]
    );
    assert_eq!(
        faults("mode: !fast native\n"),
        [
            "f:1:7: not a configuration in YAML: mode: invalid type: enum, expected text, a number, true or false, a list \
          or a map without a !tag"
        ]
    );
    assert_eq!(
        faults("? [a]\n: b\n"),
        [
            "f:1:3: not a configuration in YAML: invalid type: sequence, expected a key: a name, a number or a range such \
          as 2-4"
        ]
    );
    assert_eq!(faults("mode: native\n---\nmode: native\n").len(), 1);
    assert_eq!(faults("- 1\n")[0].split(';').next(), Some("f:1:1: is a list"));
    assert_eq!(
        faults("interfaces: [eth0]\nmode: *x\n")[0],
        "f:2:7: not a configuration in YAML: unknown anchor"
    );
}

#[test]
fn aliases_are_followed_and_their_faults_are_where_they_are_written() {
    let text = "\
interfaces: [eth0]
neighbors: { node1: { address: 10.0.0.2 } }
expert-tables:
  - model: m
    experts: 4
    layers:
      0: &same
        0: node1
        1: nobody
      1: *same
";
    assert_eq!(
        faults(text),
        [
            "f:9:12: expert-tables[0].layers.0.1: unknown neighbor `nobody`; neighbors: `local`, `node1`",
            "f:9:12: expert-tables[0].layers.1.1: unknown neighbor `nobody`; neighbors: `local`, `node1`",
        ]
    );
    assert_eq!(valid(&text.replace("nobody", "node1")).tables.len(), 2);
}

#[test]
fn hostile_texts_are_refused_soon() {
    let started = std::time::Instant::now();
    let bomb: String = (1..9).fold("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, i| {
        let last = format!("*a{}", i - 1);
        format!("{text}a{i}: &a{i} [{}]\n", vec![last; 10].join(","))
    });
    // What each is refused for.
    for (text, why) in [
        ("[".repeat(4 << 20), "more than 500 open brackets; close them"),
        ("{a: ".repeat(1 << 20), "more than 500 open brackets; close them"),
        ("[".repeat(400), "recursion limit exceeded"),
        ("- ".repeat(1 << 18), "recursion limit exceeded"),
        ("x".repeat((4 << 20) + 1), "more than 4194304 bytes; write ranges, and share maps between layers"),
        ("a: &a [*a]\n".to_owned(), "recursion limit exceeded"),
        (format!("interfaces: [{}]\n", "e,".repeat(1_000_001)), "more than 1000000 keys and values"),
        (bomb, "repetition limit exceeded"),
        (
            format!("a: &a [{}]\nb: [{}]\n", "x,".repeat(10_000), "*a,".repeat(1_000)),
            "more than 1000000 keys and values",
        ),
        ("a: \u{0}\n".to_owned(), "control characters are not allowed"),
    ] {
        let found = faults(&text);
        assert!(found.len() == 1 && found[0].contains(why), "{why}: {found:?}");
    }
    let many: String = (0..10_500).map(|i| format!("key{i}: 1\n")).collect();
    let found = faults(&many);
    assert_eq!(found.len(), 51);
    assert!(found[49].starts_with("f:50:1: unknown key `key49`"), "{}", found[49]);
    assert_eq!(found[50], "f: and 9950 more", "no more than 10,000 are counted");
    // Generous: ten seconds in a debug build on a busy machine, and minutes without the bounds.
    assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
}

#[test]
fn messages_are_short_and_without_control_characters() {
    let found = faults(&format!("interfaces: [\"\\e[2J{}\"]\n", "x".repeat(1000)));
    assert_eq!(found.len(), 1);
    assert!(found[0].contains("is `\\u{1b}[2Jxxx") && found[0].len() < 300, "{}", found[0]);
    let found = faults(&format!("interfaces: [eth0]\nneighbors: {{ \"\\e{}\": {{}} }}\n", "x".repeat(1000)));
    assert!(found.iter().all(|fault| fault.len() < 300 && !fault.contains('\u{1b}')), "{found:?}");
}

/// A value that no field takes brings a fault at every key, so none is read and forgotten.
#[test]
fn every_key_is_read() {
    let paths = [
        ("", "{KEY}: [[[]]]\n"),
        ("api", "api: { {KEY}: [[[]]] }\n"),
        ("api.tcp", "api: { tcp: { {KEY}: [[[]]] } }\n"),
        ("origin", "origin: { {KEY}: [[[]]] }\n"),
        ("this-node", "this-node: { {KEY}: [[[]]] }\n"),
        ("neighbors.NAME", "neighbors: { NAME: { {KEY}: [[[]]] } }\n"),
        ("neighbors.NAME.vlans[]", "neighbors: { NAME: { vlans: [ { {KEY}: [[[]]] } ] } }\n"),
        (
            "node-tables[]",
            "node-tables: [ { name: t, bift-id: 1, bit-string-length: 64, bits: {}, {KEY}: [[[]]] } ]\n",
        ),
        ("expert-tables[]", "expert-tables: [ { model: m, experts: 1, layers: {}, {KEY}: [[[]]] } ]\n"),
    ];
    assert_eq!(paths.map(|(path, _)| path).to_vec(), KEYS.iter().map(|(path, _)| *path).collect::<Vec<_>>());
    for ((path, text), (_, keys)) in paths.into_iter().zip(KEYS) {
        for key in *keys {
            // The one with the fault takes the place of the one that was there.
            let text = [
                "name: t, ",
                "bift-id: 1, ",
                "bit-string-length: 64, ",
                "bits: {}, ",
                "model: m, ",
                "experts: 1, ",
                "layers: {}, ",
            ]
            .iter()
            .filter(|other| other.starts_with(&format!("{key}:")))
            .fold(text.to_owned(), |text, other| text.replace(other, ""));
            let path = path.replace("[]", "[0]");
            let path = if path.is_empty() { (*key).to_owned() } else { format!("{path}.{key}") };
            let found = faults(&text.replace("{KEY}", key));
            let at_key = |fault: &String| {
                fault.splitn(4, ':').nth(3).is_some_and(|rest| rest.trim().starts_with(&path))
            };
            assert!(found.iter().any(at_key), "{path}: {found:?}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_or_not_text() {
    let error = load(Path::new("/nonexistent/replicator.yaml")).unwrap_err();
    assert!(error.to_string().starts_with("/nonexistent/replicator.yaml: cannot be read: "), "{error}");
    assert!(matches!(load(Path::new("/")), Err(ConfigError::Read { .. })));
    let fault = document::decode(b"mode: native\n# \xc3\xa9\xff\n").unwrap_err();
    assert_eq!((fault.line, fault.column), (2, 4));
    assert!(matches!(load(Path::new("/dev/zero")), Err(ConfigError::Invalid(_))));
}

#[test]
fn a_neighbor_is_not_behind_the_origin() {
    for (address, refused) in [("169.254.81.2", true), ("fd00:8138::2", true), ("169.254.82.2", false)] {
        let text = format!(
            "origin: {{}}\ninterfaces: [eth0]\nneighbors:\n  a: {{ address: '{address}', interface: eth0 }}\n\
             node-tables:\n  - {{ name: t, bift-id: 1, bit-string-length: 64, bits: {{ 1: a }} }}\n"
        );
        match parse(&text, "t") {
            Ok(_) => assert!(!refused, "{address}"),
            Err(error) => assert!(refused && error.to_string().contains("subnet of `origin`"), "{error}"),
        }
    }
}
