//! Requests to rtnetlink.

use std::{io, net::IpAddr, time::Duration};

use futures_util::{Stream, StreamExt, TryStreamExt};
use rtnetlink::{
    Handle, RouteMessageBuilder,
    packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        address::AddressMessage,
        link::LinkMessage,
        neighbour::{NeighbourFlags, NeighbourMessage, NeighbourState},
        route::RouteMessage,
        tc::{TcAttribute, TcHandle, TcMessage},
    },
};
use tokio::{task::JoinHandle, time::timeout};

use super::{Error, MacAddr};

/// The kernel answers in microseconds; a reply that the parser refuses never comes at all.
const ANSWER: Duration = Duration::from_secs(5);

/// A connection to rtnetlink of the network namespace that the calling thread is in.
pub struct Netlink {
    handle: Handle,
    _connection: Task,
}

/// A task that ends with its owner.
pub(super) struct Task(JoinHandle<()>);

impl Task {
    /// Starts it on the current runtime.
    pub(super) fn spawn(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Netlink {
    /// Opens it. Must be called within a tokio runtime.
    pub fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Open)?;
        Ok(Self { handle, _connection: Task::spawn(connection) })
    }

    pub(super) fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) async fn link_messages(&self) -> Result<Vec<LinkMessage>, Error> {
        collect("list the interfaces", self.handle.link().get().execute()).await
    }

    pub(super) async fn address_messages(&self) -> Result<Vec<AddressMessage>, Error> {
        collect("list the addresses", self.handle.address().get().execute()).await
    }

    pub(super) async fn neighbor_messages(&self) -> Result<Vec<NeighbourMessage>, Error> {
        collect("list the neighbors", self.handle.neighbours().get().execute()).await
    }

    /// The route that the kernel takes to `destination` now; with an interface, to it through that interface.
    pub(super) async fn route_to(
        &self,
        destination: IpAddr,
        ifindex: Option<u32>,
    ) -> Result<RouteMessage, Error> {
        let action = format!("look up the route to {destination}");
        let prefix = if destination.is_ipv4() { 32 } else { 128 };
        let mut query = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination, prefix)
            .map_err(|_| Error::NoAnswer { action: action.clone() })?;
        if let Some(ifindex) = ifindex {
            query = query.output_interface(ifindex);
        }
        let answers = collect(&action, self.handle.route().get(query.build()).execute()).await?;
        answers.into_iter().next().ok_or(Error::NoAnswer { action })
    }

    /// Makes the kernel treat the neighbor as used, so that it resolves or refreshes it.
    pub(super) async fn use_neighbor(&self, ifindex: u32, address: IpAddr) -> Result<(), Error> {
        let request = self
            .handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        done(format!("resolve the neighbor {address}"), request.execute()).await
    }

    /// Puts a permanent entry in the neighbor table.
    pub(super) async fn set_neighbor(
        &self,
        ifindex: u32,
        address: IpAddr,
        mac: MacAddr,
    ) -> Result<(), Error> {
        let request = self
            .handle
            .neighbours()
            .add(ifindex, address)
            .link_layer_address(&mac.octets())
            .state(NeighbourState::Permanent)
            .replace();
        done(format!("set the neighbor entry of {address}"), request.execute()).await
    }

    /// Gives an interface a queueing discipline of this kind, with the kind's own defaults.
    pub(super) async fn set_qdisc(&self, ifindex: u32, kind: &str) -> Result<(), Error> {
        let mut message = TcMessage::with_index(ifindex as i32);
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        let mut request = NetlinkMessage::from(RouteNetlinkMessage::NewQueueDiscipline(message));
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE;
        let action = format!("give interface {ifindex} the queueing discipline {kind}");
        let mut answers = match self.handle.clone().request(request) {
            Ok(answers) => answers,
            Err(error) => return Err(Error::refused(action, io::Error::other(error))),
        };
        while let Some(answer) = next_answer(&action, &mut answers).await? {
            if let NetlinkPayload::Error(message) = answer.payload {
                // An error without a code is the acknowledgment.
                return match message.code {
                    None => Ok(()),
                    Some(_) => Err(Error::refused(action, message.to_io())),
                };
            }
        }
        Ok(())
    }
}

/// All items of a dump, or the first error.
async fn collect<T>(
    action: &str,
    answers: impl Stream<Item = Result<T, rtnetlink::Error>>,
) -> Result<Vec<T>, Error> {
    done(action, std::pin::pin!(answers).try_collect()).await
}

/// The outcome of one request, with what it was for.
pub(super) async fn done<T>(
    action: impl Into<String>,
    answer: impl Future<Output = Result<T, rtnetlink::Error>>,
) -> Result<T, Error> {
    let action = action.into();
    match timeout(ANSWER, answer).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(rtnetlink::Error::NetlinkError(message))) => Err(Error::refused(action, message.to_io())),
        Ok(Err(error)) => Err(Error::refused(action, io::Error::other(error))),
        Err(_) => Err(Error::NoAnswer { action }),
    }
}

/// The next item of an answer, `None` at its end.
pub(super) async fn next_answer<T>(
    action: &str,
    answers: &mut (impl Stream<Item = T> + Unpin),
) -> Result<Option<T>, Error> {
    timeout(ANSWER, answers.next()).await.map_err(|_| Error::NoAnswer { action: action.to_owned() })
}
