//! The daemon without root.

use std::{process::Command, thread};

use replicator_tests::lab::{Finished, Host, Process};
use rustix::process::Signal;

use crate::network::*;

/// Numbers of capabilities(7), as setpriv(1) of every age takes them.
const NET_ADMIN: &str = "net_admin";
const PERFMON: &str = "cap_38";
const BPF: &str = "cap_39";

/// Where the user finds the command.
const COMMAND: &str = "/run/bin/replicator";

/// Nobody.
const USER: u32 = 65534;

/// What a service manager prepares for a user: where to pin, and where the status goes. And the command, which may lie where
/// the user may not go.
fn prepare(host: &Host) {
    shell(
        host,
        &format!(
            "mkdir /sys/fs/bpf/replicator /run/replicator && chown {USER} /sys/fs/bpf/replicator /run/replicator && \
             mkdir /run/bin && touch {COMMAND} && mount --bind {} {COMMAND}",
            binary().display()
        ),
    );
}

/// Starts `replicator` as a user with these capabilities and no others.
fn start(host: &Host, capabilities: &[&str], arguments: &[&str]) -> Process {
    let capabilities: String = capabilities.iter().map(|name| format!(",+{name}")).collect();
    let mut setpriv = Command::new("setpriv");
    setpriv
        .args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"])
        .arg(format!("--inh-caps=-all{capabilities}"))
        .arg(format!("--ambient-caps=-all{capabilities}"))
        .arg(format!("--bounding-set=-all{capabilities}"))
        .arg(COMMAND)
        .args(arguments)
        .env("RUNTIME_DIRECTORY", "/run/replicator");
    host.spawn(setpriv).unwrap()
}

#[test]
fn three_capabilities_are_enough() {
    let cluster = Cluster::new(2);
    let (sender, mut sinks) = (&cluster.sender, cluster.sinks());
    prepare(sender);
    write_config(sender, &cluster.config());
    for number in [1, 2] {
        let mut daemon = start(sender, &[NET_ADMIN, PERFMON, BPF], &["run", "--config", CONFIG]);
        until("it is ready", || {
            assert!(daemon.poll().unwrap().is_none(), "{}", daemon.printed());
            daemon.printed().contains("replicating: tables: 2, neighbors resolved: 4 of 4, interfaces: 2")
        });
        send(&mut dispatcher(sender, ORIGIN_V4, TABLE), number, &[1, 2]);
        for sink in &mut sinks {
            assert_eq!(sink.numbers(1), [number]);
        }
        for command in ["status", "stats"] {
            let Finished { status, stderr, .. } = start(sender, &[BPF], &[command]).finish().unwrap();
            assert!(status.success(), "{command}: {stderr}");
        }
        daemon.signal(Signal::TERM).unwrap();
        assert!(daemon.wait(PATIENCE).unwrap().success(), "{}", daemon.printed());
    }
    let Finished { status, stdout, stderr } = start(sender, &[NET_ADMIN, BPF], &["detach"]).finish().unwrap();
    assert!(status.success(), "{stderr}");
    assert_eq!(stdout, "detached from eth0, replicator0p\n");
    shell(sender, "rmdir /run/replicator || true");
    assert_nothing_left(sender);
}

#[test]
fn a_capability_that_is_missing_is_named() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    prepare(sender);
    write_config(sender, &cluster.config());
    let ways: [(&[&str], &str); 3] = [
        (&[NET_ADMIN, PERFMON], "CAP_BPF"),
        (&[BPF, PERFMON], "CAP_NET_ADMIN"),
        (&[BPF, NET_ADMIN], "CAP_PERFMON"),
    ];
    thread::scope(|scope| {
        for (capabilities, missing) in ways {
            scope.spawn(move || {
                let run = start(sender, capabilities, &["run", "--config", CONFIG]).finish().unwrap();
                assert_eq!(run.status.code(), Some(1), "{}", run.stderr);
                assert!(run.stderr.contains(&format!("missing: {missing}")), "{}", run.stderr);
            });
        }
    });
    shell(sender, "rmdir /sys/fs/bpf/replicator /run/replicator");
    assert_nothing_left(sender);
}
