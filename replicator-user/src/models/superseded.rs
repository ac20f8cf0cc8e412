//! Tables that newer ones have taken the place of. They stay in force for a time, for senders that have not moved on;
//! then their numbers rest, for frames that are still under way.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use replicator_common::bier::BiftId;

use crate::api::types;

/// Superseded tables in force at most, so that a storm of maps leaves room in the kernel's tables: a quarter of all
/// BIFT-ids.
const MAX_IN_FORCE: usize = replicator_common::limits::MAX_TABLES / 4;

/// Superseded generations of one table at most: about half of those there are, so that the others can rest.
const MAX_OF_TABLE: usize = 128;

/// How long each is in force at least, whatever room is needed: senders learn of a new epoch by the answer to a request.
const FLOOR: Duration = Duration::from_millis(100);

/// How long a number is not given out after its table went out of force. A frame is under way for milliseconds.
const REST: Duration = Duration::from_secs(1);

/// A superseded table.
#[derive(Clone, Debug)]
pub(super) struct Older {
    pub(super) id: BiftId,
    /// Model, layer and epoch, where they are known.
    pub(super) of: Option<(String, u16, u64)>,
}

/// All of them, oldest first.
#[derive(Debug)]
pub(super) struct Superseded {
    grace: Duration,
    in_force: VecDeque<(Duration, Older)>,
    /// Out of force, with the time from which their numbers may be given out again.
    resting: VecDeque<(Duration, BiftId)>,
}

impl Superseded {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, in_force: VecDeque::new(), resting: VecDeque::new() }
    }

    pub(super) fn push(&mut self, older: Older, now: Duration) {
        self.in_force.push_back((now, older));
    }

    /// The BIFT-id names a newer table again.
    pub(super) fn forget(&mut self, id: BiftId) {
        self.in_force.retain(|(_, older)| older.id != id);
        self.resting.retain(|(_, resting)| *resting != id);
    }

    /// The table went out of force.
    pub(super) fn retire(&mut self, id: BiftId, now: Duration) {
        self.in_force.retain(|(_, older)| older.id != id);
        self.resting.retain(|(until, _)| *until > now);
        self.resting.push_back((now + REST, id));
    }

    /// In force or at rest.
    pub(super) fn ids(&self, now: Duration) -> impl Iterator<Item = BiftId> {
        let resting = self.resting.iter().filter(move |(until, _)| *until > now);
        self.ids_in_force().chain(resting.map(|(_, id)| *id))
    }

    pub(super) fn ids_in_force(&self) -> impl Iterator<Item = BiftId> {
        self.in_force.iter().map(|(_, older)| older.id)
    }

    pub(super) fn next_expiry(&self) -> Option<Duration> {
        self.in_force.front().map(|(since, _)| *since + self.grace)
    }

    /// Retires the next one whose time is over.
    pub(super) fn expired(&mut self, now: Duration) -> Option<BiftId> {
        self.next_expiry().filter(|until| *until <= now)?;
        let id = self.in_force.front()?.1.id;
        self.retire(id, now);
        Some(id)
    }

    /// Retires one that has to make room.
    pub(super) fn crowded(&mut self, full: bool, now: Duration) -> Option<BiftId> {
        let oldest = if full || self.in_force.len() > MAX_IN_FORCE {
            self.in_force.front()
        } else {
            let mut of_tables = BTreeMap::<_, usize>::new();
            self.ids_in_force().for_each(|id| *of_tables.entry(id.table()).or_default() += 1);
            let too_many = |older: &Older| of_tables[&older.id.table()] > MAX_OF_TABLE;
            self.in_force.iter().find(|(_, older)| too_many(older))
        };
        let id = oldest.filter(|(since, _)| *since + FLOOR <= now)?.1.id;
        self.retire(id, now);
        Some(id)
    }

    /// Those of a model, each with its layer.
    pub(super) fn of(&self, model: &str, now: Duration) -> impl Iterator<Item = (u16, types::Superseded)> {
        self.in_force.iter().filter_map(move |(since, older)| {
            let (name, layer, epoch) = older.of.as_ref()?;
            let seconds_left = (*since + self.grace).saturating_sub(now).as_secs_f64();
            (name == model).then_some((
                *layer,
                types::Superseded { epoch: *epoch, bift_id: older.id.get(), seconds_left },
            ))
        })
    }
}
