//! The canonical document: read, checked, written.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use replicator_common::limits::{MAX_BITS, MAX_EXPERT_TABLES, MAX_MEMBERS};

use super::{
    ExpertMap, Faults, Layer, MAX_EPOCH, MAX_SLOTS, VERSION,
    fault::Sink,
    field::{self, Field},
    tree,
};
use crate::config::{LOCAL, is_node_name, quoted};

const RANK_LIST: &str = "a list of ranks, such as [{\"rank\": 0, \"node\": \"node1\"}]";

/// What a model may be called.
pub(super) const MODEL_NAME: &str = "a name of 1 to 63 printable characters";

/// Numbers in a message that could name thousands.
const MAX_LISTED: usize = 8;

impl ExpertMap {
    /// Reads a document.
    ///
    /// # Errors
    /// With everything that is wrong with it.
    pub fn parse(json: &[u8]) -> Result<Self, Faults> {
        field::read(&tree::json(json)?, map)
    }

    /// The document, with a line for each rank and layer.
    pub fn to_json(&self) -> String {
        // `Value`'s text is JSON: a name may hold quotes.
        let text = |text: &str| serde_json::Value::from(text).to_string();
        let ranks: Vec<_> = (0..)
            .zip(&self.nodes)
            .map(|(rank, node): (usize, _)| format!("    {{ \"rank\": {rank}, \"node\": {} }}", text(node)))
            .collect();
        let layer = |(number, layer): (&u16, &Arc<Layer>)| {
            format!("    \"{number}\": {{ \"physical_to_logical_map\": {} }}", layer.json)
        };
        let layers: Vec<_> = self.layers.iter().map(layer).collect();
        let first_table = self.first_table.map(|first| format!("  \"first_table\": {first},\n"));
        format!(
            "{{\n  \"version\": {VERSION},\n  \"model\": {},\n  \"epoch\": {},\n  \"logical_experts\": {},\n{}{}  \
             \"ranks\": [\n{}\n  ],\n  \"layers\": {{\n{}\n  }}\n}}\n",
            text(&self.model),
            self.epoch,
            self.experts,
            if self.partial { "  \"partial\": true,\n" } else { "" },
            first_table.unwrap_or_default(),
            ranks.join(",\n"),
            layers.join(",\n"),
        )
    }
}

fn map(root: Field<'_>) -> Option<ExpertMap> {
    let [version, model, epoch, experts, partial, first_table, ranks, layers] = root.section([
        "version",
        "model",
        "epoch",
        "logical_experts",
        "partial",
        "first_table",
        "ranks",
        "layers",
    ])?;
    // Another version's keys mean something else: they are not looked at.
    root.require(version, "version", "write 1, the version of the format")?
        .integer(VERSION..=VERSION, "1, the only version that this build knows")?;
    let model = root
        .require(model, "model", "it says whose experts these are")
        .and_then(|field| field.text(is_model_name, MODEL_NAME));
    let epoch = root
        .require(epoch, "epoch", "it tells a newer map from an older one")
        .and_then(|field| field.integer(0..=MAX_EPOCH, "a whole number from 0 to 2^53 - 1"));
    let experts = root
        .require(experts, "logical_experts", "it is the number of the model's experts in a layer")
        .and_then(|field| field.integer(1..=MAX_BITS as u64, "a whole number from 1 to 1024"));
    let partial = partial.map_or(Some(false), |field| field.truth());
    let last_table = MAX_EXPERT_TABLES as u64 - 1;
    let first_table = first_table
        .map_or(Some(None), |field| field.integer(0..=last_table, "a table's number, 0 to 2047").map(Some));
    let nodes = root.require(ranks, "ranks", "they say on which node each rank is").and_then(|f| nodes(&f));
    let layers = root.require(layers, "layers", "they say which expert is in which slot").and_then(layers_of);
    let (model, epoch, experts, partial, first_table, nodes) =
        (model?, epoch?, experts?, partial?, first_table?, nodes?);
    let mut map = ExpertMap {
        model: model.to_owned(),
        epoch,
        experts: experts as u16,
        nodes,
        partial,
        first_table: first_table.map(|first| first as u16),
        layers: BTreeMap::new(),
    };
    for (number, field, slots) in layers? {
        map.check_table(number, field.sink);
        map.insert(number, slots, &field.path, field.sink);
    }
    Some(map)
}

pub(super) fn is_model_name(text: &str) -> bool {
    (1..=63).contains(&text.chars().count()) && !text.chars().any(char::is_control) && text.trim() == text
}

/// The node of each rank.
pub(super) fn nodes(field: &Field<'_>) -> Option<Vec<String>> {
    let items = field.items(RANK_LIST, MAX_SLOTS)?;
    let count = items.len();
    let mut nodes = vec![None; count];
    for item in items {
        let Some([rank, node]) = item.section(["rank", "node"]) else { continue };
        let what = format!("a rank from 0 to {}, as the list has {count} of them", count - 1);
        let rank = item
            .require(rank, "rank", "it is the rank's number")
            .and_then(|field| field.integer(0..=count as u64 - 1, &what));
        let node = item.require(node, "node", "it is the name of a neighbor, or `local`").and_then(|field| {
            field.text(
                is_node_name,
                "a node's name: 1 to 63 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`",
            )
        });
        let (Some(rank), Some(node)) = (rank, node) else { continue };
        let place: &mut Option<String> = &mut nodes[rank as usize];
        if place.is_some() {
            item.fault(format!("rank {rank} stands here twice; give every rank from 0 on one entry"));
        }
        place.get_or_insert(node.to_owned());
    }
    // A rank that is missing is one that another took, or that has a fault of its own.
    let nodes = nodes.into_iter().collect::<Option<Vec<_>>>()?;
    check_nodes(&nodes, &field.path, field.sink);
    (!nodes.is_empty()).then_some(nodes)
}

/// What is wrong with the nodes together.
pub(super) fn check_nodes(nodes: &[String], path: &str, sink: &Sink) {
    if nodes.is_empty() || nodes.len() > MAX_SLOTS {
        sink.push(path, format!("{} ranks; there must be 1 to {MAX_SLOTS}", nodes.len()));
    }
    if let Some(strange) = nodes.iter().find(|name| !is_node_name(name)) {
        sink.push(path, format!("{} is no node's name; take the names of neighbors", quoted(strange)));
    }
    let distinct = nodes.iter().collect::<BTreeSet<_>>().len();
    if distinct > MAX_MEMBERS {
        sink.push(
            path,
            format!(
                "{distinct} nodes, and a table reaches {MAX_MEMBERS} (`{LOCAL}` is one); let other replicators \
                 reach some of them"
            ),
        );
    }
}

/// Number, field and slots of each layer that can be read.
fn layers_of(field: Field<'_>) -> Option<Vec<(u16, Field<'_>, &[i64])>> {
    let entries = field.entries("a map of layers, such as {\"3\": {\"physical_to_logical_map\": [0, 1]}}")?;
    if entries.is_empty() {
        field.fault("no layer; a map has at least one");
    }
    let mut layers = Vec::with_capacity(entries.len().min(MAX_EXPERT_TABLES));
    for (key, layer) in entries {
        let number = key
            .parse()
            .ok()
            .filter(|number: &u16| usize::from(*number) < MAX_EXPERT_TABLES && number.to_string() == key);
        let Some(number) = number else {
            layer.fault(format!("{} is no layer; write a number from 0 to 2047", quoted(key)));
            continue;
        };
        let Some([slots]) = layer.section(["physical_to_logical_map"]) else { continue };
        let slots = layer.require(slots, "physical_to_logical_map", "it has the expert of each slot");
        let Some(slots) = slots else { continue };
        let integers = slots.integers("a list of experts, -1 for a slot without one", MAX_SLOTS);
        layers.extend(integers.map(|integers| (number, slots, integers)));
    }
    Some(layers)
}

impl ExpertMap {
    /// Whether the layer's table has a number.
    pub(super) fn check_table(&self, number: u16, sink: &Sink) {
        if self.first_table.is_some_and(|first| usize::from(first + number) >= MAX_EXPERT_TABLES) {
            let message =
                "its table, `first_table` plus the layer's number, is beyond 2047; give a lower one";
            sink.push(format!("layers.{number}"), message);
        }
    }

    /// Takes a layer, unless there is a fault in it; `path` is where its slots stand.
    pub(super) fn insert(&mut self, number: u16, slots: &[i64], path: &str, sink: &Sink) {
        let (ranks, experts) = (self.nodes.len(), self.experts());
        if slots.is_empty() || !slots.len().is_multiple_of(ranks) {
            sink.push(
                path,
                format!(
                    "{} slots on {ranks} ranks; each rank must have the same number, at least one",
                    slots.len()
                ),
            );
        }
        let mut hosted = vec![false; experts];
        let mut faulty = false;
        let mut read = Vec::with_capacity(slots.len());
        for (i, &expert) in slots.iter().enumerate() {
            match usize::try_from(expert).ok().and_then(|expert| hosted.get_mut(expert)) {
                Some(hosted) => *hosted = true,
                None if expert == -1 => {}
                None => {
                    faulty = true;
                    let last = experts - 1;
                    let what = format!("is {expert}; it must be an expert from 0 to {last}, or -1 for none");
                    sink.push(format!("{path}[{i}]"), what);
                }
            }
            read.push(u16::try_from(expert).ok());
        }
        let missing: Vec<_> = (0..experts).filter(|&expert| !hosted[expert]).collect();
        // A number out of range is likely to be the one that is missing.
        if !missing.is_empty() && !faulty {
            let mut listed: Vec<_> = missing.iter().take(MAX_LISTED).map(ToString::to_string).collect();
            if missing.len() > MAX_LISTED {
                listed.push(format!("and {} more", missing.len() - MAX_LISTED));
            }
            let message = format!(
                "no slot has expert {}; tokens for it would be lost: give it one, or leave the layer out of a \
                 partial map until every expert has one",
                listed.join(", ")
            );
            sink.push(path, message);
        }
        self.layers.insert(number, Arc::new(Layer::new(read)));
    }
}
