//! What the screen shows, made of two answers of the daemon; pure.

use std::{cmp::Reverse, collections::BTreeMap};

use replicator_common::outcome::{Outcome, Unit};

use crate::{
    api::types::{ModelSummary, NeighborList, Stats, StatusReport, Traffic},
    daemon::status::NeighborResolution,
};

/// The daemon at one moment.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) stats: Stats,
    pub(super) status: StatusReport,
    pub(super) neighbors: NeighborList,
}

/// By what the nodes are sorted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Sort {
    #[default]
    Name,
    Rate,
    Total,
}

impl Sort {
    pub(super) fn next(self) -> Self {
        match self {
            Self::Name => Self::Rate,
            Self::Rate => Self::Total,
            Self::Total => Self::Name,
        }
    }

    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Name => "name",
            Self::Rate => "rate",
            Self::Total => "total",
        }
    }
}

/// A count; `rate` is `None` where there is none yet, or the counters began again.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct OutcomeRow {
    pub(super) label: &'static str,
    pub(super) unit: Unit,
    pub(super) total: u64,
    pub(super) rate: Option<f64>,
}

/// A node that copies go to.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NodeRow {
    pub(super) name: String,
    /// `None` for this host.
    pub(super) resolution: Option<NeighborResolution>,
    pub(super) copies: u64,
    pub(super) copy_rate: Option<f64>,
    pub(super) bit_rate: Option<f64>,
}

/// Seconds from one sample to the next; `None` where the daemon was another or no time has passed.
fn seconds(before: Option<&Sample>, now: &Sample) -> Option<f64> {
    let before = before.filter(|before| before.status.pid == now.status.pid)?;
    let seconds = now.stats.uptime_seconds - before.stats.uptime_seconds;
    (seconds.is_finite() && seconds > 0.0).then_some(seconds)
}

fn rate(before: Option<u64>, now: u64, seconds: Option<f64>) -> Option<f64> {
    Some(now.checked_sub(before?)? as f64 / seconds?)
}

/// The outcomes that ever occurred, in the order of their numbers.
pub(super) fn outcomes(before: Option<&Sample>, now: &Sample) -> Vec<OutcomeRow> {
    let seconds = seconds(before, now);
    let row = |outcome: &Outcome| {
        let label = outcome.label();
        let total = now.stats.outcomes.get(label).copied().filter(|&total| total > 0)?;
        // What had not been named had not occurred.
        let earlier = before.map(|before| before.stats.outcomes.get(label).copied().unwrap_or(0));
        Some(OutcomeRow { label, unit: outcome.unit(), total, rate: rate(earlier, total, seconds) })
    };
    Outcome::ALL.iter().filter_map(row).collect()
}

/// The nodes.
pub(super) fn nodes(before: Option<&Sample>, now: &Sample, sort: Sort) -> Vec<NodeRow> {
    let seconds = seconds(before, now);
    let resolutions = now.neighbors.neighbors.iter();
    let mut resolutions: BTreeMap<_, _> =
        resolutions.map(|neighbor| (neighbor.name.as_str(), &neighbor.resolution)).collect();
    let names: Vec<_> =
        resolutions.keys().copied().chain(now.stats.neighbors.keys().map(String::as_str)).collect();
    let of = |sample: &Sample, name: &str| sample.stats.neighbors.get(name).copied().unwrap_or_default();
    let mut seen = std::collections::BTreeSet::new();
    let row = |name: &str| {
        let Traffic { copies, bytes } = of(now, name);
        let earlier = before.map(|before| of(before, name));
        let bit_rate = rate(earlier.map(|earlier| earlier.bytes), bytes, seconds).map(|bytes| bytes * 8.0);
        NodeRow {
            name: name.to_owned(),
            resolution: resolutions.remove(name).cloned(),
            copies,
            copy_rate: rate(earlier.map(|earlier| earlier.copies), copies, seconds),
            bit_rate,
        }
    };
    let mut rows: Vec<_> = names.into_iter().filter(|name| seen.insert(*name)).map(row).collect();
    rows.sort_by(|a, b| a.name.cmp(&b.name));
    match sort {
        Sort::Name => {}
        Sort::Rate => {
            let rate = |row: &NodeRow| row.copy_rate.unwrap_or(0.0);
            rows.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        }
        Sort::Total => rows.sort_by_key(|row| Reverse(row.copies)),
    }
    rows
}

/// The models.
pub(super) fn models(now: &Sample) -> &[ModelSummary] {
    &now.status.models
}

/// A number with three digits and a prefix of SI.
pub(super) fn si(number: f64) -> String {
    const PREFIXES: [&str; 5] = ["", "k", "M", "G", "T"];
    let mut scaled = number;
    let mut prefix = 0;
    // What would be shown as 1000 has the next prefix.
    while scaled >= 999.5 && prefix + 1 < PREFIXES.len() {
        scaled /= 1000.0;
        prefix += 1;
    }
    let digits = match scaled {
        scaled if prefix == 0 && scaled.fract() == 0.0 => 0,
        scaled if scaled < 9.995 => 2,
        scaled if scaled < 99.95 => 1,
        _ => 0,
    };
    let space = if PREFIXES[prefix].is_empty() { "" } else { " " };
    format!("{scaled:.digits$}{space}{}", PREFIXES[prefix])
}
