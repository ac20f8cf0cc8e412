//! The daemon: what runs behind `replicator run`.
