//! The daemon: what runs behind `replicator run`. It loads the datapath, keeps it in step with the host, and leaves it
//! in place when it ends.

mod answers;
pub mod control;
mod entries;
mod fitness;
mod follow;
pub mod lock;
mod replace;
mod roster;
mod start;
pub mod status;
mod store;
mod tables;
mod trace;
mod undo;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::{Duration, Instant},
};

use replicator_common::bier::BiftId;
use tokio::{
    sync::{
        mpsc::{Receiver, UnboundedReceiver},
        watch::Sender,
    },
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use crate::{
    api::{ApiError, Server},
    bift::Destination,
    config::Config,
    datapath::{Datapath, DatapathError, Mode, Pins, object},
    host::{
        self, Netlink,
        origin::{self, Origin},
        resolver::{Change, Resolution, Resolver},
        watch::{HostEvent, Watch},
    },
    models::Models,
};
use control::Request;
use lock::Lock;
use roster::Roster;
use status::{InterfaceStatus, NeighborStatus, Status, TableStatus};
use store::Store;
use tables::{InForce, Tables};
use trace::DropLog;

/// How often what could not be done is tried again, and what was put off is done: files are written.
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
    /// The control API.
    #[error(transparent)]
    Api(#[from] ApiError),
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

/// A datapath in step with its host and with the maps that come.
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
    /// What names in maps stand for.
    nodes: BTreeMap<String, Destination>,
    tables: Tables,
    models: Models,
    store: Store,
    requests: Receiver<Request>,
    /// Where requests come from, once frames are replicated.
    server: Option<Server>,
    /// Counts the changes of models' tables.
    changes: Sender<u64>,
    resolver: (Resolver, UnboundedReceiver<Change>),
    watch: (Watch, UnboundedReceiver<HostEvent>),
    interfaces: Vec<InterfaceStatus>,
    status_path: PathBuf,
    /// Whether the status file does not know of the newest tables, and when it was written.
    status_is_old: bool,
    status_written: Instant,
    /// Tables that must be installed again, and could not be yet.
    outdated: BTreeSet<BiftId>,
    /// Ids of neighbors that are elsewhere, or configured no more; tables in force may name them.
    leaving: BTreeSet<u32>,
    /// Neighbors whose news could not be put in force yet, for want of an id or a place, with what is known of them.
    homeless: BTreeMap<usize, Resolution>,
    /// Devices that went away; their numbers may come back.
    gone: BTreeSet<u32>,
    /// Superseded tables that had to make room before their time.
    retired_early: u64,
    started: Instant,
    /// Held.
    _lock: Lock,
}

impl Daemon {
    /// Follows the host and answers requests until `end` is over. What the kernel refuses is logged, and what was in
    /// force stays: a daemon that ended would help nobody. The datapath stays in place, with what is known then.
    pub async fn run(&mut self, end: impl Future<Output = ()>) {
        let mut logger = self.config.trace_drops.then(|| self.logger()).flatten();
        let mut log_poll = interval(LOG_POLL);
        log_poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut retry = interval(RETRY);
        retry.set_missed_tick_behavior(MissedTickBehavior::Delay);
        tokio::pin!(end);
        loop {
            let expiry = self.models.next_expiry().map(|expiry| self.started + expiry);
            let result = tokio::select! {
                () = &mut end => break,
                Some(change) = self.resolver.1.recv() => self.neighbor_changed(change),
                Some(event) = self.watch.1.recv() => self.host_changed(event).await,
                _ = retry.tick(), if self.has_put_off() => self.retry().await,
                // The rest may come a thousand times a second: what it changes is written by and by.
                Some(request) = self.requests.recv() => {
                    self.answer(request);
                    continue;
                }
                () = until(expiry), if expiry.is_some() => {
                    self.expire();
                    continue;
                }
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
        self.end().await;
    }

    /// Answers what was asked already, and leaves files as they should be found.
    async fn end(&mut self) {
        if let Some(server) = self.server.take() {
            let shutdown = server.shutdown();
            tokio::pin!(shutdown);
            loop {
                tokio::select! {
                    () = &mut shutdown => break,
                    Some(request) = self.requests.recv() => self.answer(request),
                }
            }
        }
        self.store.unsynced().sync();
        if let Err(error) = self.write_status() {
            error!("{error}");
        }
    }

    /// Takes superseded tables out of force whose time is over.
    fn expire(&mut self) {
        let mut expired = Vec::new();
        while let Some(id) = self.models.expired(self.started.elapsed()) {
            expired.push(id);
        }
        self.withdraw(expired);
        self.status_is_old = true;
    }

    /// Whether there is anything to do now and then.
    fn has_put_off(&self) -> bool {
        self.is_behind() || self.status_is_old || self.store.is_unsynced() || !self.leaving.is_empty()
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
            self.tables.all().filter(|table| table.is_newest()).count(),
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

    fn write_status(&mut self) -> Result<(), DaemonError> {
        (self.status_is_old, self.status_written) = (false, Instant::now());
        let neighbor = |index: usize| NeighborStatus {
            name: self.config.neighbors[index].name.clone(),
            id: self.roster.place(index).neighbor,
            resolution: self.resolutions[index].clone().into(),
        };
        let table = |table: &InForce| TableStatus {
            name: table.name.to_string(),
            bift_ids: table.ids.iter().copied().map(BiftId::get).collect(),
            bit_string_length: table.birt.length().bits(),
            members: table.birt.neighbors().len() + usize::from(table.birt.has_local()),
            variants: table.birt.variants(),
        };
        let status = Status {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").into(),
            origin: self.origin.as_ref().map(|origin| origin.name.clone()),
            api_socket: Some(self.config.api.socket.clone()),
            interfaces: self.interfaces.clone(),
            neighbors: (0..self.config.neighbors.len()).map(neighbor).collect(),
            tables: self.tables.all().filter(|table| table.is_newest()).map(table).collect(),
        };
        status::write(&self.status_path, &status)
    }
}

/// Waits for a time, if there is one.
async fn until(time: Option<Instant>) {
    if let Some(time) = time {
        sleep_until(time.into()).await;
    }
}
