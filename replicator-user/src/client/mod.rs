//! For programs that send to sets of experts and receive from them.
//!
//! A [`Dispatcher`] makes one frame out of a set of destinations and a payload; a [`Receiver`] hands out what arrives.
//! Both belong to a thread of the serving engine: their calls block, and neither allocates once it is open.
//!
//! ```no_run
//! use replicator_common::bier::{BiftId, BitStringLength};
//! use replicator_user::client::{Destinations, Dispatcher, DispatcherSettings, Transport};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport = Transport::Udp { to: "169.254.81.2:8138".parse()?, interface: None };
//! let table = BiftId::expert(4, 1).ok_or("table 4 does not exist")?;
//! let mut dispatcher = Dispatcher::open(&transport, &DispatcherSettings::new(table, BitStringLength::B256, 0))?;
//! dispatcher.dispatch(Destinations::Experts(&[3, 17, 200]), 0, b"hidden state")?;
//! dispatcher.flush()?;
//! # Ok(())
//! # }
//! ```

mod batch;
mod delivery;
mod dispatcher;
mod error;
mod frame;
pub mod ranges;
mod receiver;
mod socket;
#[cfg(test)]
mod tests;

pub use delivery::Delivery;
pub use dispatcher::{Dispatcher, DispatcherSettings, Transport};
pub use error::{DispatchError, OpenError};
pub use frame::Destinations;
pub use receiver::{ReceiveCounts, Receiver, ReceiverSettings, Source};
