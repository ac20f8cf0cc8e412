//! The host's own addresses: what frames to this host carry as destination.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Error, MacAddr, Netlink, view::View};

/// Addresses that are this host's in its network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnAddresses {
    /// IP addresses of all interfaces.
    pub ips: BTreeSet<IpAddr>,
    /// MAC addresses of all interfaces.
    pub macs: BTreeSet<MacAddr>,
}

impl OwnAddresses {
    /// Asks the kernel.
    pub async fn read(netlink: &Netlink) -> Result<Self, Error> {
        Ok(Self::of(&View::read(netlink).await?))
    }

    /// Those in a view.
    pub fn of(view: &View) -> Self {
        Self {
            ips: view.addresses.keys().map(|(_, address)| *address).collect(),
            macs: view.links.values().filter_map(|link| link.mac).collect(),
        }
    }
}
