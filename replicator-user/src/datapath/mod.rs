//! The programs and maps in the kernel: loaded, filled, attached, pinned, read.

mod admission;
mod adoption;
mod attachment;
mod counters;
mod fanout;
mod grace;
mod mapped;
mod neighbors;
pub mod object;
mod pins;
mod pool;
mod successor;
mod tables;

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::PathBuf,
    time::{Duration, Instant},
};

use aya::{
    Ebpf, EbpfError, EbpfLoader,
    maps::{Map, MapError},
    programs::{ProgramError, ProgramFd, Xdp, links::LinkError},
};
use replicator_common::{
    bier::BiftId,
    neighbor::{Neighbor, Settings},
};

use crate::bift::{Bift, LayoutError};
pub use admission::Admission;
pub use attachment::{Attached, Mode};
pub use counters::{Counters, NeighborTraffic, OutcomeCount};
pub use pins::Pins;
pub use tables::{MemberPlace, Prepared};

use fanout::FanOuts;
use mapped::MappedArray;
use neighbors::Neighbors;
use tables::Tables;

/// How long what a copy in flight may still read is left alone: a copy leaves within one NAPI poll, milliseconds at the
/// most.
const REST: Duration = Duration::from_secs(1);

/// Program that runs on every frame a device receives.
const REPLICATE: &str = "replicator_replicate";

/// Program that runs on every copy a device sends.
const REWRITE: &str = "replicator_rewrite";

/// Why the datapath is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    /// The object or a map could not be loaded.
    #[error("cannot load the eBPF object: {0}; `replicator doctor` says what this kernel lacks")]
    Load(#[source] EbpfError),
    /// The kernel refused a program.
    #[error(
        "the kernel refuses program {program}: {source}; `replicator doctor` says what this kernel lacks"
    )]
    Program {
        /// The program.
        program: &'static str,
        /// What the kernel said, with the verifier's log.
        source: Box<ProgramError>,
    },
    /// The object has no such map or program.
    #[error("the eBPF object has no {0}: it is not this version's; build both with `cargo xtask build`")]
    Missing(&'static str),
    /// A map of another kind.
    #[error("map {name} is no {expected}: the eBPF object is not this version's")]
    MapKind {
        /// The map.
        name: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A map with other values.
    #[error("map {name} has values of another size: the eBPF object is not this version's")]
    Layout {
        /// The map.
        name: &'static str,
    },
    /// A map could not be read or written.
    #[error("map {name}: {source}")]
    Map {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: MapError,
    },
    /// A map could not be mapped into memory.
    #[error("cannot map {name} into memory: {source}; mappable arrays need Linux 5.5")]
    Mmap {
        /// The map.
        name: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A pool is full.
    #[error(
        "no room for {what} in the kernel's tables: {need} more are needed; remove tables, or use fewer variants"
    )]
    Full {
        /// What of.
        what: &'static str,
        /// How many.
        need: usize,
    },
    /// Fan-out maps could not be put in place.
    #[error("cannot make fan-out maps: {0}")]
    FanOut(#[source] io::Error),
    /// The members of a table cannot be served.
    #[error("{0}")]
    Unservable(#[from] LayoutError),
    /// Somebody else has the hook, or the driver refused.
    #[error("cannot attach to {interface} in {mode} mode: {source}")]
    Attach {
        /// Name of the interface.
        interface: String,
        /// Mode asked for.
        mode: Mode,
        /// What the kernel said.
        source: Box<ProgramError>,
    },
    /// aya fell back to an attachment that ends with the process.
    #[error("the kernel made no BPF link for {interface}; replicator needs Linux 5.9 or newer")]
    NoLink {
        /// Name of the interface.
        interface: String,
    },
    /// A link could not be read.
    #[error("link of {interface}: {source}")]
    Link {
        /// Name of the interface.
        interface: String,
        /// What the kernel said.
        source: LinkError,
    },
    /// A pin could not be made or removed.
    #[error("{path}: {source}")]
    Pin {
        /// Its path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The object could not be read.
    #[error("cannot read the eBPF object: {0}; build it with `cargo xtask build`")]
    Object(#[source] aya_obj::ParseError),
    /// What is pinned is another build's.
    #[error(
        "the maps in {0} have another layout than those of this build: ask the build that loaded them, or start the \
         daemon of this one, which takes over"
    )]
    OtherLayout(PathBuf),
    /// Nothing is pinned.
    #[error("no replicator is loaded: nothing is pinned in {0}; start one with `replicator run`")]
    NotLoaded(PathBuf),
}

/// Constants of a load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// UDP port of BIER.
    pub udp_port: u16,
    /// Whether every dropped frame and copy is logged.
    pub trace_drops: bool,
}

/// What the verifier said of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    /// Name in the kernel.
    pub program: &'static str,
    /// Instructions the verifier walked; it gives up at a million.
    pub instructions: u32,
}

/// The loaded programs and their maps.
pub struct Datapath {
    ebpf: Ebpf,
    tables: Tables,
    neighbors: Neighbors,
    fan_outs: FanOuts,
    admission: Admission,
    settings: MappedArray<Settings>,
    rewrite: ProgramFd,
    attached: Vec<Attached>,
    /// Whether the maps are pinned.
    pinned: bool,
    started: Instant,
}

impl Datapath {
    /// Loads programs and empty maps. Nothing is attached.
    ///
    /// # Errors
    /// Where the kernel refuses one of them.
    pub fn load(object: &[u8], options: &LoadOptions) -> Result<Self, DatapathError> {
        let cookie = cookie().map_err(|source| DatapathError::Pin { path: "/dev/urandom".into(), source })?;
        let mut datapath = Self::open(object, options, cookie, &BTreeMap::new())?;
        datapath.settings.write(0, Settings { origin_ifindex: 0, cookie });
        Ok(datapath)
    }

    /// Loads the programs, over those maps that are pinned.
    fn open(
        object: &[u8],
        options: &LoadOptions,
        cookie: u32,
        pinned: &BTreeMap<String, PathBuf>,
    ) -> Result<Self, DatapathError> {
        let log_level = if options.trace_drops { aya_log_level::INFO } else { aya_log_level::OFF };
        let mut loader = EbpfLoader::new();
        loader
            .override_global("COOKIE", &cookie, true)
            .override_global("UDP_PORT", &options.udp_port, true)
            .override_global("AYA_LOG_LEVEL", &log_level, true);
        for (name, path) in pinned {
            loader.map_pin_path(name, path.as_path());
        }
        let mut ebpf = loader.load(object).map_err(DatapathError::Load)?;
        for name in [REPLICATE, REWRITE] {
            let program = xdp(&mut ebpf, name)?;
            without_signals(|| program.load())
                .map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })?;
        }
        let mut rewrite = || {
            let program = xdp(&mut ebpf, REWRITE)?.fd().and_then(|fd| Ok(fd.try_clone()?));
            program.map_err(|source| DatapathError::Program { program: REWRITE, source: Box::new(source) })
        };
        let (rewrite, own_rewrite) = (rewrite()?, rewrite()?);
        Ok(Self {
            tables: Tables::new(&ebpf)?,
            neighbors: Neighbors::new(&ebpf)?,
            fan_outs: FanOuts::new(&mut ebpf, rewrite)?,
            admission: Admission::new(&mut ebpf)?,
            settings: MappedArray::new("SETTINGS", map(&ebpf, "SETTINGS")?)?,
            rewrite: own_rewrite,
            attached: Vec::new(),
            pinned: false,
            started: Instant::now(),
            ebpf,
        })
    }

    /// What the verifier said.
    ///
    /// # Errors
    /// Where the kernel does not tell (before Linux 5.16).
    pub fn verified(&mut self) -> Result<Vec<Verified>, DatapathError> {
        [REPLICATE, REWRITE]
            .into_iter()
            .map(|program| {
                let info = xdp(&mut self.ebpf, program)?
                    .info()
                    .map_err(|source| DatapathError::Program { program, source: Box::new(source) })?;
                Ok(Verified { program, instructions: info.verified_instruction_count().unwrap_or(0) })
            })
            .collect()
    }

    /// Id of the program that is attached.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn program_id(&mut self) -> Result<u32, DatapathError> {
        let info = xdp(&mut self.ebpf, REPLICATE)?.info();
        Ok(info
            .map_err(|source| DatapathError::Program { program: REPLICATE, source: Box::new(source) })?
            .id())
    }

    /// Frames received by this device come from this host's own programs; 0 for none.
    pub fn set_origin(&mut self, ifindex: u32) {
        let settings = self.settings.read(0);
        self.settings.write(0, Settings { origin_ifindex: ifindex, ..settings });
    }

    /// Who may send, and which addresses are this host's.
    pub fn admission(&mut self) -> &mut Admission {
        &mut self.admission
    }

    /// What is known of a neighbor; `None` where its MAC address is not. No frame reads a half of it.
    ///
    /// # Errors
    /// Where more neighbors changed within a second than there are places.
    pub fn set_neighbor(&mut self, id: u32, neighbor: Option<&Neighbor>) -> Result<(), DatapathError> {
        self.neighbors.set(id, neighbor, self.started.elapsed())
    }

    /// What is known of each neighbor, by id.
    pub fn neighbors(&self) -> Vec<(u32, Neighbor)> {
        self.neighbors.in_force()
    }

    /// Ids of the neighbors that tables in force have as members.
    pub fn named_neighbors(&self) -> BTreeSet<u32> {
        self.tables.neighbors()
    }

    /// Puts a table in force under its BIFT-ids, in place of those they name now: a frame meets the old table or the
    /// new one. `places` has neighbor and device of each remote member, member 1 first; `local` the device of this
    /// host's stack. Returns false where the ids named this very table already.
    ///
    /// # Errors
    /// Where there is no room or the members cannot be served. Whatever the ids name stays in force then.
    pub fn install(
        &mut self,
        ids: &[BiftId],
        bift: &Bift,
        places: &[MemberPlace],
        local: Option<u32>,
    ) -> Result<bool, DatapathError> {
        self.tables.install(&mut self.fan_outs, ids, bift, places, local, self.started)
    }

    /// The first half of [`Self::install`]: writes everything where no frame looks. Whoever prepares all tables of a
    /// change before publishing the first knows that none of them can fail any more.
    ///
    /// # Errors
    /// As [`Self::install`].
    pub fn prepare(
        &mut self,
        bift: &Bift,
        places: &[MemberPlace],
        local: Option<u32>,
    ) -> Result<Prepared, DatapathError> {
        self.tables.prepare(&mut self.fan_outs, bift, places, local, self.started)
    }

    /// The second half: one word for each id. Tables that no id names any more give back their room; without ids this
    /// one does.
    pub fn publish(&mut self, prepared: Prepared, ids: &[BiftId]) {
        self.tables.publish(&mut self.fan_outs, prepared, ids, self.started);
    }

    /// Gives back the room of a table that is not to be published.
    pub fn discard(&mut self, prepared: Prepared) {
        self.tables.discard(&mut self.fan_outs, prepared);
    }

    /// How full the fullest of all tables is, from 0 to 1. What rests counts.
    pub fn pressure(&self) -> f64 {
        let now = self.started.elapsed();
        self.tables.pressure(now).max(self.fan_outs.pressure(now))
    }

    /// Takes the table of a BIFT-id out of force.
    pub fn remove(&mut self, id: BiftId) {
        self.tables.remove(&mut self.fan_outs, id, self.started);
    }

    /// A device that was gone is back under its number: copies leave on it again.
    ///
    /// # Errors
    /// Where the kernel refuses the fan-out maps.
    pub fn refill(&mut self, ifindex: u32) -> Result<(), DatapathError> {
        self.fan_outs.refill(ifindex)
    }

    /// The BIFT-ids in force, ascending.
    pub fn bift_ids(&self) -> Vec<BiftId> {
        self.tables.ids()
    }

    /// Counts since the load.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        Counters::read(|name| map(&self.ebpf, name))
    }

    /// The programs' log, for [`aya_log::EbpfLogger`].
    pub fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }
}

/// Levels of aya-log, as the programs' global has them.
mod aya_log_level {
    pub(super) const OFF: u8 = 0;
    pub(super) const INFO: u8 = 3;
}

/// Runs `load` while signals wait: the verifier gives up with EAGAIN when one arrives (`signal_pending` in `do_check`,
/// kernel/bpf/verifier.c), be it that a child of another thread ended.
fn without_signals<T>(load: impl FnOnce() -> T) -> T {
    // SAFETY: all zeros is a set of signals.
    let mut all: libc::sigset_t = unsafe { std::mem::zeroed() };
    let mut before = all;
    // SAFETY: a set to fill in.
    unsafe { libc::sigfillset(&raw mut all) };
    // SAFETY: two sets, of which the first is read and the second written.
    let blocked = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const all, &raw mut before) };
    let result = load();
    if blocked == 0 {
        // SAFETY: the set that was written.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, std::ptr::null_mut()) };
    }
    result
}

/// A number that no other load has, and not 0.
fn cookie() -> io::Result<u32> {
    let mut random = std::fs::File::open("/dev/urandom")?;
    loop {
        let mut bytes = [0; 4];
        io::Read::read_exact(&mut random, &mut bytes)?;
        if bytes != [0; 4] {
            return Ok(u32::from_ne_bytes(bytes));
        }
    }
}

fn xdp<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, DatapathError> {
    let program = ebpf.program_mut(name).ok_or(DatapathError::Missing(name))?;
    program.try_into().map_err(|source| DatapathError::Program { program: name, source: Box::new(source) })
}

fn map<'a>(ebpf: &'a Ebpf, name: &'static str) -> Result<&'a Map, DatapathError> {
    ebpf.map(name).ok_or(DatapathError::Missing(name))
}
