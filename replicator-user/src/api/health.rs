//! Whether the daemon lives, and whether frames can be replicated: what orchestrators ask.

use std::sync::Arc;

use axum::{Json, extract::State, http::StatusCode};
use tokio::time::timeout;

use super::{
    problem::{LoopProblems, Refused},
    router::App,
    types::{Code, Readiness},
};

pub(super) const ALIVE: &str = "/livez";
pub(super) const READY: &str = "/readyz";

/// Whether the daemon's loop answers
#[utoipa::path(get, path = "/livez", responses(
    (status = 200, description = "It does", body = String, content_type = "text/plain"),
    LoopProblems,
))]
pub(super) async fn alive(State(app): State<Arc<App>>) -> Result<&'static str, Refused> {
    readiness(&app).await.map(|_| "ok")
}

/// Whether frames can be replicated
#[utoipa::path(get, path = "/readyz", responses(
    (status = 200, description = "They can", body = Readiness),
    (status = 503, description = "They cannot; what is missing", body = Readiness),
    LoopProblems,
))]
pub(super) async fn ready(State(app): State<Arc<App>>) -> Result<(StatusCode, Json<Readiness>), Refused> {
    let readiness = readiness(&app).await?;
    let status = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(readiness)))
}

async fn readiness(app: &App) -> Result<Readiness, Refused> {
    let most = app.limits.answer_of_loop;
    match timeout(most, app.control.readiness()).await {
        Ok(answer) => Ok(answer?),
        Err(_) => {
            let detail =
                format!("the daemon's loop has not answered for {} s; start it again", most.as_secs());
            Err(Refused::new(Code::Internal, detail))
        }
    }
}
