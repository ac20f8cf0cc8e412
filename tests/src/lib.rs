//! What the integration tests and the demo stand on: hosts on this machine, and the daemon in one of them.

pub mod api;
pub mod bier;
pub mod lab;
pub mod player;
pub mod random;
pub mod rig;
pub mod wire;
