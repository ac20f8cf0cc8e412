//! The models whose expert maps came while the daemon runs: which epoch of each layer is in force under which BIFT-ids,
//! which older ones still are, and what a new map changes. Pure: whoever calls puts tables in place and keeps the state.
//!
//! A map is taken in two steps. [`Models::plan`] says which BIFT-ids its tables get, or why it is refused, and changes
//! nothing; [`Models::commit`] makes it so when everything is in the kernel and on the disk.

mod numbers;
mod refusal;
pub mod state;
mod superseded;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use replicator_common::{
    bier::{BiftId, BitStringLength},
    limits::MAX_EXPERT_TABLES,
};

use crate::{
    api::types::{Deleted, Epochs, Installed, LayerEpochs, LayerTable, ModelSummary},
    map::{ExpertMap, Fault, Faults},
};
use numbers::Numbers;
pub use refusal::Refusal;
use superseded::{Older, Superseded};

/// A model: its newest map, and the table of each layer of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Model {
    map: ExpertMap,
    tables: BTreeMap<u16, LayerTable>,
    /// What was in force of each layer before, as far as it was of the same ranks: a daemon that ends between a map and
    /// the answer to it leaves senders that know of these alone. It has none of its own.
    before: Option<Box<Self>>,
}

impl Model {
    /// Its newest map, full.
    pub fn map(&self) -> &ExpertMap {
        &self.map
    }

    /// The table of each layer.
    pub fn tables(&self) -> &BTreeMap<u16, LayerTable> {
        &self.tables
    }

    /// The last layers that newer ones have taken the place of.
    pub fn before(&self) -> Option<&Self> {
        self.before.as_deref()
    }

    /// What is before a model that takes the place of these layers of this one.
    fn left(&self, layers: &BTreeSet<u16>) -> Option<Box<Self>> {
        if layers.is_empty() {
            return self.before.clone();
        }
        let mut tables = self.tables.clone();
        tables.retain(|layer, _| layers.contains(layer));
        let map = self.map.only(layers);
        let earlier = self.before.as_deref().filter(|earlier| earlier.map.is_like(&map));
        Some(Box::new(match earlier {
            None => Self { map, tables, before: None },
            Some(earlier) => {
                let tables = earlier.tables.clone().into_iter().chain(tables).collect();
                Self { map: earlier.map.with_layers_of(&map), tables, before: None }
            }
        }))
    }

    /// Its tables, for senders.
    pub fn installed(&self) -> Installed {
        self.installed_layers(self.tables.keys())
    }

    fn installed_layers<'l>(&self, layers: impl IntoIterator<Item = &'l u16>) -> Installed {
        let table = |layer: &u16| Some((*layer, *self.tables.get(layer)?));
        Installed {
            model: self.map.model().to_owned(),
            epoch: self.map.epoch(),
            bit_string_length: BitStringLength::for_bits(self.map.experts()).map_or(0, BitStringLength::bits),
            layers: layers.into_iter().filter_map(table).collect(),
        }
    }
}

/// The BIFT-ids of a layer's table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Of its epoch.
    pub own: BiftId,
    /// Of the newest epoch, whichever it is.
    pub alias: BiftId,
}

impl LayerTable {
    fn new(epoch: u64, table: u16, generation: u8) -> Option<Self> {
        let (own, alias) = (BiftId::expert(table, generation)?, BiftId::expert(table, 0)?);
        Some(Self { epoch, bift_id: own.get(), alias: alias.get(), table, generation })
    }

    /// Its BIFT-ids; there are none for a table's number beyond the limit.
    pub fn ids(&self) -> Option<Ids> {
        let own = BiftId::expert(self.table, self.generation)?;
        Some(Ids { own, alias: BiftId::expert(self.table, 0)? })
    }
}

/// What a map changes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The model as it will be.
    pub model: Model,
    /// The layers that get a new table: those of the request.
    pub layers: BTreeMap<u16, Ids>,
    /// Aliases that name nothing any more.
    pub dropped: Vec<BiftId>,
    /// Tables that are superseded, with their layers and epochs.
    older: Vec<(u16, BiftId, u64)>,
}

/// All models, and the tables that newer ones have taken the place of.
#[derive(Debug)]
pub struct Models {
    models: BTreeMap<String, Model>,
    superseded: Superseded,
    /// Tables of layers that are gone, with the model and the layer that had them.
    left: BTreeMap<u16, (String, u16)>,
    /// Models of the configuration, which maps do not change, and the numbers of their tables.
    configured: BTreeMap<String, BTreeSet<u16>>,
}

impl Models {
    /// No models yet. `configured` are those of the configuration with their tables' numbers; superseded tables stay in
    /// force for `grace`.
    pub fn new(configured: BTreeMap<String, BTreeSet<u16>>, grace: Duration) -> Self {
        let (models, left) = (BTreeMap::new(), BTreeMap::new());
        Self { models, superseded: Superseded::new(grace), left, configured }
    }

    /// The models.
    pub fn all(&self) -> impl Iterator<Item = &Model> {
        self.models.values()
    }

    /// A model.
    ///
    /// # Errors
    /// [`Refusal::UnknownModel`].
    pub fn get(&self, model: &str) -> Result<&Model, Refusal> {
        self.models.get(model).ok_or_else(|| Refusal::UnknownModel(model.to_owned()))
    }

    /// Whether a map fits to what is in force.
    ///
    /// # Errors
    /// Where it does not.
    pub fn check(&self, map: &ExpertMap) -> Result<(), Refusal> {
        let name = map.model();
        if self.configured.contains_key(name) {
            return Err(Refusal::Configured(name.to_owned()));
        }
        let before = self.models.get(name);
        if let Some(current) = before.map(|before| before.map.epoch())
            && map.epoch() <= current
        {
            return Err(Refusal::StaleEpoch { epoch: map.epoch(), current });
        }
        match before {
            Some(before) if map.is_partial() => {
                check_alike(&before.map, map)?;
                check_numbers(before.map.first_table(), map)
            }
            None if map.is_partial() => Err(Refusal::UnknownModel(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// What the map changes: a full one takes the place of the model's last, a partial one that of some layers.
    ///
    /// # Errors
    /// Where it does not fit to what is in force, or no numbers are free.
    pub fn plan(&self, map: ExpertMap, now: Duration) -> Result<Plan, Refusal> {
        self.check(&map)?;
        let before = self.models.get(map.model());
        let newest = match before {
            Some(before) if map.is_partial() => before.map.with_layers_of(&map),
            _ => map.clone(),
        };
        let tables = self.number(before, &map, newest.first_table(), self.superseded.ids(now))?;
        Ok(Plan::new(before, newest, tables))
    }

    /// A table for each layer of `map`. None of the BIFT-ids `in_force` is given out.
    fn number(
        &self,
        before: Option<&Model>,
        map: &ExpertMap,
        first_table: Option<u16>,
        in_force: impl Iterator<Item = BiftId>,
    ) -> Result<BTreeMap<u16, LayerTable>, Refusal> {
        let others = self.models.iter().filter(|(name, _)| *name != map.model());
        let others = others.flat_map(|(name, model)| model.tables.values().map(move |t| (t.table, name)));
        let configured =
            self.configured.iter().flat_map(|(name, tables)| tables.iter().map(move |&table| (table, name)));
        let others = others.chain(configured).map(|(table, name)| (table, name.as_str()));
        let mut numbers = Numbers::new(others, &self.left);
        for table in before.into_iter().flat_map(|before| before.tables.values()) {
            numbers.take(table.table, table.generation);
        }
        for id in in_force {
            if let (Some(table), Some(generation)) = (id.table(), id.generation()) {
                numbers.take(table, generation);
            }
        }
        let table = |&layer: &u16| {
            let table = match first_table {
                Some(first) => numbers.fixed(map.model(), layer, first + layer)?,
                None => match before.and_then(|before| before.tables.get(&layer)) {
                    Some(before) => before.table,
                    None => numbers.free_table(map.model(), layer)?,
                },
            };
            let generation = numbers.free_generation(table, map.epoch())?;
            Ok((layer, LayerTable::new(map.epoch(), table, generation)))
        };
        let tables = map.layers().keys().map(table).collect::<Result<Vec<_>, Refusal>>()?;
        Ok(tables.into_iter().filter_map(|(layer, table)| Some((layer, table?))).collect())
    }

    /// Makes it so. `now` ascends from call to call.
    pub fn commit(&mut self, plan: Plan, now: Duration) -> Installed {
        let Plan { model, layers, older, .. } = plan;
        let name = model.map.model().to_owned();
        for (layer, id, epoch) in older {
            self.superseded.push(Older { id, of: Some((name.clone(), layer, epoch)) }, now);
        }
        for ids in layers.values() {
            self.superseded.forget(ids.own);
            self.superseded.forget(ids.alias);
        }
        let installed = model.installed_layers(layers.keys());
        let in_use: BTreeSet<_> = model.tables.values().map(|table| table.table).collect();
        let before = self.models.insert(name.clone(), model).map(|before| before.tables).unwrap_or_default();
        self.left.extend(before.into_iter().map(|(layer, table)| (table.table, (name.clone(), layer))));
        self.left.retain(|table, _| !in_use.contains(table));
        installed
    }

    /// The BIFT-ids of a model's tables, superseded ones among them.
    ///
    /// # Errors
    /// Where there is no such model.
    pub fn ids_of(&self, model: &str) -> Result<Vec<BiftId>, Refusal> {
        let own: Vec<_> = self.get(model)?.tables.values().filter_map(LayerTable::ids).collect();
        let older = self.superseded.of(model, Duration::ZERO);
        let older = older.filter_map(|(_, older)| BiftId::new(older.bift_id));
        Ok(own.into_iter().flat_map(|ids| [ids.own, ids.alias]).chain(older).collect())
    }

    /// Takes a model out. Its BIFT-ids, as [`ids_of`](Self::ids_of) had them, are not given out again at once.
    ///
    /// # Errors
    /// Where there is no such model.
    pub fn remove(&mut self, model: &str, now: Duration) -> Result<Deleted, Refusal> {
        let ids = self.ids_of(model)?;
        let epoch = self.get(model)?.map.epoch();
        let tables = self.models.remove(model).map(|gone| gone.tables).unwrap_or_default();
        for (layer, table) in tables {
            self.left.insert(table.table, (model.to_owned(), layer));
        }
        ids.into_iter().for_each(|id| self.superseded.retire(id, now));
        Ok(Deleted { model: model.to_owned(), epoch })
    }

    /// Models as a daemon before this one had them. Their tables keep their numbers, unless the configuration has taken
    /// them: then a model gets new ones, none of which is `in_force` already, and senders have to ask again. Returns those
    /// that are not taken, with the reason: they stand in the configuration by now, or no numbers are free.
    pub fn restore(&mut self, models: Vec<Model>, in_force: &BTreeSet<BiftId>) -> Vec<(Model, Refusal)> {
        let mut refused = Vec::new();
        let mut moved = Vec::new();
        for model in models {
            let numbers: BTreeSet<_> = model.tables.values().map(|table| table.table).collect();
            let taken = |tables: &BTreeSet<u16>| !tables.is_disjoint(&numbers);
            let others: BTreeSet<_> =
                self.all().flat_map(|other| other.tables.values().map(|table| table.table)).collect();
            let name = model.map.model().to_owned();
            if self.configured.contains_key(&name) {
                refused.push((model, Refusal::Configured(name)));
            } else if self.configured.values().any(taken) || taken(&others) {
                moved.push(model);
            } else {
                self.models.insert(name, model);
            }
        }
        for model in moved {
            // Whoever knows the old numbers means what has them now: there is nothing before.
            let numbered = self.number(None, &model.map, model.map.first_table(), in_force.iter().copied());
            match numbered {
                Ok(tables) => {
                    let name = model.map.model().to_owned();
                    self.models.insert(name, Model { map: model.map, tables, before: None });
                }
                Err(refusal) => refused.push((model, refusal)),
            }
        }
        refused
    }

    /// Whether a table of a layer may be one that a daemon before this one had: its number is nobody else's by now.
    pub fn may_have_had(&self, model: &str, layer: u16, table: u16) -> bool {
        let owners = self.all().flat_map(|other| other.tables.iter().map(move |table| (other, table)));
        let mut owners = owners.filter(|(_, (_, of_layer))| of_layer.table == table);
        let own =
            |(other, (of, _)): (&Model, (&u16, &LayerTable))| other.map.model() == model && *of == layer;
        owners.all(own) && !self.configured.values().any(|tables| tables.contains(&table))
    }

    /// A table of an earlier daemon that is of no newest map, with its model, layer and epoch if they are known: senders may
    /// still use it.
    pub fn found(&mut self, id: BiftId, of: Option<(String, u16, u64)>, now: Duration) {
        self.superseded.push(Older { id, of }, now);
    }

    /// The next superseded table whose time is over.
    pub fn expired(&mut self, now: Duration) -> Option<BiftId> {
        self.superseded.expired(now)
    }

    /// A superseded table that has to make room, if there are too many of them or `full`; not those of the last moment,
    /// for senders are on their way to the newer ones.
    pub fn crowded(&mut self, full: bool, now: Duration) -> Option<BiftId> {
        self.superseded.crowded(full, now)
    }

    /// When the next superseded table's time is over.
    pub fn next_expiry(&self) -> Option<Duration> {
        self.superseded.next_expiry()
    }

    /// Superseded tables in force.
    pub fn superseded(&self) -> usize {
        self.superseded.ids_in_force().count()
    }

    /// The epochs of a model's layers.
    ///
    /// # Errors
    /// Where there is no such model.
    pub fn epochs(&self, model: &str, now: Duration) -> Result<Epochs, Refusal> {
        let model = self.get(model)?;
        let name = model.map.model();
        let newest = |(&layer, table): (&u16, &LayerTable)| {
            (layer, LayerEpochs { epoch: Some(table.epoch), superseded: Vec::new() })
        };
        let mut layers: BTreeMap<_, _> = model.tables.iter().map(newest).collect();
        for (layer, older) in self.superseded.of(name, now) {
            layers.entry(layer).or_default().superseded.push(older);
        }
        Ok(Epochs { model: name.to_owned(), epoch: model.map.epoch(), layers })
    }

    /// Each model in a line.
    pub fn summaries(&self) -> Vec<ModelSummary> {
        let summary = |model: &Model| ModelSummary {
            model: model.map.model().to_owned(),
            epoch: model.map.epoch(),
            logical_experts: model.map.experts(),
            layers: model.tables.len(),
        };
        self.all().map(summary).collect()
    }
}

impl Plan {
    /// The own BIFT-ids of tables that newer ones take the place of.
    pub fn superseded(&self) -> impl Iterator<Item = BiftId> {
        self.older.iter().map(|(_, id, _)| *id)
    }

    fn new(before: Option<&Model>, map: ExpertMap, new: BTreeMap<u16, LayerTable>) -> Self {
        let none = BTreeMap::new();
        let old = before.map_or(&none, |before| &before.tables);
        let mut tables = old.clone();
        tables.retain(|layer, _| map.layers().contains_key(layer));
        tables.extend(&new);
        // A layer that is gone, or has another number now.
        let left = |(layer, table): &(&u16, &LayerTable)| tables.get(layer) != Some(*table);
        let older: Vec<_> = old.iter().filter(left).collect();
        let layers: BTreeSet<u16> = older.iter().map(|(layer, _)| **layer).collect();
        let in_use: BTreeSet<u16> = tables.values().map(|table| table.table).collect();
        let dropped = old.values().filter(|table| !in_use.contains(&table.table));
        Self {
            older: older
                .iter()
                .filter_map(|(layer, table)| Some((**layer, table.ids()?.own, table.epoch)))
                .collect(),
            dropped: dropped.filter_map(|table| Some(table.ids()?.alias)).collect(),
            layers: new.iter().filter_map(|(layer, table)| Some((*layer, table.ids()?))).collect(),
            model: Model { map, tables, before: before.and_then(|before| before.left(&layers)) },
        }
    }
}

/// Whether the tables of a map's layers have numbers.
fn check_numbers(first_table: Option<u16>, map: &ExpertMap) -> Result<(), Refusal> {
    let beyond =
        |layer: &&u16| first_table.is_some_and(|first| usize::from(first + **layer) >= MAX_EXPERT_TABLES);
    match map.layers().keys().find(beyond) {
        None => Ok(()),
        Some(layer) => Err(Refusal::fault(
            format!("layers.{layer}"),
            "its table, `first_table` of the map in force plus the layer's number, is beyond 2047; put a full map with a \
             lower one",
        )),
    }
}

/// A layer's slots mean nothing without the ranks that they are counted on: some layers of a map can only be of the
/// same ranks and experts as the others.
fn check_alike(before: &ExpertMap, patch: &ExpertMap) -> Result<(), Refusal> {
    let mut faults = Vec::new();
    let mut differs = |path: &str, what: String| {
        let message = format!("{what}; put a full map to change it");
        faults.push(Fault { path: path.to_owned(), message });
    };
    if before.nodes() != patch.nodes() {
        differs("ranks", "not the ranks of the map in force".to_owned());
    }
    if before.experts() != patch.experts() {
        let (is, was) = (patch.experts(), before.experts());
        differs("logical_experts", format!("is {is}, and the map in force has {was}"));
    }
    if patch.first_table().is_some_and(|first| Some(first) != before.first_table()) {
        differs("first_table", "not that of the map in force".to_owned());
    }
    if faults.is_empty() { Ok(()) } else { Err(Refusal::Invalid(Faults { faults, more: 0 })) }
}
