//! Models: their maps, epochs and BIFT-ids.
#![expect(unused_qualifications, reason = "what `utoipa::path` expands to has them")]

use std::{
    borrow::Cow,
    sync::Arc,
    time::{Duration, Instant},
};

use axum::{
    Json,
    extract::{
        Path, Query, Request, State,
        rejection::{PathRejection, QueryRejection},
    },
    http::header,
    response::{IntoResponse, Response},
};
use serde::Deserialize;
use tokio::task::spawn_blocking;
use utoipa::{
    IntoParams, PartialSchema, ToSchema,
    openapi::{Object, RefOr, Schema},
};

use super::{
    limits::{DEFAULT_WAIT, MAX_WAIT, RETRY_AFTER},
    problem::{
        AnyProblems, DeleteProblems, LayersProblems, MapProblems, ModelProblems, Refused, WaitProblems,
    },
    router::App,
    types::{Code, Deleted, Epochs, Installed, ModelList},
};
use crate::{config::quoted, map::ExpertMap, models::Refusal};

type Model = Result<Path<String>, PathRejection>;

/// What an expert map is called in the description of the API.
pub(super) const MAP_SCHEMA_NAME: &str = "ExpertMap";

/// Stands for an expert map there: its schema takes this one's place.
struct MapDocument;

impl PartialSchema for MapDocument {
    fn schema() -> RefOr<Schema> {
        Object::new().into()
    }
}

impl ToSchema for MapDocument {
    fn name() -> Cow<'static, str> {
        MAP_SCHEMA_NAME.into()
    }
}

/// Whether a map is all of a model or some layers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Extent {
    Full,
    Layers,
}

/// Put a full map in force
///
/// Answered when every table is in the kernel. A refused map changes nothing.
#[utoipa::path(put, path = "/v1/models/{model}/map", request_body = MapDocument,
    params(("model" = String, Path, description = "Its name, percent-encoded: the one in the map")),
    responses(
        (status = 200, description = "The layers of the map", body = Installed),
        MapProblems,
    ))]
pub(super) async fn replace(State(app): State<Arc<App>>, model: Model, request: Request) -> Response {
    let answer = install(&app, model, request, Extent::Full).await;
    counted(&app, "PUT", answer)
}

/// Put some layers in force
///
/// The map has `partial: true`; ranks and number of experts are those of the map in force.
#[utoipa::path(patch, path = "/v1/models/{model}/layers", request_body = MapDocument,
    params(("model" = String, Path, description = "Its name, percent-encoded: the one in the map")),
    responses(
        (status = 200, description = "The layers of the map", body = Installed),
        LayersProblems,
    ))]
pub(super) async fn patch(State(app): State<Arc<App>>, model: Model, request: Request) -> Response {
    let answer = install(&app, model, request, Extent::Layers).await;
    counted(&app, "PATCH", answer)
}

/// Take a model out of force, and all its tables
#[utoipa::path(delete, path = "/v1/models/{model}",
    params(("model" = String, Path, description = "Its name, percent-encoded")),
    responses(
        (status = 200, description = "It is out of force", body = Deleted),
        DeleteProblems,
    ))]
pub(super) async fn delete(State(app): State<Arc<App>>, model: Model) -> Response {
    let delete = async { Ok::<_, Refused>(app.control.delete(name(model)?).await?) };
    let answer = delete.await;
    counted(&app, "DELETE", answer)
}

/// The models there are
#[utoipa::path(get, path = "/v1/models", responses(
    (status = 200, description = "In the order of their names", body = ModelList),
    AnyProblems,
))]
pub(super) async fn list(State(app): State<Arc<App>>) -> Result<Json<ModelList>, Refused> {
    Ok(Json(app.control.models().await?))
}

/// The map in force, all layers of it
#[utoipa::path(get, path = "/v1/models/{model}/map",
    params(("model" = String, Path, description = "Its name, percent-encoded")),
    responses(
        (status = 200, description = "A full map with the newest epoch", body = MapDocument),
        ModelProblems,
    ))]
pub(super) async fn map(State(app): State<Arc<App>>, model: Model) -> Result<Response, Refused> {
    let map = app.control.map(name(model)?).await?;
    let shared = Arc::clone(&app);
    let json = aside(&app, move || shared.documents.of(&map)).await?;
    Ok(([(header::CONTENT_TYPE, "application/json")], json).into_response())
}

/// The epochs of a model's layers, and the older tables that are still in force
#[utoipa::path(get, path = "/v1/models/{model}/epochs",
    params(("model" = String, Path, description = "Its name, percent-encoded")),
    responses(
        (status = 200, description = "As they are now", body = Epochs),
        ModelProblems,
    ))]
pub(super) async fn epochs(State(app): State<Arc<App>>, model: Model) -> Result<Json<Epochs>, Refused> {
    Ok(Json(app.control.epochs(name(model)?).await?))
}

/// For how long, and for what.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(super) struct Wait {
    /// Answer when the model's epoch is larger than this.
    after: Option<u64>,
    /// Seconds after which the answer comes all the same: 0 to 60, 30 without it.
    wait: Option<u64>,
}

/// The BIFT-ids of all layers of a model, at once or when they change
#[utoipa::path(get, path = "/v1/models/{model}/bift-ids",
    params(("model" = String, Path, description = "Its name, percent-encoded"), Wait),
    responses(
        (status = 200, description = "All layers; with `after`, unchanged where the wait was over first",
            body = Installed),
        WaitProblems,
    ))]
pub(super) async fn bift_ids(
    State(app): State<Arc<App>>,
    model: Model,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Result<Json<Installed>, Refused> {
    let model = name(model)?;
    let Query(Wait { after, wait }) =
        wait.map_err(|error| Refused::new(Code::BadRequest, error.body_text()))?;
    match (after, wait) {
        (_, Some(wait)) if wait > MAX_WAIT => {
            Err(Refused::new(Code::BadRequest, format!("`wait` is a number of seconds from 0 to {MAX_WAIT}")))
        }
        (None, Some(_)) => {
            Err(Refused::new(Code::BadRequest, "`wait` means nothing without `after`; add an epoch"))
        }
        (None, None) => Ok(Json(app.control.bift_ids(model).await?)),
        (Some(after), wait) => {
            let wait = Duration::from_secs(wait.unwrap_or(DEFAULT_WAIT));
            Ok(Json(newer(&app, model, after, wait).await?))
        }
    }
}

/// What is in force once its epoch is larger than `after`, or when `wait` is over.
async fn newer(app: &App, model: String, after: u64, wait: Duration) -> Result<Installed, Refused> {
    let waiters =
        || Refused::no_room("as many requests wait for changes as there is room for; try again", RETRY_AFTER);
    let mut changes = app.control.changes();
    let mut ending = app.ending.clone();
    let deadline = tokio::time::Instant::now() + wait;
    let mut place = None;
    loop {
        // Noted before it is asked, so that no change falls between the two.
        changes.borrow_and_update();
        let installed = app.control.bift_ids(model.clone()).await?;
        if installed.epoch > after || tokio::time::Instant::now() >= deadline {
            return Ok(installed);
        }
        if place.is_none() {
            place = Some(app.waiters.try_acquire().map_err(|_| waiters())?);
        }
        tokio::select! {
            changed = changes.changed() => changed.map_err(|_| Refusal::Ending)?,
            _ = ending.wait_for(|&ending| ending) => return Err(Refusal::Ending.into()),
            () = tokio::time::sleep_until(deadline) => {}
        }
    }
}

async fn install(app: &App, model: Model, request: Request, extent: Extent) -> Result<Installed, Refused> {
    let (parts, body) = request.into_parts();
    let held = app.bodies.read(&parts, body).await?;
    let model = name(model)?;
    // Its room is taken until it is read.
    let map = aside(app, move || ExpertMap::parse(&held.bytes)).await??;
    if map.model() != model {
        let (in_path, in_map) = (quoted(&model), quoted(map.model()));
        let message =
            format!("is {in_map}, and the path says {in_path}; send the map to its own model's path");
        return Err(Refusal::fault("model", message).into());
    }
    let started = Instant::now();
    let installed = match (extent, map.is_partial()) {
        (Extent::Full, false) | (Extent::Layers, true) => app.control.take(map).await?,
        (Extent::Full, true) => {
            let message = "a map with some layers is sent with PATCH to .../layers; PUT takes a full map";
            return Err(Refusal::fault("partial", message).into());
        }
        (Extent::Layers, false) => {
            let message = "PATCH takes a map with `partial: true`; a full map is sent with PUT to .../map";
            return Err(Refusal::fault("partial", message).into());
        }
    };
    app.requests.installed(started.elapsed());
    Ok(installed)
}

/// Does what takes long on another thread: this one is the daemon's.
async fn aside<T: Send + 'static>(
    app: &App,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refused> {
    let internal = |error: &dyn std::fmt::Display| Refused::new(Code::Internal, error.to_string());
    let _turn = app.parsers.acquire().await.map_err(|error| internal(&error))?;
    spawn_blocking(work).await.map_err(|error| internal(&error))
}

fn name(model: Model) -> Result<String, Refused> {
    let Path(model) = model.map_err(|error| Refused::new(Code::BadRequest, error.body_text()))?;
    Ok(model)
}

fn counted<T: serde::Serialize>(app: &App, method: &'static str, answer: Result<T, Refused>) -> Response {
    let status = answer.as_ref().map_or_else(Refused::status, |_| 200);
    app.requests.answered(method, status);
    answer.map(Json).into_response()
}
