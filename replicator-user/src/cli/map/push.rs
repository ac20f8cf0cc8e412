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
    /// The map; - is standard input
    file: PathBuf,
    /// Give the map the epoch after the one in force, whatever its own is
    #[arg(long)]
    next_epoch: bool,
    /// Print JSON: the answer, or the problem where it is refused
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    api: Api,
}

impl PushArgs {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let map = load(&self.file)?;
        let client = self.api.client()?;
        let pushed = block_on(push(&client, map, self.next_epoch));
        let refused = pushed.as_ref().err().and_then(|error| error.downcast_ref::<ClientError>());
        match refused.and_then(ClientError::problem) {
            Some(problem) if self.json => {
                println!("{}", serde_json::to_string_pretty(problem)?);
                return Ok(ExitCode::FAILURE);
            }
            Some(problem) if problem.code == Code::StaleEpoch => {
                anyhow::bail!("{}, or have --next-epoch give it one", problem.detail);
            }
            _ => {}
        }
        print(&Report(&pushed?), self.json)?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::tests::fake::{Lab, map},
        models::Refusal,
    };

    fn parsed(epoch: u64, partial: bool) -> ExpertMap {
        ExpertMap::parse(map("m", epoch, &[3], partial).as_bytes()).unwrap()
    }

    #[tokio::test]
    async fn a_map_gets_the_next_epoch_where_that_is_asked_for() {
        let lab = Lab::usual();
        let client = lab.client();
        assert_eq!(push(&client, parsed(7, false), true).await.unwrap().epoch, 7, "the model's first");
        assert_eq!(push(&client, parsed(2, false), true).await.unwrap().epoch, 8);
        assert_eq!(push(&client, parsed(2, true), true).await.unwrap().epoch, 9);
        let stale = push(&client, parsed(9, false), false).await.unwrap_err();
        assert_eq!(stale.to_string(), "epoch 9 is not newer than the one in force, 9; send a larger one");
        // Another writer comes between question and map.
        lab.fake.whims.lock().unwrap().refuse.push(Refusal::StaleEpoch { epoch: 10, current: 20 });
        assert_eq!(push(&client, parsed(2, false), true).await.unwrap().epoch, 21);
        assert_eq!(push(&client, parsed(MAX_EPOCH, false), false).await.unwrap().epoch, MAX_EPOCH);
        let last = push(&client, parsed(1, false), true).await.unwrap_err();
        assert_eq!(last.to_string(), "m has the last epoch there is; delete the model first");
    }

    #[tokio::test]
    async fn it_is_tried_again_where_that_may_help() {
        let lab = Lab::usual();
        let client = lab.client();
        let no_room = |retry_after| Refusal::NoRoom { detail: "full".into(), retry_after };
        lab.fake.whims.lock().unwrap().refuse.extend([no_room(Some(0)), no_room(Some(1))]);
        let started = Instant::now();
        assert_eq!(push(&client, parsed(7, false), false).await.unwrap().epoch, 7);
        assert!(started.elapsed() >= Duration::from_secs(1));
        lab.fake.whims.lock().unwrap().refuse.push(no_room(None));
        assert_eq!(push(&client, parsed(8, false), false).await.unwrap_err().to_string(), "full");
    }

    #[tokio::test]
    async fn bift_ids_are_a_table() {
        let lab = Lab::usual();
        let installed = push(&lab.client(), parsed(7, false), false).await.unwrap();
        // The configuration has table 0.
        assert_eq!(
            Report(&installed).to_string(),
            "m, epoch 7, BitStrings of 64 bits\n\n  layer  epoch  BIFT-id  alias    table  generation\n  \
             3      7      0x80108  0x80100  1      8\n"
        );
    }
}
