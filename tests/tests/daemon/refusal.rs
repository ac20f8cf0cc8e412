//! What the daemon refuses to start with: it says why, and leaves everything as it was.

use std::{thread, time::Duration};

use replicator_tests::lab::{Daemon, End, Finished, Lab, Link, tool};
use rustix::process::Signal;

use crate::network::*;

#[test]
fn an_interface_that_is_not_fit_is_named_with_its_remedy() {
    let host = Lab::new().unwrap().host("host").unwrap();
    let (near, far) = (End::new(&host, "eth0"), End::new(&host, "eth0f"));
    Link::default().join(&near, &far.clone()).unwrap();
    let (deaf, deaf_far) = (End::new(&host, "eth1").receives_redirects(), End::new(&host, "eth1f"));
    Link::default().join(&deaf, &deaf_far).unwrap();
    host.ip("link add br0 type bridge\nlink set br0 up\nlink set eth0 down\n").unwrap();
    let text = refusal(&host, "origin: {}\ninterfaces: [eth0, eth1, eth9, br0]\n");
    for line in [
        "eth0 is down: `ip link set dev eth0 up`",
        "eth1: its other end eth1f has neither a native XDP program nor GRO, and copies into a veth arrive only where \
         the other end has one of them: `ethtool -K eth1f gro on`",
        "eth9: there is no such interface in this network namespace; `ip link` lists those there are",
        "br0: interfaces of kind bridge have no native XDP: use the interfaces below it",
    ] {
        assert!(text.lines().any(|said| said.ends_with(line)), "{line:?} is not in\n{text}");
    }
    assert_nothing_left(&host);
    // One at fault is enough; the others are not attached either.
    let mut gro = tool("ethtool");
    gro.args(["-K", "eth1f", "gro", "on"]);
    host.output(gro).unwrap();
    let text = refusal(&host, "origin: {}\ninterfaces: [eth1, eth9]\n");
    assert!(text.contains("eth9: there is no such interface") && !text.contains("eth1:"), "{text}");
    assert_nothing_left(&host);
}

#[test]
fn who_holds_a_hook_is_named_and_left_alone() {
    let cluster = Cluster::new(1);
    let (sender, mut sinks) = (&cluster.sender, cluster.sinks());
    let _other = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    let before = programs(sender);
    let config = "pin-path: /sys/fs/bpf/second\norigin: { interface: second0, ipv4: 169.254.82.1/30, ipv6: \
                  \"fd00:8139::1/126\" }\ninterfaces: [eth0]\n";
    let text = refusal(sender, config);
    let program = format!(
        "eth0: program \"replicator_repl\" (id {}) holds the XDP hook in native mode",
        before["eth0"]
    );
    assert!(text.contains(&program), "{text}");
    assert!(!links(sender).contains_key("second0"));
    assert_eq!(shell(sender, "ls -A /sys/fs/bpf | grep -v '[.]debug$'; ls /run/replicator"), {
        "replicator\ncontrol.sock\ncontrol.sock.lock\nsys-fs-bpf-replicator.json\n"
    });
    assert_eq!(programs(sender), before);
    send(&mut dispatcher(sender, ORIGIN_V4, TABLE), 1, &[1]);
    assert_eq!(sinks[0].numbers(1), [1]);
}

#[test]
fn generic_mode_works_where_it_is_configured_and_is_not_changed_into_native() {
    let cluster = Cluster::new(2);
    let (sender, mut sinks) = (&cluster.sender, cluster.sinks());
    let generic = Daemon::start(sender, &binary(), &format!("mode: generic\n{}", cluster.config())).unwrap();
    let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    // IFLA_XDP_ATTACHED of linux/if_link.h: XDP_ATTACHED_DRV is 1, XDP_ATTACHED_SKB is 2.
    let modes = || ["eth0", "replicator0p"].map(|device| links(sender)[device]["xdp"]["mode"].clone());
    send(&mut dispatcher, 1, &[1, 2]);
    assert!(generic.stop().unwrap().success());
    assert_eq!(modes(), [2, 2]);
    let before = programs(sender);
    let text = refusal(sender, &cluster.config());
    let own = format!(
        "eth0: our own program {} is attached in generic mode, and native mode is configured: `replicator detach` first",
        before["eth0"]
    );
    assert!(text.contains(&own), "{text}");
    assert_eq!((programs(sender), modes()), (before, [2, 2].map(Into::into)));
    send(&mut dispatcher, 2, &[1, 2]);
    for sink in &mut sinks {
        assert_eq!(sink.numbers(2), [1, 2]);
    }
    assert!(replicator(sender, &["detach"]).status.success());
    let native = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    assert_eq!(modes(), [1, 1]);
    // The origin veth alone is no exception.
    assert!(native.stop().unwrap().success());
    let text =
        refusal(sender, &format!("mode: generic\n{}", cluster.config().replace("interfaces: [eth0]\n", "")));
    let own =
        format!("replicator0p: our own program {} is attached in native mode", programs(sender)["eth0"]);
    assert!(text.contains(&own), "{text}");
    assert_eq!(modes(), [1, 1]);
}

#[test]
fn a_bad_configuration_is_told_with_its_line() {
    let host = Lab::new().unwrap().host("host").unwrap();
    let text = refusal(&host, "origin: {}\ninterfaces: [eth0]\nneighbours: {}\n");
    assert!(text.contains(&format!("{CONFIG}:3:1")) && text.contains("neighbors"), "{text}");
    let text = refusal(&host, "interfaces:\n  - eth0\nneighbors:\n  a: { address: 10.0.0.256 }\n");
    assert!(text.contains(&format!("{CONFIG}:4:")) && text.contains("10.0.0.256"), "{text}");
    let missing = replicator(&host, &["run", "--config", "/run/no-such-file"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(missing.stderr.contains("/run/no-such-file"), "{}", missing.stderr);
    assert_nothing_left(&host);
}

/// Wherever in its start SIGTERM meets it: either everything is in place when it has ended, or nothing is changed.
#[test]
fn an_end_during_the_start_leaves_all_or_nothing() {
    let cluster = Cluster::new(1);
    let (sender, mut sinks) = (&cluster.sender, cluster.sinks());
    // Nobody answers for its address: the start waits for two seconds.
    let config = cluster.config().replace("node-tables:", "  absent: { address: 10.0.1.99 }\nnode-tables:");
    let end_after = |millis| {
        write_config(sender, &config);
        let mut process = start_replicator(sender, &["run", "--config", CONFIG]);
        thread::sleep(Duration::from_millis(millis));
        process.signal(Signal::TERM).unwrap();
        process.finish().unwrap()
    };
    let mut heeded = 0;
    for millis in [0, 20, 50, 100, 200, 400, 800, 1200] {
        let Finished { status, stderr, .. } = end_after(millis);
        if programs(sender).is_empty() {
            assert_nothing_left(sender);
            heeded += u32::from(stderr.contains("ended before it had started; everything is as it was"));
        } else {
            assert!(status.success() && programs(sender).len() == 2, "{stderr}");
            send(&mut dispatcher(sender, ORIGIN_V4, TABLE), 1, &[1]);
            assert_eq!(sinks[0].numbers(1), [1]);
            assert!(replicator(sender, &["detach"]).status.success());
            assert_nothing_left(sender);
        }
    }
    assert!(heeded > 0, "the end was not heeded");

    Daemon::start(sender, &binary(), &cluster.config()).unwrap().stop().unwrap();
    let before = programs(sender);
    for millis in [200, 800] {
        end_after(millis);
        assert_eq!(programs(sender), before);
    }
    send(&mut dispatcher(sender, ORIGIN_V4, TABLE), 2, &[1]);
    assert_eq!(sinks[0].numbers(1), [2]);
    assert_eq!(count(sender, "sent"), 1);
}
