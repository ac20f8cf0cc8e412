//! The programs on their devices.

use std::{fmt, path::Path};

use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, LinkType, PinnedLink},
    xdp::XdpLink,
};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Datapath, DatapathError, Pins, REPLICATE, adoption::is_of_programs, grace, successor, xdp};

/// How a program is attached. There is no falling back from one to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver, before the kernel makes a packet of a frame.
    #[default]
    Native,
    /// In the stack, for drivers without XDP and for trying things.
    Generic,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
        })
    }
}

/// `replicate` on a device.
pub struct Attached {
    /// The device.
    pub ifindex: u32,
    /// Its name when it was attached.
    pub interface: String,
    link: Option<FdLink>,
}

impl Datapath {
    /// Makes ready for taking devices over from other loads, if there are any: pins the maps, which have to be filled,
    /// and has those loads' `rewrite` hand over the copies that they do not know. Comes before the first
    /// [`Self::attach`]; [`Pins::withdraw`] takes it back.
    ///
    /// # Errors
    /// Where bpffs refuses.
    pub fn stage(&mut self, pins: &Pins) -> Result<(), DatapathError> {
        if !self.pinned {
            pins.make_room()?;
            for (name, map) in self.ebpf.maps().filter(|(name, _)| !is_of_programs(name)) {
                let path = pins.map(name);
                map.pin(&path).map_err(|source| pins.error(&path, source))?;
            }
            self.pinned = true;
        }
        for path in pins.others_map(successor::NAME) {
            if let Err(error) = successor::set(&path, &self.rewrite) {
                warn!("{}: {error}; copies in flight while the program changes may be lost", path.display());
            }
        }
        Ok(())
    }

    /// Puts `replicate` on a device: into the link that an earlier daemon left there, or into a new one. Frames meet the
    /// old program or the new one, never none.
    ///
    /// # Errors
    /// Where someone else holds the hook or the driver refuses.
    pub fn attach(
        &mut self,
        pins: &Pins,
        ifindex: u32,
        interface: &str,
        mode: Mode,
    ) -> Result<(), DatapathError> {
        let link = match self.take_over(pins, ifindex, interface, mode)? {
            true => None,
            false => Some(self.link(ifindex, interface, mode)?),
        };
        self.attached.retain(|attached| attached.ifindex != ifindex);
        self.attached.push(Attached { ifindex, interface: interface.into(), link });
        Ok(())
    }

    /// Puts `replicate` into a link that is pinned, and sees to it that it is pinned among this load's. Returns whether
    /// there is one.
    fn take_over(
        &mut self,
        pins: &Pins,
        ifindex: u32,
        interface: &str,
        mode: Mode,
    ) -> Result<bool, DatapathError> {
        let error =
            |source| DatapathError::Attach { interface: interface.into(), mode, source: Box::new(source) };
        let program = xdp(&mut self.ebpf, REPLICATE)?;
        for path in pins.links(ifindex) {
            let Ok(pinned) = PinnedLink::from_pin(&path) else { continue };
            let link = XdpLink::try_from(FdLink::from(pinned))
                .map_err(|source| DatapathError::Link { interface: interface.into(), source })?;
            let id = match program.attach_to_link(link) {
                // The link's device is gone, and another has its index.
                Err(ProgramError::SyscallError(refusal))
                    if refusal.io_error.raw_os_error() == Some(libc::ENOLINK) =>
                {
                    continue;
                }
                other => other.map_err(error)?,
            };
            let link = program.take_link(id).map_err(error)?;
            let own = pins.link(ifindex);
            if path != own {
                let link = FdLink::try_from(link)
                    .map_err(|_| DatapathError::NoLink { interface: interface.into() })?;
                pin_link(pins, link, &own)?;
            }
            return Ok(true);
        }
        Ok(false)
    }

    /// Puts `replicate` into a new link.
    fn link(&mut self, ifindex: u32, interface: &str, mode: Mode) -> Result<FdLink, DatapathError> {
        let error =
            |source| DatapathError::Attach { interface: interface.into(), mode, source: Box::new(source) };
        let program = xdp(&mut self.ebpf, REPLICATE)?;
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let id = program.attach_to_if_index(ifindex, flags).map_err(error)?;
        let link = program.take_link(id).map_err(error)?;
        // aya falls back to an attachment over netlink, which is no link and cannot be pinned.
        let link =
            FdLink::try_from(link).map_err(|_| DatapathError::NoLink { interface: interface.into() })?;
        let info =
            link.info().map_err(|source| DatapathError::Link { interface: interface.into(), source })?;
        if !matches!(info.link_type(), Ok(LinkType::Xdp)) {
            return Err(DatapathError::NoLink { interface: interface.into() });
        }
        Ok(link)
    }

    /// The device is gone, and the link with it.
    pub fn forget(&mut self, ifindex: u32) {
        self.attached.retain(|attached| attached.ifindex != ifindex);
    }

    /// Pins the links, in place of other loads': they outlive this process. Takes other loads' programs off the devices
    /// that have none of this load's, and returns those. Then removes the other loads.
    ///
    /// # Errors
    /// Where bpffs refuses.
    pub fn pin(&mut self, pins: &Pins) -> Result<Vec<u32>, DatapathError> {
        for attached in &mut self.attached {
            if let Some(link) = attached.link.take() {
                pin_link(pins, link, &pins.link(attached.ifindex))?;
            }
        }
        let attached = |ifindex: &u32| self.attached.iter().any(|attached| attached.ifindex == *ifindex);
        let others: Vec<_> = pins.devices()?.into_iter().filter(|ifindex| !attached(ifindex)).collect();
        others.iter().try_for_each(|ifindex| pins.forget(*ifindex))?;
        if pins.has_others() {
            // A poll that began under another load needs its successor to the end, and that goes with the pin.
            grace::wait();
            pins.remove_others()?;
        }
        Ok(others)
    }
}

/// Pins a link in place of one whose device is gone. The pin keeps it: the handle may go.
fn pin_link(pins: &Pins, link: FdLink, path: &Path) -> Result<(), DatapathError> {
    pins.remove(path)?;
    link.pin(path).map(|pinned| drop(FdLink::from(pinned))).map_err(|source| pins.error(path, source))
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.interface, self.ifindex)
    }
}
