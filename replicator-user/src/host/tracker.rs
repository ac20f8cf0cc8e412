//! A view kept right by the kernel's notifications.

use std::time::Duration;

use futures_util::{FutureExt, StreamExt, future::ready, stream::BoxStream};
use rtnetlink::{
    MulticastGroup, packet_core::NetlinkPayload, packet_route::RouteNetlinkMessage, proto::sys::AsyncSocket,
};
use tracing::warn;

use super::{
    Error, Netlink,
    netlink::Task,
    view::{Touched, View},
};

/// Bytes that the kernel may queue before it drops notifications. It doubles this, and caps it at
/// net.core.rmem_max.
const RECEIVE_BUFFER_BYTES: libc::c_int = 1 << 20;

/// Pause before the kernel's tables are read again after that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Follows the kernel's tables in the network namespace of the thread that opened it.
pub(super) struct Tracker {
    /// What is known; empty before the first [`Tracker::changed`].
    pub(super) view: View,
    groups: &'static [MulticastGroup],
    netlink: Netlink,
    feed: Feed,
    /// The tables have to be read: nothing was yet, or notifications were lost.
    stale: bool,
    /// Notifications were lost: the feed needs a new socket. What waits in the old one is older than what was
    /// lost, and the kernel drops all that follows until it is empty (`NETLINK_S_CONGESTED`).
    lost: bool,
}

struct Feed {
    notifications: BoxStream<'static, Notification>,
    _connection: Task,
}

enum Notification {
    Change(Box<RouteNetlinkMessage>),
    /// The kernel dropped some (`ENOBUFS`).
    Lost,
}

impl Tracker {
    /// Subscribes first and leaves reading the tables to [`Tracker::changed`], so that nothing falls in
    /// between. Must be called within a tokio runtime.
    pub(super) fn open(groups: &'static [MulticastGroup]) -> Result<Self, Error> {
        Ok(Self {
            view: View::default(),
            groups,
            netlink: Netlink::open()?,
            feed: Feed::open(groups)?,
            stale: true,
            lost: false,
        })
    }

    /// A connection for requests of the follower's own.
    pub(super) const fn netlink(&self) -> &Netlink {
        &self.netlink
    }

    /// Waits for news and takes all there is. May be dropped at any point and called again.
    pub(super) async fn changed(&mut self) -> Touched {
        let mut touched = Touched::default();
        if !self.stale {
            let next = self.feed.notifications.next().await;
            touched = self.apply(next);
            touched |= self.apply_waiting();
        }
        while self.stale {
            match self.read_again().await {
                Ok(()) => {
                    self.stale = false;
                    // Some are older than the tables; with those that follow they end at the same state.
                    self.apply_waiting();
                    touched = Touched { host: true, neighbors: true, routes: true };
                }
                Err(error) => {
                    warn!("{error}; trying again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        touched
    }

    fn apply(&mut self, next: Option<Notification>) -> Touched {
        match next {
            Some(Notification::Change(message)) => self.view.apply(&message),
            Some(Notification::Lost) | None => {
                (self.stale, self.lost) = (true, true);
                Touched::default()
            }
        }
    }

    fn apply_waiting(&mut self) -> Touched {
        let mut touched = Touched::default();
        while !self.lost
            && let Some(next) = self.feed.notifications.next().now_or_never()
        {
            touched |= self.apply(next);
        }
        touched
    }

    async fn read_again(&mut self) -> Result<(), Error> {
        if self.lost {
            self.netlink = Netlink::open()?;
            self.feed = Feed::open(self.groups)?;
            self.lost = false;
        }
        let read = View::read(&self.netlink).await?;
        self.view = View { routes: std::mem::take(&mut self.view.routes), ..read };
        Ok(())
    }
}

impl Feed {
    fn open(groups: &[MulticastGroup]) -> Result<Self, Error> {
        let (mut connection, _, messages) =
            rtnetlink::new_multicast_connection(groups).map_err(Error::Open)?;
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER_BYTES).map_err(Error::Open)?;
        let notifications = messages.filter_map(|(message, _)| {
            ready(match message.payload {
                NetlinkPayload::InnerMessage(message) => Some(Notification::Change(Box::new(message))),
                NetlinkPayload::Overrun(_) => Some(Notification::Lost),
                _ => None,
            })
        });
        Ok(Self { notifications: notifications.boxed(), _connection: Task::spawn(connection) })
    }
}
