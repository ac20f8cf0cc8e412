//! Tokens dispatched to a model whose experts move all the time, and a check of every copy: each bit of each frame
//! reaches exactly one node, and that node hosts the expert in the epoch that the frame names.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    ops::ControlFlow,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use replicator_common::bier::{BiftId, BitStringLength};
use replicator_tests::{api::Api, lab::Host, random::Random};
use replicator_user::client::{
    Delivery, Destinations, Dispatcher, DispatcherSettings, Receiver, ReceiverSettings, Source, Transport,
};
use serde_json::Value;

use crate::network::*;

/// Nodes, and as many ranks.
pub(crate) const NODES: u8 = 8;
const EXPERTS: usize = 64;
/// Two of them redundant.
const SLOTS_PER_RANK: usize = 10;
/// Experts that a token selects.
const SELECTED: usize = 4;
/// Copies on their way at most: a veth's ring holds 256 frames. A copy carries at least one of the bits that are counted.
const WINDOW: u64 = 160;
/// Tokens in a millisecond at most. The machine is to carry the load and still have time for maps.
const TOKENS_PER_MILLISECOND: u32 = 8;
/// Time without an arrival after which what is on its way is lost.
const SILENCE: Duration = Duration::from_secs(2);

/// A layer as senders see it: the newest epoch that the daemon has said is in force.
#[derive(Clone)]
struct Layer {
    bift_id: u32,
    slots: Vec<usize>,
}

/// A model in motion.
pub(crate) struct Load<'c> {
    cluster: &'c Cluster,
    layers: Vec<Mutex<Layer>>,
    epoch: AtomicU64,
}

/// A token that was sent: the experts, and for each the nodes that host it in the frame's epoch.
#[derive(Clone, Copy)]
struct Sent([(u8, u8); SELECTED]);

/// What came of it.
#[derive(Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) frames: u64,
    pub(crate) copies: u64,
    /// Bits that reached no node.
    pub(crate) lost: u64,
    /// Copies at a node that does not host one of their experts in their epoch, or with an expert that was not selected.
    pub(crate) misdelivered: u64,
    /// Bits that reached two nodes.
    pub(crate) duplicated: u64,
}

impl Outcome {
    /// Fails unless everything arrived where it should.
    #[track_caller]
    pub(crate) fn assert_exact(&self, what: &str) {
        eprintln!("{what}: {self:?}");
        assert!(self.frames > 100, "{self:?}");
        assert_eq!((self.lost, self.misdelivered, self.duplicated), (0, 0, 0), "{self:?}");
    }
}

impl<'c> Load<'c> {
    /// The configuration of the replicator that carries it.
    pub(crate) fn config(cluster: &Cluster) -> String {
        let neighbors: String = (1..=NODES)
            .map(|n| format!("  node{n}: {{ address: \"{}\" }}\n", cluster.segment.v4(n)))
            .collect();
        format!("origin: {{}}\ninterfaces: [eth0]\nneighbors:\n{neighbors}")
    }

    /// A model of so many layers, put in force.
    pub(crate) fn start(cluster: &'c Cluster, layers: usize) -> Self {
        let slots = |layer| (0..EXPERTS + 16).map(move |slot| (slot + layer) % EXPERTS).collect();
        let layers: Vec<_> =
            (0..layers).map(|layer| Mutex::new(Layer { bift_id: 0, slots: slots(layer) })).collect();
        let load = Self { cluster, layers, epoch: AtomicU64::new(1) };
        let all: Vec<_> = load
            .layers
            .iter()
            .enumerate()
            .map(|(i, layer)| (i, layer.lock().unwrap().slots.clone()))
            .collect();
        let mut api = Api::connect(&cluster.sender).unwrap();
        let answer = api.request("PUT", "/v1/models/moving/map", &document(1, false, &all)).unwrap();
        assert_eq!(answer.status, 200, "{}", answer.text);
        for (layer, table) in answer.json()["layers"].as_object().unwrap() {
            let layer: usize = layer.parse().unwrap();
            load.layers[layer].lock().unwrap().bift_id = table["bift_id"].as_u64().unwrap() as u32;
        }
        load
    }

    /// Dispatches tokens while `during` runs, and checks every copy.
    pub(crate) fn run<T>(&self, during: impl FnOnce(&Self) -> T) -> (T, Outcome) {
        let receivers: Vec<_> =
            self.cluster.nodes.iter().zip(1..).map(|(node, n)| self.receiver(node, n)).collect();
        let (enough, stop, arrived) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let _stopper = Stopper([&enough, &stop]);
            let receivers: Vec<_> = receivers
                .into_iter()
                .map(|receiver| scope.spawn(|| collect(receiver, &arrived, &stop)))
                .collect();
            let sender = scope.spawn(|| self.send(&arrived, &enough));
            let result = during(self);
            enough.store(true, Ordering::Relaxed);
            let sent = sender.join().unwrap();
            // Time in which a duplicate would follow.
            thread::sleep(Duration::from_millis(300));
            stop.store(true, Ordering::Relaxed);
            let arrivals: Vec<_> = receivers.into_iter().map(|receiver| receiver.join().unwrap()).collect();
            (result, check(&sent, &arrivals))
        })
    }

    fn receiver(&self, node: &Host, number: u8) -> Receiver {
        let source =
            Source::Udp { bind: SocketAddr::new(self.cluster.segment.v4(number), 8138), share: false };
        node.run(|| Ok(Receiver::open(&source, &ReceiverSettings::default())?)).unwrap()
    }

    /// Tokens of random layers, each to the newest epoch, until there are enough.
    fn send(&self, arrived: &AtomicU64, enough: &AtomicBool) -> Vec<Sent> {
        let transport = Transport::Udp { to: ORIGIN_V4.parse().unwrap(), interface: None };
        let any = BiftId::expert(0, 0).unwrap();
        let settings =
            DispatcherSettings { batch: 8, ..DispatcherSettings::new(any, BitStringLength::B64, 1) };
        let mut dispatcher =
            self.cluster.sender.run(|| Ok(Dispatcher::open(&transport, &settings)?)).unwrap();
        let mut random = Random(7);
        let (mut sent, mut bits): (Vec<Sent>, _) = (Vec::new(), arrived.load(Ordering::Relaxed));
        let start = Instant::now();
        while !enough.load(Ordering::Relaxed) {
            let due = start + Duration::from_millis(1) * (sent.len() as u32 / TOKENS_PER_MILLISECOND);
            thread::sleep(due.saturating_duration_since(Instant::now()));
            for _ in 0..TOKENS_PER_MILLISECOND {
                let layer = self.layers[random.below(self.layers.len())].lock().unwrap().clone();
                let mut experts = [(0, 0); SELECTED];
                let first = random.below(EXPERTS);
                for (i, entry) in experts.iter_mut().enumerate() {
                    let expert = (first + i * (1 + 2 * (first % 8))) % EXPERTS;
                    *entry = (expert as u8, hosts(&layer.slots, expert));
                }
                let selection = experts.map(|(expert, _)| u32::from(expert));
                let number = sent.len() as u32;
                dispatcher.set_table(BiftId::new(layer.bift_id).unwrap(), BitStringLength::B64);
                dispatcher
                    .dispatch(Destinations::Experts(&selection), number, &number.to_be_bytes())
                    .unwrap();
                sent.push(Sent(experts));
                bits += SELECTED as u64;
            }
            dispatcher.flush().unwrap();
            wait(arrived, &mut bits, WINDOW);
        }
        wait(arrived, &mut bits, 0);
        sent
    }

    /// Moves replicas in so many layers, and has the maps in force when it returns. `None` where the daemon does not
    /// answer.
    pub(crate) fn update(&self, api: &mut Api, random: &mut Random, layers: usize) -> Option<Duration> {
        let first = random.below(self.layers.len());
        let numbers = (first..first + layers).map(|number| number % self.layers.len());
        let changed: Vec<_> = numbers.map(|number| (number, self.moved(number, random))).collect();
        let epoch = self.epoch.fetch_add(1, Ordering::Relaxed) + 1;
        let start = Instant::now();
        let answer =
            api.request("PATCH", "/v1/models/moving/layers", &document(epoch, true, &changed)).ok()?;
        assert_eq!(answer.status, 200, "{}", answer.text);
        let json = answer.json();
        for (number, slots) in changed {
            let table = &json["layers"][number.to_string()];
            assert_eq!(table["epoch"], epoch, "{json}");
            let bift_id = table["bift_id"].as_u64().unwrap() as u32;
            *self.layers[number].lock().unwrap() = Layer { bift_id, slots };
        }
        Some(start.elapsed())
    }

    /// The slots of a layer after two changed places; now and then the redundant one gets another expert.
    fn moved(&self, layer: usize, random: &mut Random) -> Vec<usize> {
        let mut slots = self.layers[layer].lock().unwrap().slots.clone();
        let (a, b) = (random.below(slots.len()), random.below(slots.len()));
        slots.swap(a, b);
        if slots.iter().filter(|&&expert| expert == slots[a]).count() > 1 {
            slots[a] = random.below(EXPERTS);
        }
        slots
    }

    /// After an update without an answer: what the daemon has is what senders go by.
    pub(crate) fn catch_up(&self, api: &mut Api) {
        let map = api.request("GET", "/v1/models/moving/map", "").unwrap().json();
        let ids = api.request("GET", "/v1/models/moving/bift-ids", "").unwrap().json();
        for (number, layer) in self.layers.iter().enumerate() {
            let slots = &map["layers"][number.to_string()]["physical_to_logical_map"];
            let slots =
                slots.as_array().unwrap().iter().map(|slot| slot.as_u64().unwrap() as usize).collect();
            let bift_id = ids["layers"][number.to_string()]["bift_id"].as_u64().unwrap() as u32;
            *layer.lock().unwrap() = Layer { bift_id, slots };
        }
    }
}

/// Waits until at most `most` bits are on their way. Those that are when nothing arrived for long are lost.
fn wait(arrived: &AtomicU64, bits: &mut u64, most: u64) {
    let mut last = (arrived.load(Ordering::Relaxed), Instant::now());
    while bits.saturating_sub(arrived.load(Ordering::Relaxed)) > most {
        thread::sleep(Duration::from_micros(100));
        let now = arrived.load(Ordering::Relaxed);
        if now != last.0 {
            last = (now, Instant::now());
        } else if last.1.elapsed() > SILENCE {
            *bits = now;
        }
    }
}

/// The nodes of an expert: bit n for node n + 1.
fn hosts(slots: &[usize], expert: usize) -> u8 {
    let own = slots.iter().enumerate().filter(|(_, slot)| **slot == expert);
    own.fold(0, |hosts, (slot, _)| hosts | 1 << (slot / SLOTS_PER_RANK))
}

/// Number and bits of every frame that arrives at a node.
fn collect(mut receiver: Receiver, arrived: &AtomicU64, stop: &AtomicBool) -> Vec<(u32, u64)> {
    let mut frames = Vec::new();
    let visit = |delivery: Delivery<'_>| {
        let bits = delivery.experts().fold(0_u64, |bits, expert| bits | 1 << expert);
        let number = delivery.payload.try_into().map_or(u32::MAX, u32::from_be_bytes);
        frames.push((number, bits));
        arrived.fetch_add(u64::from(bits.count_ones()), Ordering::Relaxed);
        ControlFlow::Continue(())
    };
    receiver.for_each(stop, visit).unwrap();
    assert_eq!(receiver.dropped().unwrap(), 0, "the socket overflowed");
    frames
}

fn check(sent: &[Sent], arrivals: &[Vec<(u32, u64)>]) -> Outcome {
    let mut outcome = Outcome { frames: sent.len() as u64, ..Outcome::default() };
    let mut served = vec![0_u64; sent.len()];
    for (node, frames) in arrivals.iter().enumerate() {
        for &(number, bits) in frames {
            outcome.copies += 1;
            let Some(Sent(experts)) = sent.get(number as usize) else {
                outcome.misdelivered += 1;
                continue;
            };
            let here = experts.iter().filter(|(_, hosts)| hosts >> node & 1 == 1);
            let allowed = here.fold(0_u64, |bits, (expert, _)| bits | 1 << expert);
            outcome.misdelivered += u64::from(bits & !allowed != 0);
            outcome.duplicated += u64::from((served[number as usize] & bits).count_ones());
            served[number as usize] |= bits;
        }
    }
    for (Sent(experts), served) in sent.iter().zip(served) {
        let wanted: u64 = experts.iter().fold(0, |bits, (expert, _)| bits | 1 << expert);
        outcome.lost += u64::from((wanted & !served).count_ones());
    }
    outcome
}

/// A map of these layers.
fn document(epoch: u64, partial: bool, layers: &[(usize, Vec<usize>)]) -> String {
    let ranks: Vec<_> =
        (0..NODES).map(|rank| format!(r#"{{"rank":{rank},"node":"node{}"}}"#, rank + 1)).collect();
    let mut text = format!(
        r#"{{"version":1,"model":"moving","epoch":{epoch},"logical_experts":{EXPERTS},"partial":{partial},"ranks":[{}],"layers":{{"#,
        ranks.join(",")
    );
    for (i, (number, slots)) in layers.iter().enumerate() {
        let comma = if i == 0 { "" } else { "," };
        write!(text, r#"{comma}"{number}":{{"physical_to_logical_map":{slots:?}}}"#).unwrap();
    }
    text + "}}"
}

/// Milliseconds below which this share of the times lies.
pub(crate) fn percentile(times: &mut [Duration], share: f64) -> f64 {
    times.sort_unstable();
    let index = ((times.len() as f64 * share).ceil() as usize).clamp(1, times.len()) - 1;
    times[index].as_secs_f64() * 1e3
}

/// The value at a path of dots in what the API answers.
pub(crate) fn get(api: &mut Api, path: &str) -> Value {
    let answer = api.request("GET", path, "").unwrap();
    assert_eq!(answer.status, 200, "{path}: {}", answer.text);
    answer.json()
}
