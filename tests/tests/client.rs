//! The client's two ends across a veth pair. Each test is in a network namespace of its own, which goes when its last
//! thread and socket do. Needs root.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::mpsc,
    thread,
    time::Duration,
};

use replicator_common::bier::{BiftId, BitStringLength};
use replicator_user::client::{
    Destinations, DispatchError, Dispatcher, DispatcherSettings, Receiver, ReceiverSettings, Source,
    Transport,
};

/// MAC address of the end `far`.
const FAR_MAC: &str = "02:00:00:00:00:0b";
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `test` in a new network namespace with the two ends of a veth pair, `near` and `far`.
fn with_pair(test: impl FnOnce() + Send) {
    thread::scope(|scope| {
        let run = || {
            unshare();
            ip(&format!("link add near type veth peer name far address {FAR_MAC}"));
            for end in ["near", "far"] {
                ip(&format!("link set {end} addrgenmode none"));
                ip(&format!("link set {end} up"));
            }
            await_link();
            test();
        };
        if let Err(panic) = scope.spawn(run).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

/// Moves `far` to a namespace of its own, with addresses at both ends, and opens a receiver there.
fn receiver_beyond() -> Receiver {
    let (at, place) = mpsc::channel();
    let (moved, wait) = mpsc::channel();
    let there = thread::spawn(move || {
        unshare();
        at.send(format!("/proc/{}/task/{}/ns/net", std::process::id(), thread_id())).unwrap();
        wait.recv().unwrap();
        ip("link set far addrgenmode none up");
        ip("address add 169.254.81.2/30 dev far");
        ip("address add fd51::2/64 dev far nodad");
        let source = Source::Udp { bind: "[::]:8138".parse().unwrap(), share: false };
        let mut receiver = Receiver::open(&source, &ReceiverSettings::default()).unwrap();
        receiver.set_timeout(Some(PATIENCE));
        receiver
    });
    ip(&format!("link set far netns {}", place.recv().unwrap()));
    ip("address add 169.254.81.1/30 dev near");
    ip("address add fd51::1/64 dev near nodad");
    moved.send(()).unwrap();
    let receiver = there.join().unwrap();
    await_link();
    receiver
}

/// Waits until `near` sends. Between its carrier and the kernel's `linkwatch`, which gives it a queueing discipline, a
/// device drops everything and says that it was sent (`noop_enqueue`).
fn await_link() {
    for _ in 0..500 {
        if run("ip", "-oneline link show near").contains("state UP") {
            return;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("the link does not come up");
}

fn unshare() {
    // SAFETY: it changes what this thread sees of the network, and nothing of memory.
    let result = unsafe { libc::unshare(libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "no new network namespace: {}; run as root", std::io::Error::last_os_error());
}

fn thread_id() -> i32 {
    // SAFETY: it only returns a number.
    unsafe { libc::gettid() }
}

fn ip(arguments: &str) {
    run("ip", arguments);
}

/// Runs a program and returns what it says.
fn run(program: &str, arguments: &str) -> String {
    let output = Command::new(program).args(arguments.split(' ')).output().unwrap();
    assert!(output.status.success(), "{program} {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn settings(length: BitStringLength) -> DispatcherSettings {
    DispatcherSettings::new(BiftId::expert(4, 2).unwrap(), length, 7)
}

fn udp(to: &str) -> Dispatcher {
    let transport = Transport::Udp { to: to.parse().unwrap(), interface: None };
    Dispatcher::open(&transport, &settings(BitStringLength::B256)).unwrap()
}

fn ethernet() -> (Dispatcher, Receiver) {
    let transport = Transport::Ethernet { interface: "near".into(), destination: FAR_MAC.parse().unwrap() };
    let dispatcher = Dispatcher::open(&transport, &settings(BitStringLength::B256)).unwrap();
    let source = Source::Ethernet { interface: "far".into() };
    let mut receiver = Receiver::open(&source, &ReceiverSettings::default()).unwrap();
    receiver.set_timeout(Some(PATIENCE));
    (dispatcher, receiver)
}

/// Sends frames of these payload lengths, and checks that each arrives once, in order and whole.
fn send_and_check(dispatcher: &mut Dispatcher, receiver: &mut Receiver, lengths: &[usize]) {
    let payload = |number: usize, length: usize| vec![number as u8; length];
    let mut handed = 0;
    for (number, &length) in lengths.iter().enumerate() {
        let experts = [number as u32 % 256];
        handed += dispatcher
            .dispatch(Destinations::Experts(&experts), number as u32, &payload(number, length))
            .unwrap();
    }
    assert_eq!(handed + dispatcher.flush().unwrap(), lengths.len());
    for (number, &length) in lengths.iter().enumerate() {
        let delivery = receiver.receive().unwrap().expect("a frame was lost");
        assert_eq!(delivery.header.entropy(), number as u32);
        assert!(delivery.experts().eq([number as u32 % 256]));
        assert_eq!(delivery.payload, payload(number, length));
    }
    assert_none(receiver);
}

fn assert_none(receiver: &mut Receiver) {
    receiver.set_timeout(Some(Duration::from_millis(20)));
    assert!(receiver.receive().unwrap().is_none());
    receiver.set_timeout(Some(PATIENCE));
}

#[test]
fn straight_ethernet_arrives_as_it_was_sent() {
    with_pair(|| {
        let (mut dispatcher, mut receiver) = ethernet();
        assert_eq!(receiver.local_address(), None);
        assert!(!dispatcher.segmenting());
        assert_eq!(dispatcher.max_payload(), 1500 - 44);
        let lengths: Vec<usize> = (0..100).map(|number| [1456, 0, 100][number % 3]).collect();
        send_and_check(&mut dispatcher, &mut receiver, &lengths);
        for length in BitStringLength::ALL {
            dispatcher.set_table(BiftId::new(0x123).unwrap(), length);
            dispatcher.dispatch(Destinations::Bits(&[1, length.bits() as u32]), 0, b"x").unwrap();
            dispatcher.flush().unwrap();
            let delivery = receiver.receive().unwrap().unwrap();
            assert!(delivery.bits.iter().eq([1, length.bits()]));
            assert_eq!((delivery.bift_id().get(), delivery.payload), (0x123, &b"x"[..]));
        }
        assert_eq!((receiver.counts().delivered, receiver.counts().skipped()), (105, 0));
    });
}

/// A raw sender for frames that a dispatcher does not make.
struct Raw(i32);

impl Raw {
    fn on(ifindex: i32) -> Self {
        // SAFETY: it takes no pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: 0,
            sll_ifindex: ifindex,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = size_of_val(&address) as u32;
        // SAFETY: pointer and length are those of `address`, which outlives the call.
        assert_eq!(unsafe { libc::bind(fd, (&raw const address).cast(), length) }, 0);
        Self(fd)
    }

    fn send(&self, parts: &[&[u8]]) {
        let frame = parts.concat();
        // SAFETY: pointer and length are those of `frame`, which outlives the call.
        let sent = unsafe { libc::send(self.0, frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize);
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // SAFETY: nobody else has the descriptor.
        unsafe { libc::close(self.0) };
    }
}

fn ifindex(name: &std::ffi::CStr) -> i32 {
    // SAFETY: the name ends with a zero byte and outlives the call.
    unsafe { libc::if_nametoindex(name.as_ptr()) as i32 }
}

#[test]
fn up_to_two_vlan_tags_are_looked_through_and_nothing_else_comes_in() {
    with_pair(|| {
        let (_, mut receiver) = ethernet();
        let raw = Raw::on(ifindex(c"near"));
        let macs: &[u8] = &[2, 0, 0, 0, 0, 0xb, 2, 0, 0, 0, 0, 0xa];
        let (q, ad): (&[u8], &[u8]) = (&[0x81, 0, 0, 5], &[0x88, 0xa8, 0, 7]);
        let bier = |number: u8| {
            [0xab, 0x37, 0, 1, 1, 64, 0x50, 0x10, 0, number, 0, 62, 0, 7, 0, 0, 0, 0, 0, 0, 0, 1]
        };
        raw.send(&[macs, &bier(0)]);
        raw.send(&[macs, q, &bier(1)]);
        raw.send(&[macs, ad, &bier(2)]);
        raw.send(&[macs, ad, q, &bier(3)]);
        raw.send(&[macs, q, q, &bier(4)]);
        raw.send(&[macs, ad, q, q, q, &bier(5)]);
        raw.send(&[macs, &[0x08, 0x00, 0x45], &[0; 60]]);
        raw.send(&[macs, &[0x81, 0x00, 0, 5, 0x08, 0x00, 0x45], &[0; 60]]);
        raw.send(&[macs, &[0xab, 0x37], &[0x51; 60]]);
        raw.send(&[macs, &bier(6)]);
        for number in [0, 1, 2, 3, 4, 6] {
            let delivery = receiver.receive().unwrap().expect("a frame was lost");
            assert_eq!(delivery.header.entropy(), number);
            assert!(delivery.bits.iter().eq([1]) && delivery.payload.is_empty());
        }
        assert_none(&mut receiver);
        let counts = receiver.counts();
        assert_eq!((counts.delivered, counts.version, counts.skipped()), (6, 1, 1));
    });
}

#[test]
fn a_receiver_does_not_see_what_its_own_host_sends() {
    with_pair(|| {
        let (mut dispatcher, mut receiver) = ethernet();
        let source = Source::Ethernet { interface: "near".into() };
        let mut sender_side = Receiver::open(&source, &ReceiverSettings::default()).unwrap();
        dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"").unwrap();
        dispatcher.flush().unwrap();
        assert!(receiver.receive().unwrap().is_some());
        assert_none(&mut sender_side);
    });
}

#[test]
fn segmented_batches_cross_a_link_in_both_families() {
    with_pair(|| {
        let mut receiver = receiver_beyond();
        for to in ["169.254.81.2:8138", "[fd51::2]:8138"] {
            let mut dispatcher = udp(to);
            send_and_check(&mut dispatcher, &mut receiver, &[1000; 150]);
            let lengths: Vec<usize> = (0..150).map(|number| [1000, 1000, 17, 1400][number % 4]).collect();
            send_and_check(&mut dispatcher, &mut receiver, &lengths);
            assert!(dispatcher.segmenting(), "{to}");
        }
    });
}

#[test]
fn a_dispatcher_bound_to_a_device_needs_no_route() {
    with_pair(|| {
        let mut receiver = receiver_beyond();
        ip("address flush dev near");
        ip("address add 169.254.81.1/32 dev near");
        let to: SocketAddr = (Ipv4Addr::new(169, 254, 81, 2), 8138).into();
        let open =
            |interface| Dispatcher::open(&Transport::Udp { to, interface }, &settings(BitStringLength::B256));
        let error = open(None).err().unwrap().to_string();
        assert!(error.starts_with("169.254.81.2:8138: cannot connect: Network is unreachable"), "{error}");
        send_and_check(&mut open(Some("near".into())).unwrap(), &mut receiver, &[1; 3]);
    });
}

#[test]
fn frames_longer_than_a_shrunk_mtu_are_named_and_the_others_go() {
    with_pair(|| {
        let mut receiver = receiver_beyond();
        for (to, overhead) in [("169.254.81.2:8138", 28 + 44), ("[fd51::2]:8138", 48 + 44)] {
            ip("link set near mtu 1500");
            let mut dispatcher = udp(to);
            assert_eq!(dispatcher.max_payload(), 1500 - overhead);
            ip("link set near mtu 1400");
            let fits = 1400 - overhead;
            // The first four have to go one by one; the kernel may be asked to segment the others.
            let lengths = [10, fits, fits + 1, fits + 2, 1400, 1400, 20];
            for length in lengths {
                dispatcher.dispatch(Destinations::Experts(&[1]), 0, &vec![1; length]).unwrap();
            }
            let mut refused = Vec::new();
            let mut handed = 0;
            while dispatcher.waiting() > 0 {
                match dispatcher.flush() {
                    Ok(frames) => handed += frames,
                    Err(DispatchError::Refused { frames, handed: before, error }) => {
                        assert_eq!(error.raw_os_error(), Some(libc::EMSGSIZE));
                        refused.extend(frames);
                        handed += before;
                    }
                    Err(other) => panic!("{other}"),
                }
            }
            // A run is refused as one, and with it the last frame, which would fit.
            assert!(refused == [2, 3, 4, 5, 6] || refused == [2, 3, 4, 5], "{to}: {refused:?}");
            assert_eq!(handed + refused.len(), lengths.len());
            for length in [10, fits, 20].into_iter().take(handed) {
                assert_eq!(receiver.receive().unwrap().unwrap().payload.len(), length);
            }
            assert_none(&mut receiver);
        }
    });
}

#[test]
fn a_device_that_is_down_loses_nothing_silently() {
    with_pair(|| {
        let (mut dispatcher, mut receiver) = ethernet();
        ip("link set near down");
        for _ in 0..3 {
            dispatcher.dispatch(Destinations::Experts(&[1]), 0, b"early").unwrap();
        }
        let error = dispatcher.flush().unwrap_err();
        assert!(
            matches!(&error, DispatchError::Refused { frames, handed: 0, .. } if *frames == (0..1)),
            "{error}"
        );
        assert_eq!(
            error.to_string(),
            "frames 0 to 0 were not sent (0 before them were): Network is down (os error 100)"
        );
        assert_eq!(dispatcher.waiting(), 2);
        ip("link set near up");
        await_link();
        assert_eq!(dispatcher.flush().unwrap(), 2);
        // The receiver's own end lost its carrier meanwhile, which is no error of its socket.
        assert_eq!(receiver.receive().unwrap().unwrap().payload, b"early");
        assert_eq!(receiver.receive().unwrap().unwrap().payload, b"early");
        assert_none(&mut receiver);
    });
}

#[test]
fn what_a_full_queue_drops_is_named() {
    with_pair(|| {
        let receiver = receiver_beyond();
        // Two frames of 1,072 bytes and their Ethernet headers fit behind what is on its way; the next waits for seconds.
        run("tc", "qdisc add dev near root tbf rate 1kbit burst 1600 limit 3000");
        let transport = Transport::Udp { to: "169.254.81.2:8138".parse().unwrap(), interface: None };
        let patient =
            DispatcherSettings { patience: Duration::from_millis(5), ..settings(BitStringLength::B256) };
        let mut dispatcher = Dispatcher::open(&transport, &patient).unwrap();
        let mut lost = Vec::new();
        let mut handed = 0;
        for number in 0..10 {
            // Every frame is flushed by itself: none is segmented.
            dispatcher.dispatch(Destinations::Experts(&[1]), number, &[0; 1000]).unwrap();
            match dispatcher.flush() {
                Ok(frames) => handed += frames,
                Err(DispatchError::Refused { frames, error, .. }) => {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOBUFS));
                    lost.extend(frames);
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert_eq!(handed + lost.len(), 10);
        assert!((2..=4).contains(&handed), "{handed} frames fit");

        for number in 0..4 {
            dispatcher.dispatch(Destinations::Experts(&[1]), number, &[0; 1000]).unwrap();
        }
        let error = dispatcher.flush().unwrap_err();
        assert!(matches!(&error, DispatchError::Dropped { frames, .. } if *frames == (10..14)), "{error}");
        assert_eq!(dispatcher.waiting(), 0);
        drop(receiver);
    });
}
