//! What the daemon answers to requests. A map is taken whole or not at all: everything that can fail comes before the
//! first word that a frame reads.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use replicator_common::{
    limits::{FBM_CHUNKS, MAX_TABLES, MEMBER_ENTRIES, ROW_CHUNKS},
    neighbor::FIRST_REMOTE_NEIGHBOR,
};
use tracing::{debug, error, info};

use super::{Daemon, RETRY, control::Request, tables::InForce};
use crate::{
    api::types::{
        Count, Deleted, Installed, ModelList, NeighborList, NeighborReport, Readiness, Stats, StatusReport,
        Traffic,
    },
    bift::Birt,
    config::LOCAL,
    datapath::{DatapathError, Prepared},
    host::resolution::Resolution,
    map::ExpertMap,
    models::{Model, Plan, Refusal},
};

/// Share of the fullest of the kernel's pools from which on superseded tables make room: the rest is for what is at
/// rest, and for the next map.
const CROWDED: f64 = 0.75;

/// Seconds after which places that are at rest can be had.
const RETRY_AFTER: u64 = 2;

impl Daemon {
    /// Answers a request. Whoever asked may have gone away meanwhile.
    pub(super) fn answer(&mut self, request: Request) {
        let now = self.started.elapsed();
        match request {
            Request::Take(map, reply) => drop(reply.send(self.take(map))),
            Request::Delete(model, reply) => drop(reply.send(self.delete(&model))),
            Request::Models(reply) => drop(reply.send(ModelList { models: self.models.summaries() })),
            Request::Map(model, reply) => {
                drop(reply.send(self.models.get(&model).map(|model| model.map().clone())));
            }
            Request::Epochs(model, reply) => drop(reply.send(self.models.epochs(&model, now))),
            Request::BiftIds(model, reply) => {
                drop(reply.send(self.models.get(&model).map(Model::installed)));
            }
            Request::Status(reply) => drop(reply.send(self.report())),
            Request::Neighbors(reply) => drop(reply.send(self.neighbors())),
            Request::Stats(reply) => drop(reply.send(self.stats())),
            Request::Readiness(reply) => drop(reply.send(self.readiness())),
        }
    }

    /// Puts a map in force.
    fn take(&mut self, map: ExpertMap) -> Result<Installed, Refusal> {
        self.models.check(&map)?;
        let birts = self.birts(&map)?;
        let plan = self.models.plan(map, self.started.elapsed())?;
        self.have_ids(&plan)?;
        let mut prepared = Vec::with_capacity(plan.layers.len());
        let kept = self
            .prepare_layers(&plan, &birts, &mut prepared)
            .and_then(|()| self.store.save(&plan.model).map_err(|error| Refusal::Storage(error.to_string())));
        if let Err(refusal) = kept {
            prepared.into_iter().for_each(|(_, table)| self.datapath.discard(table));
            if matches!(refusal, Refusal::NoRoom { retry_after: Some(_), .. }) {
                // The map is right, and newer than what is in its way.
                self.retire(true, plan.layers.len());
            }
            return Err(refusal);
        }
        // Nothing below can fail.
        let tables = prepared.len();
        for (table, prepared) in prepared {
            self.datapath.publish(prepared, &table.ids);
            self.tables.insert(table);
        }
        plan.superseded().for_each(|own| self.tables.supersede(own));
        plan.dropped.iter().for_each(|&alias| self.datapath.remove(alias));
        debug!("{}: epoch {} is in force", plan.model.map().model(), plan.model.map().epoch());
        let installed = self.models.commit(plan, self.started.elapsed());
        self.make_room(tables);
        self.tables_changed();
        Ok(installed)
    }

    /// Writes the tables of a plan where no frame looks.
    fn prepare_layers(
        &mut self,
        plan: &Plan,
        birts: &BTreeMap<u16, Arc<Birt>>,
        prepared: &mut Vec<(InForce, Prepared)>,
    ) -> Result<(), Refusal> {
        fits_at_all(birts)?;
        for (&layer, ids) in &plan.layers {
            let Some(birt) = birts.get(&layer) else { continue };
            let (places, local) = (self.places(birt), self.local_device(birt));
            let table = self.datapath.prepare(&birt.compile(), &places, local);
            let table = table.map_err(|error| match error {
                DatapathError::Full { .. } => {
                    Refusal::NoRoom { detail: error.to_string(), retry_after: Some(RETRY_AFTER) }
                }
                DatapathError::Unservable(error) => {
                    Refusal::fault(format!("layers.{layer}"), error.to_string())
                }
                error => Refusal::Internal(format!("layer {layer}: {error}")),
            })?;
            let in_force = InForce::of_layer(plan.model.map(), layer, vec![ids.own, ids.alias], birt);
            prepared.push((in_force, table));
        }
        Ok(())
    }

    /// Has superseded tables go before their time, where they would be in the way of the next map of this size.
    fn make_room(&mut self, tables: usize) {
        let full = self.datapath.pressure() > CROWDED;
        // What they take is at rest for a while, and counts as taken until then.
        let most = if full { 2 * tables } else { usize::MAX };
        self.retire(full, most);
    }

    /// Takes up to so many superseded tables out of force before their time, oldest first. How many there were.
    fn retire(&mut self, full: bool, most: usize) -> usize {
        let mut early = Vec::new();
        while early.len() < most
            && let Some(id) = self.models.crowded(full, self.started.elapsed())
        {
            early.push(id);
        }
        let count = early.len();
        if count > 0 {
            debug!("superseded tables make room before their time: {count}");
            self.retired_early += count as u64;
            self.withdraw(early);
        }
        count
    }

    /// Sees to it that there are BIFT-ids for what is new in a plan. Where superseded tables have them, those go before
    /// their time.
    fn have_ids(&mut self, plan: &Plan) -> Result<(), Refusal> {
        let in_force: BTreeSet<_> = self.datapath.bift_ids().into_iter().collect();
        let new = plan.layers.values().flat_map(|ids| [ids.own, ids.alias]);
        let wanted = in_force.len() + new.filter(|id| !in_force.contains(id)).count();
        let missing = wanted.saturating_sub(MAX_TABLES);
        if missing == 0 || self.models.superseded() >= missing && self.retire(true, missing) == missing {
            return Ok(());
        }
        let (there, superseded) = (in_force.len(), self.models.superseded());
        Err(Refusal::NoRoom {
            detail: format!(
                "{there} of {MAX_TABLES} BIFT-ids are in force, {superseded} of them superseded, and {missing} are missing \
                 for the map; delete a model, or send fewer layers"
            ),
            retry_after: (superseded >= missing).then_some(RETRY_AFTER),
        })
    }

    /// Takes a model out of force.
    fn delete(&mut self, model: &str) -> Result<Deleted, Refusal> {
        let ids = self.models.ids_of(model)?;
        self.store.remove(model).map_err(|error| Refusal::Storage(error.to_string()))?;
        self.withdraw(ids);
        let deleted = self.models.remove(model, self.started.elapsed())?;
        info!("{model}: taken out of force");
        self.tables_changed();
        Ok(deleted)
    }

    fn tables_changed(&mut self) {
        self.changes.send_modify(|changes| *changes += 1);
        self.status_is_old = true;
        // In a storm of maps it is written now and then.
        if self.status_written.elapsed() > RETRY
            && let Err(error) = self.write_status()
        {
            error!("{error}");
        }
    }

    fn resolved(&self) -> usize {
        let ready = |resolution: &&Resolution| matches!(resolution, Resolution::Ready { .. });
        self.resolutions.iter().filter(ready).count()
    }

    fn report(&self) -> StatusReport {
        StatusReport {
            version: env!("CARGO_PKG_VERSION").into(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            origin: self.origin.as_ref().map(|origin| origin.name.clone()),
            interfaces: self.interfaces.clone(),
            neighbors: Count { total: self.resolutions.len(), resolved: self.resolved() },
            models: self.models.summaries(),
            configured_tables: self.config.tables.len(),
            bift_ids: self.datapath.bift_ids().len(),
            superseded: self.models.superseded(),
            retired_early: self.retired_early,
            behind: self.is_behind(),
        }
    }

    fn neighbors(&self) -> NeighborList {
        let report = |(index, neighbor): (usize, &crate::config::Neighbor)| NeighborReport {
            name: neighbor.name.clone(),
            id: self.roster.place(index).neighbor,
            resolution: self.resolutions[index].clone().into(),
        };
        NeighborList { neighbors: self.config.neighbors.iter().enumerate().map(report).collect() }
    }

    fn stats(&self) -> Result<Stats, Refusal> {
        let counters = self.datapath.counters().map_err(|error| Refusal::Internal(error.to_string()))?;
        let mut neighbors: BTreeMap<_, _> = self
            .config
            .neighbors
            .iter()
            .map(|neighbor| (neighbor.name.clone(), Traffic::default()))
            .collect();
        if self.config.origin.is_some() {
            neighbors.insert(LOCAL.to_owned(), Traffic::default());
        }
        let names: BTreeMap<u32, &str> = (0..)
            .zip(&self.config.neighbors)
            .map(|(index, neighbor)| (self.roster.place(index).neighbor, neighbor.name.as_str()))
            .chain((0..FIRST_REMOTE_NEIGHBOR).map(|id| (id, LOCAL)))
            .collect();
        for traffic in &counters.neighbors {
            // An id that nobody has any more is no neighbor.
            if let Some(sum) = names.get(&traffic.id).and_then(|name| neighbors.get_mut(*name)) {
                sum.copies += traffic.copies;
                sum.bytes += traffic.bytes;
            }
        }
        let outcomes = counters.outcomes.iter().map(|count| (count.outcome.to_owned(), count.count));
        Ok(Stats {
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            outcomes: outcomes.collect(),
            neighbors,
        })
    }

    fn readiness(&self) -> Readiness {
        let mut missing = Vec::new();
        let attached: BTreeSet<_> = self.interfaces.iter().map(|interface| interface.name.as_str()).collect();
        let interfaces = self.config.interfaces.iter().map(|name| name.as_str());
        let origin = self.config.origin.iter().map(|origin| origin.peer.as_str());
        for name in interfaces.chain(origin).filter(|name| !attached.contains(name)) {
            missing.push(format!("{name} is not attached"));
        }
        for (neighbor, resolution) in self.config.neighbors.iter().zip(&self.resolutions) {
            if let Resolution::Pending { reason } = resolution {
                missing.push(format!("neighbor {} is not resolved: {reason}", neighbor.name));
            }
        }
        if self.tables.all().next().is_none() {
            missing.push("no map is in place, and no table is configured".to_owned());
        }
        Readiness { ready: missing.is_empty(), missing }
    }
}

/// Whether there is room for the tables of a map where nothing else is: else nothing has to make any.
fn fits_at_all(birts: &BTreeMap<u16, Arc<Birt>>) -> Result<(), Refusal> {
    let sizes = || birts.values().map(|birt| birt.size());
    let takes = [
        ("rows (in chunks of 64)", sizes().map(|size| size.rows).sum::<usize>(), ROW_CHUNKS),
        ("F-BMs (in chunks of 256 bits)", sizes().map(|size| size.fbms).sum(), FBM_CHUNKS),
        ("members", sizes().map(|size| size.members).sum(), MEMBER_ENTRIES),
    ];
    match takes.into_iter().find(|(_, takes, room)| takes > room) {
        None => Ok(()),
        Some((what, takes, room)) => Err(Refusal::NoRoom {
            detail: format!(
                "the map takes {takes} {what}, and {room} is all the room there is; send fewer layers, or put fewer \
                 replicas of an expert on different nodes"
            ),
            retry_after: None,
        }),
    }
}
