//! How much of everything the server takes: it shares a thread with the daemon's loop, which follows the host.

use std::time::Duration;

use crate::map::MAX_BYTES;

/// Connections of a listener. The unix socket and TCP have their own, so that neither can shut out the other. Where all
/// are taken, the one that has been silent for longest goes.
const CONNECTIONS: usize = 256;

/// Requests that wait for a change of a model: a process for each of many GPUs may follow it, and others still find
/// connections.
const WAITERS: usize = 128;

/// Bytes of bodies that are held at a time: four of the largest.
const BODY_BYTES: usize = 4 * MAX_BYTES;

/// Maps that are read or written at a time. The largest take some ten megabytes as a tree, and a CPU each.
const PARSERS: usize = 2;

/// How long a request's head may take, and so how long a connection may be silent.
const HEAD: Duration = Duration::from_secs(10);

/// How long a TLS handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How long a body may take: the largest at half a megabyte a second.
const BODY: Duration = Duration::from_secs(30);

/// How long what is still under way of a refused body is taken and thrown away. Who gets an answer before the body was
/// sent may not read it.
const DISCARD: Duration = Duration::from_secs(1);

/// How long a client may take none of its answer.
const STALL: Duration = Duration::from_secs(30);

/// How long answers under way may take when the server ends.
const DRAIN: Duration = Duration::from_secs(2);

/// How long the daemon's loop may take to say that it lives. Installing the largest maps takes a second or two.
const LOOP: Duration = Duration::from_secs(10);

/// Longest and usual wait for a change.
pub(super) const MAX_WAIT: u64 = 60;
pub(super) const DEFAULT_WAIT: u64 = 30;

/// When to come again, in seconds, where the server itself has no room.
pub(super) const RETRY_AFTER: u64 = 1;

/// Bytes of a request's head: a path with a model's name and a token need less than one.
pub(super) const HEAD_BYTES: usize = 64 << 10;

/// Characters of a token: 16 random ones are 64 bits at the very least.
pub(super) const MIN_TOKEN: usize = 16;

/// Characters of a token that still fits a head.
pub(super) const MAX_TOKEN: usize = 4096;

/// The limits that tests make smaller.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) connections: usize,
    pub(super) waiters: usize,
    pub(super) body_bytes: usize,
    pub(super) parsers: usize,
    pub(super) head: Duration,
    pub(super) handshake: Duration,
    pub(super) body: Duration,
    pub(super) discard: Duration,
    pub(super) stall: Duration,
    pub(super) drain: Duration,
    pub(super) answer_of_loop: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: CONNECTIONS,
            waiters: WAITERS,
            body_bytes: BODY_BYTES,
            parsers: PARSERS,
            head: HEAD,
            handshake: HANDSHAKE,
            body: BODY,
            discard: DISCARD,
            stall: STALL,
            drain: DRAIN,
            answer_of_loop: LOOP,
        }
    }
}
