//! What the datapath counted.

use std::borrow::Borrow;

use aya::maps::{Map, MapError, PerCpuArray};
use replicator_common::{limits::MAX_NEIGHBORS, neighbor::Traffic, outcome::Outcome};
use serde::Serialize;

use super::DatapathError;

const OUTCOMES: &str = "OUTCOME_COUNTS";
const TRAFFIC: &str = "NEIGHBOR_TRAFFIC";

/// Counts since the load, over all CPUs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// One for each outcome, in the order of their numbers.
    pub outcomes: Vec<OutcomeCount>,
    /// Neighbors that anything was sent to, by id.
    pub neighbors: Vec<NeighborTraffic>,
}

/// How often an outcome occurred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct OutcomeCount {
    /// Its label.
    pub outcome: &'static str,
    /// Frames, copies or bits.
    pub count: u64,
}

/// What was sent to a neighbor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct NeighborTraffic {
    /// Id in the maps.
    pub id: u32,
    /// Copies.
    pub copies: u64,
    /// Bytes of them, Ethernet header included.
    pub bytes: u64,
}

impl Counters {
    /// Reads the maps that `map` finds by name.
    ///
    /// # Errors
    /// Where there is none, or the kernel does not tell.
    pub(super) fn read<M: Borrow<Map>>(
        map: impl Fn(&'static str) -> Result<M, DatapathError>,
    ) -> Result<Self, DatapathError> {
        let error = |name| move |source: MapError| DatapathError::Map { name, source };
        let counts = map(OUTCOMES)?;
        let counts = PerCpuArray::<_, u64>::try_from(counts.borrow()).map_err(error(OUTCOMES))?;
        let outcomes = Outcome::ALL
            .iter()
            .map(|&outcome| {
                let per_cpu = counts.get(&(outcome as u32), 0).map_err(error(OUTCOMES))?;
                Ok(OutcomeCount { outcome: outcome.label(), count: per_cpu.iter().sum() })
            })
            .collect::<Result<_, DatapathError>>()?;
        let traffic = map(TRAFFIC)?;
        let traffic = PerCpuArray::<_, Traffic>::try_from(traffic.borrow()).map_err(error(TRAFFIC))?;
        let mut neighbors = Vec::new();
        for id in 0..MAX_NEIGHBORS as u32 {
            let per_cpu = traffic.get(&id, 0).map_err(error(TRAFFIC))?;
            let copies = per_cpu.iter().map(|traffic| traffic.copies).sum();
            if copies > 0 {
                let bytes = per_cpu.iter().map(|traffic| traffic.bytes).sum();
                neighbors.push(NeighborTraffic { id, copies, bytes });
            }
        }
        Ok(Self { outcomes, neighbors })
    }

    /// How often `outcome` occurred.
    pub fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes.iter().find(|count| count.outcome == outcome.label()).map_or(0, |count| count.count)
    }
}
