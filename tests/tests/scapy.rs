//! Copies of every encapsulation, decoded by scapy: a reader that shares nothing with this project.

use std::{
    fs,
    os::unix::{fs::MetadataExt as _, process::CommandExt as _},
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use replicator_common::{bier::BitStringLength, neighbor::Encapsulation, outcome::Outcome::Sent};
use replicator_tests::rig::{Rig, to};
use replicator_user::{bift::Destination::Local, datapath::Mode};
use serde_json::{Value, json};

/// Where this test keeps what it makes: below `target`.
const FOLDER: &str = env!("CARGO_TARGET_TMPDIR");
const SCRIPTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/scapy");

/// A Python with scapy in a virtual environment, made once.
fn python() -> anyhow::Result<PathBuf> {
    let environment = Path::new(FOLDER).join("scapy");
    let python = environment.join("bin/python");
    let requirements = fs::read_to_string(format!("{SCRIPTS}/requirements.txt"))?;
    let installed = environment.join("requirements.txt");
    if fs::read_to_string(&installed).is_ok_and(|installed| installed == requirements) {
        return Ok(python);
    }
    let run = |command: &mut Command| -> anyhow::Result<()> {
        // As the owner of the folder, who may want to remove it without being root.
        let owner = fs::metadata(FOLDER)?;
        let output = command.uid(owner.uid()).gid(owner.gid()).output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    };
    run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&environment))
        .context("cannot make a virtual environment with python3 (install python3-venv)")?;
    run(Command::new(&python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-cache-dir"])
        .args(["--no-deps", "--only-binary=:all:", "--require-hashes", "--requirement"])
        .arg(format!("{SCRIPTS}/requirements.txt")))
    .context("cannot install scapy from PyPI; REPLICATOR_OFFLINE=1 skips this test")?;
    fs::write(installed, requirements)?;
    Ok(python)
}

/// A classic pcap file of Ethernet frames.
fn pcap(frames: &[Vec<u8>]) -> Vec<u8> {
    let word = |value: usize| (value as u32).to_ne_bytes();
    // Magic, version 2.4, time zone, accuracy, longest frame, link type Ethernet.
    let mut file = [word(0xa1b2_c3d4), word(4 << 16 | 2), word(0), word(0), word(65_535), word(1)].concat();
    for frame in frames {
        file.extend([word(0), word(0), word(frame.len()), word(frame.len())].concat());
        file.extend(frame);
    }
    file
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

#[test]
fn scapy_agrees() {
    if std::env::var_os("REPLICATOR_OFFLINE").is_some_and(|value| value == "1") {
        println!("skipped: REPLICATOR_OFFLINE=1 is set, and scapy comes from PyPI");
        return;
    }
    // Before this thread leaves the network behind.
    let python = python().unwrap();

    let mut rig = Rig::new().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    let (local, host) = rig.wire.pair("local").unwrap();
    rig.attach(&uplink, Mode::Native).unwrap();
    rig.set_local(&local, host.device.mac).unwrap();
    let (mut frames, mut expected) = (Vec::new(), Vec::new());
    for (encapsulation, checksum) in [
        (Encapsulation::Ipv4, false),
        (Encapsulation::Ipv4, true),
        (Encapsulation::Ipv6, true),
        (Encapsulation::Ethernet, false),
    ] {
        for tags in [&[][..], &[300], &[4_094, 7]] {
            for node in 0..2 {
                rig.neighbor(node, &uplink, encapsulation, tags).unwrap();
            }
            for length in BitStringLength::ALL {
                let bits = length.bits();
                let mut rows = vec![vec![to(0)]; bits];
                rows[1] = vec![to(1)];
                rows[bits - 1] = vec![to(1)];
                rows[2] = vec![Local];
                rig.table(0x8_7a5c, length, rows).unwrap();
                let set = [1, 2, 3, bits / 2 + 1, bits - 1, bits];
                let mut frame = rig.frame(&uplink, encapsulation, 0, length, &set);
                frame.checksum = checksum;
                frame.tags = vec![(0x8100, 3 << 13 | 1 << 12 | 99); tags.len()];
                // BIFT-id 0x87a5c, TC 5, S 1, TTL 200; nibble 5, version 0, BSL, entropy 0xabcde; OAM 2, RSV 1, DSCP 46,
                // proto 62, BFIR-id 0xbeef.
                let bsl = length as u8 + 1;
                frame.header =
                    [0x87, 0xa5, 0xcb, 200, 0x50, bsl << 4 | 0xa, 0xbc, 0xde, 0x9b, 0xbe, 0xbe, 0xef];
                frame.payload = (0..77).map(|n| n * 3).collect();
                port.send(&frame.to_bytes()).unwrap();
                let remote = port.receive(2).unwrap();
                let local_copies = host.receive(1).unwrap();
                assert_eq!((remote.len(), local_copies.len()), (2, 1));
                frames.extend(remote.into_iter().chain(local_copies));

                let payload: String = (0..77_u8).map(|n| format!("{:02x}", n * 3)).collect();
                let common = json!({
                    "checksums_right": true, "bift_id": 0x8_7a5c, "tc": 5, "s": 1, "nibble": 5, "version": 0,
                    "bsl": bsl, "entropy": 0xa_bcde, "oam": 2, "rsv": 1, "dscp": 46, "proto": 62,
                    "bfir_id": 0xbeef, "bit_string_bytes": bits / 8, "payload": payload, "payload_is_raw": true,
                });
                // DSCP 46 and ECN 1 stay.
                let outer = |ipv4: [&str; 2], ipv6: [&str; 2], port: u16| match encapsulation {
                    Encapsulation::Ipv4 => {
                        json!({"ip": [4, ipv4[0], ipv4[1], 185, 61], "ports": [40_000, port], "checksum": checksum})
                    }
                    Encapsulation::Ipv6 => {
                        json!({"ip": [6, ipv6[0], ipv6[1], 185, 61], "ports": [40_000, port], "checksum": true})
                    }
                    Encapsulation::Ethernet => json!({}),
                };
                let tags = match tags {
                    [] => json!([]),
                    [_] => json!([[0x8100, 3, 1, 300]]),
                    _ => json!([[0x88a8, 3, 1, 4_094], [0x8100, 3, 1, 7]]),
                };
                let mut others = set.to_vec();
                others.retain(|bit| ![2, 3, bits].contains(bit));
                for (node, bits) in [(0, others), (1, vec![2, bits])] {
                    let own = json!({
                        "destination": format!("02:00:00:01:00:0{node}"), "source": mac(uplink.mac), "tags": tags,
                        "ttl": 199, "bits": bits,
                    });
                    let ipv4 = ["10.0.0.1", &format!("10.1.0.{node}")];
                    let ipv6 = ["fd00::1", &format!("fd00::1:{node}")];
                    let ipv6 = if node == 0 { ["fd00::1", "fd00::1:0"] } else { ipv6 };
                    expected.push(merge([&common, &own, &outer(ipv4, ipv6, 9_000)]));
                }
                let own = json!({
                    "destination": mac(host.device.mac), "source": mac(local.mac), "tags": [], "ttl": 200, "bits": [3],
                });
                let outer = outer(["169.254.81.2", "10.0.0.1"], ["fd00:8138::2", "fd00::1"], 8138);
                expected.push(merge([&common, &own, &outer]));
            }
        }
    }
    assert_eq!(rig.count(Sent), 4 * 3 * 5 * 3);

    let (pcap_path, expected_path) = (format!("{FOLDER}/copies.pcap"), format!("{FOLDER}/copies.json"));
    fs::write(&pcap_path, pcap(&frames)).unwrap();
    fs::write(&expected_path, Value::from(expected).to_string()).unwrap();
    let script = format!("{SCRIPTS}/decode.py");
    let output =
        Command::new(python).args(["-I", "-B", &script, &pcap_path, &expected_path]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("180 frames decoded, 0 faults"));
}

fn merge(objects: [&Value; 3]) -> Value {
    objects.into_iter().flat_map(|object| object.as_object().cloned().expect("an object")).collect()
}
