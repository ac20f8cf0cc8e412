//! What becomes of a refusal: a problem (RFC 9457), its status, and when to come again.

use std::collections::BTreeMap;

use axum::{
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use utoipa::{
    IntoResponses, ToSchema as _,
    openapi::{self, ContentBuilder, Ref, RefOr, ResponseBuilder},
};

use super::types::{Code, Problem};
use crate::{map::Faults, models::Refusal};

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

/// Names for sets of problems, for the description of the API.
macro_rules! problems {
    ($($(#[$doc:meta])* $name:ident: $($code:ident)*;)*) => { $(
        $(#[$doc])*
        pub(super) struct $name;

        impl IntoResponses for $name {
            fn responses() -> BTreeMap<String, RefOr<openapi::Response>> {
                described(&[$(Code::$code),*])
            }
        }
    )* };
}

problems! {
    /// Of a request for a full map.
    MapProblems: BadRequest Unauthorized Timeout StaleEpoch Configured TooLarge InvalidMap Internal NoRoom Ending Storage;
    /// Of a request for some layers.
    LayersProblems: BadRequest Unauthorized UnknownModel Timeout StaleEpoch Configured TooLarge InvalidMap Internal
        NoRoom Ending Storage;
    /// Of a request to delete a model.
    DeleteProblems: BadRequest Unauthorized UnknownModel Configured Internal Ending Storage;
    /// Of a question about a model.
    ModelProblems: BadRequest Unauthorized UnknownModel Internal Ending;
    /// Of one that waits.
    WaitProblems: BadRequest Unauthorized UnknownModel NoRoom Ending;
    /// Of a question that the kernel has to answer.
    KernelProblems: Unauthorized Internal Ending;
    /// Of any question.
    AnyProblems: Unauthorized Ending;
    /// Of a question about health.
    LoopProblems: Internal Ending;
}

/// The answers with these codes, those with one status together.
fn described(codes: &[Code]) -> BTreeMap<String, RefOr<openapi::Response>> {
    let mut names = BTreeMap::<u16, Vec<String>>::new();
    for code in codes {
        let name = serde_json::to_value(code).ok().and_then(|name| Some(name.as_str()?.to_owned()));
        names.entry(code.status()).or_default().extend(name);
    }
    let content = || ContentBuilder::new().schema(Some(Ref::from_schema_name(Problem::name()))).build();
    let response = |names: Vec<String>| {
        ResponseBuilder::new().description(names.join(", ")).content(MEDIA_TYPE, content()).build()
    };
    names.into_iter().map(|(status, names)| (status.to_string(), response(names).into())).collect()
}

/// An answer that is a problem.
#[derive(Debug)]
pub(super) struct Refused {
    problem: Box<Problem>,
    header: Option<(HeaderName, HeaderValue)>,
}

impl Refused {
    pub(super) fn new(code: Code, detail: impl Into<String>) -> Self {
        let header = (code == Code::Unauthorized)
            .then_some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")));
        Self { problem: Box::new(Problem::new(code, detail)), header }
    }

    /// The server has no room at this moment.
    pub(super) fn no_room(detail: impl Into<String>, retry_after: u64) -> Self {
        let header = Some((header::RETRY_AFTER, retry_after.into()));
        Self { header, ..Self::new(Code::NoRoom, detail) }
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
        let mut response = (status, axum::Json(*self.problem)).into_response();
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
        response.headers_mut().extend(self.header);
        response
    }
}
