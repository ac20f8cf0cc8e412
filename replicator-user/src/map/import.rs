//! Files of serving frameworks, as maps.

use std::collections::BTreeMap;

use replicator_common::limits::{MAX_BITS, MAX_EXPERT_TABLES};

use super::{
    ExpertMap, Faults, MAX_EPOCH, MAX_SLOTS,
    document::{MODEL_NAME, check_nodes, is_model_name, nodes},
    fault::Sink,
    field::{self, Field},
    tree,
};

/// Whose file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// JSON with what `rebalance_experts` of DeepSeek's EPLB returns: `phy2log`, and `log2phy` and `logcnt` if there
    DeepseekEplb,
    /// JSON as SGLang's --init-expert-location takes it: `physical_to_logical_map`
    Sglang,
    /// JSON of vLLM's `physical_to_logical_map`, alone or under this name; -1 is a slot without an expert
    Vllm,
    /// TensorRT-LLM's YAML: `num_slots` and `initial_global_assignments`
    #[value(name = "tensorrt-llm")]
    TensorRtLlm,
}

/// What a file does not say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Import {
    /// The model's name.
    pub model: String,
    /// The map's epoch.
    pub epoch: u64,
    /// The node of each rank.
    pub nodes: Vec<String>,
    /// Logical experts of a layer; `None` takes them from the file: what it says, or up to the highest expert in it.
    pub experts: Option<usize>,
    /// The number of the first layer of a file that does not number its layers.
    pub first_layer: u16,
    /// Whether layers that are not in the file stay as they are.
    pub partial: bool,
    /// Number of layer 0's table, where all hosts are to have the same.
    pub first_table: Option<u16>,
}

/// The rows of a file with where they stand, and what it says of the number of experts.
struct Rows<'d> {
    layers: Vec<(u16, Field<'d>, &'d [i64])>,
    experts: Option<usize>,
}

const MATRIX: &str = "a list of layers, each a list with the expert of each slot";

/// Reads a framework's file. Keys that are not needed are not looked at.
///
/// # Errors
/// With everything that is wrong with the file, or with what it does not say.
pub fn import(format: Format, file: &[u8], with: &Import) -> Result<ExpertMap, Faults> {
    let root = match format {
        Format::TensorRtLlm => tree::yaml(file)?,
        _ => tree::json(file)?,
    };
    field::read(&root, |root| {
        let rows = match format {
            Format::DeepseekEplb => deepseek(&root, with),
            Format::Sglang => sglang(&root, with),
            Format::Vllm => vllm(&root, with),
            Format::TensorRtLlm => tensorrt(&root),
        };
        map(with, rows?, format == Format::Vllm, root.sink)
    })
}

/// Reads the node of each rank from JSON: the `ranks` of a map, alone.
///
/// # Errors
/// With everything that is wrong with it.
pub fn ranks(file: &[u8]) -> Result<Vec<String>, Faults> {
    field::read(&tree::json(file)?, |root| nodes(&root))
}

fn map(with: &Import, rows: Rows<'_>, may_be_empty: bool, sink: &Sink) -> Option<ExpertMap> {
    if !is_model_name(&with.model) {
        sink.push("model", format!("must be {MODEL_NAME}"));
    }
    if with.epoch > MAX_EPOCH {
        sink.push("epoch", format!("is {}; the largest is 2^53 - 1", with.epoch));
    }
    check_nodes(&with.nodes, "ranks", sink);
    if rows.layers.is_empty() {
        sink.push("", "no layer; a map has at least one");
    }
    if !may_be_empty {
        for (_, field, slots) in &rows.layers {
            if let Some(slot) = slots.iter().position(|&expert| expert < 0) {
                let message = format!("is {}; only vLLM's maps have slots without an expert", slots[slot]);
                sink.push(format!("{}[{slot}]", field.path), message);
            }
        }
    }
    let highest = rows.layers.iter().flat_map(|(_, _, slots)| *slots).max().copied().unwrap_or(0);
    let highest = usize::try_from(highest).unwrap_or(0).saturating_add(1);
    let experts = with.experts.or(rows.experts).unwrap_or(highest);
    if !(1..=MAX_BITS).contains(&experts) {
        sink.push("logical_experts", format!("{experts} experts; there must be 1 to {MAX_BITS}"));
        return None;
    }
    if with.nodes.is_empty() {
        return None;
    }
    let mut map = ExpertMap {
        model: with.model.clone(),
        epoch: with.epoch,
        experts: experts as u16,
        nodes: with.nodes.clone(),
        partial: with.partial,
        first_table: with.first_table,
        layers: BTreeMap::new(),
    };
    for (number, field, slots) in rows.layers {
        map.check_table(number, sink);
        map.insert(number, slots, &field.path, sink);
    }
    Some(map)
}

/// The rows of a matrix, numbered from the first layer on.
fn matrix<'d>(field: &Field<'d>, with: &Import) -> Option<Vec<(u16, Field<'d>, &'d [i64])>> {
    let room = MAX_EXPERT_TABLES.saturating_sub(with.first_layer.into());
    let rows = field.items(MATRIX, room)?;
    let row = |(number, row): (u16, Field<'d>)| {
        let slots = row.integers("a list with the expert of each slot", MAX_SLOTS)?;
        Some((number, row, slots))
    };
    // All are looked at before the first that cannot be read ends it.
    let rows: Vec<_> = (with.first_layer..).zip(rows).map(row).collect();
    rows.into_iter().collect()
}

/// The field of this name in a map with others.
fn get<'d>(root: &Field<'d>, key: &str) -> Option<Field<'d>> {
    let entries = root.entries("a map")?;
    entries.into_iter().find(|(name, _)| *name == key).map(|(_, field)| field)
}

fn deepseek<'d>(root: &Field<'d>, with: &Import) -> Option<Rows<'d>> {
    let field = get(root, "phy2log");
    let field = root.require(field, "phy2log", "it has the expert of each slot, for each layer")?;
    let layers = matrix(&field, with)?;
    if let Some(gpus) = get(root, "num_gpus") {
        let ranks = with.nodes.len() as u64;
        gpus.integer(ranks..=ranks, &format!("the number of ranks, and there are {ranks}; correct --nodes"));
    }
    // Experts of a layer, as each of the others has them.
    let mut experts = None;
    if let Some(counts) = get(root, "logcnt").and_then(|field| paired(&field, &layers)) {
        for (row, (_, _, slots)) in counts.iter().zip(&layers) {
            let counts = row.integers("a list with the number of replicas of each expert", MAX_BITS)?;
            experts = Some(counts.len());
            for (expert, &count) in counts.iter().enumerate() {
                let slots = slots.iter().filter(|&&slot| slot == expert as i64).count();
                if count != slots as i64 {
                    row.sink.push(
                        format!("{}[{expert}]", row.path),
                        format!("is {count}, and `phy2log` has {slots}; they are not of the same map"),
                    );
                }
            }
        }
    }
    if let Some(places) = get(root, "log2phy").and_then(|field| paired(&field, &layers)) {
        for (row, (_, _, slots)) in places.iter().zip(&layers) {
            let of_experts = row.items("a list with the slots of each expert", MAX_BITS)?;
            experts = Some(of_experts.len());
            for (expert, field) in of_experts.iter().enumerate() {
                let listed = field.integers("a list of slots, padded with -1", MAX_SLOTS)?;
                let mut listed: Vec<_> = listed.iter().copied().filter(|&slot| slot != -1).collect();
                listed.sort_unstable();
                let numbered = (0_i64..).zip(*slots);
                let there = numbered.filter(|(_, slot)| **slot == expert as i64).map(|(number, _)| number);
                if !there.eq(listed) {
                    field
                        .fault("not the slots that `phy2log` gives the expert; they are not of the same map");
                }
            }
        }
    }
    Some(Rows { layers, experts })
}

/// The items of a list with one for each layer.
fn paired<'d, T>(field: &Field<'d>, layers: &[T]) -> Option<Vec<Field<'d>>> {
    let items = field.items("a list with an item for each layer", MAX_EXPERT_TABLES)?;
    if items.len() != layers.len() {
        field.fault(format!("{} layers, and `phy2log` has {}", items.len(), layers.len()));
        return None;
    }
    Some(items)
}

fn sglang<'d>(root: &Field<'d>, with: &Import) -> Option<Rows<'d>> {
    let field = get(root, "physical_to_logical_map");
    if field.is_none() && get(root, "logical_count").is_some() {
        root.fault(
            "`logical_count` alone is how many tokens each expert got, and SGLang makes a map of it when it starts; give \
             the `physical_to_logical_map` that it made",
        );
        return None;
    }
    let why = "it has the expert of each slot, for each layer";
    let field = root.require(field, "physical_to_logical_map", why)?;
    Some(Rows { layers: matrix(&field, with)?, experts: None })
}

fn vllm<'d>(root: &Field<'d>, with: &Import) -> Option<Rows<'d>> {
    if root.is_map() { sglang(root, with) } else { Some(Rows { layers: matrix(root, with)?, experts: None }) }
}

fn tensorrt<'d>(root: &Field<'d>) -> Option<Rows<'d>> {
    let slots_of_all = root
        .require(get(root, "num_slots"), "num_slots", "it is the number of slots of a layer")
        .and_then(|field| field.integer(1..=MAX_SLOTS as u64, "the number of slots of a layer, 1 to 4096"));
    let why = "without it TensorRT-LLM places the experts itself, and the file does not say where";
    let key = "initial_global_assignments";
    let field = root.require(get(root, key), key, why)?;
    let mut layers = Vec::new();
    for (key, field) in field.entries("a map of layers to lists with the expert of each slot")? {
        let Some(number) = key.parse().ok().filter(|&number: &u16| usize::from(number) < MAX_EXPERT_TABLES)
        else {
            field.fault("is no layer; the key is a number from 0 to 2047");
            continue;
        };
        let Some(slots) = field.integers("a list with the expert of each slot", MAX_SLOTS) else { continue };
        if slots_of_all.is_some_and(|count| count != slots.len() as u64) {
            field.fault(format!("has {} slots, and `num_slots` is another number", slots.len()));
        }
        layers.push((number, field, slots));
    }
    Some(Rows { layers, experts: None })
}
