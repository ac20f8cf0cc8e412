//! Which numbers new tables get: of 2,048 tables, and of 255 generations of each.

use std::collections::{BTreeMap, BTreeSet};

use replicator_common::limits::MAX_EXPERT_TABLES;

use super::Refusal;

/// Generations of a table, 1 to 255; 0 is the alias of the newest.
const GENERATIONS: u64 = u8::MAX as u64;

/// Seconds after which a generation of a table that had too many may be free again.
const RETRY_AFTER: u64 = 1;

/// What is taken.
pub(super) struct Numbers<'m> {
    /// Tables of other models, with whose they are.
    others: BTreeMap<u16, &'m str>,
    /// Tables of this model and of models that are gone, each with the generations that are in force or at rest.
    generations: BTreeMap<u16, BTreeSet<u8>>,
    /// Tables of layers that are gone, with whose they were: others get them last, for senders may know the alias.
    left: &'m BTreeMap<u16, (String, u16)>,
    /// Tables given out now.
    given: BTreeSet<u16>,
}

impl<'m> Numbers<'m> {
    pub(super) fn new(
        others: impl Iterator<Item = (u16, &'m str)>,
        left: &'m BTreeMap<u16, (String, u16)>,
    ) -> Self {
        Self { others: others.collect(), generations: BTreeMap::new(), given: BTreeSet::new(), left }
    }

    pub(super) fn take(&mut self, table: u16, generation: u8) {
        self.generations.entry(table).or_default().insert(generation);
    }

    /// The table that the map itself wants for a layer.
    pub(super) fn fixed(&self, model: &str, layer: u16, table: u16) -> Result<u16, Refusal> {
        let own = |(name, of): &(String, u16)| name == model && *of == layer;
        let had = self.left.get(&table).is_some_and(|owner| !own(owner));
        match self.others.get(&table) {
            // Frames may be under way that name its alias and mean another's layer.
            None if had && self.generations.get(&table).is_some_and(|taken| taken.contains(&0)) => {
                Err(Refusal::NoRoom {
                    detail: format!(
                        "table {table}, which is to be layer {layer}'s, was another's a moment ago"
                    ),
                    retry_after: Some(RETRY_AFTER),
                })
            }
            None => Ok(table),
            Some(other) => Err(Refusal::fault(
                "first_table",
                format!("gives layer {layer} table {table}, which `{other}` has; give another"),
            )),
        }
    }

    /// A table that nobody has for a layer: the one it had before, or the lowest that nobody had, or the lowest.
    pub(super) fn free_table(&mut self, model: &str, layer: u16) -> Result<u16, Refusal> {
        let unclaimed = |table: &u16| !self.others.contains_key(table) && !self.given.contains(table);
        let free = |table: &u16| unclaimed(table) && !self.generations.contains_key(table);
        let own = self.left.iter().filter(|(_, (name, of))| name == model && *of == layer);
        let own = own.map(|(table, _)| *table).find(unclaimed);
        let all = || (0..MAX_EXPERT_TABLES as u16).filter(free);
        let table =
            own.or_else(|| all().find(|table| !self.left.contains_key(table))).or_else(|| all().next());
        let table = table.ok_or_else(|| Refusal::NoRoom {
            detail: format!("all {MAX_EXPERT_TABLES} numbers of expert tables are taken; delete a model"),
            retry_after: None,
        })?;
        self.given.insert(table);
        Ok(table)
    }

    /// A generation of the table that is neither in force nor at rest. It follows from the epoch where it can, so that
    /// all hosts that get the same map have the same.
    pub(super) fn free_generation(&self, table: u16, epoch: u64) -> Result<u8, Refusal> {
        let taken = self.generations.get(&table);
        let numbers = (0..GENERATIONS).map(|i| (1 + (epoch % GENERATIONS + i) % GENERATIONS) as u8);
        let mut free = numbers.filter(|number| !taken.is_some_and(|taken| taken.contains(number)));
        free.next().ok_or_else(|| Refusal::NoRoom {
            detail: format!(
                "all {GENERATIONS} generations of table {table} are in force; send maps less often"
            ),
            retry_after: Some(RETRY_AFTER),
        })
    }
}
