//! `cargo xtask demo`: a cluster on this machine, a model's routing, expert maps that change meanwhile, and a check of
//! every frame that arrives.

mod args;
mod check;
mod cluster;
mod config;
mod control;
mod epochs;
mod ledger;
mod model;
mod payload;
mod placement;
mod progress;
mod rebalancing;
mod report;
mod routing;
mod trace;
mod trial;
mod window;

use std::{
    env,
    ffi::OsStr,
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::ExitCode,
};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use replicator_tests::lab::Lab;

pub(crate) use self::args::Args;
use self::{
    args::Transport,
    routing::{Generated, Selection, draw_from_counts},
    trace::Recorded,
    trial::{Trial, Workload},
};
use crate::process::{self, Privilege, as_root};

/// Builds the command `replicator` and runs the demo with it: in this process if it is root's, else in another. The exit
/// code says whether every copy was right.
///
/// # Errors
/// Where something could not be built or set up, or the recording is damaged.
pub(crate) fn start(args: &Args, build: impl FnOnce() -> Result<PathBuf>) -> Result<ExitCode> {
    for path in args.trace.as_deref().into_iter().chain(args.json.as_ref().and_then(|path| path.parent())) {
        // Before minutes of building.
        if !path.as_os_str().is_empty() && !path.exists() {
            bail!("{} is not there", path.display());
        }
    }
    let binary = args.replicator.clone().map_or_else(build, Ok)?;
    if Privilege::of_this_process() == Privilege::Root {
        return run(args, &binary);
    }
    let this = env::current_exe().context("cannot tell where this command is")?;
    let error = as_root(this, &[])?.args(env::args_os().skip(1)).arg("--replicator").arg(binary).exec();
    Err(error).context("cannot start sudo")
}

/// Where recordings are looked for, seen from the checkout, unless REPLICATOR_TRACES names another folder.
const RECORDINGS: &str = "../shared/data/traces";

/// Runs the demo over every transport in both modes, and with every recording there is.
///
/// # Errors
/// The first run in which a copy was not right, or that could not be set up.
pub(crate) fn rehearse(replicator: &Path) -> Result<()> {
    let run = |arguments: &[&OsStr]| {
        let this = env::current_exe().context("cannot tell where this command is")?;
        let mut demo = as_root(this, &[])?;
        process::run(demo.arg("demo").args(arguments).arg("--replicator").arg(replicator))
    };
    for transport in Transport::value_variants() {
        for mode in ["native", "generic"] {
            run(&["--tokens", "5000", "--transport", transport.name(), "--mode", mode].map(OsStr::new))?;
        }
    }
    let folder = match env::var_os("REPLICATOR_TRACES") {
        Some(folder) => PathBuf::from(folder),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(RECORDINGS),
    };
    if !folder.is_dir() {
        eprintln!("no recordings in {}: routing is generated alone", folder.display());
        return Ok(());
    }
    for recording in trace::recordings(&folder)? {
        run(&[OsStr::new("--trace"), recording.as_os_str()])?;
    }
    Ok(())
}

fn run(args: &Args, binary: &Path) -> Result<ExitCode> {
    let lab = Lab::new()?;
    lab.exit_on_signals()?;
    let report = Trial::new(args, workload(args)?)?.run(&lab, binary)?;
    println!("{report}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report)? + "\n";
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(if report.is_right() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// What the command line asks for.
fn workload(args: &Args) -> Result<Workload> {
    let tokens = args.tokens as usize;
    let Some(path) = &args.trace else {
        let (model, shape) = (args.model.name().to_owned(), args.model.shape());
        let selections = Generated::new(shape, args.model.skew(), args.seed).take(tokens).collect();
        let source = format!("generated with seed {}", args.seed);
        return Ok(Workload { model, source, shape, selections });
    };
    let trace = trace::read(path)?;
    let (how, selections): (_, Vec<Selection>) = match trace.routing {
        Recorded::Selections(selections) => {
            ("as recorded", selections.into_iter().cycle().take(tokens).collect())
        }
        Recorded::Counts(counts) => (
            "drawn from recorded counts",
            draw_from_counts(trace.shape, &counts, args.seed).take(tokens).collect(),
        ),
    };
    let source = format!("{how} in {}", path.display());
    Ok(Workload { model: trace.model, source, shape: trace.shape, selections })
}
