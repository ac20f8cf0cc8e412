//! Expert maps that come by the API while tokens flow: what is in force, what stays in force, what a new daemon finds.

use std::{
    thread,
    time::{Duration, Instant},
};

use replicator_tests::{api::Api, lab::Daemon, random::Random};
use rustix::process::Signal;

use crate::{load::*, network::*};

/// Layers of the model in motion, and its updates in a second.
const LAYERS: usize = 32;
const UPDATES_PER_SECOND: u32 = 1000;

/// How long the storm takes.
const STORM: Duration = Duration::from_secs(30);

/// Moves replicas in so many layers a second until as many are in force as were to be in this time: one a request, more
/// where the last request was late. How long it took, and what each request took.
fn storm(load: &Load<'_>, api: &mut Api, per_second: u32, time: Duration) -> (Duration, Vec<Duration>) {
    let mut random = Random(11);
    let (start, mut times, mut done) = (Instant::now(), Vec::new(), 0);
    let total = per_second * time.as_secs() as u32;
    while done < total {
        let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u32 + 1;
        let due = due.min(total);
        if due == done {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        let layers = (due - done).min(LAYERS as u32);
        times.push(load.update(api, &mut random, layers as usize).expect("the daemon answers"));
        done += layers;
    }
    (start.elapsed(), times)
}

#[test]
fn every_copy_reaches_the_nodes_of_its_own_epoch_in_a_storm_of_maps() {
    let cluster = Cluster::new(NODES);
    let daemon = Daemon::start(&cluster.sender, &binary(), &Load::config(&cluster)).unwrap();
    let load = Load::start(&cluster, LAYERS);
    let mut api = Api::connect(&cluster.sender).unwrap();
    let ((took, mut times), outcome) = load.run(|load| storm(load, &mut api, UPDATES_PER_SECOND, STORM));
    let became = outcomes(&cluster.sender);
    eprintln!(
        "{} layers in {:.2} s by {} requests: p50 {:.2} ms, p99 {:.2} ms; {became:?}",
        UPDATES_PER_SECOND * STORM.as_secs() as u32,
        took.as_secs_f64(),
        times.len(),
        percentile(&mut times, 0.5),
        percentile(&mut times, 0.99)
    );
    outcome.assert_exact("storm");
    assert_eq!(became["sent"], outcome.copies);
    // The last request may be late, for other tests run beside this one; the rate is to be had all the same.
    assert!(
        took < STORM + Duration::from_secs(1),
        "{UPDATES_PER_SECOND} layers a second were not to be had: {took:?}"
    );
    let status = get(&mut api, "/v1/status");
    assert_eq!(status["models"][0]["epoch"], 1 + times.len(), "{status}");
    assert!(daemon.stop().unwrap().success());
}

/// Ends it without a word.
fn kill(mut daemon: Daemon) {
    daemon.process().signal(Signal::KILL).unwrap();
    daemon.process().wait(PATIENCE).unwrap();
}

#[test]
fn no_frame_is_lost_when_the_daemon_is_killed_and_started_again() {
    const TURNS: u32 = 20;
    let cluster = Cluster::new(NODES);
    let config = Load::config(&cluster);
    let start = || Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let mut daemon = Some(start());
    let load = Load::start(&cluster, LAYERS);
    let (updates, outcome) = load.run(|load| {
        let mut random = Random(13);
        let mut updates = 0;
        for turn in 0..TURNS {
            let mut api = Api::connect(&cluster.sender).unwrap();
            load.catch_up(&mut api);
            // Killed at another moment each time, in the middle of updates.
            let killed = Instant::now() + Duration::from_millis(u64::from(100 + 7 * turn));
            while Instant::now() < killed {
                updates += u32::from(load.update(&mut api, &mut random, 1).is_some());
            }
            thread::scope(|scope| {
                let killing = daemon.take().unwrap();
                scope.spawn(move || kill(killing));
                // As many as it still takes.
                while load.update(&mut api, &mut random, 1).is_some() {
                    updates += 1;
                }
            });
            daemon = Some(start());
        }
        updates
    });
    eprintln!("{updates} updates, {TURNS} kills; {:?}", outcomes(&cluster.sender));
    outcome.assert_exact("killed");
    assert!(updates > TURNS * 10, "{updates} updates");
    assert_eq!(outcomes(&cluster.sender)["sent"], outcome.copies, "counters go on");
}

#[test]
fn no_frame_is_lost_by_an_upgrade_to_another_layout_of_the_maps_and_back() {
    let cluster = Cluster::new(NODES);
    let config = Load::config(&cluster);
    let mut daemon = Some(Daemon::start(&cluster.sender, &binary(), &config).unwrap());
    let load = Load::start(&cluster, LAYERS);
    let (updates, outcome) = load.run(|load| {
        let mut random = Random(17);
        let mut updates = 0;
        for next in [other_layout_binary(), binary()] {
            let mut api = Api::connect(&cluster.sender).unwrap();
            load.catch_up(&mut api);
            let until = Instant::now() + Duration::from_secs(1);
            while Instant::now() < until {
                updates += u32::from(load.update(&mut api, &mut random, 1).is_some());
            }
            kill(daemon.take().unwrap());
            daemon = Some(Daemon::start(&cluster.sender, &next, &config).unwrap());
        }
        updates
    });
    outcome.assert_exact("upgraded");
    assert!(updates > 20, "{updates} updates");
    let printed = daemon.unwrap().printed();
    assert!(printed.contains("found the map of moving"), "{printed}");
}

/// The neighbors of a configuration in another order, one of them gone and one new.
#[test]
fn a_new_configuration_finds_the_neighbors_of_the_old_one() {
    let cluster = Cluster::new(4);
    let neighbors = |numbers: &[u8]| -> String {
        let line = |n: &u8| format!("  node{n}: {{ address: \"{}\" }}\n", cluster.segment.v4(*n));
        numbers.iter().map(line).collect()
    };
    let config =
        |numbers: &[u8]| format!("origin: {{}}\ninterfaces: [eth0]\nneighbors:\n{}", neighbors(numbers));
    let map = |epoch: u32, nodes: &[u8]| {
        let ranks =
            nodes.iter().enumerate().map(|(rank, n)| format!(r#"{{"rank":{rank},"node":"node{n}"}}"#));
        let ranks: Vec<_> = ranks.collect();
        let slots: Vec<_> = (0..nodes.len()).map(|slot| slot.to_string()).collect();
        format!(
            r#"{{"version":1,"model":"m","epoch":{epoch},"logical_experts":{},"ranks":[{}],"layers":{{"0":{{"physical_to_logical_map":[{}]}}}}}}"#,
            nodes.len(),
            ranks.join(","),
            slots.join(",")
        )
    };
    let put = |epoch, nodes: &[u8]| {
        let mut api = Api::connect(&cluster.sender).unwrap();
        let answer = api.request("PUT", "/v1/models/m/map", &map(epoch, nodes)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text);
        answer.json()["layers"]["0"]["bift_id"].as_u64().unwrap() as u32
    };
    let daemon = Daemon::start(&cluster.sender, &binary(), &config(&[1, 2, 3])).unwrap();
    let id = put(1, &[1, 2]);
    let mut sinks = cluster.sinks();
    let reach = |id: u32, sinks: &mut [Sink]| -> Vec<Vec<usize>> {
        send(&mut dispatcher(&cluster.sender, ORIGIN_V4, id), 1, &[1, 2]);
        let mut got = vec![Vec::new(); sinks.len()];
        until("both bits arrive", || {
            for (sink, got) in sinks.iter_mut().zip(&mut got) {
                got.extend(sink.take(0).into_iter().flat_map(|arrival| arrival.bits));
            }
            got.iter().flatten().count() >= 2
        });
        got
    };
    assert_eq!(reach(id, &mut sinks), [vec![1], vec![2], vec![], vec![]]);
    assert!(daemon.stop().unwrap().success());

    let stream_dispatcher = dispatcher(&cluster.sender, ORIGIN_V4, id);
    let (daemon, stream) = Stream::run(stream_dispatcher, &[1, 2], sinks, || {
        Daemon::start(&cluster.sender, &binary(), &config(&[4, 2, 1])).unwrap()
    });
    assert_eq!(stream.lost()[..2], [0, 0], "of {}", stream.sent);
    assert_eq!((stream.arrived[2].len(), stream.arrived[3].len()), (0, 0));
    let mut sinks = cluster.sinks();
    let newer = put(2, &[4, 1]);
    assert_eq!(reach(newer, &mut sinks), [vec![2], vec![], vec![], vec![1]]);
    assert_eq!(reach(id, &mut sinks), [vec![1], vec![2], vec![], vec![]], "the epoch before is in force");
    assert!(daemon.stop().unwrap().success());

    // Without a neighbor that the map needs it is not put in force, and the log says so; the file stays.
    let daemon = Daemon::start(&cluster.sender, &binary(), &config(&[1, 2])).unwrap();
    let printed = daemon.printed();
    let told = "the map of m, epoch 2, is not put in force: ranks[0].node: unknown neighbor `node4`";
    assert!(printed.contains(told), "{printed}");
    assert_eq!(shell(&cluster.sender, "ls /var/lib/replicator/*"), "m.json\n");
}

#[test]
fn a_damaged_state_is_set_aside_and_what_the_kernel_has_stays_for_a_while() {
    let cluster = Cluster::new(1);
    let config = cluster.config() + "epoch-grace: 2\n";
    let daemon = Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let map = r#"{"version":1,"model":"m","epoch":7,"logical_experts":1,"ranks":[{"rank":0,"node":"node1"}],
        "layers":{"0":{"physical_to_logical_map":[0]}}}"#;
    let mut api = Api::connect(&cluster.sender).unwrap();
    let answer = api.request("PUT", "/v1/models/m/map", map).unwrap().json();
    let id = answer["layers"]["0"]["bift_id"].as_u64().unwrap() as u32;
    kill(daemon);
    shell(&cluster.sender, "cd /var/lib/replicator/* && truncate -s 50 m.json");
    let daemon = Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let printed = daemon.printed();
    assert!(printed.contains("m.json is not taken: not the state of a model"), "{printed}");
    assert!(printed.contains("the file is set aside as /var/lib/replicator/sys-fs-bpf-replicator/m.damaged"));
    let mut api = Api::connect(&cluster.sender).unwrap();
    assert_eq!(api.request("GET", "/v1/models/m/map", "").unwrap().status, 404);
    let mut sinks = cluster.sinks();
    let mut dispatcher = dispatcher(&cluster.sender, ORIGIN_V4, id);
    send(&mut dispatcher, 1, &[1]);
    assert_eq!(sinks[0].numbers(1), [1]);
    assert_eq!(get(&mut api, "/v1/status")["superseded"], 2, "its own BIFT-id and the alias");
    until("its time is over", || get(&mut api, "/v1/status")["superseded"] == 0);
    send(&mut dispatcher, 2, &[1]);
    until("it is refused", || count(&cluster.sender, "unknown_bift") == 1);
    // It may be put again, also at an epoch that was before.
    assert_eq!(api.request("PUT", "/v1/models/m/map", map).unwrap().status, 200);
}

/// What cannot be kept is not put in force.
#[test]
fn a_state_that_cannot_be_written_refuses_maps_and_changes_nothing() {
    let cluster = Cluster::new(1);
    let _daemon = Daemon::start(&cluster.sender, &binary(), &cluster.config()).unwrap();
    let map = |epoch| {
        format!(
            r#"{{"version":1,"model":"m","epoch":{epoch},"logical_experts":1,"ranks":[{{"rank":0,"node":"node1"}}],
            "layers":{{"0":{{"physical_to_logical_map":[0]}}}}}}"#
        )
    };
    let mut api = Api::connect(&cluster.sender).unwrap();
    assert_eq!(api.request("PUT", "/v1/models/m/map", &map(1)).unwrap().status, 200);
    let before = get(&mut api, "/v1/models/m/bift-ids");
    // Full: a file of the size of what is left of the folder's file system.
    shell(&cluster.sender, "mount -t tmpfs -o size=4k tmpfs /var/lib/replicator/*");
    shell(&cluster.sender, "head -c 4096 /dev/zero > $(echo /var/lib/replicator/*)/full || true");
    let answer = api.request("PUT", "/v1/models/m/map", &map(2)).unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (507, &"storage".into()), "{}", answer.text);
    assert_eq!(get(&mut api, "/v1/models/m/bift-ids"), before);
    shell(&cluster.sender, "umount /var/lib/replicator/*");
    assert_eq!(api.request("PUT", "/v1/models/m/map", &map(2)).unwrap().status, 200);
}

/// Tables of the configuration that a map takes the place of: what the kernel had under the alias is the map's now, and
/// stays so when the time of the old tables is over.
#[test]
fn an_alias_that_a_map_takes_over_stays_in_force() {
    let cluster = Cluster::new(2);
    let grace = cluster.config() + "epoch-grace: 1\n";
    let configured = grace.clone()
        + "expert-tables:\n  - { model: m, experts: 2, first-table: 0, layers: { 0: { 0: node1, 1: node1 } } }\n";
    assert!(Daemon::start(&cluster.sender, &binary(), &configured).unwrap().stop().unwrap().success());
    let _daemon = Daemon::start(&cluster.sender, &binary(), &grace).unwrap();
    let mut api = Api::connect(&cluster.sender).unwrap();
    let map = r#"{"version":1,"model":"m","epoch":7,"logical_experts":2,"first_table":0,
        "ranks":[{"rank":0,"node":"node2"}],"layers":{"0":{"physical_to_logical_map":[0,1]}}}"#;
    let answer = api.request("PUT", "/v1/models/m/map", map).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text);
    assert_eq!(answer.json()["layers"]["0"]["alias"], 0x8_0000);
    until("the old table's time is over", || get(&mut api, "/v1/status")["superseded"] == 0);
    let mut sinks = cluster.sinks();
    send(&mut dispatcher(&cluster.sender, ORIGIN_V4, 0x8_0000), 1, &[1, 2]);
    assert_eq!((sinks[0].numbers(0), sinks[1].numbers(1)), (vec![], vec![1]));
}
