//! The host as its kernel tells it: interfaces, addresses, routes, neighbors.
//!
//! A netlink socket belongs to the network namespace of the thread that opens it, and so do `/proc/sys/net`
//! and the ethtool ioctls. Everything here is therefore meant for a current-thread tokio runtime on a thread
//! that is in the namespace in question.

pub mod address;
pub mod bpffs;
mod error;
mod ethtool;
mod freshness;
pub mod kernel;
pub mod link;
pub mod needs;
mod netdev;
mod netlink;
pub mod origin;
pub mod preflight;
pub mod resolution;
pub mod resolver;
mod tracker;
pub mod view;
pub mod watch;

pub use crate::config::MacAddr;
pub use error::Error;
pub use ethtool::Channels;
pub use netdev::XdpFeatures;
pub use netlink::Netlink;
