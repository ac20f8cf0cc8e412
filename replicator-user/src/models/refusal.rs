//! Why a request is refused.

use crate::map::{Fault, Faults};

/// Why a request was refused. Nothing has changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such model.
    #[error("there is no model `{0}`; put a full map of it first")]
    UnknownModel(String),
    /// The model's tables stand in the configuration.
    #[error(
        "the tables of `{0}` stand in the configuration; take them out of `expert-tables` there to give them by maps"
    )]
    Configured(String),
    /// The epoch is not newer than the one in force.
    #[error("epoch {epoch} is not newer than the one in force, {current}; send a larger one")]
    StaleEpoch {
        /// The map's.
        epoch: u64,
        /// The model's.
        current: u64,
    },
    /// The map has faults.
    #[error("{0}")]
    Invalid(Faults),
    /// There is no room at this moment.
    #[error("{detail}")]
    NoRoom {
        /// For what, and what to do.
        detail: String,
        /// When it may be tried again, in seconds; none where waiting does not help.
        retry_after: Option<u64>,
    },
    /// The state cannot be written.
    #[error("{0}")]
    Storage(String),
    /// The kernel refused something.
    #[error("{0}")]
    Internal(String),
    /// The daemon ends.
    #[error("the daemon ends")]
    Ending,
}

impl Refusal {
    /// A map with this fault alone.
    pub(crate) fn fault(path: impl Into<String>, message: impl Into<String>) -> Self {
        let fault = Fault { path: path.into(), message: message.into() };
        Self::Invalid(Faults { faults: vec![fault], more: 0 })
    }
}
