//! What the daemon and the datapath tell of themselves.

use std::sync::Arc;

use axum::{Json, extract::State};

use super::{
    problem::{AnyProblems, KernelProblems, Refused},
    router::App,
    types::{NeighborList, Stats, StatusReport},
};

/// The daemon and what it looks after
#[utoipa::path(get, path = "/v1/status", responses(
    (status = 200, description = "As it is now", body = StatusReport),
    AnyProblems,
))]
pub(super) async fn status(State(app): State<Arc<App>>) -> Result<Json<StatusReport>, Refused> {
    Ok(Json(app.control.status().await?))
}

/// The neighbors, and whether copies can go to them
#[utoipa::path(get, path = "/v1/neighbors", responses(
    (status = 200, description = "In the order of the configuration", body = NeighborList),
    AnyProblems,
))]
pub(super) async fn neighbors(State(app): State<Arc<App>>) -> Result<Json<NeighborList>, Refused> {
    Ok(Json(app.control.neighbors().await?))
}

/// What became of frames, copies and bits, and what each neighbor got
#[utoipa::path(get, path = "/v1/stats", responses(
    (status = 200, description = "Counts since the maps in the kernel were made", body = Stats),
    KernelProblems,
))]
pub(super) async fn stats(State(app): State<Arc<App>>) -> Result<Json<Stats>, Refused> {
    Ok(Json(app.control.stats().await?))
}
