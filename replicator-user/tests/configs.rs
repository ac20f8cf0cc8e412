//! The configurations that the repository ships, the documentation of their keys, and `replicator check`.
#![expect(clippy::unwrap_used, reason = "clippy exempts tests, not the functions that they share")]

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::ExitCode,
};

use replicator_common::neighbor::Encapsulation;
use replicator_user::{
    cli::check,
    config::{self, Config, ConfigError, KEYS, Usage},
    map::ExpertMap,
};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn shipped(name: &str) -> Config {
    config::load(&repository().join("configs").join(name)).unwrap_or_else(|error| panic!("{error}"))
}

fn documentation() -> String {
    std::fs::read_to_string(repository().join("docs/configuration.md")).unwrap()
}

/// Whether it succeeded, and what it printed.
fn check(file: &Path, json: bool) -> (bool, String, String) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let args = check::Args { file: file.to_owned(), json };
    let status = check::run(&args, &mut out, &mut err).unwrap();
    (status == ExitCode::SUCCESS, String::from_utf8(out).unwrap(), String::from_utf8(err).unwrap())
}

#[test]
fn every_shipped_configuration_is_valid_and_leaves_nothing_to_note() {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(repository().join("configs")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|kind| kind == "json") {
            let map = ExpertMap::parse(&std::fs::read(&path).unwrap()).unwrap();
            assert!(!map.is_partial(), "{}", path.display());
            continue;
        }
        let (valid, out, err) = check(&path, true);
        assert!(valid, "{out}{err}");
        let answer: serde_json::Value = serde_json::from_str(&out).unwrap();
        assert_eq!(answer["valid"], true);
        assert_eq!(answer["would"]["notes"], serde_json::json!([]), "{}", path.display());
        names.push(path.file_name().unwrap().to_string_lossy().into_owned());
    }
    names.sort();
    assert_eq!(names, ["gpu-node.yaml", "plain-bier.yaml", "transit.yaml"]);
}

#[test]
fn a_gpu_node_serves_experts_of_its_own() {
    let config = shipped("gpu-node.yaml");
    assert_eq!(config.neighbors.len(), 7);
    assert_eq!(config.tables.len(), 26);
    assert!(config.tables.iter().all(|table| table.birt.has_local()));
    let ids = |i: usize| config.tables[i].bift_ids.iter().map(|id| id.get()).collect::<Vec<_>>();
    assert_eq!(ids(0), [0x8_0101, 0x8_0100]);
    assert_eq!(ids(25), [0x8_1a01, 0x8_1a00]);
    // Layers 1 to 25 have no replicas; layer 26 has three of one expert.
    assert_eq!((config.tables[0].birt.variants(), config.tables[25].birt.variants()), (1, 8));
    // 0 to 7 copies on one device, with and without a local one; no copy needs no map. 25 tables of one variant and one
    // of eight: a chunk of 64 rows each, and F-BMs of 8 members and a union.
    let usage = Usage::of(&config);
    assert_eq!((usage.fanout_maps, usage.row_chunks, usage.fbm_chunks), (15, 33, 33 * 9));
}

#[test]
fn a_transit_node_has_no_stack_of_its_own() {
    let config = shipped("transit.yaml");
    assert!(config.origin.is_none());
    assert_eq!(config.tables.len(), 32);
    assert_eq!(config.tables[31].bift_ids[0].get(), 0x8_0000 | (64 + 31) << 8 | 3);
    assert!(config.tables.iter().all(|table| !table.birt.has_local() && table.birt.neighbors().len() == 5));
}

#[test]
fn plain_bier_has_every_encapsulation_it_speaks_of() {
    let config = shipped("plain-bier.yaml");
    let of = |name: &str| config.neighbors.iter().find(|neighbor| neighbor.name == name).unwrap();
    assert_eq!(of("lab").encapsulation(), Encapsulation::Ethernet);
    assert_eq!(of("lab").tags.len(), 2);
    assert_eq!(of("oslo").encapsulation(), Encapsulation::Ipv4);
    let codes: Vec<_> = config.tables.iter().map(|table| table.birt.bsl_code()).collect();
    assert_eq!(codes, [3, 2, 1]);
    let rows = config.tables[0].birt.replicas().iter().filter(|row| !row.is_empty()).count();
    assert_eq!(rows, 18);
}

#[test]
fn the_documentation_names_every_key_and_no_other() {
    let text = documentation();
    let mut documented = BTreeMap::<String, Vec<String>>::new();
    let mut section = None;
    for line in text.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = match title.strip_prefix('`').and_then(|title| title.strip_suffix('`')) {
                Some(path) => Some(path.to_owned()),
                None => (title == "Top level").then(String::new),
            };
        } else if let Some(rest) = line.strip_prefix("| `") {
            let key = rest.split('`').next().unwrap();
            documented
                .entry(section.clone().expect("rows stand in sections"))
                .or_default()
                .push(key.to_owned());
            assert_eq!(line.matches('|').count(), 5, "key, type, default and meaning: {line}");
        }
    }
    let known = |(path, keys): &(&str, &[&str])| {
        ((*path).to_owned(), keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(documented, KEYS.iter().map(known).collect());
}

#[test]
fn the_example_of_the_documentation_is_valid_and_has_every_key() {
    let text = documentation();
    let example = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let config = config::parse(example, "docs/configuration.md").unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.tables.len(), 27);
    let words: Vec<_> = example.split([' ', '\n', '{', '[']).collect();
    for key in KEYS.iter().flat_map(|(_, keys)| *keys) {
        assert!(words.contains(&format!("{key}:").as_str()), "{key}");
    }
}

/// Broken files are refused or, where the break does no harm, taken: nothing panics, and every fault has its place.
#[test]
fn broken_files_are_told_of_and_never_panic() {
    let text = documentation();
    let example = text.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let pieces = [
        "", "\n", " ", ":", "- ", "[", "]", "{", "}", "&a ", "*a", "!t ", "'", "\"", "-1", "1-9", "\t", "#",
        "é",
    ];
    let (mut valid, mut refused) = (0, 0);
    for _ in 0..500 {
        let mut text = example.to_owned();
        for _ in 0..=random(3) {
            let from = text.floor_char_boundary(random(text.len()));
            let to = text.ceil_char_boundary((from + random(6)).min(text.len()));
            text.replace_range(from..to, pieces[random(pieces.len())]);
        }
        match config::parse(&text, "f") {
            Ok(_) => valid += 1,
            Err(ConfigError::Invalid(faults)) => {
                refused += 1;
                let lines = text.lines().count() + 1;
                assert!(!faults.faults.is_empty());
                assert!(
                    faults.faults.iter().all(|fault| (1..=lines).contains(&fault.line)),
                    "{faults}\n{text}"
                );
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(valid > 10 && refused > 100, "{valid} valid, {refused} refused");
}

#[test]
fn check_prints_what_it_would_do() {
    let (valid, out, err) = check(&repository().join("configs/plain-bier.yaml"), false);
    assert!(valid && err.is_empty());
    let lines: Vec<String> =
        out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    for line in [
        "attach to eth0, eth1, replicator0p",
        "origin veth replicator0 (169.254.81.1/30, fd00:8138::1/126) to replicator0p (169.254.81.2, fd00:8138::2), \
         queues: 1",
        "this node 192.0.2.1, 2001:db8::1",
        "5 oslo UDP over IPv4 192.0.2.30 port 6635 eth1 by ARP or ND none",
        "7 lab Ethernet none eth1 02:00:00:00:00:63 802.1ad 100, 802.1Q 7",
        // berlin and madrid, oslo and paris: 3 x 3 counts, with and without a local copy, one of them without any.
        "sync 0x30000 256 (code 3) 18 4 and local 2 17 rounded: 2 by eth0, 2 by eth1",
        "sync-vpp 0x20000 256 (code 2) 2 1 and local 1 3 exact: 1 by eth0",
        "lab 0x30001 64 (code 1) 1 1 1 1 exact: 1 by eth1",
        "BIFT-ids 3 of 4096",
        "fan-out maps 21 of 32768",
    ] {
        assert!(lines.iter().any(|found| found == line), "{line}\n{out}");
    }
}

#[test]
fn check_tells_faults_and_fails() {
    let path = std::env::temp_dir().join(format!("replicator-check-{}.yaml", std::process::id()));
    std::fs::write(&path, "interfaces: [eth0]\nmode: fast\n").unwrap();
    let (text, json) = (check(&path, false), check(&path, true));
    std::fs::remove_file(&path).unwrap();
    let line = format!("{}:2:7: mode: is `fast`; it must be native or generic", path.display());
    assert_eq!(text, (false, String::new(), format!("{line}\n")));
    let answer: serde_json::Value = serde_json::from_str(&json.1).unwrap();
    let expected = serde_json::json!({
        "file": path.display().to_string(),
        "valid": false,
        "error": line,
        "faults": [{ "line": 2, "column": 7, "path": "mode", "message": "is `fast`; it must be native or generic" }],
    });
    assert_eq!((json.0, answer), (false, expected));
    assert!(!check(Path::new("/nonexistent"), false).0);
}

#[test]
fn check_notes_what_may_not_be_meant() {
    let config = config::parse(
        "\
interfaces: [eth0]
sources: ['::/0']
neighbors:
  a: { address: 10.0.0.1, interface: eth0 }
  b: { mac: 02:00:00:00:00:01, interface: eth0 }
  c: { address: 10.0.0.3 }
  d: { address: 10.0.0.4 }
expert-tables:
  - { model: m, experts: 6, variants: 2, layers: { 0-1: { 0: [a, b, c], 4: a } } }
",
        "f",
    )
    .unwrap();
    let report = serde_json::to_value(check::report(&config)).unwrap();
    assert_eq!(
        report["notes"],
        serde_json::json!([
            "sources: ::/0 lets everyone multiply frames through this host; name the senders' prefixes",
            "neighbors in no table (frames from them are taken): d",
            "neighbors without `interface`: fan-out is counted as if all their routes led to one device",
            "m layer 0 and 1 with the same rows: neighbors of several encapsulations or numbers of VLAN tags; a frame \
             reaches those like itself alone",
            "m layer 0 and 1 with the same rows: of 3 replicas, 2 variants use 2",
            "m layer 0 and 1 with the same rows: experts on no node, counted as bit_without_row: 1-3, 5",
        ])
    );
    let empty = config::parse("origin: {}\n", "f").unwrap();
    assert_eq!(
        serde_json::to_value(check::report(&empty)).unwrap()["notes"],
        serde_json::json!(["no tables: BIER frames are dropped as unknown_bift until tables are installed"])
    );
}
