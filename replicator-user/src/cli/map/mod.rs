//! `replicator map`: expert maps, as files and in force.

mod push;
mod watch;

use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    str::FromStr,
};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use replicator_common::limits::MAX_EXPERT_TABLES;
use serde::Serialize;

use super::{
    api::{Api, block_on},
    check::{columns, row},
};
use crate::map::{self, Diff, ExpertMap, Format, Import, MAX_BYTES};

#[derive(Subcommand)]
pub(super) enum Map {
    /// Turn a serving framework's file into an expert map
    ///
    /// The nodes of the ranks do not stand in these files: give them with --nodes or --ranks.
    Import(ImportArgs),
    /// Say what is in an expert map
    Show {
        /// The map: a file, or live:MODEL for the one in force
        #[arg(value_name = "MAP")]
        map: Source,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    /// Say which experts change nodes from one map to another
    ///
    /// Epochs, and moves between ranks of one node, are no differences. Exit status: 0 none, 1 some, 2 something
    /// failed.
    Diff {
        /// The map before: a file, or live:MODEL for the one in force
        old: Source,
        /// The map after: the same
        new: Source,
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        api: Api,
    },
    Push(push::PushArgs),
    Watch(watch::WatchArgs),
}

/// Where a map is.
#[derive(Clone)]
pub(super) enum Source {
    File(PathBuf),
    /// In force; the model.
    Live(String),
}

impl FromStr for Source {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.strip_prefix("live:") {
            Some("") => Err("`live:` wants a model's name behind it"),
            Some(model) => Ok(Self::Live(model.to_owned())),
            None => Ok(Self::File(text.into())),
        }
    }
}

impl Source {
    fn load(&self, api: &Api) -> anyhow::Result<ExpertMap> {
        match self {
            Self::File(file) => load(file),
            Self::Live(model) => {
                let client = api.client()?;
                block_on(async { Ok(client.map(model).await?) })
            }
        }
    }
}

#[derive(Args)]
pub(super) struct ImportArgs {
    /// Whose file it is
    #[arg(long, value_enum)]
    from: Format,
    /// The framework's file
    file: PathBuf,
    /// The model's name
    #[arg(long)]
    model: String,
    /// The map's epoch: a later map has a larger one
    #[arg(long)]
    epoch: u64,
    #[command(flatten)]
    ranks: Ranks,
    /// Ranks on each of --nodes
    #[arg(long, value_name = "N", default_value_t = 1, requires = "nodes", value_parser = clap::value_parser!(u16).range(1..))]
    ranks_per_node: u16,
    /// Logical experts of a layer, if not as the file says or up to its highest
    #[arg(long, value_name = "N")]
    experts: Option<usize>,
    /// Number of the first layer in a file that does not number them
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u16).range(..MAX_EXPERT_TABLES as i64))]
    first_layer: u16,
    /// Layers that are not in the file stay as they are
    #[arg(long)]
    partial: bool,
    /// Number of layer 0's table, where all hosts are to have the same: layer i has this one plus i
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(..MAX_EXPERT_TABLES as i64))]
    first_table: Option<u16>,
    /// Write to a file, at once, instead of standard output
    #[arg(long, value_name = "FILE")]
    to: Option<PathBuf>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Ranks {
    /// Names of neighbors, or `local`, in the order of their ranks
    #[arg(long, value_name = "NODE,...", value_delimiter = ',')]
    nodes: Option<Vec<String>>,
    /// JSON file with the node of each rank: [{"rank": 0, "node": "node1"}, ...]
    #[arg(long, value_name = "FILE")]
    ranks: Option<PathBuf>,
}

impl Map {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Self::Import(args) => args.run(),
            Self::Show { map, json, api } => {
                let summary = Summary::of(&map.load(&api)?);
                print(&summary, json)?;
                Ok(ExitCode::SUCCESS)
            }
            Self::Push(args) => args.run(),
            Self::Watch(args) => args.run(),
            Self::Diff { old, new, json, api } => {
                // As diff(1): 1 says that there are differences.
                let compared = || {
                    let diff = map::diff(&old.load(&api)?, &new.load(&api)?);
                    print(&DiffReport(&diff), json)?;
                    anyhow::Ok(diff.is_empty())
                };
                Ok(compared().map_or_else(
                    |error| {
                        eprintln!("error: {}", super::describe(&error));
                        ExitCode::from(2)
                    },
                    |same| if same { ExitCode::SUCCESS } else { ExitCode::FAILURE },
                ))
            }
        }
    }
}

impl ImportArgs {
    fn run(self) -> anyhow::Result<ExitCode> {
        let nodes = match (self.ranks.nodes, self.ranks.ranks) {
            (Some(names), _) => {
                let per_node = usize::from(self.ranks_per_node);
                names.into_iter().flat_map(|name| std::iter::repeat_n(name, per_node)).collect()
            }
            (None, Some(file)) => map::ranks(&read(&file)?).with_context(|| faults_in(&file))?,
            (None, None) => anyhow::bail!("no ranks; give --nodes or --ranks"),
        };
        let with = Import {
            model: self.model,
            epoch: self.epoch,
            nodes,
            experts: self.experts,
            first_layer: self.first_layer,
            partial: self.partial,
            first_table: self.first_table,
        };
        let map = map::import(self.from, &read(&self.file)?, &with).with_context(|| faults_in(&self.file))?;
        let json = map.to_json();
        match self.to {
            Some(file) => replace(&file, json.as_bytes())
                .with_context(|| format!("{}: cannot be written", file.display()))?,
            None => io::stdout().write_all(json.as_bytes())?,
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// The bytes of a file, and one more than a document may have where it is longer.
fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let most = MAX_BYTES as u64 + 1;
    let read = match file.as_os_str().as_encoded_bytes() {
        b"-" => io::stdin().take(most).read_to_end(&mut bytes),
        _ => fs::File::open(file).and_then(|opened| opened.take(most).read_to_end(&mut bytes)),
    };
    read.with_context(|| format!("{}: cannot be read", file.display()))?;
    Ok(bytes)
}

fn load(file: &Path) -> anyhow::Result<ExpertMap> {
    ExpertMap::parse(&read(file)?).with_context(|| faults_in(file))
}

fn faults_in(file: &Path) -> String {
    format!("{} is not valid", file.display())
}

/// Replaces a file at once: a reader sees the old one or the new one.
fn replace(file: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(file).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("it is there and no regular file; name another"));
    }
    let name = file.file_name().ok_or_else(|| io::Error::other("it has no file name"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = file.with_file_name(temporary);
    let written = fs::File::create_new(&temporary)
        .and_then(|mut new| new.write_all(bytes).and_then(|()| new.sync_all()))
        .and_then(|()| fs::rename(&temporary, file));
    if written.is_err() {
        // What is left of it is of no use; the error says why.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn print<T: Serialize + fmt::Display>(report: &T, json: bool) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(report)?)?;
    } else {
        write!(out, "{report}")?;
    }
    Ok(())
}

/// What is in a map.
#[derive(Serialize)]
struct Summary {
    model: String,
    epoch: u64,
    logical_experts: usize,
    partial: bool,
    /// The ranks of each node.
    nodes: BTreeMap<String, Vec<usize>>,
    layers: BTreeMap<u16, LayerSummary>,
}

#[derive(PartialEq, Serialize)]
struct LayerSummary {
    slots: usize,
    slots_per_rank: usize,
    /// Slots without an expert.
    empty_slots: usize,
    /// Slots of the expert with the most.
    most_replicas: usize,
    /// Nodes with an expert.
    nodes: usize,
}

impl Summary {
    fn of(map: &ExpertMap) -> Self {
        let mut nodes = BTreeMap::<String, Vec<usize>>::new();
        for (rank, node) in map.nodes().iter().enumerate() {
            nodes.entry(node.clone()).or_default().push(rank);
        }
        let layer = |(&number, layer): (&u16, &std::sync::Arc<map::Layer>)| {
            let slots = layer.slots();
            let slots_per_rank = slots.len() / map.nodes().len();
            let mut replicas = vec![0_usize; map.experts()];
            slots.iter().flatten().for_each(|&expert| replicas[usize::from(expert)] += 1);
            let used = slots.chunks(slots_per_rank).zip(map.nodes());
            let used = used.filter(|(slots, _)| slots.iter().any(Option::is_some)).map(|(_, node)| node);
            let summary = LayerSummary {
                slots: slots.len(),
                slots_per_rank,
                empty_slots: slots.iter().filter(|slot| slot.is_none()).count(),
                most_replicas: replicas.into_iter().max().unwrap_or(0),
                nodes: used.collect::<std::collections::BTreeSet<_>>().len(),
            };
            (number, summary)
        };
        Self {
            model: map.model().to_owned(),
            epoch: map.epoch(),
            logical_experts: map.experts(),
            partial: map.is_partial(),
            nodes,
            layers: map.layers().iter().map(layer).collect(),
        }
    }
}

/// Ascending numbers, as ranges.
fn ranges(numbers: impl IntoIterator<Item = usize>) -> String {
    let mut ranges = Vec::<(usize, usize)>::new();
    for number in numbers {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => ranges.push((number, number)),
        }
    }
    let text = |(first, last)| if first == last { format!("{first}") } else { format!("{first}-{last}") };
    ranges.into_iter().map(text).collect::<Vec<_>>().join(", ")
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { model, epoch, logical_experts, .. } = self;
        let kind = if self.partial { "some layers" } else { "full map" };
        writeln!(f, "{model}, epoch {epoch}, {logical_experts} logical experts, {kind}\n\nNodes")?;
        let mut rows = vec![row(["name", "ranks"])];
        rows.extend(self.nodes.iter().map(|(name, list)| row([name, &ranges(list.iter().copied())])));
        columns(f, &rows)?;
        writeln!(f, "\nLayers")?;
        let mut rows = vec![row(["layers", "physical", "per rank", "empty", "replicas at most", "nodes"])];
        let layers: Vec<_> = self.layers.iter().collect();
        for alike in layers.chunk_by(|(_, a), (_, b)| a == b) {
            let (_, layer) = alike[0];
            let counts =
                [layer.slots, layer.slots_per_rank, layer.empty_slots, layer.most_replicas, layer.nodes];
            let numbers = ranges(alike.iter().map(|(number, _)| usize::from(**number)));
            rows.push([numbers].into_iter().chain(counts.map(|count| count.to_string())).collect());
        }
        columns(f, &rows)
    }
}

#[derive(Serialize)]
#[serde(transparent)]
struct DiffReport<'d>(&'d Diff);

impl fmt::Display for DiffReport<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Diff { model, logical_experts, removed_layers, added_layers, layers } = self.0;
        if let Some([old, new]) = model {
            writeln!(f, "model: {old} -> {new}")?;
        }
        if let Some([old, new]) = logical_experts {
            writeln!(f, "logical experts: {old} -> {new}")?;
        }
        for (what, numbers) in [("removed", removed_layers), ("added", added_layers)] {
            if !numbers.is_empty() {
                writeln!(f, "layers {what}: {}", ranges(numbers.iter().map(|&number| number.into())))?;
            }
        }
        for (number, layer) in layers {
            let map::LayerDiff { moved, added, removed, experts } = layer;
            writeln!(f, "layer {number}: replicas moved {moved}, added {added}, removed {removed}")?;
            for (expert, change) in experts {
                let side = |sign, nodes: &BTreeMap<String, usize>| -> String {
                    let times = |n: usize| if n == 1 { String::new() } else { format!(" x{n}") };
                    nodes.iter().map(|(node, &n)| format!(" {sign}{node}{}", times(n))).collect()
                };
                writeln!(f, "  expert {expert}:{}{}", side('-', &change.lost), side('+', &change.gained))?;
            }
        }
        Ok(())
    }
}
