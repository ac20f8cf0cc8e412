//! What becomes of a refusal: a problem (RFC 9457), its status, and when to come again.

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};

use super::types::{Code, Problem};
use crate::{
    daemon::control::Refusal,
    map::{Fault, Faults},
};

/// The media type of problems.
pub(super) const MEDIA_TYPE: &str = "application/problem+json";

impl Code {
    /// Every code.
    pub const ALL: [Self; 14] = [
        Self::BadRequest,
        Self::Unauthorized,
        Self::UnknownModel,
        Self::NotFound,
        Self::MethodNotAllowed,
        Self::Timeout,
        Self::StaleEpoch,
        Self::Configured,
        Self::TooLarge,
        Self::InvalidMap,
        Self::Internal,
        Self::NoRoom,
        Self::Ending,
        Self::Storage,
    ];

    /// The HTTP status of a problem with this code.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest => 400,
            Self::Unauthorized => 401,
            Self::UnknownModel | Self::NotFound => 404,
            Self::MethodNotAllowed => 405,
            Self::Timeout => 408,
            Self::StaleEpoch | Self::Configured => 409,
            Self::TooLarge => 413,
            Self::InvalidMap => 422,
            Self::Internal => 500,
            Self::NoRoom | Self::Ending => 503,
            Self::Storage => 507,
        }
    }
}

impl Problem {
    fn new(code: Code, detail: impl Into<String>) -> Self {
        let (status, detail) = (code.status(), detail.into());
        Self { code, status, detail, epoch: None, faults: Vec::new(), more_faults: 0 }
    }
}

/// An answer that is a problem.
#[derive(Debug)]
pub(super) struct Refused {
    problem: Problem,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refused {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        let header = (code == Code::Unauthorized)
            .then_some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        Self { problem: Problem::new(code, detail), header }
    }

    /// The server has no room at this moment.
    pub(super) fn no_room(detail: impl Into<String>, retry_after: u64) -> Self {
        let header = Some((header::RETRY_AFTER, retry_after.into()));
        Self { header, ..Self::new(Code::NoRoom, detail) }
    }

    /// One fault of a map, at `path`.
    pub(super) fn fault(path: &str, message: impl Into<String>) -> Self {
        let fault = Fault { path: path.to_owned(), message: message.into() };
        Faults { faults: vec![fault], more: 0 }.into()
    }

    pub(super) fn status(&self) -> u16 {
        self.problem.status
    }
}

impl From<Faults> for Refused {
    fn from(faults: Faults) -> Self {
        let mut refused = Self::new(Code::InvalidMap, faults.to_string());
        (refused.problem.faults, refused.problem.more_faults) = (faults.faults, faults.more);
        refused
    }
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::UnknownModel(_) => Self::new(Code::UnknownModel, detail),
            Refusal::Configured(_) => Self::new(Code::Configured, detail),
            Refusal::StaleEpoch { current, .. } => {
                let mut refused = Self::new(Code::StaleEpoch, detail);
                refused.problem.epoch = Some(current);
                refused
            }
            Refusal::Invalid(faults) => faults.into(),
            Refusal::NoRoom { retry_after: Some(seconds), .. } => Self::no_room(detail, seconds),
            Refusal::NoRoom { retry_after: None, .. } => Self::new(Code::NoRoom, detail),
            Refusal::Storage(_) => Self::new(Code::Storage, detail),
            Refusal::Internal(_) => Self::new(Code::Internal, detail),
            Refusal::Ending => Self::new(Code::Ending, detail),
        }
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(self.problem)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        response.headers_mut().extend(self.header);
        response
    }
}
