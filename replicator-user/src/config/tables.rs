//! Node tables and expert tables: rows written as ranges become a [`Birt`] for each table.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use replicator_common::{
    bier::{BiftId, BitStringLength},
    limits::{MAX_BITS, MAX_EXPERT_TABLES, MAX_TABLES, MAX_VARIANTS},
    neighbor::Encapsulation,
};

use super::{
    Config, Table, TableName,
    fault::quoted,
    reader::{Field, Section, nearest, range},
    schema::LOCAL,
    usage::Devices,
};
use crate::bift::{Birt, Destination, NeighborId};

pub(super) const NODE_TABLE: &[&str] =
    &["name", "bift-id", "bit-string-length", "draft-lengths", "variants", "bits"];
pub(super) const EXPERT_TABLE: &[&str] =
    &["model", "experts", "first-table", "generation", "variants", "layers"];

/// Replicas of one expert, or next hops of one node, that can be told apart: entropy picks among the variants.
const MAX_REPLICAS: usize = MAX_VARIANTS;

/// Reads both lists of tables.
pub(super) fn read(section: &Section<'_>, config: &Config) -> Vec<Table> {
    let mut reader = Reader::new(config);
    let items =
        |key, what| section.get(key).and_then(|field| field.items(what, MAX_TABLES)).unwrap_or_default();
    for field in items("node-tables", "a list of node tables") {
        reader.node_table(&field);
    }
    for field in items("expert-tables", "a list of models") {
        reader.model(&field);
    }
    reader.tables
}

struct Reader<'c> {
    config: &'c Config,
    devices: Devices<'c>,
    ids: HashMap<&'c str, NeighborId>,
    names: HashSet<String>,
    /// Which table took a BIFT-id.
    taken: HashMap<BiftId, String>,
    tables: Vec<Table>,
}

impl<'c> Reader<'c> {
    fn new(config: &'c Config) -> Self {
        let ids = config.neighbor_ids().map(|(id, neighbor)| (neighbor.name.as_str(), id)).collect();
        let devices = Devices::new(config);
        Self { config, devices, ids, names: HashSet::new(), taken: HashMap::new(), tables: Vec::new() }
    }

    fn node_table(&mut self, field: &Field<'_>) {
        let Some(section) = field.section(NODE_TABLE) else { return };
        let name =
            section.require("name", "reports call the table by it").and_then(|field| self.name(&field));
        let bift_id =
            section.require("bift-id", "frames name the table by it").and_then(|field| bift_id(&field));
        let lengths = BitStringLength::ALL.map(|length| (length.bits() as u64, length));
        let length = section.require("bit-string-length", "senders and this host must agree on it").and_then(
            |field| {
                let what = "64, 128, 256, 512 or 1024 bits";
                let bits = field.integer::<u64>(64..=1024, what)?;
                let length = lengths.iter().find(|(length, _)| *length == bits).map(|(_, length)| *length);
                length.or_else(|| {
                    field.must_be(what);
                    None
                })
            },
        );
        let draft = section.get("draft-lengths").and_then(|field| field.truth()).unwrap_or(false);
        let bits = section.require("bits", "they are the table's rows");
        let variants = variants(&section);
        let (Some(length), Some(bits)) = (length, bits) else { return };
        let rows = self.rows(&bits, "bit", 1, length.bits());
        let birt =
            birt(&bits, length, rows, variants).map(|birt| if draft { birt.with_draft_code() } else { birt });
        let (Some(name), Some(bift_id), Some(birt)) = (name, bift_id, birt) else { return };
        self.check(&bits, &birt);
        self.push(field, TableName::Nodes { name }, vec![bift_id], Arc::new(birt));
    }

    fn model(&mut self, field: &Field<'_>) {
        let Some(section) = field.section(EXPERT_TABLE) else { return };
        let model =
            section.require("model", "reports call the tables by it").and_then(|field| self.name(&field));
        let experts =
            section.require("experts", "it is the number of experts in a layer").and_then(|field| {
                field.integer::<u16>(1..=MAX_BITS as u64, "the number of experts in a layer, 1 to 1024")
            });
        let first_table = section.get("first-table").map_or(Some(0), |field| {
            field.integer::<u16>(0..=MAX_EXPERT_TABLES as u64 - 1, "the number of layer 0's table, 0 to 2047")
        });
        let generation = section.get("generation").map_or(Some(1), |field| {
            field.integer::<u8>(1..=255, "1 to 255; 0 is the alias of the newest and comes by itself")
        });
        let variants = variants(&section);
        let layers = section.require("layers", "they say where the experts are");
        let (Some(experts), Some(first_table), Some(layers)) = (experts, first_table, layers) else { return };
        let Some(length) = BitStringLength::for_bits(usize::from(experts)) else { return };
        let model: Option<Arc<str>> = model.map(Arc::from);
        let room = MAX_EXPERT_TABLES - usize::from(first_table);
        let what = "a map of layers to maps of experts, such as 0-25: { 0-31: node1, 32-63: node2 }";
        for (numbers, map) in expand(&layers, what, "layer", 0, room) {
            let rows = self.rows(&map, "expert", 0, usize::from(experts));
            let Some(birt) = birt(&map, length, rows, variants).map(Arc::new) else { continue };
            self.check(&map, &birt);
            for layer in numbers {
                // `room` keeps these within the limits.
                let (layer, table) = (layer as u16, first_table + layer as u16);
                let ids = [generation, Some(0)].into_iter().flatten();
                let bift_ids = ids.filter_map(|generation| BiftId::expert(table, generation)).collect();
                let Some(model) = model.clone() else { continue };
                self.push(&map, TableName::Experts { model, layer, experts }, bift_ids, Arc::clone(&birt));
            }
        }
    }

    fn push(&mut self, field: &Field<'_>, name: TableName, bift_ids: Vec<BiftId>, birt: Arc<Birt>) {
        let taken = bift_ids.iter().find_map(|id| Some((id, self.taken.get(id)?)));
        if let Some((id, other)) = taken {
            let remedy = match name {
                TableName::Nodes { .. } => "give it another `bift-id`",
                TableName::Experts { .. } => "give the model another `first-table`",
            };
            field.fault(format!("{name} has BIFT-id {id}, which {other} has too; {remedy}"));
            return;
        }
        self.taken.extend(bift_ids.iter().map(|&id| (id, name.to_string())));
        self.tables.push(Table { name, bift_ids, birt });
    }

    fn name(&mut self, field: &Field<'_>) -> Option<String> {
        let name = field.parse("a name of 1 to 63 printable characters", |text| {
            let printable = !text.chars().any(char::is_control) && text.trim() == text;
            ((1..=63).contains(&text.chars().count()) && printable).then(|| text.to_owned())
        })?;
        if !self.names.insert(name.clone()) {
            field
                .fault(format!("{} names another table or model too; give each its own name", quoted(&name)));
        }
        Some(name)
    }

    /// Destinations by number, `count` of them from `first` on.
    fn rows(&self, field: &Field<'_>, noun: &str, first: usize, count: usize) -> Vec<Vec<Destination>> {
        let mut rows = vec![Vec::new(); count];
        let what = format!("a map of {noun}s to nodes, such as {first}-{}: node1", first + 1);
        for (numbers, field) in expand(field, &what, noun, first, count) {
            let destinations = self.destinations(&field);
            for number in numbers {
                rows[number - first].clone_from(&destinations);
            }
        }
        rows
    }

    fn destinations(&self, field: &Field<'_>) -> Vec<Destination> {
        if !field.is_list() {
            return self.destination(field).into_iter().collect();
        }
        let items = field.items("a list of nodes", MAX_REPLICAS).unwrap_or_default();
        if items.is_empty() {
            field.fault(format!("no node; name one, or leave the row out (at most {MAX_REPLICAS} nodes)"));
        }
        let mut destinations = Vec::with_capacity(items.len());
        for item in items {
            match self.destination(&item) {
                Some(destination) if destinations.contains(&destination) => {
                    item.fault("stands here twice; keep one");
                }
                destination => destinations.extend(destination),
            }
        }
        destinations
    }

    fn destination(&self, field: &Field<'_>) -> Option<Destination> {
        let name = field.text("the name of a neighbor, or `local`, or a list of them")?;
        if name == LOCAL {
            return Some(Destination::Local);
        }
        let id = self.ids.get(name).copied();
        if id.is_none() {
            let names =
                [LOCAL].into_iter().chain(self.config.neighbors.iter().map(|other| other.name.as_str()));
            field.fault(format!("unknown neighbor {}{}", quoted(name), nearest(name, names, "neighbors")));
        }
        id.map(Destination::Neighbor)
    }

    /// What is wrong with a table beyond its rows.
    fn check(&self, field: &Field<'_>, birt: &Birt) {
        if birt.has_local() {
            self.check_local(field, birt);
        }
        // Where a route is to name a device, only the daemon can tell.
        if self.devices.are_named(birt)
            && let Err(error) = self.devices.layout(birt)
        {
            field.fault(error.to_string());
        }
    }

    /// Local copies need a way to this host's stack, and an address of each family that the table's frames have.
    fn check_local(&self, field: &Field<'_>, birt: &Birt) {
        use Encapsulation::{Ethernet, Ipv4, Ipv6};
        if self.config.origin.is_none() {
            field.fault(format!(
                "has a row with `{LOCAL}`, and no `origin` gives local copies a way; add `origin: {{}}`"
            ));
            return;
        }
        let this_node = &self.config.this_node;
        let neighbors = birt.neighbors().iter().filter_map(|&id| self.config.neighbor(id));
        let used: HashSet<_> = neighbors.map(|neighbor| neighbor.encapsulation()).collect();
        let (ipv4, ipv6) = (this_node.ipv4.is_some(), this_node.ipv6.is_some());
        let missing = if used.contains(&Ipv4) && !ipv4 {
            "`ipv4`"
        } else if used.contains(&Ipv6) && !ipv6 {
            "`ipv6`"
        } else if !ipv4 && !ipv6 && !used.contains(&Ethernet) {
            "`ipv4` or `ipv6`"
        } else {
            return;
        };
        field.fault(format!("has a row with `{LOCAL}`, and local copies need an address to go to; add {missing} to `this-node`"));
    }
}

fn bift_id(field: &Field<'_>) -> Option<BiftId> {
    let what = "a BIFT-id below 0x80000: the ids from there on belong to expert tables";
    let id = field.integer::<u32>(0..=0xf_ffff, "a BIFT-id, 20 bits: 0 to 0x7ffff")?;
    let id = BiftId::new(id).filter(|id| !id.is_expert());
    if id.is_none() {
        field.must_be(what);
    }
    id
}

fn variants(section: &Section<'_>) -> Option<usize> {
    section.get("variants").and_then(|field| {
        let what = "1, 2, 4, 8 or 16 variants";
        let variants = field.integer::<usize>(1..=MAX_VARIANTS as u64, what)?;
        if !variants.is_power_of_two() {
            field.must_be(what);
            return None;
        }
        Some(variants)
    })
}

fn birt(
    field: &Field<'_>,
    length: BitStringLength,
    rows: Vec<Vec<Destination>>,
    variants: Option<usize>,
) -> Option<Birt> {
    Birt::new(length, rows, variants).map_err(|error| field.fault(error.to_string())).ok()
}

/// The entries of a map whose keys are numbers and ranges: `count` numbers from `first` on, none twice. Ranges are
/// checked before they are walked, so that a huge one costs nothing.
fn expand<'d>(
    field: &Field<'d>,
    what: &str,
    noun: &str,
    first: usize,
    count: usize,
) -> Vec<(std::ops::RangeInclusive<usize>, Field<'d>)> {
    let last = first + count - 1;
    let mut owners = BTreeMap::<usize, (usize, &str)>::new();
    let mut expanded = Vec::new();
    for (key, field) in field.entries(what) {
        let Some(numbers) = range(key) else {
            field.fault(format!(
                "{} is no {noun}; write a number such as {first} or a range such as {first}-{}",
                quoted(key),
                first + 1
            ));
            continue;
        };
        let inside =
            |number: &u64| usize::try_from(*number).ok().filter(|number| (first..=last).contains(number));
        let (Some(from), Some(to)) = (inside(numbers.start()), inside(numbers.end())) else {
            field.fault(format!("{noun}s go from {first} to {last}"));
            continue;
        };
        // The ranges so far do not overlap, so the last that starts before this one's end is the one to meet.
        if let Some((&start, &(end, other))) = owners.range(..=to).next_back()
            && end >= from
        {
            // The same key twice is a fault already.
            if other != key {
                let common = start.max(from);
                field.fault(format!("{noun} {common} stands in {} already; give it one row", quoted(other)));
            }
            continue;
        }
        owners.insert(from, (to, key));
        expanded.push((from..=to, field));
    }
    expanded
}
