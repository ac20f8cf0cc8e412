//! What the daemon logs.

use replicator_tests::lab::Daemon;
use serde_json::Value;

use crate::network::*;

#[test]
fn dropped_frames_are_logged_with_their_outcome_where_that_is_asked_for() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let config = format!("trace-drops: true\n{}", cluster.config());
    let daemon = Daemon::start(sender, &binary(), &config).unwrap();
    send(&mut dispatcher(sender, ORIGIN_V4, TABLE + 0x100), 1, &[1]);
    until("the drop is logged", || daemon.printed().contains("unknown_bift"));
    assert_eq!(count(sender, "unknown_bift"), 1);
}

#[test]
fn a_log_for_machines_has_one_object_a_line() {
    let cluster = Cluster::new(1);
    let sender = &cluster.sender;
    let config = format!("trace-drops: true\n{}", cluster.config());
    let mut daemon = Daemon::start_with(sender, &binary(), &config, ["--log-format", "json"]).unwrap();
    send(&mut dispatcher(sender, ORIGIN_V4, TABLE + 0x100), 1, &[1]);
    let messages = |printed: &str| -> Vec<String> {
        let line =
            |line| -> Value { serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")) };
        printed.lines().map(|text| line(text)["fields"]["message"].as_str().unwrap().to_owned()).collect()
    };
    let logged = |what: &str, printed: &str| messages(printed).iter().any(|message| message.contains(what));
    until("the drop is logged", || logged("unknown_bift", &daemon.printed()));
    daemon.process().signal(rustix::process::Signal::TERM).unwrap();
    assert!(daemon.process().wait(PATIENCE).unwrap().success());
    let printed = daemon.printed();
    for message in
        ["neighbor node1 is resolved", "replicating: tables: 2, neighbors resolved: 2 of 2", "ended"]
    {
        assert!(logged(message, &printed), "{message:?} is not in\n{printed}");
    }
}
