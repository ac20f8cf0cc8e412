//! What stands in the way of attaching to an interface: asked before, and again after, since many drivers
//! tell whether redirected frames may leave only while a program is attached.

use std::{collections::HashMap, fmt};

use aya::programs::{links::LinkType, loaded_links, loaded_programs};
use replicator_common::limits::MAX_FRAME_BYTES;
use serde::Serialize;

pub use crate::datapath::Mode;

use super::{
    Channels, Error, Netlink,
    ethtool::Ethtool,
    link::{self, Attached, AttachedMode, Link, Peer},
};

/// Bytes of an Ethernet header, which an MTU leaves out.
const ETHERNET_HEADER_BYTES: usize = 14;

/// Largest MTU whose frames fit one page after cloning.
pub const CLONE_MTU: u32 = (MAX_FRAME_BYTES - ETHERNET_HEADER_BYTES) as u32;

/// What an interface is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Frames are replicated that come in here.
    Ingress,
    /// Copies leave here.
    Egress,
    /// Both.
    Both,
}

impl Role {
    const fn ingress(self) -> bool {
        matches!(self, Self::Ingress | Self::Both)
    }

    const fn egress(self) -> bool {
        matches!(self, Self::Egress | Self::Both)
    }
}

/// What is known of an interface.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facts {
    /// The interface.
    pub link: Link,
    /// Its driver.
    pub driver: Option<String>,
    /// Its queues.
    pub channels: Option<Channels>,
    /// Whether it takes VLAN tags out of received frames.
    pub rx_vlan_offload: bool,
    /// Whether generic receive offload is on.
    pub gro: bool,
    /// A veth's other end, where it is in the same namespace.
    pub peer: Option<PeerFacts>,
    /// The program on its hook.
    pub holder: Option<Holder>,
}

/// What matters of a veth's other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PeerFacts {
    /// Name.
    pub name: String,
    /// Set up by the administrator.
    pub up: bool,
    /// Whether a native XDP program is on it.
    pub native_xdp: bool,
    /// Whether generic receive offload is on.
    pub gro: bool,
    /// Its transmit queues.
    pub tx_queues: Option<u32>,
    /// Whether it hands over VLAN tags beside the frame.
    pub tx_vlan_offload: bool,
}

/// Whose program an XDP hook has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// How it runs.
    pub mode: AttachedMode,
    /// Its id.
    pub program_id: u32,
    /// Its name, where that may be read.
    pub name: Option<String>,
    /// The bpf_link that holds it, if one does.
    pub link_id: Option<u32>,
}

/// Something wrong with an interface, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// A sentence.
    pub text: String,
}

/// How bad a problem is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// It will not work.
    Error,
    /// It may not do all that is expected.
    Warning,
}

impl Problem {
    /// Whether it forbids to go on.
    pub const fn is_refusal(&self) -> bool {
        matches!(self.severity, Severity::Error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// All interfaces of the namespace, by ifindex.
pub async fn examine_all(netlink: &Netlink) -> Result<Vec<Facts>, Error> {
    let links = link::all(netlink).await?;
    let ethtool = Ethtool::open()?;
    let programs = Programs::read(links.iter().any(|link| link.xdp.is_some()));
    let by_index: HashMap<u32, &Link> = links.iter().map(|link| (link.ifindex, link)).collect();
    let facts = |link: &Link| Facts {
        driver: ethtool.driver(&link.name),
        channels: ethtool.channels(&link.name),
        rx_vlan_offload: ethtool.rx_vlan_offload(&link.name).unwrap_or(false),
        gro: ethtool.gro(&link.name).unwrap_or(false),
        peer: match link.peer {
            Some(Peer::Here(ifindex)) => by_index.get(&ifindex).map(|peer| PeerFacts {
                name: peer.name.clone(),
                up: peer.up,
                native_xdp: peer.xdp.is_some_and(|attached| attached.mode == AttachedMode::Native),
                gro: ethtool.gro(&peer.name).unwrap_or(false),
                tx_queues: ethtool.channels(&peer.name).map(|channels| channels.tx),
                tx_vlan_offload: ethtool.tx_vlan_offload(&peer.name).unwrap_or(false),
            }),
            _ => None,
        },
        holder: link.xdp.map(|attached| programs.holder(attached)),
        link: link.clone(),
    };
    Ok(links.iter().map(facts).collect())
}

/// The interface with this name; `None` where there is none.
pub async fn examine(netlink: &Netlink, name: &str) -> Result<Option<Facts>, Error> {
    Ok(examine_all(netlink).await?.into_iter().find(|facts| facts.link.name == name))
}

/// What the kernel has loaded, as far as this process may see it.
struct Programs {
    names: HashMap<u32, String>,
    links: HashMap<u32, u32>,
}

impl Programs {
    fn read(wanted: bool) -> Self {
        let (mut names, mut links) = (HashMap::new(), HashMap::new());
        if wanted {
            for program in loaded_programs().flatten() {
                if let Some(name) = program.name_as_str() {
                    names.insert(program.id(), name.to_owned());
                }
            }
            for link in loaded_links().flatten() {
                if link.link_type().is_ok_and(|kind| kind == LinkType::Xdp) {
                    links.insert(link.program_id(), link.id());
                }
            }
        }
        Self { names, links }
    }

    fn holder(&self, Attached { mode, program_id }: Attached) -> Holder {
        let name = self.names.get(&program_id).cloned();
        Holder { mode, program_id, name, link_id: self.links.get(&program_id).copied() }
    }
}

/// Largest MTU that a driver takes together with a program that cannot handle frames in several buffers. Our
/// programs can, so drivers that know several buffers take more, but only frames up to about this size come
/// in one.
const DRIVER_MTU: &[(&str, u32)] = &[
    ("bnxt_en", 3502),
    ("ena", 3498),
    ("gve", 2032),
    ("i40e", 3046),
    ("ice", 3046),
    ("ixgbe", 3050),
    ("mlx5_core", 3498),
    ("veth", CLONE_MTU),
    ("virtio_net", 3506),
];

/// Largest MTU whose frames come in one buffer with this driver, as far as is known.
pub fn single_buffer_mtu(driver: Option<&str>) -> u32 {
    let known = DRIVER_MTU.iter().find(|(name, _)| Some(*name) == driver);
    known.map_or(CLONE_MTU, |(_, mtu)| *mtu)
}

/// What stands in the way of using the interface `name`, of which `facts` are known. Programs with an id in
/// `own` are ours to replace. Nothing but warnings means that it will work.
pub fn verdict(name: &str, facts: Option<&Facts>, mode: Mode, role: Role, own: &[u32]) -> Vec<Problem> {
    let Some(facts) = facts else {
        return vec![error(format!(
            "{name}: there is no such interface in this network namespace; `ip link` lists those there are"
        ))];
    };
    let mut problems = Vec::new();
    let link = &facts.link;
    if link.mac.is_none() {
        problems
            .push(error(format!("{name} is not an Ethernet interface: choose one that has a MAC address")));
        return problems;
    }
    if !link.up {
        problems.push(error(format!("{name} is down: `ip link set dev {name} up`")));
    } else if !link.carrier {
        problems.push(warning(format!(
            "{name} has no carrier: nothing passes until its cable, or the other end of its veth, is up"
        )));
    }
    problems.extend(hook(facts, mode, own));
    if mode == Mode::Native {
        problems.extend(native(facts));
        problems.extend(mtu(facts));
        if role.egress() {
            problems.extend(transmit(facts));
        }
    }
    if role.ingress() {
        problems.extend(tags(facts));
    }
    problems
}

/// Whether a verdict forbids to go on.
pub fn is_refusal(problems: &[Problem]) -> bool {
    problems.iter().any(Problem::is_refusal)
}

fn hook(facts: &Facts, mode: Mode, own: &[u32]) -> Option<Problem> {
    let name = &facts.link.name;
    let holder = facts.holder.as_ref()?;
    let Holder { program_id, mode: held, .. } = holder;
    if own.contains(program_id) {
        let same = matches!(
            (held, mode),
            (AttachedMode::Native, Mode::Native) | (AttachedMode::Generic, Mode::Generic)
        );
        return (!same).then(|| {
            error(format!(
                "{name}: our own program {program_id} is attached in {held} mode, and {mode} mode is \
                 configured: `replicator detach` first"
            ))
        });
    }
    let program = match &holder.name {
        Some(program) => format!("{program:?} (id {program_id})"),
        None => format!("number {program_id}"),
    };
    let remedy = match (holder.link_id, held) {
        (Some(link), _) => format!("`bpftool link detach id {link}`"),
        (None, AttachedMode::Generic) => format!("`ip link set dev {name} xdpgeneric off`"),
        (None, AttachedMode::Offload) => format!("`ip link set dev {name} xdpoffload off`"),
        (None, AttachedMode::Native) => format!("`ip link set dev {name} xdp off`"),
    };
    Some(error(format!(
        "{name}: program {program} holds the XDP hook in {held} mode; stop what attached it or take it off \
         with {remedy}"
    )))
}

fn native(facts: &Facts) -> Option<Problem> {
    let Facts { link, .. } = facts;
    let Link { name, .. } = link;
    let features = link.features?;
    if features.basic && features.redirect {
        return None;
    }
    if link.is_veth() {
        // veth_set_xdp_features in drivers/net/veth.c: none unless peer's TX queues <= own RX queues.
        let (peer, queues) = match &facts.peer {
            Some(PeerFacts { name, tx_queues: Some(queues), .. }) => (name.as_str(), queues.to_string()),
            _ => ("its other end", "N".to_owned()),
        };
        return Some(error(format!(
            "{name} has fewer receive queues than {peer} has transmit queues, and a veth without enough of \
             them takes no native XDP: `ethtool -L {name} rx {queues}`"
        )));
    }
    let what = match (&link.kind, &facts.driver) {
        (Some(kind), _) => format!("interfaces of kind {kind} have"),
        (None, Some(driver)) => format!("the driver {driver} has"),
        (None, None) => "its driver has".to_owned(),
    };
    let lack = if features.basic { "no redirect in native XDP" } else { "no native XDP" };
    let instead = match link.kind.as_deref() {
        Some("vlan") => "use the interface below it, and give neighbors their VLAN tags",
        Some("bridge" | "bond" | "team") => "use the interfaces below it",
        _ => "use another interface, or set `mode: generic`",
    };
    Some(error(format!("{name}: {what} {lack}: {instead}")))
}

fn mtu(facts: &Facts) -> Option<Problem> {
    let Link { name, mtu, features, .. } = &facts.link;
    let limit = single_buffer_mtu(facts.driver.as_deref());
    if *mtu <= limit {
        return None;
    }
    Some(match features {
        Some(features) if !features.rx_sg => error(format!(
            "{name}: with MTU {mtu} its driver takes no XDP program, for it cannot hand over frames in \
             several buffers: `ip link set dev {name} mtu {limit}`"
        )),
        _ => warning(format!(
            "{name}: with MTU {mtu} frames of more than about {limit} bytes come in several buffers, and \
             those are not replicated but counted as multi_buffer or frame_too_long"
        )),
    })
}

fn tags(facts: &Facts) -> Option<Problem> {
    let Facts { link, peer, rx_vlan_offload, .. } = facts;
    let name = &link.name;
    // On a veth the sender's setting counts: it decides whether the tag is put into the frame
    // (validate_xmit_vlan).
    let (on, remedy) = match peer {
        Some(peer) => (peer.tx_vlan_offload, format!("`ethtool -K {} txvlan off`", peer.name)),
        None if link.is_veth() => {
            (*rx_vlan_offload, "`ethtool -K PEER txvlan off` at its other end".to_owned())
        }
        None => (*rx_vlan_offload, format!("`ethtool -K {name} rxvlan off`")),
    };
    on.then(|| {
        warning(format!(
            "{name} gets VLAN tags beside the frame, where XDP does not see them; if frames to replicate \
             carry tags: {remedy}"
        ))
    })
}

fn transmit(facts: &Facts) -> Option<Problem> {
    let Facts { link, .. } = facts;
    let Link { name, .. } = link;
    if link.is_veth() {
        return veth_transmit(facts);
    }
    // Many drivers set the feature when they get a program (xdp_features_set_redirect_target), and copies
    // leave by interfaces that have one of ours.
    let attached = link.xdp.is_some_and(|attached| attached.mode == AttachedMode::Native);
    let features = link.features?;
    (attached && !features.ndo_xmit).then(|| {
        error(format!(
            "{name}: the driver {} takes no redirected frames (ndo-xmit), so no copy would leave and nothing \
             would say so: use another interface, or set `mode: generic`",
            facts.driver.as_deref().unwrap_or("of it")
        ))
    })
}

fn veth_transmit(facts: &Facts) -> Option<Problem> {
    let Link { name, features, .. } = &facts.link;
    let none = "and copies into a veth arrive only where the other end has one of them";
    match (&facts.peer, features) {
        (Some(peer), _) if !peer.up => {
            Some(error(format!("{name}: its other end {0} is down: `ip link set dev {0} up`", peer.name)))
        }
        (Some(peer), _) if !peer.native_xdp && !peer.gro => Some(error(format!(
            "{name}: its other end {0} has neither a native XDP program nor GRO, {none}: `ethtool -K {0} gro \
             on`",
            peer.name
        ))),
        (Some(_), _) => None,
        // The feature of this end tells of the other: veth sets it here when that one gets a program or GRO.
        (None, Some(features)) if features.ndo_xmit => None,
        (None, Some(_)) => Some(error(format!(
            "{name}: its other end, in another network namespace, has neither a native XDP program nor GRO, \
             {none}: `ethtool -K PEER gro on` there"
        ))),
        (None, None) => Some(warning(format!(
            "{name}: its other end is in another network namespace and cannot be asked whether it has a \
             native XDP program or GRO, {none}: make sure of it with `ethtool -K PEER gro on` there"
        ))),
    }
}

const fn error(text: String) -> Problem {
    Problem { severity: Severity::Error, text }
}

const fn warning(text: String) -> Problem {
    Problem { severity: Severity::Warning, text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{MacAddr, XdpFeatures};

    const FULL: XdpFeatures = XdpFeatures {
        basic: true,
        redirect: true,
        ndo_xmit: true,
        zero_copy: false,
        hw_offload: false,
        rx_sg: true,
        ndo_xmit_sg: true,
    };

    fn nic() -> Facts {
        Facts {
            link: Link {
                mac: Some(MacAddr::new([2, 0, 0, 0, 0, 1]).unwrap()),
                features: Some(FULL),
                ..Link::example("eth0", 2)
            },
            driver: Some("mlx5_core".to_owned()),
            channels: None,
            rx_vlan_offload: false,
            gro: true,
            peer: None,
            holder: None,
        }
    }

    fn veth(peer: Peer) -> Facts {
        let mut facts = nic();
        facts.driver = Some("veth".to_owned());
        facts.link.kind = Some("veth".to_owned());
        facts.link.peer = Some(peer);
        if let Peer::Here(_) = peer {
            facts.peer = Some(PeerFacts {
                name: "peer0".to_owned(),
                up: true,
                native_xdp: false,
                gro: true,
                tx_queues: Some(4),
                tx_vlan_offload: false,
            });
        }
        facts
    }

    fn hold(facts: &mut Facts, mode: AttachedMode, name: Option<&str>, link_id: Option<u32>) {
        facts.link.xdp = Some(Attached { mode, program_id: 42 });
        facts.holder = Some(Holder { mode, program_id: 42, name: name.map(str::to_owned), link_id });
    }

    /// The only problem there is.
    fn only(facts: &Facts) -> Problem {
        let mut problems = verdict("eth0", Some(facts), Mode::Native, Role::Both, &[]);
        assert_eq!(problems.len(), 1, "{problems:?}");
        problems.remove(0)
    }

    #[track_caller]
    fn refused(facts: &Facts, text: &str) {
        assert_eq!(only(facts), error(text.to_owned()));
    }

    #[test]
    fn a_good_interface_has_no_problem() {
        for facts in [nic(), veth(Peer::Here(3)), veth(Peer::Elsewhere)] {
            assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[]), []);
        }
    }

    #[test]
    fn an_interface_must_be_there_up_and_ethernet() {
        let missing = verdict("eth7", None, Mode::Native, Role::Ingress, &[]);
        assert_eq!(
            missing[0].to_string(),
            "eth7: there is no such interface in this network namespace; `ip link` lists those there are"
        );
        assert!(is_refusal(&missing));
        let mut facts = nic();
        facts.link.carrier = false;
        assert_eq!(only(&facts).severity, Severity::Warning);
        facts.link.up = false;
        refused(&facts, "eth0 is down: `ip link set dev eth0 up`");
        facts.link.mac = None;
        refused(&facts, "eth0 is not an Ethernet interface: choose one that has a MAC address");
    }

    #[test]
    fn a_foreign_program_on_the_hook_is_named_with_its_removal() {
        let mut facts = nic();
        hold(&mut facts, AttachedMode::Native, Some("xdp_lb"), None);
        refused(
            &facts,
            "eth0: program \"xdp_lb\" (id 42) holds the XDP hook in native mode; stop what attached it or \
             take it off with `ip link set dev eth0 xdp off`",
        );
        hold(&mut facts, AttachedMode::Generic, None, None);
        refused(
            &facts,
            "eth0: program number 42 holds the XDP hook in generic mode; stop what attached it or take it \
             off with `ip link set dev eth0 xdpgeneric off`",
        );
        hold(&mut facts, AttachedMode::Native, Some("xdp_lb"), Some(9));
        assert!(only(&facts).text.ends_with("take it off with `bpftool link detach id 9`"));
    }

    #[test]
    fn our_own_program_is_no_obstacle_in_the_same_mode() {
        let mut facts = nic();
        hold(&mut facts, AttachedMode::Native, Some("replicate"), Some(9));
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[42]), []);
        let other = verdict("eth0", Some(&facts), Mode::Generic, Role::Both, &[42]);
        assert_eq!(
            other[0].text,
            "eth0: our own program 42 is attached in native mode, and generic mode is configured: \
             `replicator detach` first"
        );
    }

    #[test]
    fn a_driver_without_native_xdp_is_refused_and_its_features_unknown_are_not() {
        let mut facts = nic();
        facts.link.features = Some(XdpFeatures::default());
        refused(
            &facts,
            "eth0: the driver mlx5_core has no native XDP: use another interface, or set `mode: generic`",
        );
        assert_eq!(verdict("eth0", Some(&facts), Mode::Generic, Role::Both, &[]), []);
        facts.link.kind = Some("vlan".to_owned());
        refused(
            &facts,
            "eth0: interfaces of kind vlan have no native XDP: use the interface below it, and give \
             neighbors their VLAN tags",
        );
        facts.link.features = None;
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[]), []);
    }

    #[test]
    fn a_driver_may_tell_of_ndo_xmit_once_it_has_a_program() {
        let mut facts = nic();
        facts.driver = Some("virtio_net".to_owned());
        facts.link.features = Some(XdpFeatures { ndo_xmit: false, ndo_xmit_sg: false, ..FULL });
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[]), []);
        hold(&mut facts, AttachedMode::Native, None, None);
        let problems = verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[42]);
        assert_eq!(
            problems[0].text,
            "eth0: the driver virtio_net takes no redirected frames (ndo-xmit), so no copy would leave and \
             nothing would say so: use another interface, or set `mode: generic`"
        );
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Ingress, &[42]), []);
    }

    #[test]
    fn an_mtu_above_one_buffer_is_refused_only_without_several() {
        let mut facts = nic();
        facts.link.mtu = 3498;
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[]), []);
        facts.link.mtu = 3499;
        assert_eq!(
            only(&facts),
            warning(
                "eth0: with MTU 3499 frames of more than about 3498 bytes come in several buffers, and those \
                 are not replicated but counted as multi_buffer or frame_too_long"
                    .to_owned()
            )
        );
        facts.link.features = Some(XdpFeatures { rx_sg: false, ..FULL });
        refused(
            &facts,
            "eth0: with MTU 3499 its driver takes no XDP program, for it cannot hand over frames in several \
             buffers: `ip link set dev eth0 mtu 3498`",
        );
        facts.driver = Some("something".to_owned());
        facts.link.mtu = 3506;
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[]), []);
    }

    #[test]
    fn the_other_end_of_a_veth_must_take_copies() {
        let mut facts = veth(Peer::Here(3));
        let peer = facts.peer.as_mut().unwrap();
        peer.gro = false;
        refused(
            &facts,
            "eth0: its other end peer0 has neither a native XDP program nor GRO, and copies into a veth \
             arrive only where the other end has one of them: `ethtool -K peer0 gro on`",
        );
        facts.peer.as_mut().unwrap().native_xdp = true;
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Both, &[]), []);
        facts.peer.as_mut().unwrap().up = false;
        refused(&facts, "eth0: its other end peer0 is down: `ip link set dev peer0 up`");
        assert_eq!(verdict("eth0", Some(&facts), Mode::Native, Role::Ingress, &[]), []);
    }

    #[test]
    fn the_other_end_in_another_namespace_is_judged_by_this_ends_features() {
        let mut facts = veth(Peer::Elsewhere);
        facts.link.features = Some(XdpFeatures { ndo_xmit: false, ..FULL });
        refused(
            &facts,
            "eth0: its other end, in another network namespace, has neither a native XDP program nor GRO, \
             and copies into a veth arrive only where the other end has one of them: `ethtool -K PEER gro \
             on` there",
        );
        facts.link.features = None;
        assert_eq!(only(&facts).severity, Severity::Warning);
    }

    #[test]
    fn a_veth_without_queues_for_its_peer_says_so() {
        let mut facts = veth(Peer::Here(3));
        facts.link.features = Some(XdpFeatures::default());
        refused(
            &facts,
            "eth0 has fewer receive queues than peer0 has transmit queues, and a veth without enough of them \
             takes no native XDP: `ethtool -L eth0 rx 4`",
        );
    }

    #[test]
    fn tags_that_xdp_does_not_see_are_a_warning_on_ingress() {
        let text = "eth0 gets VLAN tags beside the frame, where XDP does not see them; if frames to replicate \
                    carry tags: ";
        let mut nic = nic();
        nic.rx_vlan_offload = true;
        assert_eq!(only(&nic), warning(format!("{text}`ethtool -K eth0 rxvlan off`")));
        assert_eq!(verdict("eth0", Some(&nic), Mode::Native, Role::Egress, &[]), []);

        let mut veth = veth(Peer::Here(3));
        veth.rx_vlan_offload = true;
        assert_eq!(verdict("eth0", Some(&veth), Mode::Native, Role::Both, &[]), []);
        veth.peer.as_mut().unwrap().tx_vlan_offload = true;
        assert_eq!(only(&veth), warning(format!("{text}`ethtool -K peer0 txvlan off`")));
    }
}
