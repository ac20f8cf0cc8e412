//! The screen, drawn of what is known; pure.

use ratatui::{
    Frame,
    layout::{Constraint, Layout, Rect},
    style::{Color, Modifier, Style},
    text::{Line, Span},
    widgets::{Block, Borders, Cell, Paragraph, Row, Table},
};
use replicator_common::outcome::Unit;

use super::sample::{self, NodeRow, OutcomeRow, Sample, Sort, si};
use crate::daemon::status::NeighborResolution;

/// What there is to draw.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Where the daemon is.
    pub(super) address: String,
    pub(super) before: Option<Sample>,
    pub(super) now: Option<Sample>,
    /// Why there is no newer sample.
    pub(super) trouble: Option<String>,
    pub(super) sort: Sort,
    pub(super) paused: bool,
}

impl View {
    /// A newer sample is there.
    pub(super) fn take(&mut self, sample: Sample) {
        self.before = self.now.replace(sample);
        self.trouble = None;
    }
}

pub(super) fn draw(frame: &mut Frame<'_>, view: &View) {
    let (outcomes, nodes, models) = view.now.as_ref().map_or_else(Default::default, |now| {
        let before = view.before.as_ref();
        (sample::outcomes(before, now), sample::nodes(before, now, view.sort), sample::models(now))
    });
    // A border and a head each.
    let height = |rows: usize, most: u16| Constraint::Length((rows as u16).min(most).saturating_add(2));
    let areas = Layout::vertical([
        Constraint::Length(2),
        height(outcomes.len(), 12),
        Constraint::Fill(1),
        height(models.len(), 8),
        Constraint::Length(1),
    ])
    .split(frame.area());
    let [head, of_outcomes, of_nodes, of_models, foot] = areas[..] else { return };
    frame.render_widget(Paragraph::new(header(view)), head);
    if view.now.is_some() {
        table(
            frame,
            of_outcomes,
            ["outcome", "unit", "total", "per second"],
            [Constraint::Length(20), Constraint::Length(6), Constraint::Length(16), Constraint::Fill(1)],
            outcomes.iter().map(outcome),
        );
        table(
            frame,
            of_nodes,
            ["node", "copies", "copies/s", "bit/s", "state"],
            [
                Constraint::Length(20),
                Constraint::Length(14),
                Constraint::Length(10),
                Constraint::Length(10),
                Constraint::Fill(1),
            ],
            nodes.iter().map(node),
        );
        let model = |model: &crate::api::types::ModelSummary| {
            let (layers, experts) = (model.layers.to_string(), model.logical_experts.to_string());
            Row::new([model.model.clone(), model.epoch.to_string(), layers, experts])
        };
        table(
            frame,
            of_models,
            ["model", "epoch", "layers", "experts"],
            [Constraint::Length(32), Constraint::Length(18), Constraint::Length(8), Constraint::Fill(1)],
            models.iter().map(model),
        );
    }
    let keys = format!(
        "q quit   s sort by {}   p {}",
        view.sort.next().label(),
        if view.paused { "go on" } else { "pause" }
    );
    frame.render_widget(Paragraph::new(keys).style(Style::new().add_modifier(Modifier::DIM)), foot);
}

fn header(view: &View) -> Vec<Line<'_>> {
    let first = match &view.now {
        None => format!("replicator at {}", view.address),
        // What changes comes first: a narrow terminal cuts the rest.
        Some(Sample { status, .. }) => format!(
            "neighbors {}/{} resolved; BIFT-ids {}, superseded {}{}; up {} s; replicator {}, process {}, at {}",
            status.neighbors.resolved,
            status.neighbors.total,
            status.bift_ids,
            status.superseded,
            if status.behind { "; behind the host" } else { "" },
            status.uptime_seconds as u64,
            status.version,
            status.pid,
            view.address,
        ),
    };
    let second = match (&view.trouble, &view.now) {
        (Some(trouble), _) => {
            Span::styled(trouble.clone(), Style::new().fg(Color::Red).add_modifier(Modifier::BOLD))
        }
        (None, _) if view.paused => Span::styled("paused", Style::new().fg(Color::Yellow)),
        (None, None) => Span::raw("waiting for the first answer"),
        (None, Some(_)) => Span::raw(""),
    };
    vec![Line::from(first), Line::from(second)]
}

fn table<'r, const N: usize>(
    frame: &mut Frame<'_>,
    area: Rect,
    head: [&'static str; N],
    widths: [Constraint; N],
    rows: impl Iterator<Item = Row<'r>>,
) {
    let head = Row::new(head).style(Style::new().add_modifier(Modifier::BOLD));
    frame
        .render_widget(Table::new(rows, widths).header(head).block(Block::new().borders(Borders::TOP)), area);
}

fn or_dash(rate: Option<f64>) -> String {
    rate.map_or_else(|| "-".to_owned(), si)
}

fn outcome(row: &OutcomeRow) -> Row<'static> {
    let unit = match row.unit {
        Unit::Frame => "frame",
        Unit::Copy => "copy",
        Unit::Bit => "bit",
    };
    Row::new([row.label.to_owned(), unit.to_owned(), row.total.to_string(), or_dash(row.rate)])
}

fn node(row: &NodeRow) -> Row<'static> {
    let (state, style) = match &row.resolution {
        None => ("this host".to_owned(), Style::new()),
        Some(NeighborResolution::Ready { mac, .. }) => (format!("resolved, {mac}"), Style::new()),
        Some(NeighborResolution::Pending { reason }) => {
            (format!("NOT RESOLVED: {reason}"), Style::new().fg(Color::Red))
        }
    };
    Row::new([
        Cell::new(row.name.clone()),
        Cell::new(row.copies.to_string()),
        Cell::new(or_dash(row.copy_rate)),
        Cell::new(or_dash(row.bit_rate)),
        Cell::new(state).style(style),
    ])
}
