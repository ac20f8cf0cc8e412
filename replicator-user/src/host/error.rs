//! What can go wrong at the edge to the kernel.

use std::io;

/// Why the host could not be asked or changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No netlink socket.
    #[error("cannot open a netlink socket: {0}")]
    Open(io::Error),
    /// The kernel refused a request.
    #[error("cannot {action}: {cause}{}", advice(cause))]
    Refused {
        /// What was tried, to follow the word "cannot".
        action: String,
        /// The kernel's answer.
        cause: io::Error,
    },
    /// The kernel's answer did not come or could not be read.
    #[error("cannot {action}: the kernel gave no answer that could be read")]
    NoAnswer {
        /// What was tried, to follow the word "cannot".
        action: String,
    },
    /// What was asked for cannot be done here; a sentence says why and what to do.
    #[error("{0}")]
    Unfit(String),
}

impl Error {
    /// A refusal with what was tried.
    pub(super) fn refused(action: impl Into<String>, cause: io::Error) -> Self {
        Self::Refused { action: action.into(), cause }
    }

    /// Whether the kernel refused with this error number.
    pub(super) fn is(&self, errno: i32) -> bool {
        matches!(self, Self::Refused { cause, .. } if cause.raw_os_error() == Some(errno))
    }
}

fn advice(cause: &io::Error) -> &'static str {
    match cause.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => " (run as root or with CAP_NET_ADMIN)",
        _ => "",
    }
}
