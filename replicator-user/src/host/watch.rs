//! What the daemon must know of the host beside its neighbors: links that come, go and change, and own
//! addresses.

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::MulticastGroup;
use tokio::sync::mpsc;

use super::{Error, address::OwnAddresses, link::Link, netlink::Task, tracker::Tracker};

const GROUPS: &[MulticastGroup] =
    &[MulticastGroup::Link, MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr];

/// Something about this host changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostEvent {
    /// An interface.
    Link {
        /// Its number.
        ifindex: u32,
        /// Its name.
        name: String,
        /// What happened.
        change: LinkChange,
    },
    /// The own addresses are now these.
    OwnAddresses(OwnAddresses),
}

/// What happened to an interface. A new name is a removal and an addition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkChange {
    /// It is there.
    Added {
        /// Whether frames can pass: set up, and with a carrier.
        running: bool,
        /// Its MTU.
        mtu: u32,
    },
    /// It is gone; the kernel has emptied its entries in every devmap.
    Removed,
    /// Frames can pass.
    Up,
    /// No frame passes: set down, or no carrier.
    Down,
    /// It has this MTU.
    Mtu(u32),
}

/// A running watch; it ends when this is dropped.
pub struct Watch {
    _task: Task,
}

impl Watch {
    /// Watches the calling thread's network namespace. The first events tell the present state. Must be
    /// called within a tokio runtime.
    pub fn start() -> Result<(Self, mpsc::UnboundedReceiver<HostEvent>), Error> {
        let tracker = Tracker::open(GROUPS)?;
        let (sender, receiver) = mpsc::unbounded_channel();
        Ok((Self { _task: Task::spawn(run(tracker, sender)) }, receiver))
    }
}

async fn run(mut tracker: Tracker, events: mpsc::UnboundedSender<HostEvent>) {
    let mut before = (BTreeMap::new(), OwnAddresses::default());
    loop {
        if !tracker.changed().await.host {
            continue;
        }
        let after = (tracker.view.links.clone(), OwnAddresses::of(&tracker.view));
        // Another device with the index and the name of one that went away looks as if nothing had happened.
        let removed = std::mem::take(&mut tracker.view.removed);
        let mut news = link_events(&before.0, &after.0, &removed);
        if before.1 != after.1 {
            news.push(HostEvent::OwnAddresses(after.1.clone()));
        }
        before = after;
        if news.into_iter().any(|event| events.send(event).is_err()) {
            return;
        }
    }
}

/// What happened to the interfaces between two states; those that had these numbers were removed in between.
fn link_events(
    before: &BTreeMap<u32, Link>,
    after: &BTreeMap<u32, Link>,
    removed: &BTreeSet<u32>,
) -> Vec<HostEvent> {
    let same = |old: &Link, new: &Link| old.name == new.name && !removed.contains(&new.ifindex);
    let mut events = Vec::new();
    let mut tell = |link: &Link, change| {
        events.push(HostEvent::Link { ifindex: link.ifindex, name: link.name.clone(), change });
    };
    for (ifindex, old) in before {
        if after.get(ifindex).is_none_or(|new| !same(old, new)) {
            tell(old, LinkChange::Removed);
        }
    }
    for (ifindex, new) in after {
        match before.get(ifindex).filter(|old| same(old, new)) {
            None => tell(new, LinkChange::Added { running: new.is_running(), mtu: new.mtu }),
            Some(old) => {
                if old.mtu != new.mtu {
                    tell(new, LinkChange::Mtu(new.mtu));
                }
                if old.is_running() != new.is_running() {
                    tell(new, if new.is_running() { LinkChange::Up } else { LinkChange::Down });
                }
            }
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(ifindex: u32, name: &str) -> Link {
        Link::example(name, ifindex)
    }

    fn events<const N: usize>(before: [Link; N], after: [Link; N]) -> Vec<(u32, String, LinkChange)> {
        events_with(before, after, &[])
    }

    fn events_with<const N: usize>(
        before: [Link; N],
        after: [Link; N],
        removed: &[u32],
    ) -> Vec<(u32, String, LinkChange)> {
        let state = |links: [Link; N]| links.into_iter().map(|link| (link.ifindex, link)).collect();
        link_events(&state(before), &state(after), &removed.iter().copied().collect())
            .into_iter()
            .map(|event| match event {
                HostEvent::Link { ifindex, name, change } => (ifindex, name, change),
                HostEvent::OwnAddresses(_) => panic!("links only"),
            })
            .collect()
    }

    #[test]
    fn links_come_and_go() {
        let (a, b) = (link(2, "eth0"), link(3, "eth1"));
        assert_eq!(
            events([a.clone()], [b]),
            [
                (2, "eth0".to_owned(), LinkChange::Removed),
                (3, "eth1".to_owned(), LinkChange::Added { running: true, mtu: 1500 })
            ]
        );
        assert_eq!(events([a.clone()], [a]), []);
    }

    #[test]
    fn a_device_that_takes_the_place_of_another_is_told() {
        let eth0 = || [link(2, "eth0")];
        assert_eq!(
            events_with(eth0(), eth0(), &[2]),
            [
                (2, "eth0".to_owned(), LinkChange::Removed),
                (2, "eth0".to_owned(), LinkChange::Added { running: true, mtu: 1500 })
            ]
        );
        assert_eq!(events_with(eth0(), eth0(), &[3]), []);
    }

    #[test]
    fn a_new_name_is_a_removal_and_an_addition() {
        assert_eq!(
            events([link(2, "eth0")], [Link { mtu: 9000, ..link(2, "nic0") }]),
            [
                (2, "eth0".to_owned(), LinkChange::Removed),
                (2, "nic0".to_owned(), LinkChange::Added { running: true, mtu: 9000 })
            ]
        );
    }

    #[test]
    fn a_lost_carrier_is_down_as_much_as_an_administrator_is() {
        let up = link(2, "eth0");
        for down in [Link { carrier: false, ..up.clone() }, Link { up: false, mtu: 1400, ..up.clone() }] {
            let down_events = events([up.clone()], [down.clone()]);
            assert_eq!(down_events.last().unwrap().2, LinkChange::Down);
            assert_eq!(events([down], [up.clone()]).last().unwrap().2, LinkChange::Up);
        }
        assert_eq!(
            events([up.clone()], [Link { mtu: 1400, ..up }]),
            [(2, "eth0".to_owned(), LinkChange::Mtu(1400))]
        );
    }
}
