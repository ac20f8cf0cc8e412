//! The two XDP programs.
fn main() {}
