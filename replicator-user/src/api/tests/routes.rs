//! What each route answers.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use super::fake::{CONFIGURED, Lab, map};
use crate::{
    api::{
        client::ClientError,
        limits::Limits,
        types::{Code, Problem},
    },
    map::{ExpertMap, Fault, Faults},
    models::Refusal,
};

fn problem(code: &str, status: u16, detail: &str) -> Value {
    json!({ "code": code, "status": status, "detail": detail })
}

#[tokio::test]
async fn a_map_comes_into_force_and_out_of_it() {
    let lab = Lab::start(Limits::default());
    let put = lab.send("PUT", "/v1/models/m/map", map("m", 7, &[3, 4], false).as_bytes()).await;
    assert_eq!((put.status, put.header("content-type")), (200, Some("application/json")));
    // Tables 1 and 2, since the configuration has number 0; generation 1 + 7.
    let layer = |table: u32, epoch, generation| {
        let alias = 0x80000 | table << 8;
        json!({ "epoch": epoch, "bift_id": alias | generation, "alias": alias, "table": table, "generation": generation })
    };
    let installed = json!({
        "model": "m", "epoch": 7, "bit_string_length": 64, "layers": { "3": layer(1, 7, 8), "4": layer(2, 7, 8) },
    });
    assert_eq!(put.json(), installed);
    assert_eq!(lab.ask("GET", "/v1/models/m/bift-ids").await.json(), installed);

    let patch = lab.send("PATCH", "/v1/models/m/layers", map("m", 9, &[4], true).as_bytes()).await;
    let layers = json!({ "4": layer(2, 9, 10) });
    assert_eq!(patch.json(), json!({ "model": "m", "epoch": 9, "bit_string_length": 64, "layers": layers }));

    let in_force = lab.ask("GET", "/v1/models/m/map").await;
    let in_force = ExpertMap::parse(in_force.body.as_bytes()).unwrap();
    assert_eq!((in_force.epoch(), in_force.is_partial(), in_force.layers().len()), (9, false, 2));
    let epochs = lab.ask("GET", "/v1/models/m/epochs").await.json();
    assert_eq!((&epochs["epoch"], &epochs["layers"]["3"]["epoch"]), (&json!(9), &json!(7)));
    assert_eq!(epochs["layers"]["4"]["superseded"][0]["epoch"], 7);
    let models = json!([{ "model": "m", "epoch": 9, "logical_experts": 4, "layers": 2 }]);
    assert_eq!(lab.ask("GET", "/v1/models").await.json(), json!({ "models": models }));
    assert_eq!(lab.ask("GET", "/v1/status").await.json()["models"], models);

    let deleted = lab.ask("DELETE", "/v1/models/m").await;
    assert_eq!((deleted.status, deleted.json()), (200, json!({ "model": "m", "epoch": 9 })));
    let gone = lab.ask("GET", "/v1/models/m/map").await;
    assert_eq!(gone.header("content-type"), Some("application/problem+json"));
    assert_eq!(
        gone.json(),
        problem("unknown-model", 404, "there is no model `m`; put a full map of it first")
    );
}

#[tokio::test]
async fn names_are_decoded_and_are_the_maps_own() {
    let lab = Lab::start(Limits::default());
    let name = "a/b \u{e9}\"%2F";
    let path = "/v1/models/a%2Fb%20%C3%A9%22%252F";
    let put = lab.send("PUT", &format!("{path}/map"), map(name, 1, &[0], false).as_bytes()).await;
    assert_eq!((put.status, &put.json()["model"]), (200, &json!(name)));
    assert_eq!(lab.ask("GET", &format!("{path}/epochs")).await.json()["model"], name);

    let other = lab.send("PUT", "/v1/models/other/map", map("m", 1, &[0], false).as_bytes()).await;
    assert_eq!((other.status, &other.json()["code"]), (422, &json!("invalid-map")));
    let message = "is `m`, and the path says `other`; send the map to its own model's path";
    assert_eq!(other.json()["faults"], json!([{ "path": "model", "message": message }]));

    let broken = lab.ask("GET", "/v1/models/%FF/map").await;
    assert_eq!((broken.status, &broken.json()["code"]), (400, &json!("bad-request")));
    assert_eq!(lab.ask("GET", "/v1/models//map").await.status, 404);
}

#[tokio::test]
async fn maps_are_checked_before_the_loop_has_them() {
    let lab = Lab::start(Limits::default());
    for (method, path, partial) in
        [("PUT", "/v1/models/m/map", true), ("PATCH", "/v1/models/m/layers", false)]
    {
        let answer = lab.send(method, path, map("m", 1, &[0], partial).as_bytes()).await;
        assert_eq!((answer.status, &answer.json()["faults"][0]["path"]), (422, &json!("partial")));
    }
    let faulty = map("m", 1, &[0], false).replace("[0,1,2,3]", "[0,1,2,9]");
    let answer = lab.send("PUT", "/v1/models/m/map", faulty.as_bytes()).await;
    let message = "is 9; it must be an expert from 0 to 3, or -1 for none";
    let path = "layers.0.physical_to_logical_map[3]";
    assert_eq!(answer.json()["faults"], json!([{ "path": path, "message": message }]));
    for body in [&b""[..], b"{", b"\xff", b"[]", b"null"] {
        assert_eq!(lab.send("PUT", "/v1/models/m/map", body).await.status, 422);
    }
    assert_eq!(lab.ask("GET", "/v1/models").await.json(), json!({ "models": [] }));
}

#[tokio::test]
async fn every_refusal_is_a_problem() {
    let lab = Lab::start(Limits::default());
    let put =
        async |epoch| lab.send("PUT", "/v1/models/m/map", map("m", epoch, &[0], false).as_bytes()).await;
    assert_eq!(put(5).await.status, 200);
    let stale = put(5).await;
    let detail = "epoch 5 is not newer than the one in force, 5; send a larger one";
    assert_eq!(stale.json(), json!({ "code": "stale-epoch", "status": 409, "detail": detail, "epoch": 5 }));
    assert_eq!(stale.status, 409);
    let path = format!("/v1/models/{CONFIGURED}/map");
    let configured = lab.send("PUT", &path, map(CONFIGURED, 1, &[0], false).as_bytes()).await;
    assert_eq!((configured.status, &configured.json()["code"]), (409, &json!("configured")));

    let fault = Fault { path: "ranks[1].node".into(), message: "no such node".into() };
    let invalid = Refusal::Invalid(Faults { faults: vec![fault], more: 3 });
    let no_room = |retry_after| Refusal::NoRoom { detail: "full".into(), retry_after };
    for (refusal, status, code, retry_after) in [
        (Refusal::UnknownModel("m".into()), 404, "unknown-model", None),
        (invalid, 422, "invalid-map", None),
        (no_room(Some(4)), 503, "no-room", Some("4")),
        (no_room(None), 503, "no-room", None),
        (Refusal::Storage("disk full".into()), 507, "storage", None),
        (Refusal::Internal("EINVAL".into()), 500, "internal", None),
        (Refusal::Ending, 503, "ending", None),
    ] {
        let detail = refusal.to_string();
        lab.fake.whims.lock().unwrap().refuse.push(refusal);
        let answer = put(6).await;
        assert_eq!((answer.status, answer.header("retry-after")), (status, retry_after), "{code}");
        let problem: Problem = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(
            (answer.json()["code"].as_str(), problem.status, problem.detail),
            (Some(code), status, detail)
        );
        assert_eq!(
            (problem.faults.len(), problem.more_faults),
            if code == "invalid-map" { (1, 3) } else { (0, 0) }
        );
    }
    // Nothing has changed.
    assert_eq!(lab.ask("GET", "/v1/models/m/epochs").await.json()["epoch"], 5);
    assert_eq!(put(6).await.status, 200);
}

#[tokio::test]
async fn other_paths_and_methods_are_problems_too() {
    let lab = Lab::start(Limits::default());
    for path in
        ["/", "/v1", "/v1/models/", "/v1/models/m", "/v1/models/m/map/", "/V1/models", "/livez/x", "*"]
    {
        let answer = lab.ask("GET", path).await;
        let expected = if path == "/v1/models/m" { (405, "method-not-allowed") } else { (404, "not-found") };
        assert_eq!((answer.status, answer.json()["code"].as_str().unwrap()), expected, "{path}");
        assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    }
    for (method, path, allow) in [
        ("POST", "/v1/models/m/map", "GET,HEAD,PUT"),
        ("GET", "/v1/models/m/layers", "PATCH"),
        ("PUT", "/v1/models", "GET,HEAD"),
        ("TRACE", "/livez", "GET,HEAD"),
        ("BREW", "/livez", "GET,HEAD"),
    ] {
        let answer = lab.ask(method, path).await;
        assert_eq!((answer.status, answer.header("allow")), (405, Some(allow)), "{method} {path}");
        assert_eq!(answer.json()["code"], "method-not-allowed");
    }
    let head = lab.ask("HEAD", "/livez").await;
    assert_eq!((head.status, head.body.as_str()), (200, ""));
}

#[tokio::test]
async fn a_wait_ends_with_a_newer_epoch_or_when_it_is_over() {
    let lab = Lab::start(Limits::default());
    let client = lab.client();
    client.push(&ExpertMap::parse(map("m", 5, &[3], false).as_bytes()).unwrap()).await.unwrap();
    // What is newer already is told at once.
    let started = Instant::now();
    assert_eq!(client.newer_bift_ids("m", 4, Duration::from_secs(60)).await.unwrap().epoch, 5);
    assert!(started.elapsed() < Duration::from_secs(1));
    // So is what was so when the wait is over.
    assert_eq!(client.newer_bift_ids("m", 5, Duration::from_secs(1)).await.unwrap().epoch, 5);
    assert!(started.elapsed() >= Duration::from_secs(1));
    // Changes of other models do not end a wait.
    let change = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        for (model, epoch) in [("n", 9), ("m", 8)] {
            client.push(&ExpertMap::parse(map(model, epoch, &[3], false).as_bytes()).unwrap()).await.unwrap();
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let (installed, ()) = tokio::join!(client.newer_bift_ids("m", 5, Duration::from_secs(60)), change);
    assert_eq!(installed.unwrap().epoch, 8);
    // A model that goes away ends it.
    let delete = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.push(&ExpertMap::parse(map("n", 10, &[3], false).as_bytes()).unwrap()).await.unwrap();
        client.delete("m").await.unwrap();
        client.push(&ExpertMap::parse(map("n", 11, &[3], false).as_bytes()).unwrap()).await.unwrap();
    };
    let (gone, _) = tokio::join!(client.newer_bift_ids("m", 8, Duration::from_secs(60)), delete);
    assert_eq!(gone.unwrap_err().problem().unwrap().code, Code::UnknownModel);

    for query in ["wait=5", "after=1&wait=61", "after=-1", "after=x", "after=1&until=2", "after=1&wait=1.5"] {
        let answer = lab.ask("GET", &format!("/v1/models/n/bift-ids?{query}")).await;
        assert_eq!((answer.status, &answer.json()["code"]), (400, &json!("bad-request")), "{query}");
    }
}

#[tokio::test]
async fn so_many_wait_and_no_more() {
    let lab = Lab::start(Limits { waiters: 1, ..Limits::default() });
    let client = lab.client();
    client.push(&ExpertMap::parse(map("m", 5, &[3], false).as_bytes()).unwrap()).await.unwrap();
    let second = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        client.newer_bift_ids("m", 5, Duration::from_secs(1)).await
    };
    let (first, second) = tokio::join!(client.newer_bift_ids("m", 5, Duration::from_secs(1)), second);
    assert_eq!(first.unwrap().epoch, 5);
    let Err(ClientError::Refused { problem, retry_after }) = second else { panic!("{second:?}") };
    assert_eq!((problem.code, retry_after), (Code::NoRoom, Some(Duration::from_secs(1))));
}

#[tokio::test]
async fn health_is_the_loops() {
    let lab = Lab::start(Limits { answer_of_loop: Duration::from_millis(100), ..Limits::default() });
    let alive = lab.ask("GET", "/livez").await;
    assert_eq!((alive.status, alive.body.as_str()), (200, "ok"));
    assert_eq!(lab.ask("GET", "/readyz").await.json(), json!({ "ready": true, "missing": [] }));
    lab.fake.whims.lock().unwrap().missing.push("no map".into());
    let ready = lab.ask("GET", "/readyz").await;
    assert_eq!((ready.status, ready.json()), (503, json!({ "ready": false, "missing": ["no map"] })));
    assert_eq!(lab.ask("GET", "/livez").await.status, 200);
    lab.fake.end();
    tokio::task::yield_now().await;
    let ending = lab.ask("GET", "/livez").await;
    assert_eq!((ending.status, &ending.json()["code"]), (503, &json!("ending")));
}

#[tokio::test]
async fn metrics_name_outcomes_neighbors_and_models_alone() {
    let lab = Lab::start(Limits::default());
    let name = "q\"uote\\d";
    let put = map(name, 7, &[3, 4], false);
    assert_eq!(lab.send("PUT", "/v1/models/q%22uote%5Cd/map", put.as_bytes()).await.status, 200);
    assert_eq!(lab.send("PUT", "/v1/models/q%22uote%5Cd/map", put.as_bytes()).await.status, 409);
    let answer = lab.ask("GET", "/metrics").await;
    let media = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    assert_eq!((answer.status, answer.header("content-type")), (200, Some(media)));
    for line in [
        "replicator_frames_total{outcome=\"replicated\"} 5",
        "replicator_frames_total{outcome=\"malformed\"} 0",
        "replicator_copies_total{outcome=\"sent\"} 9",
        "replicator_bits_total{outcome=\"bit_without_row\"} 2",
        "replicator_neighbor_copies_total{neighbor=\"node1\"} 8",
        "replicator_neighbor_bytes_total{neighbor=\"local\"} 100",
        "replicator_neighbor_resolved{neighbor=\"node1\"} 1.0",
        "replicator_neighbor_resolved{neighbor=\"node2\"} 0.0",
        "replicator_model_epoch{model=\"q\\\"uote\\\\d\"} 7.0",
        "replicator_build_info{version=\"1.2.3\"} 1.0",
        "replicator_bift_ids 6.0",
        "replicator_superseded_tables 0.0",
        "replicator_superseded_tables_retired_early_total 3",
        "replicator_uptime_seconds 12.5",
        "replicator_map_requests_total{method=\"PUT\",code=\"200\"} 1",
        "replicator_map_requests_total{method=\"PUT\",code=\"409\"} 1",
        "replicator_map_install_seconds_count 1",
        "# TYPE replicator_frames counter",
        "# TYPE replicator_map_install_seconds histogram",
        "# EOF",
    ] {
        assert!(answer.body.lines().any(|found| found == line), "{line}\n{}", answer.body);
    }
    // Of what there are thousands, nothing is told.
    for absent in ["layer", "expert=", "bift_id="] {
        assert!(!answer.body.contains(absent), "{absent}");
    }
}

#[tokio::test]
async fn metrics_are_those_of_the_documentation() {
    let lab = Lab::start(Limits::default());
    assert_eq!(lab.send("PUT", "/v1/models/m/map", map("m", 7, &[3], false).as_bytes()).await.status, 200);
    let answer = lab.ask("GET", "/metrics").await;
    // The name of a family, of a counter's samples with `_total`, and its labels.
    let families = answer.body.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let served: BTreeSet<_> = families
        .map(|(name, kind)| {
            let name = if kind == "counter" { format!("{name}_total") } else { name.to_owned() };
            let sample = answer.body.lines().find_map(|line| line.strip_prefix(&format!("{name}{{")));
            let labels =
                sample.filter(|_| kind != "histogram").map_or("", |rest| rest.split_once('}').unwrap().0);
            let labels: Vec<_> =
                labels.split(',').filter_map(|pair| Some(pair.split_once('=')?.0.to_owned())).collect();
            (name, kind.to_owned(), labels)
        })
        .collect();
    let text = include_str!("../../../../docs/operations.md");
    let rows = text.lines().filter_map(|line| line.strip_prefix("| `replicator_"));
    let documented: BTreeSet<_> = rows
        .map(|row| {
            let cells: Vec<_> = row.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
            let labels = cells[2].split(", ").map(|label| label.trim_matches('`').to_owned());
            let labels: Vec<_> = labels.filter(|label| !label.is_empty()).collect();
            (format!("replicator_{}", cells[0]), cells[1].to_owned(), labels)
        })
        .collect();
    assert_eq!(documented, served);
}

#[tokio::test]
async fn the_description_has_the_map_and_every_problem() {
    let lab = Lab::start(Limits::default());
    let document = lab.ask("GET", "/openapi.json").await.json();
    assert_eq!(document, crate::api::document().unwrap());
    assert!(document["openapi"].as_str().unwrap().starts_with("3.1"));
    let schemas = &document["components"]["schemas"];
    assert_eq!(schemas["ExpertMap"]["properties"]["logical_experts"]["maximum"], 1024);
    let put = &document["paths"]["/v1/models/{model}/map"]["put"];
    assert_eq!(
        put["requestBody"]["content"]["application/json"]["schema"]["$ref"],
        "#/components/schemas/ExpertMap"
    );
    assert_eq!(put["responses"]["409"]["description"], "stale-epoch, configured");
    // Every reference leads somewhere.
    let text = document.to_string();
    let references =
        text.split("\"#/components/schemas/").skip(1).map(|rest| rest.split('"').next().unwrap());
    let missing: Vec<_> = references.filter(|name| schemas.get(name).is_none()).collect();
    assert_eq!(missing, [""; 0]);
    // What the types say of the status and what is answered is the same.
    let codes: Vec<_> = Code::ALL.iter().map(|code| serde_json::to_value(code).unwrap()).collect();
    assert_eq!(schemas["Code"]["enum"], json!(codes));
}
