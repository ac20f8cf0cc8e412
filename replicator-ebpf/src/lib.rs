//! The pure logic of the XDP programs: what a frame is, and what is written into it. It compiles for the host too, where
//! its tests run.
#![no_std]

#[cfg(test)]
extern crate std;

pub mod bits;
pub mod checksum;
pub mod frame;
pub mod packet;
