//! Everything of the replicator that runs in user space. What decides (`config`, `map`, `bift`) makes no system calls; what
//! touches the machine (`host`, `datapath`, `daemon`) does not decide.

pub mod api;
pub mod bift;
pub mod cli;
pub mod client;
pub mod config;
pub mod daemon;
pub mod datapath;
pub mod host;
pub mod map;
pub mod models;
