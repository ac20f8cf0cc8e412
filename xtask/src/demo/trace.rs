//! Recorded routing, in three formats that are told apart by their files:
//!
//! - a folder with `index.json` (shape and requests) and `tokens.u8`: for each token and layer the experts, a byte each;
//! - JSON lines, `{"layer": 0, "experts": [7, 0], ...}` each: what one token selected in one layer;
//! - JSON, `{"logical_count": [[...], ...]}`: how often each expert of each layer was selected; a layer of zeros is dense.
//!
//! The last two do not say what model they are of: it is the known model of their shape.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use clap::ValueEnum;
use replicator_common::limits::{MAX_BITS, MAX_EXPERT_TABLES};
use serde::Deserialize;

use super::{
    model::{Model, Shape},
    routing::Selection,
};

/// What was recorded of a model.
#[derive(Debug, PartialEq)]
pub(super) struct Trace {
    /// The model's name.
    pub model: String,
    /// Its shape.
    pub shape: Shape,
    /// Its routing.
    pub routing: Recorded,
}

/// Recorded routing.
#[derive(Debug, PartialEq)]
pub(super) enum Recorded {
    /// Every selection, in the order of the recording.
    Selections(Vec<Selection>),
    /// Layer -> expert -> how often it was selected.
    Counts(Vec<Vec<f64>>),
}

/// Reads the recording that `path`, a file or a folder, holds.
///
/// # Errors
/// Where it is no recording of a known format, or damaged; with the file and the place in it.
pub(super) fn read(path: &Path) -> Result<Trace> {
    let files = files(path)?;
    if let [index, tokens] = &files[..]
        && tokens.extension().is_some_and(|extension| extension == "u8")
    {
        let bytes = fs::read(tokens).with_context(|| format!("cannot read {}", tokens.display()))?;
        return from_index(&text(index)?, &bytes)
            .with_context(|| format!("{} with {}", index.display(), tokens.display()));
    }
    let mut traces =
        files.iter().map(|file| from_json(&text(file)?).with_context(|| file.display().to_string()));
    let first = traces.next().with_context(|| format!("{} holds no recording", path.display()))??;
    traces.try_fold(first, |all, trace| all.merge(trace?).with_context(|| path.display().to_string()))
}

/// The recordings that a folder holds, each a folder itself, in the order of their names.
///
/// # Errors
/// Where it cannot be read or holds none.
pub(super) fn recordings(folder: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read the folder of recordings {}", folder.display());
    let entries = fs::read_dir(folder).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut paths: Vec<PathBuf> = entries.with_context(unreadable)?.iter().map(fs::DirEntry::path).collect();
    paths.retain(|path| path.is_dir());
    ensure!(!paths.is_empty(), "{} holds no recordings", folder.display());
    paths.sort();
    Ok(paths)
}

/// The files of a recording: index and tokens, or any number of JSON files in the order of their names.
fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = || format!("cannot read the recording {}", path.display());
    let folder = if fs::metadata(path).with_context(unreadable)?.is_dir() {
        path
    } else if path.ends_with("index.json") || path.ends_with("tokens.u8") {
        path.parent().unwrap_or(Path::new(""))
    } else {
        return Ok(vec![path.to_owned()]);
    };
    let index = [folder.join("index.json"), folder.join("tokens.u8")];
    if index.iter().any(|file| file.exists()) {
        return Ok(index.into());
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let file = entry.with_context(unreadable)?.path();
        if file.extension().is_some_and(|extension| extension == "json" || extension == "jsonl") {
            files.push(file);
        }
    }
    files.sort();
    Ok(files)
}

fn text(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

#[derive(Deserialize)]
struct Index {
    model: String,
    num_moe_layers: u16,
    num_experts: u32,
    top_k: u32,
    requests: Vec<Request>,
}

/// One request's tokens, however they are counted.
#[derive(Deserialize)]
struct Request {
    offset: usize,
    #[serde(default)]
    tokens: usize,
    #[serde(default)]
    prefill_tokens: usize,
    #[serde(default)]
    decode_tokens: usize,
}

fn from_index(index: &str, bytes: &[u8]) -> Result<Trace> {
    let Index { model, num_moe_layers: layers, num_experts: experts, top_k: active, requests } =
        serde_json::from_str(index).context("the index is damaged")?;
    let shape = Shape { layers, experts, active, groups: None };
    check_shape(shape)?;
    let width = usize::from(layers) * active as usize;
    let mut end = 0_usize;
    for (i, request) in requests.iter().enumerate() {
        ensure!(
            request.offset == end,
            "request {i} of the index starts at byte {}, but the one before it ends at {end}",
            request.offset
        );
        end = [request.tokens, request.prefill_tokens, request.decode_tokens]
            .iter()
            .try_fold(0_usize, |sum, &tokens| sum.checked_add(tokens))
            .and_then(|tokens| tokens.checked_mul(width)?.checked_add(end))
            .with_context(|| format!("request {i} of the index has too many tokens"))?;
    }
    ensure!(
        end == bytes.len(),
        "the index speaks of {end} bytes of tokens, but there are {}: one of the files is cut or of another recording",
        bytes.len()
    );
    let selections =
        bytes.chunks(active as usize).zip((0..layers).cycle()).enumerate().map(|(i, (ids, layer))| {
            let ids = ids.iter().map(|&id| u32::from(id));
            selection(shape, layer, ids)
                .with_context(|| format!("at byte {} of the tokens", i * active as usize))
        });
    let selections: Vec<Selection> = selections.collect::<Result<_>>()?;
    ensure!(!selections.is_empty(), "the recording has no tokens");
    Ok(Trace { model, shape, routing: Recorded::Selections(selections) })
}

#[derive(Deserialize)]
struct Counts {
    logical_count: Vec<Vec<f64>>,
}

#[derive(Deserialize)]
struct Line {
    layer: u16,
    experts: Vec<u32>,
}

fn from_json(text: &str) -> Result<Trace> {
    // The first value tells the format: a file of lines is not one JSON value.
    match serde_json::Deserializer::from_str(text).into_iter::<serde_json::Value>().next() {
        Some(Ok(value)) if value.get("logical_count").is_some() => {
            from_counts(serde_json::from_str::<Counts>(text)?.logical_count)
        }
        Some(Ok(value)) if value.get("experts").is_some() => from_lines(text),
        Some(Ok(_)) => {
            bail!("neither `logical_count` nor lines with `layer` and `experts`: not a recording of routing")
        }
        Some(Err(error)) => Err(anyhow!(error).context("not JSON")),
        None => bail!("the file is empty"),
    }
}

fn from_counts(mut counts: Vec<Vec<f64>>) -> Result<Trace> {
    for (layer, counts) in counts.iter().enumerate() {
        if let Some(count) = counts.iter().find(|count| !count.is_finite() || **count < 0.0) {
            bail!("layer {layer} has a count of {count}");
        }
    }
    counts.retain(|layer| layer.iter().any(|&count| count > 0.0));
    let experts = counts.first().map_or(0, Vec::len);
    for (layer, counts) in counts.iter().enumerate() {
        ensure!(
            counts.len() == experts,
            "layer {layer} of those with experts counts {} experts, the first {experts}",
            counts.len()
        );
    }
    let model = known_model(
        |shape| usize::from(shape.layers) == counts.len() && shape.experts as usize == experts,
        || format!("counts of {} layers with {experts} experts", counts.len()),
    )?;
    Ok(Trace { model: model.name().to_owned(), shape: model.shape(), routing: Recorded::Counts(counts) })
}

fn from_lines(text: &str) -> Result<Trace> {
    let lines: Vec<Line> = text
        .lines()
        .enumerate()
        .map(|(i, line)| serde_json::from_str(line).with_context(|| format!("line {}", i + 1)))
        .collect::<Result<_>>()?;
    let active = lines.first().map_or(0, |line| line.experts.len());
    let last_layer = lines.iter().map(|line| line.layer).max().unwrap_or_default();
    let last_expert = lines.iter().flat_map(|line| &line.experts).copied().max().unwrap_or_default();
    let model = known_model(
        |shape| {
            shape.layers - 1 == last_layer && shape.active as usize == active && last_expert < shape.experts
        },
        || format!("layers up to {last_layer}, experts up to {last_expert}, {active} a token"),
    )?;
    let shape = model.shape();
    let selections = lines.into_iter().enumerate().map(|(i, Line { layer, experts })| {
        selection(shape, layer, experts.into_iter()).with_context(|| format!("line {}", i + 1))
    });
    let selections = selections.collect::<Result<_>>()?;
    Ok(Trace { model: model.name().to_owned(), shape, routing: Recorded::Selections(selections) })
}

impl Trace {
    /// Both recordings as one: selections behind each other, counts added.
    fn merge(self, other: Self) -> Result<Self> {
        ensure!(
            self.shape == other.shape && self.model == other.model,
            "it holds recordings of several models ({} and {}): name one file",
            self.model,
            other.model
        );
        let routing = match (self.routing, other.routing) {
            (Recorded::Selections(mut all), Recorded::Selections(more)) => {
                all.extend(more);
                Recorded::Selections(all)
            }
            (Recorded::Counts(mut all), Recorded::Counts(more)) => {
                for (sum, count) in all.iter_mut().flatten().zip(more.iter().flatten()) {
                    *sum += count;
                }
                Recorded::Counts(all)
            }
            _ => bail!("it holds both selections and counts: name one file"),
        };
        Ok(Self { routing, ..self })
    }
}

/// Refuses shapes that the header or the tables have no room for.
fn check_shape(Shape { layers, experts, active, .. }: Shape) -> Result<()> {
    ensure!(
        (1..=MAX_EXPERT_TABLES).contains(&layers.into()) && (1..=MAX_BITS).contains(&(experts as usize)),
        "{layers} layers with {experts} experts: 1 to {MAX_EXPERT_TABLES} layers and 1 to {MAX_BITS} experts are possible"
    );
    ensure!((1..=experts).contains(&active), "a token cannot select {active} of {experts} experts");
    Ok(())
}

fn known_model(fits: impl Fn(Shape) -> bool, shape: impl Fn() -> String) -> Result<Model> {
    let mut models = Model::value_variants().iter().copied();
    models.find(|model| fits(model.shape())).with_context(|| {
        let names: Vec<&str> = Model::value_variants().iter().map(|model| model.name()).collect();
        format!("no known model ({}) has this shape: {}; is the file cut?", names.join(", "), shape())
    })
}

fn selection(shape: Shape, layer: u16, experts: impl Iterator<Item = u32>) -> Result<Selection> {
    let mut experts: Box<[u32]> = experts.collect();
    experts.sort_unstable();
    ensure!(
        experts.len() == shape.active as usize,
        "{} experts are selected, elsewhere {}",
        experts.len(),
        shape.active
    );
    if let Some(pair) = experts.windows(2).find(|pair| pair[0] == pair[1]) {
        bail!("expert {} is selected twice", pair[0]);
    }
    if let Some(&expert) = experts.last().filter(|&&expert| expert >= shape.experts) {
        bail!("expert {expert} is selected, but there are {} (0 to {})", shape.experts, shape.experts - 1);
    }
    Ok(Selection { layer, experts })
}

#[cfg(test)]
mod tests {
    use super::*;

    const INDEX: &str = r#"{"model": "small", "num_moe_layers": 2, "num_experts": 8, "top_k": 2, "unknown": 0,
        "requests": [{"offset": 0, "tokens": 1}, {"offset": 4, "prefill_tokens": 1, "decode_tokens": 1}]}"#;
    const TOKENS: [u8; 12] = [7, 0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 7];

    fn error(result: Result<Trace>) -> String {
        format!("{:#}", result.unwrap_err())
    }

    fn assert_error(result: Result<Trace>, expected: &str) {
        let error = error(result);
        assert!(error.contains(expected), "{error}");
    }

    fn pairs(trace: &Trace) -> Vec<(u16, &[u32])> {
        match &trace.routing {
            Recorded::Selections(all) => all.iter().map(|at| (at.layer, &*at.experts)).collect(),
            Recorded::Counts(_) => panic!("counts"),
        }
    }

    #[test]
    fn an_index_gives_tokens_through_the_layers() {
        let trace = from_index(INDEX, &TOKENS).unwrap();
        assert_eq!(trace.model, "small");
        assert_eq!(trace.shape, Shape { layers: 2, experts: 8, active: 2, groups: None });
        let expected: [(u16, &[u32]); 6] =
            [(0, &[0, 7]), (1, &[1, 2]), (0, &[3, 4]), (1, &[5, 6]), (0, &[0, 1]), (1, &[2, 7])];
        assert_eq!(pairs(&trace), expected);
    }

    #[test]
    fn a_damaged_index_is_refused_with_the_place() {
        assert_error(
            from_index(INDEX, &TOKENS[..11]),
            "the index speaks of 12 bytes of tokens, but there are 11",
        );
        assert_error(from_index(INDEX, &[]), "but there are 0");
        assert_error(from_index(&INDEX.replace("\"offset\": 4", "\"offset\": 8"), &TOKENS), "request 1");
        assert_error(from_index(&INDEX[..40], &TOKENS), "the index is damaged");
        let huge = INDEX.replace("\"tokens\": 1", "\"tokens\": 9223372036854775807");
        assert_error(from_index(&huge, &TOKENS), "request 0 of the index has too many tokens");
        assert_error(
            from_index(&INDEX.replace("\"top_k\": 2", "\"top_k\": 9"), &TOKENS),
            "cannot select 9 of 8",
        );
        assert_error(
            from_index(&INDEX.replace("\"top_k\": 2", "\"top_k\": 0"), &TOKENS),
            "cannot select 0 of 8",
        );
        assert_error(from_index(&INDEX.replace("layers\": 2", "layers\": 0"), &TOKENS), "0 layers");
        assert_error(
            from_index(&INDEX.replace("\"num_experts\": 8", "\"num_experts\": 1025"), &TOKENS),
            "1025",
        );
        let mut tokens = TOKENS;
        tokens[5] = 8;
        assert_error(
            from_index(INDEX, &tokens),
            "at byte 4 of the tokens: expert 8 is selected, but there are 8",
        );
        tokens[5] = tokens[4];
        assert_error(from_index(INDEX, &tokens), "at byte 4 of the tokens: expert 3 is selected twice");
        let none = r#"{"model": "", "num_moe_layers": 1, "num_experts": 8, "top_k": 1, "requests": []}"#;
        assert_error(from_index(none, &[]), "no tokens");
    }

    fn lines(last: &str) -> String {
        format!(
            "{{\"layer\": 0, \"experts\": [7, 0], \"gating_probs\": [0.8, 0.2], \"token_idx\": 0}}\n{last}\n"
        )
    }

    #[test]
    fn lines_give_the_selections_as_they_stand() {
        let trace = from_json(&lines(r#"{"layer": 31, "experts": [5, 6]}"#)).unwrap();
        assert_eq!((trace.model.as_str(), trace.shape), ("mixtral-8x7b", Model::Mixtral8x7b.shape()));
        let expected: [(u16, &[u32]); 2] = [(0, &[0, 7]), (31, &[5, 6])];
        assert_eq!(pairs(&trace), expected);
    }

    #[test]
    fn damaged_lines_are_refused_with_their_number() {
        assert_error(from_json(&lines(r#"{"layer": 31, "experts": [5"#)), "line 2: EOF");
        assert_error(from_json(&lines(r#"{"experts": [5, 6]}"#)), "line 2: missing field `layer`");
        assert_error(
            from_json(&lines(r#"{"layer": 31, "experts": [5, 5]}"#)),
            "line 2: expert 5 is selected twice",
        );
        assert_error(
            from_json(&lines(r#"{"layer": 31, "experts": [5]}"#)),
            "line 2: 1 experts are selected, elsewhere 2",
        );
        assert_error(from_json(&lines(r#"{"layer": 31, "experts": [5, 8]}"#)), "experts up to 8");
        assert_error(from_json(&lines(r#"{"layer": 30, "experts": [5, 6]}"#)), "layers up to 30");
        assert_error(from_json(&lines(r#"{"layer": 31, "experts": [-1, 6]}"#)), "line 2");
    }

    fn counts(experts: usize) -> String {
        let dense = vec![0.0; 256];
        let mut layers = vec![dense; 3];
        layers.extend(vec![vec![2.5; experts]; 58]);
        serde_json::json!({ "logical_count": layers }).to_string()
    }

    #[test]
    fn counts_leave_out_the_dense_layers() {
        let trace = from_json(&counts(256)).unwrap();
        assert_eq!((trace.model.as_str(), trace.shape), ("deepseek-v3", Model::DeepseekV3.shape()));
        assert_eq!(trace.routing, Recorded::Counts(vec![vec![2.5; 256]; 58]));
        let Recorded::Counts(sum) = from_json(&counts(256)).unwrap().merge(trace).unwrap().routing else {
            panic!()
        };
        assert_eq!(sum, vec![vec![5.0; 256]; 58]);
    }

    #[test]
    fn damaged_counts_are_refused() {
        assert_error(from_json(&counts(255)), "58 layers with 255 experts");
        assert_error(from_json(&counts(256)[..900]), "not JSON");
        assert_error(from_json(&counts(256).replacen("2.5", "-2.5", 1)), "layer 3 has a count of -2.5");
        assert_error(
            from_json(&counts(256).replacen("2.5,", "", 1)),
            "layer 1 of those with experts counts 256",
        );
        assert_error(from_json(r#"{"logical_count": []}"#), "0 layers");
        assert_error(from_json(r#"{"logical_count": [["x"]]}"#), "invalid type");
        assert_error(from_json("{}"), "not a recording of routing");
        assert_error(from_json("[]"), "not a recording of routing");
        assert_error(from_json(" "), "the file is empty");
        assert_error(from_json("\u{0}x"), "not JSON");
    }

    #[test]
    fn recordings_of_different_kinds_do_not_mix() {
        let lines = from_json(&lines(r#"{"layer": 31, "experts": [5, 6]}"#)).unwrap();
        assert_error(
            from_json(&counts(256)).unwrap().merge(lines),
            "several models (deepseek-v3 and mixtral-8x7b)",
        );
    }

    #[test]
    fn files_are_told_apart() {
        let folder = std::env::temp_dir().join(format!("replicator-trace-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let failing = |expected: &str| {
            assert_error(read(&folder), expected);
            assert_error(read(&folder), folder.to_str().unwrap());
        };
        failing("holds no recording");
        fs::write(folder.join("b.json"), counts(256)).unwrap();
        fs::write(folder.join("a.json"), counts(256)).unwrap();
        fs::write(folder.join("notes.txt"), "no JSON").unwrap();
        assert_eq!(read(&folder).unwrap().routing, Recorded::Counts(vec![vec![5.0; 256]; 58]));
        assert_eq!(read(&folder.join("a.json")).unwrap().routing, Recorded::Counts(vec![vec![2.5; 256]; 58]));
        fs::write(folder.join("c.json"), "{").unwrap();
        failing("c.json: not JSON");
        fs::write(folder.join("index.json"), INDEX).unwrap();
        failing("tokens.u8");
        fs::write(folder.join("tokens.u8"), TOKENS).unwrap();
        for path in [folder.clone(), folder.join("index.json"), folder.join("tokens.u8")] {
            assert_eq!(read(&path).unwrap().shape.layers, 2);
        }
        fs::write(folder.join("tokens.u8"), &TOKENS[1..]).unwrap();
        failing("there are 11");
        fs::remove_dir_all(&folder).unwrap();
        failing("cannot read the recording");
    }

    /// The recordings that REPLICATOR_TRACES names a folder of, where it does.
    #[test]
    fn every_recording_at_hand_is_read() {
        let Some(folder) = std::env::var_os("REPLICATOR_TRACES").map(PathBuf::from) else { return };
        let known = [
            ("deepseek-v2-lite", Model::DeepseekV2Lite),
            ("deepseek-v3-counts", Model::DeepseekV3),
            ("llama4-maverick", Model::Llama4Maverick),
            ("mixtral-8x7b", Model::Mixtral8x7b),
        ];
        for path in recordings(&folder).unwrap() {
            let shape = read(&path).unwrap().shape;
            if let Some((name, model)) = known.iter().find(|(name, _)| path.ends_with(name)) {
                let expected = model.shape();
                assert_eq!(
                    (shape.layers, shape.experts, shape.active),
                    (expected.layers, expected.experts, expected.active),
                    "{name}"
                );
            }
        }
    }
}
