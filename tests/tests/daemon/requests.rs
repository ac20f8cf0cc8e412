//! Sequences of requests, right and wrong, against a model of what should be in force; and what the kernel has.

use std::{
    collections::BTreeMap,
    thread,
    time::{Duration, Instant},
};

use replicator_common::bier::{BiftId, BitStringLength};
use replicator_tests::{
    api::{Api, segment},
    lab::Daemon,
    random::Random,
};
use replicator_user::client::Destinations;
use serde_json::{Value, json};

use crate::{
    load::{get, percentile},
    network::*,
};

const NODES: u8 = 3;
const EXPERTS: usize = 6;

/// What should be in force of a model.
#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    epoch: u64,
    ranks: usize,
    /// Epoch and slots.
    layers: BTreeMap<u16, (u64, Vec<i64>)>,
}

type Models = BTreeMap<String, Model>;

/// A map as a client would send it, before anything is made wrong with it.
#[derive(Clone)]
struct Draft {
    model: String,
    epoch: u64,
    ranks: usize,
    partial: bool,
    layers: BTreeMap<u16, Vec<i64>>,
}

impl Draft {
    fn json(&self) -> Value {
        let ranks: Vec<_> = (0..self.ranks)
            .map(|rank| json!({ "rank": rank, "node": format!("node{}", 1 + rank % usize::from(NODES)) }))
            .collect();
        let layer = |(number, slots): (&u16, &Vec<i64>)| {
            (number.to_string(), json!({ "physical_to_logical_map": slots }))
        };
        json!({
            "version": 1, "model": self.model, "epoch": self.epoch, "logical_experts": EXPERTS,
            "partial": self.partial, "ranks": ranks,
            "layers": self.layers.iter().map(layer).collect::<serde_json::Map<_, _>>(),
        })
    }
}

/// Slots of a layer: every expert once, the rest at random or empty.
fn slots(random: &mut Random, ranks: usize) -> Vec<i64> {
    let count = EXPERTS.next_multiple_of(ranks) + ranks;
    let mut slots: Vec<i64> = (0..EXPERTS as i64).collect();
    slots.resize_with(count, || random.below(EXPERTS + 1) as i64 - 1);
    for at in (1..count).rev() {
        slots.swap(at, random.below(at + 1));
    }
    slots
}

fn draft(random: &mut Random, models: &Models) -> Draft {
    let model = random.one_of(&["a", "b", "with/slash and é"]).to_owned();
    let present = models.get(&model);
    let partial = random.below(2) == 0;
    let ranks = match present {
        Some(present) if partial => present.ranks,
        _ => random.one_of(&[1, 2, 3, 6]),
    };
    let layers = (0..1 + random.below(3)).map(|_| (random.below(5) as u16, slots(random, ranks))).collect();
    let epoch = present.map_or(0, |present| present.epoch) + random.below(3) as u64;
    Draft { model, epoch, ranks, partial, layers }
}

/// What an answer to a map should be: status, code, and the path of the first fault.
#[derive(Debug, PartialEq)]
struct Expected(u16, &'static str, &'static str);

const TAKEN: Expected = Expected(200, "", "");

/// What is right about a map as it is, given what is in force.
fn verdict(draft: &Draft, models: &Models) -> Expected {
    match models.get(&draft.model) {
        Some(present) if draft.epoch <= present.epoch => Expected(409, "stale-epoch", ""),
        None if draft.partial => Expected(404, "unknown-model", ""),
        Some(present) if draft.partial && present.ranks != draft.ranks => {
            Expected(422, "invalid-map", "ranks")
        }
        _ => TAKEN,
    }
}

fn apply(draft: &Draft, models: &mut Models) {
    let model = models.entry(draft.model.clone()).or_default();
    if !draft.partial {
        *model = Model { ranks: draft.ranks, ..Model::default() };
    }
    model.epoch = draft.epoch;
    model.layers.extend(draft.layers.iter().map(|(layer, slots)| (*layer, (draft.epoch, slots.clone()))));
}

fn path(model: &str, partial: bool) -> String {
    format!("/v1/models/{}/{}", segment(model), if partial { "layers" } else { "map" })
}

/// Makes something wrong with a map. Body, path and method, and what is to be said of it.
fn spoil(draft: &Draft, random: &mut Random, models: &Models) -> (String, String, &'static str, Expected) {
    let (mut document, partial) = (draft.json(), draft.partial);
    let mut method = if partial { "PATCH" } else { "PUT" };
    let mut to = path(&draft.model, partial);
    let layer = *draft.layers.keys().next().unwrap();
    let invalid = |path| Expected(422, "invalid-map", path);
    let slots = format!("/layers/{layer}/physical_to_logical_map");
    let expected = match random.below(11) {
        0 => {
            document["epoch"] = json!(-1);
            invalid("epoch")
        }
        1 => {
            // Names are looked up in what fits to what is in force.
            document["ranks"][0]["node"] = json!("node9");
            match verdict(draft, models) {
                TAKEN if partial => invalid("ranks"),
                TAKEN => invalid("ranks[0].node"),
                other => other,
            }
        }
        2 => {
            let all = document.pointer_mut(&slots).unwrap().as_array_mut().unwrap();
            all.iter_mut().for_each(|slot| *slot = json!(0));
            invalid("layers.N")
        }
        3 => {
            *document.pointer_mut(&slots).unwrap().get_mut(0).unwrap() = json!(EXPERTS);
            invalid("layers.N")
        }
        4 => {
            document["extra"] = json!(1);
            invalid("")
        }
        5 => {
            document["partial"] = json!(!partial);
            invalid("partial")
        }
        6 => {
            document["model"] = json!("another");
            invalid("model")
        }
        7 => {
            document["version"] = json!(2);
            invalid("version")
        }
        8 => {
            to = to.replace("/v1/", "/v2/");
            Expected(404, "not-found", "")
        }
        9 => {
            method = "POST";
            Expected(405, "method-not-allowed", "")
        }
        _ => {
            let text = document.to_string();
            return (text[..text.len() - 1 - random.below(40)].to_owned(), to, method, invalid(""));
        }
    };
    (document.to_string(), to, method, expected)
}

/// What the API says is in force.
fn in_force(api: &mut Api) -> Models {
    let list = get(api, "/v1/models");
    let names = list["models"].as_array().unwrap().iter();
    names
        .map(|summary| {
            let name = summary["model"].as_str().unwrap();
            let map = get(api, &path(name, false));
            let ids = get(api, &format!("/v1/models/{}/bift-ids", segment(name)));
            assert_eq!((&map["epoch"], &ids["epoch"]), (&summary["epoch"], &summary["epoch"]));
            let layer = |(number, layer): (&String, &Value)| {
                let slots = layer["physical_to_logical_map"].as_array().unwrap();
                let epoch = ids["layers"][number]["epoch"].as_u64().unwrap();
                let slots = slots.iter().map(|slot| slot.as_i64().unwrap()).collect();
                (number.parse().unwrap(), (epoch, slots))
            };
            let model = Model {
                epoch: map["epoch"].as_u64().unwrap(),
                ranks: map["ranks"].as_array().unwrap().len(),
                layers: map["layers"].as_object().unwrap().iter().map(layer).collect(),
            };
            (name.to_owned(), model)
        })
        .collect()
}

/// Every expert of every layer reaches one node that hosts it, by the layer's own BIFT-id and by its alias.
fn check_kernel(cluster: &Cluster, api: &mut Api, models: &Models, sinks: &mut [Sink]) {
    let mut dispatcher = dispatcher(&cluster.sender, ORIGIN_V4, TABLE);
    for (name, model) in models {
        let ids = get(api, &format!("/v1/models/{}/bift-ids", segment(name)));
        for (layer, (_, slots)) in &model.layers {
            for id in ["bift_id", "alias"] {
                let id = ids["layers"][layer.to_string()][id].as_u64().unwrap() as u32;
                dispatcher.set_table(BiftId::new(id).unwrap(), BitStringLength::B64);
                let experts: Vec<u32> = (0..EXPERTS as u32).collect();
                dispatcher.dispatch(Destinations::Experts(&experts), 1, b"all").unwrap();
                dispatcher.flush().unwrap();
                let per_rank = slots.len() / model.ranks;
                let hosts = |node: usize, bit: usize| {
                    let own = slots.iter().enumerate().filter(|(_, slot)| **slot == bit as i64 - 1);
                    own.map(|(slot, _)| slot / per_rank % usize::from(NODES)).any(|host| host == node)
                };
                let mut served = Vec::new();
                until("every expert is served", || {
                    for (node, sink) in sinks.iter_mut().enumerate() {
                        for arrival in sink.take(0) {
                            assert!(
                                arrival.bits.iter().all(|&bit| hosts(node, bit)),
                                "{name} {layer}: {arrival:?} {slots:?}"
                            );
                            served.extend(arrival.bits);
                        }
                    }
                    served.len() >= EXPERTS
                });
                served.sort_unstable();
                assert_eq!(served, (1..=EXPERTS).collect::<Vec<_>>(), "{name} {layer} {id:#x}: {slots:?}");
            }
        }
    }
}

#[test]
fn any_sequence_of_requests_leaves_what_it_should() {
    const STEPS: usize = 400;
    let cluster = Cluster::new(NODES);
    let mut sinks = cluster.sinks();
    let daemon = Daemon::start(&cluster.sender, &binary(), &cluster.config()).unwrap();
    let mut api = Api::connect(&cluster.sender).unwrap();
    let (mut random, mut models) = (Random(5), Models::new());
    let mut seen = BTreeMap::<_, usize>::new();
    for step in 0..STEPS {
        let draft = draft(&mut random, &models);
        let (body, to, method, expected) = match random.below(10) {
            0..=2 => spoil(&draft, &mut random, &models),
            3 => {
                let expected = if models.remove(&draft.model).is_some() {
                    TAKEN
                } else {
                    Expected(404, "unknown-model", "")
                };
                (String::new(), path(&draft.model, true).replace("/layers", ""), "DELETE", expected)
            }
            _ => {
                let expected = verdict(&draft, &models);
                if expected == TAKEN {
                    apply(&draft, &mut models);
                }
                let method = if draft.partial { "PATCH" } else { "PUT" };
                (draft.json().to_string(), path(&draft.model, draft.partial), method, expected)
            }
        };
        // Now and then it is sent twice, as a client does that lost the first answer.
        let repeated = expected == TAKEN && method != "DELETE" && random.below(4) == 0;
        let answers = [Some(expected), repeated.then_some(Expected(409, "stale-epoch", ""))];
        for Expected(status, code, fault) in answers.into_iter().flatten() {
            let answer = api.request(method, &to, &body).unwrap();
            let told = answer.json();
            let context = format!("step {step}: {method} {to}\n{body}\n{}", answer.text);
            assert_eq!(answer.status, status, "{context}");
            *seen.entry((status, code)).or_default() += 1;
            if status != 200 {
                assert_eq!(told["code"], code, "{context}");
                assert!(told["detail"].as_str().is_some_and(|detail| detail.len() > 10), "{context}");
            }
            if code == "invalid-map" {
                let first = told["faults"][0]["path"].as_str().unwrap();
                let fault = fault.replace("layers.N", "layers.");
                assert!(
                    if fault.is_empty() { first.is_empty() } else { first.starts_with(&fault) },
                    "{context}"
                );
            }
            if code == "stale-epoch" {
                assert_eq!(told["epoch"], models[&draft.model].epoch, "{context}");
            }
        }
        assert_eq!(in_force(&mut api), models, "step {step}: {method} {to}\n{body}");
        if step % 40 == 39 {
            check_kernel(&cluster, &mut api, &models, &mut sinks);
        }
    }
    eprintln!("{seen:?}");
    assert!(seen.len() >= 6 && seen.values().all(|count| *count >= 3), "all kinds of answers: {seen:?}");
    assert!(daemon.stop().unwrap().success());

    // What is in force is there after a restart, as it was.
    let _daemon = Daemon::start(&cluster.sender, &binary(), &cluster.config()).unwrap();
    let mut api = Api::connect(&cluster.sender).unwrap();
    assert_eq!(in_force(&mut api), models);
    check_kernel(&cluster, &mut api, &models, &mut sinks);
}

#[test]
fn what_is_too_large_or_cut_off_changes_nothing() {
    let cluster = Cluster::new(NODES);
    let _daemon = Daemon::start(&cluster.sender, &binary(), &cluster.config()).unwrap();
    let connect = || Api::connect(&cluster.sender).unwrap();
    let mut api = connect();
    let layers = [(0, vec![0, 1, 2, 3, 4, 5])].into();
    let draft = Draft { model: "a".into(), epoch: 1, ranks: 3, partial: false, layers };
    let body = draft.json().to_string();
    assert_eq!(api.request("PUT", "/v1/models/a/map", &body).unwrap().status, 200);
    let before = in_force(&mut api);

    // By its length alone, before any of it arrives.
    let head = |length: usize| {
        format!("PUT /v1/models/a/map HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n")
    };
    let mut large = connect();
    large.send_raw(head((16 << 20) + 1).as_bytes()).unwrap();
    let answer = large.answer().unwrap();
    assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("too-large")));
    // Without a length.
    let mut chunked = connect();
    chunked
        .send_raw(b"PUT /v1/models/a/map HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        .unwrap();
    let chunk = [format!("{:x}\r\n", 1 << 20).into_bytes(), vec![b' '; 1 << 20], b"\r\n".to_vec()].concat();
    // The server may close its end before all of it is sent.
    while chunked.send_raw(&chunk).is_ok() {}
    if let Ok(answer) = chunked.answer() {
        assert_eq!(answer.status, 413);
    }
    // Cut off at every kind of place.
    let next = Draft { epoch: 2, ..draft }.json().to_string();
    for end in [0, 1, next.len() / 2, next.len() - 1] {
        let mut cut = connect();
        cut.send_raw((head(next.len()) + &next[..end]).as_bytes()).unwrap();
        drop(cut);
    }
    let mut garbage = connect();
    garbage.send_raw(b"\x16\x03\x01\x02\x00 not http\r\n\r\n").unwrap();
    let _ = garbage.answer();
    assert_eq!(in_force(&mut api), before);
    assert_eq!(api.request("GET", "/livez", "").unwrap().status, 200);
    assert_eq!(api.request("PUT", "/v1/models/a/map", &next).unwrap().status, 200);
}

/// From request to in force while frames flow, on 64 nodes: the shapes of large models, with redundant experts of which
/// some have four replicas, so with 4 variants. REPLICATOR_MAP_RUNS says how many maps of each.
#[test]
fn a_full_map_of_a_large_model_is_soon_in_force() {
    const NODES: usize = 64;
    /// Layers, logical experts, physical experts.
    const SHAPES: [(usize, usize, usize); 3] = [(58, 256, 320), (94, 128, 192), (61, 256, 320)];
    let cluster = Cluster::new(1);
    let neighbors: String = (0..NODES)
        .map(|n| format!("  n{n}: {{ address: 10.0.1.{}, mac: \"02:00:00:00:09:{n:02x}\" }}\n", 2 + n))
        .collect();
    let config =
        cluster.config().replace("neighbors:\n", &format!("epoch-grace: 1\nneighbors:\n{neighbors}"));
    let _daemon = Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let mut api = Api::connect(&cluster.sender).unwrap();
    let mut random = Random(3);
    let runs = std::env::var("REPLICATOR_MAP_RUNS").map_or(10, |runs| runs.parse().unwrap());
    for (layers, experts, physical) in SHAPES {
        let maps: Vec<_> =
            (1..=runs).map(|epoch| large_map(&mut random, epoch, NODES, layers, experts, physical)).collect();
        let bytes = maps[0].len();
        let put = || {
            let mut times = Vec::new();
            let begin = Instant::now();
            for (body, number) in maps.into_iter().zip(0..) {
                // Faster than that, and there would be no room for what is superseded.
                let due = begin + Duration::from_millis(100) * number;
                thread::sleep(due.saturating_duration_since(Instant::now()));
                let start = Instant::now();
                let answer = api.request("PUT", "/v1/models/large/map", &body).unwrap();
                times.push(start.elapsed());
                assert_eq!(answer.status, 200, "{}", answer.text);
                assert_eq!(answer.json()["layers"].as_object().unwrap().len(), layers);
            }
            times
        };
        let load = dispatcher(&cluster.sender, ORIGIN_V4, TABLE);
        let (mut times, stream) = Stream::run(load, &[1], cluster.sinks(), put);
        assert_eq!(stream.lost(), [0], "of {}", stream.sent);
        let (median, p99) = (percentile(&mut times, 0.5), percentile(&mut times, 0.99));
        eprintln!(
            "{layers} layers of {experts} experts in {physical} slots: {runs} maps of {bytes} bytes, p50 {median:.1} ms, \
             p99 {p99:.1} ms; {} frames",
            stream.sent
        );
        // What a build without optimizations takes on a busy machine; docs/testing.md has what one with them does.
        assert!(median < 2000.0);
        assert_eq!(api.request("DELETE", "/v1/models/large", "").unwrap().status, 200);
    }
}

/// A map with every expert once and four replicas of as many as the other slots are enough for, in random order.
fn large_map(
    random: &mut Random,
    epoch: u32,
    nodes: usize,
    layers: usize,
    experts: usize,
    physical: usize,
) -> String {
    let mut slots: Vec<usize> = (0..experts).chain((0..physical - experts).map(|i| i / 3)).collect();
    let layers = (3..3 + layers).map(|layer| {
        for at in (1..slots.len()).rev() {
            slots.swap(at, random.below(at + 1));
        }
        (layer.to_string(), json!({ "physical_to_logical_map": slots }))
    });
    let layers: serde_json::Map<_, _> = layers.collect();
    let ranks: Vec<_> = (0..nodes).map(|rank| json!({ "rank": rank, "node": format!("n{rank}") })).collect();
    json!({
        "version": 1, "model": "large", "epoch": epoch, "logical_experts": experts, "ranks": ranks, "layers": layers,
    })
    .to_string()
}

/// What is superseded is in nobody's way, whatever time it would still have.
#[test]
fn superseded_tables_make_room_for_newer_maps() {
    let cluster = Cluster::new(1);
    let config = cluster.config() + "epoch-grace: 3600\n";
    let _daemon = Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let mut api = Api::connect(&cluster.sender).unwrap();
    // 1,000 BIFT-ids of the layers' own for each epoch, and 1,000 aliases: of 4,096.
    let layer = |layer: usize| (layer.to_string(), json!({ "physical_to_logical_map": [0] }));
    let layers: serde_json::Map<_, _> = (0..1000).map(layer).collect();
    for epoch in 1..=6 {
        let map = json!({
            "version": 1, "model": "many", "epoch": epoch, "logical_experts": 1,
            "ranks": [{ "rank": 0, "node": "node1" }], "layers": layers,
        });
        let answer = api.request("PUT", "/v1/models/many/map", &map.to_string()).unwrap();
        assert_eq!(answer.status, 200, "epoch {epoch}: {}", answer.text);
        // They stay for a moment whatever comes.
        thread::sleep(Duration::from_millis(150));
    }
    let status = get(&mut api, "/v1/status");
    assert!(status["retired_early"].as_u64().unwrap() >= 2000, "{status}");
    assert!(status["bift_ids"].as_u64().unwrap() <= 4096, "{status}");
}

/// A map that could never fit costs nothing that is in force.
#[test]
fn a_map_that_cannot_fit_takes_nothing_out_of_force() {
    let cluster = Cluster::new(1);
    let neighbors: String = (0..250)
        .map(|n| {
            format!(
                "  n{n}: {{ address: 10.7.{}.{}, mac: \"02:00:00:00:09:{n:02x}\", interface: eth0 }}\n",
                n / 100,
                1 + n % 100
            )
        })
        .collect();
    let config =
        cluster.config().replace("neighbors:\n", &format!("epoch-grace: 3600\nneighbors:\n{neighbors}"));
    let _daemon = Daemon::start(&cluster.sender, &binary(), &config).unwrap();
    let mut api = Api::connect(&cluster.sender).unwrap();
    let small = |epoch: u64| {
        let layers = [(0, vec![0, 1, 2, 3, 4, 5])].into();
        Draft { model: "a".into(), epoch, ranks: 1, partial: false, layers }.json().to_string()
    };
    for epoch in 1..=20 {
        assert_eq!(api.request("PUT", "/v1/models/a/map", &small(epoch)).unwrap().status, 200);
    }
    let before = get(&mut api, "/v1/models/a/epochs");
    // 1,024 experts with 3 or 4 replicas on 250 nodes: 4 variants of 252 F-BMs of 4 chunks, 300 layers of them. That makes
    // 1,209,600 chunks, and there are 1,048,576.
    let slots: Vec<usize> = (0..3250).map(|slot| slot * 7 % 1024).collect();
    let layers: serde_json::Map<_, _> = (0..300)
        .map(|layer: usize| (layer.to_string(), json!({ "physical_to_logical_map": slots })))
        .collect();
    let ranks: Vec<_> = (0..250).map(|rank| json!({ "rank": rank, "node": format!("n{rank}") })).collect();
    let map = json!({
        "version": 1, "model": "huge", "epoch": 1, "logical_experts": 1024, "ranks": ranks, "layers": layers,
    })
    .to_string();
    for _ in 0..2 {
        let answer = api.request("PUT", "/v1/models/huge/map", &map).unwrap();
        assert_eq!((answer.status, &answer.json()["code"]), (503, &json!("no-room")), "{}", answer.text);
        assert!(answer.header.iter().all(|(name, _)| name != "retry-after"), "waiting does not help");
    }
    let after = get(&mut api, "/v1/models/a/epochs");
    let superseded = |epochs: &Value| epochs["layers"]["0"]["superseded"].as_array().unwrap().len();
    assert_eq!((superseded(&before), superseded(&after)), (19, 19));
}
