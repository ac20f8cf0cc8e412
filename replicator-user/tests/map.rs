//! Expert maps: the document and its schema, imports, tables, differences, and the command.
#![expect(clippy::unwrap_used, reason = "clippy exempts tests, not the functions that they share")]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use proptest::prelude::*;
use replicator_user::{
    bift::{Destination, NeighborId},
    map::{self, ExpertMap, Faults, Format, Import},
};
use serde_json::{Value, json};

/// The map of docs/expert-map.md: ranks 0 and 1 on node1, rank 2 on node2, two slots each.
fn small() -> Value {
    json!({
        "version": 1,
        "model": "small",
        "epoch": 7,
        "logical_experts": 4,
        "ranks": [
            { "rank": 0, "node": "node1" }, { "rank": 1, "node": "node1" }, { "rank": 2, "node": "node2" },
        ],
        "layers": {
            "3": { "physical_to_logical_map": [0, 1, 2, 0, 3, 0] },
            "4": { "physical_to_logical_map": [3, 1, 0, 2, 2, -1] },
        },
    })
}

fn parse(document: &Value) -> Result<ExpertMap, Faults> {
    ExpertMap::parse(document.to_string().as_bytes())
}

/// The small map with `value` at `pointer`; `null` takes the key away.
fn with(pointer: &str, value: Value) -> Value {
    let mut document = small();
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match (parent, value) {
        (Value::Object(map), Value::Null) => drop(map.remove(key)),
        (Value::Object(map), value) => drop(map.insert(key.to_owned(), value)),
        (Value::Array(list), value) => list[key.parse::<usize>().unwrap()] = value,
        _ => panic!("{pointer}"),
    }
    document
}

fn faults(result: Result<ExpertMap, Faults>) -> Vec<String> {
    result.unwrap_err().to_string().lines().map(str::to_owned).collect()
}

fn slots(map: &ExpertMap, layer: u16) -> Vec<i64> {
    map.layers()[&layer].slots().iter().map(|slot| slot.map_or(-1, i64::from)).collect()
}

#[test]
fn a_map_is_read_and_written() {
    let map = parse(&small()).unwrap();
    assert_eq!((map.model(), map.epoch(), map.experts(), map.is_partial()), ("small", 7, 4, false));
    assert_eq!(map.nodes(), ["node1", "node1", "node2"]);
    assert_eq!(map.layers().keys().copied().collect::<Vec<_>>(), [3, 4]);
    assert_eq!(map.layers()[&4].slots(), [Some(3), Some(1), Some(0), Some(2), Some(2), None]);
    let text = map.to_json();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), small());
    let docs = fs::read_to_string(repository().join("docs/expert-map.md")).unwrap();
    assert!(docs.contains(&format!("```json\n{text}```")), "the example is what is written:\n{text}");
    let partial = parse(&with("/partial", json!(true))).unwrap();
    assert!(partial.is_partial());
    assert_eq!(ExpertMap::parse(partial.to_json().as_bytes()), Ok(partial));
    let numbered = parse(&with("/first_table", json!(7))).unwrap();
    assert_eq!(numbered.first_table(), Some(7));
    assert_eq!(ExpertMap::parse(numbered.to_json().as_bytes()), Ok(numbered));
}

#[test]
fn ranks_may_stand_in_any_order() {
    let ranks =
        json!([{ "rank": 2, "node": "c" }, { "rank": 0, "node": "a" }, { "node": "local", "rank": 1 }]);
    assert_eq!(parse(&with("/ranks", ranks)).unwrap().nodes(), ["a", "local", "c"]);
}

/// What the schema refuses, with what the parser says of it.
fn malformed() -> Vec<(Value, &'static str)> {
    let slots = "/layers/3/physical_to_logical_map";
    vec![
        (
            json!([]),
            "is a list; it must be a map with version, model, epoch, logical_experts, partial, first_table, ranks, layers",
        ),
        (with("/version", json!(2)), "version: is 2; it must be 1, the only version that this build knows"),
        (with("/version", Value::Null), "`version` is missing; write 1, the version of the format"),
        (with("/epoch", Value::Null), "`epoch` is missing; it tells a newer map from an older one"),
        (with("/epoch", json!(-1)), "epoch: is -1; it must be a whole number from 0 to 2^53 - 1"),
        (
            with("/epoch", json!(1_u64 << 53)),
            "epoch: is 9007199254740992; it must be a whole number from 0 to 2^53 - 1",
        ),
        (with("/epoch", json!("7")), "epoch: is `7`; it must be a whole number from 0 to 2^53 - 1"),
        (with("/model", json!("")), "model: is ``; it must be a name of 1 to 63 printable characters"),
        (with("/model", json!(" a")), "model: is ` a`; it must be a name of 1 to 63 printable characters"),
        (
            with("/model", json!("a\u{7}")),
            "model: is `a\\u{7}`; it must be a name of 1 to 63 printable characters",
        ),
        (
            with("/logical_experts", json!(0)),
            "logical_experts: is 0; it must be a whole number from 1 to 1024",
        ),
        (
            with("/logical_experts", json!(1025)),
            "logical_experts: is 1025; it must be a whole number from 1 to 1024",
        ),
        (with("/partial", json!(1)), "partial: is 1; it must be true or false"),
        (with("/layer", json!({})), "unknown key `layer`; did you mean `layers`?"),
        (with("/layers", json!({})), "layers: no layer; a map has at least one"),
        (
            with("/layers/2048", json!({ "physical_to_logical_map": [0] })),
            "layers.2048: `2048` is no layer; write a number from 0 to 2047",
        ),
        (
            with("/layers/03", json!({ "physical_to_logical_map": [0] })),
            "layers.03: `03` is no layer; write a number from 0 to 2047",
        ),
        (
            with("/layers/3/physical_to_logical_maps", json!([])),
            "layers.3: unknown key `physical_to_logical_maps`; did you mean `physical_to_logical_map`?",
        ),
        (
            with(slots, Value::Null),
            "layers.3: `physical_to_logical_map` is missing; it has the expert of each slot",
        ),
        (
            with(slots, json!([0, 1, "2", 3, 0, null])),
            "layers.3.physical_to_logical_map[2]: is `2`; it must be an integer",
        ),
        (
            with(slots, json!([])),
            "layers.3.physical_to_logical_map: 0 slots on 3 ranks; each rank must have the same number, at least one",
        ),
        (
            with(slots, json!(vec![0; 4097])),
            "layers.3.physical_to_logical_map: has 4097 entries; at most 4096 fit",
        ),
        (
            with(slots, json!([0, 1, 2, 0, 3, -2])),
            "layers.3.physical_to_logical_map[5]: is -2; it must be an expert from 0 to 3, or -1 for none",
        ),
        (with("/ranks", json!([])), "ranks: 0 ranks; there must be 1 to 4096"),
        (with("/ranks/1/nodes", json!("x")), "ranks[1]: unknown key `nodes`; did you mean `node`?"),
        (
            with("/ranks/1/node", json!("a b")),
            "ranks[1].node: is `a b`; it must be a node's name: 1 to 63 of the characters a-z, A-Z, 0-9, `.`, `_` and `-`",
        ),
        (with("/ranks/0", json!(0)), "ranks[0]: is 0; it must be a map with rank, node"),
        (with("/first_table", json!(2048)), "first_table: is 2048; it must be a table's number, 0 to 2047"),
    ]
}

/// What the schema cannot say, with what the parser says of it.
fn inconsistent() -> Vec<(Value, &'static str)> {
    let slots = "/layers/3/physical_to_logical_map";
    vec![
        (
            with("/first_table", json!(2044)),
            "layers.4: its table, `first_table` plus the layer's number, is beyond 2047; give a lower one",
        ),
        (
            with("/ranks/1/rank", json!(0)),
            "ranks[1]: rank 0 stands here twice; give every rank from 0 on one entry",
        ),
        (
            with("/ranks/1/rank", json!(3)),
            "ranks[1].rank: is 3; it must be a rank from 0 to 2, as the list has 3 of them",
        ),
        (
            with(slots, json!([0, 1, 2, 3])),
            "layers.3.physical_to_logical_map: 4 slots on 3 ranks; each rank must have the same number, at least one",
        ),
        (
            with(slots, json!([0, 1, 2, 0, 4, 0])),
            "layers.3.physical_to_logical_map[4]: is 4; it must be an expert from 0 to 3, or -1 for none",
        ),
        (
            with(slots, json!([0, 1, -1, 0, 0, 0])),
            "layers.3.physical_to_logical_map: no slot has expert 2, 3; tokens for it would be lost: give it one, or \
             leave the layer out of a partial map until every expert has one",
        ),
        (
            with(
                "/ranks",
                (0..258).map(|rank| json!({ "rank": rank, "node": format!("n{rank}") })).collect(),
            ),
            "ranks: 258 nodes, and a table reaches 255 (`local` is one); let other replicators reach some of them",
        ),
    ]
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

#[test]
fn schema_and_parser_agree() {
    let text = fs::read_to_string(repository().join("docs/expert-map.schema.json")).unwrap();
    let (mut schemas, mut compiler) = (boon::Schemas::new(), boon::Compiler::new());
    compiler.add_resource("map.json", serde_json::from_str(&text).unwrap()).unwrap();
    let schema = compiler.compile("map.json", &mut schemas).unwrap();
    let accepts = |document: &Value| schemas.validate(document, schema).is_ok();

    let longest = "é".repeat(63);
    let good = [
        small(),
        with("/partial", json!(true)),
        with("/partial", json!(false)),
        with("/first_table", json!(0)),
        with("/first_table", json!(2043)),
        with("/model", json!("deepseek-ai/DeepSeek V3")),
        with("/model", json!(longest)),
        with("/epoch", json!((1_u64 << 53) - 1)),
        with("/epoch", json!(0)),
        with("/ranks/0/node", json!("local")),
        with("/layers/2047", json!({ "physical_to_logical_map": [0, 1, 2, 3, -1, -1] })),
        with("/layers/0", json!({ "physical_to_logical_map": [3, 2, 1, 0, 0, 0, 0, 0, 0] })),
    ];
    for document in &good {
        assert!(accepts(document), "{document}");
        parse(document).unwrap();
    }
    assert!(!accepts(&with("/model", json!("é".repeat(64)))));
    assert!(parse(&with("/model", json!("é".repeat(64)))).is_err());
    for (document, expected) in malformed() {
        assert!(!accepts(&document), "{document}");
        assert_eq!(faults(parse(&document))[0], expected);
    }
    for (document, expected) in inconsistent() {
        assert!(accepts(&document), "{document}");
        assert_eq!(faults(parse(&document))[0], expected);
    }
}

#[test]
fn all_faults_are_told_at_once() {
    let text = r#"{"version": 1, "model": "m", "model": "n", "epoch": 1.5, "logical_experts": 2, "rank": [],
        "ranks": [{"rank": 0, "node": "a", "node": "b"}],
        "layers": {"0": {"physical_to_logical_map": [0, 1]}, "0": {"physical_to_logical_map": [0, [1], 1e99]}}}"#;
    assert_eq!(
        faults(ExpertMap::parse(text.as_bytes())),
        [
            "`model` stands here twice; keep one",
            "unknown key `rank`; did you mean `ranks`?",
            "epoch: is `1.5`; it must be a whole number from 0 to 2^53 - 1",
            "ranks[0]: `node` stands here twice; keep one",
            "layers: `0` stands here twice; keep one",
            "layers.0.physical_to_logical_map[1]: is a list; it must be an integer",
            &format!(
                "layers.0.physical_to_logical_map[2]: is `1{}`; it must be an integer",
                "0".repeat(59) + "..."
            ),
        ]
    );
    let far = with("/layers/3/physical_to_logical_map", json!(vec![9; 60]));
    let all = parse(&far).unwrap_err();
    assert_eq!((all.faults.len(), all.more), (50, 10));
}

#[test]
fn hostile_texts_are_refused() {
    let started = std::time::Instant::now();
    for (text, why) in [
        (vec![b'['; 1 << 20], "recursion limit exceeded"),
        (vec![b' '; (16 << 20) + 1], "more than 16777216 bytes; send some layers at a time"),
        (format!("[{}1]", "[],".repeat(200_000)).into_bytes(), "more than 100000 keys and values"),
        (format!("[{}\"\"]", "1,".repeat(200_000)).into_bytes(), "more than 100000 keys and values"),
        (format!("[{}1]", "1,".repeat(8 << 20 >> 1)).into_bytes(), "is a list; it must be a map"),
        (b"{} {}".to_vec(), "trailing characters at line 1 column 4"),
        (b"{\"version\": 1".to_vec(), "EOF while parsing an object at line 1 column 13"),
        (b"\xff".to_vec(), "not UTF-8 text from byte 0 on; save it as UTF-8"),
        (b"PK\x03\x04rest".to_vec(), "a pickle (.pt)"),
        (b"\x80\x02}q".to_vec(), "a pickle (.pt)"),
        (b"".to_vec(), "EOF while parsing a value"),
    ] {
        let found = faults(ExpertMap::parse(&text));
        assert!(found.len() == 1 && found[0].contains(why), "{why}: {found:?}");
    }
    let with = import_with(&["a"]);
    let yaml = |text: &str| faults(map::import(Format::TensorRtLlm, text.as_bytes(), &with))[0].clone();
    assert!(yaml(&"[".repeat(1 << 20)).contains("open brackets"));
    let bomb = format!("a: &a [{}]\nb: [{}]\n", "1,".repeat(10_000), "*a,".repeat(1_000));
    assert!(yaml(&bomb).contains("more than 8388608 integers"), "{}", yaml(&bomb));
    assert!(started.elapsed().as_secs() < 120, "{:?}", started.elapsed());
}

fn to(index: usize) -> Destination {
    Destination::Neighbor(NeighborId::remote(index).unwrap())
}

#[test]
fn tables_have_a_bit_for_each_expert() {
    let map = parse(&small()).unwrap();
    let neighbors = |names: &[(&str, Destination)]| -> BTreeMap<String, Destination> {
        names.iter().map(|&(name, destination)| (name.to_owned(), destination)).collect()
    };
    let two = neighbors(&[("node1", to(0)), ("node2", to(1)), ("local", Destination::Local)]);
    let birts = map.birts(&two, None).unwrap();
    assert_eq!(birts.keys().copied().collect::<Vec<_>>(), [3, 4]);
    let rows = birts[&3].replicas();
    assert_eq!((birts[&3].length().bits(), rows.len()), (64, 64));
    // Expert 0 is on ranks 0 and 1 (node1) and 2 (node2).
    assert_eq!(rows[0], [to(0), to(1), to(0)]);
    assert_eq!(rows[1..4], [vec![to(0)], vec![to(0)], vec![to(1)]]);
    assert!(rows[4..].iter().all(Vec::is_empty));
    assert_eq!(birts[&3].variants(), 8);
    // Expert 2 of layer 4 has a slot on rank 1 and one on rank 2.
    assert_eq!(birts[&4].replicas()[..4], [vec![to(0)], vec![to(0)], vec![to(0), to(1)], vec![to(0)]]);
    assert_eq!(map.birts(&two, Some(4)).unwrap()[&4].variants(), 4);

    // On node1 its own replicas serve alone; two names of one next hop are one.
    let own = neighbors(&[("node1", Destination::Local), ("node2", to(1))]);
    assert_eq!(map.birts(&own, None).unwrap()[&3].replicas()[0], [Destination::Local]);
    let same = neighbors(&[("node1", to(5)), ("node2", to(5))]);
    assert_eq!(map.birts(&same, None).unwrap()[&3].replicas()[0], [to(5)]);

    let error = map.birts(&neighbors(&[("node2", to(1))]), None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "ranks[0].node: unknown neighbor `node1`; did you mean `node2`?\n\
         ranks[1].node: unknown neighbor `node1`; did you mean `node2`?"
    );
    let error = map.birts(&two, Some(3)).unwrap_err();
    assert_eq!(error.faults[0].path, "layers.3");
    assert_eq!(error.faults[0].message, "3 variants; take 1, 2, 4, 8 or 16");
}

fn import_with(nodes: &[&str]) -> Import {
    Import {
        model: "m".to_owned(),
        epoch: 1,
        nodes: nodes.iter().map(|&name| name.to_owned()).collect(),
        experts: None,
        first_layer: 0,
        partial: false,
        first_table: None,
    }
}

fn import(format: Format, document: &Value, with: &Import) -> Result<ExpertMap, Faults> {
    map::import(format, document.to_string().as_bytes(), with)
}

/// The example of the README of deepseek-ai/EPLB (MIT): 2 layers, 12 experts, 16 replicas, 2 nodes with 4 GPUs each.
const PHY2LOG: [[i64; 16]; 2] =
    [[5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1], [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1]];
const EIGHT: [&str; 8] = ["n1", "n1", "n1", "n1", "n2", "n2", "n2", "n2"];

#[test]
fn deepseeks_example_comes_out_as_published() {
    let map = import(Format::DeepseekEplb, &json!({ "phy2log": PHY2LOG }), &import_with(&EIGHT)).unwrap();
    assert_eq!(map.experts(), 12);
    assert_eq!([0, 1].map(|layer| slots(&map, layer)), PHY2LOG.map(Vec::from));
    let nodes = [("n1".to_owned(), to(0)), ("n2".to_owned(), to(1))].into();
    let rows = map.birts(&nodes, None).unwrap()[&0].replicas()[..12].to_vec();
    // The algorithm packs groups of experts on nodes: 5, 6, 7, 8, 4, 3 on the first, the others on the second.
    let node = |expert| if (3..=8).contains(&expert) { to(0) } else { to(1) };
    assert_eq!(rows, (0..12).map(|expert| vec![node(expert)]).collect::<Vec<_>>());
}

#[test]
fn the_golden_file_comes_out_as_published() {
    let file = repository().join("../shared/data/eplb_golden.json");
    let Ok(text) = fs::read(&file) else {
        println!("skipped: {} is not there", file.display());
        return;
    };
    let map = map::import(Format::DeepseekEplb, &text, &import_with(&EIGHT)).unwrap();
    assert_eq!([0, 1].map(|layer| slots(&map, layer)), PHY2LOG.map(Vec::from));
    assert_eq!(map.experts(), 12);
    let four = map::import(Format::DeepseekEplb, &text, &import_with(&EIGHT[..4]));
    assert_eq!(
        faults(four),
        ["num_gpus: is 8; it must be the number of ranks, and there are 4; correct --nodes"]
    );
}

#[test]
fn deepseeks_other_outputs_must_agree() {
    let with = import_with(&["a", "b"]);
    let document = |log2phy: Value, logcnt: Value| json!({ "phy2log": [[0, 1, 0, 2]], "log2phy": log2phy, "logcnt": logcnt });
    let right = document(json!([[[2, 0], [1, -1], [3, -1]]]), json!([[2, 1, 1]]));
    assert_eq!(import(Format::DeepseekEplb, &right, &with).unwrap().experts(), 3);
    let wrong = document(json!([[[0, -1], [1, -1], [3, -1]]]), json!([[2, 2, 1]]));
    assert_eq!(
        faults(import(Format::DeepseekEplb, &wrong, &with)),
        [
            "logcnt[0][1]: is 2, and `phy2log` has 1; they are not of the same map",
            "log2phy[0][0]: not the slots that `phy2log` gives the expert; they are not of the same map",
        ]
    );
    // An expert without a replica shows where the other outputs say how many there are.
    let fewer = document(json!([[[0, 2], [1, -1], [3, -1], [-1, -1]]]), json!([[2, 1, 1, 0]]));
    assert!(
        faults(import(Format::DeepseekEplb, &fewer, &with))[0]
            .starts_with("phy2log[0]: no slot has expert 3;")
    );
    let layers = document(json!([]), json!([[2, 1, 1]]));
    assert_eq!(
        faults(import(Format::DeepseekEplb, &layers, &with)),
        ["log2phy: 0 layers, and `phy2log` has 1"]
    );
}

#[test]
fn maps_of_sglang() {
    let with = Import { epoch: 4, partial: true, ..import_with(&["a", "b"]) };
    let document = json!({ "physical_to_logical_map": [[0, 1, 1, 2], [2, 1, 0, 0]], "other": { "x": null } });
    let map = import(Format::Sglang, &document, &with).unwrap();
    assert_eq!((map.epoch(), map.experts(), map.is_partial()), (4, 3, true));
    assert_eq!([0, 1].map(|layer| slots(&map, layer)), [[0, 1, 1, 2], [2, 1, 0, 0]]);
    assert_eq!(
        faults(import(Format::Sglang, &json!({ "logical_count": [[5, 6]] }), &with)),
        [
            "`logical_count` alone is how many tokens each expert got, and SGLang makes a map of it when it starts; \
             give the `physical_to_logical_map` that it made"
        ]
    );
    assert_eq!(
        faults(import(Format::Sglang, &json!({ "physical_to_logical_map": [[0, 1], [0, -1]] }), &with)),
        [
            "physical_to_logical_map[1][1]: is -1; only vLLM's maps have slots without an expert",
            "physical_to_logical_map[1]: no slot has expert 1; tokens for it would be lost: give it one, or leave the \
             layer out of a partial map until every expert has one",
        ]
    );
}

#[test]
fn maps_of_vllm() {
    let with = Import { first_layer: 3, experts: Some(3), ..import_with(&["a", "b", "c"]) };
    let rows = json!([[0, 1, 2, 0, -1, -1], [2, 1, 0, 0, 1, 2]]);
    for document in [rows.clone(), json!({ "physical_to_logical_map": rows })] {
        let map = import(Format::Vllm, &document, &with).unwrap();
        assert_eq!([3, 4].map(|layer| slots(&map, layer)), [[0, 1, 2, 0, -1, -1], [2, 1, 0, 0, 1, 2]]);
    }
    for (rows, expected) in [
        (json!([[0, 1, 2, 0]]), "[0]: 4 slots on 3 ranks; each rank must have the same number, at least one"),
        (json!([[0, 1, 2], [0, 1, 3]]), "[1][2]: is 3; it must be an expert from 0 to 2, or -1 for none"),
        (json!([[0, 1, 2], "x"]), "[1]: is `x`; it must be a list with the expert of each slot"),
        (
            json!([0, 1, 2]),
            "is a list; it must be a list of layers, each a list with the expert of each slot",
        ),
        (json!([]), "no layer; a map has at least one"),
        (json!(vec![[0, 1, 2]; 2046]), "has 2046 entries; at most 2045 fit"),
    ] {
        assert_eq!(faults(import(Format::Vllm, &rows, &with))[0], expected);
    }
    for (with, expected) in [
        (
            Import { model: String::new(), ..with.clone() },
            "model: must be a name of 1 to 63 printable characters",
        ),
        (
            Import { epoch: u64::MAX, ..with.clone() },
            "epoch: is 18446744073709551615; the largest is 2^53 - 1",
        ),
        (Import { nodes: vec![], ..with.clone() }, "ranks: 0 ranks; there must be 1 to 4096"),
        (import_with(&["a", "b!"]), "ranks: `b!` is no node's name; take the names of neighbors"),
        (Import { experts: Some(1025), ..with }, "logical_experts: 1025 experts; there must be 1 to 1024"),
    ] {
        assert_eq!(faults(import(Format::Vllm, &json!([[0, 1, 2, 0, 1, 2]]), &with))[0], expected);
    }
}

#[test]
fn maps_of_tensorrt_llm() {
    let text = "num_slots: 4\nlayer_updates_per_iter: 2\ninitial_global_assignments:\n  3: [0, 1, 1, 2]\n  10:\n  - 2\n  - 1\n  - 0\n  - 0\n";
    let with = import_with(&["a", "b"]);
    let read = |text: &str| map::import(Format::TensorRtLlm, text.as_bytes(), &with);
    let map = read(text).unwrap();
    assert_eq!(map.layers().keys().copied().collect::<Vec<_>>(), [3, 10]);
    assert_eq!([3, 10].map(|layer| slots(&map, layer)), [[0, 1, 1, 2], [2, 1, 0, 0]]);
    for (text, expected) in [
        (
            text.replace("3: [0, 1, 1, 2]", "3: [0, 2]"),
            "initial_global_assignments.3: has 2 slots, and `num_slots` is another number",
        ),
        (text.replace("  10:", "  3:"), "initial_global_assignments: `3` stands here twice; keep one"),
        (
            text.replace("  10:", "  x:"),
            "initial_global_assignments.x: is no layer; the key is a number from 0 to 2047",
        ),
        (
            "num_slots: 4\n".to_owned(),
            "`initial_global_assignments` is missing; without it TensorRT-LLM places the experts itself, and the file \
             does not say where",
        ),
    ] {
        assert_eq!(faults(read(&text))[0], expected);
    }
}

#[test]
fn differences_are_told_by_node() {
    let old = parse(&small()).unwrap();
    let same = |pointer, value| map::diff(&old, &parse(&with(pointer, value)).unwrap()).is_empty();
    let slots = "/layers/3/physical_to_logical_map";
    assert!(same("/epoch", json!(8)));
    assert!(same(slots, json!([0, 2, 1, 0, 3, 0])), "within node1");
    assert!(!same(slots, json!([0, 3, 2, 0, 1, 0])));
    assert!(!same("/model", json!("other")));

    // Expert 1 moves to node2, expert 3 to node1, expert 0 loses its replica there, expert 2 gains one.
    let new = parse(&with(slots, json!([0, 3, 2, 0, 1, 2]))).unwrap();
    let diff = map::diff(&old, &new);
    assert_eq!(diff.layers.keys().copied().collect::<Vec<_>>(), [3]);
    let layer = &diff.layers[&3];
    assert_eq!((layer.moved, layer.added, layer.removed), (2, 1, 1));
    let nodes = |node: &str| BTreeMap::from([(node.to_owned(), 1)]);
    let change = |expert| (layer.experts[&expert].lost.clone(), layer.experts[&expert].gained.clone());
    assert_eq!(change(0), (nodes("node2"), BTreeMap::new()));
    assert_eq!(change(1), (nodes("node1"), nodes("node2")));
    assert_eq!(change(2), (BTreeMap::new(), nodes("node2")));
    assert_eq!(change(3), (nodes("node2"), nodes("node1")));

    let mut fewer = with("/layers/4", Value::Null);
    let lost = map::diff(&old, &parse(&fewer).unwrap());
    assert_eq!((lost.removed_layers, lost.layers.len()), (vec![4], 0));
    let back = map::diff(&parse(&fewer).unwrap(), &old);
    assert_eq!(back.added_layers, [4]);
    fewer["partial"] = json!(true);
    assert!(map::diff(&old, &parse(&fewer).unwrap()).is_empty(), "the rest stays");
}

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("map-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn write(&self, name: &str, value: &Value) -> String {
        fs::write(self.0.join(name), value.to_string()).unwrap();
        self.path(name)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn replicator(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_replicator")).arg("map").args(arguments).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[test]
fn the_command_imports() {
    let folder = Folder::new("import");
    let file = folder.write("p2l.json", &json!([[0, 1, 1, 2], [2, 1, 0, 0]]));
    let ranks = folder.write("ranks.json", &json!([{ "rank": 1, "node": "b" }, { "rank": 0, "node": "a" }]));
    let common = ["import", "--from", "vllm", &file, "--model", "m", "--epoch", "5", "--first-layer", "1"];
    let by_file = replicator(&[&common[..], &["--ranks", &ranks]].concat());
    assert!(by_file.status.success(), "{by_file:?}");
    let map = ExpertMap::parse(&by_file.stdout).unwrap();
    assert_eq!((map.nodes(), slots(&map, 2)), (&["a".to_owned(), "b".to_owned()][..], vec![2, 1, 0, 0]));

    let to = folder.write("map.json", &json!("old"));
    let by_name =
        [&common[..], &["--nodes", "a,b", "--ranks-per-node", "2", "--partial", "--to", &to]].concat();
    let written = replicator(&by_name);
    assert!(written.status.success() && written.stdout.is_empty(), "{written:?}");
    let map = ExpertMap::parse(&fs::read(&to).unwrap()).unwrap();
    assert_eq!((map.nodes().join(" "), map.is_partial()), ("a a b b".to_owned(), true));
    assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 3, "nothing is left beside it");

    let failed = replicator(&[&common[..], &["--nodes", "a,b,c", "--to", &to]].concat());
    assert_eq!(failed.status.code(), Some(1));
    let text = String::from_utf8(failed.stderr).unwrap();
    assert!(text.contains("p2l.json is not valid: [0]: 4 slots on 3 ranks"), "{text}");
    assert_eq!(ExpertMap::parse(&fs::read(&to).unwrap()), Ok(map), "the old one is still there");
    assert_eq!(replicator(&common).status.code(), Some(2), "ranks are needed");
    let device = replicator(&[&common[..], &["--nodes", "a,b", "--to", "/dev/null"]].concat());
    assert_eq!(device.status.code(), Some(1));
}

#[test]
fn the_command_shows_and_compares() {
    let folder = Folder::new("show");
    let old = folder.write("old.json", &small());
    let new = folder.write("new.json", &with("/layers/3/physical_to_logical_map", json!([0, 3, 2, 0, 1, 0])));
    let wrong = folder.write("wrong.json", &json!({}));
    let shown = replicator(&["show", &old]);
    assert_eq!(
        stdout(&shown),
        "small, epoch 7, 4 logical experts, full map\n\n\
         Nodes\n  name   ranks\n  node1  0-1\n  node2  2\n\n\
         Layers\n  layers  physical  per rank  empty  replicas at most  nodes\n  \
         3       6         2         0      3                 2\n  \
         4       6         2         1      2                 2\n"
    );
    let shown: Value = serde_json::from_slice(&replicator(&["show", "--json", &old]).stdout).unwrap();
    assert_eq!(shown["nodes"], json!({ "node1": [0, 1], "node2": [2] }));
    assert_eq!(
        shown["layers"]["4"],
        json!({ "slots": 6, "slots_per_rank": 2, "empty_slots": 1, "most_replicas": 2, "nodes": 2 })
    );
    assert_eq!(replicator(&["show", &wrong]).status.code(), Some(1));

    let same = replicator(&["diff", &old, &old]);
    assert_eq!((same.status.code(), stdout(&same)), (Some(0), String::new()));
    let differs = replicator(&["diff", &old, &new]);
    assert_eq!(differs.status.code(), Some(1));
    assert_eq!(
        stdout(&differs),
        "layer 3: replicas moved 2, added 0, removed 0\n  expert 1: -node1 +node2\n  expert 3: -node2 +node1\n"
    );
    let as_json: Value = serde_json::from_slice(&replicator(&["diff", "--json", &old, &new]).stdout).unwrap();
    assert_eq!(
        as_json["layers"]["3"]["experts"]["1"],
        json!({ "gained": { "node2": 1 }, "lost": { "node1": 1 } })
    );
    assert_eq!(replicator(&["diff", &old, &wrong]).status.code(), Some(2));
    assert_eq!(replicator(&["diff", &old, "/nonexistent"]).status.code(), Some(2));
}

/// JSON of any shape, with the keys and numbers of maps in it.
fn any_json() -> impl Strategy<Value = Value> {
    let keys = prop_oneof![
        Just("version"),
        Just("model"),
        Just("ranks"),
        Just("layers"),
        Just("rank"),
        Just("phy2log"),
        Just("physical_to_logical_map"),
        Just("log2phy"),
        Just("logcnt"),
        Just("num_gpus"),
        Just("num_slots"),
        Just("initial_global_assignments"),
        Just("3"),
        Just(""),
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-2_i64..6).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,4}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 64, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec(-2_i64..6, 0..6).prop_map(Value::from),
            prop::collection::vec((keys.clone(), inner), 0..6).prop_map(|entries| entries
                .into_iter()
                .map(|(key, value)| (key.to_owned(), value))
                .collect()),
        ]
    })
}

const FORMATS: [Format; 4] = [Format::DeepseekEplb, Format::Sglang, Format::Vllm, Format::TensorRtLlm];

/// Nothing panics, and what is taken reads back as it is.
fn feed(bytes: &[u8], with: &Import) {
    let results = FORMATS.map(|format| map::import(format, bytes, with));
    for map in results.into_iter().chain([ExpertMap::parse(bytes)]).flatten() {
        assert_eq!(ExpertMap::parse(map.to_json().as_bytes()), Ok(map.clone()));
        let neighbors = map.nodes().iter().cloned().zip((0..).map(to)).collect();
        for birt in map.birts(&neighbors, None).unwrap().values() {
            assert!(birt.replicas()[..map.experts()].iter().all(|row| !row.is_empty()));
        }
        assert!(map::diff(&map, &map).is_empty());
    }
    let _ = map::ranks(bytes);
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_panics_on_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        feed(&bytes, &import_with(&["a", "b"]));
    }

    #[test]
    fn nothing_panics_on_any_json(
        value in any_json(),
        pointer in prop_oneof![
            Just("/version"), Just("/epoch"), Just("/ranks"), Just("/ranks/1"), Just("/ranks/1/rank"),
            Just("/layers"), Just("/layers/3"), Just("/layers/3/physical_to_logical_map"),
            Just("/layers/3/physical_to_logical_map/1"), Just("/logical_experts"),
        ],
        first_layer: u16,
        experts in prop::option::of(0_usize..2000),
    ) {
        let import = Import { first_layer, experts, ..import_with(&["a", "b"]) };
        feed(value.to_string().as_bytes(), &import);
        feed(with(pointer, value).to_string().as_bytes(), &import);
    }

    #[test]
    fn nothing_panics_on_damaged_maps(at in 0_usize..300, byte: u8) {
        let mut bytes = small().to_string().into_bytes();
        let at = at % bytes.len();
        bytes[at] = byte;
        feed(&bytes, &import_with(&["a"]));
        feed(&bytes[..at], &import_with(&["a"]));
    }

    /// Maps of vLLM with replicas and holes come out as they went in.
    #[test]
    fn valid_maps_are_taken(ranks in 1_usize..6, more in prop::collection::vec(-1_i64..4, 0..20)) {
        let mut row: Vec<i64> = [0, 1, 2, 3].into_iter().chain(more).collect();
        row.resize(row.len().next_multiple_of(ranks), -1);
        let nodes: Vec<_> = (0..ranks).map(|rank| format!("n{}", rank / 2)).collect();
        let nodes: Vec<_> = nodes.iter().map(String::as_str).collect();
        let map = import(Format::Vllm, &json!([row]), &import_with(&nodes)).unwrap();
        prop_assert_eq!(slots(&map, 0), row);
    }
}

#[test]
fn a_map_in_force_is_the_daemons_to_tell() {
    let nowhere = ["--api", "/nonexistent/control.sock"];
    let text = |output: &Output| String::from_utf8(output.stderr.clone()).unwrap();
    let folder = Folder::new("in-force");
    let file = &*folder.write("map.json", &small());
    let asked = |arguments: &[&str]| replicator(&[arguments, &nowhere].concat());
    let absent = "error: no daemon answers at /nonexistent/control.sock: No such file or directory";
    for (arguments, status) in
        [(&["show", "live:small"][..], 1), (&["diff", "live:small", file], 2), (&["push", file], 1)]
    {
        let output = asked(arguments);
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(text(&output).starts_with(absent), "{}", text(&output));
    }
    // Without `live:` nobody is asked.
    assert!(asked(&["show", file]).status.success());
    for wrong in [&["show", "live:"][..], &["push", file, "--api", "http://node1:80"]] {
        assert_eq!(replicator(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let incomplete = replicator(&["push", file, "--api", "https://node1:8139"]);
    assert_eq!(
        (incomplete.status.code(), text(&incomplete).as_str()),
        (Some(1), "error: https needs the token and the certificates to trust; give --token-file and --ca\n")
    );
}

#[test]
fn the_screen_wants_a_terminal() {
    let output = Command::new(env!("CARGO_BIN_EXE_replicator")).arg("top").output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(text.contains("`replicator stats` prints the counts"), "{text}");
}
