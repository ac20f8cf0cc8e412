//! The eBPF object that the build put into this library.

use thiserror::Error;

/// This build carries no eBPF object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("this build of the replicator carries no eBPF programs: build it with `cargo xtask build`")]
pub struct NotEmbedded;

/// The eBPF object: both XDP programs, their maps and BTF, aligned for aya's loader.
///
/// # Errors
/// The library was built without the feature `embedded-object`, as a plain `cargo build` does.
pub fn embedded() -> Result<&'static [u8], NotEmbedded> {
    #[cfg(feature = "embedded-object")]
    return Ok(aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/replicator-ebpf")));
    #[cfg(not(feature = "embedded-object"))]
    Err(NotEmbedded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_without_the_programs_says_how_to_get_them() {
        match embedded() {
            Ok(object) => assert_eq!(object[..4], *b"\x7fELF"),
            Err(error) => assert!(error.to_string().contains("cargo xtask build"), "{error}"),
        }
    }
}
