//! What the command line says.

use std::path::PathBuf;

use clap::ValueEnum;

use super::{cluster::MAX_NODES, epochs::MAX_CHANGES, model::Model, payload::MIN_BYTES, trial::MAX_PAYLOAD};

/// What runs, and how.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Expert nodes
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_NODES)))]
    pub(super) nodes: u32,
    /// Model whose routing is generated
    #[arg(long, value_enum, default_value_t = Model::DeepseekV2Lite)]
    pub(super) model: Model,
    /// Recorded routing instead: a file, or a folder of one recording
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    pub(super) trace: Option<PathBuf>,
    /// Tokens to dispatch, each to the experts of one layer; a shorter recording is repeated
    #[arg(long, value_name = "N", default_value_t = 20_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) tokens: u32,
    /// Bytes of each token's payload
    #[arg(long, value_name = "BYTES", default_value_t = 2048, value_parser = payload_bytes)]
    pub(super) payload: usize,
    /// Times that the expert map is rebalanced meanwhile, over the control API
    #[arg(long, value_name = "N", default_value_t = 12, value_parser = clap::value_parser!(u16).range(..=i64::from(MAX_CHANGES)))]
    pub(super) rebalances: u16,
    /// What generated routing, payloads and rebalanced maps start from
    #[arg(long, default_value_t = 1)]
    pub(super) seed: u64,
    /// Where in the kernel the programs run
    #[arg(long, value_enum, default_value_t = Mode::Native)]
    pub(super) mode: Mode,
    /// What carries BIER
    #[arg(long, value_enum, default_value_t = Transport::Ipv4)]
    pub(super) transport: Transport,
    /// Also write the result to this file
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// The command `replicator`, built already
    #[arg(long, value_name = "FILE", hide = true)]
    pub(super) replicator: Option<PathBuf>,
}

/// The hook that XDP programs are attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Mode {
    /// In the driver.
    Native,
    /// In the stack: any device, slower.
    Generic,
}

/// What carries BIER.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Transport {
    /// UDP over IPv4.
    Ipv4,
    /// UDP over IPv6.
    Ipv6,
    /// Straight Ethernet.
    Ethernet,
}

impl Transport {
    /// Its name, as in results.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ipv4",
            Self::Ipv6 => "ipv6",
            Self::Ethernet => "ethernet",
        }
    }
}

fn payload_bytes(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(bytes @ MIN_BYTES..=MAX_PAYLOAD) => Ok(bytes),
        _ => Err(format!("a payload has {MIN_BYTES} to {MAX_PAYLOAD} bytes")),
    }
}
