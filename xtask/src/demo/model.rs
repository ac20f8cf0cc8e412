//! The models whose routing the demo knows: their shapes, and how skewed recordings show them to be.

use clap::ValueEnum;

/// A mixture-of-experts model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Model {
    /// DeepSeek-V2-Lite.
    #[value(name = "deepseek-v2-lite")]
    DeepseekV2Lite,
    /// DeepSeek-V3 and R1.
    #[value(name = "deepseek-v3")]
    DeepseekV3,
    /// Mixtral 8x7B.
    #[value(name = "mixtral-8x7b")]
    Mixtral8x7b,
    /// Llama 4 Maverick.
    #[value(name = "llama4-maverick")]
    Llama4Maverick,
    /// Qwen3-235B-A22B.
    #[value(name = "qwen3-235b")]
    Qwen3,
}

/// What decides which sets of experts can occur.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shape {
    /// Layers with routed experts.
    pub layers: u16,
    /// Routed experts of a layer.
    pub experts: u32,
    /// Experts that a token selects in a layer.
    pub active: u32,
    /// Where routing first selects groups of experts.
    pub groups: Option<Groups>,
}

/// Group-limited routing: the experts of a token come from few groups of consecutive experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Groups {
    /// Groups of a layer, equal in size.
    pub count: u32,
    /// Groups that a token selects: those with the largest sums of their two best scores.
    pub active: u32,
}

/// How far generated routing is from uniform.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Skew {
    /// Standard deviation of the logarithm of an expert's popularity in its layer.
    pub popularity: f64,
    /// What the logarithm gains while a token is about the expert's topic: this makes experts fire together.
    pub topic: f64,
}

impl Model {
    /// Its name on the command line.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::DeepseekV2Lite => "deepseek-v2-lite",
            Self::DeepseekV3 => "deepseek-v3",
            Self::Mixtral8x7b => "mixtral-8x7b",
            Self::Llama4Maverick => "llama4-maverick",
            Self::Qwen3 => "qwen3-235b",
        }
    }

    /// Its shape.
    pub(super) fn shape(self) -> Shape {
        let (layers, experts, active, groups) = match self {
            Self::DeepseekV2Lite => (26, 64, 6, None),
            Self::DeepseekV3 => (58, 256, 8, Some(Groups { count: 8, active: 4 })),
            Self::Mixtral8x7b => (32, 8, 2, None),
            Self::Llama4Maverick => (24, 128, 1, None),
            Self::Qwen3 => (94, 128, 8, None),
        };
        Shape { layers, experts, active, groups }
    }

    /// Its skew, set so that generated routing has the hottest expert of recorded routing (the test of `routing` states
    /// the recorded values) and DeepSeek-V2-Lite also its co-activation. No recording of Qwen3 is known to us:
    /// it gets a skew between those of DeepSeek-V2-Lite and DeepSeek-V3.
    pub(super) fn skew(self) -> Skew {
        let (popularity, topic) = match self {
            Self::DeepseekV2Lite => (0.29, 2.3),
            Self::DeepseekV3 => (0.75, 2.0),
            Self::Mixtral8x7b => (0.35, 1.0),
            Self::Llama4Maverick => (1.9, 2.0),
            Self::Qwen3 => (0.55, 2.0),
        };
        Skew { popularity, topic }
    }
}
