//! The other side: a client of the control API, as the command line uses it.

use std::{
    fmt, io,
    net::Ipv6Addr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde::de::DeserializeOwned;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
    task::JoinSet,
    time::timeout,
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

use super::{
    token::{Token, TokenError},
    types::{Deleted, Epochs, Installed, ModelList, NeighborList, Problem, Stats, StatusReport},
};
use crate::map::{ExpertMap, Faults, MAX_BYTES};

/// How long it may take to reach the daemon.
const CONNECT: Duration = Duration::from_secs(5);

/// How long an answer may take. The largest maps are in the kernel within seconds, and other writers may be before.
const ANSWER: Duration = Duration::from_secs(120);

/// Bytes of an answer: a map as the daemon writes it, with blanks.
const MAX_ANSWER: usize = 4 * MAX_BYTES;

/// Where a daemon is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A unix socket on this host.
    Socket(PathBuf),
    /// TCP with TLS.
    Https {
        /// Name or address, which the certificate has to have.
        host: String,
        /// Port.
        port: u16,
    },
}

impl FromStr for Address {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WHAT: &str =
            "must be a socket's path, such as /run/replicator/control.sock, or https://HOST:PORT";
        let Some(rest) = text.strip_prefix("https://") else {
            return if text.contains("://") || text.is_empty() {
                Err(WHAT)
            } else {
                Ok(Self::Socket(text.into()))
            };
        };
        let (host, port) = rest.trim_end_matches('/').rsplit_once(':').ok_or(WHAT)?;
        let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host = match bare {
            Some(v6) => v6.parse::<Ipv6Addr>().map_err(|_| WHAT)?.to_string(),
            None if host.is_empty() || host.contains([':', '/', '@']) => return Err(WHAT),
            None => host.to_owned(),
        };
        Ok(Self::Https { host, port: port.parse().map_err(|_| WHAT)? })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(path) => path.display().fmt(f),
            Self::Https { host, port } if host.contains(':') => write!(f, "https://[{host}]:{port}"),
            Self::Https { host, port } => write!(f, "https://{host}:{port}"),
        }
    }
}

/// Why there is no answer, or not the one that was asked for.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody answers there.
    #[error(
        "no daemon answers at {address}: {source}; start it with `replicator run`, or say with --api where it is"
    )]
    Unreachable {
        /// Where it was looked for.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The connection broke off.
    #[error("the connection to {address} broke off: {source}")]
    Broken {
        /// Where the daemon is.
        address: Address,
        /// Why.
        source: hyper::Error,
    },
    /// It took too long.
    #[error("{address} did not answer within {} s", .within.as_secs())]
    Late {
        /// Where the daemon is.
        address: Address,
        /// What it had.
        within: Duration,
    },
    /// The request was refused.
    #[error("{}", .problem.detail)]
    Refused {
        /// Why.
        problem: Box<Problem>,
        /// When to try again, where that helps.
        retry_after: Option<Duration>,
    },
    /// The answer is none of this API's.
    #[error(
        "{address} answered {status} with what is not understood ({reason}); is it a replicator of this version?"
    )]
    Strange {
        /// Where the daemon is.
        address: Address,
        /// The HTTP status.
        status: StatusCode,
        /// What is strange.
        reason: String,
    },
    /// The token cannot be used.
    #[error("token file {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenError,
    },
    /// The certificates cannot be used.
    #[error("certificates in {path}: {reason}")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// Something is missing that https needs.
    #[error("{0}")]
    Incomplete(&'static str),
}

impl ClientError {
    /// Whether it is that the daemon is not there, which may change.
    pub fn is_absence(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Broken { .. } | Self::Late { .. })
    }

    /// The problem, where the daemon refused.
    pub fn problem(&self) -> Option<&Problem> {
        match self {
            Self::Refused { problem, .. } => Some(problem),
            _ => None,
        }
    }
}

/// A way to a daemon. Every request has its own connection.
pub struct Client {
    address: Address,
    tls: Option<(TlsConnector, ServerName<'static>)>,
    token: Option<Token>,
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Client {
    /// A client of the daemon at `address`. Over TLS it needs the file with the token and one with the certificates (PEM)
    /// that the daemon's own may be signed by.
    ///
    /// # Errors
    /// Where these are missing or cannot be used.
    pub fn new(address: Address, token: Option<&Path>, ca: Option<&Path>) -> Result<Self, ClientError> {
        let Address::Https { host, .. } = &address else {
            return Ok(Self { address, tls: None, token: None });
        };
        let missing = "https needs the token and the certificates to trust; give --token-file and --ca";
        let (token, ca) = token.zip(ca).ok_or(ClientError::Incomplete(missing))?;
        let token =
            Token::read(token).map_err(|source| ClientError::Token { path: token.to_owned(), source })?;
        let name = ServerName::try_from(host.clone()).map_err(|_| {
            ClientError::Incomplete("the host is neither a name nor an address; mend the address")
        })?;
        let connector = TlsConnector::from(Arc::new(client_config(ca)?));
        Ok(Self { address, tls: Some((connector, name)), token: Some(token) })
    }

    /// Where the daemon is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The models there are.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn models(&self) -> Result<ModelList, ClientError> {
        self.get("/v1/models").await
    }

    /// The map in force.
    ///
    /// # Errors
    /// Where there is no answer or no such model.
    pub async fn map(&self, model: &str) -> Result<ExpertMap, ClientError> {
        let (status, body) = self.exchange(Method::GET, &of(model, "/map"), None, ANSWER).await?;
        ExpertMap::parse(&body).map_err(|faults: Faults| self.strange(status, &faults))
    }

    /// The epochs of a model's layers.
    ///
    /// # Errors
    /// Where there is no answer or no such model.
    pub async fn epochs(&self, model: &str) -> Result<Epochs, ClientError> {
        self.get(&of(model, "/epochs")).await
    }

    /// The BIFT-ids of all layers.
    ///
    /// # Errors
    /// Where there is no answer or no such model.
    pub async fn bift_ids(&self, model: &str) -> Result<Installed, ClientError> {
        self.get(&of(model, "/bift-ids")).await
    }

    /// The BIFT-ids of all layers once the epoch is larger than `after`, or when `wait` (at most a minute, whole seconds)
    /// is over.
    ///
    /// # Errors
    /// Where there is no answer or no such model.
    pub async fn newer_bift_ids(
        &self,
        model: &str,
        after: u64,
        wait: Duration,
    ) -> Result<Installed, ClientError> {
        let path = of(model, &format!("/bift-ids?after={after}&wait={}", wait.as_secs()));
        let (status, body) = self.exchange(Method::GET, &path, None, ANSWER + wait).await?;
        self.read(status, &body)
    }

    /// Puts a map in force: all of the model, or some layers where the map is partial.
    ///
    /// # Errors
    /// Where there is no answer or the map is refused.
    pub async fn push(&self, map: &ExpertMap) -> Result<Installed, ClientError> {
        let (method, what) = match map.is_partial() {
            true => (Method::PATCH, "/layers"),
            false => (Method::PUT, "/map"),
        };
        let body = map.to_json().into_bytes();
        let (status, body) = self.exchange(method, &of(map.model(), what), Some(body), ANSWER).await?;
        self.read(status, &body)
    }

    /// Takes a model out of force.
    ///
    /// # Errors
    /// Where there is no answer or no such model.
    pub async fn delete(&self, model: &str) -> Result<Deleted, ClientError> {
        let (status, body) = self.exchange(Method::DELETE, &of(model, ""), None, ANSWER).await?;
        self.read(status, &body)
    }

    /// The daemon and what it looks after.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn status(&self) -> Result<StatusReport, ClientError> {
        self.get("/v1/status").await
    }

    /// The neighbors.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn neighbors(&self) -> Result<NeighborList, ClientError> {
        self.get("/v1/neighbors").await
    }

    /// What the datapath counted.
    ///
    /// # Errors
    /// Where there is no answer.
    pub async fn stats(&self) -> Result<Stats, ClientError> {
        self.get("/v1/stats").await
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let (status, body) = self.exchange(Method::GET, path, None, ANSWER).await?;
        self.read(status, &body)
    }

    fn read<T: DeserializeOwned>(&self, status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.strange(status, &error))
    }

    fn strange(&self, status: StatusCode, reason: &dyn fmt::Display) -> ClientError {
        ClientError::Strange { address: self.address.clone(), status, reason: reason.to_string() }
    }

    /// One request and its answer, which may take `within`.
    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        within: Duration,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let unreachable = |source| ClientError::Unreachable { address: self.address.clone(), source };
        let late = || unreachable(io::ErrorKind::TimedOut.into());
        let stream = timeout(CONNECT, self.connect()).await.map_err(|_| late())?.map_err(unreachable)?;
        let answer = timeout(within, self.ask(stream, method, path, body)).await;
        answer.unwrap_or_else(|_| Err(ClientError::Late { address: self.address.clone(), within }))
    }

    async fn connect(&self) -> io::Result<Box<dyn Stream>> {
        match &self.address {
            Address::Socket(path) => Ok(Box::new(UnixStream::connect(path).await?)),
            Address::Https { host, port } => {
                let stream = TcpStream::connect((host.as_str(), *port)).await?;
                stream.set_nodelay(true)?;
                match &self.tls {
                    Some((connector, name)) => Ok(Box::new(connector.connect(name.clone(), stream).await?)),
                    None => Err(io::Error::other("no TLS")),
                }
            }
        }
    }

    async fn ask(
        &self,
        stream: Box<dyn Stream>,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<(StatusCode, Bytes), ClientError> {
        let broken = |source| ClientError::Broken { address: self.address.clone(), source };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with this function.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let host = match &self.address {
            Address::Socket(_) => "localhost".to_owned(),
            Address::Https { .. } => self.address.to_string().replace("https://", ""),
        };
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if let Some(token) = &self.token {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        let request = request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|_| ClientError::Incomplete("the address makes no request; mend it"))?;
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let retry_after = response.headers().get(header::RETRY_AFTER);
        let retry_after =
            retry_after.and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
        let body = body.map_err(|error| self.strange(status, &error))?.to_bytes();
        if status.is_success() {
            return Ok((status, body));
        }
        let problem = Box::new(self.read(status, &body)?);
        Err(ClientError::Refused { problem, retry_after })
    }
}

/// The path of something of a model.
fn of(model: &str, what: &str) -> String {
    let encode = |byte: u8| match byte {
        // RFC 3986, section 2.3.
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        byte => format!("%{byte:02X}"),
    };
    let model: String = model.bytes().map(encode).collect();
    format!("/v1/models/{model}{what}")
}

fn client_config(ca: &Path) -> Result<ClientConfig, ClientError> {
    let error = |reason: String| ClientError::Certificates { path: ca.to_owned(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca).map_err(|found| error(found.to_string()))? {
        let certificate = certificate.map_err(|found| error(found.to_string()))?;
        roots.add(certificate).map_err(|found| error(found.to_string()))?;
    }
    if roots.is_empty() {
        return Err(error("there is none; it must be a PEM file".to_owned()));
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|found| error(found.to_string()))?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

#[cfg(test)]
mod unit {
    use super::*;

    #[test]
    fn addresses() {
        let https = |host: &str, port| Ok(Address::Https { host: host.to_owned(), port });
        assert_eq!("/run/a.sock".parse(), Ok(Address::Socket("/run/a.sock".into())));
        assert_eq!("a.sock".parse(), Ok(Address::Socket("a.sock".into())));
        assert_eq!("https://node1:8139".parse(), https("node1", 8139));
        assert_eq!("https://10.0.0.1:8139/".parse(), https("10.0.0.1", 8139));
        assert_eq!("https://[2001:db8::1]:8139".parse(), https("2001:db8::1", 8139));
        for wrong in [
            "",
            "http://node1:80",
            "https://node1",
            "https://:80",
            "https://a:b:1",
            "https://a:99999",
            "https://u@a:1",
        ] {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        for shown in ["/run/a.sock", "https://node1:8139", "https://[2001:db8::1]:8139"] {
            assert_eq!(shown.parse::<Address>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn a_name_is_one_segment_of_a_path() {
        assert_eq!(of("deepseek-v2.5_x~", "/map"), "/v1/models/deepseek-v2.5_x~/map");
        assert_eq!(of("a/b ?#%é", ""), "/v1/models/a%2Fb%20%3F%23%25%C3%A9");
    }
}
