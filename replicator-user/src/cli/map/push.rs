//! `replicator map push`.

use std::{
    fmt,
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use clap::Args;

use super::{columns, load, print, row};
use crate::{
    api::{
        client::{Client, ClientError},
        types::{Code, Installed},
    },
    cli::api::{Api, block_on},
    map::{ExpertMap, MAX_EPOCH},
};

/// How long a map is tried again for which there is no room. Superseded tables make some within the grace of epochs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Put an expert map in force
///
/// A full map takes the place of the model's last one; a partial map that of the layers in it. Says under which BIFT-ids
/// the layers are found then. Where there is no room at this moment it tries again for a minute.
#[derive(Args)]
pub(in crate::cli) struct PushArgs {
    /// The map
    file: PathBuf,
    /// Give the map the epoch after the one in force, whatever its own is
    #[arg(long)]
    next_epoch: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl PushArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let map = load(&self.file)?;
        let client = self.api.client()?;
        let installed = block_on(push(&client, map, self.next_epoch))?;
        print(&Report(&installed), self.json)?;
        Ok(ExitCode::SUCCESS)
    }
}

async fn push(client: &Client, mut map: ExpertMap, next_epoch: bool) -> anyhow::Result<Installed> {
    if next_epoch {
        match client.epochs(map.model()).await {
            Ok(epochs) => map = after(map, epochs.epoch)?,
            // The first map of a model has the epoch that it says.
            Err(error) if error.problem().is_some_and(|problem| problem.code == Code::UnknownModel) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let until = Instant::now() + PATIENCE;
    loop {
        let error = match client.push(&map).await {
            Ok(installed) => return Ok(installed),
            Err(error) => error,
        };
        let in_time = Instant::now() < until;
        match &error {
            ClientError::Refused { problem, retry_after: Some(wait) } if in_time => {
                eprintln!("no room: {}; trying again in {} s", problem.detail, wait.as_secs());
                tokio::time::sleep(*wait).await;
            }
            // Another writer was faster.
            ClientError::Refused { problem, .. } if next_epoch && in_time && problem.epoch.is_some() => {
                map = after(map, problem.epoch.unwrap_or_default())?;
            }
            _ => return Err(error.into()),
        }
    }
}

fn after(map: ExpertMap, epoch: u64) -> anyhow::Result<ExpertMap> {
    anyhow::ensure!(epoch < MAX_EPOCH, "{} has the last epoch there is; delete the model first", map.model());
    Ok(map.at_epoch(epoch + 1))
}

/// What is in force.
#[derive(serde::Serialize)]
#[serde(transparent)]
struct Report<'i>(&'i Installed);

impl fmt::Display for Report<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Installed { model, epoch, bit_string_length, layers } = self.0;
        writeln!(f, "{model}, epoch {epoch}, BitStrings of {bit_string_length} bits\n")?;
        let mut rows = vec![row(["layer", "epoch", "BIFT-id", "alias", "table", "generation"])];
        rows.extend(layers.iter().map(|(layer, table)| {
            row([
                &layer.to_string(),
                &table.epoch.to_string(),
                &format!("{:#07x}", table.bift_id),
                &format!("{:#07x}", table.alias),
                &table.table.to_string(),
                &table.generation.to_string(),
            ])
        }));
        columns(f, &rows)
    }
}
