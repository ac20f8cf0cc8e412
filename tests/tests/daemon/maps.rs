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

/// Moves replicas in so many layers a second until the time is over: one a request, more where the last request was
/// late. How many, and what each request took.
fn storm(load: &Load<'_>, api: &mut Api, per_second: u32, time: Duration) -> (u32, Vec<Duration>) {
    let mut random = Random(11);
    let (start, mut times, mut done) = (Instant::now(), Vec::new(), 0);
    while start.elapsed() < time {
        let due = (start.elapsed().as_secs_f64() * f64::from(per_second)) as u32 + 1;
        if due == done {
            thread::sleep(Duration::from_micros(100));
            continue;
        }
        let layers = (due - done).min(LAYERS as u32);
        times.push(load.update(api, &mut random, layers as usize).expect("the daemon answers"));
        done += layers;
    }
    (done, times)
}

#[test]
fn every_copy_reaches_the_nodes_of_its_own_epoch_in_a_storm_of_maps() {
    let cluster = Cluster::new(NODES);
    let daemon = Daemon::start(&cluster.sender, &binary(), &Load::config(&cluster)).unwrap();
    let load = Load::start(&cluster, LAYERS);
    let mut api = Api::connect(&cluster.sender).unwrap();
    let ((updates, mut times), outcome) = load.run(|load| storm(load, &mut api, UPDATES_PER_SECOND, STORM));
    let became = outcomes(&cluster.sender);
    eprintln!(
        "{updates} layers in {} requests: p50 {:.2} ms, p99 {:.2} ms; {became:?}",
        times.len(),
        percentile(&mut times, 0.5),
        percentile(&mut times, 0.99)
    );
    outcome.assert_exact("storm");
    assert_eq!(became["sent"], outcome.copies);
    assert!(updates >= 999 * STORM.as_secs() as u32, "only {updates} layers changed");
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
