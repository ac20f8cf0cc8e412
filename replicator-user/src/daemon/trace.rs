//! What the programs log of dropped frames and copies, in the daemon's own log.

use log::{Log, Metadata, Record};
use replicator_common::outcome::Outcome;
use tracing::info;

/// Where the programs' log goes.
pub(super) struct DropLog;

impl Log for DropLog {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        info!("{}", explained(&record.args().to_string()));
    }

    fn flush(&self) {}
}

/// A program has the number of the outcome alone: at the end of its message.
fn explained(message: &str) -> String {
    let outcome = message.rsplit_once("outcome ").and_then(|(before, number)| {
        let number: u32 = number.trim_end().parse().ok()?;
        Some((before, Outcome::ALL.iter().find(|outcome| **outcome as u32 == number)?))
    });
    match outcome {
        Some((before, outcome)) => format!("{before}{}: {}", outcome.label(), outcome.text()),
        None => message.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outcome_is_told_by_its_label_and_sentence() {
        assert_eq!(
            explained("frame dropped on ifindex 3: outcome 5"),
            "frame dropped on ifindex 3: unknown_bift: No table has this BIFT-id."
        );
        for other in ["copy dropped: outcome 9999", "outcome x", "something else", ""] {
            assert_eq!(explained(other), other);
        }
    }
}
