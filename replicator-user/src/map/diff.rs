//! What changes from one map to another, as frames see it: which nodes host an expert, and with how many replicas.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use serde::Serialize;

use super::{ExpertMap, Layer};

/// The differences between two maps. Epochs, and moves between ranks of one node, are none: frames take the same ways.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Diff {
    /// The models' names, where they are not the same.
    pub model: Option<[String; 2]>,
    /// The numbers of logical experts, where they are not the same.
    pub logical_experts: Option<[usize; 2]>,
    /// Layers that the first map alone has. A partial second map leaves them as they are, so they are none then.
    pub removed_layers: Vec<u16>,
    /// Layers that the second map alone has; none where the first is partial.
    pub added_layers: Vec<u16>,
    /// Layers of both whose experts are not on the same nodes.
    pub layers: BTreeMap<u16, LayerDiff>,
}

/// What changes in a layer, in replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct LayerDiff {
    /// Replicas that are on another node.
    pub moved: usize,
    /// Replicas that an expert has more.
    pub added: usize,
    /// Replicas that an expert has less.
    pub removed: usize,
    /// The experts concerned.
    pub experts: BTreeMap<u16, Change>,
}

/// What changes for an expert: node and number of replicas.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Nodes with more of it.
    pub gained: BTreeMap<String, usize>,
    /// Nodes with less of it.
    pub lost: BTreeMap<String, usize>,
}

impl Diff {
    /// Whether frames take the same ways by both.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What changes from `old` to `new`.
pub fn diff(old: &ExpertMap, new: &ExpertMap) -> Diff {
    let only = |map: &ExpertMap, other: &ExpertMap| {
        let there = map.layers.keys().filter(|number| !other.partial && !other.layers.contains_key(number));
        there.copied().collect()
    };
    let nodes = |map: &ExpertMap, layer: &Layer| -> Vec<BTreeMap<String, usize>> {
        let names: Vec<_> = map.nodes.iter().map(String::as_str).collect();
        let hosts = layer.hosts(map.experts(), &names).into_iter();
        hosts.map(|hosts| hosts.into_iter().map(|(node, n)| (node.to_owned(), n)).collect()).collect()
    };
    let layer = |(number, a): (&u16, &Arc<Layer>)| {
        let changes = changes(&nodes(old, a), &nodes(new, new.layers.get(number)?));
        (!changes.experts.is_empty()).then_some((*number, changes))
    };
    Diff {
        model: (old.model != new.model).then(|| [old, new].map(|map| map.model.clone())),
        logical_experts: (old.experts != new.experts).then(|| [old, new].map(ExpertMap::experts)),
        removed_layers: only(old, new),
        added_layers: only(new, old),
        layers: old.layers.iter().filter_map(layer).collect(),
    }
}

fn changes(old: &[BTreeMap<String, usize>], new: &[BTreeMap<String, usize>]) -> LayerDiff {
    let mut layer = LayerDiff::default();
    let none = BTreeMap::new();
    for expert in 0..old.len().max(new.len()) {
        let [old, new] = [old, new].map(|hosts| hosts.get(expert).unwrap_or(&none));
        let mut change = Change::default();
        for node in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
            let [before, after] = [old, new].map(|hosts| hosts.get(node).copied().unwrap_or(0));
            let side = if after > before { &mut change.gained } else { &mut change.lost };
            if after != before {
                side.insert(node.clone(), after.abs_diff(before));
            }
        }
        let (gained, lost) = (change.gained.values().sum::<usize>(), change.lost.values().sum::<usize>());
        if gained + lost == 0 {
            continue;
        }
        layer.moved += gained.min(lost);
        layer.added += gained.saturating_sub(lost);
        layer.removed += lost.saturating_sub(gained);
        layer.experts.insert(expert as u16, change);
    }
    layer
}
