//! The programs on their devices.

use std::fmt;

use aya::programs::{
    ProgramError, XdpMode,
    links::{FdLink, LinkType, PinnedLink},
    xdp::XdpLink,
};
use serde::{Deserialize, Serialize};

use super::{Datapath, DatapathError, Pins, REPLICATE, xdp};

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
    /// Puts `replicate` on a device: into the link that an earlier load left there, or into a new one. Frames meet the
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
        let error =
            |source| DatapathError::Attach { interface: interface.into(), mode, source: Box::new(source) };
        let link_error = |source| DatapathError::Link { interface: interface.into(), source };
        let program = xdp(&mut self.ebpf, REPLICATE)?;
        let flags = match mode {
            Mode::Native => XdpMode::Driver,
            Mode::Generic => XdpMode::Skb,
        };
        let path = pins.link(ifindex);
        let left = match PinnedLink::from_pin(&path) {
            Ok(pinned) => {
                let link = XdpLink::try_from(FdLink::from(pinned)).map_err(link_error)?;
                match program.attach_to_link(link) {
                    // The link's device is gone, and another has its index.
                    Err(ProgramError::SyscallError(refusal))
                        if refusal.io_error.raw_os_error() == Some(libc::ENOLINK) =>
                    {
                        None
                    }
                    other => Some(other),
                }
            }
            Err(_) => None,
        };
        let id = left.unwrap_or_else(|| program.attach_to_if_index(ifindex, flags)).map_err(error)?;
        let link = program.take_link(id).map_err(error)?;
        // aya falls back to an attachment over netlink, which is no link and cannot be pinned.
        let link =
            FdLink::try_from(link).map_err(|_| DatapathError::NoLink { interface: interface.into() })?;
        let info = link.info().map_err(link_error)?;
        if !matches!(info.link_type(), Ok(LinkType::Xdp)) {
            return Err(DatapathError::NoLink { interface: interface.into() });
        }
        self.attached.retain(|attached| attached.ifindex != ifindex);
        self.attached.push(Attached { ifindex, interface: interface.into(), link: Some(link) });
        Ok(())
    }

    /// The device is gone, and the link with it.
    pub fn forget(&mut self, ifindex: u32) {
        self.attached.retain(|attached| attached.ifindex != ifindex);
    }

    /// Pins maps, programs and links, in place of an earlier load's: they outlive this process. Takes an earlier load's
    /// programs off the devices that have none of this load's, and returns those.
    ///
    /// # Errors
    /// Where bpffs refuses.
    pub fn pin(&mut self, pins: &Pins) -> Result<Vec<u32>, DatapathError> {
        pins.prepare()?;
        for (name, map) in self.ebpf.maps() {
            pins.replace(&pins.map(name), |path| map.pin(path))?;
        }
        for attached in &mut self.attached {
            if let Some(link) = attached.link.take() {
                let path = pins.link(attached.ifindex);
                pins.remove(&path)?;
                let pinned = link.pin(&path).map_err(|source| pins.error(&path, source))?;
                // Kept by its pin: the handle may go.
                drop(FdLink::from(pinned));
            }
        }
        let attached = |ifindex: &u32| self.attached.iter().any(|attached| attached.ifindex == *ifindex);
        let others: Vec<_> = pins.devices()?.into_iter().filter(|ifindex| !attached(ifindex)).collect();
        others.iter().try_for_each(|ifindex| pins.forget(*ifindex))?;
        Ok(others)
    }
}

impl fmt::Debug for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.interface, self.ifindex)
    }
}
