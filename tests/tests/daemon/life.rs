//! Starting, ending, taking over, taking down.

use std::{
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use replicator_tests::lab::{Daemon, Finished, Host};
use rustix::process::Signal;

use crate::network::*;

/// Time that a daemon may take to end.
const STOP: Duration = Duration::from_secs(10);

fn end(daemon: &mut Daemon, signal: Signal) -> std::process::ExitStatus {
    daemon.process().signal(signal).unwrap();
    daemon.process().wait(STOP).unwrap()
}

#[test]
fn frames_go_on_when_the_daemon_ends_however_it_ends() {
    let cluster = Cluster::new(2);
    let sender = &cluster.sender;
    let mut sinks = cluster.sinks();
    let ways = [(Signal::TERM, Some(0)), (Signal::INT, Some(0)), (Signal::KILL, None)];
    for ((signal, code), turn) in ways.into_iter().zip(1..) {
        let mut daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
        let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
        let Finished { status, stdout, .. } = replicator(sender, &["status"]);
        assert_eq!(status.code(), Some(0));
        assert!(stdout.starts_with("attached, daemon running\n"), "{stdout}");
        send(&mut dispatcher, 1, &[1, 2]);
        assert_eq!(end(&mut daemon, signal).code(), code, "{signal:?}: {}", daemon.printed());
        send(&mut dispatcher, 2, &[1, 2]);
        for sink in &mut sinks {
            assert_eq!(sink.numbers(2), [1, 2], "{signal:?}");
        }
        let Finished { status, stdout, .. } = replicator(sender, &["status"]);
        assert_eq!(status.code(), Some(1));
        assert!(
            stdout.starts_with("attached, but the daemon is not running: frames are replicated"),
            "{stdout}"
        );
        let Finished { status, stdout, .. } = replicator(sender, &["stats"]);
        assert!(status.success());
        let words: Vec<Vec<&str>> = stdout.lines().map(|line| line.split_whitespace().collect()).collect();
        // The next daemon goes on with what the one before it counted.
        for (name, each) in [("replicated", 2), ("sent", 4), ("node1", 2), ("node2", 2)] {
            let line = [name, &(turn * each).to_string()];
            assert!(words.iter().any(|words| words.starts_with(&line)), "{line:?} is not in\n{stdout}");
        }
    }
}

/// Pinned links and the folders they are in.
fn pins(host: &Host) -> String {
    shell(host, "cd /sys/fs/bpf/replicator && ls -d */links/*")
}

/// Builds take over from each other in turns while frames flow, and each time none is lost.
fn takes_over(builds: [PathBuf; 2], folders: [&str; 2]) {
    const TURNS: usize = 4;
    let cluster = Cluster::new(2);
    let sender = &cluster.sender;
    let start = |build: &Path| Daemon::start(sender, build, &cluster.config()).unwrap();
    assert!(start(&builds[1]).stop().unwrap().success());
    let mut before = programs(sender);
    let names = |pins: &str| pins.replace("v1001", "v1");
    let links = names(&pins(sender));
    let turns = || {
        for turn in 0..TURNS {
            let daemon = start(&builds[turn % 2]);
            let after = programs(sender);
            assert!(after.keys().eq(["eth0", "replicator0p"]));
            assert!(after.iter().all(|(device, id)| before[device] != *id), "the program is another");
            let pins = pins(sender);
            assert!(pins.lines().all(|pin| pin.starts_with(&format!("{}/", folders[turn % 2]))), "{pins}");
            assert_eq!(names(&pins), links);
            before = after;
            assert!(daemon.stop().unwrap().success());
        }
    };
    let dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    let ((), stream) = Stream::run(dispatcher, &[1, 2], cluster.sinks(), turns);
    assert_eq!(stream.lost(), [0, 0], "of {}", stream.sent);
}

#[test]
fn another_run_takes_over_without_a_loss() {
    takes_over([binary(), binary()], ["v1", "v1"]);
}

#[test]
fn another_layout_takes_over_without_a_loss() {
    takes_over([binary(), other_layout_binary()], ["v1", "v1001"]);
}

/// Starts of both builds are killed, sooner or later, while frames flow; none is lost, and the next start works.
#[test]
fn starts_that_are_killed_lose_nothing() {
    let cluster = Cluster::new(2);
    let sender = &cluster.sender;
    assert!(Daemon::start(sender, &binary(), &cluster.config()).unwrap().stop().unwrap().success());
    let dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    let builds = [binary(), other_layout_binary()];
    let starts = || {
        // A start takes about half a second on an idle machine.
        for (turn, after) in (0..24).map(|turn| (turn, Duration::from_millis(60 * turn))) {
            let mut start = start_build(sender, &builds[turn as usize % 2], &["run", "--config", CONFIG]);
            thread::sleep(after);
            start.signal(Signal::KILL).unwrap();
            start.wait(STOP).unwrap();
            assert!(programs(sender).keys().eq(["eth0", "replicator0p"]), "{after:?}");
        }
        let daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
        assert!(daemon.stop().unwrap().success());
    };
    let ((), stream) = Stream::run(dispatcher, &[1, 2], cluster.sinks(), starts);
    assert_eq!(stream.lost(), [0, 0], "of {}", stream.sent);
    assert_eq!(pins(sender).lines().count(), 2);
    assert!(replicator(sender, &["detach"]).status.success());
    assert_nothing_left(sender);
}

#[test]
fn detach_takes_down_what_another_build_attached() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let builds = [binary(), other_layout_binary()];
    for (run, detach) in [(0, 1), (1, 0)] {
        assert!(Daemon::start(sender, &builds[run], &cluster.config()).unwrap().stop().unwrap().success());
        let build = |arguments: &[&str]| start_build(sender, &builds[detach], arguments).finish().unwrap();
        let Finished { status, stderr, .. } = build(&["stats"]);
        assert_eq!(status.code(), Some(1));
        assert!(stderr.contains("have another layout than those of this build"), "{stderr}");
        let Finished { status, stdout, stderr } = build(&["detach"]);
        assert_eq!((status.code(), &*stderr), (Some(0), ""));
        assert_eq!(stdout, "detached from eth0, replicator0p\n");
        assert_nothing_left(sender);
    }
}

#[test]
fn nothing_is_left_after_detach_and_another_detach_says_so() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let status_and_stats = || {
        let Finished { status, stdout, .. } = replicator(sender, &["status"]);
        assert_eq!((status.code(), &*stdout), (Some(1), "not attached; start it with `replicator run`\n"));
        let Finished { status, stderr, stdout } = replicator(sender, &["stats"]);
        assert_eq!((status.code(), &*stdout), (Some(1), ""));
        assert!(
            stderr.starts_with("error: no replicator is loaded: nothing is pinned in /sys/fs/bpf/replicator")
        );
        assert!(stderr.ends_with("start one with `replicator run`\n"), "{stderr}");
    };
    status_and_stats();
    let detach = || replicator(sender, &["detach"]);
    let Finished { status, stdout, .. } = detach();
    assert_eq!((status.code(), &*stdout), (Some(0), "nothing was attached\n"));
    for signal in [Signal::TERM, Signal::KILL] {
        let mut daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
        end(&mut daemon, signal);
        // One that is killed may be writing its status.
        shell(sender, "touch /run/replicator/sys-fs-bpf-replicator.new");
        let Finished { status, stdout, stderr } = detach();
        assert_eq!((status.code(), &*stderr), (Some(0), ""));
        assert_eq!(stdout, "detached from eth0, replicator0p\n");
        assert_nothing_left(sender);
        status_and_stats();
        let Finished { status, stdout, .. } = detach();
        assert_eq!((status.code(), &*stdout), (Some(0), "nothing was attached\n"));
    }
}

#[test]
fn detach_on_exit_leaves_nothing() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let mut daemon = Daemon::start_with(sender, &binary(), &cluster.config(), ["--detach-on-exit"]).unwrap();
    assert_eq!(programs(sender).len(), 2);
    assert_eq!(end(&mut daemon, Signal::TERM).code(), Some(0), "{}", daemon.printed());
    assert_nothing_left(sender);
}

#[test]
fn stats_are_for_people_and_for_scripts() {
    let cluster = Cluster::new(2);
    let sender = &cluster.sender;
    let _daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    let mut sinks = cluster.sinks();
    let mut dispatcher = dispatcher(sender, ORIGIN_V4, TABLE);
    send(&mut dispatcher, 1, &[1, 2]);
    send(&mut dispatcher, 2, &[2]);
    assert_eq!((sinks[0].numbers(1), sinks[1].numbers(2)), (vec![1], vec![1, 2]));
    let json = stats(sender);
    assert_eq!(json["outcomes"]["sent"], 3);
    assert_eq!(json["outcomes"]["never_ran"], 0);
    // Ethernet, IPv4, UDP, BIER with 64 bits, "frame N".
    let bytes = 14 + 20 + 8 + 20 + 7;
    assert_eq!(json["neighbors"]["node1"], serde_json::json!({ "copies": 1, "bytes": bytes }));
    assert_eq!(json["neighbors"]["node2"], serde_json::json!({ "copies": 2, "bytes": 2 * bytes }));
}

/// Whoever reads closes the pipe: that is an end, no error.
#[test]
fn a_closed_pipe_ends_what_prints_into_it() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let daemon = Daemon::start(sender, &binary(), &cluster.config()).unwrap();
    let into = |reader: &str, arguments: &str| {
        let replicator = binary();
        let script =
            format!("{{ sleep 0.1; {} {arguments}; echo $? >&2; }} | {reader}", replicator.display());
        let mut command = Command::new("sh");
        command.args(["-c", &script]);
        sender.spawn(command).unwrap().finish().unwrap().stderr
    };
    for arguments in ["stats --watch 1", "stats --watch 1 --json"] {
        assert_eq!(into("head -n 1", arguments), "0\n", "{arguments}");
    }
    let check = format!("check {CONFIG}");
    write_config(sender, &cluster.config());
    for arguments in ["stats", "status --json", "doctor", "completions bash", &check] {
        assert_eq!(into("true", arguments), "0\n", "{arguments}");
    }
    assert!(daemon.stop().unwrap().success());
    assert_eq!(into("true", "detach"), "0\n");
    assert_nothing_left(sender);
}

#[test]
fn a_second_daemon_is_refused_while_the_first_runs() {
    let cluster = Cluster::new(1);
    let (sender, mut sinks) = (&cluster.sender, cluster.sinks());
    let mut first = Daemon::start_with(sender, &binary(), &cluster.config(), ["--detach-on-exit"]).unwrap();
    let before = programs(sender);
    let text = refusal(sender, &cluster.config());
    let reason = format!(
        "error: `replicator run` (process {}) looks after /sys/fs/bpf/replicator: end it first",
        first.process().id()
    );
    assert!(text.contains(&reason), "{text}");
    let Finished { status, stderr, .. } = replicator(sender, &["detach"]);
    assert_eq!((status.code(), stderr), (Some(1), format!("{reason}\n")));
    assert_eq!(programs(sender), before);
    send(&mut dispatcher(sender, ORIGIN_V4, TABLE), 1, &[1]);
    assert_eq!(sinks[0].numbers(1), [1]);
    end(&mut first, Signal::TERM);
    assert_nothing_left(sender);
}

#[test]
fn what_a_new_configuration_does_not_name_is_taken_off() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let other = Segment::new(&cluster.lab, 2);
    other.plug(sender, "eth1", SENDER);
    let wide = cluster.config().replace("[eth0]", "[eth0, eth1]");
    let mut first = Daemon::start(sender, &binary(), &wide).unwrap();
    assert!(programs(sender).keys().eq(["eth0", "eth1", "replicator0p"]));
    end(&mut first, Signal::TERM);
    let renamed = cluster.config().replace(
        "origin: {}",
        "origin: { interface: other0, ipv4: 169.254.82.1/30, ipv6: \"fd00:8139::1/126\" }",
    );
    let second = Daemon::start(sender, &binary(), &renamed).unwrap();
    assert!(programs(sender).keys().eq(["eth0", "other0p"]), "{:?}", programs(sender));
    assert!(!links(sender).contains_key("replicator0"));
    let mut sinks = cluster.sinks();
    send(&mut dispatcher(sender, "169.254.82.2:8138", TABLE), 1, &[1]);
    assert_eq!(sinks[0].numbers(1), [1]);
    assert!(second.stop().unwrap().success());
    let Finished { stdout, .. } = replicator(sender, &["detach"]);
    assert_eq!(stdout, "detached from eth0, other0p\n");
    assert_nothing_left(sender);
}

/// A start that fails late takes back what it made, and nothing of what was there before.
#[test]
fn a_start_that_fails_leaves_what_was_there() {
    let cluster = Cluster::new(1);
    let (sender, mut sinks) = (&cluster.sender, cluster.sinks());
    // The control socket elsewhere: what fails is to come late.
    let config = cluster.config() + "api: { socket: /run/control.sock }\n";
    shell(sender, "touch /run/replicator");
    let fails = || {
        let text = refusal(sender, &config);
        assert!(text.contains("error: cannot write /run/replicator/sys-fs-bpf-replicator.json: "), "{text}");
    };
    fails();
    shell(sender, "rm /run/replicator");
    assert_nothing_left(sender);
    Daemon::start(sender, &binary(), &config).unwrap().stop().unwrap();
    let devices = programs(sender).into_keys();
    shell(sender, "mv /run/replicator /run/aside; touch /run/replicator");
    fails();
    assert!(programs(sender).into_keys().eq(devices));
    send(&mut dispatcher(sender, ORIGIN_V4, TABLE), 1, &[1]);
    assert_eq!(sinks[0].numbers(1), [1]);
    shell(sender, "rm /run/replicator; mv /run/aside /run/replicator");
    assert!(replicator(sender, &["detach"]).status.success());
    assert_nothing_left(sender);
}
