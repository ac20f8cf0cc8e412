//! The control API of the dispatching node's replicator, as a framework uses it: maps go there, BIFT-ids come back.

use std::{
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use replicator_common::bier::{BiftId, BitStringLength};
use replicator_tests::{
    api::{Api, segment},
    lab::Host,
};
use serde_json::{Map, Value, json};

use super::{cluster::node_name, epochs::Epoch, placement::Placement};

/// How long a map is sent again that there is no room for yet.
const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to the replicator.
pub(super) struct Control {
    api: Api,
    model: String,
    experts: u32,
    nodes: u32,
}

/// A map ready to be sent.
pub(super) struct Request<'a> {
    epoch: &'a Epoch,
    method: &'static str,
    path: String,
    body: String,
}

/// A map in force.
pub(super) struct InForce {
    /// Its epoch.
    pub epoch: u16,
    /// Layer -> BIFT-id, for the layers in the map.
    pub tables: Vec<Option<BiftId>>,
    /// From the request to the answer.
    pub after: Duration,
}

impl Control {
    /// Connects to the replicator of `host`, for maps of this model.
    ///
    /// # Errors
    /// Where none listens.
    pub(super) fn connect(host: &Host, model: &str, experts: u32, nodes: u32) -> Result<Self> {
        let api = Api::connect(host).context("cannot connect to the replicator's control API")?;
        Ok(Self { api, model: model.to_owned(), experts, nodes })
    }

    /// The request that puts a map in force.
    pub(super) fn request<'a>(&self, epoch: &'a Epoch) -> Request<'a> {
        let (method, what) = if epoch.partial { ("PATCH", "layers") } else { ("PUT", "map") };
        Request {
            epoch,
            method,
            path: format!("/v1/models/{}/{what}", segment(&self.model)),
            body: document(epoch, &self.model, self.experts, self.nodes),
        }
    }

    /// Sends a map and waits until it is in force.
    ///
    /// # Errors
    /// Where it is refused, or the answer does not say how to name the tables.
    pub(super) fn send(&mut self, request: &Request<'_>) -> Result<InForce> {
        let Request { epoch, method, path, body } = request;
        let what = format!("{method} {path} with epoch {}", epoch.number);
        let start = Instant::now();
        let answer = loop {
            let answer = self.api.request(method, path, body);
            let answer = answer.with_context(|| format!("no answer to {what}"))?;
            let retry = answer.header.iter().find(|(name, _)| name == "retry-after");
            match retry.and_then(|(_, seconds)| seconds.parse().ok()) {
                Some(seconds) if answer.status == 503 && start.elapsed() < PATIENCE => {
                    thread::sleep(Duration::from_secs(seconds));
                }
                _ => break answer,
            }
        };
        let after = start.elapsed();
        ensure!(answer.status == 200, "{what} was refused with status {}: {}", answer.status, answer.text);
        let tables = tables(&answer.json(), epoch, self.experts)
            .with_context(|| format!("{what} was answered with {}", answer.text))?;
        Ok(InForce { epoch: epoch.number, tables, after })
    }
}

/// An expert map's document, as docs/expert-map.md has it.
fn document(epoch: &Epoch, model: &str, experts: u32, nodes: u32) -> String {
    let ranks: Vec<Value> = (0..nodes).map(|node| json!({ "rank": node, "node": node_name(node) })).collect();
    let layers: Map<String, Value> = epoch
        .layers
        .iter()
        .enumerate()
        .filter_map(|(number, placement)| {
            Some((number.to_string(), json!({ "physical_to_logical_map": placement.as_ref()?.slots() })))
        })
        .collect();
    json!({
        "version": 1,
        "model": model,
        "epoch": epoch.number,
        "logical_experts": experts,
        "partial": epoch.partial,
        "ranks": ranks,
        "layers": layers,
    })
    .to_string()
}

/// The BIFT-ids in an answer to a map.
///
/// # Errors
/// Where they are not of the layers in the map, each in this epoch, or frames are to be of another form.
fn tables(answer: &Value, epoch: &Epoch, experts: u32) -> Result<Vec<Option<BiftId>>> {
    let length = BitStringLength::for_bits(experts as usize).map_or(0, BitStringLength::bits);
    ensure!(answer["bit_string_length"] == length, "BitStrings are not of {length} bits");
    let layers = answer["layers"].as_object().context("it has no layers")?;
    ensure!(layers.len() == usize::from(epoch.layers()), "it has {} layers", layers.len());
    let table = |(number, placement): (usize, &Option<Placement>)| {
        let Some(_) = placement else { return Ok(None) };
        let table = layers.get(&number.to_string()).with_context(|| format!("it has no layer {number}"))?;
        ensure!(table["epoch"] == epoch.number, "layer {number} is of another epoch");
        let id = table["bift_id"].as_u64().and_then(|id| BiftId::new(id.try_into().ok()?));
        id.with_context(|| format!("layer {number} has no BIFT-id")).map(Some)
    };
    epoch.layers.iter().enumerate().map(table).collect()
}

#[cfg(test)]
mod tests {
    use replicator_user::map::ExpertMap;

    use super::*;
    use crate::demo::{epochs::Epochs, model::Model};

    #[test]
    fn every_map_is_without_faults_and_says_where_the_experts_are() {
        for (model, nodes) in [(Model::DeepseekV2Lite, 8), (Model::DeepseekV3, 32), (Model::Mixtral8x7b, 128)]
        {
            let shape = model.shape();
            let epochs = Epochs::draw(shape, nodes, 12, 100, 1);
            for epoch in epochs.all() {
                let text = document(epoch, "a model/v1 (8-bit)", shape.experts, nodes);
                let map = ExpertMap::parse(text.as_bytes()).unwrap();
                assert_eq!(map.model(), "a model/v1 (8-bit)");
                assert_eq!((map.epoch(), map.is_partial()), (u64::from(epoch.number), epoch.partial));
                assert_eq!(map.layers().len(), usize::from(epoch.layers()));
                assert!(map.nodes().iter().cloned().eq((0..nodes).map(node_name)));
                for (&number, layer) in map.layers() {
                    let placement = epochs.placement(epoch.number, number).unwrap();
                    let per_rank = layer.slots().len() / nodes as usize;
                    let mut found = vec![None; shape.experts as usize];
                    for (slot, expert) in layer.slots().iter().enumerate() {
                        let Some(expert) = expert else { continue };
                        let before = found[usize::from(*expert)].replace((slot / per_rank) as u32);
                        assert_eq!(before, None, "expert {expert} of layer {number} is there twice");
                    }
                    let expected: Vec<_> = (0..shape.experts).map(|e| Some(placement.node(e))).collect();
                    assert_eq!(found, expected, "epoch {}, layer {number}", epoch.number);
                }
            }
        }
    }

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        assert_eq!(segment("deepseek-v2_l.i~te"), "deepseek-v2_l.i~te");
        assert_eq!(segment("ai/V2 (8-bit) é%"), "ai%2FV2%20%288-bit%29%20%C3%A9%25");
    }

    #[test]
    fn tables_are_read_only_from_an_answer_about_this_epoch() {
        let answer = |epoch: u64, layer: &str, id: u64| {
            json!({ "model": "m", "epoch": 5, "bit_string_length": 64,
                "layers": { layer: { "epoch": epoch, "bift_id": id, "alias": 0, "table": 0, "generation": 1 } } })
        };
        let id = BiftId::expert(9, 6).unwrap();
        let number = u64::from(id.get());
        let layers = vec![None, Some(Placement::consecutive(64, 8))];
        let epoch = Epoch { number: 5, partial: true, layers, experts_moved: 0 };
        assert_eq!(tables(&answer(5, "1", number), &epoch, 64).unwrap(), [None, Some(id)]);
        let mut more = answer(5, "1", number);
        more["layers"]["0"] = more["layers"]["1"].clone();
        for (what, wrong) in [
            ("another epoch", answer(4, "1", number)),
            ("another layer", answer(5, "0", number)),
            ("a layer more", more),
            ("no BIFT-id", answer(5, "1", 1 << 20)),
            ("no answer", Value::Null),
        ] {
            assert!(tables(&wrong, &epoch, 64).is_err(), "{what}");
        }
        assert!(tables(&answer(5, "1", number), &epoch, 65).is_err(), "another length");
    }
}
