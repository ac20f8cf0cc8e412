//! The control API: HTTP and JSON on a unix socket, and over TLS where it is configured.
//!
//! [`Listeners::bind`] takes the sockets before anything else is changed; [`Listeners::serve`] answers on them. Every
//! request that concerns the datapath goes through [`Control`](crate::daemon::control::Control) to the daemon's loop.

mod body;
pub mod client;
mod connections;
mod documents;
mod health;
mod limits;
mod listen;
mod metrics;
mod models;
mod problem;
mod router;
mod server;
mod stall;
mod state;
#[cfg(test)]
pub(crate) mod tests;
mod token;
pub mod types;

pub use listen::{ApiError, remove_left};
pub use router::document;
pub use server::{Listeners, Server};
pub use token::TokenError;
