//! How others ask something of the daemon: requests go to its loop one by one, so writers are ordered and an answer is
//! about one moment.

use tokio::sync::{mpsc, oneshot, watch};

pub use crate::models::Refusal;
use crate::{
    api::types::{Deleted, Epochs, Installed, ModelList, NeighborList, Readiness, Stats, StatusReport},
    map::ExpertMap,
};

/// Requests that wait for the loop; more wait outside.
const QUEUE: usize = 64;

/// A way to the daemon's loop; clones are the same.
#[derive(Clone, Debug)]
pub struct Control {
    requests: mpsc::Sender<Request>,
    changes: watch::Receiver<u64>,
}

/// What can be asked.
#[derive(Debug)]
pub(crate) enum Request {
    Take(ExpertMap, Reply<Result<Installed, Refusal>>),
    Delete(String, Reply<Result<Deleted, Refusal>>),
    Models(Reply<ModelList>),
    Map(String, Reply<Result<ExpertMap, Refusal>>),
    Epochs(String, Reply<Result<Epochs, Refusal>>),
    BiftIds(String, Reply<Result<Installed, Refusal>>),
    Status(Reply<StatusReport>),
    Neighbors(Reply<NeighborList>),
    Stats(Reply<Result<Stats, Refusal>>),
    Readiness(Reply<Readiness>),
}

pub(crate) type Reply<T> = oneshot::Sender<T>;

impl Control {
    /// A control and the requests that come by it. `changes` counts up whenever a model's tables change.
    pub(crate) fn new(changes: watch::Receiver<u64>) -> (Self, mpsc::Receiver<Request>) {
        let (requests, queue) = mpsc::channel(QUEUE);
        (Self { requests, changes }, queue)
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.requests.send(request(reply)).await.map_err(|_| Refusal::Ending)?;
        answer.await.map_err(|_| Refusal::Ending)
    }

    /// Puts a map in force: a full one in place of the model's last one, a partial one in place of some of its layers.
    /// Answers when every table is in the kernel.
    ///
    /// # Errors
    /// Where it is refused; nothing has changed then.
    pub async fn take(&self, map: ExpertMap) -> Result<Installed, Refusal> {
        self.ask(|reply| Request::Take(map, reply)).await?
    }

    /// Takes all tables of a model out of force.
    ///
    /// # Errors
    /// Where there is no such model.
    pub async fn delete(&self, model: String) -> Result<Deleted, Refusal> {
        self.ask(|reply| Request::Delete(model, reply)).await?
    }

    /// The models there are.
    ///
    /// # Errors
    /// [`Refusal::Ending`].
    pub async fn models(&self) -> Result<ModelList, Refusal> {
        self.ask(Request::Models).await
    }

    /// A model's map, all layers of it.
    ///
    /// # Errors
    /// Where there is no such model.
    pub async fn map(&self, model: String) -> Result<ExpertMap, Refusal> {
        self.ask(|reply| Request::Map(model, reply)).await?
    }

    /// The epochs of a model's layers.
    ///
    /// # Errors
    /// Where there is no such model.
    pub async fn epochs(&self, model: String) -> Result<Epochs, Refusal> {
        self.ask(|reply| Request::Epochs(model, reply)).await?
    }

    /// The BIFT-ids of all layers of a model.
    ///
    /// # Errors
    /// Where there is no such model.
    pub async fn bift_ids(&self, model: String) -> Result<Installed, Refusal> {
        self.ask(|reply| Request::BiftIds(model, reply)).await?
    }

    /// The daemon and what it looks after.
    ///
    /// # Errors
    /// [`Refusal::Ending`].
    pub async fn status(&self) -> Result<StatusReport, Refusal> {
        self.ask(Request::Status).await
    }

    /// The neighbors.
    ///
    /// # Errors
    /// [`Refusal::Ending`].
    pub async fn neighbors(&self) -> Result<NeighborList, Refusal> {
        self.ask(Request::Neighbors).await
    }

    /// What the datapath counted.
    ///
    /// # Errors
    /// Where the kernel does not tell.
    pub async fn stats(&self) -> Result<Stats, Refusal> {
        self.ask(Request::Stats).await?
    }

    /// Whether frames can be replicated.
    ///
    /// # Errors
    /// [`Refusal::Ending`].
    pub async fn readiness(&self) -> Result<Readiness, Refusal> {
        self.ask(Request::Readiness).await
    }

    /// Changes with every change of a model's tables: wait on it before asking again.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.clone()
    }
}
