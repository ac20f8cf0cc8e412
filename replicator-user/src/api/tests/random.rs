//! Whatever is asked: the status is one that the description of the API has.

use std::{collections::BTreeSet, sync::LazyLock};

use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;

use super::fake::{Lab, map};
use crate::api::{document, limits::Limits};

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| document().unwrap());

const METHODS: [&str; 8] = ["GET", "HEAD", "PUT", "PATCH", "DELETE", "POST", "OPTIONS", "X"];
const SEGMENTS: [&str; 22] = [
    "v1",
    "models",
    "m",
    "n",
    "configured",
    "map",
    "layers",
    "epochs",
    "bift-ids",
    "status",
    "neighbors",
    "stats",
    "livez",
    "readyz",
    "metrics",
    "openapi.json",
    "",
    "%2F",
    "%FF",
    "%",
    "..",
    "\u{e9}",
];

/// The statuses that a request may get: those of its route, or those of none.
fn allowed(method: &str, path: &str) -> BTreeSet<u16> {
    let path = path.split('?').next().unwrap();
    let segments: Vec<_> = path.split('/').collect();
    let matches = |route: &str| {
        let parts: Vec<_> = route.split('/').collect();
        let fits = |(part, segment): (&&str, &&str)| {
            part == segment || (part.starts_with('{') && !segment.is_empty())
        };
        parts.len() == segments.len() && parts.iter().zip(&segments).all(fits)
    };
    let Some((_, route)) = DOCUMENT["paths"].as_object().unwrap().iter().find(|(route, _)| matches(route))
    else {
        return [404].into();
    };
    let method = if method == "HEAD" { "get".to_owned() } else { method.to_lowercase() };
    match route.get(method) {
        Some(operation) => {
            operation["responses"].as_object().unwrap().keys().map(|status| status.parse().unwrap()).collect()
        }
        None => [405].into(),
    }
}

fn paths() -> impl Strategy<Value = String> {
    let any = vec(select(&SEGMENTS[..]), 1..6).prop_map(|segments| format!("/{}", segments.join("/")));
    let models =
        (select(&["m", "n", "configured"][..]), select(&["/map", "/layers", "/epochs", "/bift-ids", ""][..]));
    let model = models.prop_map(|(model, what)| format!("/v1/models/{model}{what}"));
    let query = select(&["", "", "", "?after=0&wait=0", "?after=x", "?wait=1", "?a=b", "?%FF"][..]);
    (prop_oneof![1 => any, 3 => model], query).prop_map(|(path, query)| format!("{path}{query}"))
}

fn bodies() -> impl Strategy<Value = Vec<u8>> {
    let model = select(&["m", "n", "configured", "m\u{0}"][..]);
    let whole = (model, 0..6_u64, vec(0..4_u16, 0..3), any::<bool>())
        .prop_map(|(model, epoch, layers, partial)| map(model, epoch, &layers, partial).into_bytes());
    let broken =
        (whole.clone(), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(mut body, at, byte)| {
            let at = at.index(body.len());
            body[at] = byte;
            body
        });
    prop_oneof![3 => whole, 2 => broken, 1 => vec(any::<u8>(), 0..64)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_status_is_described(requests in vec((select(&METHODS[..]), paths(), bodies()), 1..24)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let lab = Lab::start(Limits::default());
            for (method, path, body) in requests {
                let answer = lab.send(method, &path, &body).await;
                let allowed = allowed(method, &path);
                // What is no URI is no request.
                let no_uri = answer.status == 400 && answer.body.is_empty();
                prop_assert!(
                    allowed.contains(&answer.status) || no_uri,
                    "{} {}: {} is none of {:?}", method, path, answer.status, allowed
                );
                if answer.status >= 400 && method != "HEAD" && !no_uri {
                    prop_assert_eq!(&answer.json()["status"], &Value::from(answer.status));
                    prop_assert!(!answer.json()["detail"].as_str().unwrap().is_empty());
                }
                prop_assert_ne!(answer.status, 500);
            }
            Ok(())
        })?;
    }
}
