//! Which experts each token selects: generated, or drawn from counts.

use std::{f64::consts::TAU, iter};

use fastrand::Rng;

use super::model::{Shape, Skew};

/// Topics that generated tokens are about. Each expert of a layer belongs to one.
const TOPICS: u32 = 8;

/// Chance that the next token of a sequence is about another topic.
const TOPIC_CHANGE: f64 = 0.1;

/// What one token selects in one layer: one frame of the demo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Selection {
    /// The layer, counted over layers with experts.
    pub layer: u16,
    /// The experts, each once, counted from 0.
    pub experts: Box<[u32]>,
}

/// Selections without end: token after token, each through every layer.
pub(super) struct Generated {
    shape: Shape,
    skew: Skew,
    rng: Rng,
    layer: u16,
    topic: u32,
    /// Layer -> expert -> logarithm of its popularity, topic.
    experts: Vec<Vec<(f64, u32)>>,
}

impl Generated {
    /// The same seed gives the same selections.
    pub(super) fn new(shape: Shape, skew: Skew, seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut layer = || {
            let mut topics: Vec<u32> = (0..shape.experts).map(|expert| expert % TOPICS).collect();
            rng.shuffle(&mut topics);
            topics.into_iter().map(|topic| (skew.popularity * normal(&mut rng), topic)).collect()
        };
        let experts = iter::repeat_with(&mut layer).take(shape.layers.into()).collect();
        let topic = rng.u32(..TOPICS);
        Self { shape, skew, rng, layer: 0, topic, experts }
    }
}

impl Iterator for Generated {
    type Item = Selection;

    fn next(&mut self) -> Option<Selection> {
        let layer = self.layer;
        self.layer = (layer + 1) % self.shape.layers;
        if layer == 0 && self.rng.f64() < TOPIC_CHANGE {
            self.topic = self.rng.u32(..TOPICS);
        }
        let logits = self.experts[usize::from(layer)].iter().map(|&(popularity, topic)| {
            if topic == self.topic { popularity + self.skew.topic } else { popularity }
        });
        Some(Selection { layer, experts: draw(self.shape, logits, &mut self.rng) })
    }
}

/// Selections without end whose experts occur about as often as in `counts[layer][expert]`: exactly so for one expert a
/// token, and within a few percent where a token's experts exclude each other.
pub(super) fn draw_from_counts(
    shape: Shape,
    counts: &[Vec<f64>],
    seed: u64,
) -> impl Iterator<Item = Selection> {
    let mut rng = Rng::with_seed(seed);
    // An expert that was never counted is drawn where no other is left.
    let logits: Vec<Vec<f64>> = counts
        .iter()
        .map(|layer| layer.iter().map(|count| count.max(f64::MIN_POSITIVE).ln()).collect())
        .collect();
    (0..shape.layers).cycle().map(move |layer| {
        let logits = logits[usize::from(layer)].iter().copied();
        Selection { layer, experts: draw(shape, logits, &mut rng) }
    })
}

/// Draws a token's experts, in ascending order. The largest of logits with Gumbel noise are a draw without replacement
/// with chances proportional to exp(logit); groups are limited as DeepSeek-V3's gate does it.
fn draw(shape: Shape, logits: impl Iterator<Item = f64>, rng: &mut Rng) -> Box<[u32]> {
    let mut scores: Vec<(f64, u32)> =
        logits.zip(0..).map(|(logit, expert)| (logit - (-open01(rng).ln()).ln(), expert)).collect();
    if let Some(groups) = shape.groups {
        let mut ranked: Vec<(f64, &[(f64, u32)])> = scores
            .chunks((shape.experts / groups.count) as usize)
            .map(|group| {
                let (first, second) =
                    group.iter().fold((f64::MIN, f64::MIN), |(first, second), &(score, _)| {
                        if score > first { (score, first) } else { (first, second.max(score)) }
                    });
                (first + second, group)
            })
            .collect();
        ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
        scores = ranked.iter().take(groups.active as usize).flat_map(|(_, group)| *group).copied().collect();
    }
    scores.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
    scores.truncate(shape.active as usize);
    let mut experts: Box<[u32]> = scores.into_iter().map(|(_, expert)| expert).collect();
    experts.sort_unstable();
    experts
}

/// A standard normal deviate (Box and Muller).
fn normal(rng: &mut Rng) -> f64 {
    (-2.0 * open01(rng).ln()).sqrt() * (TAU * rng.f64()).cos()
}

/// Uniform between 0 and 1, without both.
fn open01(rng: &mut Rng) -> f64 {
    rng.f64().max(f64::MIN_POSITIVE)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::demo::model::{Groups, Model};

    /// Enough that the hottest expert stands out from chance, few enough to be quick.
    const SELECTIONS: usize = 26_000;

    fn generated(model: Model) -> Vec<Selection> {
        Generated::new(model.shape(), model.skew(), 1).take(SELECTIONS).collect()
    }

    fn frequencies(shape: Shape, selections: &[Selection]) -> Vec<Vec<f64>> {
        let mut counts = vec![vec![0.0; shape.experts as usize]; shape.layers.into()];
        for selection in selections {
            for &expert in &selection.experts {
                counts[usize::from(selection.layer)][expert as usize] += 1.0;
            }
        }
        for layer in &mut counts {
            let sum: f64 = layer.iter().sum();
            layer.iter_mut().for_each(|count| *count /= sum);
        }
        counts
    }

    /// Distinct nodes of a selection, on average.
    fn fan_out(selections: &[Selection], node: impl Fn(u16, u32) -> u32) -> f64 {
        let nodes = |at: &Selection| {
            at.experts.iter().map(|&expert| node(at.layer, expert)).collect::<BTreeSet<_>>().len()
        };
        selections.iter().map(nodes).sum::<usize>() as f64 / selections.len() as f64
    }

    fn assert_near(what: &str, value: f64, expected: f64, tolerance: f64) {
        assert!((value / expected - 1.0).abs() < tolerance, "{what}: {value}, recorded {expected}");
    }

    #[test]
    fn the_hottest_expert_is_as_hot_as_recorded() {
        // Hottest over mean expert, averaged over the layers of the recordings; DeepSeek-V3 while decoding.
        for (model, recorded) in [
            (Model::DeepseekV2Lite, 1.85),
            (Model::DeepseekV3, 5.56),
            (Model::Mixtral8x7b, 1.52),
            (Model::Llama4Maverick, 24.5),
        ] {
            let shape = model.shape();
            let frequencies = frequencies(shape, &generated(model));
            let hottest = |layer: &Vec<f64>| layer.iter().copied().fold(0.0, f64::max);
            let mean = frequencies.iter().map(hottest).sum::<f64>() / f64::from(shape.layers);
            assert_near(model.name(), mean * f64::from(shape.experts), recorded, 0.1);
        }
    }

    #[test]
    fn deepseek_v2_lite_reaches_as_many_nodes_as_recorded() {
        let selections = generated(Model::DeepseekV2Lite);
        for (nodes, recorded) in [(4, 3.35), (8, 4.55), (16, 5.33)] {
            let contiguous = fan_out(&selections, |_, expert| expert * nodes / 64);
            assert_near("contiguous", contiguous, recorded, 0.03);
        }
        let topics = Generated::new(Model::DeepseekV2Lite.shape(), Model::DeepseekV2Lite.skew(), 1).experts;
        let together = fan_out(&selections, |layer, expert| topics[usize::from(layer)][expert as usize].1);
        assert_near("experts that fire together on one node", together, 3.36, 0.05);
    }

    #[test]
    fn tokens_go_through_the_layers_and_select_distinct_experts() {
        for model in [Model::DeepseekV2Lite, Model::DeepseekV3, Model::Qwen3, Model::Mixtral8x7b] {
            let shape = model.shape();
            for (i, selection) in Generated::new(shape, model.skew(), 3).take(200).enumerate() {
                assert_eq!(usize::from(selection.layer), i % usize::from(shape.layers));
                assert_eq!(selection.experts.len(), shape.active as usize);
                assert!(selection.experts.is_sorted_by(|a, b| a < b), "{selection:?}");
                assert!(selection.experts.iter().all(|&expert| expert < shape.experts));
                if model == Model::DeepseekV3 {
                    let groups: BTreeSet<u32> = selection.experts.iter().map(|expert| expert / 32).collect();
                    assert!(groups.len() <= 4, "{selection:?}");
                }
            }
        }
    }

    #[test]
    fn the_seed_decides() {
        let model = Model::DeepseekV2Lite;
        let with = |seed| Generated::new(model.shape(), model.skew(), seed).take(100).collect::<Vec<_>>();
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn a_draw_from_counts_has_their_frequencies() {
        let groups = Some(Groups { count: 4, active: 2 });
        let shape = Shape { layers: 2, experts: 16, active: 3, groups };
        let counts = [
            [90., 80., 70., 60., 50., 40., 30., 20., 50., 50., 50., 50., 60., 40., 60., 40.].to_vec(),
            [0., 10., 10., 10., 10., 10., 10., 10., 10., 10., 10., 10., 10., 10., 10., 10.].to_vec(),
        ];
        let selections: Vec<Selection> = draw_from_counts(shape, &counts, 5).take(20_000).collect();
        let drawn = frequencies(shape, &selections);
        assert_eq!(drawn[1][0], 0.0);
        for (layer, counts) in counts.iter().enumerate() {
            let sum: f64 = counts.iter().sum();
            let distance: f64 = counts.iter().zip(&drawn[layer]).map(|(a, b)| (a / sum - b).abs()).sum();
            assert!(distance < 0.12, "layer {layer}: {distance} {:?}", drawn[layer]);
        }
        assert!(
            selections.iter().all(|at| at.experts.iter().map(|e| e / 4).collect::<BTreeSet<_>>().len() <= 2)
        );
    }
}
