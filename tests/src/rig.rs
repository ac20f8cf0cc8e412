//! A datapath in a namespace, filled by hand: what the daemon would do, without the daemon.

use std::collections::BTreeMap;

use anyhow::Context as _;
use aya::{
    TestRunOptions,
    programs::{ProgramFd, TestRun as _, Xdp},
};
use replicator_common::{
    bier::{BiftId, BitStringLength},
    neighbor::{Encapsulation, Endpoint, Neighbor, VlanTag, role},
    outcome::Outcome,
};
use replicator_user::{
    bift::{Birt, Destination, NeighborId},
    datapath::{Datapath, LoadOptions, MemberPlace, Mode, Pins},
};

use crate::{
    bier::{Carrier, Frame, header},
    wire::{Device, Wire},
};

/// Who sends to this host in the tests.
pub const SENDER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
/// The sender's IPv4 address.
pub const SENDER_IPV4: [u8; 4] = [10, 0, 0, 254];
/// The sender's IPv6 address.
pub const SENDER_IPV6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xfe];
/// This host's IPv4 address.
pub const OWN_IPV4: [u8; 4] = [10, 0, 0, 1];
/// This host's IPv6 address.
pub const OWN_IPV6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
/// Source of IPv4 copies for this host's own stack.
pub const LOCAL_IPV4: [u8; 4] = [169, 254, 81, 2];
/// Source of IPv6 copies for this host's own stack.
pub const LOCAL_IPV6: [u8; 16] = [0xfd, 0, 0x81, 0x38, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];
/// Port that neighbors listen on: not the default, so that a copy that kept its own is seen.
pub const NEIGHBOR_PORT: u16 = 9_000;
/// Where a rig pins that does.
pub const PIN_PATH: &str = "/sys/fs/bpf/replicator";
/// Hop limit of copies.
pub const HOP_LIMIT: u8 = 61;

/// The datapath and what was put into it.
pub struct Rig {
    /// The namespace it lives in.
    pub wire: Wire,
    /// The datapath.
    pub datapath: Datapath,
    /// Remote neighbors by index.
    pub neighbors: BTreeMap<usize, Neighbor>,
    /// Where it is pinned: nowhere, but for [`Rig::pinned`].
    pub pins: Pins,
    local: Option<(Device, [u8; 6])>,
    endpoints: Vec<(Endpoint, u32)>,
}

/// The eBPF object under test.
///
/// # Errors
/// Where the environment names none.
pub fn object() -> anyhow::Result<Vec<u8>> {
    let object = std::env::var("REPLICATOR_EBPF_OBJECT")
        .context("REPLICATOR_EBPF_OBJECT names no eBPF object; run the tests with `cargo xtask test`")?;
    std::fs::read(&object).with_context(|| format!("cannot read {object}"))
}

/// What every load of the tests has as constants.
pub const OPTIONS: LoadOptions = LoadOptions { udp_port: 8138, trace_drops: false };

impl Rig {
    /// A datapath in a new namespace of this thread, with the sender allowed and this host's addresses known.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn new() -> anyhow::Result<Self> {
        let wire = Wire::enter()?;
        let datapath = Datapath::load(&object()?, &OPTIONS)?;
        let mut rig = Self {
            wire,
            datapath,
            neighbors: BTreeMap::new(),
            pins: Pins::new("/nonexistent".as_ref()),
            local: None,
            endpoints: Vec::new(),
        };
        rig.allow([
            (Endpoint::ipv4(SENDER_IPV4), role::SOURCE),
            (Endpoint::ipv6(SENDER_IPV6), role::SOURCE),
            (Endpoint::mac(SENDER_MAC), role::SOURCE),
            (Endpoint::ipv4(OWN_IPV4), role::OWN),
            (Endpoint::ipv6(OWN_IPV6), role::OWN),
        ])?;
        Ok(rig)
    }

    /// The same with a BPF file system of its own to pin to: nothing is left of it when the thread ends.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn pinned() -> anyhow::Result<Self> {
        let mut rig = Self::new()?;
        rig.wire.mount_bpffs()?;
        rig.pins = Pins::new(PIN_PATH.as_ref());
        Ok(rig)
    }

    /// Adds endpoints with roles.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn allow(&mut self, endpoints: impl IntoIterator<Item = (Endpoint, u32)>) -> anyhow::Result<()> {
        self.endpoints.extend(endpoints);
        Ok(self.datapath.admission().set_endpoints(self.endpoints.iter().copied())?)
    }

    /// Puts `replicate` on a device; its MAC is this host's.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn attach(&mut self, device: &Device, mode: Mode) -> anyhow::Result<()> {
        self.allow([(Endpoint::mac(device.mac), role::OWN)])?;
        Ok(self.datapath.attach(&self.pins, device.ifindex, &device.name, mode)?)
    }

    /// Copies for this host's own stack leave on this device.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn set_local(&mut self, device: &Device, stack: [u8; 6]) -> anyhow::Result<()> {
        self.local = Some((device.clone(), stack));
        for encapsulation in [Encapsulation::Ipv4, Encapsulation::Ipv6, Encapsulation::Ethernet] {
            let mut neighbor = Neighbor {
                macs: macs(stack, device.mac),
                udp_port: 8138_u16.to_be_bytes(),
                hop_limit: HOP_LIMIT,
                encapsulation: encapsulation as u8,
                ifindex: device.ifindex,
                ..Neighbor::default()
            };
            match encapsulation {
                Encapsulation::Ipv4 => {
                    neighbor.source_ip[..4].copy_from_slice(&LOCAL_IPV4);
                    neighbor.destination_ip[..4].copy_from_slice(&OWN_IPV4);
                }
                _ => {
                    neighbor.source_ip = LOCAL_IPV6;
                    neighbor.destination_ip = OWN_IPV6;
                }
            }
            self.datapath.set_neighbor(NeighborId::local(encapsulation).get(), Some(&neighbor))?;
        }
        Ok(())
    }

    /// Makes a neighbor behind a device: number `index`, with addresses made of it. The outer of two VLAN tags is a
    /// service tag (802.1ad).
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn neighbor(
        &mut self,
        index: usize,
        device: &Device,
        encapsulation: Encapsulation,
        vlans: &[u16],
    ) -> anyhow::Result<()> {
        let [high, low] = (index as u16).to_be_bytes();
        let mut neighbor = Neighbor {
            macs: macs([2, 0, 0, 1, high, low], device.mac),
            udp_port: NEIGHBOR_PORT.to_be_bytes(),
            hop_limit: HOP_LIMIT,
            encapsulation: encapsulation as u8,
            ifindex: device.ifindex,
            tag_count: vlans.len() as u8,
            ..Neighbor::default()
        };
        for (tag, id) in neighbor.tags.iter_mut().zip(vlans) {
            *tag = VlanTag { protocol: [0x81, 0x00], id: id.to_be_bytes() };
        }
        if vlans.len() == 2 {
            neighbor.tags[0].protocol = [0x88, 0xa8];
        }
        match encapsulation {
            Encapsulation::Ipv4 => {
                neighbor.source_ip[..4].copy_from_slice(&OWN_IPV4);
                neighbor.destination_ip[..4].copy_from_slice(&[10, 1, high, low]);
            }
            Encapsulation::Ipv6 => {
                neighbor.source_ip = OWN_IPV6;
                neighbor.destination_ip = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, high, low];
            }
            Encapsulation::Ethernet => {}
        }
        let id = NeighborId::remote(index).context("too many neighbors")?;
        self.datapath.set_neighbor(id.get(), Some(&neighbor))?;
        self.neighbors.insert(index, neighbor);
        Ok(())
    }

    /// Puts a table in force: for each bit, bit 1 first, the neighbors that reach it.
    ///
    /// # Errors
    /// Where the datapath refuses.
    pub fn table(
        &mut self,
        id: u32,
        length: BitStringLength,
        rows: Vec<Vec<Destination>>,
    ) -> anyhow::Result<()> {
        self.install(id, &Birt::new(length, rows, None)?).map(drop)
    }

    /// Puts a table in force under a BIFT-id. Returns false where it was already.
    ///
    /// # Errors
    /// Where the datapath refuses.
    pub fn install(&mut self, id: u32, birt: &Birt) -> anyhow::Result<bool> {
        let places: Vec<_> = birt
            .neighbors()
            .iter()
            .map(|id| MemberPlace {
                neighbor: id.get(),
                ifindex: self.neighbors[&id.remote_index().expect("remote")].ifindex,
            })
            .collect();
        let local = self.local.as_ref().filter(|_| birt.has_local()).map(|(device, _)| device.ifindex);
        let id = BiftId::new(id).context("20 bits")?;
        Ok(self.datapath.install(&[id], &birt.compile(), &places, local)?)
    }

    /// A frame of the sender's to this host by way of a device: DSCP 46 and ECN 1, which must survive, to table `id`.
    /// UDP over IPv4 has no checksum.
    pub fn frame(
        &self,
        ingress: &Device,
        encapsulation: Encapsulation,
        id: u32,
        length: BitStringLength,
        bits: &[usize],
    ) -> Frame {
        let (carrier, ports) = match encapsulation {
            Encapsulation::Ipv4 => (Carrier::Ipv4(SENDER_IPV4, OWN_IPV4, 46 << 2 | 1, 255), (40_000, 8138)),
            Encapsulation::Ipv6 => (Carrier::Ipv6(SENDER_IPV6, OWN_IPV6, 46 << 2 | 1, 255), (40_000, 8138)),
            Encapsulation::Ethernet => (Carrier::Ethernet, (0, 0)),
        };
        Frame {
            destination: ingress.mac,
            source: SENDER_MAC,
            tags: Vec::new(),
            carrier,
            ports,
            checksum: encapsulation == Encapsulation::Ipv6,
            header: header(id, 17, length.bits(), 0),
            bits: bits.to_vec(),
            length: length.bits(),
            payload: (0..201).collect(),
        }
    }

    /// What `replicate` does with a frame and makes of it (BPF_PROG_TEST_RUN): nothing is sent. The frame comes from
    /// `lo`, interface 1.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn replicate(&mut self, frame: &[u8]) -> anyhow::Result<(u32, Vec<u8>)> {
        let mut output = vec![0; frame.len()];
        let result = self.program("replicator_replicate")?.test_run(TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut output),
            ..TestRunOptions::default()
        })?;
        output.truncate(result.data_size_out as usize);
        Ok((result.return_value, output))
    }

    /// The program that runs on copies.
    ///
    /// # Errors
    /// Where there is none.
    pub fn rewrite(&mut self) -> anyhow::Result<ProgramFd> {
        Ok(self.program("replicator_rewrite")?.fd()?.try_clone()?)
    }

    /// A program by its name.
    ///
    /// # Errors
    /// Where there is none.
    pub fn program(&mut self, name: &str) -> anyhow::Result<&mut Xdp> {
        Ok(self.datapath.ebpf().program_mut(name).context("no such program")?.try_into()?)
    }

    /// How often each outcome occurred that did.
    pub fn counts(&self) -> BTreeMap<&'static str, u64> {
        let counters = self.datapath.counters().expect("counters");
        let occurred = counters.outcomes.iter().filter(|outcome| outcome.count > 0);
        occurred.map(|outcome| (outcome.outcome, outcome.count)).collect()
    }

    /// How often an outcome occurred.
    pub fn count(&self, outcome: Outcome) -> u64 {
        self.datapath.counters().expect("counters").of(outcome)
    }

    /// What neighbor `index` should get of a frame: the bits that are left for it.
    pub fn copy(&self, frame: &Frame, index: usize, bits: Vec<usize>) -> Frame {
        let neighbor = &self.neighbors[&index];
        let mut copy = Frame { bits, ..frame.clone() };
        copy.header[3] -= 1;
        let (destination, source) = neighbor.macs.split_at(6);
        copy.destination = destination.try_into().expect("six bytes");
        copy.source = source.try_into().expect("six bytes");
        let [high, low] = (index as u16).to_be_bytes();
        match &mut copy.carrier {
            Carrier::Ipv4(source, destination, _, ttl) => {
                (*source, *destination, *ttl) = (OWN_IPV4, [10, 1, high, low], HOP_LIMIT);
            }
            Carrier::Ipv6(source, destination, _, hop_limit) => {
                let to = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, high, low];
                (*source, *destination, *hop_limit) = (OWN_IPV6, to, HOP_LIMIT);
            }
            Carrier::Ethernet => {}
        }
        if copy.carrier != Carrier::Ethernet {
            copy.ports.1 = NEIGHBOR_PORT;
        }
        for (tag, new) in copy.tags.iter_mut().zip(&neighbor.tags) {
            *tag = (u16::from_be_bytes(new.protocol), tag.1 & 0xf000 | u16::from_be_bytes(new.id));
        }
        copy
    }

    /// What this host's stack should get of a frame: the bits that are left for it. It is no other hop, and the stack
    /// knows no VLAN.
    pub fn local_copy(&self, frame: &Frame, bits: &[usize]) -> Frame {
        let (device, stack) = self.local.as_ref().expect("a way to the stack");
        let carrier = match frame.carrier {
            Carrier::Ipv4(_, _, tos, _) => Carrier::Ipv4(LOCAL_IPV4, OWN_IPV4, tos, HOP_LIMIT),
            Carrier::Ipv6(_, _, class, _) => Carrier::Ipv6(LOCAL_IPV6, OWN_IPV6, class, HOP_LIMIT),
            Carrier::Ethernet => Carrier::Ethernet,
        };
        Frame {
            destination: *stack,
            source: device.mac,
            tags: Vec::new(),
            carrier,
            bits: bits.to_vec(),
            ..frame.clone()
        }
    }
}

fn macs(destination: [u8; 6], source: [u8; 6]) -> [u8; 12] {
    let mut macs = [0; 12];
    macs[..6].copy_from_slice(&destination);
    macs[6..].copy_from_slice(&source);
    macs
}

/// The way to remote neighbor `index`.
pub fn to(index: usize) -> Destination {
    Destination::Neighbor(NeighborId::remote(index).expect("few neighbors"))
}
