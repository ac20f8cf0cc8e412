//! The control API: HTTP and JSON on a unix socket, and over TLS where it is configured.

pub mod types;
