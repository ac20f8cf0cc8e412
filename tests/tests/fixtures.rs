//! The table of frames in `fixtures/replicate.yaml`, and what must hold for every frame near one of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeMap;

use replicator_common::{
    bier::BitStringLength::{B64, B128},
    neighbor::{Encapsulation, Endpoint, role},
};
use replicator_tests::rig::{Rig, to};
use replicator_user::bift::{Birt, Destination::Local};
use serde::Deserialize;

/// The device that BPF_PROG_TEST_RUN says a frame came from: `lo`.
const INGRESS: u32 = 1;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum From {
    #[default]
    Network,
    Origin,
}

/// An XDP action, by its number in `enum xdp_action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Action {
    Drop = 1,
    Pass = 2,
    Redirect = 4,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fixture {
    description: String,
    #[serde(default)]
    from: From,
    input: String,
    outcome: String,
    action: Action,
    #[serde(default)]
    changes: BTreeMap<usize, String>,
}

/// Bytes in hexadecimal, `??` for any, comments behind `#`.
fn bytes(text: &str) -> Vec<Option<u8>> {
    let words = text.lines().flat_map(|line| line.split('#').next().unwrap_or_default().split_whitespace());
    words.map(|word| (word != "??").then(|| u8::from_str_radix(word, 16).unwrap())).collect()
}

fn fixtures() -> Vec<Fixture> {
    serde_yaml::from_str(include_str!("../fixtures/replicate.yaml")).unwrap()
}

fn input(fixture: &Fixture) -> Vec<u8> {
    bytes(&fixture.input).into_iter().map(|byte| byte.expect("a byte")).collect()
}

fn lab() -> Rig {
    let mut rig = Rig::new().unwrap();
    rig.allow([(Endpoint::mac([2, 0, 0, 0, 0, 1]), role::OWN)]).unwrap();
    let (uplink, _) = rig.wire.pair("uplink").unwrap();
    let (local, host) = rig.wire.pair("local").unwrap();
    rig.set_local(&local, host.device.mac).unwrap();
    for node in 0..2 {
        rig.neighbor(node, &uplink, Encapsulation::Ipv4, &[]).unwrap();
    }
    rig.table(0x10, B64, vec![vec![to(0)], vec![to(1)], vec![Local]]).unwrap();
    let mut rows = vec![vec![]; 128];
    rows[64] = vec![to(0)];
    rows[127] = vec![Local];
    rig.table(0x20, B128, rows).unwrap();
    rig.install(0x30, &Birt::new(B64, vec![vec![to(0)]], None).unwrap().with_draft_code()).unwrap();
    rig
}

impl Fixture {
    fn run(&self, rig: &mut Rig, frame: &[u8]) -> (u32, Vec<u8>) {
        rig.datapath.set_origin(if self.from == From::Origin { INGRESS } else { 0 });
        rig.replicate(frame).unwrap()
    }
}

#[test]
fn every_fixture() {
    let mut rig = lab();
    let fixtures = fixtures();
    assert!(fixtures.len() >= 28);
    for fixture in fixtures {
        let frame = input(&fixture);
        let count = |rig: &Rig| rig.counts().get(fixture.outcome.as_str()).copied().unwrap_or(0);
        let before = count(&rig);
        let (action, output) = fixture.run(&mut rig, &frame);
        let name = &fixture.description;
        assert_eq!(action, fixture.action as u32, "{name}: {:?}", rig.counts());
        assert_eq!(count(&rig), before + 1, "{name}: {:?}", rig.counts());
        if fixture.action == Action::Drop {
            continue;
        }
        let mut expected: Vec<_> = frame.into_iter().map(Some).collect();
        for (&at, change) in &fixture.changes {
            let change = bytes(change);
            expected[at..at + change.len()].copy_from_slice(&change);
        }
        assert_eq!(output.len(), expected.len(), "{name}");
        for (at, (found, expected)) in output.iter().zip(expected).enumerate() {
            assert!(
                expected.is_none_or(|byte| byte == *found),
                "{name}: byte {at} is {found:02x}: {output:02x?}"
            );
        }
    }
}

/// However a frame is cut or changed: it passes untouched, it is dropped, or it is redirected with its mark, and of what
/// came from the network nothing else is changed.
#[test]
fn every_frame_near_a_fixture() {
    let mut rig = lab();
    let mut actions = BTreeMap::new();
    for fixture in fixtures() {
        let whole = input(&fixture);
        let cut = (14..whole.len()).map(|length| whole[..length].to_vec());
        let changed = (0..8 * whole.len()).map(|bit| {
            let mut frame = whole.clone();
            frame[bit / 8] ^= 0x80 >> (bit % 8);
            frame
        });
        for frame in cut.chain(changed) {
            let (action, output) = fixture.run(&mut rig, &frame);
            *actions.entry(action).or_insert(0) += 1;
            let checksum = match (fixture.from, &frame[12..14]) {
                (From::Origin, [0x08, 0x00]) => 40..42,
                (From::Origin, _) => 60..62,
                _ => 0..0,
            };
            let name = format!("{}, {frame:02x?} became {output:02x?}", fixture.description);
            match action {
                1 => continue,
                2 => assert_eq!(output, frame, "{name}"),
                4 => {
                    assert_eq!(output[..6], [0x01, 0x80, 0xc2, 0, 0, 0x0e], "{name}");
                    let same = |at: &usize| checksum.contains(at) || output[*at] == frame[*at];
                    assert!((12..frame.len()).all(|at| same(&at)), "{name}");
                    // Header and BitString at least.
                    assert!(frame.len() >= 14 + 12 + 8, "{name}");
                }
                other => panic!("action {other}: {name}"),
            }
            assert_eq!(output.len(), frame.len(), "{name}");
        }
    }
    println!("{actions:?}");
    assert_eq!(actions.keys().copied().collect::<Vec<_>>(), [1, 2, 4]);
}
