//! The programs and maps in the kernel.

pub mod object;
