//! The server: takes connections, and answers the requests on each until it ends.

use std::{io, pin::pin, sync::Arc, time::Duration};

use axum::Router;
use hyper::{
    Request,
    body::Incoming,
    server::conn::http1,
    service::{Service as _, service_fn},
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tracing::{debug, error, warn};

use super::{
    connections::{Connections, Place},
    limits::{HEAD_BYTES, Limits},
    listen::{ApiError, Tls, UnixSocket},
    router::{self, App},
    stall::Stall,
};
use crate::{config, daemon::control::Control};

/// How long nothing is taken where the system has no file descriptors or memory left.
const OUT_OF_RESOURCES: Duration = Duration::from_millis(200);

/// Sockets on which nobody is answered yet.
pub struct Listeners {
    unix: UnixSocket,
    tls: Option<Tls>,
    pub(super) limits: Limits,
}

/// A server that answers. Where it is dropped it ends at once.
#[derive(Debug)]
pub struct Server {
    ending: watch::Sender<bool>,
    listeners: JoinSet<()>,
}

impl Listeners {
    /// Listens wherever the configuration says, or nowhere. Must be called within a runtime of tokio.
    ///
    /// # Errors
    /// Where a socket cannot be had, or certificate, key or token are not fit.
    pub fn bind(api: &config::Api) -> Result<Self, ApiError> {
        let tls = api.tcp.as_ref().map(Tls::bind).transpose()?;
        Ok(Self { unix: UnixSocket::bind(&api.socket)?, tls, limits: Limits::default() })
    }

    /// Answers from now on.
    pub fn serve(self, control: Control) -> Server {
        let Self { unix, tls, limits } = self;
        let (ending, ends) = watch::channel(false);
        let app = App::new(control, limits, ends.clone());
        let mut listeners = JoinSet::new();
        if let Some(Tls { listener, acceptor, token }) = tls {
            let router = router::router(Arc::clone(&app), Some(token));
            listeners.spawn(listen(Listener::Tls(listener, acceptor), router, limits, ends.clone()));
        }
        listeners.spawn(listen(Listener::Unix(unix), router::router(app, None), limits, ends));
        Server { ending, listeners }
    }
}

impl Server {
    /// Takes no more connections, waits a moment for the answers under way, and removes the socket.
    pub async fn shutdown(mut self) {
        self.ending.send_replace(true);
        // Each listener waits for its connections, and no longer than `Limits::drain`.
        while self.listeners.join_next().await.is_some() {}
    }
}

enum Listener {
    Unix(UnixSocket),
    Tls(tokio::net::TcpListener, TlsAcceptor),
}

enum Accepted {
    Unix(UnixStream),
    Tls(TcpStream, TlsAcceptor),
}

impl Listener {
    async fn accept(&self) -> io::Result<Accepted> {
        match self {
            Self::Unix(socket) => Ok(Accepted::Unix(socket.listener.accept().await?.0)),
            Self::Tls(listener, acceptor) => Ok(Accepted::Tls(listener.accept().await?.0, acceptor.clone())),
        }
    }
}

/// Takes connections until the server ends.
async fn listen(listener: Listener, router: Router, limits: Limits, mut ending: watch::Receiver<bool>) {
    let places = Connections::new(limits.connections);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            _ = ending.wait_for(|&ending| ending) => break,
            Some(ended) = connections.join_next() => {
                if let Err(panic) = ended {
                    error!("a connection to the control API was given up: {panic}");
                }
                continue;
            }
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(accepted) => {
                let place = tokio::select! {
                    _ = ending.wait_for(|&ending| ending) => break,
                    place = places.admit() => place,
                };
                connections.spawn(connection(accepted, place, router.clone(), limits, ending.clone()));
            }
            Err(error) => {
                warn!("the control API cannot take a connection: {error}");
                sleep(OUT_OF_RESOURCES).await;
            }
        }
    }
    drop(listener);
    let rest = async { while connections.join_next().await.is_some() {} };
    // What is not answered by then is cut off.
    let _ = timeout(limits.drain, rest).await;
}

async fn connection(
    accepted: Accepted,
    place: Place,
    router: Router,
    limits: Limits,
    ending: watch::Receiver<bool>,
) {
    let served = match accepted {
        Accepted::Unix(stream) => serve(stream, place, router, limits, ending).await,
        Accepted::Tls(stream, acceptor) => {
            let handshake = async {
                // Answers are small, and each is written at once.
                stream.set_nodelay(true)?;
                acceptor.accept(stream).await
            };
            let handshake = tokio::select! {
                () = place.leave.notified() => return,
                handshake = timeout(limits.handshake, handshake) => handshake,
            };
            match handshake {
                Ok(Ok(stream)) => serve(stream, place, router, limits, ending).await,
                Ok(Err(error)) => return debug!("a TLS handshake with the control API failed: {error}"),
                Err(_) => return debug!("a TLS handshake with the control API took too long"),
            }
        }
    };
    if let Err(error) = served {
        debug!("a connection to the control API ended: {error}");
    }
}

/// Answers the requests of one client until it leaves, has to leave, or the server ends.
async fn serve(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send,
    place: Place,
    router: Router,
    limits: Limits,
    mut ending: watch::Receiver<bool>,
) -> hyper::Result<()> {
    let place = Arc::new(place);
    let (router, requests) = (TowerToHyperService::new(router), Arc::clone(&place));
    let service = service_fn(move |mut request: Request<Incoming>| {
        requests.busy();
        // For the time that its body takes to arrive.
        request.extensions_mut().insert(Arc::clone(&requests));
        let (answer, place) = (router.call(request), Arc::clone(&requests));
        async move {
            let answer = answer.await;
            place.silent();
            answer
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(Stall::new(stream, limits.stall)), service)
    );
    let mut last = false;
    loop {
        tokio::select! {
            served = connection.as_mut() => return served,
            () = place.leave.notified() => return Ok(()),
            _ = ending.wait_for(|&ending| ending), if !last => {
                last = true;
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}
