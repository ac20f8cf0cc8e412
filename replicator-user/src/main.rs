//! The command `replicator`.
fn main() {}
