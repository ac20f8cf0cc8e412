//! Frames from within the kernel: a foreign XDP program that redirects given frames to a device, all in one softirq.
//! What a raw socket cannot do: a burst that one NAPI poll takes, a frame as long as its page allows, and, through a
//! devmap program, copies that `replicate` did not make. Written instruction by instruction, for want of a compiler.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd},
};

use anyhow::{Context as _, ensure};
use aya::{
    maps::{Array, DevMap, Map, MapData},
    programs::ProgramFd,
};
use aya_obj::generated::{
    BPF_F_TEST_XDP_LIVE_FRAMES, BPF_F_XDP_HAS_FRAGS, bpf_cmd, bpf_devmap_val, bpf_map_type, bpf_prog_type,
};

use crate::wire::Device;

/// Frames of one burst: `TEST_XDP_MAX_BATCH` in net/bpf/test_run.c. Each page is used once, as it comes back changed.
pub const BURST: usize = 256;

/// Longest frame: more than may be cloned, by moving its start into the headroom.
pub const LONGEST: usize = TEMPLATE + GROWTH;

/// Bytes that the kernel is given for each frame, before the program makes it as long as it should be.
const TEMPLATE: usize = 3_360;
/// Bytes that every frame grows at its start; leaves room for the kernel's `struct xdp_frame`.
const GROWTH: usize = 208;

/// A frame as the program finds it.
#[derive(Clone, Copy)]
#[repr(C)]
struct Slide {
    length: u64,
    bytes: [u8; LONGEST],
}

// SAFETY: integers without padding; every bit pattern is a value.
unsafe impl aya::Pod for Slide {}

/// The program and its maps.
pub struct Player {
    program: OwnedFd,
    frames: Array<MapData, Slide>,
    next: Array<MapData, u64>,
    _device: DevMap<MapData>,
}

impl Player {
    /// A player to a device: what it plays arrives at the other end of the pair. `rewrite` is a devmap program.
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn new(device: &Device, rewrite: Option<&ProgramFd>) -> anyhow::Result<Self> {
        let frames = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, size_of::<Slide>(), BURST)?;
        let next = map(bpf_map_type::BPF_MAP_TYPE_ARRAY, size_of::<u64>(), 1)?;
        let device_map = map(bpf_map_type::BPF_MAP_TYPE_DEVMAP, size_of::<bpf_devmap_val>(), 1)?;
        let [a, b, c] = [&next, &frames, &device_map].map(|map| map.fd().as_fd().as_raw_fd());
        let program = load(&program(a, b, c))?;
        let mut device_map = DevMap::try_from(Map::DevMap(device_map))?;
        // Only now: the first program that a map meets settles whether its programs take frames in several buffers.
        device_map.set(0, device.ifindex, rewrite, 0)?;
        Ok(Self {
            program,
            frames: Array::try_from(Map::Array(frames))?,
            next: Array::try_from(Map::Array(next))?,
            _device: device_map,
        })
    }

    /// Plays frames, at most [`BURST`].
    ///
    /// # Errors
    /// Where the kernel refuses.
    pub fn play(&mut self, frames: &[Vec<u8>]) -> anyhow::Result<()> {
        ensure!(frames.len() <= BURST, "{} frames are more than {BURST}", frames.len());
        for (index, frame) in (0..).zip(frames) {
            let mut slide = Slide { length: frame.len() as u64, bytes: [0; LONGEST] };
            slide.bytes.get_mut(..frame.len()).context("a frame too long")?.copy_from_slice(frame);
            self.frames.set(index, slide, 0)?;
        }
        self.next.set(0, 0, 0)?;
        let template = [0; TEMPLATE];
        let attributes = TestRunAttributes {
            program: self.program.as_raw_fd() as u32,
            data_size_in: TEMPLATE as u32,
            data_in: template.as_ptr() as u64,
            repeat: frames.len() as u32,
            flags: BPF_F_TEST_XDP_LIVE_FRAMES,
            batch_size: frames.len() as u32,
            ..TestRunAttributes::default()
        };
        bpf(bpf_cmd::BPF_PROG_TEST_RUN, &attributes).context("cannot play frames")?;
        Ok(())
    }
}

fn map(kind: bpf_map_type, value: usize, entries: usize) -> anyhow::Result<MapData> {
    let key = size_of::<u32>() as u32;
    let definition = aya_obj::Map::new_from_params(kind as u32, key, value as u32, entries as u32, 0);
    Ok(MapData::create(definition, "player", None)?)
}

/// `union bpf_attr` of BPF_PROG_TEST_RUN.
#[derive(Default)]
#[repr(C)]
struct TestRunAttributes {
    program: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    zero: u32,
}

/// `union bpf_attr` of BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttributes {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

fn bpf<T>(command: bpf_cmd, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes are those of the command, and the buffers they point to outlive the call.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of_val(attributes))
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as i32) }
}

fn load(instructions: &[u64]) -> anyhow::Result<OwnedFd> {
    let mut log = vec![0_u8; 65_536];
    let attributes = LoadAttributes {
        kind: bpf_prog_type::BPF_PROG_TYPE_XDP as u32,
        instruction_count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: BPF_F_XDP_HAS_FRAGS,
    };
    let fd = bpf(bpf_cmd::BPF_PROG_LOAD, &attributes)
        .with_context(|| format!("cannot load the player: {}", String::from_utf8_lossy(&log)))?;
    // SAFETY: just opened, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Jumps where a register is equal to a value, is not, or is at most a value.
const EQUAL: u8 = 0x15;
const UNEQUAL: u8 = 0x55;
const AT_MOST: u8 = 0xb5;
const EXIT: u8 = 0x95;

/// One instruction: operation, destination and source register, offset, immediate value.
const fn op(code: u8, to: u64, from: u64, offset: i16, value: i32) -> u64 {
    code as u64 | to << 8 | from << 12 | (offset as u16 as u64) << 16 | (value as u32 as u64) << 32
}

const fn copy(to: u64, from: u64) -> u64 {
    op(0xbf, to, from, 0, 0)
}

const fn set(to: u64, value: i32) -> u64 {
    op(0xb7, to, 0, 0, value)
}

const fn add(to: u64, value: i32) -> u64 {
    op(0x07, to, 0, 0, value)
}

const fn call(helper: i32) -> u64 {
    op(0x85, 0, 0, 0, helper)
}

/// Goes on behind the third instruction where `jump` says so; else returns `XDP_ABORTED`.
const fn or_abort(jump: u8, register: u64, value: i32) -> [u64; 3] {
    [op(jump, register, 0, 2, value), set(0, 0), op(EXIT, 0, 0, 0, 0)]
}

/// The map with a descriptor, in register 1: one instruction in two words.
const fn map_in_1(fd: i32) -> [u64; 2] {
    [op(0x18, 1, 1, 0, fd), 0]
}

/// `length, bytes = frames[next++]; grow; cut to length; store bytes; redirect to the device`
fn program(next: i32, frames: i32, device: i32) -> Vec<u64> {
    const LOOKUP: i32 = 1;
    const ADJUST_HEAD: i32 = 44;
    const REDIRECT_MAP: i32 = 51;
    const ADJUST_TAIL: i32 = 65;
    const STORE_BYTES: i32 = 190;
    let (found, done) = (or_abort(UNEQUAL, 0, 0), or_abort(EQUAL, 0, 0));
    let key_in_2 = [copy(2, 10), add(2, -4)];
    [
        // 6: context. The key is on the stack.
        &[copy(6, 1), op(0x62, 10, 0, -4, 0)][..],
        &map_in_1(next),
        &key_in_2,
        &[call(LOOKUP)],
        &found,
        &[op(0x79, 1, 0, 0, 0), op(0x63, 10, 1, -4, 0), add(1, 1), op(0x7b, 0, 1, 0, 0)],
        &map_in_1(frames),
        &key_in_2,
        &[call(LOOKUP)],
        &found,
        // 7: slide, 8: its length.
        &[copy(7, 0), op(0x79, 8, 7, 0, 0)],
        &[copy(1, 6), set(2, -(GROWTH as i32)), call(ADJUST_HEAD)],
        &done,
        &[copy(1, 6), copy(2, 8), add(2, -(LONGEST as i32)), call(ADJUST_TAIL)],
        &done,
        // The verifier wants to see a length of 1 to LONGEST.
        &[copy(4, 8), add(4, -1)],
        &or_abort(AT_MOST, 4, LONGEST as i32 - 1),
        &[add(4, 1)],
        &[copy(1, 6), set(2, 0), copy(3, 7), add(3, 8), call(STORE_BYTES)],
        &done,
        &map_in_1(device),
        &[set(2, 0), set(3, 0), call(REDIRECT_MAP), op(EXIT, 0, 0, 0, 0)],
    ]
    .concat()
}
