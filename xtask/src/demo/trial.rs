//! One run: a cluster is built, tokens are dispatched while the map changes, what arrives is checked.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    ops::ControlFlow,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, ScopedJoinHandle},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use replicator_common::{
    DEFAULT_UDP_PORT,
    bier::{BiftId, BitStringLength},
    limits::MAX_FRAME_BYTES,
    outcome::Outcome,
};
use replicator_tests::lab::{Daemon, Host, Lab, tool};
use replicator_user::client::{
    Destinations, Dispatcher, DispatcherSettings, Receiver, ReceiverSettings, Source,
};
use serde_json::Value;

use super::{
    args::{Args, Transport},
    check::{Arrivals, Checker, Expectation},
    cluster::{Cluster, UPLINK, node_address, node_name},
    config,
    control::{Control, InForce},
    epochs::Epochs,
    ledger::Ledger,
    model::Shape,
    payload::Pattern,
    progress::Progress,
    rebalancing::{self, Follower},
    report::{MapChange, NodeReport, Report, grouped},
    routing::Selection,
    window::{self, Acknowledgements, Window},
};

/// Bytes before a payload: IPv6, UDP, BIER, the longest BitString.
const HEADERS: usize = 40 + 8 + 12 + 128;

/// Longest payload that leaves room for Ethernet and two VLAN tags in a frame that can be cloned.
pub(super) const MAX_PAYLOAD: usize = MAX_FRAME_BYTES - 14 - 8 - HEADERS;

/// MTU of the links, unless payloads need more.
const MTU: usize = 1500;

/// What the dispatching node's frames say as their source.
const RANK: u16 = 1;

/// Frames handed to the kernel at once.
const BATCH: usize = 32;

/// Copies lost after which no more are sent: each window of them takes [`window::SILENCE`] to give up.
const HOPELESS: u64 = 10 * window::COPIES;

/// Time in which a duplicate would follow the last frame.
const LINGER: Duration = Duration::from_millis(200);

/// What is dispatched.
pub(super) struct Workload {
    /// The model's name.
    pub model: String,
    /// Where its routing is from.
    pub source: String,
    /// Its shape.
    pub shape: Shape,
    /// What tokens select, in the order in which they are dispatched.
    pub selections: Vec<Selection>,
}

/// One run.
pub(super) struct Trial<'a> {
    args: &'a Args,
    model: String,
    routing: String,
    shape: Shape,
    expectation: Expectation,
    length: BitStringLength,
}

/// What came of dispatching.
struct Dispatched {
    frames: u64,
    /// From the first frame to the last arrival.
    seconds: f64,
    /// Node by node.
    arrivals: Vec<Arrivals>,
    /// Epochs after the first, with the time that each took to be in force.
    followed: Vec<(u16, Duration)>,
}

impl<'a> Trial<'a> {
    /// A run with this workload.
    ///
    /// # Errors
    /// Where the model is larger than the header.
    pub(super) fn new(args: &'a Args, workload: Workload) -> Result<Self> {
        let Workload { model, source, shape, selections } = workload;
        let length = BitStringLength::for_bits(shape.experts as usize)
            .with_context(|| format!("{} experts do not fit a BitString", shape.experts))?;
        let epochs = Epochs::draw(shape, args.nodes, args.rebalances, selections.len(), args.seed);
        let expectation = Expectation {
            ledger: Ledger::new(epochs.all().len(), selections.len()),
            epochs,
            selections,
            pattern: Pattern::new(args.payload, args.seed),
        };
        Ok(Self { args, routing: format!("{model}, {source}"), model, shape, expectation, length })
    }

    /// Builds the cluster, starts the replicator, dispatches and checks.
    ///
    /// # Errors
    /// Where something could not be set up. What is wrong with copies is in the report.
    pub(super) fn run(&self, lab: &Lab, binary: &Path) -> Result<Report> {
        let args = self.args;
        let mtu = MTU.max(args.payload + HEADERS) as u32;
        eprintln!("building {} nodes, a switch and the dispatching node", args.nodes);
        let cluster = Cluster::build(lab, args.nodes, mtu)?;
        let mut receivers = Vec::new();
        for (node, host) in (0..).zip(&cluster.nodes) {
            receivers.push(host.run(|| self.receiver(node))?);
        }
        let config = config::text(args.mode, args.transport, args.nodes);
        let daemon = Daemon::start(&cluster.dispatcher, binary, &config)?;
        let mode = kernel_mode(&cluster.dispatcher)?;
        let mut control = Control::connect(&cluster.dispatcher, &self.model, self.shape.experts, args.nodes)?;
        let tables = self.first_map(&mut control)?;
        let dispatcher = cluster.dispatcher.run(|| self.dispatcher(&tables))?;
        eprintln!("dispatching {} tokens: {}", grouped(args.tokens.into()), self.routing);
        let dispatched = self.dispatch(dispatcher, receivers, control, tables)?;
        let stats = daemon.stats()?;
        let report = self.report(mode, &dispatched, outcome(&stats, Outcome::Sent)?);
        if !report.is_right() {
            eprintln!("the replicator counted:");
            for &at in Outcome::ALL {
                match outcome(&stats, at)? {
                    0 => {}
                    count => eprintln!("{count:>12} {:<20} {}", at.label(), at.text()),
                }
            }
            eprintln!("it printed:\n{}", daemon.printed());
        }
        let status = daemon.stop()?;
        ensure!(status.success(), "the replicator was asked to end and did so with {status}");
        Ok(report)
    }

    /// The sockets of a node, and what it expects.
    fn receiver(&self, node: u32) -> Result<Receiver> {
        let source = match self.args.transport {
            Transport::Ethernet => Source::Ethernet { interface: UPLINK.to_owned() },
            Transport::Ipv4 | Transport::Ipv6 => {
                Source::Udp { bind: SocketAddr::new(self.address(node), DEFAULT_UDP_PORT), share: false }
            }
        };
        Receiver::open(&source, &ReceiverSettings::default())
            .with_context(|| format!("cannot receive on {}", node_name(node)))
    }

    /// Puts the first map in force, and returns the BIFT-id of each layer.
    fn first_map(&self, control: &mut Control) -> Result<Vec<BiftId>> {
        let Expectation { epochs, ledger, .. } = &self.expectation;
        let InForce { epoch, tables, .. } = control.send(&control.request(&epochs.all()[0]))?;
        let ids = tables.iter().copied().collect::<Option<_>>();
        ledger.install(epoch, tables);
        ids.context("the replicator does not tell the BIFT-id of every layer")
    }

    fn dispatcher(&self, tables: &[BiftId]) -> Result<Dispatcher> {
        let first = tables.first().context("the model has no layers")?;
        let settings =
            DispatcherSettings { batch: BATCH, ..DispatcherSettings::new(*first, self.length, RANK) };
        Dispatcher::open(&config::way_in(self.args.transport)?, &settings).context("cannot dispatch")
    }

    fn address(&self, node: u32) -> IpAddr {
        node_address(node, self.args.transport == Transport::Ipv6)
    }

    /// Dispatches every token while the map is rebalanced, and checks what arrives.
    fn dispatch(
        &self,
        mut dispatcher: Dispatcher,
        receivers: Vec<Receiver>,
        mut control: Control,
        tables: Vec<BiftId>,
    ) -> Result<Dispatched> {
        let Expectation { epochs, ledger, .. } = &self.expectation;
        let (rebalancer, mut follower) = rebalancing::ends(epochs, ledger, tables);
        let (acknowledgements, stop) = (Acknowledgements::to_this_thread(), AtomicBool::new(false));
        thread::scope(|scope| {
            // Early returns end the receivers too.
            let stopper = Stopper(&stop);
            let mut threads = Vec::new();
            for (node, receiver) in (0..).zip(receivers) {
                let (acknowledgements, stop) = (&acknowledgements, &stop);
                let receive = move || self.receive(node, receiver, acknowledgements, stop);
                threads.push(thread::Builder::new().name(node_name(node)).spawn_scoped(scope, receive)?);
            }
            let rebalance = move || rebalancer.run(&mut control, epochs);
            let rebalance =
                thread::Builder::new().name("rebalance".to_owned()).spawn_scoped(scope, rebalance)?;
            let start = Instant::now();
            let sent = self.send(&mut dispatcher, &acknowledgements, &mut follower);
            let seconds = start.elapsed().as_secs_f64();
            // The thread ends where it waits for more.
            let followed = follower.followed();
            thread::sleep(LINGER);
            drop(stopper);
            let arrivals = threads.into_iter().map(joined).collect::<Result<_>>()?;
            if let Err(error) = joined(rebalance) {
                eprintln!("the expert map was not rebalanced any more: {error:#}");
            }
            Ok(Dispatched { frames: sent?, seconds, arrivals, followed })
        })
    }

    /// Dispatches every token, and returns the number of frames when nothing more can arrive.
    fn send(
        &self,
        dispatcher: &mut Dispatcher,
        acknowledgements: &Acknowledgements,
        follower: &mut Follower<'_>,
    ) -> Result<u64> {
        let Expectation { epochs, selections, pattern, ledger } = &self.expectation;
        let mut window = Window::new(acknowledgements);
        let mut progress = Progress::new(selections.len());
        let (mut payload, mut frames, mut epoch) = (Vec::new(), 0, 1);
        for (sequence, selection) in selections.iter().enumerate() {
            while follower.is_due(sequence) {
                dispatcher.flush()?;
                follower.order();
            }
            if follower.is_ahead(sequence) {
                dispatcher.flush()?;
                follower.trickle();
            }
            let most = selection.experts.len().min(epochs.nodes() as usize) as u64;
            if window.outstanding() + most > window::COPIES {
                dispatcher.flush()?;
                window.wait(window::COPIES / 2);
                progress.show(sequence, epoch, acknowledgements.arrived());
                if window.lost() > HOPELESS {
                    break;
                }
            }
            pattern.write(sequence as u64, &mut payload);
            let table;
            (epoch, table) = follower.table(selection.layer);
            let placement = epochs.placement(epoch, selection.layer);
            let placement =
                placement.with_context(|| format!("epoch {epoch} has no layer {}", selection.layer))?;
            // Before the frame: receivers read it when a copy arrives.
            ledger.send(sequence, epoch);
            dispatcher.set_table(table, self.length);
            dispatcher.dispatch(Destinations::Experts(&selection.experts), sequence as u32, &payload)?;
            window.add(placement.copies(selection));
            frames += 1;
        }
        dispatcher.flush()?;
        window.wait(0);
        progress.finish();
        if window.lost() > HOPELESS {
            eprintln!("stopped after {} copies were lost", grouped(window.lost()));
        }
        Ok(frames)
    }

    /// Checks what arrives at a node until `stop` is set.
    fn receive(
        &self,
        node: u32,
        mut receiver: Receiver,
        acknowledgements: &Acknowledgements,
        stop: &AtomicBool,
    ) -> Result<Arrivals> {
        let mut checker = Checker::new(&self.expectation, node);
        receiver
            .for_each(stop, |frame| {
                checker.take(frame.bift_id(), frame.bits.iter().map(|bit| bit as u32), frame.payload);
                acknowledgements.add();
                ControlFlow::Continue(())
            })
            .with_context(|| format!("cannot receive on {}", node_name(node)))?;
        checker.take_undecodable(receiver.counts().skipped());
        let dropped = receiver.dropped()?;
        if dropped > 0 {
            eprintln!("the kernel of {} dropped {dropped} frames at the socket", node_name(node));
        }
        Ok(checker.arrivals())
    }

    fn report(&self, mode: String, dispatched: &Dispatched, copies_sent: u64) -> Report {
        let Dispatched { frames, seconds, ref arrivals, ref followed } = *dispatched;
        let per_node: Vec<NodeReport> = self
            .expectation
            .copies()
            .into_iter()
            .zip(arrivals)
            .zip(0..)
            .map(|((expected, &arrivals), node)| NodeReport { name: node_name(node), expected, arrivals })
            .collect();
        let mut total = Arrivals::default();
        per_node.iter().for_each(|node| total += node.arrivals);
        let copies_expected = per_node.iter().map(|node| node.expected).sum();
        let map_changes: Vec<MapChange> =
            followed.iter().map(|&(epoch, after)| self.change(epoch, after)).collect();
        Report {
            mode,
            transport: self.args.transport.name().to_owned(),
            routing: self.routing.clone(),
            nodes: self.args.nodes,
            tokens: self.expectation.selections.len() as u64,
            frames,
            payload: self.args.payload,
            copies_expected,
            copies_sent,
            copies_delivered: total.delivered,
            copies_unicast: self.expectation.unicast(),
            lost: copies_expected - total.delivered,
            duplicated: total.duplicated,
            misdelivered: total.misdelivered,
            corrupted: total.corrupted,
            map_updates: map_changes.len() as u64,
            map_updates_asked: self.args.rebalances.into(),
            map_changes,
            seconds,
            copies_per_second: total.delivered as f64 / seconds,
            per_node,
        }
    }

    fn change(&self, epoch: u16, after: Duration) -> MapChange {
        let Expectation { epochs, ledger, .. } = &self.expectation;
        let map = &epochs.all()[usize::from(epoch) - 1];
        MapChange {
            epoch,
            layers: map.layers(),
            experts_moved: map.experts_moved,
            milliseconds: after.as_secs_f64() * 1000.0,
            tokens: ledger.tokens(epoch),
        }
    }
}

/// What a thread returned.
fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Stops the receivers when it goes.
struct Stopper<'a>(&'a AtomicBool);

impl Drop for Stopper<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Where the kernel says that the XDP programs of a host run.
fn kernel_mode(host: &Host) -> Result<String> {
    let mut ip = tool("ip");
    ip.args(["-json", "link", "show"]);
    let links = host.output(ip)?;
    let links: Vec<Value> = serde_json::from_str(&links).with_context(|| format!("ip printed\n{links}"))?;
    let modes: BTreeSet<&str> = links
        .iter()
        .filter_map(|link| link.pointer("/xdp/mode")?.as_u64())
        // IFLA_XDP_ATTACHED: XDP_ATTACHED_DRV and so on in linux/if_link.h.
        .map(|mode| match mode {
            1 => "native",
            2 => "generic",
            3 => "offloaded",
            _ => "mixed",
        })
        .collect();
    match modes.into_iter().collect::<Vec<_>>()[..] {
        [mode] => Ok(mode.to_owned()),
        [] => bail!("the replicator runs, but no XDP program is attached on {}", host.name()),
        _ => Ok("mixed".to_owned()),
    }
}

/// How often `replicator stats --json` says that an outcome occurred.
fn outcome(stats: &Value, outcome: Outcome) -> Result<u64> {
    let count = stats["outcomes"][outcome.label()].as_u64();
    count.with_context(|| format!("`replicator stats --json` has no count of `{}`: {stats}", outcome.label()))
}
