//! From a configuration to a daemon: what an earlier one left is taken over, and repaired where it is not as it should
//! be.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant},
};

use replicator_common::{
    bier::BiftId,
    neighbor::{FIRST_REMOTE_NEIGHBOR, Neighbor},
};
use tokio::{sync::watch, time::timeout_at};
use tracing::{info, warn};

use super::{
    Daemon, DaemonError, Status, control::Control, entries, fitness, lock::Lock, roster::Roster, status,
    store::Store, tables::InForce, undo::Undo,
};
use crate::{
    api::{Listeners, Server},
    bift::{Birt, Destination},
    config::{Config, LOCAL, NextHop, TableName},
    datapath::{Datapath, DatapathError, LoadOptions, MemberPlace, Pins, object},
    host::{
        Netlink,
        address::OwnAddresses,
        bpffs, link, origin,
        resolution::{Reason, Resolution},
        resolver::{Resolver, Target},
        watch::Watch,
    },
    map::ExpertMap,
    models::{Model, Models, Refusal},
};

/// Where a neighbor is looked for that could be behind any device, while there is none.
const NO_DEVICE: u32 = 0;

/// How long the first answers about the neighbors are waited for, so that the first frames find them.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

impl Daemon {
    /// Checks everything, then puts everything in place. When this returns a daemon, frames are replicated. `None` where
    /// `end` was over first.
    ///
    /// # Errors
    /// Where an interface is not fit or the kernel refuses something.
    ///
    /// Without a daemon everything that was attached before still is, and what was not there is not there. Maps that were
    /// taken over may follow the new configuration already.
    pub async fn start(config: Config, end: impl Future<Output = ()>) -> Result<Option<Self>, DaemonError> {
        let object = object::embedded()?;
        let (netlink, pins) = (Netlink::open()?, Pins::new(&config.pin_path));
        fitness::kernel()?;
        fitness::interfaces(&netlink, &config, None, &pins.programs(), |advice| warn!("{advice}")).await?;
        let undo = Undo::note(&netlink, &config).await?;
        bpffs::ensure(&config.pin_path)?;
        let lock = Lock::take(&config.pin_path)?;
        let started = tokio::select! {
            prepared = Self::prepare(config, object, netlink, pins, lock) => match prepared {
                // From here on there is no turning back halfway.
                Ok((mut daemon, links, api)) => daemon.attach_all(&links).await.map(|()| {
                    daemon.server = Some(api.open());
                    Some(daemon)
                }),
                Err(error) => Err(error),
            },
            () = end => Ok(None),
        };
        if !matches!(started, Ok(Some(_))) {
            undo.take_back().await;
        }
        started
    }

    /// Everything that no frame meets, or that makes no difference to those that do. Returns the interfaces, and the
    /// control API before it answers.
    async fn prepare(
        config: Config,
        object: &[u8],
        netlink: Netlink,
        pins: Pins,
        lock: Lock,
    ) -> Result<(Self, Vec<link::Link>, Closed), DaemonError> {
        let listeners = Listeners::bind(&config.api)?;
        let links = link::all(&netlink).await?;
        let (mut datapath, roster, leaving) = take_over(&config, object, &pins, &links)?;
        datapath.admission().set_prefixes(entries::prefixes(&config))?;
        let targets = config.neighbors.iter().zip(0..).map(|(neighbor, id)| target(neighbor, id)).collect();
        let (changes, seen) = watch::channel(0);
        let (control, requests) = Control::new(seen);
        let mut daemon = Self {
            status_path: status::path(&config.pin_path),
            status_is_old: false,
            status_written: Instant::now(),
            resolutions: vec![Resolution::Pending { reason: Reason::Underspecified }; config.neighbors.len()],
            heard: false,
            nodes: nodes(&config),
            tables: config.tables.iter().map(InForce::from).collect(),
            models: Models::new(configured(&config), config.epoch_grace),
            store: Store::new(config.state_path.as_deref(), &config.pin_path),
            resolver: Resolver::start(targets)?,
            watch: Watch::start()?,
            interfaces: Vec::new(),
            started: Instant::now(),
            _lock: lock,
            outdated: BTreeSet::new(),
            homeless: BTreeMap::new(),
            gone: BTreeSet::new(),
            origin: None,
            retired_early: 0,
            requests,
            server: None,
            changes,
            leaving,
            roster,
            datapath,
            netlink,
            pins,
            config,
        };
        daemon.restore_models();
        daemon.make_origin().await?;
        daemon.set_endpoints(&OwnAddresses::read(&daemon.netlink).await?)?;
        daemon.hear_first_answers().await?;
        daemon.install_all()?;
        Ok((daemon, links, Closed { listeners, control }))
    }

    /// The maps of before: first the newest of each model, then what these took the place of.
    fn restore_models(&mut self) {
        let in_kernel: BTreeSet<_> = self.datapath.bift_ids().into_iter().collect();
        let (mut fit, mut refused, mut birts) = (Vec::new(), Vec::new(), BTreeMap::new());
        for model in self.store.load() {
            match self.birts(model.map()) {
                Ok(of_layers) => {
                    birts.insert(model.map().model().to_owned(), of_layers);
                    fit.push(model);
                }
                Err(refusal) => refused.push((model, refusal)),
            }
        }
        refused.extend(self.models.restore(fit, &in_kernel));
        for (model, refusal) in refused {
            let (name, epoch) = (model.map().model(), model.map().epoch());
            warn!("the map of {name}, epoch {epoch}, is not put in force: {refusal}");
        }
        let models: Vec<_> = self.models.all().cloned().collect();
        for model in &models {
            let birts = birts.get(model.map().model());
            for (layer, table) in model.tables() {
                if let Some((ids, birt)) = table.ids().zip(birts.and_then(|birts| birts.get(layer))) {
                    let ids = vec![ids.own, ids.alias];
                    self.tables.insert(InForce::of_layer(model.map(), *layer, ids, birt));
                }
            }
        }
        models.iter().filter_map(Model::before).for_each(|before| self.restore_before(before, &in_kernel));
    }

    fn restore_before(&mut self, before: &Model, in_kernel: &BTreeSet<BiftId>) {
        let Ok(birts) = self.birts(before.map()) else { return };
        let name = before.map().model();
        for (&layer, table) in before.tables() {
            let Some((ids, birt)) = table.ids().zip(birts.get(&layer)) else { continue };
            // Where maps are taken over, what is not in them any more had its time.
            let in_time = in_kernel.is_empty() || in_kernel.contains(&ids.own);
            if in_time && !self.tables.has(ids.own) && self.models.may_have_had(name, layer, table.table) {
                self.tables.insert(InForce::of_layer(before.map(), layer, vec![ids.own], birt));
                let of = Some((name.to_owned(), layer, table.epoch));
                self.models.found(ids.own, of, self.started.elapsed());
            }
        }
    }

    /// The table of each layer of a map.
    pub(super) fn birts(&self, map: &ExpertMap) -> Result<BTreeMap<u16, Arc<Birt>>, Refusal> {
        let birts = map.birts(&self.nodes, None).map_err(Refusal::Invalid)?;
        Ok(birts.into_iter().map(|(layer, birt)| (layer, Arc::new(birt))).collect())
    }

    /// Puts every table in force that is not, as the configuration and the maps have them, and takes others out.
    fn install_all(&mut self) -> Result<(), DaemonError> {
        let found = self.datapath.bift_ids();
        let mut repaired = 0;
        let own: Vec<_> = self.tables.own_ids().collect();
        for id in own {
            repaired += usize::from(self.install(id)?);
        }
        self.outdated.clear();
        let known: BTreeSet<_> = self.tables.all().flat_map(|table| table.ids.iter().copied()).collect();
        // A frame may be under way that names one of experts; one of nodes is not configured any more.
        let (experts, nodes): (Vec<_>, Vec<_>) =
            found.iter().filter(|id| !known.contains(*id)).partition(|id| id.is_expert());
        experts.into_iter().for_each(|id| self.models.found(id, None, self.started.elapsed()));
        self.withdraw(nodes);
        if !found.is_empty() {
            info!(
                "took over {} BIFT-ids of an earlier daemon; tables put in force anew: {repaired}",
                found.len()
            );
        }
        self.roster.settle();
        Ok(())
    }

    /// The first answers tell the present state of each neighbor; those that take long come later.
    async fn hear_first_answers(&mut self) -> Result<(), DaemonError> {
        let deadline = tokio::time::Instant::now() + FIRST_ANSWERS;
        let pending = |daemon: &Self| {
            daemon.resolutions.iter().any(|resolution| !matches!(resolution, Resolution::Ready { .. }))
        };
        while pending(self) {
            match timeout_at(deadline, self.resolver.1.recv()).await {
                Ok(Some(change)) => self.neighbor_changed(change)?,
                _ => break,
            }
        }
        self.heard = true;
        for (index, resolution) in self.resolutions.iter().enumerate() {
            if let Resolution::Pending { reason } = resolution {
                warn!("neighbor {} is not resolved: {reason}", self.config.neighbors[index].name);
                self.datapath.set_neighbor(self.roster.place(index).neighbor, None)?;
            }
        }
        Ok(())
    }

    /// Has frames meet what was prepared.
    async fn attach_all(&mut self, links: &[link::Link]) -> Result<(), DaemonError> {
        self.datapath.stage(&self.pins)?;
        let named = |name: &str| links.iter().find(|link| link.name == name);
        let configured = self.config.interfaces.iter().filter_map(|name| named(name.as_str()));
        let mut wanted: Vec<_> = configured.map(|link| (link.ifindex, link.name.clone())).collect();
        wanted.extend(self.origin.iter().map(|origin| (origin.peer_ifindex, origin.peer_name.clone())));
        // New links first, for they may be refused: until they are pinned, dropping them takes them off again. What an
        // earlier run left is exchanged when nothing else can be refused.
        let left = self.pins.devices().unwrap_or_default();
        let (left, new): (Vec<_>, Vec<_>) =
            wanted.into_iter().partition(|(ifindex, _)| left.contains(ifindex));
        for (ifindex, name) in new {
            self.attach(ifindex, &name, self.config.mode)?;
        }
        // Many drivers say whether they send redirected frames only while they have a program.
        let own: Vec<_> = self.pins.programs().into_iter().chain([self.datapath.program_id()?]).collect();
        fitness::interfaces(&self.netlink, &self.config, self.origin.as_ref(), &own, |_| {}).await?;
        for (ifindex, name) in left {
            self.attach(ifindex, &name, self.config.mode)?;
        }
        self.pin()?;
        let before = status::read(&self.status_path).ok().flatten().and_then(|status: Status| status.origin);
        let origin = self.origin.as_ref().map(|origin| &origin.name);
        if let Some(name) = before.filter(|name| Some(name) != origin) {
            match origin::remove(&self.netlink, &name).await {
                Ok(_) => info!("removed the origin veth {name}: it is no longer configured"),
                Err(error) => warn!("the origin veth {name} of before is left: {error}"),
            }
        }
        self.write_status()
    }
}

/// The control API before anybody is answered.
struct Closed {
    listeners: Listeners,
    control: Control,
}

impl Closed {
    fn open(self) -> Server {
        self.listeners.serve(self.control)
    }
}

/// The maps that an earlier daemon left, with the ids that its neighbors had in them and those that are to be left; or
/// else new ones.
fn take_over(
    config: &Config,
    object: &[u8],
    pins: &Pins,
    links: &[link::Link],
) -> Result<(Datapath, Roster, BTreeSet<u32>), DaemonError> {
    let options = LoadOptions { udp_port: config.udp_port, trace_drops: config.trace_drops };
    let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.ifindex);
    // Where a neighbor is looked for until the host says where it is: its copies are counted as unresolved there.
    let first = config.interfaces.first().and_then(|name| index(name.as_str())).unwrap_or(NO_DEVICE);
    let devices = config
        .neighbors
        .iter()
        .map(|neighbor| neighbor.interface().and_then(|name| index(name.as_str())).unwrap_or(first));
    if let Some(datapath) = Datapath::adopt(object, &options, pins)? {
        let named = datapath.named_neighbors();
        let entries = datapath.neighbors();
        let known = recognize(config, &entries, &named);
        let mut in_use: BTreeSet<_> = entries.iter().map(|(id, _)| *id).chain(named).collect();
        in_use.retain(|id| *id >= FIRST_REMOTE_NEIGHBOR);
        if let Some(roster) = Roster::new(devices.clone(), &known, &in_use) {
            in_use.retain(|id| known.values().all(|place| place.neighbor != *id));
            return Ok((datapath, roster, in_use));
        }
        info!("neighbors changed so much that there are no ids left: everything is loaded anew");
    }
    let none = DatapathError::Full { what: "neighbors", need: config.neighbors.len() };
    let roster = Roster::new(devices, &BTreeMap::new(), &BTreeSet::new()).ok_or(none)?;
    Ok((Datapath::load(object, &options)?, roster, BTreeSet::new()))
}

/// Which ids the configured neighbors have in maps that were taken over. A neighbor that moved may have left an entry
/// that no table names: one that is named goes before.
fn recognize(
    config: &Config,
    entries: &[(u32, Neighbor)],
    named: &BTreeSet<u32>,
) -> BTreeMap<usize, MemberPlace> {
    let place = |neighbor: &crate::config::Neighbor| {
        let mut own = entries.iter().filter(|(_, entry)| entries::is_of(entry, neighbor));
        let other = own.clone().next();
        let (id, entry) = own.find(|(id, _)| named.contains(id)).or(other)?;
        Some(MemberPlace { neighbor: *id, ifindex: entry.ifindex })
    };
    let places = config.neighbors.iter().enumerate();
    places.filter_map(|(index, neighbor)| Some((index, place(neighbor)?))).collect()
}

/// What names in maps stand for. `local` is this host where its own programs have a way in and out.
fn nodes(config: &Config) -> BTreeMap<String, Destination> {
    let neighbors =
        config.neighbor_ids().map(|(id, neighbor)| (neighbor.name.clone(), Destination::Neighbor(id)));
    let own = config.origin.as_ref().map(|_| [Some(LOCAL.to_owned()), config.this_node.name.clone()]);
    let own = own.into_iter().flatten().flatten().map(|name| (name, Destination::Local));
    neighbors.chain(own).collect()
}

/// The models of the configuration, with the numbers of their tables.
fn configured(config: &Config) -> BTreeMap<String, BTreeSet<u16>> {
    let mut models = BTreeMap::<_, BTreeSet<_>>::new();
    for table in &config.tables {
        if let TableName::Experts { model, .. } = &table.name {
            let numbers = models.entry(model.to_string()).or_default();
            numbers.extend(table.bift_ids.iter().filter_map(|id| id.table()));
        }
    }
    models
}

fn target(neighbor: &crate::config::Neighbor, id: u32) -> Target {
    let address = match neighbor.hop {
        NextHop::Udp { address, .. } => Some(address),
        NextHop::Ethernet { .. } => None,
    };
    Target {
        id,
        address,
        interface: neighbor.interface().map(|name| name.as_str().to_owned()),
        mac: neighbor.mac(),
    }
}
