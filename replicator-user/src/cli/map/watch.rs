//! `replicator map watch`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
    time::Duration,
};

use anyhow::Context as _;
use clap::Args;
use tokio::signal::unix::{SignalKind, signal};

use super::ranges;
use crate::{
    api::{
        client::{Client, ClientError},
        types::{Code, Installed},
    },
    cli::api::{Api, block_on},
};

/// How long the daemon holds a question that nothing has changed for.
const HELD: Duration = Duration::from_secs(60);

/// How soon it is asked again where it is not there, or has no such model.
const AGAIN: Duration = Duration::from_secs(1);

/// Follow which tables of a model are in force
///
/// A line for what is in force now and for every change, until Ctrl-C. It waits for a model, and for a daemon, that is not
/// there.
#[derive(Args)]
pub(in crate::cli) struct WatchArgs {
    /// The model
    model: String,
    /// Print a JSON object a line: all layers with their BIFT-ids
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

/// What is known of a model.
#[derive(Debug, PartialEq)]
enum State {
    Installed(Installed),
    /// Why nothing is known.
    Absent(String),
}

impl WatchArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let client = self.api.client()?;
        block_on(async {
            let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
            let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
            tokio::select! {
                ended = self.follow(&client) => ended,
                _ = terminate.recv() => Ok(ExitCode::SUCCESS),
                _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
            }
        })
    }

    async fn follow(&self, client: &Client) -> anyhow::Result<ExitCode> {
        let mut last = None;
        loop {
            let answer = match &last {
                Some(State::Installed(last)) => client.newer_bift_ids(&self.model, last.epoch, HELD).await,
                _ => client.bift_ids(&self.model).await,
            };
            let state = state(answer)?;
            if last.as_ref() != Some(&state) {
                self.tell(last.as_ref(), &state)?;
            }
            if matches!(state, State::Absent(_)) {
                tokio::time::sleep(AGAIN).await;
            }
            last = Some(state);
        }
    }

    fn tell(&self, last: Option<&State>, state: &State) -> io::Result<()> {
        match state {
            State::Installed(installed) if self.json => {
                let mut out = io::stdout().lock();
                writeln!(out, "{}", serde_json::to_string(installed)?)?;
                out.flush()
            }
            State::Installed(installed) => {
                let before = match last {
                    Some(State::Installed(before)) => Some(before),
                    _ => None,
                };
                let mut out = io::stdout().lock();
                writeln!(out, "{}", line(before, installed))?;
                out.flush()
            }
            State::Absent(why) => writeln!(io::stderr(), "{why}; waiting"),
        }
    }
}

/// # Errors
/// Where waiting does not help.
fn state(answer: Result<Installed, ClientError>) -> Result<State, ClientError> {
    match answer {
        Ok(installed) => Ok(State::Installed(installed)),
        Err(error) => {
            let passing = [Code::UnknownModel, Code::NoRoom, Code::Ending];
            let passes = error.problem().is_some_and(|problem| passing.contains(&problem.code));
            if passes || error.is_absence() { Ok(State::Absent(error.to_string())) } else { Err(error) }
        }
    }
}

/// What changed, for people.
fn line(before: Option<&Installed>, now: &Installed) -> String {
    let Some(before) = before else {
        let layers = ranges(now.layers.keys().map(|&layer| layer.into()));
        return format!("{} epoch {}: layers {layers}", now.model, now.epoch);
    };
    let changed = now.layers.iter().filter(|(layer, table)| before.layers.get(layer) != Some(table));
    let changed = ranges(changed.map(|(&layer, _)| layer.into()));
    let gone = before.layers.keys().filter(|layer| !now.layers.contains_key(layer));
    let gone = ranges(gone.map(|&layer| layer.into()));
    let mut line = format!("{} epoch {}:", now.model, now.epoch);
    for (what, layers) in [("changed", changed), ("removed", gone)] {
        if !layers.is_empty() {
            line.push_str(&format!(" layers {what} {layers}"));
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::LayerTable;

    fn installed(epoch: u64, layers: &[(u16, u64)]) -> Installed {
        let table = |&(layer, epoch): &(u16, u64)| {
            (layer, LayerTable { epoch, bift_id: 0, alias: 0, table: layer, generation: 1 })
        };
        Installed {
            model: "m".into(),
            epoch,
            bit_string_length: 64,
            layers: layers.iter().map(table).collect(),
        }
    }

    #[test]
    fn a_line_says_what_changed() {
        let first = installed(3, &[(1, 3), (2, 3), (5, 3)]);
        let second = installed(4, &[(1, 3), (2, 4), (6, 4)]);
        assert_eq!(line(None, &first), "m epoch 3: layers 1-2, 5");
        assert_eq!(line(Some(&first), &second), "m epoch 4: layers changed 2, 6 layers removed 5");
    }
}
