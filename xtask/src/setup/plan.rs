//! What is missing, and how to get it: decided from facts alone.

use std::fmt;

use anyhow::{Result, bail};

use crate::setup::facts::{Facts, LINKER_VERSION, Rustc, major_minor};
use crate::setup::{Compiler, Toolchain};

/// How to get the eBPF toolchain where set-up cannot.
pub(super) const BY_HAND: &str = "`rustup toolchain install nightly --component rust-src` brings the compiler, and \
                                  https://github.com/aya-rs/bpf-linker#installation says how to get bpf-linker";

/// LLVM of the compiler in Debian's package `rustc-web`.
const DEBIAN_LLVM: u32 = 22;

/// The oldest LLVM whose linker may copy packet headers by words (`allows-misaligned-mem-access`), without which the
/// programs outgrow a BPF program's stack.
const OLDEST_LINKER_LLVM: u32 = 22;

/// What there is to install with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Means {
    /// apt, and the right to install with it.
    pub(super) apt: bool,
    /// apt can install [`toolchain_packages`] and removes nothing for it.
    pub(super) toolchain_packages: bool,
}

/// One thing to install.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Debian packages.
    Packages(Vec<String>),
    /// bpf-linker, compiled for this major version of LLVM.
    CompileLinker { llvm: u32 },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Packages(names) => write!(f, "the packages {} (apt-get)", names.join(", ")),
            Self::CompileLinker { llvm } => {
                write!(f, "bpf-linker {LINKER_VERSION}, compiled for LLVM {llvm} (cargo; a minute or two)")
            }
        }
    }
}

/// What a machine lacks.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Missing(Vec<String>);

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine lacks {}", self.0.join(", "))
    }
}

/// The toolchain to use, if nothing is missing.
pub(super) fn check(facts: &Facts) -> Result<Toolchain, Missing> {
    let toolchain = toolchain(facts);
    let mut missing = Vec::new();
    if toolchain.is_none() {
        match facts.compilers.iter().find(|rustc| serves(rustc)) {
            Some(rustc) => missing.push(format!("a bpf-linker with LLVM {} or newer", linker_llvm(rustc))),
            None => missing.push("a Rust compiler for eBPF with its library source".to_owned()),
        }
    }
    missing.extend(facts.missing_packages.iter().map(|package| format!("the package {package}")));
    missing.extend(
        facts.missing_components.iter().map(|name| format!("{name} (`rustup component add {name}`)")),
    );
    toolchain.filter(|_| missing.is_empty()).ok_or(Missing(missing))
}

/// The Debian packages that make a toolchain of the distribution's compiler; none where there is a toolchain.
pub(super) fn toolchain_packages(facts: &Facts) -> Vec<String> {
    let there = toolchain(facts).is_some() || system_compiler(facts).is_some();
    let compiler: &[&str] = if there { &[] } else { &["rustc-web", "rust-web-src"] };
    let llvm = linker_to_compile(facts).map(|llvm| format!("llvm-{llvm}-dev"));
    compiler.iter().map(|&package| package.to_owned()).chain(llvm).collect()
}

/// What to install, in this order.
///
/// # Errors
/// Something can be installed in no way: one sentence says how to get it.
pub(super) fn steps(facts: &Facts, means: Means) -> Result<Vec<Step>> {
    if !facts.missing_components.is_empty() {
        let names = facts.missing_components.join(" ");
        bail!("set-up leaves Rust itself alone: get {names} with `rustup component add {names}`");
    }
    let mut packages: Vec<_> = facts.missing_packages.iter().map(|&package| package.to_owned()).collect();
    if !packages.is_empty() && !means.apt {
        let names = packages.join(" ");
        bail!("installing {names} needs apt-get, and root or sudo: have root run `apt-get install {names}`");
    }
    let for_toolchain = toolchain_packages(facts);
    if !for_toolchain.is_empty() && !means.toolchain_packages {
        // Rustup's toolchains are the user's: to install nightly would be to update the one that is there.
        bail!("apt-get cannot install {} here: {BY_HAND}", for_toolchain.join(" "));
    }
    packages.extend(for_toolchain);
    let packages = (!packages.is_empty()).then_some(Step::Packages(packages));
    let linker = linker_to_compile(facts).map(|llvm| Step::CompileLinker { llvm });
    Ok(packages.into_iter().chain(linker).collect())
}

/// The first compiler that serves, with the first linker that reads what it writes.
fn toolchain(facts: &Facts) -> Option<Toolchain> {
    facts.compilers.iter().filter(|rustc| serves(rustc)).find_map(|rustc| {
        let linker = facts.linkers.iter().find(|linker| linker.llvm >= linker_llvm(rustc))?;
        Some(Toolchain { compiler: rustc.compiler, linker: linker.path.clone() })
    })
}

/// Whether `rustc` can compile the programs: `core` is compiled from source, and the workspace says how new a Rust
/// it takes.
fn serves(rustc: &Rustc) -> bool {
    rustc.source && Some(rustc.release) >= major_minor(env!("CARGO_PKG_RUST_VERSION"))
}

/// The oldest LLVM of a linker for `rustc`. LLVM reads the bitcode of older versions, not of newer ones (LLVM developer
/// policy, "IR backwards compatibility").
fn linker_llvm(rustc: &Rustc) -> u32 {
    rustc.llvm.max(OLDEST_LINKER_LLVM)
}

fn system_compiler(facts: &Facts) -> Option<&Rustc> {
    facts.compilers.iter().find(|rustc| rustc.compiler == Compiler::System && serves(rustc))
}

/// The LLVM to compile a linker for, if there is no toolchain and no linker serves the distribution's compiler.
fn linker_to_compile(facts: &Facts) -> Option<u32> {
    let llvm = system_compiler(facts).map_or(DEBIAN_LLVM, linker_llvm);
    let lacks = toolchain(facts).is_none() && facts.linkers.iter().all(|linker| linker.llvm < llvm);
    lacks.then_some(llvm)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::setup::facts::Linker;

    const ALL: Means = Means { apt: true, toolchain_packages: true };

    fn rustc(compiler: Compiler, llvm: u32, source: bool) -> Rustc {
        Rustc { compiler, release: (1, 96), llvm, source }
    }

    fn linker(path: &str, llvm: u32) -> Linker {
        Linker { path: path.into(), llvm }
    }

    fn with(compilers: Vec<Rustc>, linkers: Vec<Linker>) -> Facts {
        Facts { compilers, linkers, ..Facts::default() }
    }

    fn packages(names: &[&str]) -> Step {
        Step::Packages(names.iter().map(|&name| name.to_owned()).collect())
    }

    #[test]
    fn nightly_with_source_and_a_linker_is_used_as_it_is() {
        let both = vec![rustc(Compiler::Nightly, 22, true), rustc(Compiler::System, 22, true)];
        let toolchain = check(&with(both, vec![linker("bpf-linker", 23), linker("/own", 22)])).unwrap();
        assert_eq!(toolchain.compiler, Compiler::Nightly);
        assert_eq!(toolchain.linker, Path::new("bpf-linker"));
    }

    #[test]
    fn nightly_without_source_does_not_serve() {
        let both = vec![rustc(Compiler::Nightly, 22, false), rustc(Compiler::System, 22, true)];
        let toolchain = check(&with(both, vec![linker("bpf-linker", 22)])).unwrap();
        assert_eq!(toolchain.compiler, Compiler::System);
    }

    #[test]
    fn a_linker_with_an_older_llvm_does_not_serve() {
        let nightly = rustc(Compiler::Nightly, 23, true);
        let debian = rustc(Compiler::System, 22, true);
        let toolchain = check(&with(vec![nightly.clone(), debian], vec![linker("bpf-linker", 22)])).unwrap();
        assert_eq!(toolchain.compiler, Compiler::System);

        let missing = check(&with(vec![nightly.clone()], vec![linker("bpf-linker", 22)])).unwrap_err();
        assert_eq!(missing.to_string(), "this machine lacks a bpf-linker with LLVM 23 or newer");

        let oldest = with(vec![rustc(Compiler::System, 21, true)], vec![linker("bpf-linker", 21)]);
        assert_eq!(
            check(&oldest).unwrap_err(),
            Missing(vec!["a bpf-linker with LLVM 22 or newer".to_owned()])
        );

        let second = vec![linker("bpf-linker", 22), linker("/own", 23)];
        assert_eq!(check(&with(vec![nightly], second)).unwrap().linker, Path::new("/own"));
    }

    #[test]
    fn a_compiler_older_than_the_workspace_allows_does_not_serve() {
        let old = Rustc { release: (1, 85), ..rustc(Compiler::System, 19, true) };
        let facts = with(vec![old], vec![linker("bpf-linker", 22)]);
        let missing = check(&facts).unwrap_err();
        assert_eq!(
            missing.to_string(),
            "this machine lacks a Rust compiler for eBPF with its library source"
        );
        assert_eq!(steps(&facts, ALL).unwrap(), [packages(&["rustc-web", "rust-web-src"])]);
    }

    #[test]
    fn a_bare_debian_machine_gets_everything_in_one_go() {
        let facts = Facts { missing_packages: vec!["iproute2", "ethtool"], ..Facts::default() };
        let expected = [
            packages(&["iproute2", "ethtool", "rustc-web", "rust-web-src", "llvm-22-dev"]),
            Step::CompileLinker { llvm: 22 },
        ];
        assert_eq!(steps(&facts, ALL).unwrap(), expected);
    }

    #[test]
    fn a_linker_is_compiled_for_the_llvm_of_the_compiler_that_is_there() {
        let facts = with(vec![rustc(Compiler::System, 23, true)], vec![linker("/own", 22)]);
        assert_eq!(
            steps(&facts, ALL).unwrap(),
            [packages(&["llvm-23-dev"]), Step::CompileLinker { llvm: 23 }]
        );
    }

    #[test]
    fn without_means_one_sentence_says_how_to_get_it() {
        let error = |facts: &Facts, means| steps(facts, means).unwrap_err().to_string();
        let compiler = error(&Facts::default(), Means { toolchain_packages: false, ..ALL });
        assert!(compiler.contains("`rustup toolchain install nightly --component rust-src`"), "{compiler}");
        let tool = Facts { missing_packages: vec!["ethtool"], ..Facts::default() };
        let tool = error(&tool, Means { apt: false, toolchain_packages: false });
        assert!(tool.contains("`apt-get install ethtool`"), "{tool}");
        let component = error(&Facts { missing_components: vec!["clippy"], ..Facts::default() }, ALL);
        assert!(component.contains("`rustup component add clippy`"), "{component}");
    }

    #[test]
    fn a_complete_toolchain_is_left_alone_when_only_tools_are_missing() {
        let complete = with(vec![rustc(Compiler::System, 22, true)], vec![linker("/own", 22)]);
        let facts = Facts { missing_packages: vec!["ethtool", "python3-venv"], ..complete };
        let missing = check(&facts).unwrap_err().to_string();
        assert_eq!(missing, "this machine lacks the package ethtool, the package python3-venv");
        // Whatever apt says of packages that nobody needs.
        let means = Means { toolchain_packages: false, ..ALL };
        assert_eq!(steps(&facts, means).unwrap(), [packages(&["ethtool", "python3-venv"])]);
    }
}
