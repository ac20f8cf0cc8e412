//! All checks of the project, cheapest first, up to the first that fails.

use std::env;
use std::ffi::OsStr;
use std::io::{IsTerminal as _, stderr};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::artifact::{self, Layout, OBJECT_VARIABLE, Profile, Warnings};
use crate::demo;
use crate::process::{self, Privilege, cargo, command, sudo_arguments};
use crate::setup::Toolchain;

/// The environment variable that tells the integration tests which `replicator` to run.
const REPLICATOR_VARIABLE: &str = "REPLICATOR_BIN";

/// The one that tells them of a `replicator` with another layout of the maps.
const OTHER_LAYOUT_VARIABLE: &str = "REPLICATOR_OTHER_LAYOUT_BIN";

/// Runs all checks. With `filter` of the integration tests only those whose name contains it, and the demo only if it is
/// `demo`.
///
/// # Errors
/// The first step that failed.
pub(crate) fn run(toolchain: &Toolchain, filter: Option<&str>, profile: Profile) -> Result<()> {
    let mut steps = Steps { done: 0, color: stderr().is_terminal() && env::var_os("NO_COLOR").is_none() };
    steps.run("formatting", || process::run(cargo().args(["fmt", "--all", "--check"])))?;
    steps.run("the Python package", python)?;
    steps.run("clippy", || {
        process::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "--deny=warnings"]))
    })?;
    let object = steps.run("the eBPF object, warnings denied", || {
        artifact::object(toolchain, Layout::Own, Warnings::Deny)
    })?;
    let other = steps.run("replicator with another layout of the maps", || {
        let object = artifact::object(toolchain, Layout::Other, Warnings::Deny)?;
        artifact::replicator(&object, Layout::Other, Profile::Dev)
    })?;
    let replicator = steps
        .run("replicator with the object inside", || artifact::replicator(&object, Layout::Own, profile))?;
    steps.run("unit tests", || {
        process::run(cargo().args(["test", "--workspace", "--exclude=replicator-tests", "--no-fail-fast"]))
    })?;
    steps.run("integration tests, as root", || {
        integration_tests(
            &[
                (REPLICATOR_VARIABLE, replicator.as_ref()),
                (OTHER_LAYOUT_VARIABLE, other.as_ref()),
                (OBJECT_VARIABLE, object.as_ref()),
            ],
            filter,
        )
    })?;
    if filter.is_none_or(|filter| filter == "demo") {
        steps.run("the demo, as root", || demo::rehearse(&replicator))?;
    }
    Ok(())
}

/// The Python package's tests. Set-up brings Python with what the test with scapy needs.
fn python() -> Result<()> {
    let mut python = command("python3");
    python.args(["-m", "unittest", "discover", "-s", "python/tests", "-t", "python"]);
    // Nothing is left in the tree, whoever runs this.
    process::run(python.current_dir(process::workspace()).env("PYTHONDONTWRITEBYTECODE", "1"))
}

/// Cargo compiles as this user; only the tests themselves run as root.
fn integration_tests(variables: &[(&str, &OsStr)], filter: Option<&str>) -> Result<()> {
    let mut cargo = cargo();
    cargo.args(["test", "--package=replicator-tests", "--tests", "--no-fail-fast"]).args(filter);
    match Privilege::of_this_process() {
        Privilege::Root => cargo.envs(variables.iter().copied()),
        Privilege::Sudo => {
            let own =
                env::vars().filter(|(name, _)| name.starts_with("RUST_") || name.starts_with("REPLICATOR_"));
            let own: Vec<_> = own.collect();
            let own = own.iter().map(|(name, value)| (name.as_str(), OsStr::new(value)));
            let variables: Vec<_> = own.chain(variables.iter().copied()).collect();
            let mut runner = vec!["sudo".to_owned()];
            runner.extend(
                sudo_arguments(&variables).into_iter().map(|word| word.to_string_lossy().into_owned()),
            );
            cargo.arg("--config").arg(format!("target.'cfg(unix)'.runner={}", Value::from(runner)))
        }
        Privilege::None => {
            bail!("they make network namespaces: run `cargo xtask test` as root or install sudo")
        }
    };
    if filter.is_some() {
        cargo.args(["--", "--nocapture"]);
    }
    process::run(&mut cargo)
}

/// Runs steps under a heading each, with the time each took.
struct Steps {
    done: u32,
    color: bool,
}

impl Steps {
    fn run<T>(&mut self, name: &str, step: impl FnOnce() -> Result<T>) -> Result<T> {
        self.done += 1;
        self.say(&format!("{}. {name}", self.done));
        let start = Instant::now();
        let result = step().with_context(|| format!("step {} failed, {name}", self.done))?;
        self.say(&format!("{}. {name}: {:.1} s", self.done, start.elapsed().as_secs_f64()));
        Ok(result)
    }

    fn say(&self, text: &str) {
        let (bold, plain) = if self.color { ("\x1b[1;32m", "\x1b[0m") } else { ("", "") };
        eprintln!("{bold}==> {text}{plain}");
    }
}
