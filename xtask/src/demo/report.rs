//! What a run came to.

use std::fmt;

use serde::Serialize;

use super::check::Arrivals;

/// The result, as `--json` writes it.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    /// Where the kernel says the programs run: `native` or `generic`.
    pub mode: String,
    /// What carried BIER: `ipv4`, `ipv6` or `ethernet`.
    pub transport: String,
    /// The model, and where its routing is from.
    pub routing: String,
    /// Expert nodes.
    pub nodes: u32,
    /// Tokens dispatched: each selects experts in one layer.
    pub tokens: u64,
    /// Frames that the dispatcher sent.
    pub frames: u64,
    /// Bytes of each payload.
    pub payload: usize,
    /// Distinct nodes over all tokens, computed from the routing and each token's epoch alone.
    pub copies_expected: u64,
    /// Copies that the replicator counted.
    pub copies_sent: u64,
    /// Copies that receivers checked and found right.
    pub copies_delivered: u64,
    /// Copies that one frame for each expert would have taken.
    pub copies_unicast: u64,
    /// Expected, and never right at its node.
    pub lost: u64,
    /// Right, and there before.
    pub duplicated: u64,
    /// At the wrong node, or with the wrong bits or table, by the epoch that the token was sent by.
    pub misdelivered: u64,
    /// With a payload other than the sent one.
    pub corrupted: u64,
    /// Changes of the expert map while tokens were dispatched.
    pub map_updates: u64,
    /// Changes that were asked for.
    pub map_updates_asked: u64,
    /// Change by change.
    pub map_changes: Vec<MapChange>,
    /// From the first frame to the last arrival.
    pub seconds: f64,
    /// Copies delivered in a second.
    pub copies_per_second: f64,
    /// Node by node.
    pub per_node: Vec<NodeReport>,
}

/// A change of the expert map while tokens were dispatched.
#[derive(Debug, Serialize)]
pub(super) struct MapChange {
    /// Epoch of the map.
    pub epoch: u16,
    /// Layers in it.
    pub layers: u16,
    /// Experts that changed their nodes, over all layers.
    pub experts_moved: u64,
    /// From the request to the answer, which says that it is in force.
    pub milliseconds: f64,
    /// Tokens dispatched by its tables.
    pub tokens: u64,
}

/// What arrived at one node.
#[derive(Debug, Serialize)]
pub(super) struct NodeReport {
    /// Its name.
    pub name: String,
    /// Copies that it should have received.
    pub expected: u64,
    /// What it received.
    #[serde(flatten)]
    pub arrivals: Arrivals,
}

impl Report {
    /// Whether every token was dispatched, every copy arrived, once, where it should, as it was sent, no other was sent, and
    /// the map changed as often as it was to.
    pub(super) fn is_right(&self) -> bool {
        [self.lost, self.duplicated, self.misdelivered, self.corrupted] == [0; 4]
            && self.copies_sent == self.copies_expected
            && self.frames == self.tokens
            && self.map_updates == self.map_updates_asked
    }

    /// How often the map changed, and whether tokens followed.
    fn changes(&self) -> String {
        let followed = self.map_changes.iter().filter(|change| change.tokens > 0).count() as u64;
        let times = match (self.map_updates, self.map_updates_asked) {
            (0, 0) => return "never, as asked for".to_owned(),
            (made, asked) if made == asked => format!("{made} times under load"),
            (made, asked) => format!("{made} of {asked} times under load"),
        };
        match followed == self.map_updates {
            true => format!("{times}, all followed"),
            false => format!("{times}, {followed} followed"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let saved = 100.0 * (1.0 - self.copies_expected as f64 / self.copies_unicast as f64);
        writeln!(f, "{}, {} bytes a token, BIER over {}", self.routing, self.payload, self.transport)?;
        writeln!(f, "replicator in {} mode, {} expert nodes behind one uplink\n", self.mode, self.nodes)?;
        let rows = [
            ("tokens", grouped(self.tokens)),
            ("frames dispatched", grouped(self.frames)),
            ("copies sent", grouped(self.copies_sent)),
            ("  expected: distinct nodes of all tokens", grouped(self.copies_expected)),
            (
                "  unicast, one for each expert",
                format!("{} ({saved:.0} % saved)", grouped(self.copies_unicast)),
            ),
            ("lost", grouped(self.lost)),
            ("duplicated", grouped(self.duplicated)),
            ("misdelivered", grouped(self.misdelivered)),
            ("corrupted", grouped(self.corrupted)),
            ("seconds", format!("{:.2}", self.seconds)),
            ("copies per second", grouped(self.copies_per_second as u64)),
            ("rebalanced", self.changes()),
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<42} {value}")?;
        }
        if let Some((p50, max)) = spread(self.map_changes.iter().map(|change| change.milliseconds)) {
            writeln!(f, "\nepoch   layers   experts moved   in force after")?;
            for MapChange { epoch, layers, experts_moved, milliseconds, .. } in &self.map_changes {
                let moved = grouped(*experts_moved);
                writeln!(f, "{epoch:>5} {layers:>8} {moved:>15} {milliseconds:>13.1} ms")?;
            }
            writeln!(f, "{:<30} {p50:>13.1} ms\n{:<30} {max:>13.1} ms", "p50", "max")?;
        }
        let columns = ["expected", "delivered", "duplicated", "misdelivered", "corrupted"];
        write!(f, "\n{:<10}", "node")?;
        columns.iter().try_for_each(|column| write!(f, " {column:>12}"))?;
        for NodeReport { name, expected, arrivals } in &self.per_node {
            let Arrivals { delivered, duplicated, misdelivered, corrupted } = *arrivals;
            write!(f, "\n{name:<10}")?;
            for value in [*expected, delivered, duplicated, misdelivered, corrupted] {
                write!(f, " {:>12}", grouped(value))?;
            }
        }
        Ok(())
    }
}

/// The value that half of them do not exceed, and the largest; none of no values.
fn spread(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    Some((*values.get(values.len().div_ceil(2).checked_sub(1)?)?, *values.last()?))
}

/// A number with its thousands apart.
pub(super) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(epoch: u16, layers: u16, experts_moved: u64, milliseconds: f64) -> MapChange {
        MapChange { epoch, layers, experts_moved, milliseconds, tokens: 1 }
    }

    fn report() -> Report {
        Report {
            mode: "native".to_owned(),
            transport: "ipv4".to_owned(),
            routing: "deepseek-v2-lite, generated with seed 1".to_owned(),
            nodes: 1,
            tokens: 20_000,
            frames: 20_000,
            payload: 2048,
            copies_expected: 91_000,
            copies_sent: 91_000,
            copies_delivered: 91_000,
            copies_unicast: 120_000,
            lost: 0,
            duplicated: 0,
            misdelivered: 0,
            corrupted: 0,
            map_updates: 2,
            map_updates_asked: 2,
            map_changes: vec![change(2, 26, 1208, 4.06), change(3, 7, 56, 11.9)],
            seconds: 2.0,
            copies_per_second: 45_500.0,
            per_node: vec![NodeReport {
                name: "node0".to_owned(),
                expected: 91_000,
                arrivals: Arrivals { delivered: 91_000, ..Arrivals::default() },
            }],
        }
    }

    #[test]
    fn only_a_run_without_a_fault_is_right() {
        assert!(report().is_right());
        assert!(!Report { lost: 1, ..report() }.is_right());
        assert!(!Report { duplicated: 1, ..report() }.is_right());
        assert!(!Report { misdelivered: 1, ..report() }.is_right());
        assert!(!Report { corrupted: 1, ..report() }.is_right());
        assert!(!Report { copies_sent: 91_001, ..report() }.is_right());
        assert!(!Report { frames: 19_999, ..report() }.is_right());
        assert!(!Report { map_updates: 1, ..report() }.is_right());
    }

    #[test]
    fn the_json_has_every_field_by_its_name() {
        let json = serde_json::to_value(report()).unwrap();
        let names = [
            "mode",
            "nodes",
            "tokens",
            "frames",
            "copies_expected",
            "copies_sent",
            "copies_delivered",
            "copies_unicast",
            "lost",
            "duplicated",
            "misdelivered",
            "corrupted",
            "map_updates",
            "map_updates_asked",
            "map_changes",
            "seconds",
        ];
        assert!(names.iter().all(|name| json.get(name).is_some()), "{json}");
        assert_eq!(json["per_node"][0]["delivered"], 91_000);
        let change = serde_json::json!(
            { "epoch": 3, "layers": 7, "experts_moved": 56, "milliseconds": 11.9, "tokens": 1 }
        );
        assert_eq!(json["map_changes"][1], change);
    }

    #[test]
    fn the_table_shows_the_saving_and_every_node() {
        let text = report().to_string();
        assert!(text.contains("120,000 (24 % saved)"), "{text}");
        assert!(
            text.ends_with("node0            91,000       91,000            0            0            0"),
            "{text}"
        );
    }

    #[test]
    fn the_table_shows_every_change_of_the_map() {
        let text = report().to_string();
        assert!(
            text.contains("\nrebalanced                                 2 times under load, all followed\n"),
            "{text}"
        );
        let table = "
epoch   layers   experts moved   in force after
    2       26           1,208           4.1 ms
    3        7              56          11.9 ms
p50                                      4.1 ms
max                                     11.9 ms

node ";
        assert!(text.contains(table), "{text}");
    }

    #[test]
    fn the_table_says_what_was_asked_of_the_map_and_not_done() {
        let report = |asked, epochs: &[u16]| Report {
            map_updates: epochs.len() as u64,
            map_updates_asked: asked,
            map_changes: epochs.iter().map(|&epoch| change(epoch, 1, 1, 1.0)).collect(),
            ..report()
        };
        assert_eq!(report(12, &[2, 3, 4]).changes(), "3 of 12 times under load, all followed");
        let mut unfollowed = report(3, &[2, 3, 4]);
        unfollowed.map_changes[1].tokens = 0;
        assert_eq!(unfollowed.changes(), "3 times under load, 2 followed");
        let none = report(0, &[]);
        assert_eq!(none.changes(), "never, as asked for");
        assert!(!none.to_string().contains("epoch "), "{none}");
    }

    #[test]
    fn half_of_the_changes_take_no_longer_than_the_median() {
        assert_eq!(spread([].into_iter()), None);
        assert_eq!(spread([3.0].into_iter()), Some((3.0, 3.0)));
        assert_eq!(spread([9.0, 1.0, 4.0, 2.0].into_iter()), Some((2.0, 9.0)));
        assert_eq!(spread([9.0, 1.0, 4.0].into_iter()), Some((4.0, 9.0)));
    }

    #[test]
    fn thousands_stand_apart() {
        let numbers = [0, 999, 1000, 1_234_567];
        assert_eq!(numbers.map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
