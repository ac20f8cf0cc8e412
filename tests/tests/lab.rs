//! The laboratory by itself: hosts reach each other, and nothing of them is left.

#![expect(clippy::unwrap_used, reason = "a test fails by it, and its helpers are not seen as tests")]

use std::{
    fs,
    net::UdpSocket,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use replicator_tests::lab::{End, Host, Lab, Link};

fn link(left: &Host, right: &Host) {
    let left = End::new(left, "eth0")
        .mac([2, 0, 0, 0, 0, 1])
        .address("192.0.2.1/24".parse().unwrap())
        .address("2001:db8::1/64".parse().unwrap());
    let right = End::new(right, "port3")
        .address("192.0.2.2/24".parse().unwrap())
        .address("2001:db8::2/64".parse().unwrap())
        .receives_redirects();
    Link { mtu: 3000, queues: 2 }.join(&left, &right).unwrap();
}

#[test]
fn hosts_reach_each_other_at_once_over_both_families() {
    let lab = Lab::new().unwrap();
    let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
    link(&a, &b);
    for (from, to) in [("192.0.2.1:0", "192.0.2.2:0"), ("[2001:db8::1]:0", "[2001:db8::2]:0")] {
        let receiver = b.run(|| Ok(UdpSocket::bind(to)?)).unwrap();
        receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let address = receiver.local_addr().unwrap();
        // The largest packet, unfragmented: 3000 less 48 bytes of headers at most.
        a.run(|| Ok(UdpSocket::bind(from)?.send_to(&[7; 2952], address)?)).unwrap();
        let mut buffer = [0; 4096];
        let (count, source) = receiver.recv_from(&mut buffer).unwrap();
        assert_eq!((count, source.ip()), (2952, from.parse::<std::net::SocketAddr>().unwrap().ip()));
    }
    let eth0 = a.output(shell("ip -json link show eth0; cat /sys/class/net/eth0/address")).unwrap();
    assert!(eth0.contains("\"mtu\":3000") && eth0.ends_with("02:00:00:00:00:01\n"), "{eth0}");
    let gro = b.output(shell("ethtool -k port3")).unwrap();
    assert!(gro.contains("generic-receive-offload: on"), "{gro}");
    assert_eq!(b.output(shell("ls -d /sys/class/net/port3/queues/rx-* | wc -l")).unwrap(), "2\n");
}

#[test]
fn a_bridge_joins_what_its_ports_lead_to() {
    let lab = Lab::new().unwrap();
    let switch = lab.host("switch").unwrap();
    let nodes: Vec<Host> = (1..=3)
        .map(|i| {
            let node = lab.host(&format!("node{i}")).unwrap();
            let address = format!("192.0.2.{i}/24").parse().unwrap();
            let end = End::new(&node, "eth0").mac([2, 0, 0, 0, 0, i]).address(address);
            Link::default().join(&end, &End::new(&switch, &format!("port{i}"))).unwrap();
            node
        })
        .collect();
    switch.bridge("br0", 1500, &["port1", "port2", "port3"]).unwrap();
    switch.forward(&[([2, 0, 0, 0, 0, 3], "port3")]).unwrap();
    let table = switch.output(shell("bridge fdb show br br0")).unwrap();
    assert!(table.contains("02:00:00:00:00:03 dev port3 master br0 static"), "{table}");
    let receiver = nodes[2].run(|| Ok(UdpSocket::bind("192.0.2.3:0")?)).unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for node in &nodes[..2] {
        let address = receiver.local_addr().unwrap();
        node.run(|| Ok(UdpSocket::bind("0.0.0.0:0")?.send_to(node.name().as_bytes(), address)?)).unwrap();
        let mut buffer = [0; 16];
        let count = receiver.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..count], node.name().as_bytes());
    }
}

#[test]
fn a_host_has_its_own_pins_and_run_directory_and_keeps_the_working_directory() {
    let lab = Lab::new().unwrap();
    let host = lab.host("host").unwrap();
    let here = std::env::current_dir().unwrap();
    let mark = "/run/replicator-lab-test";
    host.run(|| {
        assert_eq!(std::env::current_dir()?, here);
        fs::create_dir("/sys/fs/bpf/pins")?;
        Ok(fs::write(mark, "")?)
    })
    .unwrap();
    assert_eq!(host.output(shell(&format!("ls {mark} -d /sys/fs/bpf/pins; pwd"))).unwrap(), {
        format!("/run/replicator-lab-test\n/sys/fs/bpf/pins\n{}\n", here.display())
    });
    let other = lab.host("other").unwrap();
    assert_eq!(other.output(shell("ls -d /run/* /sys/fs/bpf/pins || true")).unwrap(), "");
    assert!(!Path::new(mark).exists() && !Path::new("/sys/fs/bpf/pins").exists());
    let mut inside = Command::new("pwd");
    inside.current_dir("/usr");
    assert_eq!(host.output(inside).unwrap(), "/usr\n");
}

#[test]
fn a_failure_says_host_command_and_what_it_printed() {
    let host = Lab::new().unwrap().host("node7").unwrap();
    let error = format!("{:#}", host.output(shell("echo because >&2; exit 3")).unwrap_err());
    for part in ["node7", "exit 3", "exit status: 3", "because"] {
        assert!(error.contains(part), "{part} is not in: {error}");
    }
    let error = format!("{:#}", host.ip("link set eth9 up\n").unwrap_err());
    assert!(error.contains("Cannot find device \"eth9\""), "{error}");
    let error = format!("{:#}", host.sysctl("net.ipv4.no_such", "1").unwrap_err());
    assert!(error.contains("node7") && error.contains("net.ipv4.no_such"), "{error}");
    assert!(host.spawn(Command::new("no-such-command")).is_err());
}

#[test]
fn a_dropped_child_is_killed() {
    let host = Lab::new().unwrap().host("host").unwrap();
    let mut command = Command::new("sleep");
    command.arg("600");
    let child = host.spawn(command).unwrap();
    let path = format!("/proc/{}", child.id());
    assert!(Path::new(&path).exists());
    drop(child);
    assert!(!Path::new(&path).exists());
}

/// A process of its own, which is this test again, makes hosts and a child; it is ended, and nothing is left.
#[test]
fn nothing_is_left_after_the_process() {
    const INSIDE: &str = "REPLICATOR_LAB_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_some() {
        let lab = Lab::new().unwrap();
        lab.exit_on_signals().unwrap();
        let (a, b) = (lab.host("a").unwrap(), lab.host("b").unwrap());
        link(&a, &b);
        let mut sleep = Command::new("sleep");
        sleep.arg("600");
        let child = a.spawn(sleep).unwrap();
        println!(
            "child {} namespace {}",
            child.id(),
            fs::read_link(a.network_namespace()).unwrap().display()
        );
        std::thread::sleep(Duration::from_secs(600));
    }
    for (signal, code) in [("KILL", None), ("TERM", Some(130)), ("INT", Some(130))] {
        let mut inside = Command::new(std::env::current_exe().unwrap());
        inside.args(["--exact", "nothing_is_left_after_the_process", "--nocapture"]).env(INSIDE, "1");
        let mut inside = inside.stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut lines = std::io::BufRead::lines(std::io::BufReader::new(inside.stdout.take().unwrap()));
        let line =
            lines.find_map(|line| line.unwrap().split_once("child ").map(|at| at.1.to_owned())).unwrap();
        let [child, _, namespace] = line.split(' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
        assert!(in_use(namespace));
        let kill = Command::new("kill").args(["-s", signal, &inside.id().to_string()]).status().unwrap();
        assert!(kill.success());
        assert_eq!(inside.wait().unwrap().code(), code, "{signal}");
        if code.is_some() {
            assert!(!Path::new(&format!("/proc/{child}")).exists(), "{signal}");
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        while Path::new(&format!("/proc/{child}")).exists() || in_use(namespace) {
            assert!(Instant::now() < deadline, "{signal}: child {child} or {namespace} is still there");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Whether any process of the machine is in the network namespace or holds it by a file descriptor.
fn in_use(namespace: &str) -> bool {
    let links = ["/proc/[0-9]*/task/*/ns/net", "/proc/[0-9]*/fd/*"];
    let list = shell(&format!("readlink {} 2>/dev/null | grep -cFx '{namespace}'", links.join(" ")))
        .output()
        .unwrap();
    String::from_utf8(list.stdout).unwrap() != "0\n"
}

fn shell(script: &str) -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", script]);
    command
}
