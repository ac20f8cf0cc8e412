//! Bodies of requests: so large, so fast, and so many at a time.

use std::sync::Arc;

use axum::{
    body::{Body, Bytes},
    http::{HeaderMap, header, request::Parts},
};
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{
    connections::Place,
    limits::{Limits, RETRY_AFTER},
    problem::Refused,
    types::Code,
};
use crate::map::MAX_BYTES;

/// What is counted at a time of the bytes that are held.
const UNIT: usize = 4096;

/// Room for the bodies that are held.
#[derive(Debug)]
pub(super) struct Bodies {
    room: Arc<Semaphore>,
    limits: Limits,
}

/// A body, and the room that it takes.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) bytes: Vec<u8>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(super) fn new(limits: Limits) -> Self {
        Self { room: Arc::new(Semaphore::new(limits.body_bytes.div_ceil(UNIT))), limits }
    }

    /// Reads a body.
    ///
    /// # Errors
    /// Where it is too large or too slow, breaks off, or there is no room for it.
    pub(super) async fn read(&self, parts: &Parts, mut body: Body) -> Result<Held, Refused> {
        let (headers, place) = (&parts.headers, parts.extensions.get::<Arc<Place>>());
        let told = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        let read = async {
            if told.is_some_and(|length: u64| length > MAX_BYTES as u64) {
                return Err(too_large());
            }
            self.gather(&mut body, place.map(Arc::as_ref)).await
        };
        let read = timeout(self.limits.body, read).await.unwrap_or_else(|_| Err(late(&self.limits)));
        if read.is_err() {
            discard(headers, body, &self.limits).await;
        }
        read
    }

    async fn gather(&self, body: &mut Body, place: Option<&Place>) -> Result<Held, Refused> {
        let (mut bytes, mut room) = (Vec::new(), None::<OwnedSemaphorePermit>);
        loop {
            // Who lets its body be waited for is silent: its place may be another's.
            place.inspect(|place| place.silent());
            let data = next(body).await?;
            place.inspect(|place| place.busy());
            let Some(data) = data else { break };
            let length = bytes.len() + data.len();
            if length > MAX_BYTES {
                return Err(too_large());
            }
            let units = length.div_ceil(UNIT) - room.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
            let more = Arc::clone(&self.room).try_acquire_many_owned(units as u32).map_err(|_| {
                Refused::no_room("as many bodies as there is room for are under way; try again", RETRY_AFTER)
            })?;
            match &mut room {
                Some(room) => room.merge(more),
                None => room = Some(more),
            }
            bytes.extend_from_slice(&data);
        }
        Ok(Held { bytes, _room: room })
    }
}

/// The next piece; `None` at the end.
async fn next(body: &mut Body) -> Result<Option<Bytes>, Refused> {
    loop {
        let Some(frame) = body.frame().await else { return Ok(None) };
        let frame = frame.map_err(|error| {
            Refused::new(Code::BadRequest, format!("the body broke off or cannot be read: {error}"))
        })?;
        // What is no data are trailers.
        if let Ok(data) = frame.into_data() {
            return Ok(Some(data));
        }
    }
}

/// Takes what a client still sends of a body that is refused: a stream closed on it could take the answer along. One
/// that expects to be told to go on (RFC 9110, section 10.1.1) has not begun.
pub(super) async fn discard(headers: &HeaderMap, mut body: Body, limits: &Limits) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    // Who sends for longer is no client that waits for an answer.
    let _ = timeout(limits.discard, async { while let Ok(Some(_)) = next(&mut body).await {} }).await;
}

fn too_large() -> Refused {
    let mebibytes = MAX_BYTES >> 20;
    Refused::new(
        Code::TooLarge,
        format!(
            "a body has at most {mebibytes} MiB; send some layers at a time, each part with a later epoch"
        ),
    )
}

fn late(limits: &Limits) -> Refused {
    let seconds = limits.body.as_secs();
    Refused::new(
        Code::Timeout,
        format!("the body did not arrive within {seconds} s; send it faster or in parts"),
    )
}
