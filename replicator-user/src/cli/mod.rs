//! What the subcommands of `replicator` take and print.

pub mod check;
