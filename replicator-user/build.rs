//! Hands the library the eBPF object to embed.

use std::path::Path;
use std::{env, error::Error, fs};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_EMBEDDED_OBJECT").is_none() {
        return Ok(());
    }
    println!("cargo::rerun-if-env-changed=REPLICATOR_EBPF_OBJECT");
    let object = env::var("REPLICATOR_EBPF_OBJECT").map_err(
        |_| "the feature `embedded-object` is for `cargo xtask build`, which names the object to embed",
    )?;
    println!("cargo::rerun-if-changed={object}");
    let copy = Path::new(&env::var("OUT_DIR")?).join("replicator-ebpf");
    fs::copy(&object, copy).map_err(|error| format!("cannot read the eBPF object {object}: {error}"))?;
    Ok(())
}
