//! `replicator stats`.

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    process::ExitCode,
    thread,
    time::Duration,
};

use crate::{
    daemon::status,
    datapath::{Counters, Pins},
};
use clap::Args;
use replicator_common::{
    neighbor::FIRST_REMOTE_NEIGHBOR,
    outcome::{Outcome, Unit},
};
use serde::Serialize;

use super::Instance;

/// Show what became of frames, copies and bits, and what each neighbor got
///
/// The counts are those of the kernel since the programs were loaded; the daemon need not run.
#[derive(Args)]
pub(super) struct Stats {
    #[command(flatten)]
    instance: Instance,
    /// Show again every so many seconds, with rates
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1",
          value_parser = clap::value_parser!(u64).range(1..=3600))]
    watch: Option<u64>,
    /// For scripts: one JSON object, or one a line with --watch
    #[arg(long)]
    json: bool,
}

/// The counts, by name.
#[derive(Serialize)]
struct Report {
    /// Outcome -> count.
    outcomes: BTreeMap<&'static str, u64>,
    /// Neighbor -> what it got.
    neighbors: BTreeMap<String, Traffic>,
}

#[derive(Clone, Copy, Default, Serialize)]
struct Traffic {
    copies: u64,
    bytes: u64,
}

impl Stats {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut out = io::stdout();
        let mut last: Option<Report> = None;
        loop {
            let report = self.read()?;
            if self.json {
                let text = if self.watch.is_some() {
                    serde_json::to_string(&report)?
                } else {
                    serde_json::to_string_pretty(&report)?
                };
                writeln!(out, "{text}")?;
            } else {
                write!(out, "{}", report.text(last.as_ref(), self.watch.unwrap_or(1)))?;
            }
            let Some(seconds) = self.watch else { return Ok(ExitCode::SUCCESS) };
            last = Some(report);
            thread::sleep(Duration::from_secs(seconds));
        }
    }

    fn read(&self) -> anyhow::Result<Report> {
        let counters = Pins::new(&self.instance.pin_path).counters()?;
        // Names are the daemon's to know; without them neighbors go by their ids.
        let daemon = status::read(&status::path(&self.instance.pin_path)).ok().flatten();
        let names: BTreeMap<u32, String> = daemon
            .into_iter()
            .flat_map(|daemon| daemon.neighbors)
            .map(|neighbor| (neighbor.id, neighbor.name))
            .collect();
        Ok(Report::new(&counters, &names))
    }
}

impl Report {
    fn new(counters: &Counters, names: &BTreeMap<u32, String>) -> Self {
        let mut neighbors = BTreeMap::<String, Traffic>::new();
        for traffic in &counters.neighbors {
            let name = match names.get(&traffic.id) {
                Some(name) => name.clone(),
                None if traffic.id < FIRST_REMOTE_NEIGHBOR => "local".into(),
                None => format!("id {}", traffic.id),
            };
            let sum = neighbors.entry(name).or_default();
            sum.copies += traffic.copies;
            sum.bytes += traffic.bytes;
        }
        let outcomes = counters.outcomes.iter().map(|count| (count.outcome, count.count)).collect();
        Self { outcomes, neighbors }
    }

    /// Outcomes in the order of their numbers, those that never occurred left out; rates against an earlier report.
    fn text(&self, last: Option<&Self>, seconds: u64) -> String {
        let mut text = String::new();
        let rate = |now: u64, before: Option<u64>| {
            before
                .map_or_else(String::new, |before| format!("{:>12}/s", now.saturating_sub(before) / seconds))
        };
        for (unit, title) in [(Unit::Frame, "frames"), (Unit::Copy, "copies"), (Unit::Bit, "bits")] {
            let of_unit = Outcome::ALL.iter().filter(|outcome| outcome.unit() == unit);
            let counts: Vec<_> = of_unit
                .map(|outcome| (outcome, self.outcomes[outcome.label()]))
                .filter(|(_, n)| *n > 0)
                .collect();
            if counts.is_empty() {
                continue;
            }
            text.push_str(&format!("{title}\n"));
            for (outcome, count) in counts {
                let rate = rate(count, last.map(|last| last.outcomes[outcome.label()]));
                text.push_str(&format!("  {:<20}{count:>16}{rate}   {}\n", outcome.label(), outcome.text()));
            }
        }
        if !self.neighbors.is_empty() {
            text.push_str("neighbors                       copies             bytes\n");
        }
        for (name, traffic) in &self.neighbors {
            let before = last.map(|last| last.neighbors.get(name).copied().unwrap_or_default().copies);
            let rate = rate(traffic.copies, before);
            text.push_str(&format!("  {name:<20}{:>16}{:>18}{rate}\n", traffic.copies, traffic.bytes));
        }
        if text.is_empty() {
            text.push_str("no frame has been seen\n");
        }
        text
    }
}
