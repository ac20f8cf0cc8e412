//! The pure logic of the XDP programs. It compiles for the host too, where its tests run.
#![no_std]
