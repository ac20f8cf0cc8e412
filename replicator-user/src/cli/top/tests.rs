//! The screen is drawn to memory and read as text.

use std::collections::BTreeMap;

use ratatui::{
    Terminal,
    backend::TestBackend,
    crossterm::event::{KeyCode, KeyEvent, KeyModifiers},
};

use super::{
    press,
    sample::{Sample, Sort, nodes, outcomes, si},
    screen::{View, draw},
};
use crate::{
    api::types::{Count, ModelSummary, NeighborList, NeighborReport, Stats, StatusReport, Traffic},
    daemon::status::NeighborResolution,
};

/// A daemon that has been up for so long and has replicated so many frames, with two copies of 1,000 bytes each to node1 and
/// one to node2.
fn sample(pid: u32, uptime_seconds: f64, frames: u64) -> Sample {
    let traffic = |copies| Traffic { copies, bytes: 1000 * copies };
    let outcomes = [("replicated", frames), ("sent", 3 * frames), ("malformed", 0), ("unresolved", 7)];
    let report = |name: &str, resolution| NeighborReport { name: name.into(), id: 3, resolution };
    let ready = NeighborResolution::Ready { ifindex: 2, mac: "02:00:00:00:00:02".into() };
    let pending = NeighborResolution::Pending { reason: "no route".into() };
    Sample {
        stats: Stats {
            uptime_seconds,
            outcomes: outcomes.map(|(label, count)| (label.to_owned(), count)).into(),
            neighbors: BTreeMap::from([
                ("local".into(), traffic(0)),
                ("node1".into(), traffic(2 * frames)),
                ("node2".into(), traffic(frames)),
            ]),
        },
        status: StatusReport {
            version: "1.2.3".into(),
            pid,
            uptime_seconds,
            origin: None,
            interfaces: Vec::new(),
            neighbors: Count { total: 3, resolved: 2 },
            models: vec![ModelSummary { model: "m".into(), epoch: 42, logical_experts: 64, layers: 26 }],
            configured_tables: 0,
            bift_ids: 52,
            superseded: 1,
            retired_early: 0,
            behind: false,
        },
        neighbors: NeighborList {
            neighbors: vec![report("node1", ready.clone()), report("node2", ready), report("node3", pending)],
        },
    }
}

fn rates(before: Option<&Sample>, now: &Sample) -> Vec<(&'static str, Option<f64>)> {
    outcomes(before, now).into_iter().map(|row| (row.label, row.rate)).collect()
}

#[test]
fn rates_are_by_the_daemons_own_clock() {
    let (before, now) = (sample(7, 10.0, 100), sample(7, 12.0, 300));
    assert_eq!(
        rates(Some(&before), &now),
        [("replicated", Some(100.0)), ("sent", Some(300.0)), ("unresolved", Some(0.0))]
    );
    let rows = nodes(Some(&before), &now, Sort::Name);
    let found: Vec<_> =
        rows.iter().map(|row| (row.name.as_str(), row.copies, row.copy_rate, row.bit_rate)).collect();
    assert_eq!(
        found,
        [
            ("local", 0, Some(0.0), Some(0.0)),
            ("node1", 600, Some(200.0), Some(1_600_000.0)),
            ("node2", 300, Some(100.0), Some(800_000.0)),
            ("node3", 0, Some(0.0), Some(0.0)),
        ]
    );
    assert!(rows[0].resolution.is_none() && rows[3].resolution.is_some());
}

#[test]
fn there_is_no_rate_across_a_restart_or_of_no_time() {
    let now = sample(7, 12.0, 300);
    let none = [("replicated", None), ("sent", None), ("unresolved", None)];
    assert_eq!(rates(None, &now), none);
    assert_eq!(rates(Some(&sample(7, 12.0, 100)), &now), none, "no time has passed");
    assert_eq!(rates(Some(&sample(7, 13.0, 100)), &now), none, "time went back");
    assert_eq!(rates(Some(&sample(6, 1.0, 100)), &now), none, "another process");
    assert_eq!(rates(Some(&sample(7, f64::NAN, 100)), &now), none);
    // The counters of another load.
    let fell = rates(Some(&sample(7, 10.0, 1000)), &now);
    assert_eq!(fell, [("replicated", None), ("sent", None), ("unresolved", Some(0.0))]);
}

#[test]
fn nodes_are_sorted() {
    let (before, mut now) = (sample(7, 10.0, 100), sample(7, 12.0, 300));
    // node2 had most copies of all and none lately.
    let mut old = before.clone();
    for sample in [&mut old, &mut now] {
        sample.stats.neighbors.insert("node2".into(), Traffic { copies: 10_000, bytes: 0 });
    }
    let order = |sort| -> Vec<_> { nodes(Some(&old), &now, sort).into_iter().map(|row| row.name).collect() };
    assert_eq!(order(Sort::Name), ["local", "node1", "node2", "node3"]);
    assert_eq!(order(Sort::Rate), ["node1", "local", "node2", "node3"]);
    assert_eq!(order(Sort::Total), ["node2", "node1", "local", "node3"]);
}

#[test]
fn numbers_have_three_digits() {
    for (number, text) in [
        (0.0, "0"),
        (7.0, "7"),
        (0.5, "0.50"),
        (12.34, "12.3"),
        (999.0, "999"),
        (999.6, "1.00 k"),
        (1000.0, "1.00 k"),
        (12_345.0, "12.3 k"),
        (99_960.0, "100 k"),
        (1_600_000.0, "1.60 M"),
        (4e10, "40.0 G"),
        (5e15, "5000 T"),
    ] {
        assert_eq!(si(number), text, "{number}");
    }
}

/// The lines of the screen.
fn drawn(view: &View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer().clone();
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(|y| line(y).split_whitespace().collect::<Vec<_>>().join(" ")).collect()
}

#[test]
fn the_screen_shows_rates_nodes_and_models() {
    let mut view = View { address: "/run/a.sock".into(), ..View::default() };
    assert_eq!(drawn(&view, 120, 24)[..2], ["replicator at /run/a.sock", "waiting for the first answer"]);
    view.take(sample(7, 10.0, 100));
    assert!(drawn(&view, 120, 24).contains(&"replicated frame 100 -".to_owned()));
    view.take(sample(7, 12.0, 300));
    let lines = drawn(&view, 120, 24);
    for line in [
        "neighbors 2/3 resolved; BIFT-ids 52, superseded 1; up 12 s; replicator 1.2.3, process 7, at /run/a.sock",
        "outcome unit total per second",
        "replicated frame 300 100",
        "sent copy 900 300",
        "node copies copies/s bit/s state",
        "node1 600 200 1.60 M resolved, 02:00:00:00:00:02",
        "node3 0 0 0 NOT RESOLVED: no route",
        "local 0 0 0 this host",
        "model epoch layers experts",
        "m 42 26 64",
        "q quit s sort by rate p pause",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}\n{lines:#?}");
    }
    assert!(!lines.iter().any(|line| line.starts_with("malformed")), "what never occurred is left out");

    view.trouble = Some("no daemon answers at /run/a.sock: gone; trying again".into());
    let lines = drawn(&view, 120, 24);
    assert_eq!(lines[1], "no daemon answers at /run/a.sock: gone; trying again");
    assert!(lines.iter().any(|line| line == "sent copy 900 300"), "the last known stays");
    view.take(sample(8, 1.0, 0));
    assert_eq!(drawn(&view, 120, 24)[1], "");
}

#[test]
fn no_size_is_too_small() {
    let mut view = View::default();
    view.take(sample(7, 10.0, 100));
    view.trouble = Some("x".repeat(500));
    for width in [1, 2, 3, 10, 30] {
        for height in [1, 2, 3, 4, 5, 6, 10, 20] {
            drawn(&view, width, height);
        }
    }
}

#[test]
fn keys_sort_pause_and_quit() {
    let mut view = View::default();
    let key = |code| KeyEvent::new(code, KeyModifiers::NONE);
    assert!(press(key(KeyCode::Char('s')), &mut view) && view.sort == Sort::Rate);
    assert!(press(key(KeyCode::Char('p')), &mut view) && view.paused);
    assert!(press(key(KeyCode::Char('c')), &mut view), "a c is no Ctrl-C");
    assert!(!press(key(KeyCode::Char('q')), &mut view));
    assert!(!press(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL), &mut view));
}
