//! The programs and maps in the kernel.
