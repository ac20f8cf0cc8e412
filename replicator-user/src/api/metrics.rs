//! The daemon as Prometheus sees it (OpenMetrics 1.0). Nothing is told for each expert or layer: there are thousands.

use std::{fmt, sync::Arc, time::Duration};

use axum::{
    extract::State,
    http::header,
    response::{IntoResponse as _, Response},
};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric as _, text},
    metrics::{
        MetricType,
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::ConstGauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::Registry,
};
use replicator_common::outcome::{Outcome, Unit};

use super::{
    problem::{KernelProblems, Refused},
    router::App,
    types::{Code, NeighborList, Stats, StatusReport},
};
use crate::daemon::status::NeighborResolution;

const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the server counts itself.
#[derive(Debug)]
pub(super) struct Requests {
    answered: Family<Request, Counter>,
    installs: Histogram,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    method: &'static str,
    code: u16,
}

impl Default for Requests {
    fn default() -> Self {
        // 1 ms to 8 s: from a patch of one layer to a full map of the largest model.
        Self { answered: Family::default(), installs: Histogram::new(exponential_buckets(0.001, 2.0, 14)) }
    }
}

impl Requests {
    /// A request to change a map was answered with this status.
    pub(super) fn answered(&self, method: &'static str, code: u16) {
        self.answered.get_or_create(&Request { method, code }).inc();
    }

    /// A map was put in force.
    pub(super) fn installed(&self, took: Duration) {
        self.installs.observe(took.as_secs_f64());
    }
}

/// Counts and states for Prometheus
#[utoipa::path(get, path = "/metrics", responses(
    (status = 200, description = "OpenMetrics 1.0", body = String,
        content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8"),
    KernelProblems,
))]
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, Refused> {
    let sample = Sample {
        stats: app.control.stats().await?,
        status: app.control.status().await?,
        neighbors: app.control.neighbors().await?,
    };
    let text = sample.text(&app.requests).map_err(|error| Refused::new(Code::Internal, error.to_string()))?;
    Ok(([(header::CONTENT_TYPE, MEDIA_TYPE)], text).into_response())
}

/// What the daemon told for one answer.
#[derive(Debug)]
struct Sample {
    stats: Stats,
    status: StatusReport,
    neighbors: NeighborList,
}

impl Sample {
    fn text(self, requests: &Requests) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register(
            "replicator_map_requests",
            "Requests that change a model's map, by method and HTTP status",
            requests.answered.clone(),
        );
        registry.register(
            "replicator_map_install_seconds",
            "Time from a map without faults to all its tables in the kernel",
            requests.installs.clone(),
        );
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        text::encode(&mut text, &registry)?;
        Ok(text)
    }
}

impl Collector for Sample {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let Self { stats, status, neighbors } = self;
        for (unit, name, help) in [
            (Unit::Frame, "replicator_frames", "Frames that the programs met, by what became of them"),
            (Unit::Copy, "replicator_copies", "Copies, by what became of them"),
            (Unit::Bit, "replicator_bits", "Bits of frames that no copy went out for, by reason"),
        ] {
            let of_unit = Outcome::ALL.iter().map(|outcome| (outcome, outcome.label()));
            let counts = of_unit.filter(|(outcome, _)| outcome.unit() == unit);
            let counts = counts.filter_map(|(_, label)| Some((label, *stats.outcomes.get(label)?)));
            counters(&mut encoder, name, help, "outcome", counts)?;
        }
        let traffic = || stats.neighbors.iter().map(|(name, traffic)| (name.as_str(), traffic));
        let copies = traffic().map(|(name, traffic)| (name, traffic.copies));
        counters(
            &mut encoder,
            "replicator_neighbor_copies",
            "Copies sent to each neighbor",
            "neighbor",
            copies,
        )?;
        let bytes = traffic().map(|(name, traffic)| (name, traffic.bytes));
        let help = "Bytes of copies sent to each neighbor, Ethernet header included";
        counters(&mut encoder, "replicator_neighbor_bytes", help, "neighbor", bytes)?;

        let resolved = neighbors.neighbors.iter().map(|neighbor| {
            let ready = matches!(neighbor.resolution, NeighborResolution::Ready { .. });
            (neighbor.name.as_str(), f64::from(u8::from(ready)))
        });
        let help = "Whether copies can go to each neighbor";
        gauges(&mut encoder, "replicator_neighbor_resolved", help, "neighbor", resolved)?;
        // Epochs end at 2^53 - 1, up to which they are exact.
        let epochs = status.models.iter().map(|model| (model.model.as_str(), model.epoch as f64));
        gauges(&mut encoder, "replicator_model_epoch", "Newest epoch of each model", "model", epochs)?;
        let version = [(status.version.as_str(), 1.0)].into_iter();
        gauges(&mut encoder, "replicator_build_info", "The daemon's version", "version", version)?;
        let name = "replicator_superseded_tables_retired_early";
        let help = "Older tables that had to make room before their time";
        let early = ConstCounter::new(status.retired_early);
        early.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        for (name, help, value) in [
            ("replicator_bift_ids", "BIFT-ids in force", status.bift_ids as f64),
            (
                "replicator_superseded_tables",
                "Older tables in force for senders that have not moved on",
                status.superseded as f64,
            ),
            ("replicator_uptime_seconds", "Time since the daemon started", status.uptime_seconds),
        ] {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}

fn counters<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    counts: impl Iterator<Item = (&'l str, u64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (value, count) in counts {
        ConstCounter::new(count).encode(family.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}

fn gauges<'l>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &str,
    values: impl Iterator<Item = (&'l str, f64)>,
) -> fmt::Result {
    let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    for (value, number) in values {
        ConstGauge::new(number).encode(family.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}
