//! Keeps neighbors resolved: follows the kernel's tables, asks for what is missing, tells what changes.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use rtnetlink::MulticastGroup;
use tokio::{
    sync::{mpsc, watch},
    time::sleep_until,
};
use tracing::debug;

pub use super::resolution::{Reason, Resolution, Target};
use super::{
    Error,
    freshness::Freshness,
    netlink::Task,
    resolution::{destination, next_hop, resolve},
    tracker::Tracker,
    view::Route,
};

/// Nexthop objects need no group of their own: the kernel also reports the routes that use them
/// (net.ipv4.nexthop_compat_mode).
const GROUPS: &[MulticastGroup] = &[
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
    MulticastGroup::Ipv4Rule,
    MulticastGroup::Ipv6Rule,
];

/// Changes of routes come in bursts: wait this long for the rest before looking routes up.
const SETTLE: Duration = Duration::from_millis(20);
/// Where routes change all the time, looking them up takes at most one part in this many of the time.
const LOOKUP_SHARE: u32 = 10;
/// Look again this much later: a device that goes down is reported before its IPv4 routes are gone, and their
/// going is not reported (`dev_close_many`, `fib_sync_down_dev`).
const CONFIRM: Duration = Duration::from_secs(1);
/// Longest sleep.
const IDLE: Duration = Duration::from_secs(60);

/// A target's resolution is now another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The target's id.
    pub id: u32,
    /// What it is now.
    pub resolution: Resolution,
}

/// Keeps a list of targets resolved; it stops when this is dropped.
pub struct Resolver {
    targets: watch::Sender<Vec<Target>>,
    _task: Task,
}

impl Resolver {
    /// Starts in the calling thread's network namespace. The first change of each target tells its present
    /// state. Must be called within a tokio runtime.
    pub fn start(targets: Vec<Target>) -> Result<(Self, mpsc::UnboundedReceiver<Change>), Error> {
        let tracker = Tracker::open(GROUPS)?;
        let (targets, list) = watch::channel(targets);
        let (sender, changes) = mpsc::unbounded_channel();
        let task = Task::spawn(run(tracker, list, sender));
        Ok((Self { targets, _task: task }, changes))
    }

    /// Replaces the list. Targets that keep their id and their resolution are not reported again.
    pub fn set_targets(&self, targets: Vec<Target>) {
        self.targets.send_replace(targets);
    }
}

/// When routes are to be looked up.
#[derive(Debug, Default)]
struct Lookups {
    at: Option<Instant>,
    confirm: bool,
}

impl Lookups {
    fn after(&mut self, now: Instant, pause: Duration) {
        self.at = Some(self.at.map_or(now + pause, |at| at.min(now + pause)));
        self.confirm = true;
    }

    fn due(&mut self, now: Instant) -> bool {
        if self.at.is_none_or(|at| at > now) {
            return false;
        }
        self.at = self.confirm.then_some(now + CONFIRM);
        self.confirm = false;
        true
    }
}

async fn run(
    mut tracker: Tracker,
    mut targets: watch::Receiver<Vec<Target>>,
    changes: mpsc::UnboundedSender<Change>,
) {
    let mut told = HashMap::new();
    let mut freshness = Freshness::default();
    let mut lookups = Lookups::default();
    let mut settle = SETTLE;
    tracker.changed().await;
    lookups.after(Instant::now(), Duration::ZERO);
    loop {
        let list = targets.borrow_and_update().clone();
        let start = Instant::now();
        if lookups.due(start) {
            look_up_routes(&mut tracker, &list).await;
            settle = SETTLE.max(start.elapsed() * LOOKUP_SHARE);
        }
        if tell(&list, &tracker, &mut told, &changes).is_err() {
            return;
        }
        let now = Instant::now();
        let hops = list.iter().filter_map(|target| next_hop(target, &tracker.view));
        let (due, next_use) = freshness.due(now, hops);
        for (ifindex, hop) in due {
            if let Err(error) = tracker.netlink().use_neighbor(ifindex, hop).await {
                debug!("{error}");
            }
        }
        let wake = [Some(now + IDLE), next_use, lookups.at].into_iter().flatten().min().unwrap_or(now);
        tokio::select! {
            touched = tracker.changed() => if touched.routes {
                lookups.after(Instant::now(), settle);
            },
            changed = targets.changed() => match changed {
                Ok(()) => lookups.after(Instant::now(), Duration::ZERO),
                Err(_) => return,
            },
            () = sleep_until(wake.into()) => {}
        }
    }
}

async fn look_up_routes(tracker: &mut Tracker, targets: &[Target]) {
    let wanted: HashSet<_> = targets.iter().filter_map(|target| destination(target, &tracker.view)).collect();
    let mut routes = HashMap::new();
    for destination in wanted {
        let answer = tracker.netlink().route_to(destination.address, destination.ifindex).await;
        routes.insert(destination, Route::from_answer(&answer));
    }
    tracker.view.routes = routes;
}

/// Sends what differs from what was told before; fails when nobody listens.
fn tell(
    targets: &[Target],
    tracker: &Tracker,
    told: &mut HashMap<u32, Resolution>,
    changes: &mpsc::UnboundedSender<Change>,
) -> Result<(), mpsc::error::SendError<Change>> {
    let before = std::mem::take(told);
    for target in targets {
        let resolution = resolve(target, &tracker.view);
        if before.get(&target.id) != Some(&resolution) {
            changes.send(Change { id: target.id, resolution: resolution.clone() })?;
        }
        told.insert(target.id, resolution);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_one_lookup_and_one_more_to_confirm() {
        let (mut lookups, start) = (Lookups::default(), Instant::now());
        let at = |millis| start + Duration::from_millis(millis);
        assert!(!lookups.due(start));
        lookups.after(at(0), SETTLE);
        lookups.after(at(15), SETTLE);
        assert!(!lookups.due(at(19)));
        assert!(lookups.due(at(20)));
        assert!(!lookups.due(at(21)));
        assert!(!lookups.due(at(1_019)));
        assert!(lookups.due(at(1_020)));
        assert!(!lookups.due(at(99_000)));
    }
}
