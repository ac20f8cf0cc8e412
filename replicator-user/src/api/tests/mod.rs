//! The server against a loop without a datapath. Answers are read byte by byte, not by the code under test.

pub(crate) mod fake;
mod hostile;
mod random;
mod routes;
mod socket;
mod tls;
