//! The programs against the verifier's limits, and the maps filled to theirs.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use replicator_common::{
    bier::BitStringLength::{B256, B1024},
    limits::MAX_TABLES,
    neighbor::Encapsulation,
    outcome::Outcome::{Planned, Replicated, Sent, UnknownBift},
};
use replicator_tests::{
    bier::{Frame, assert_frames, header},
    rig::{OPTIONS, Rig, object, to},
};
use replicator_user::{
    bift::{Birt, NeighborId},
    datapath::{Datapath, Mode},
};

/// The kernel gives up at 1,000,000: half of it is left for other kernels, whose verifiers walk more.
const MOST_INSTRUCTIONS: u32 = 500_000;

#[test]
fn instruction_counts() {
    let mut rig = Rig::new().unwrap();
    for verified in rig.datapath.verified().unwrap() {
        println!("{}: {} instructions verified", verified.program, verified.instructions);
        assert!((1..=MOST_INSTRUCTIONS).contains(&verified.instructions), "{verified:?}");
    }
}

/// The verifier gives up when a signal arrives: loading must not let it see one.
#[test]
fn loads_under_signals() {
    extern "C" fn ignore(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ignore as *const () as usize) };
    // SAFETY: no memory is touched.
    let thread = unsafe { libc::pthread_self() };
    let loaded = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(60);
            while !loaded.load(Ordering::Relaxed) && Instant::now() < deadline {
                // SAFETY: the thread outlives this one, which it waits for.
                unsafe { libc::pthread_kill(thread, libc::SIGUSR1) };
                thread::sleep(Duration::from_millis(1));
            }
        });
        let rig = Rig::new();
        loaded.store(true, Ordering::Relaxed);
        rig.unwrap();
    });
}

/// 4,095 tables of 256 bits at 64 nodes each, of 1,021 neighbors; then one of 1,024 bits at 254 nodes in 16 variants. All
/// of it is adopted as it is.
#[test]
fn every_limit_at_once() {
    let mut rig = Rig::pinned().unwrap();
    let (uplink, port) = rig.wire.pair("uplink").unwrap();
    rig.attach(&uplink, Mode::Native).unwrap();
    let start = Instant::now();
    for node in 0..NeighborId::MAX_REMOTE {
        rig.neighbor(node, &uplink, Encapsulation::Ipv4, &[]).unwrap();
    }
    println!("{} neighbors: {:.1?}", NeighborId::MAX_REMOTE, start.elapsed());
    assert_eq!(rig.neighbors.len(), 1_021);

    // Bit b of table t is at node (64 t + b - 1) mod 1,021 for b up to 64, and repeats after 64 bits.
    let node = |table: usize, bit: usize| (64 * table + (bit - 1) % 64) % 1_021;
    let birt =
        |table| Birt::new(B256, (1..=256).map(|bit| vec![to(node(table, bit))]).collect(), None).unwrap();
    let birts: Vec<_> = (0..MAX_TABLES - 1).map(birt).collect();
    let start = Instant::now();
    for (table, birt) in birts.iter().enumerate() {
        rig.install(table as u32 * 255, birt).unwrap();
    }
    println!("{} tables: {:.1?}", birts.len(), start.elapsed());
    let rows = (0..1_024).map(|bit| (0..1 + bit % 3).map(|n| to((bit + 85 * n) % 254)).collect()).collect();
    let largest = Birt::new(B1024, rows, Some(16)).unwrap();
    let start = Instant::now();
    rig.install((1 << 20) - 1, &largest).unwrap();
    println!("one of 1,024 bits, {} nodes, 16 variants: {:.1?}", largest.neighbors().len(), start.elapsed());
    assert_eq!((largest.neighbors().len(), rig.datapath.bift_ids().len()), (254, 4_096));
    assert_eq!(rig.datapath.pressure(), 1.0);

    rig.datapath.stage(&rig.pins).unwrap();
    assert!(rig.datapath.pin(&rig.pins).unwrap().is_empty());
    let start = Instant::now();
    rig.datapath = Datapath::adopt(&object().unwrap(), &OPTIONS, &rig.pins).unwrap().unwrap();
    println!("adopted: {:.1?}", start.elapsed());
    rig.attach(&uplink, Mode::Native).unwrap();
    assert_eq!((rig.datapath.bift_ids().len(), rig.datapath.neighbors().len()), (4_096, 1_021));
    assert_eq!((rig.datapath.pressure(), rig.datapath.named_neighbors().len()), (1.0, 1_021));
    let start = Instant::now();
    for (table, birt) in birts.iter().enumerate() {
        assert!(!rig.install(table as u32 * 255, birt).unwrap(), "table {table}");
    }
    assert!(!rig.install((1 << 20) - 1, &largest).unwrap());
    println!("compared: {:.1?}", start.elapsed());

    let mut copies = 0;
    let mut check = |frame: Frame, expected: Vec<(usize, Vec<usize>)>| {
        let mut expected: Vec<_> =
            expected.into_iter().map(|(node, bits)| rig.copy(&frame, node, bits)).collect();
        expected.sort_by_key(|copy| copy.destination);
        port.send(&frame.to_bytes()).unwrap();
        let found: Vec<_> =
            port.receive(expected.len()).unwrap().iter().map(|copy| Frame::parse(copy).unwrap()).collect();
        assert_frames(&found, &expected, format_args!("{:02x?}", frame.header));
        copies += found.len() as u64;
    };
    for table in [0, 1, 15, 16, 2_047, 2_048, 4_093, 4_094] {
        let frame = rig.frame(&uplink, Encapsulation::Ipv4, table as u32 * 255, B256, &[2, 64, 66, 255]);
        check(
            frame,
            vec![(node(table, 2), vec![2, 66]), (node(table, 64), vec![64]), (node(table, 63), vec![255])],
        );
    }
    let compiled = largest.compile();
    for entropy in [0, 1, 7, 15, 0xf_fff0] {
        let bits = [1, 2, 3, 500, 1_023, 1_024];
        let mut frame = rig.frame(&uplink, Encapsulation::Ipv4, (1 << 20) - 1, B1024, &bits);
        frame.header = header((1 << 20) - 1, 17, 1_024, entropy);
        let variant = &compiled.variants[entropy as usize % 16];
        let mut served = BTreeMap::<_, Vec<_>>::new();
        for bit in bits {
            served.entry(usize::from(variant.rows[bit - 1]) - 1).or_default().push(bit);
        }
        check(frame, served.into_iter().collect());
    }
    let counts = [Replicated, Planned, Sent, UnknownBift].map(|outcome| rig.count(outcome));
    assert_eq!(counts, [13, copies, copies, 0]);
}
