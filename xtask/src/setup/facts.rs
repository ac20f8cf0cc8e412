//! What the machine has, asked of the tools themselves: no file remembers what was installed.

use std::env;
use std::path::{Path, PathBuf};

use crate::process::{self, ask, command};
use crate::setup::{Compiler, Purpose};

/// The bpf-linker that `install` compiles where no ready one serves.
pub(super) const LINKER_VERSION: &str = "0.13.0";

/// A compiler for the eBPF programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rustc {
    pub(super) compiler: Compiler,
    /// Major and minor version.
    pub(super) release: (u32, u32),
    /// Major version of the LLVM inside.
    pub(super) llvm: u32,
    /// Whether the source of its libraries is there, from which `core` is compiled for eBPF.
    pub(super) source: bool,
}

/// A bpf-linker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Linker {
    pub(super) path: PathBuf,
    /// Major version of the LLVM inside.
    pub(super) llvm: u32,
}

/// What decides whether and what to install.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Facts {
    /// The compilers there are, the preferred one first.
    pub(super) compilers: Vec<Rustc>,
    /// The linkers there are, the preferred one first.
    pub(super) linkers: Vec<Linker>,
    /// The Debian packages whose programs are needed and not there.
    pub(super) missing_packages: Vec<&'static str>,
    /// The rustup components that are needed and not there.
    pub(super) missing_components: Vec<&'static str>,
}

/// A program of a Debian package, how to see that it is there, and what first needs it.
struct Tool {
    package: &'static str,
    probe: &'static [&'static str],
    purpose: Purpose,
}

const TOOLS: [Tool; 4] = [
    Tool { package: "iproute2", probe: &["ip", "-V"], purpose: Purpose::Run },
    Tool { package: "ethtool", probe: &["ethtool", "--version"], purpose: Purpose::Run },
    Tool { package: "curl", probe: &["curl", "--version"], purpose: Purpose::Test },
    Tool {
        package: "python3-venv",
        probe: &["python3", "-c", "import ensurepip, venv"],
        purpose: Purpose::Test,
    },
];

impl Facts {
    /// Asks the machine about all that `purpose` needs.
    pub(super) fn gather(purpose: Purpose) -> Self {
        let tools = TOOLS.iter().filter(|tool| tool.purpose <= purpose);
        let missing_tools = tools.filter(|tool| ask(command(tool.probe[0]).args(&tool.probe[1..])).is_none());
        let components: &[&str] = if purpose == Purpose::Test { &["rustfmt", "clippy"] } else { &[] };
        let subcommand = |component: &str| component.strip_prefix("rust").unwrap_or(component).to_owned();
        let missing_components = components
            .iter()
            .filter(|component| ask(process::cargo().args([&subcommand(component), "--version"])).is_none());
        Self {
            compilers: [Compiler::Nightly, Compiler::System].into_iter().filter_map(rustc).collect(),
            linkers: [PathBuf::from("bpf-linker"), linker_root().join("bin/bpf-linker")]
                .into_iter()
                .filter_map(linker)
                .collect(),
            missing_packages: missing_tools.map(|tool| tool.package).collect(),
            missing_components: missing_components.copied().collect(),
        }
    }
}

/// Where `install` puts the linker it compiles, for all checkouts of this user.
pub(super) fn linker_root() -> PathBuf {
    let under_home = || Some(Path::new(&env::var_os("HOME")?).join(".cache"));
    let absolute = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = absolute.or_else(under_home).unwrap_or_else(|| process::workspace().join("target"));
    cache.join("replicator").join(format!("bpf-linker-{LINKER_VERSION}"))
}

fn rustc(compiler: Compiler) -> Option<Rustc> {
    let (release, llvm) = parse_rustc_version(&ask(compiler.rustc().arg("-vV"))?)?;
    let sysroot = ask(compiler.rustc().args(["--print", "sysroot"]))?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core/src/lib.rs").exists();
    Some(Rustc { compiler, release, llvm, source })
}

fn linker(path: PathBuf) -> Option<Linker> {
    // `--version` is bpf-linker's own; LLVM's stands behind `--llvm-args`, and ends the linker before it reads its
    // input.
    let arguments =
        ["--llvm-args=--version", "--target=bpfel-unknown-none", "--output=/dev/null", "/dev/null"];
    let llvm = parse_llvm_version(&ask(command(&path).args(arguments))?)?;
    Some(Linker { path, llvm })
}

/// Release and LLVM major from `rustc -vV`.
fn parse_rustc_version(text: &str) -> Option<((u32, u32), u32)> {
    let value = |key| text.lines().find_map(|line| line.strip_prefix(key));
    Some((major_minor(value("release: ")?)?, major_minor(value("LLVM version: ")?)?.0))
}

/// LLVM's major version from the text of its `--version`.
fn parse_llvm_version(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.split_once("LLVM version "))?.1;
    Some(major_minor(version)?.0)
}

/// `1.96.0-nightly` -> (1, 96).
pub(super) fn major_minor(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(|number| number.trim().parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rustc_tells_its_release_and_llvm() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nhost: x86_64-unknown-linux-gnu\n\
                    release: 1.97.0-nightly\nLLVM version: 22.1.4\n";
        assert_eq!(parse_rustc_version(text), Some(((1, 97), 22)));
        assert_eq!(parse_rustc_version("release: 1.97.0\n"), None);
    }

    #[test]
    fn llvm_tells_its_version_in_the_words_of_each_builder() {
        assert_eq!(parse_llvm_version("Debian LLVM version 22.1.8\n  Optimized build.\n"), Some(22));
        let upstream =
            "LLVM (http://llvm.org/):\n  LLVM version 23.1.0-rust-1.98.0-nightly\n  Optimized build.\n";
        assert_eq!(parse_llvm_version(upstream), Some(23));
        assert_eq!(parse_llvm_version("bpf-linker 0.13.0\n"), None);
    }
}
