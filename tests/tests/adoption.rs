//! A datapath that goes on where another left off, and one that takes over from another: nothing is lost meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use aya::{
    Pod,
    maps::{Array, Map, MapData, ProgramArray},
    programs::{Xdp, XdpMode, xdp::XdpLinkId},
};
use replicator_common::{
    LAYOUT_VERSION,
    bier::{BiftId, BitStringLength::B64},
    neighbor::{Encapsulation, Endpoint, Neighbor, Settings, SourcePrefix, role},
    outcome::Outcome::{Planned, Replicated, Sent, WrongCookie},
    table::{FbmChunk, Live, Member, RowChunk, Share, Table},
};
use replicator_tests::{
    bier::{Frame, assert_frames},
    rig::{OPTIONS, OWN_IPV4, PIN_PATH, Rig, SENDER_IPV4, object, to},
    wire::{Device, Port, cut_into, run},
};
use replicator_user::{
    bift::{Birt, NeighborId},
    datapath::{Datapath, DatapathError, MemberPlace, Mode, Pins},
};

const TABLE: u32 = 0x1234;

/// Bits 1 and 3 are at node 0 behind one device, bits 2 and 4 at node 1 behind another.
fn birt() -> Birt {
    Birt::new(B64, (0..4).map(|bit| vec![to(bit % 2)]).collect(), None).unwrap()
}

/// Frames that the stack hands to the ingress at once: fewer than a poll takes (64), and than a socket sends.
const BURST: u32 = 60;

/// A socket of the sender's that cuts what is sent into datagrams (UDP_SEGMENT).
fn burst_socket(segment: i32) -> UdpSocket {
    let socket = UdpSocket::bind((Ipv4Addr::from(SENDER_IPV4), 40_000)).unwrap();
    socket.connect((Ipv4Addr::from(OWN_IPV4), 8138)).unwrap();
    socket.set_ttl(255).unwrap();
    cut_into(&socket, segment).unwrap();
    socket
}

struct Lab {
    rig: Rig,
    ingress: Device,
    sender: Port,
    ports: [Port; 2],
}

impl Lab {
    /// A datapath in force and pinned.
    fn new() -> Self {
        let mut rig = Rig::pinned().unwrap();
        let (ingress, sender) = rig.wire.pair("ingress").unwrap();
        let mac = ingress.mac.map(|byte| format!("{byte:02x}")).join(":");
        let device = &sender.device.name;
        let [own, host] = [SENDER_IPV4, OWN_IPV4].map(|address| Ipv4Addr::from(address).to_string());
        run(&["ip", "address", "add", &format!("{own}/24"), "dev", device]).unwrap();
        run(&["ip", "neighbor", "replace", &host, "lladdr", &mac, "dev", device]).unwrap();
        let ports = [0, 1].map(|node| {
            let (device, port) = rig.wire.pair(&format!("out{node}")).unwrap();
            rig.neighbor(node, &device, Encapsulation::Ipv4, &[]).unwrap();
            port
        });
        assert!(rig.install(TABLE, &birt()).unwrap());
        // The stack leaves the checksums of what it cuts unfinished: the datapath finishes them at the origin.
        rig.datapath.set_origin(ingress.ifindex);
        let mut lab = Self { rig, ingress, sender, ports };
        lab.start();
        lab
    }

    /// What the daemon does once everything is filled. There is no device to be taken off.
    fn start(&mut self) {
        self.rig.datapath.stage(&self.rig.pins).unwrap();
        self.attach();
        assert!(self.rig.datapath.pin(&self.rig.pins).unwrap().is_empty());
    }

    fn attach(&mut self) {
        let Self { rig, ingress, .. } = self;
        rig.datapath.attach(&rig.pins, ingress.ifindex, &ingress.name, Mode::Native).unwrap();
    }

    /// The daemon ends, and another adopts.
    fn adopt(&mut self) -> bool {
        match Datapath::adopt(&object().unwrap(), &OPTIONS, &self.rig.pins).unwrap() {
            Some(datapath) => self.rig.datapath = datapath,
            None => return false,
        }
        true
    }

    /// The daemon ends, and another loads anew and fills.
    fn load(&mut self) {
        let rig = &mut self.rig;
        rig.datapath = Datapath::load(&object().unwrap(), &OPTIONS).unwrap();
        rig.allow([]).unwrap();
        for (index, neighbor) in &rig.neighbors {
            let id = NeighborId::remote(*index).unwrap().get();
            rig.datapath.set_neighbor(id, Some(neighbor)).unwrap();
        }
        rig.install(TABLE, &birt()).unwrap();
        rig.datapath.set_origin(self.ingress.ifindex);
    }

    fn frame(&self, number: u32) -> Frame {
        let mut frame = self.rig.frame(&self.ingress, Encapsulation::Ipv4, TABLE, B64, &[1, 2, 3, 4]);
        frame.payload = number.to_be_bytes().to_vec();
        frame
    }

    /// A frame goes its way.
    fn check(&self, note: &str) {
        let frame = self.frame(0);
        self.sender.send(&frame.to_bytes()).unwrap();
        for (node, port) in self.ports.iter().enumerate() {
            let copies = port.receive(1).unwrap();
            let copies: Vec<_> = copies.iter().map(|copy| Frame::parse(copy).unwrap()).collect();
            assert_frames(&copies, &[self.rig.copy(&frame, node, vec![node + 1, node + 3])], note);
        }
    }

    /// Sends bursts of frames, each taken by one NAPI poll, while `change` runs: none is lost, none comes twice. Returns
    /// how many frames there were.
    fn lossless(&mut self, change: impl FnOnce(&mut Self)) -> u32 {
        let frame = self.frame(0);
        let ports = self.ports.each_ref().map(|port| Port::open(port.device.clone()).unwrap());
        let done = AtomicBool::new(false);
        let send = || {
            let socket = burst_socket(frame.packet().len() as i32);
            let mut bursts = 0;
            while !done.load(Ordering::Relaxed) {
                let numbers = bursts * BURST..(bursts + 1) * BURST;
                let numbered =
                    |number: u32| Frame { payload: number.to_be_bytes().to_vec(), ..frame.clone() }.packet();
                socket.send(&numbers.clone().flat_map(numbered).collect::<Vec<_>>()).unwrap();
                for (node, port) in ports.iter().enumerate() {
                    let (mut copies, deadline) = (Vec::new(), Instant::now() + Duration::from_secs(2));
                    while copies.len() < BURST as usize && Instant::now() < deadline {
                        copies.extend(port.take().unwrap().map(|copy| Frame::parse(&copy).unwrap()));
                    }
                    let number = |copy: &Frame| u32::from_be_bytes(copy.payload[..].try_into().unwrap());
                    assert!(copies.iter().map(number).eq(numbers.clone()), "{} of {numbers:?}", copies.len());
                    assert!(copies.iter().all(|copy| copy.bits == [node + 1, node + 3]));
                }
                bursts += 1;
            }
            assert!(ports.iter().all(|port| port.receive(0).unwrap().is_empty()), "nothing comes twice");
            bursts * BURST
        };
        let sent = thread::scope(|scope| {
            let sending = scope.spawn(send);
            change(self);
            done.store(true, Ordering::Relaxed);
            sending.join().unwrap()
        });
        // What `check` looks at later has seen them too.
        self.ports.iter().for_each(|port| while port.take().unwrap().is_some() {});
        sent
    }

    fn folder(&self) -> PathBuf {
        self.rig.pins.path().into()
    }

    /// Writes into a pinned array.
    fn write<T: Pod>(&self, map: &str, index: u32, change: impl FnOnce(&mut T)) {
        let data = MapData::from_pin(self.folder().join("maps").join(map)).unwrap();
        let mut array = Array::<_, T>::try_from(Map::from_map_data(data).unwrap()).unwrap();
        let mut value = array.get(&index, 0).unwrap();
        change(&mut value);
        array.set(index, value, 0).unwrap();
    }
}

#[test]
fn an_ended_daemons_datapath_is_adopted_while_frames_flow() {
    const TURNS: u32 = 10;
    let mut lab = Lab::new();
    let before = [lab.rig.datapath.bift_ids().len(), lab.rig.datapath.named_neighbors().len()];
    let (neighbors, pressure) = (lab.rig.datapath.neighbors(), lab.rig.datapath.pressure());
    assert_eq!((before, neighbors.len()), ([1, 2], 2));
    let mut programs = Vec::new();
    let sent = lab.lossless(|lab| {
        for _ in 0..TURNS {
            assert!(lab.adopt());
            assert_eq!(
                (lab.rig.datapath.neighbors(), lab.rig.datapath.pressure()),
                (neighbors.clone(), pressure)
            );
            assert_eq!(lab.rig.datapath.named_neighbors(), [3, 4].into());
            assert!(!lab.rig.install(TABLE, &birt()).unwrap(), "nothing to repair");
            lab.start();
            programs.extend(lab.rig.pins.programs());
        }
    });
    println!("{sent} frames in {TURNS} turns");
    programs.dedup();
    assert_eq!(programs.len(), TURNS as usize, "each has its own program");
    let counts = [Replicated, Planned, Sent, WrongCookie].map(|outcome| lab.rig.count(outcome));
    let sent = u64::from(sent);
    assert_eq!(counts, [sent, 2 * sent, 2 * sent, 0], "counters go on");
}

/// The one that was attached is dropped before the next one is there.
#[test]
fn nothing_needs_the_daemon_between_two() {
    let mut lab = Lab::new();
    let pins = lab.rig.pins.clone();
    drop(lab.rig.datapath);
    assert_eq!(pins.devices().unwrap(), [lab.ingress.ifindex]);
    lab.rig.datapath = Datapath::adopt(&object().unwrap(), &OPTIONS, &pins).unwrap().unwrap();
    lab.start();
    lab.check("adopted");
}

/// What is adopted is in force, and its room is taken: a second table lies beside it.
#[test]
fn an_adopted_datapath_grows_shrinks_and_moves_ids() {
    let mut lab = Lab::new();
    assert!(lab.adopt());
    lab.start();
    let id = |id| BiftId::new(id).unwrap();
    let places: Vec<_> = (0..2)
        .map(|node| MemberPlace {
            neighbor: NeighborId::remote(node).unwrap().get(),
            ifindex: lab.rig.neighbors[&node].ifindex,
        })
        .collect();
    let full = lab.rig.datapath.pressure();
    let discarded = lab.rig.datapath.prepare(&birt().compile(), &places, None).unwrap();
    lab.rig.datapath.discard(discarded);
    let prepared = lab.rig.datapath.prepare(&birt().compile(), &places, None).unwrap();
    assert_eq!(lab.rig.datapath.bift_ids(), [id(TABLE)], "not yet");
    lab.rig.datapath.publish(prepared, &[id(1), id(2)]);
    assert_eq!(lab.rig.datapath.bift_ids(), [id(1), id(2), id(TABLE)]);
    lab.check("beside another");
    // An alias moves to a new table, and the id stays with the old one.
    let moved = lab.rig.datapath.prepare(&birt().compile(), &places, None).unwrap();
    lab.rig.datapath.publish(moved, &[id(2)]);
    for id in [id(TABLE), id(2)] {
        lab.rig.datapath.remove(id);
    }
    assert!(lab.adopt());
    assert_eq!(lab.rig.datapath.bift_ids(), [id(1)]);
    assert!(!lab.rig.install(1, &birt()).unwrap());
    assert!(lab.rig.install(TABLE, &birt()).unwrap(), "removed");
    lab.check("in force again");
    assert!(lab.rig.datapath.pressure() >= full && full > 0.0);
}

/// Programs of a daemon that ended are unloaded, whatever fan-out maps it left.
#[test]
fn nothing_of_an_earlier_daemon_is_kept() {
    let mut lab = Lab::new();
    let id = |lab: &mut Lab, name| lab.rig.program(name).unwrap().info().unwrap().id();
    let earlier = ["replicator_replicate", "replicator_rewrite"].map(|name| id(&mut lab, name));
    // Another set of devices: the maps of the first are left.
    assert!(lab.rig.install(TABLE, &Birt::new(B64, vec![vec![to(0)]], None).unwrap()).unwrap());
    assert!(lab.adopt());
    lab.start();
    let is_loaded = |id: &u32| aya::programs::loaded_programs().flatten().any(|program| program.id() == *id);
    let deadline = Instant::now() + Duration::from_secs(20);
    while earlier.iter().any(is_loaded) {
        assert!(Instant::now() < deadline, "replicate, rewrite: {:?}", earlier.map(|id| is_loaded(&id)));
        thread::sleep(Duration::from_millis(10));
    }
    assert!(is_loaded(&id(&mut lab, "replicator_rewrite")));
}

/// Whoever may send after the adoption is who the new daemon says, whatever the old one said.
#[test]
fn admission_is_adopted_and_changed() {
    let mut lab = Lab::new();
    let prefix = |first| {
        let Endpoint { address, .. } = Endpoint::ipv4([first, 0, 0, 0]);
        (SourcePrefix { kind: [0; 4], address }, 8)
    };
    lab.rig.datapath.admission().set_prefixes(vec![prefix(10), prefix(11)]).unwrap();
    assert!(lab.adopt());
    lab.rig.datapath.admission().set_prefixes(vec![prefix(11), prefix(12)]).unwrap();
    let own = [(Endpoint::mac(lab.ingress.mac), role::OWN), (Endpoint::ipv4([10, 0, 0, 1]), role::OWN)];
    lab.rig.datapath.admission().set_endpoints(own).unwrap();
    let entries = |name: &str| {
        let data = MapData::from_pin(lab.folder().join("maps").join(name)).unwrap();
        match Map::from_map_data(data).unwrap() {
            map @ Map::LpmTrie(_) => {
                let trie = aya::maps::LpmTrie::<_, SourcePrefix, u32>::try_from(map).unwrap();
                let mut first: Vec<_> = trie.keys().map(|key| key.unwrap().data().address[0]).collect();
                first.sort_unstable();
                first
            }
            map => {
                let map = aya::maps::HashMap::<_, Endpoint, u32>::try_from(map).unwrap();
                vec![map.keys().count() as u8]
            }
        }
    };
    assert_eq!((entries("SOURCE_PREFIXES"), entries("ENDPOINTS")), (vec![11, 12], vec![2]));
}

#[test]
fn what_is_damaged_is_repaired() {
    let id = NeighborId::remote(1).unwrap().get();
    type Damage = fn(&Lab, u32);
    let tables: [(&str, Damage); 6] = [
        ("row", |lab, _| lab.write::<RowChunk>("ROWS", 0, |row| row.0[2] = 2)),
        ("F-BM", |lab, _| lab.write::<FbmChunk>("FBMS", 1, |fbm| fbm.0[0] = 1)),
        ("member", |lab, _| lab.write::<Member>("MEMBERS", 2, |member| member.neighbor = 77)),
        ("share", |lab, _| lab.write::<Share>("SHARES", 1, |share| share.stride = 9)),
        ("table", |lab, _| lab.write::<Table>("TABLES", 0, |table| table.bsl_code = 7)),
        ("local fan-out", |lab, _| lab.write::<Table>("TABLES", 0, |table| table.fanout_local = 99)),
    ];
    let neighbors: [(&str, Damage); 3] = [
        ("neighbor's word", |lab, id| {
            lab.write::<Live>("NEIGHBOR_IDS", id, |live| *live = Live::at(u32::MAX))
        }),
        ("another's word", |lab, id| lab.write::<Live>("NEIGHBOR_IDS", id, |live| *live = Live::at(0))),
        ("neighbor's entry", |lab, _| lab.write::<Neighbor>("NEIGHBORS", 1, |entry| entry.macs = [1; 12])),
    ];
    let of_table = tables.map(|(name, damage)| (name, damage, true));
    for (name, damage, table) in
        of_table.into_iter().chain(neighbors.map(|(name, damage)| (name, damage, false)))
    {
        let mut lab = Lab::new();
        damage(&lab, id);
        assert!(lab.adopt(), "{name}");
        assert_eq!(lab.rig.install(TABLE, &birt()).unwrap(), table, "{name}");
        lab.rig.datapath.set_neighbor(id, Some(&lab.rig.neighbors[&1])).unwrap();
        lab.start();
        lab.check(name);
    }
}

/// Where there is nothing whole to go on with, a new load takes over from it: without a loss too.
#[test]
fn what_is_incomplete_is_not_adopted_but_taken_over() {
    type Damage = fn(&Lab);
    let damages: [(&str, Damage); 8] = [
        ("no cookie", |lab| lab.write::<Settings>("SETTINGS", 0, |settings| settings.cookie = 0)),
        ("a map less", |lab| fs::remove_file(lab.folder().join("maps/TABLES")).unwrap()),
        ("other words", |lab| lab.write::<Table>("TABLES", 0, |table| table.words = 3)),
        ("rows beyond", |lab| lab.write::<Table>("TABLES", 0, |table| table.rows = u32::MAX)),
        ("a table beyond", |lab| lab.write::<Live>("BIFTS", 9, |live| *live = Live::at(1 << 20))),
        ("two tables in one place", |lab| {
            let mut copy = Table::default();
            lab.write::<Table>("TABLES", 0, |table| copy = *table);
            lab.write::<Table>("TABLES", 1, |table| *table = copy);
            lab.write::<Live>("BIFTS", 9, |live| *live = Live::at(1));
        }),
        ("devices of no table", |lab| lab.write::<Share>("SHARES", 0, |share| share.ifindex = u32::MAX)),
        ("another map's kind", |lab| {
            let maps = lab.folder().join("maps");
            fs::rename(maps.join("WORK"), maps.join("TABLES")).unwrap();
        }),
    ];
    for (name, damage) in damages {
        let mut lab = Lab::new();
        damage(&lab);
        assert!(!lab.adopt(), "{name}");
        lab.load();
        lab.start();
        lab.check(name);
        assert!(lab.adopt(), "{name}: the new one is whole");
        assert_eq!(fs::read_dir(PIN_PATH).unwrap().count(), 1, "{name}");
    }
}

/// A new load with another cookie takes over again and again.
#[test]
fn a_new_load_takes_over_while_frames_flow() {
    const TURNS: usize = 8;
    let mut lab = Lab::new();
    lab.lossless(|lab| {
        for _ in 0..TURNS {
            lab.load();
            lab.start();
        }
    });
    assert_eq!(lab.rig.count(WrongCookie), 0);
    assert_eq!(fs::read_dir(PIN_PATH).unwrap().count(), 1);
}

/// Two loads, whose programs the link of the ingress gets in turns, while one NAPI poll after the other takes a burst.
struct Swap {
    loads: [Datapath; 2],
    link: Option<(usize, XdpLinkId)>,
}

impl Swap {
    fn program(datapath: &mut Datapath) -> &mut Xdp {
        datapath.ebpf().program_mut("replicator_replicate").unwrap().try_into().unwrap()
    }

    /// Has each hand over to the other what it does not know.
    fn introduce(&mut self) {
        for (of, to) in [(0, 1), (1, 0)] {
            let rewrite: &mut Xdp =
                self.loads[to].ebpf().program_mut("replicator_rewrite").unwrap().try_into().unwrap();
            let rewrite = rewrite.fd().unwrap().try_clone().unwrap();
            let map = self.loads[of].ebpf().map_mut("SUCCESSOR").unwrap();
            ProgramArray::try_from(map).unwrap().set(0, &rewrite, 0).unwrap();
        }
    }

    fn swap(&mut self, ifindex: u32) {
        let next = match self.link.take() {
            None => {
                (0, Self::program(&mut self.loads[0]).attach_to_if_index(ifindex, XdpMode::Driver).unwrap())
            }
            Some((old, id)) => {
                let link = Self::program(&mut self.loads[old]).take_link(id).unwrap();
                (1 - old, Self::program(&mut self.loads[1 - old]).attach_to_link(link).unwrap())
            }
        };
        self.link = Some(next);
    }
}

/// The device's bulk queue keeps the devmap program of the load that its poll began with, and meets copies of the other.
#[test]
fn loads_swapped_within_a_poll() {
    const SWAPS: usize = 200;
    let mut lab = Lab::new();
    lab.rig.pins.remove_all().unwrap();
    let first =
        std::mem::replace(&mut lab.rig.datapath, Datapath::load(&object().unwrap(), &OPTIONS).unwrap());
    lab.load();
    let second =
        std::mem::replace(&mut lab.rig.datapath, Datapath::load(&object().unwrap(), &OPTIONS).unwrap());
    let mut swap = Swap { loads: [first, second], link: None };
    swap.introduce();
    swap.swap(lab.ingress.ifindex);
    let ingress = lab.ingress.ifindex;
    let frames = lab.lossless(|_| {
        for _ in 0..SWAPS {
            swap.swap(ingress);
            thread::sleep(Duration::from_micros(300));
        }
    });
    let count = |outcome| swap.loads.iter().map(|load| load.counters().unwrap().of(outcome)).sum::<u64>();
    let frames = u64::from(frames);
    assert_eq!([Replicated, Planned, Sent, WrongCookie].map(count), [frames, 2 * frames, 2 * frames, 0]);
    println!("{frames} frames during {SWAPS} swaps");
}

/// Ways in which a daemon that is killed may leave its pins: the next one starts from each, and no frame is lost.
#[test]
fn a_start_that_was_killed_at_any_step_is_gone_on_with() {
    let other = Path::new(PIN_PATH).join("v7");
    let link = |lab: &Lab, load: &Path| load.join("links").join(lab.ingress.ifindex.to_string());
    // What another layout's daemon left is a load like any other, but for the name of its folder.
    let elsewhere = |lab: &mut Lab| {
        fs::rename(lab.folder(), &other).unwrap();
        lab.load();
    };
    type Step<'s> = (&'s str, bool, &'s dyn Fn(&mut Lab));
    let steps: [Step<'_>; 8] = [
        ("before anything", false, &|lab| elsewhere(lab)),
        ("maps half pinned", false, &|lab| {
            elsewhere(lab);
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
            fs::remove_file(lab.folder().join("maps/TABLES")).unwrap();
        }),
        ("maps pinned", true, &|lab| {
            elsewhere(lab);
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
        }),
        ("link taken over, not pinned here yet", true, &|lab| {
            elsewhere(lab);
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
            lab.attach();
            fs::remove_file(link(lab, &lab.folder())).unwrap();
        }),
        ("link pinned under both", true, &|lab| {
            elsewhere(lab);
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
            lab.attach();
        }),
        ("old maps removed in part", true, &|lab| {
            elsewhere(lab);
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
            lab.attach();
            fs::remove_dir_all(other.join("maps")).unwrap();
        }),
        ("old link removed", true, &|lab| {
            elsewhere(lab);
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
            lab.attach();
            fs::remove_file(link(lab, &other)).unwrap();
        }),
        ("set aside", true, &|lab| {
            lab.load();
            lab.rig.datapath.stage(&lab.rig.pins).unwrap();
        }),
    ];
    for (step, adopted, kill) in steps {
        let mut lab = Lab::new();
        lab.lossless(|lab| {
            kill(lab);
            assert_eq!(lab.adopt(), adopted, "{step}");
            if !adopted {
                lab.load();
            }
            assert_eq!(lab.rig.pins.devices().unwrap(), [lab.ingress.ifindex], "{step}");
            lab.start();
        });
        lab.check(step);
        assert_eq!(fs::read_dir(PIN_PATH).unwrap().count(), 1, "{step}");
        assert_eq!(lab.rig.pins.remove_all().unwrap(), [lab.ingress.ifindex], "{step}");
        assert!(!Path::new(PIN_PATH).exists(), "{step}");
    }
}

/// A start that does not come to its end leaves what was there before.
#[test]
fn a_start_is_taken_back() {
    let mut lab = Lab::new();
    lab.load();
    lab.rig.datapath.stage(&lab.rig.pins).unwrap();
    let aside = Path::new(PIN_PATH).join(format!("v{LAYOUT_VERSION}-1"));
    assert!(aside.exists() && lab.folder().exists());
    lab.rig.pins.withdraw().unwrap();
    assert!(!aside.exists());
    lab.check("as before");
    assert!(lab.adopt(), "the one of before");
    lab.rig.pins.withdraw().unwrap();
    assert!(lab.adopt(), "one that is attached stays");
}

#[test]
fn detach_takes_every_layout_down() {
    let mut lab = Lab::new();
    fs::rename(lab.folder(), Path::new(PIN_PATH).join("v7")).unwrap();
    let pins = Pins::new(PIN_PATH.as_ref());
    assert!(matches!(pins.counters(), Err(DatapathError::OtherLayout(load)) if load.ends_with("v7")));
    lab.load();
    lab.rig.datapath.stage(&lab.rig.pins).unwrap();
    let (other, _port) = lab.rig.wire.pair("other").unwrap();
    lab.rig.datapath.attach(&lab.rig.pins, other.ifindex, &other.name, Mode::Native).unwrap();
    let link = lab.folder().join("links").join(other.ifindex.to_string());
    fs::create_dir_all(Path::new(PIN_PATH).join("kept")).unwrap();
    // The second load's link is in the process alone; detach knows what is pinned.
    assert!(!link.exists());
    assert_eq!((pins.devices().unwrap(), pins.programs().len()), (vec![lab.ingress.ifindex], 1));
    assert_eq!(pins.remove_all().unwrap(), [lab.ingress.ifindex]);
    let left: Vec<_> = fs::read_dir(PIN_PATH).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["kept"], "what is not ours stays");
    assert!(matches!(pins.devices(), Err(DatapathError::NotLoaded(_))));
    lab.sender.send(&lab.frame(0).to_bytes()).unwrap();
    assert_eq!(lab.ports[0].receive(0).unwrap().len(), 0, "nobody replicates");
}
