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
    /// Distinct nodes over all tokens, computed from the routing alone.
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
    /// At the wrong node, or with the wrong bits or table.
    pub misdelivered: u64,
    /// With a payload other than the sent one.
    pub corrupted: u64,
    /// Changes of the expert map while tokens were dispatched.
    pub map_updates: u64,
    /// From the first frame to the last arrival.
    pub seconds: f64,
    /// Copies delivered in a second.
    pub copies_per_second: f64,
    /// Node by node.
    pub per_node: Vec<NodeReport>,
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
    /// Whether every copy arrived, once, where it should, as it was sent, and no other was sent.
    pub(super) fn is_right(&self) -> bool {
        [self.lost, self.duplicated, self.misdelivered, self.corrupted] == [0; 4]
            && self.copies_sent == self.copies_expected
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
        ];
        for (name, value) in rows {
            writeln!(f, "{name:<42} {value}")?;
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
            map_updates: 0,
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
            "seconds",
        ];
        assert!(names.iter().all(|name| json.get(name).is_some()), "{json}");
        assert_eq!(json["per_node"][0]["delivered"], 91_000);
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
    fn thousands_stand_apart() {
        let numbers = [0, 999, 1000, 1_234_567];
        assert_eq!(numbers.map(grouped), ["0", "999", "1,000", "1,234,567"]);
    }
}
