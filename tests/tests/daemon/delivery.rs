//! Copies as the kernels of their receivers see them.

use std::{
    net::{SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
};

use replicator_tests::lab::Daemon;
use replicator_user::client::{Destinations, Dispatcher};

use crate::network::*;

/// Every set of nodes 1 to 3 but the empty one, as bits.
const SETS: [&[u32]; 7] = [&[1], &[2], &[3], &[1, 2], &[1, 3], &[2, 3], &[1, 2, 3]];

/// Payload of a frame: any byte may be swapped for another only with notice.
fn payload(number: u32, length: usize) -> Vec<u8> {
    (0..length).map(|at| (number as usize * 31 + at * 7 + (at >> 8)) as u8).collect()
}

/// Sends frames of these lengths, each length to every set of nodes; what each node is to get.
fn dispatch(
    dispatcher: &mut Dispatcher,
    sinks: &mut [Sink],
    lengths: &[usize],
    segmented: bool,
) -> (u64, Vec<u64>) {
    let mut number = 0;
    let mut frames = 0;
    let mut copies = vec![0; sinks.len()];
    for &length in lengths {
        let mut expected = vec![Vec::new(); sinks.len()];
        for bits in SETS {
            let payload = payload(number, length);
            dispatcher.dispatch(Destinations::Bits(bits), number, &payload).unwrap();
            frames += 1;
            for &bit in bits {
                expected[bit as usize - 1].push(Arrival {
                    entropy: number,
                    ttl: 63,
                    bits: vec![bit as usize],
                    payload: payload.clone(),
                });
            }
            if !segmented {
                assert_eq!(dispatcher.flush().unwrap(), 1);
            }
            number += 1;
        }
        // Seven frames of one length wait: one message that the kernel segments.
        assert_eq!(dispatcher.flush().unwrap(), if segmented { SETS.len() } else { 0 });
        for ((sink, expected), copies) in sinks.iter_mut().zip(expected).zip(&mut copies) {
            assert_eq!(sink.take(expected.len()), expected, "of {length} bytes, segmented: {segmented}");
            *copies += expected.len() as u64;
        }
    }
    assert!(dispatcher.segmenting());
    (frames, copies)
}

#[test]
fn kernels_accept_every_copy_of_every_length_over_both_families() {
    let cluster = Cluster::new(3);
    let mut sinks = [cluster.sinks(), cluster.sinks_v6()];
    let _daemon = Daemon::start(&cluster.sender, &binary(), &cluster.config()).unwrap();
    let before: Vec<_> = cluster.nodes.iter().map(protocol_counters).collect();
    let (mut all_frames, mut all_copies) = (0, 0);
    let mut per_node = [[0; 3]; 2];
    let families = [(ORIGIN_V4, TABLE, 28), (ORIGIN_V6, TABLE_V6, 48)];
    for (((to, table, headers), sinks), per_node) in families.into_iter().zip(&mut sinks).zip(&mut per_node) {
        for segmented in [false, true] {
            let mut dispatcher = dispatcher(&cluster.sender, to, table);
            let longest = dispatcher.max_payload();
            // The origin veth has room for a frame that fits one page with two VLAN tags: 3,520 - 14 - 8, less IP, UDP,
            // and a BIER header with 64 bits.
            assert_eq!(longest, 3498 - headers - 20);
            let lengths =
                [0, 1, 2, 3, 7, 8, 17, 18, 63, 64, 255, 256, 1001, 1472, 2048, longest - 1, longest];
            let (frames, copies) = dispatch(&mut dispatcher, sinks, &lengths, segmented);
            assert_eq!((frames, &copies[..]), (119, &[68, 68, 68][..]));
            all_frames += frames;
            all_copies += copies.iter().sum::<u64>();
            per_node.iter_mut().zip(copies).for_each(|(sum, copies)| *sum += copies);
        }
    }
    for ((node, before), index) in cluster.nodes.iter().zip(before).zip(0..) {
        let after = protocol_counters(node);
        let change = |name: &str| after[name] - before[name];
        assert_eq!(
            (change("UdpInDatagrams"), change("Udp6InDatagrams")),
            (per_node[0][index], per_node[1][index])
        );
        for fault in ["InErrors", "InCsumErrors", "NoPorts", "RcvbufErrors"] {
            assert_eq!((change(&format!("Udp{fault}")), change(&format!("Udp6{fault}"))), (0, 0), "{fault}");
        }
        for fault in ["IpInHdrErrors", "IpInAddrErrors", "IpInDiscards", "Ip6InHdrErrors", "Ip6InAddrErrors"]
        {
            assert_eq!(change(fault), 0, "{fault}");
        }
    }
    let outcomes = outcomes(&cluster.sender);
    assert_eq!(
        (outcomes["replicated"], outcomes["planned"], outcomes["sent"]),
        (all_frames, 816, all_copies)
    );
    // What is not ours (neighbor discovery, ARP) passed; nothing else became of any frame.
    assert!(outcomes.keys().all(|outcome| ["passed", "planned", "replicated", "sent"].contains(&&**outcome)));
}

/// The counters that the test above trusts do move.
#[test]
fn a_kernel_counts_a_datagram_without_its_checksum() {
    let cluster = Cluster::new(1);
    let mut sinks = cluster.sinks_v6();
    let to = SocketAddr::new(cluster.segment.v6(1), 8138);
    let socket = cluster.sender.run(|| Ok(UdpSocket::bind("[::]:0")?)).unwrap();
    set_no_check(&socket);
    socket.send_to(b"no checksum", to).unwrap();
    until("it is counted", || protocol_counters(&cluster.nodes[0])["Udp6InCsumErrors"] == 1);
    assert_eq!(sinks[0].take(0), []);
}

/// Has the socket send without checksums.
fn set_no_check(socket: &UdpSocket) {
    let on: libc::c_int = 1;
    // SAFETY: the pointer and the length are those of `on`, which outlives the call.
    let status = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            libc::UDP_NO_CHECK6_TX,
            (&raw const on).cast(),
            size_of_val(&on) as libc::socklen_t,
        )
    };
    assert_eq!(status, 0);
}
