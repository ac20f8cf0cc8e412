//! The daemon: what runs behind `replicator run`. It loads the datapath, keeps it in step with the host, and leaves it
//! in place when it ends.

pub mod control;
mod entries;
pub mod lock;
mod roster;
pub mod status;
mod trace;
mod undo;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use replicator_common::{bier::BiftId, neighbor::Endpoint};
use tokio::{
    sync::mpsc::UnboundedReceiver,
    time::{MissedTickBehavior, interval, timeout_at},
};
use tracing::{debug, error, info, warn};

use crate::{
    bift::{Bift, NeighborId},
    config::{Config, NextHop},
    datapath::{Datapath, DatapathError, LoadOptions, MemberPlace, Mode, Pins, object},
    host::{
        self, Netlink,
        address::OwnAddresses,
        bpffs,
        kernel::Kernel,
        link,
        needs::{self, Check, State},
        origin::{self, Origin, OriginConfig, OriginSubnet},
        preflight::{self, Role, Severity},
        resolver::{Change, Resolution, Resolver, Target},
        watch::{HostEvent, LinkChange, Watch},
    },
};
use lock::Lock;
use roster::{Move, Roster};
use status::{InterfaceStatus, NeighborStatus, Status, TableStatus};
use trace::DropLog;
use undo::Undo;

/// Where a neighbor is looked for that could be behind any device, while there is none.
const NO_DEVICE: u32 = 0;

/// How long the first answers about the neighbors are waited for, so that the first frames find them.
const FIRST_ANSWERS: Duration = Duration::from_secs(2);

/// How often what could not be done is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// How often the log of the programs is looked at where the configuration asks for it.
const LOG_POLL: Duration = Duration::from_millis(100);

/// Why the daemon could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The datapath.
    #[error(transparent)]
    Datapath(#[from] DatapathError),
    /// The host.
    #[error(transparent)]
    Host(#[from] host::Error),
    /// This build has no programs.
    #[error(transparent)]
    NotEmbedded(#[from] object::NotEmbedded),
    /// The kernel or interfaces are not fit; each line is one reason.
    #[error("{}", .0.join("\n"))]
    Unfit(Vec<String>),
    /// There is a daemon.
    #[error(
        "`replicator run`{} looks after {pin_path}: end it first",
        .pid.map(|pid| format!(" (process {pid})")).unwrap_or_default()
    )]
    Running {
        /// Where it pins.
        pin_path: PathBuf,
        /// Its process, where it has said so.
        pid: Option<u32>,
    },
    /// The pin path could not be locked.
    #[error("cannot lock {path}: {source}")]
    Lock {
        /// The pin path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A table could not be installed.
    #[error("table {table}: {source}")]
    Table {
        /// The table.
        table: String,
        /// Why.
        source: Box<DatapathError>,
    },
    /// The status file could not be written.
    #[error("cannot write {path}: {source}")]
    Status {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A datapath in step with its host.
pub struct Daemon {
    config: Config,
    pins: Pins,
    netlink: Netlink,
    datapath: Datapath,
    origin: Option<Origin>,
    roster: Roster,
    resolutions: Vec<Resolution>,
    /// Whether the first answers about the neighbors had their time: what is unresolved now is worth a word.
    heard: bool,
    bifts: Vec<Bift>,
    resolver: (Resolver, UnboundedReceiver<Change>),
    watch: (Watch, UnboundedReceiver<HostEvent>),
    interfaces: Vec<InterfaceStatus>,
    status_path: PathBuf,
    /// Tables that must be installed again, and could not be yet.
    outdated: BTreeSet<usize>,
    /// Ids that neighbors moved away from and tables may still name.
    leaving: BTreeSet<u32>,
    /// Neighbors that wait for an id, with what is known of them.
    homeless: BTreeMap<usize, Resolution>,
    /// Devices that went away; their numbers may come back.
    gone: BTreeSet<u32>,
    started: Instant,
    /// Held.
    _lock: Lock,
}

impl Daemon {
    /// Checks everything, then puts everything in place. When this returns a daemon, frames are replicated. `None` where
    /// `end` was over first.
    ///
    /// # Errors
    /// Where an interface is not fit or the kernel refuses something.
    ///
    /// Without a daemon everything is as it was before, programs that were attached before included.
    pub async fn start(config: Config, end: impl Future<Output = ()>) -> Result<Option<Self>, DaemonError> {
        let object = object::embedded()?;
        let (netlink, pins) = (Netlink::open()?, Pins::new(&config.pin_path));
        check_kernel()?;
        check_interfaces(&netlink, &config, None, &pins.programs(), |advice| warn!("{advice}")).await?;
        let undo = Undo::note(&netlink, &config).await?;
        bpffs::ensure(&config.pin_path)?;
        let lock = Lock::take(&config.pin_path)?;
        let started = tokio::select! {
            prepared = Self::prepare(config, object, netlink, pins, lock) => match prepared {
                // From here on there is no turning back halfway.
                Ok((mut daemon, links)) => daemon.attach_all(&links).await.map(|()| Some(daemon)),
                Err(error) => Err(error),
            },
            () = end => Ok(None),
        };
        if !matches!(started, Ok(Some(_))) {
            undo.take_back().await;
        }
        started
    }

    /// Everything that no frame meets. Returns the interfaces too.
    async fn prepare(
        config: Config,
        object: &[u8],
        netlink: Netlink,
        pins: Pins,
        lock: Lock,
    ) -> Result<(Self, Vec<link::Link>), DaemonError> {
        let options = LoadOptions { udp_port: config.udp_port, trace_drops: config.trace_drops };
        let mut datapath = Datapath::load(object, &options)?;
        let links = link::all(&netlink).await?;
        let index = |name: &str| links.iter().find(|link| link.name == name).map(|link| link.ifindex);
        // Where a neighbor is looked for until the host says where it is: its copies are counted as unresolved there.
        let first = config.interfaces.first().and_then(|name| index(name.as_str()));
        let first = first.unwrap_or(NO_DEVICE);
        let devices = config
            .neighbors
            .iter()
            .map(|neighbor| neighbor.interface().and_then(|name| index(name.as_str())).unwrap_or(first));
        let roster = Roster::new(devices);
        let targets = config.neighbors.iter().zip(0..).map(|(neighbor, id)| target(neighbor, id)).collect();
        datapath.admission().set_prefixes(entries::prefixes(&config))?;
        let pending = Resolution::Pending { reason: host::resolution::Reason::Underspecified };
        let mut daemon = Self {
            status_path: status::path(&config.pin_path),
            resolutions: vec![pending; config.neighbors.len()],
            heard: false,
            bifts: config.tables.iter().map(|table| table.birt.compile()).collect(),
            resolver: Resolver::start(targets)?,
            watch: Watch::start()?,
            interfaces: Vec::new(),
            started: Instant::now(),
            _lock: lock,
            outdated: BTreeSet::new(),
            leaving: BTreeSet::new(),
            homeless: BTreeMap::new(),
            gone: BTreeSet::new(),
            origin: None,
            roster,
            datapath,
            netlink,
            pins,
            config,
        };
        daemon.make_origin().await?;
        daemon.set_endpoints(&OwnAddresses::read(&daemon.netlink).await?)?;
        daemon.hear_first_answers().await?;
        for index in 0..daemon.config.tables.len() {
            daemon.install(index)?;
        }
        Ok((daemon, links))
    }

    /// Follows the host until `end` is over. What the kernel refuses is logged, and what was in force stays: a daemon that
    /// ended would help nobody. The datapath stays in place, with what is known then.
    pub async fn run(&mut self, end: impl Future<Output = ()>) {
        let mut logger = self.config.trace_drops.then(|| self.logger()).flatten();
        let mut log_poll = interval(LOG_POLL);
        log_poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(end);
        loop {
            let result = tokio::select! {
                () = &mut end => return,
                Some(change) = self.resolver.1.recv() => self.neighbor_changed(change),
                Some(event) = self.watch.1.recv() => self.host_changed(event).await,
                _ = retry.tick(), if self.is_behind() => self.retry().await,
                _ = log_poll.tick(), if logger.is_some() => {
                    if let Some(logger) = &mut logger {
                        logger.flush();
                    }
                    continue;
                }
            };
            for error in [result, self.write_status()].into_iter().filter_map(Result::err) {
                error!("{error}");
            }
        }
    }

    /// Takes the datapath down: programs, maps, links and the origin pair.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub async fn detach(self) -> Result<(), DaemonError> {
        let Self { pins, netlink, datapath, status_path, config, .. } = self;
        pins.remove_all()?;
        drop(datapath);
        if let Some(origin) = &config.origin {
            origin::remove(&netlink, origin.interface.as_str()).await?;
        }
        status::remove(&status_path)?;
        Ok(())
    }

    /// What a service manager shows: one line.
    pub fn summary(&self) -> String {
        let ready =
            self.resolutions.iter().filter(|resolution| matches!(resolution, Resolution::Ready { .. }));
        format!(
            "tables: {}, neighbors resolved: {} of {}, interfaces: {}",
            self.config.tables.len(),
            ready.count(),
            self.resolutions.len(),
            self.interfaces.len()
        )
    }

    fn logger(&mut self) -> Option<aya_log::EbpfLogger<DropLog>> {
        match aya_log::EbpfLogger::init_with_logger(self.datapath.ebpf(), DropLog) {
            Ok(logger) => Some(logger),
            Err(error) => {
                warn!("dropped frames cannot be logged: {error}");
                None
            }
        }
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
        for (neighbor, resolution) in self.config.neighbors.iter().zip(&self.resolutions) {
            if let Resolution::Pending { reason } = resolution {
                warn!("neighbor {} is not resolved: {reason}", neighbor.name);
            }
        }
        Ok(())
    }

    fn neighbor_changed(&mut self, Change { id, resolution }: Change) -> Result<(), DaemonError> {
        let index = id as usize;
        let neighbor = &self.config.neighbors[index];
        match &resolution {
            Resolution::Ready { .. } => info!("neighbor {} is resolved", neighbor.name),
            Resolution::Pending { reason } if self.heard => {
                warn!("neighbor {} is not resolved: {reason}", neighbor.name);
            }
            Resolution::Pending { .. } => {}
        }
        let entry = entries::neighbor(neighbor, &resolution);
        let moved = match &resolution {
            Resolution::Ready { ifindex, .. } if !self.heard => {
                self.roster.settle(index, *ifindex);
                Move::Stays(self.roster.place(index))
            }
            Resolution::Ready { ifindex, .. } => self.roster.found(index, *ifindex, self.started.elapsed()),
            Resolution::Pending { .. } => Move::Stays(self.roster.place(index)),
        };
        self.homeless.remove(&index);
        let mut left = None;
        match moved {
            Move::Stays(place) => self.datapath.set_neighbor(place.neighbor, entry.as_ref())?,
            Move::Moves { from, to } => {
                self.datapath.set_neighbor(to.neighbor, entry.as_ref())?;
                self.leaving.insert(from.neighbor);
                self.outdated.extend(self.tables_with(index));
                left = Some(from.neighbor);
            }
            Move::NoRoom(place) => {
                warn!("neighbor {} moved to another interface and has to wait for a free id", neighbor.name);
                self.datapath.set_neighbor(place.neighbor, None)?;
                self.homeless.insert(index, resolution);
                return Ok(());
            }
        }
        self.resolutions[index] = resolution;
        let result = self.catch_up();
        // Make before break: copies in flight still go by the old id, and no table names it. Where one could not be
        // installed the old id leads nowhere from now on, rather than to where the neighbor was.
        if let Some(id) = left
            && !self.outdated.is_empty()
        {
            self.datapath.set_neighbor(id, None)?;
        }
        result
    }

    /// The tables that have the neighbor as a member.
    fn tables_with(&self, neighbor: usize) -> impl Iterator<Item = usize> + use<> {
        let members = |table: &crate::config::Table| {
            table.birt.neighbors().iter().any(|id| id.remote_index() == Some(neighbor))
        };
        let tables: Vec<_> = self.config.tables.iter().map(members).collect();
        tables.into_iter().enumerate().filter_map(|(index, has)| has.then_some(index))
    }

    /// Installs what is outdated, each table whatever becomes of the others. Ids that no table names any more are left.
    fn catch_up(&mut self) -> Result<(), DaemonError> {
        let mut result = Ok(());
        for index in std::mem::take(&mut self.outdated) {
            if let Err(error) = self.install(index) {
                self.outdated.insert(index);
                result = Err(error);
            }
        }
        if self.outdated.is_empty() {
            for id in std::mem::take(&mut self.leaving) {
                self.roster.left(id, self.started.elapsed());
            }
        }
        result
    }

    /// Tries again what could not be done: the origin pair, tables, neighbors without an id.
    async fn retry(&mut self) -> Result<(), DaemonError> {
        if self.origin.is_none() && self.config.origin.is_some() {
            self.restore_origin().await?;
        }
        for (index, resolution) in std::mem::take(&mut self.homeless) {
            self.neighbor_changed(Change { id: index as u32, resolution })?;
        }
        self.catch_up()
    }

    fn is_behind(&self) -> bool {
        !self.outdated.is_empty()
            || !self.homeless.is_empty()
            || self.origin.is_none() && self.config.origin.is_some()
    }

    fn install(&mut self, index: usize) -> Result<(), DaemonError> {
        let table = &self.config.tables[index];
        let places: Vec<MemberPlace> = table
            .birt
            .neighbors()
            .iter()
            .filter_map(|id| Some(self.roster.place(id.remote_index()?)))
            .collect();
        let local = self.origin.as_ref().map(|origin| origin.peer_ifindex).filter(|_| table.birt.has_local());
        self.datapath.install(&table.bift_ids, &self.bifts[index], &places, local).map_err(|source| {
            DaemonError::Table { table: table.name.to_string(), source: Box::new(source) }
        })?;
        debug!("table {} is in force", table.name);
        Ok(())
    }

    async fn host_changed(&mut self, event: HostEvent) -> Result<(), DaemonError> {
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
        let has_local = |&index: &usize| self.config.tables[index].birt.has_local();
        self.outdated.extend((0..self.config.tables.len()).filter(has_local));
        self.catch_up()?;
        if let Some(origin) = self.origin.clone() {
            self.attach(origin.peer_ifindex, &origin.peer_name, self.config.mode)?;
        }
        self.pin()?;
        info!("the origin veth was removed and is back");
        Ok(())
    }

    /// Makes the origin pair, if one is configured, and tells the datapath.
    async fn make_origin(&mut self) -> Result<(), DaemonError> {
        let Some(config) = &self.config.origin else { return Ok(()) };
        let origin = origin::ensure(&self.netlink, &origin_config(config, self.config.mode)).await?;
        self.datapath.set_origin(origin.peer_ifindex);
        for (encapsulation, entry) in entries::local(&self.config, &origin).into_iter().flatten() {
            self.datapath.set_neighbor(NeighborId::local(encapsulation).get(), Some(&entry))?;
        }
        self.origin = Some(origin);
        Ok(())
    }

    fn set_endpoints(&mut self, own: &OwnAddresses) -> Result<(), DaemonError> {
        let endpoints = entries::endpoints(&self.config, own);
        let endpoints =
            endpoints.into_iter().map(|(kind, address, roles)| (Endpoint { kind, address }, roles));
        Ok(self.datapath.admission().set_endpoints(endpoints)?)
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
        check_interfaces(&self.netlink, &self.config, self.origin.as_ref(), &own, |_| {}).await?;
        for (ifindex, name) in left {
            self.attach(ifindex, &name, self.config.mode)?;
        }
        self.pin()?;
        let before = status::read(&self.status_path).ok().flatten().and_then(|status| status.origin);
        let origin = self.origin.as_ref().map(|origin| &origin.name);
        if let Some(name) = before.filter(|name| Some(name) != origin) {
            match origin::remove(&self.netlink, &name).await {
                Ok(_) => info!("removed the origin veth {name}: it is no longer configured"),
                Err(error) => warn!("the origin veth {name} of before is left: {error}"),
            }
        }
        self.write_status()
    }

    fn pin(&mut self) -> Result<(), DaemonError> {
        for ifindex in self.datapath.pin(&self.pins)? {
            info!("took the program off interface number {ifindex}: it is gone or no longer configured");
        }
        Ok(())
    }

    fn attach(&mut self, ifindex: u32, name: &str, mode: Mode) -> Result<(), DaemonError> {
        self.datapath.attach(&self.pins, ifindex, name, mode)?;
        self.interfaces.push(InterfaceStatus { name: name.to_owned(), ifindex, mode });
        Ok(())
    }

    fn write_status(&self) -> Result<(), DaemonError> {
        let neighbor = |index: usize| NeighborStatus {
            name: self.config.neighbors[index].name.clone(),
            id: self.roster.place(index).neighbor,
            resolution: self.resolutions[index].clone().into(),
        };
        let table = |table: &crate::config::Table| TableStatus {
            name: table.name.to_string(),
            bift_ids: table.bift_ids.iter().copied().map(BiftId::get).collect(),
            bit_string_length: table.birt.length().bits(),
            members: table.birt.neighbors().len() + usize::from(table.birt.has_local()),
            variants: table.birt.variants(),
        };
        let status = Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            origin: self.origin.as_ref().map(|origin| origin.name.clone()),
            interfaces: self.interfaces.clone(),
            neighbors: (0..self.config.neighbors.len()).map(neighbor).collect(),
            tables: self.config.tables.iter().map(table).collect(),
        };
        status::write(&self.status_path, &status)
    }
}

/// Everything that the kernel lacks, at once.
fn check_kernel() -> Result<(), DaemonError> {
    let lacking = |check: &Check| check.needed && check.state == State::Missing;
    let reasons = needs::of(&Kernel::read()).into_iter().filter(lacking);
    let reasons: Vec<_> =
        reasons.map(|check| format!("missing: {} ({})", check.name, check.detail)).collect();
    if reasons.is_empty() { Ok(()) } else { Err(DaemonError::Unfit(reasons)) }
}

/// Every reason why an interface is not fit, at once.
async fn check_interfaces(
    netlink: &Netlink,
    config: &Config,
    origin: Option<&Origin>,
    own: &[u32],
    mut advise: impl FnMut(String),
) -> Result<(), DaemonError> {
    let mut reasons = Vec::new();
    let configured = config.interfaces.iter().map(|name| (name.as_str(), Role::Both));
    let origin = origin.map(|origin| (origin.peer_name.as_str(), Role::Ingress));
    for (name, role) in configured.chain(origin) {
        let facts = preflight::examine(netlink, name).await?;
        for problem in preflight::verdict(name, facts.as_ref(), config.mode, role, own) {
            match problem.severity {
                Severity::Error => reasons.push(problem.text),
                Severity::Warning => advise(problem.text),
            }
        }
    }
    if reasons.is_empty() { Ok(()) } else { Err(DaemonError::Unfit(reasons)) }
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
