//! The README's examples, as they stand there.

use std::{fs, path::Path};

use replicator_tests::lab::{Daemon, Lab};
use serde_json::Value;

use crate::network::*;

/// Lines of the README that begin so.
fn lines(beginning: &str) -> Vec<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../README.md");
    let text = fs::read_to_string(path).unwrap();
    text.lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect()
}

#[test]
fn requests_by_curl_work_as_pasted() {
    let lab = Lab::new().unwrap();
    // The addresses of the configuration: 10.0.0.1 is this host.
    let (segment, host) = (Segment::new(&lab, 0), lab.host("gpu-node").unwrap());
    segment.plug(&host, "eth0", 1);
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../configs/gpu-node.yaml");
    let _daemon = Daemon::start(&host, &binary(), &fs::read_to_string(config).unwrap()).unwrap();
    let requests = lines("curl ");
    let answers: Vec<_> = requests.iter().map(|line| shell(&host, &format!("cd .. && {line}"))).collect();
    let json = |index: usize| -> Value {
        serde_json::from_str(&answers[index])
            .unwrap_or_else(|error| panic!("{}\n{}\n{error}", requests[index], answers[index]))
    };
    let [put, ids, epochs, status, ready] = [0, 1, 2, 3, 4].map(json);
    assert_eq!((&put["model"], &put["epoch"]), (&"small".into(), &1.into()));
    assert_eq!(ids["layers"], put["layers"]);
    assert_eq!(epochs["layers"]["2"]["epoch"], 1);
    assert_eq!(status["models"][0]["model"], "small");
    // Nobody answers at the addresses of the neighbors.
    assert_eq!((&ready["ready"], ready["missing"].as_array().unwrap().len()), (&false.into(), 7), "{ready}");
    assert!(answers[5].contains("\nreplicator_model_epoch{model=\"small\"} 1.0\n"), "{}", answers[5]);
    assert_eq!(json(6)["model"], "small");
    assert_eq!(requests.len(), 7, "an example that is not looked at here");
}
