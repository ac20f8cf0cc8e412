//! The bodies of answers, as JSON. The canonical expert map (docs/expert-map.md) is the body of requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::{
    daemon::status::{InterfaceStatus, NeighborResolution},
    map::Fault,
};

/// The tables of a model that are in force, and how senders name them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Installed {
    /// The model.
    pub model: String,
    /// Its newest epoch.
    pub epoch: u64,
    /// Bits of the BitString that frames for its tables carry.
    pub bit_string_length: usize,
    /// The layers by number: those of the request, or all of them where nothing was put in force.
    pub layers: BTreeMap<u16, LayerTable>,
}

/// A layer's table in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct LayerTable {
    /// The epoch that the layer is of.
    pub epoch: u64,
    /// BIFT-id of this epoch's table, 20 bits: what senders that follow epochs write.
    pub bift_id: u32,
    /// BIFT-id that stays the same and always leads to the newest table (generation 0).
    pub alias: u32,
    /// Number of the layer's table: bits 8 to 18 of the BIFT-ids.
    pub table: u16,
    /// Generation of this epoch's table: bits 0 to 7 of the BIFT-id.
    pub generation: u8,
}

/// A model that was taken out of force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Deleted {
    /// The model.
    pub model: String,
    /// The epoch it had.
    pub epoch: u64,
}

/// The models there are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelList {
    /// In the order of their names.
    pub models: Vec<ModelSummary>,
}

/// A model in a list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ModelSummary {
    /// The model.
    pub model: String,
    /// Its newest epoch.
    pub epoch: u64,
    /// Logical experts of a layer.
    pub logical_experts: usize,
    /// Layers with a table.
    pub layers: usize,
}

/// The epochs of a model's layers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Epochs {
    /// The model.
    pub model: String,
    /// Its newest epoch: the next has to be larger.
    pub epoch: u64,
    /// The layers by number, those that the newest map has no more but whose last table is still in force among them.
    pub layers: BTreeMap<u16, LayerEpochs>,
}

/// The epochs of a layer.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct LayerEpochs {
    /// The epoch in force; none where the newest map has no such layer.
    pub epoch: Option<u64>,
    /// Older tables that are in force for senders that have not moved on, oldest first. What a daemon found in the kernel
    /// when it started, and knows no epoch of, is not among them.
    pub superseded: Vec<Superseded>,
}

/// A table that a newer one has taken the place of.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Superseded {
    /// Its epoch.
    pub epoch: u64,
    /// Its BIFT-id.
    pub bift_id: u32,
    /// Seconds until it is taken out of force, unless its room is needed before.
    pub seconds_left: f64,
}

/// The daemon and what it looks after.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatusReport {
    /// Version of the daemon.
    pub version: String,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// The stack's end of the origin veth, where there is one.
    pub origin: Option<String>,
    /// Where `replicate` is attached.
    pub interfaces: Vec<InterfaceStatus>,
    /// Neighbors of the configuration, and how many of them are resolved.
    pub neighbors: Count,
    /// Models whose maps came by this interface.
    pub models: Vec<ModelSummary>,
    /// Tables of the configuration.
    pub configured_tables: usize,
    /// BIFT-ids in force, aliases and superseded tables included.
    pub bift_ids: usize,
    /// Superseded tables in force.
    pub superseded: usize,
    /// Superseded tables that had to make room before their time, since the daemon started.
    pub retired_early: u64,
    /// Whether something could not be put in step with the host yet and is tried again.
    pub behind: bool,
}

/// Some of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Count {
    /// All of them.
    pub total: usize,
    /// Those of which it is so.
    pub resolved: usize,
}

/// The neighbors.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NeighborList {
    /// In the order of the configuration.
    pub neighbors: Vec<NeighborReport>,
}

/// A neighbor.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NeighborReport {
    /// Its name.
    pub name: String,
    /// Its id in the maps; another after it moved to another interface.
    pub id: u32,
    /// Whether copies can go to it.
    pub resolution: NeighborResolution,
}

/// What the datapath counted since its maps were made, over all CPUs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct Stats {
    /// Seconds since the daemon started, for rates between two answers.
    pub uptime_seconds: f64,
    /// Outcome -> frames, copies or bits; every outcome is there.
    pub outcomes: BTreeMap<String, u64>,
    /// Neighbor -> what was sent to it; `local` is this host's own stack. Every neighbor is there.
    pub neighbors: BTreeMap<String, Traffic>,
}

/// What was sent to a neighbor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Traffic {
    /// Copies.
    pub copies: u64,
    /// Bytes of them, Ethernet header included.
    pub bytes: u64,
}

/// Whether frames can be replicated.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Readiness {
    /// Whether all of it is so.
    pub ready: bool,
    /// What is missing, a sentence each.
    pub missing: Vec<String>,
}

/// Why a request was refused (RFC 9457). Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Which kind of problem, for programs.
    pub code: Code,
    /// The HTTP status.
    pub status: u16,
    /// What is wrong and what to do.
    pub detail: String,
    /// The model's present epoch, where that is what the request disagrees with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    /// What is wrong with the document, each fault with the path to it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<Fault>,
    /// Further faults that are not told.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub more_faults: usize,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// Kinds of problems.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Code {
    /// 400: the request cannot be read.
    BadRequest,
    /// 401: the token is missing or wrong.
    Unauthorized,
    /// 404: there is no such model.
    UnknownModel,
    /// 404: there is no such path.
    NotFound,
    /// 405: the path has other methods.
    MethodNotAllowed,
    /// 408: the body took too long to arrive.
    Timeout,
    /// 409: the epoch is not newer than the one in force.
    StaleEpoch,
    /// 409: the model's tables stand in the configuration.
    Configured,
    /// 413: the body is too large.
    TooLarge,
    /// 422: the map has faults.
    InvalidMap,
    /// 500: the kernel refused something.
    Internal,
    /// 503: there is no room at this moment; try again when Retry-After is over.
    NoRoom,
    /// 503: the daemon ends.
    Ending,
    /// 507: the state cannot be written.
    Storage,
}
