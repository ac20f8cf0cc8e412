//! A daemon's loop without a datapath, and a server on it.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use replicator_common::outcome::Outcome;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    net::UnixStream,
    sync::{mpsc, watch},
    task::JoinHandle,
};

use crate::{
    api::{
        client::{Address, Client},
        limits::Limits,
        server::{Listeners, Server},
        types::{Count, NeighborList, NeighborReport, Readiness, Stats, StatusReport, Traffic},
    },
    config,
    daemon::{
        control::{Control, Request},
        status::NeighborResolution,
    },
    map::ExpertMap,
    models::{Models, Refusal},
};

/// What the loop of a test does otherwise than usual.
#[derive(Debug, Default)]
pub(crate) struct Whims {
    /// Refuses the next requests that can be refused with these.
    pub(crate) refuse: Vec<Refusal>,
    /// What is missing.
    pub(crate) missing: Vec<String>,
}

pub(crate) struct Fake {
    pub(crate) control: Control,
    pub(crate) whims: Arc<Mutex<Whims>>,
    task: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Fake {
    pub(crate) fn start() -> Self {
        let (changed, changes) = watch::channel(0);
        let (control, queue) = Control::new(changes);
        let whims = Arc::<Mutex<Whims>>::default();
        let task = tokio::spawn(answer(queue, changed, Arc::clone(&whims)));
        Self { control, whims, task }
    }

    /// Ends the loop, as a daemon that has been told to end.
    pub(crate) fn end(&self) {
        self.task.abort();
    }
}

/// A model of this name stands in the configuration.
pub(crate) const CONFIGURED: &str = "configured";

async fn answer(mut queue: mpsc::Receiver<Request>, changed: watch::Sender<u64>, whims: Arc<Mutex<Whims>>) {
    let configured = BTreeMap::from([(CONFIGURED.to_owned(), BTreeSet::from([0]))]);
    let mut models = Models::new(configured, Duration::from_secs(10));
    let started = Instant::now();
    while let Some(request) = queue.recv().await {
        let now = started.elapsed();
        let refusal = || whims.lock().unwrap().refuse.pop().map_or(Ok(()), Err);
        let mut install = |map: ExpertMap| {
            refusal()?;
            let plan = models.plan(map, now)?;
            let installed = models.commit(plan, now);
            changed.send_modify(|count| *count += 1);
            Ok(installed)
        };
        // Whoever asked may have gone.
        let _ = match request {
            Request::Take(map, reply) => reply.send(install(map)).is_ok(),
            Request::Delete(model, reply) => reply.send(models.remove(&model, now)).is_ok(),
            Request::Models(reply) => {
                reply.send(crate::api::types::ModelList { models: models.summaries() }).is_ok()
            }
            Request::Map(model, reply) => reply.send(models.get(&model).map(|m| m.map().clone())).is_ok(),
            Request::Epochs(model, reply) => reply.send(models.epochs(&model, now)).is_ok(),
            Request::BiftIds(model, reply) => reply.send(models.get(&model).map(|m| m.installed())).is_ok(),
            Request::Status(reply) => reply.send(status(&models)).is_ok(),
            Request::Neighbors(reply) => reply.send(neighbors()).is_ok(),
            Request::Stats(reply) => reply.send(refusal().map(|()| stats())).is_ok(),
            Request::Readiness(reply) => {
                let missing = whims.lock().unwrap().missing.clone();
                reply.send(Readiness { ready: missing.is_empty(), missing }).is_ok()
            }
        };
    }
}

fn status(models: &Models) -> StatusReport {
    StatusReport {
        version: "1.2.3".into(),
        pid: 7,
        uptime_seconds: 12.5,
        origin: None,
        interfaces: Vec::new(),
        neighbors: Count { total: 2, resolved: 1 },
        models: models.summaries(),
        configured_tables: 1,
        bift_ids: 6,
        superseded: models.superseded(),
        retired_early: 3,
        behind: false,
    }
}

fn neighbors() -> NeighborList {
    let neighbor = |name: &str, id, resolution| NeighborReport { name: name.into(), id, resolution };
    let ready = NeighborResolution::Ready { ifindex: 2, mac: "02:00:00:00:00:02".into() };
    let pending = NeighborResolution::Pending { reason: "no route".into() };
    NeighborList { neighbors: vec![neighbor("node1", 3, ready), neighbor("node2", 4, pending)] }
}

fn stats() -> Stats {
    let mut outcomes: BTreeMap<_, _> =
        Outcome::ALL.iter().map(|outcome| (outcome.label().to_owned(), 0)).collect();
    outcomes.insert("replicated".into(), 5);
    outcomes.insert("sent".into(), 9);
    outcomes.insert("bit_without_row".into(), 2);
    let traffic = |copies, bytes| Traffic { copies, bytes };
    let neighbors = BTreeMap::from([("local".into(), traffic(1, 100)), ("node1".into(), traffic(8, 800))]);
    Stats { uptime_seconds: 12.5, outcomes, neighbors }
}

/// A folder of one test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("replicator-api-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// A server on a unix socket.
pub(crate) struct Lab {
    pub(crate) fake: Fake,
    pub(crate) server: Server,
    pub(crate) socket: PathBuf,
    _folder: Folder,
}

impl Lab {
    /// With the limits that there are.
    pub(crate) fn usual() -> Self {
        Self::start(Limits::default())
    }

    pub(in crate::api) fn start(limits: Limits) -> Self {
        let folder = Folder::new();
        let socket = folder.path("api.sock");
        let fake = Fake::start();
        let server = listeners(&api(&socket), limits).serve(fake.control.clone());
        Self { fake, server, socket, _folder: folder }
    }

    pub(crate) fn client(&self) -> Client {
        Client::new(Address::Socket(self.socket.clone()), None, None).unwrap()
    }

    pub(crate) async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.unwrap()
    }

    /// The answer to a request without a body.
    pub(crate) async fn ask(&self, method: &str, path: &str) -> Answer {
        self.send(method, path, b"").await
    }

    /// The answer to a request with one.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &[u8]) -> Answer {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        talk(self.connect().await, &[head.as_bytes(), body].concat()).await.unwrap()
    }
}

pub(crate) fn api(socket: &Path) -> config::Api {
    config::Api { socket: socket.to_owned(), tcp: None }
}

pub(in crate::api) fn listeners(api: &config::Api, limits: Limits) -> Listeners {
    let mut listeners = Listeners::bind(api).unwrap_or_else(|error| panic!("{error}"));
    listeners.limits = limits;
    listeners
}

/// An answer, read byte by byte and not by the code under test.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let pair = |line: &'_ str| line.split_once(": ").map(|(n, _)| n.eq_ignore_ascii_case(name));
        let line = self.head.lines().find(|line| pair(line) == Some(true))?;
        Some(line.split_once(": ").unwrap().1)
    }
}

/// Writes and reads the first answer; `None` where the other end closes without one.
pub(crate) async fn talk<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, request: &[u8]) -> Option<Answer> {
    // The other end may close before all is written, and has answered then.
    let _ = stream.write_all(request).await;
    answer_of(&mut stream, !request.starts_with(b"HEAD ")).await
}

pub(crate) async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Option<Answer> {
    answer_of(stream, true).await
}

async fn answer_of<S: AsyncRead + Unpin>(stream: &mut S, has_body: bool) -> Option<Answer> {
    let mut text = Vec::new();
    let mut chunk = vec![0; 1 << 16];
    loop {
        if let Some(at) = text.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(text[..at].to_vec()).unwrap();
            let status = head.split(' ').nth(1).unwrap().parse().unwrap();
            let mut answer = Answer { status, head, body: String::new() };
            let length = answer.header("content-length").filter(|_| has_body);
            let length = length.map_or(0, |length| length.parse::<usize>().unwrap());
            if text.len() >= at + 4 + length {
                answer.body = String::from_utf8(text[at + 4..at + 4 + length].to_vec()).unwrap();
                return Some(answer);
            }
        }
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => return None,
            Ok(count) => text.extend_from_slice(&chunk[..count]),
        }
    }
}

/// Four experts on two nodes, in these layers.
pub(crate) fn map(model: &str, epoch: u64, layers: &[u16], partial: bool) -> String {
    let layers: BTreeMap<_, _> = layers
        .iter()
        .map(|layer| (layer.to_string(), serde_json::json!({ "physical_to_logical_map": [0, 1, 2, 3] })))
        .collect();
    serde_json::json!({
        "version": 1, "model": model, "epoch": epoch, "logical_experts": 4, "partial": partial,
        "ranks": [{ "rank": 0, "node": "node1" }, { "rank": 1, "node": "node2" }], "layers": layers,
    })
    .to_string()
}
