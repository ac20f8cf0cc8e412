//! What is there to ask for: the routes, and the document that describes them, made from the same declarations.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::header,
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
};
use tokio::sync::{Semaphore, watch};
use utoipa::{OpenApi as _, openapi::OpenApi};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::{
    body::{self, Bodies},
    documents::Documents,
    health,
    limits::Limits,
    metrics::{self, Requests},
    models,
    problem::{KernelProblems, Refused},
    state,
    token::Token,
    types::{Code, Problem},
};
use crate::daemon::control::Control;

/// The schema of expert maps, which utoipa cannot make: it stands beside the document that explains it.
const MAP_SCHEMA: &str = include_str!("../../../docs/expert-map.schema.json");

/// What the handlers share.
#[derive(Debug)]
pub(super) struct App {
    pub(super) control: Control,
    pub(super) limits: Limits,
    pub(super) bodies: Bodies,
    pub(super) parsers: Semaphore,
    pub(super) waiters: Semaphore,
    pub(super) requests: Requests,
    pub(super) documents: Documents,
    /// Turns true when the server ends.
    pub(super) ending: watch::Receiver<bool>,
}

impl App {
    pub(super) fn new(control: Control, limits: Limits, ending: watch::Receiver<bool>) -> Arc<Self> {
        Arc::new(Self {
            control,
            limits,
            bodies: Bodies::new(limits),
            parsers: Semaphore::new(limits.parsers),
            waiters: Semaphore::new(limits.waiters),
            requests: Requests::default(),
            documents: Documents::default(),
            ending,
        })
    }
}

#[derive(utoipa::OpenApi)]
#[openapi(
    info(
        title = "replicator",
        description = "Control of the XDP multicast replicator of one host: expert maps, epochs, BIFT-ids, counts."
    ),
    components(schemas(Problem))
)]
struct Description;

fn described() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(models::map, models::replace))
        .routes(routes!(models::patch))
        .routes(routes!(models::list))
        .routes(routes!(models::epochs))
        .routes(routes!(models::bift_ids))
        .routes(routes!(models::delete))
        .routes(routes!(state::status))
        .routes(routes!(state::neighbors))
        .routes(routes!(state::stats))
        .routes(routes!(health::alive))
        .routes(routes!(health::ready))
        .routes(routes!(metrics::metrics))
        .routes(routes!(openapi))
}

/// The document that describes the API (OpenAPI 3.1).
///
/// # Errors
/// Only where the schema of expert maps is no JSON.
pub fn document() -> serde_json::Result<serde_json::Value> {
    let mut document = serde_json::to_value(described().into_openapi())?;
    let mut schema: serde_json::Value = serde_json::from_str(MAP_SCHEMA)?;
    if let Some(schema) = schema.as_object_mut() {
        // The document has its own dialect, which is the same.
        schema.remove("$schema");
    }
    document["components"]["schemas"][models::MAP_SCHEMA_NAME] = schema;
    Ok(document)
}

/// Everything there is, for those who may have it: with a token, those who bring it.
pub(super) fn router(app: Arc<App>, token: Option<Token>) -> Router {
    let (router, _): (_, OpenApi) = described().split_for_parts();
    let router = router.fallback(not_found).method_not_allowed_fallback(method_not_allowed);
    let router = match token {
        Some(token) => router.layer(middleware::from_fn_with_state(Arc::new((app.limits, token)), authorize)),
        None => router,
    };
    router.with_state(app)
}

/// This document
#[utoipa::path(get, path = "/openapi.json", responses(
    (status = 200, description = "OpenAPI 3.1", body = Object),
    KernelProblems,
))]
async fn openapi() -> Result<Response, Refused> {
    let document = document().map_err(|error| Refused::new(Code::Internal, error.to_string()))?;
    Ok(axum::Json(document).into_response())
}

async fn not_found() -> Refused {
    Refused::new(Code::NotFound, "there is no such path; /openapi.json lists them")
}

async fn method_not_allowed() -> Refused {
    Refused::new(Code::MethodNotAllowed, "the path has other methods: those in the header Allow")
}

/// Refuses requests without the token, whatever they ask for but for health, which those ask for who have no secrets.
async fn authorize(State(with): State<Arc<(Limits, Token)>>, request: Request, next: Next) -> Response {
    let (limits, token) = &*with;
    let open = matches!(request.uri().path(), health::ALIVE | health::READY);
    let bring = |value: &axum::http::HeaderValue| token.is_in(value.as_bytes());
    if open || request.headers().get(header::AUTHORIZATION).is_some_and(bring) {
        return next.run(request).await;
    }
    let (parts, request_body) = request.into_parts();
    body::discard(&parts.headers, request_body, limits).await;
    Refused::new(Code::Unauthorized, "the token is missing or wrong; give that of `token-file` in the header `Authorization: Bearer TOKEN`")
        .into_response()
}
