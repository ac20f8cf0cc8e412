//! Networks to test the daemon in: segments with a switch each, hosts on them, and what the hosts can tell.

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    path::{Path, PathBuf},
    process::Command,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use replicator_common::bier::{BiftId, BitStringLength};
use replicator_tests::lab::{self, End, Finished, Host, Lab, Link, Process};
use replicator_user::client::{
    Delivery, Destinations, Dispatcher, DispatcherSettings, Receiver, ReceiverSettings, Source, Transport,
};
use serde_json::Value;

/// Where programs send to by default: the origin veth's other end.
pub(crate) const ORIGIN_V4: &str = "169.254.81.2:8138";
/// The same over IPv6.
pub(crate) const ORIGIN_V6: &str = "[fd00:8138::2]:8138";

/// Node tables of the tests, all of 64 bits.
pub(crate) const TABLE: u32 = 0x10001;
/// One whose neighbors are reached over IPv6.
pub(crate) const TABLE_V6: u32 = 0x10002;

/// Largest MTU whose frames fit one page after cloning.
const MTU: u32 = 3506;

/// Time that something may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Time after which nothing more arrives.
const QUIET: Duration = Duration::from_millis(30);

/// A switch and the addresses behind it: 10.0.SEGMENT.HOST, fd00:SEGMENT::HOST, 02:00:00:00:SEGMENT:HOST.
pub(crate) struct Segment {
    switch: Host,
    number: u8,
}

impl Segment {
    pub(crate) fn new(lab: &Lab, number: u8) -> Self {
        let switch = lab.host(&format!("switch{number}")).unwrap();
        switch.bridge("br0", MTU, &[""; 0]).unwrap();
        Self { switch, number }
    }

    /// Joins a host's new device with the switch.
    pub(crate) fn plug(&self, host: &Host, device: &str, number: u8) {
        self.plug_as(host, device, number, None);
    }

    /// The same; the device has this ifindex, where one is given.
    pub(crate) fn plug_as(&self, host: &Host, device: &str, number: u8, ifindex: Option<u32>) {
        let port = format!("port{number}");
        let mut end = End::new(host, device)
            .mac([2, 0, 0, 0, self.number, number])
            .address(format!("{}/24", self.v4(number)).parse().unwrap())
            .address(format!("{}/64", self.v6(number)).parse().unwrap());
        if let Some(ifindex) = ifindex {
            end = end.ifindex(ifindex);
        }
        let link = Link { mtu: MTU, queues: 1 };
        link.join(&end, &End::new(&self.switch, &port).receives_redirects()).unwrap();
        self.switch.ip(&format!("link set {port} master br0\n")).unwrap();
    }

    /// Sets a host's port of the switch up or down: its link has a carrier or none.
    pub(crate) fn set_port(&self, number: u8, state: &str) {
        self.switch.ip(&format!("link set port{number} {state}\n")).unwrap();
    }

    pub(crate) fn v4(&self, number: u8) -> IpAddr {
        IpAddr::from([10, 0, self.number, number])
    }

    pub(crate) fn v6(&self, number: u8) -> IpAddr {
        IpAddr::from([0xfd00, u16::from(self.number), 0, 0, 0, 0, 0, u16::from(number)])
    }
}

/// A sender (number 100) and nodes (numbers from 1) on one segment, number 1.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
    pub(crate) segment: Segment,
    pub(crate) sender: Host,
    pub(crate) nodes: Vec<Host>,
}

/// The sender's number on the cluster's segment.
pub(crate) const SENDER: u8 = 100;

impl Cluster {
    pub(crate) fn new(nodes: u8) -> Self {
        let lab = Lab::new().unwrap();
        let segment = Segment::new(&lab, 1);
        let host = |name: &str, number| {
            let host = lab.host(name).unwrap();
            segment.plug(&host, "eth0", number);
            host
        };
        let sender = host("sender", SENDER);
        let nodes = (1..=nodes).map(|number| host(&format!("node{number}"), number)).collect();
        Self { sender, nodes, segment, lab }
    }

    /// Bit i of [`TABLE`] is node i over IPv4 and of [`TABLE_V6`] over IPv6.
    pub(crate) fn config(&self) -> String {
        let numbers = 1..=self.nodes.len() as u8;
        let neighbors = |name, address: &dyn Fn(u8) -> IpAddr| -> String {
            numbers.clone().map(|n| format!("  {name}{n}: {{ address: \"{}\" }}\n", address(n))).collect()
        };
        let rows = |name| {
            let rows: Vec<_> = numbers.clone().map(|n| format!("{n}: {name}{n}")).collect();
            rows.join(", ")
        };
        format!(
            "origin: {{}}
interfaces: [eth0]
neighbors:
{}{}node-tables:
  - {{ name: v4, bift-id: {TABLE:#x}, bit-string-length: 64, bits: {{ {} }} }}
  - {{ name: v6, bift-id: {TABLE_V6:#x}, bit-string-length: 64, bits: {{ {} }} }}
",
            neighbors("node", &|n| self.segment.v4(n)),
            neighbors("six", &|n| self.segment.v6(n)),
            rows("node"),
            rows("six"),
        )
    }

    /// What each node receives over IPv4.
    pub(crate) fn sinks(&self) -> Vec<Sink> {
        let bind = |(node, n)| Sink::open(node, SocketAddr::new(self.segment.v4(n), 8138));
        self.nodes.iter().zip(1..).map(bind).collect()
    }

    /// What each node receives over IPv6.
    pub(crate) fn sinks_v6(&self) -> Vec<Sink> {
        let bind = |(node, n)| Sink::open(node, SocketAddr::new(self.segment.v6(n), 8138));
        self.nodes.iter().zip(1..).map(bind).collect()
    }
}

/// A frame that arrived.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Arrival {
    /// What the sender numbers its frames by.
    pub(crate) entropy: u32,
    pub(crate) ttl: u8,
    pub(crate) bits: Vec<usize>,
    pub(crate) payload: Vec<u8>,
}

/// A socket that frames arrive at.
pub(crate) struct Sink {
    receiver: Receiver,
}

impl Sink {
    pub(crate) fn open(host: &Host, bind: SocketAddr) -> Self {
        let source = Source::Udp { bind, share: false };
        let receiver = host.run(|| Ok(Receiver::open(&source, &ReceiverSettings::default())?)).unwrap();
        Self { receiver }
    }

    /// Waits for so many frames, then a little longer for any that should not be there. By number.
    pub(crate) fn take(&mut self, expected: usize) -> Vec<Arrival> {
        let mut arrivals = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            self.receiver.set_timeout(Some(if arrivals.len() < expected { left } else { QUIET }));
            let Some(delivery) = self.receiver.receive().unwrap() else { break };
            arrivals.push(Arrival {
                entropy: delivery.header.entropy(),
                ttl: delivery.header.ttl(),
                bits: delivery.bits.iter().collect(),
                payload: delivery.payload.to_vec(),
            });
        }
        arrivals.sort();
        arrivals
    }

    /// Numbers of the frames that arrive until `stop` is set.
    fn collect(mut self, stop: &AtomicBool) -> Vec<u32> {
        let mut numbers = Vec::new();
        let visit = |delivery: Delivery<'_>| {
            numbers.push(delivery.header.entropy());
            ControlFlow::Continue(())
        };
        self.receiver.for_each(stop, visit).unwrap();
        numbers.sort_unstable();
        numbers
    }

    /// Numbers of the frames that arrive: of so many, and of any that should not be there.
    pub(crate) fn numbers(&mut self, expected: usize) -> Vec<u32> {
        self.take(expected).into_iter().map(|arrival| arrival.entropy).collect()
    }
}

/// Opens a dispatcher in a host.
pub(crate) fn dispatcher(host: &Host, to: &str, table: u32) -> Dispatcher {
    let transport = Transport::Udp { to: to.parse().unwrap(), interface: None };
    let settings = DispatcherSettings::new(BiftId::new(table).unwrap(), BitStringLength::B64, 7);
    host.run(|| Ok(Dispatcher::open(&transport, &settings)?)).unwrap()
}

/// Sends one frame of this number to these bits.
pub(crate) fn send(dispatcher: &mut Dispatcher, number: u32, bits: &[u32]) {
    dispatcher.dispatch(Destinations::Bits(bits), number, format!("frame {number}").as_bytes()).unwrap();
    assert_eq!(dispatcher.flush().unwrap(), 1);
}

/// Frames sent one after the other while something happened, and what arrived of them.
#[derive(Debug)]
pub(crate) struct Stream {
    /// Frames sent; they are numbered from 0.
    pub(crate) sent: u32,
    /// Numbers of what arrived at each sink, ascending.
    pub(crate) arrived: Vec<Vec<u32>>,
}

impl Stream {
    /// Sends frames to `bits`, eight every two milliseconds, before, while and after `during` runs.
    pub(crate) fn run<T>(
        mut dispatcher: Dispatcher,
        bits: &[u32],
        sinks: Vec<Sink>,
        during: impl FnOnce() -> T,
    ) -> (T, Self) {
        let (enough, stop) = (AtomicBool::new(false), AtomicBool::new(false));
        thread::scope(|scope| {
            // A panic in here must end the threads too.
            let _stopper = Stopper([&enough, &stop]);
            let receivers: Vec<_> =
                sinks.into_iter().map(|sink| scope.spawn(|| sink.collect(&stop))).collect();
            let sender = scope.spawn(|| {
                let mut sent = 0;
                while !enough.load(Ordering::Relaxed) {
                    for _ in 0..8 {
                        dispatcher.dispatch(Destinations::Bits(bits), sent, b"stream").unwrap();
                        sent += 1;
                    }
                    dispatcher.flush().unwrap();
                    thread::sleep(Duration::from_millis(2));
                }
                sent
            });
            thread::sleep(Duration::from_millis(100));
            let result = during();
            thread::sleep(Duration::from_millis(100));
            enough.store(true, Ordering::Relaxed);
            let sent = sender.join().unwrap();
            thread::sleep(Duration::from_millis(200));
            stop.store(true, Ordering::Relaxed);
            let arrived = receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect();
            (result, Self { sent, arrived })
        })
    }

    /// How many frames did not arrive at each sink. None came twice.
    pub(crate) fn lost(&self) -> Vec<u32> {
        let lost = |arrived: &Vec<u32>| {
            assert!(arrived.windows(2).all(|pair| pair[0] < pair[1]), "a frame came twice");
            self.sent - arrived.len() as u32
        };
        self.arrived.iter().map(lost).collect()
    }
}

/// Sets the flags when it goes.
pub(crate) struct Stopper<'a>(pub(crate) [&'a AtomicBool; 2]);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.iter().for_each(|flag| flag.store(true, Ordering::Relaxed));
    }
}

/// Runs `replicator` with these arguments to its end.
pub(crate) fn replicator(host: &Host, arguments: &[&str]) -> Finished {
    start_replicator(host, arguments).finish().unwrap()
}

/// Starts `replicator` with these arguments.
pub(crate) fn start_replicator(host: &Host, arguments: &[&str]) -> Process {
    start_build(host, &binary(), arguments)
}

/// Starts a build of `replicator` with these arguments.
pub(crate) fn start_build(host: &Host, build: &Path, arguments: &[&str]) -> Process {
    let mut command = Command::new(build);
    command.args(arguments);
    host.spawn(command).unwrap()
}

pub(crate) fn binary() -> PathBuf {
    lab::binary().unwrap()
}

/// One whose maps have another layout.
pub(crate) fn other_layout_binary() -> PathBuf {
    lab::other_layout_binary().unwrap()
}

/// Runs `replicator run` with a configuration that it cannot run with; what it says.
pub(crate) fn refusal(host: &Host, config: &str) -> String {
    write_config(host, config);
    let Finished { status, stderr, .. } = replicator(host, &["run", "--config", CONFIG]);
    assert_eq!(status.code(), Some(1), "{stderr}");
    stderr
}

/// Where [`write_config`] writes to.
pub(crate) const CONFIG: &str = "/run/daemon-test.yaml";

pub(crate) fn write_config(host: &Host, config: &str) {
    host.run(|| Ok(fs::write(CONFIG, config)?)).unwrap();
}

/// What `replicator stats` counts.
pub(crate) fn stats(host: &Host) -> Value {
    let Finished { status, stdout, stderr } = replicator(host, &["stats", "--json"]);
    assert!(status.success(), "{stderr}");
    serde_json::from_str(&stdout).unwrap()
}

/// How often an outcome occurred.
pub(crate) fn count(host: &Host, outcome: &str) -> u64 {
    stats(host)["outcomes"][outcome].as_u64().unwrap()
}

/// The outcomes that occurred.
pub(crate) fn outcomes(host: &Host) -> BTreeMap<String, u64> {
    let all: BTreeMap<String, u64> = serde_json::from_value(stats(host)["outcomes"].clone()).unwrap();
    all.into_iter().filter(|(_, count)| *count > 0).collect()
}

/// What `replicator status --json` says.
pub(crate) fn status(host: &Host) -> Value {
    serde_json::from_str(&replicator(host, &["status", "--json"]).stdout).unwrap()
}

/// What it says of a neighbor.
pub(crate) fn neighbor(host: &Host, name: &str) -> Value {
    let status = status(host);
    let neighbors = status["daemon"]["neighbors"].as_array().unwrap();
    neighbors.iter().find(|neighbor| neighbor["name"] == name).unwrap().clone()
}

/// Waits until something holds.
pub(crate) fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}: not after {PATIENCE:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// Runs a shell script and takes its output.
pub(crate) fn shell(host: &Host, script: &str) -> String {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    host.output(command).unwrap()
}

/// The host's devices as `ip -json link` has them, by name.
pub(crate) fn links(host: &Host) -> BTreeMap<String, Value> {
    let mut ip = lab::tool("ip");
    ip.args(["-json", "link", "show"]);
    let links: Vec<Value> = serde_json::from_str(&host.output(ip).unwrap()).unwrap();
    let name = |link: &Value| link["ifname"].as_str().unwrap().to_owned();
    links.into_iter().map(|link| (name(&link), link)).collect()
}

/// The id of the XDP program on a device, by the names of those that have one.
pub(crate) fn programs(host: &Host) -> BTreeMap<String, u64> {
    let program = |(name, link): (String, Value)| Some((name, link.pointer("/xdp/prog/id")?.as_u64()?));
    links(host).into_iter().filter_map(program).collect()
}

/// Nothing of the replicator is in the host: no program, no pin, no veth, no file.
#[track_caller]
pub(crate) fn assert_nothing_left(host: &Host) {
    assert_eq!(programs(host), BTreeMap::new());
    assert!(!links(host).contains_key("replicator0"), "the origin veth is left");
    // The kernel's own two files end so (`bpf_preload`).
    assert_eq!(shell(host, "ls -A /sys/fs/bpf | grep -v '[.]debug$' || true"), "");
    assert_eq!(shell(host, "ls -d /run/replicator 2>/dev/null || true"), "");
}

/// The kernel's counters of protocols: `Udp InErrors`, `Udp6InErrors` and so on.
pub(crate) fn protocol_counters(host: &Host) -> BTreeMap<String, u64> {
    let read = |file| -> Result<String> { Ok(fs::read_to_string(format!("/proc/thread-self/net/{file}"))?) };
    let [v4, v6] = host.run(|| Ok([read("snmp")?, read("snmp6")?])).unwrap();
    let mut counters = BTreeMap::new();
    let lines: Vec<_> = v4.lines().collect();
    for pair in lines.chunks_exact(2) {
        let (protocol, names) = pair[0].split_once(": ").unwrap();
        let (_, values) = pair[1].split_once(": ").unwrap();
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            counters.extend(value.parse().ok().map(|value| (format!("{protocol}{name}"), value)));
        }
    }
    for line in v6.lines() {
        let mut words = line.split_whitespace();
        if let (Some(name), Some(value)) = (words.next(), words.next()) {
            counters.extend(value.parse().ok().map(|value| (name.to_owned(), value)));
        }
    }
    counters
}
