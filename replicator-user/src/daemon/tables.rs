//! The tables that the daemon put in force: which BIFT-ids name each, and what is in it, so that it can be put in force
//! again when its neighbors move.

use std::{collections::BTreeMap, sync::Arc};

use replicator_common::bier::BiftId;

use super::{Daemon, DaemonError};
use crate::{
    bift::Birt,
    config::{self, TableName},
    datapath::MemberPlace,
    map::ExpertMap,
};

/// A table in force.
#[derive(Clone, Debug)]
pub(super) struct InForce {
    pub(super) name: TableName,
    /// Its own BIFT-id, and the alias if it is the newest of its layer.
    pub(super) ids: Vec<BiftId>,
    pub(super) birt: Arc<Birt>,
}

impl From<&config::Table> for InForce {
    fn from(table: &config::Table) -> Self {
        Self { name: table.name.clone(), ids: table.bift_ids.clone(), birt: Arc::clone(&table.birt) }
    }
}

impl InForce {
    /// The table of a layer. Its own BIFT-id stands first.
    pub(super) fn of_layer(map: &ExpertMap, layer: u16, ids: Vec<BiftId>, birt: &Arc<Birt>) -> Self {
        let name = TableName::Experts { model: map.model().into(), layer, experts: map.experts() as u16 };
        Self { name, ids, birt: Arc::clone(birt) }
    }

    /// Whether no newer table has taken its place: one of experts has an alias then.
    pub(super) fn is_newest(&self) -> bool {
        matches!(self.name, TableName::Nodes { .. }) || self.ids.len() > 1
    }
}

/// By their own BIFT-ids.
#[derive(Debug, Default)]
pub(super) struct Tables(BTreeMap<BiftId, InForce>);

impl FromIterator<InForce> for Tables {
    fn from_iter<T: IntoIterator<Item = InForce>>(tables: T) -> Self {
        let mut all = Self::default();
        tables.into_iter().for_each(|table| all.insert(table));
        all
    }
}

impl Tables {
    pub(super) fn insert(&mut self, table: InForce) {
        if let Some(&own) = table.ids.first() {
            self.0.insert(own, table);
        }
    }

    /// A BIFT-id names nothing any more.
    pub(super) fn remove(&mut self, id: BiftId) {
        self.0.remove(&id);
    }

    /// Whether a BIFT-id is a table's own.
    pub(super) fn has(&self, own: BiftId) -> bool {
        self.0.contains_key(&own)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &InForce> {
        self.0.values()
    }

    pub(super) fn own_ids(&self) -> impl Iterator<Item = BiftId> {
        self.0.keys().copied()
    }

    /// A newer table has the alias now.
    pub(super) fn supersede(&mut self, own: BiftId) {
        if let Some(table) = self.0.get_mut(&own) {
            table.ids.truncate(1);
        }
    }

    /// The tables that have the neighbor as a member.
    pub(super) fn with_neighbor(&self, index: usize) -> impl Iterator<Item = BiftId> {
        let has =
            move |table: &InForce| table.birt.neighbors().iter().any(|id| id.remote_index() == Some(index));
        self.0.iter().filter(move |(_, table)| has(table)).map(|(id, _)| *id)
    }

    /// The tables in which this host has bits.
    pub(super) fn with_local(&self) -> impl Iterator<Item = BiftId> {
        self.0.iter().filter(|(_, table)| table.birt.has_local()).map(|(id, _)| *id)
    }
}

impl Daemon {
    /// Puts a table in force where it is not already as it should be; says whether it had to.
    pub(super) fn install(&mut self, own: BiftId) -> Result<bool, DaemonError> {
        let Some(table) = self.tables.0.get(&own) else { return Ok(false) };
        let (places, local) = (self.places(&table.birt), self.local_device(&table.birt));
        self.datapath
            .install(&table.ids, &table.birt.compile(), &places, local)
            .map_err(|source| DaemonError::Table { table: table.name.to_string(), source: Box::new(source) })
    }

    /// Where the members of a table are.
    pub(super) fn places(&self, birt: &Birt) -> Vec<MemberPlace> {
        let place = |id: &crate::bift::NeighborId| Some(self.roster.place(id.remote_index()?));
        birt.neighbors().iter().filter_map(place).collect()
    }

    /// The way to this host's stack, if it has bits.
    pub(super) fn local_device(&self, birt: &Birt) -> Option<u32> {
        self.origin.as_ref().map(|origin| origin.peer_ifindex).filter(|_| birt.has_local())
    }

    /// Takes BIFT-ids out of force.
    pub(super) fn withdraw(&mut self, ids: impl IntoIterator<Item = BiftId>) {
        for id in ids {
            self.datapath.remove(id);
            self.tables.remove(id);
            self.outdated.remove(&id);
        }
    }

    /// Installs what is outdated, each table whatever becomes of the others. Ids that no table names any more are left.
    pub(super) fn catch_up(&mut self) -> Result<(), DaemonError> {
        let mut result = Ok(());
        for own in std::mem::take(&mut self.outdated) {
            if let Err(error) = self.install(own) {
                self.outdated.insert(own);
                result = Err(error);
            }
        }
        self.leave();
        result
    }

    /// Leaves the ids of neighbors that moved, or are configured no more, and that no table in force names.
    fn leave(&mut self) {
        if self.leaving.is_empty() {
            return;
        }
        let named = self.datapath.named_neighbors();
        let left: Vec<_> = self.leaving.difference(&named).copied().collect();
        for id in left {
            self.leaving.remove(&id);
            self.roster.left(id, self.started.elapsed());
        }
    }
}
