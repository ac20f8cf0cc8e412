//! The daemon and its commands on real links: what other hosts receive, and what is left behind.

#![expect(clippy::unwrap_used, reason = "a test fails by it, and its helpers are not seen as tests")]

mod capabilities;
mod delivery;
mod follow;
mod life;
mod load;
mod log;
mod maps;
mod network;
mod readme;
mod refusal;
mod requests;
mod tree;
