//! What changes on the host, and what that means for the datapath: neighbors that move or cannot be reached, devices that
//! come and go.

use ipnet::IpNet;
use replicator_common::neighbor::Endpoint;
use tracing::{debug, info, warn};

use super::{Daemon, DaemonError, entries, roster::Move};
use crate::{
    bift::NeighborId,
    datapath::Mode,
    host::{
        address::OwnAddresses,
        origin::{self, OriginConfig, OriginSubnet},
        resolver::{Change, Resolution},
        watch::{HostEvent, LinkChange},
    },
};

impl Daemon {
    pub(super) fn neighbor_changed(&mut self, Change { id, resolution }: Change) -> Result<(), DaemonError> {
        let index = id as usize;
        let neighbor = &self.config.neighbors[index];
        match &resolution {
            Resolution::Ready { .. } => info!("neighbor {} is resolved", neighbor.name),
            // What an earlier daemon knew is in force until the first answers had their time.
            Resolution::Pending { .. } if !self.heard => {
                self.resolutions[index] = resolution;
                return Ok(());
            }
            Resolution::Pending { reason } => warn!("neighbor {} is not resolved: {reason}", neighbor.name),
        }
        let entry = entries::neighbor(neighbor, &resolution);
        let moved = match &resolution {
            Resolution::Ready { ifindex, .. } => self.roster.found(index, *ifindex, self.started.elapsed()),
            Resolution::Pending { .. } => Move::Stays(self.roster.place(index)),
        };
        let mut left = None;
        let (id, entry) = match moved {
            Move::Stays(place) => (place.neighbor, entry),
            Move::Moves { from, to } => {
                self.leaving.insert(from.neighbor);
                self.outdated.extend(self.tables.with_neighbor(index));
                left = Some(from.neighbor);
                (to.neighbor, entry)
            }
            Move::NoRoom(place) => {
                warn!("neighbor {} moved to another interface and has to wait for a free id", neighbor.name);
                (place.neighbor, None)
            }
        };
        let told = self.datapath.set_neighbor(id, entry.as_ref());
        if told.is_err() || matches!(moved, Move::NoRoom(_)) {
            self.homeless.insert(index, resolution);
            return Ok(told?);
        }
        self.homeless.remove(&index);
        self.resolutions[index] = resolution;
        // Before the first answers had their time everything is installed anyway, and not everybody is where they are.
        let result = if self.heard { self.catch_up() } else { Ok(()) };
        // Make before break: copies in flight still go by the old id, and no table names it. Where one still does the old
        // id leads nowhere from now on, rather than to where the neighbor was.
        if let Some(id) = left.filter(|id| self.leaving.contains(id)) {
            self.datapath.set_neighbor(id, None)?;
        }
        result
    }

    /// Does what was put off, and tries again what could not be done: the origin pair, tables, neighbors without an id.
    pub(super) async fn retry(&mut self) -> Result<(), DaemonError> {
        if self.store.is_unsynced() {
            let unsynced = self.store.unsynced();
            // A disk may take its time. Whatever becomes of it is in the log.
            drop(tokio::task::spawn_blocking(|| unsynced.sync()));
        }
        if self.origin.is_none() && self.config.origin.is_some() {
            self.restore_origin().await?;
        }
        let mut result = Ok(());
        for (index, resolution) in std::mem::take(&mut self.homeless) {
            // Each whatever becomes of the others.
            let changed = self.neighbor_changed(Change { id: index as u32, resolution });
            result = result.and(changed);
        }
        result.and(self.catch_up())
    }

    /// Whether there is anything to try again.
    pub(super) fn is_behind(&self) -> bool {
        !self.outdated.is_empty()
            || !self.homeless.is_empty()
            || self.origin.is_none() && self.config.origin.is_some()
    }

    pub(super) async fn host_changed(&mut self, event: HostEvent) -> Result<(), DaemonError> {
        match event {
            HostEvent::OwnAddresses(own) => self.set_endpoints(&own)?,
            HostEvent::Link { ifindex, name, change: LinkChange::Added { .. } } => {
                if self.gone.remove(&ifindex) {
                    self.datapath.refill(ifindex)?;
                }
                let ours = self.config.interfaces.iter().any(|interface| interface.as_str() == name);
                if ours && !self.is_attached(ifindex) {
                    self.attach(ifindex, &name, self.config.mode)?;
                    self.pin()?;
                    info!("{name} is back: attached");
                }
            }
            HostEvent::Link { ifindex, name, change: LinkChange::Removed } => {
                self.gone.insert(ifindex);
                if self.is_attached(ifindex) {
                    warn!("{name} is gone");
                    self.interfaces.retain(|interface| interface.ifindex != ifindex);
                    self.datapath.forget(ifindex);
                    self.pins.forget(ifindex)?;
                }
                if self.origin.as_ref().is_some_and(|origin| origin.peer_ifindex == ifindex) {
                    // Another device may get the number, and nobody admits what that receives.
                    self.datapath.set_origin(0);
                    self.origin = None;
                    self.restore_origin().await?;
                }
            }
            HostEvent::Link { name, change, .. } => debug!("{name}: {change:?}"),
        }
        Ok(())
    }

    fn is_attached(&self, ifindex: u32) -> bool {
        self.interfaces.iter().any(|interface| interface.ifindex == ifindex)
    }

    /// Somebody removed the origin pair: it is made anew, and copies for this host's stack go there.
    async fn restore_origin(&mut self) -> Result<(), DaemonError> {
        let result = self.replace_origin().await;
        if result.is_err() {
            // It is tried again.
            self.origin = None;
        }
        result
    }

    async fn replace_origin(&mut self) -> Result<(), DaemonError> {
        self.make_origin().await?;
        self.outdated.extend(self.tables.with_local());
        self.catch_up()?;
        if let Some(origin) = self.origin.clone() {
            self.attach(origin.peer_ifindex, &origin.peer_name, self.config.mode)?;
        }
        self.pin()?;
        info!("the origin veth was removed and is back");
        Ok(())
    }

    /// Makes the origin pair, if one is configured, and tells the datapath.
    pub(super) async fn make_origin(&mut self) -> Result<(), DaemonError> {
        let Some(config) = &self.config.origin else { return Ok(()) };
        let origin = origin::ensure(&self.netlink, &origin_config(config, self.config.mode)).await?;
        self.datapath.set_origin(origin.peer_ifindex);
        for (encapsulation, entry) in entries::local(&self.config, &origin).into_iter().flatten() {
            self.datapath.set_neighbor(NeighborId::local(encapsulation).get(), Some(&entry))?;
        }
        self.origin = Some(origin);
        Ok(())
    }

    pub(super) fn set_endpoints(&mut self, own: &OwnAddresses) -> Result<(), DaemonError> {
        let endpoints = entries::endpoints(&self.config, own);
        let endpoints =
            endpoints.into_iter().map(|(kind, address, roles)| (Endpoint { kind, address }, roles));
        Ok(self.datapath.admission().set_endpoints(endpoints)?)
    }
}

fn origin_config(origin: &crate::config::Origin, mode: Mode) -> OriginConfig {
    let subnet = |net: Result<IpNet, _>, peer| net.ok().map(|stack| OriginSubnet { stack, peer });
    let ipv4 = IpNet::new(origin.ipv4.stack.into(), origin.ipv4.prefix_length);
    let ipv6 = IpNet::new(origin.ipv6.stack.into(), origin.ipv6.prefix_length);
    OriginConfig {
        name: origin.interface.as_str().to_owned(),
        queues: origin.queues.into(),
        finish_checksums: mode == Mode::Generic,
        subnets: [subnet(ipv4, origin.ipv4.peer.into()), subnet(ipv6, origin.ipv6.peer.into())]
            .into_iter()
            .flatten()
            .collect(),
    }
}
