//! The edge to the kernel, on real interfaces. Each test has network namespaces of its own that only its
//! threads hold, so nothing outlives it.
#![expect(clippy::unwrap_used, reason = "whatever fails here fails the test")]

use std::{
    collections::BTreeSet,
    fs, io,
    net::{IpAddr, UdpSocket},
    process::Command,
    sync::mpsc::{Sender, channel},
    thread,
    time::Duration,
};

use aya::util::KernelVersion;
use replicator_user::{
    cli::doctor::Report,
    host::{
        Error, MacAddr, Netlink, XdpFeatures,
        address::OwnAddresses,
        bpffs,
        kernel::Kernel,
        link::{self, AttachedMode, Peer},
        origin::{self, OriginConfig, OriginSubnet},
        preflight::{self, Holder, Mode, Role},
        resolver::{Change, Reason, Resolution, Resolver, Target},
        watch::{HostEvent, LinkChange, Watch},
    },
};
use tokio::{sync::mpsc::UnboundedReceiver, time::timeout};

const PATIENCE: Duration = Duration::from_secs(10);

/// Runs a test in a network namespace of its own.
fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = thread::spawn(|| {
        unshare(libc::CLONE_NEWNET);
        ip("link set lo up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn unshare(namespaces: libc::c_int) {
    // SAFETY: no pointer is passed, and namespaces are all that is unshared.
    let status = unsafe { libc::unshare(namespaces) };
    assert_eq!(status, 0, "a new namespace needs root: {}", io::Error::last_os_error());
}

/// Runs a command in the calling thread's namespace.
fn run(program: &str, arguments: &str) {
    let output = Command::new(program).args(arguments.split_whitespace()).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments}: {text}");
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

fn ethtool(arguments: &str) {
    run("ethtool", arguments);
}

fn sysctl(path: &str, value: &str) {
    fs::write(format!("/proc/sys/net/{path}"), value).unwrap();
}

/// Another host: a thread in a namespace of its own.
struct Remote {
    thread: libc::pid_t,
    tasks: Sender<Box<dyn FnOnce() + Send>>,
}

impl Remote {
    fn new() -> Self {
        let (tasks, inbox) = channel::<Box<dyn FnOnce() + Send>>();
        let (reply, thread) = channel();
        thread::spawn(move || {
            unshare(libc::CLONE_NEWNET);
            // SAFETY: it only returns a number.
            reply.send(unsafe { libc::gettid() }).unwrap();
            for task in inbox {
                task();
            }
        });
        Self { thread: thread.recv().unwrap(), tasks }
    }

    fn run(&self, task: impl FnOnce() + Send + 'static) {
        let (done, wait) = channel();
        self.tasks
            .send(Box::new(move || {
                task();
                done.send(()).unwrap();
            }))
            .unwrap();
        wait.recv().expect("the task failed");
    }

    fn ip(&self, arguments: &'static str) {
        self.run(move || ip(arguments));
    }

    /// A veth from `near`, here, to `far`, there; both up. The far end has this MAC address and announces
    /// changes of it.
    fn join(&self, near: &str, far: &'static str, mac: &str) {
        let thread = self.thread;
        ip(&format!("link add {near} type veth peer name {far} address {mac} netns {thread}"));
        ip(&format!("link set {near} up"));
        self.run(move || {
            sysctl(&format!("ipv4/conf/{far}/arp_notify"), "1");
            ip(&format!("link set {far} up"));
        });
    }
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

fn target(to: &str) -> Target {
    Target { id: 7, address: Some(address(to)), interface: None, mac: None }
}

async fn ifindex(name: &str) -> u32 {
    link::named(&Netlink::open().unwrap(), name).await.unwrap().unwrap().ifindex
}

/// The resolution at which a target ends up: where the wanted one comes within the time, that one.
async fn settled(
    changes: &mut UnboundedReceiver<Change>,
    wanted: impl Fn(&Resolution) -> bool,
) -> Resolution {
    let mut last = None;
    let wait = async {
        while let Some(change) = changes.recv().await {
            assert_eq!(change.id, 7);
            let done = wanted(&change.resolution);
            last = Some(change.resolution);
            if done {
                return;
            }
        }
    };
    let in_time = timeout(PATIENCE, wait).await;
    assert!(in_time.is_ok(), "stuck at {last:?}");
    last.unwrap()
}

fn reaches(resolution: &Resolution, mac: MacAddr) -> bool {
    matches!(resolution, Resolution::Ready { destination_mac, .. } if *destination_mac == mac)
}

#[test]
fn a_neighbor_is_resolved_and_its_new_mac_address_is_seen() {
    in_namespace(async || {
        let remote = Remote::new();
        remote.join("near", "far", "02:00:00:00:00:02");
        ip("address add 10.0.0.1/24 dev near");
        let (_resolver, mut changes) = Resolver::start(vec![target("10.0.0.2")]).unwrap();
        // Nobody has the address yet, so nobody answers.
        let pending = settled(&mut changes, |_| true).await;
        let reason = Reason::NoAnswer { hop: address("10.0.0.2"), interface: "near".to_owned() };
        assert_eq!(pending, Resolution::Pending { reason });

        remote.ip("address add 10.0.0.2/24 dev far");
        let old = mac("02:00:00:00:00:02");
        let ready = settled(&mut changes, |resolution| reaches(resolution, old)).await;
        let near = link::named(&Netlink::open().unwrap(), "near").await.unwrap().unwrap();
        let expected = Resolution::Ready {
            ifindex: near.ifindex,
            source_mac: near.mac.unwrap(),
            destination_mac: old,
            source_ip: Some(address("10.0.0.1")),
        };
        assert_eq!(ready, expected);

        remote.ip("link set far address 02:00:00:00:00:99");
        let new = mac("02:00:00:00:00:99");
        settled(&mut changes, |resolution| reaches(resolution, new)).await;
    });
}

#[test]
fn an_ipv6_neighbor_is_resolved() {
    in_namespace(async || {
        let remote = Remote::new();
        remote.join("near", "far", "02:00:00:00:00:02");
        remote.ip("address add fd00::2/64 dev far nodad");
        ip("address add fd00::1/64 dev near nodad");
        let (_resolver, mut changes) = Resolver::start(vec![target("fd00::2")]).unwrap();
        let wanted = mac("02:00:00:00:00:02");
        let ready = settled(&mut changes, |resolution| reaches(resolution, wanted)).await;
        assert!(matches!(ready, Resolution::Ready { source_ip: Some(ip), .. } if ip == address("fd00::1")));
    });
}

#[test]
fn a_new_route_leads_to_another_router() {
    in_namespace(async || {
        let remote = Remote::new();
        remote.join("left", "farl", "02:00:00:00:01:02");
        remote.join("right", "farr", "02:00:00:00:02:02");
        remote.ip("address add 10.1.0.2/24 dev farl");
        remote.ip("address add 10.2.0.2/24 dev farr");
        ip("address add 10.1.0.1/24 dev left");
        ip("address add 10.2.0.1/24 dev right");
        let (_resolver, mut changes) = Resolver::start(vec![target("10.9.0.9")]).unwrap();
        let pending = settled(&mut changes, |_| true).await;
        let why = "no route leads there".to_owned();
        let reason = Reason::NoRoute { address: address("10.9.0.9"), why };
        assert_eq!(pending, Resolution::Pending { reason });

        ip("route add 10.9.0.0/16 via 10.1.0.2");
        settled(&mut changes, |resolution| reaches(resolution, mac("02:00:00:00:01:02"))).await;
        ip("route add 10.9.0.9/32 via 10.2.0.2");
        let ready = settled(&mut changes, |resolution| reaches(resolution, mac("02:00:00:00:02:02"))).await;
        let right = ifindex("right").await;
        assert!(matches!(ready, Resolution::Ready { ifindex, source_ip, .. }
            if ifindex == right && source_ip == Some(address("10.2.0.1"))));

        // The interface goes down, and the route with it: the other one is left.
        ip("link set right down");
        settled(&mut changes, |resolution| reaches(resolution, mac("02:00:00:00:01:02"))).await;
    });
}

#[test]
fn a_link_that_goes_down_and_comes_back_is_seen() {
    in_namespace(async || {
        let remote = Remote::new();
        remote.join("near", "far", "02:00:00:00:00:02");
        remote.ip("address add 10.0.0.2/24 dev far");
        ip("address add 10.0.0.1/24 dev near");
        let target = Target { interface: Some("near".to_owned()), ..target("10.0.0.2") };
        let (_resolver, mut changes) = Resolver::start(vec![target]).unwrap();
        let ready = |resolution: &Resolution| reaches(resolution, mac("02:00:00:00:00:02"));
        let is = |reason: Reason| {
            move |resolution: &Resolution| *resolution == Resolution::Pending { reason: reason.clone() }
        };
        settled(&mut changes, ready).await;
        ip("link set near down");
        settled(&mut changes, is(Reason::Down("near".to_owned()))).await;
        ip("link set near up");
        settled(&mut changes, ready).await;
        remote.ip("link set far down");
        settled(&mut changes, is(Reason::NoCarrier("near".to_owned()))).await;
        remote.ip("link set far up");
        settled(&mut changes, ready).await;
        ip("link del near");
        settled(&mut changes, is(Reason::NoInterface("near".to_owned()))).await;
    });
}

#[test]
fn targets_are_changed_while_it_runs() {
    in_namespace(async || {
        let remote = Remote::new();
        remote.join("near", "far", "02:00:00:00:00:02");
        remote.ip("address add 10.0.0.2/24 dev far");
        ip("address add 10.0.0.1/24 dev near");
        let (resolver, mut changes) = Resolver::start(vec![]).unwrap();
        resolver.set_targets(vec![target("10.0.0.2")]);
        settled(&mut changes, |resolution| reaches(resolution, mac("02:00:00:00:00:02"))).await;
        let given = Target {
            id: 7,
            address: None,
            interface: Some("near".to_owned()),
            mac: Some(mac("02:00:00:00:00:77")),
        };
        resolver.set_targets(vec![given]);
        let ready = settled(&mut changes, |_| true).await;
        assert!(matches!(ready, Resolution::Ready { source_ip: None, .. }));
        assert!(reaches(&ready, mac("02:00:00:00:00:77")));
    });
}

#[test]
fn lost_notifications_are_made_up_for() {
    in_namespace(async || {
        ip("link add near type veth peer name far");
        ip("link set near up");
        ip("link set far up");
        ip("address add 10.0.0.1/24 dev near");
        ip("neighbor add 10.0.0.2 lladdr 02:00:00:00:00:02 dev near");
        let (_resolver, mut changes) = Resolver::start(vec![target("10.0.0.2")]).unwrap();
        settled(&mut changes, |resolution| reaches(resolution, mac("02:00:00:00:00:02"))).await;

        // The runtime does not turn meanwhile, so the socket's buffer runs over: an old change is kept and the
        // last one dropped.
        let mut script = "neighbor replace 10.0.0.2 lladdr 02:00:00:00:00:55 dev near\n".to_owned();
        for number in 0..20_000_u32 {
            let [_, _, a, b] = number.to_be_bytes();
            script += &format!("neighbor add 10.200.{a}.{b} lladdr 02:00:00:00:00:03 dev near\n");
        }
        script += "neighbor replace 10.0.0.2 lladdr 02:00:00:00:00:99 dev near\n";
        let (reader, mut writer) = io::pipe().unwrap();
        let mut batch = Command::new("ip").args(["-batch", "-"]).stdin(reader).spawn().unwrap();
        io::Write::write_all(&mut writer, script.as_bytes()).unwrap();
        drop(writer);
        assert!(batch.wait().unwrap().success());
        let sockets = fs::read_to_string("/proc/thread-self/net/netlink").unwrap();
        let dropped = |line: &str| line.split_whitespace().nth(8).is_some_and(|drops| drops.parse() != Ok(0));
        assert!(sockets.lines().skip(1).any(dropped), "nothing was lost:\n{sockets}");

        settled(&mut changes, |resolution| reaches(resolution, mac("02:00:00:00:00:99"))).await;
        let late = timeout(Duration::from_secs(1), changes.recv()).await;
        assert!(late.is_err(), "an old change came back: {late:?}");
    });
}

#[test]
fn links_and_own_addresses_are_watched() {
    in_namespace(async || {
        let (_watch, mut events) = Watch::start().unwrap();
        let mut next = async || timeout(PATIENCE, events.recv()).await.expect("no event").unwrap();
        let link = |event, wanted: &str| match event {
            HostEvent::Link { name, change, .. } if name == wanted => change,
            other => panic!("{other:?}"),
        };
        // The present state comes first.
        assert!(matches!(link(next().await, "lo"), LinkChange::Added { running: true, .. }));
        let own = |ips: &[&str], macs: &[&str]| {
            HostEvent::OwnAddresses(OwnAddresses {
                ips: ips.iter().map(|ip| address(ip)).collect(),
                macs: macs.iter().map(|text| mac(text)).collect(),
            })
        };
        assert_eq!(next().await, own(&["127.0.0.1", "::1"], &[]));

        let remote = Remote::new();
        let thread = remote.thread;
        ip(&format!(
            "link add eth0 mtu 1400 address 02:00:00:00:00:01 type veth peer name far netns {thread}"
        ));
        assert_eq!(link(next().await, "eth0"), LinkChange::Added { running: false, mtu: 1400 });
        let macs = ["02:00:00:00:00:01"];
        assert_eq!(next().await, own(&["127.0.0.1", "::1"], &macs));
        ip("link set eth0 mtu 1300");
        assert_eq!(link(next().await, "eth0"), LinkChange::Mtu(1300));
        // Before it is up, so that there is no link-local address to come.
        sysctl("ipv6/conf/eth0/disable_ipv6", "1");
        ip("link set eth0 up");
        ip("address add 10.0.0.1/24 dev eth0");
        assert_eq!(next().await, own(&["127.0.0.1", "::1", "10.0.0.1"], &macs));
        remote.ip("link set far up");
        assert_eq!(link(next().await, "eth0"), LinkChange::Up);
        ip("link set eth0 address 02:00:00:00:00:09");
        assert_eq!(next().await, own(&["127.0.0.1", "::1", "10.0.0.1"], &["02:00:00:00:00:09"]));
        ip("link set eth0 down");
        assert_eq!(link(next().await, "eth0"), LinkChange::Down);
        ip("link del eth0");
        assert_eq!(link(next().await, "eth0"), LinkChange::Removed);
        assert_eq!(next().await, own(&["127.0.0.1", "::1"], &[]));
    });
}

/// What the kernel tells of an interface's features; kernels before 6.3 tell nothing.
async fn features(name: &str) -> Option<XdpFeatures> {
    let features = link::named(&Netlink::open().unwrap(), name).await.unwrap().unwrap().features;
    let told = KernelVersion::current().unwrap() >= KernelVersion::new(6, 3, 0);
    assert_eq!(features.is_some(), told);
    features
}

#[test]
fn the_features_of_a_veth_tell_of_its_other_end() {
    in_namespace(async || {
        ip("link add near type veth peer name far");
        for name in ["near", "far"] {
            ip(&format!("link set {name} up"));
        }
        let near = link::named(&Netlink::open().unwrap(), "near").await.unwrap().unwrap();
        assert_eq!(near.kind.as_deref(), Some("veth"));
        assert_eq!(near.peer, Some(Peer::Here(ifindex("far").await)));
        assert!(near.is_running());
        let Some(before) = features("near").await else { return };
        assert!(before.basic && before.redirect && before.rx_sg && !before.ndo_xmit, "{before:?}");
        ethtool("-K far gro on");
        let after = features("near").await.unwrap();
        assert!(after.ndo_xmit && after.ndo_xmit_sg, "{after:?}");
        assert!(!features("far").await.unwrap().ndo_xmit);
        assert_eq!(features("lo").await.unwrap(), XdpFeatures::default());
    });
}

async fn problems(name: &str, role: Role) -> Vec<String> {
    let facts = preflight::examine(&Netlink::open().unwrap(), name).await.unwrap();
    let problems = preflight::verdict(name, facts.as_ref(), Mode::Native, role, &[]);
    problems.into_iter().filter(|problem| problem.is_refusal()).map(|problem| problem.text).collect()
}

#[test]
fn preflight_follows_its_own_advice() {
    in_namespace(async || {
        assert_eq!(problems("near", Role::Both).await.len(), 1);
        ip("link add near numtxqueues 2 type veth peer name far numtxqueues 2");
        let advice = problems("near", Role::Both).await;
        assert!(advice[0].contains("`ip link set dev near up`"), "{advice:?}");
        ip("link set dev near up");
        let advice = problems("near", Role::Both).await;
        assert!(advice.iter().any(|text| text.contains("`ip link set dev far up`")), "{advice:?}");
        ip("link set dev far up");
        let advice = problems("near", Role::Both).await;
        assert!(advice.iter().any(|text| text.contains("`ethtool -K far gro on`")), "{advice:?}");
        ethtool("-K far gro on");
        if features("near").await.is_some() {
            let advice = problems("near", Role::Both).await;
            assert_eq!(advice.len(), 1, "{advice:?}");
            assert!(advice[0].contains("`ethtool -L near rx 2`"), "{advice:?}");
        }
        ethtool("-L near rx 2");
        assert_eq!(problems("near", Role::Both).await, [""; 0]);
    });
}

#[test]
fn a_veth_to_another_namespace_is_judged_from_this_side() {
    in_namespace(async || {
        let remote = Remote::new();
        remote.join("near", "far", "02:00:00:00:00:02");
        let facts = preflight::examine(&Netlink::open().unwrap(), "near").await.unwrap().unwrap();
        assert_eq!((facts.link.peer, facts.peer), (Some(Peer::Elsewhere), None));
        if features("near").await.is_none() {
            return;
        }
        let advice = problems("near", Role::Egress).await;
        assert!(advice[0].contains("`ethtool -K PEER gro on` there"), "{advice:?}");
        remote.run(|| ethtool("-K far gro on"));
        assert_eq!(problems("near", Role::Egress).await, [""; 0]);
    });
}

/// Calls bpf(2) with an attribute of these words.
fn bpf<const WORDS: usize>(command: libc::c_long, mut attribute: [u32; WORDS]) -> libc::c_int {
    // SAFETY: the attribute lives through the call and its size is given; what it points to outlives it.
    let fd =
        unsafe { libc::syscall(libc::SYS_bpf, command, attribute.as_mut_ptr(), size_of_val(&attribute)) };
    assert!(fd >= 0, "bpf {command}: {}", io::Error::last_os_error());
    libc::c_int::try_from(fd).unwrap()
}

fn words(pointer: *const u8) -> [u32; 2] {
    let bytes = (pointer as u64).to_ne_bytes();
    [&bytes[..4], &bytes[4..]].map(|half| u32::from_ne_bytes(half.try_into().unwrap()))
}

#[test]
fn the_holder_of_a_hook_is_named() {
    in_namespace(async || {
        ip("link add near type veth peer name far");
        ip("link set near up");
        // r0 = XDP_PASS; exit.
        let program: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
        let [insns, more_insns] = words(program.as_ptr().cast());
        let [license, more_license] = words(c"GPL".as_ptr().cast());
        let [na, me, _, _] = [*b"pass", *b"_all", [0; 4], [0; 4]].map(u32::from_ne_bytes);
        // BPF_PROG_LOAD of BPF_PROG_TYPE_XDP.
        let load = [6, 2, insns, more_insns, license, more_license, 0, 0, 0, 0, 0, 0, na, me, 0, 0];
        let program = bpf(5, load);
        // BPF_LINK_CREATE with BPF_XDP and XDP_FLAGS_DRV_MODE.
        let link = bpf(28, [program.try_into().unwrap(), ifindex("near").await, 37, 1 << 2]);

        let facts = preflight::examine(&Netlink::open().unwrap(), "near").await.unwrap().unwrap();
        let attached = facts.link.xdp.unwrap();
        assert_eq!(attached.mode, AttachedMode::Native);
        let Some(Holder { program_id, name, link_id: Some(link_id), .. }) = facts.holder.clone() else {
            panic!("{facts:?}")
        };
        assert_eq!((program_id, name.as_deref()), (attached.program_id, Some("pass_all")));
        let text = preflight::verdict("near", Some(&facts), Mode::Native, Role::Ingress, &[])
            .into_iter()
            .find(|problem| problem.is_refusal())
            .unwrap()
            .text;
        assert!(text.contains(&format!("\"pass_all\" (id {program_id})")), "{text}");
        assert!(text.ends_with(&format!("`bpftool link detach id {link_id}`")), "{text}");
        for fd in [link, program] {
            // SAFETY: the descriptor is ours and not used again.
            assert_eq!(unsafe { libc::close(fd) }, 0);
        }
        assert_eq!(link::named(&Netlink::open().unwrap(), "near").await.unwrap().unwrap().xdp, None);
    });
}

fn subnet(stack: &str, peer: &str) -> OriginSubnet {
    OriginSubnet { stack: stack.parse().unwrap(), peer: address(peer) }
}

fn origin_config() -> OriginConfig {
    OriginConfig {
        finish_checksums: false,
        name: "replicator0".to_owned(),
        queues: 2,
        subnets: vec![subnet("169.254.81.1/30", "169.254.81.2"), subnet("fd00:8138::1/126", "fd00:8138::2")],
    }
}

async fn names(netlink: &Netlink) -> BTreeSet<String> {
    link::all(netlink).await.unwrap().into_iter().map(|link| link.name).collect()
}

#[test]
fn an_origin_made_twice_is_the_same_and_removed_leaves_nothing() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        let before = (names(&netlink).await, OwnAddresses::read(&netlink).await.unwrap());
        let origin = origin::ensure(&netlink, &origin_config()).await.unwrap();
        assert_eq!(origin::ensure(&netlink, &origin_config()).await.unwrap(), origin);
        assert_eq!((origin.name.as_str(), origin.peer_name.as_str()), ("replicator0", "replicator0p"));

        let facts = preflight::examine(&netlink, "replicator0").await.unwrap().unwrap();
        assert_eq!((facts.link.ifindex, facts.link.mac), (origin.ifindex, Some(origin.mac)));
        assert_eq!((facts.link.mtu, facts.gro, facts.link.is_running()), (3498, true, true));
        let channels = facts.channels.unwrap();
        assert_eq!((channels.rx, channels.tx), (origin.queues, origin.queues));
        let peer = preflight::examine(&netlink, "replicator0p").await.unwrap().unwrap();
        assert_eq!((peer.link.ifindex, peer.link.mac), (origin.peer_ifindex, Some(origin.peer_mac)));
        assert_eq!((peer.link.mtu, peer.link.is_running()), (3498, true));
        let verdict = preflight::verdict("replicator0p", Some(&peer), Mode::Native, Role::Both, &[]);
        assert!(!preflight::is_refusal(&verdict), "{verdict:?}");

        // Usable at once: addresses are there, and neighbors need no answer.
        for (stack, peer) in [("169.254.81.1", "169.254.81.2"), ("fd00:8138::1", "fd00:8138::2")] {
            let socket = UdpSocket::bind((address(stack), 0)).unwrap();
            socket.send_to(b"x", (address(peer), 8138)).unwrap();
        }
        let (_resolver, mut changes) = Resolver::start(vec![target("fd00:8138::2")]).unwrap();
        settled(&mut changes, |resolution| reaches(resolution, origin.peer_mac)).await;

        assert!(origin::remove(&netlink, "replicator0").await.unwrap());
        assert!(!origin::remove(&netlink, "replicator0").await.unwrap());
        assert_eq!((names(&netlink).await, OwnAddresses::read(&netlink).await.unwrap()), before);
    });
}

#[test]
fn an_origin_marks_what_this_host_sends_and_finishes_checksums_where_it_must() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        let said = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).output().unwrap();
            String::from_utf8_lossy(&output.stdout).into_owned()
        };
        for finish_checksums in [true, false] {
            let config = OriginConfig { finish_checksums, ..origin_config() };
            origin::ensure(&netlink, &config).await.unwrap();
            let features = said("ethtool", &["-k", "replicator0"]);
            let offload = if finish_checksums { "off" } else { "on" };
            assert!(features.contains(&format!("tx-checksumming: {offload}")), "{features}");
        }
        for destination in ["169.254.81.2", "fd00:8138::2"] {
            let route = said("ip", &["route", "get", destination]);
            assert!(route.contains("dev replicator0") && route.contains("hoplimit 255"), "{route}");
        }
    });
}

#[test]
fn an_origin_takes_a_new_configuration() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        let origin = origin::ensure(&netlink, &origin_config()).await.unwrap();
        ip("link set replicator0 down");
        ip("link set replicator0p mtu 1500");
        ethtool("-K replicator0 gro off");
        let changed = OriginConfig {
            finish_checksums: false,
            queues: 1,
            subnets: vec![subnet("169.254.99.1/30", "169.254.99.2")],
            ..origin_config()
        };
        let after = origin::ensure(&netlink, &changed).await.unwrap();
        assert_eq!(after, origin::Origin { queues: 1, ..origin });
        let global = |own: OwnAddresses| -> Vec<IpAddr> {
            let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
            own.ips.into_iter().filter(|ip| !ip.is_loopback() && !link_local(ip)).collect()
        };
        assert_eq!(global(OwnAddresses::read(&netlink).await.unwrap()), [address("169.254.99.1")]);
        let facts = preflight::examine(&netlink, "replicator0").await.unwrap().unwrap();
        assert!(facts.gro && facts.link.is_running());
        assert_eq!(link::named(&netlink, "replicator0p").await.unwrap().unwrap().mtu, 3498);
        let gone = Command::new("ip").args(["neighbor", "show", "169.254.81.2"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&gone.stdout), "");
    });
}

#[test]
fn what_is_not_ours_is_left_alone() {
    in_namespace(async || {
        let netlink = Netlink::open().unwrap();
        ip("link add replicator0 type veth peer name replicator0p");
        for result in [
            origin::ensure(&netlink, &origin_config()).await.map(|_| ()),
            origin::remove(&netlink, "replicator0").await.map(|_| ()),
        ] {
            let Err(Error::Unfit(text)) = result else { panic!("{result:?}") };
            assert_eq!(
                text,
                "interface replicator0 exists and is not an origin pair of the replicator's: choose another \
                 name for the origin, or remove it with `ip link del replicator0`"
            );
        }
        assert_eq!(names(&netlink).await.len(), 3);
    });
}

#[test]
fn a_bpf_file_system_is_mounted_where_there_is_none() {
    thread::spawn(|| {
        // In a mount namespace of this thread's own; a fresh sysfs covers what is mounted below.
        unshare(libc::CLONE_NEWNET | libc::CLONE_NEWNS);
        run("mount", "--make-rprivate /");
        run("mount", "-t sysfs sysfs /sys");
        let directory = std::path::Path::new("/sys/fs/bpf/replicator/v1");
        assert!(!bpffs::is_mounted());
        bpffs::ensure(directory).unwrap();
        bpffs::ensure(directory).unwrap();
        assert!(bpffs::is_mounted() && directory.is_dir());
    })
    .join()
    .unwrap();
}

#[test]
fn the_doctor_finds_this_machine_able() {
    in_namespace(async || {
        ip("link add near type veth peer name far");
        ip("link set near up");
        ip("link set far up");
        let interfaces = preflight::examine_all(&Netlink::open().unwrap()).await.unwrap();
        let report = Report::new(Kernel::read(), interfaces);
        // Without privileges, or on a kernel that is too old, the other tests here would fail as well.
        assert!(report.able, "{report}");
        let names: Vec<_> = report.interfaces.iter().map(|interface| &interface.facts.link.name).collect();
        assert_eq!(names, ["far", "near"]);
        println!("{report}");
    });
}
