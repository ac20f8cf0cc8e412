//! Where the server listens: a unix socket, and TCP with TLS where it is wanted.

use std::{
    fs::{self, File, OpenOptions, Permissions, TryLockError},
    io,
    net::SocketAddr,
    os::unix::{
        fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
        net::UnixStream,
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use rustix::fs::Mode;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio_rustls::{
    TlsAcceptor,
    rustls::{self, ServerConfig, crypto::ring},
};
use tracing::warn;

use super::token::{Token, TokenError};
use crate::config;

/// The daemon's user and group may use the socket.
const SOCKET_MODE: Mode = Mode::from_raw_mode(0o660);

/// Connections that the kernel holds until the server takes them.
const BACKLOG: i32 = 128;

/// Why the server cannot listen.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The socket cannot be made.
    #[error("cannot make the control socket {path}: {source}")]
    Socket {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process listens on it.
    #[error("another process listens on {path}: end it, or give this replicator its own `api.socket`")]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something else is there.
    #[error("{path} is there and no socket: remove it, or choose another `api.socket`")]
    NoSocket {
        /// What is there.
        path: PathBuf,
    },
    /// The address cannot be listened on.
    #[error("cannot listen on {address} (`api.tcp.listen`): {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// A PEM file cannot be used.
    #[error("`api.tcp.{key}`: {path}: {reason}")]
    Pem {
        /// The key of the configuration that names it.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no token.
    #[error("`api.tcp.token-file`: {path}: {source}")]
    Token {
        /// The file.
        path: PathBuf,
        /// Why.
        source: TokenError,
    },
}

/// A unix socket that this process listens on. Its file is removed at the end.
#[derive(Debug)]
pub(super) struct UnixSocket {
    pub(super) listener: UnixListener,
    _file: SocketFile,
}

/// Removes the socket that a daemon left when it was killed. One that a process listens on is left alone.
///
/// # Errors
/// Where it cannot be removed.
pub fn remove_left(path: &Path) -> Result<(), ApiError> {
    if !path.exists() && !SocketLock::path(path).exists() {
        return Ok(());
    }
    let _lock = match SocketLock::take(path) {
        Err(ApiError::Taken { .. }) => return Ok(()),
        other => other?,
    };
    match remove_stale(path) {
        Err(ApiError::Taken { .. } | ApiError::NoSocket { .. }) => Ok(()),
        other => other,
    }
}

/// TCP with TLS for those who have the token.
pub(super) struct Tls {
    pub(super) listener: TcpListener,
    pub(super) acceptor: TlsAcceptor,
    pub(super) token: Token,
}

#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    /// Device and inode: the file may be another's by the time it is removed.
    identity: (u64, u64),
    /// Held.
    _lock: SocketLock,
}

/// Keeps two processes from replacing each other's socket. What is left of a process that died is no obstacle.
#[derive(Debug)]
struct SocketLock {
    path: PathBuf,
    _file: File,
}

impl UnixSocket {
    /// Listens on `path`. The socket of a process that died is replaced, one that lives is left alone.
    pub(super) fn bind(path: &Path) -> Result<Self, ApiError> {
        let error = |source| ApiError::Socket { path: path.to_owned(), source };
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).map_err(error)?;
        }
        let lock = SocketLock::take(path)?;
        remove_stale(path)?;
        let listen = || {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
            // The file gets the socket's own mode less the umask (unix_bind_bsd in net/unix/af_unix.c), so that it is at no
            // time more open than it should be. Before `listen` nobody can connect.
            rustix::fs::fchmod(&socket, SOCKET_MODE)?;
            socket.bind(&SockAddr::unix(path)?)?;
            let metadata = fs::symlink_metadata(path)?;
            let identity = (metadata.dev(), metadata.ino());
            let file = SocketFile { path: path.to_owned(), identity, _lock: lock };
            fs::set_permissions(path, Permissions::from_mode(SOCKET_MODE.as_raw_mode()))?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            let listener = UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))?;
            Ok(Self { listener, _file: file })
        };
        listen().map_err(error)
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if ours && let Err(error) = fs::remove_file(&self.path) {
            warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

impl SocketLock {
    fn path(socket: &Path) -> PathBuf {
        let mut path = socket.to_owned();
        path.as_mut_os_string().push(".lock");
        path
    }

    fn take(socket: &Path) -> Result<Self, ApiError> {
        let error = |source| ApiError::Socket { path: socket.to_owned(), source };
        let path = Self::path(socket);
        loop {
            let mut options = OpenOptions::new();
            options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
            let file = options.open(&path).map_err(error)?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(ApiError::Taken { path: socket.to_owned() }),
                Err(TryLockError::Error(source)) => return Err(error(source)),
            }
            // One who ended meanwhile has removed the file: what is locked then is nobody's.
            let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
            let locked = file.metadata().map(identity).map_err(error)?;
            if fs::symlink_metadata(&path).map(identity).is_ok_and(|there| there == locked) {
                return Ok(Self { path, _file: file });
            }
        }
    }
}

impl Drop for SocketLock {
    fn drop(&mut self) {
        // It is removed while it is held; without it the next one makes its own.
        let _ = fs::remove_file(&self.path);
    }
}

/// Removes the socket of a process that does not listen any more.
fn remove_stale(path: &Path) -> Result<(), ApiError> {
    let error = |source| ApiError::Socket { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(error(source)),
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ApiError::NoSocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(error)
        }
        // Any other answer is one of somebody who listens, a full backlog for example.
        _ => Err(ApiError::Taken { path: path.to_owned() }),
    }
}

impl Tls {
    /// Reads certificate, key and token, and listens.
    pub(super) fn bind(tcp: &config::Tcp) -> Result<Self, ApiError> {
        let token = Token::read(&tcp.token_file)
            .map_err(|source| ApiError::Token { path: tcp.token_file.clone(), source })?;
        let acceptor = TlsAcceptor::from(Arc::new(server_config(tcp)?));
        let error = |source| ApiError::Listen { address: tcp.listen, source };
        let listen = || {
            let socket = Socket::new(Domain::for_address(tcp.listen), Type::STREAM, None)?;
            // A daemon that starts again finds connections of the last one in TIME_WAIT.
            socket.set_reuse_address(true)?;
            if tcp.listen.is_ipv6() {
                socket.set_only_v6(true)?;
            }
            socket.bind(&tcp.listen.into())?;
            socket.listen(BACKLOG)?;
            socket.set_nonblocking(true)?;
            TcpListener::from_std(socket.into())
        };
        Ok(Self { listener: listen().map_err(error)?, acceptor, token })
    }
}

fn server_config(tcp: &config::Tcp) -> Result<ServerConfig, ApiError> {
    let pem = |key, path: &Path, reason: String| ApiError::Pem { key, path: path.to_owned(), reason };
    let (certificate, key) = (&tcp.certificate, &tcp.key);
    let chain = CertificateDer::pem_file_iter(certificate)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|error| pem("certificate", certificate, error.to_string()))?;
    if chain.is_empty() {
        return Err(pem("certificate", certificate, "has no certificate; it must be a PEM file".to_owned()));
    }
    let private = PrivateKeyDer::from_pem_file(key)
        .map_err(|error| pem("key", key, format!("has no private key in PEM: {error}")))?;
    let provider = Arc::new(ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map(|builder| builder.with_no_client_auth())
        .and_then(|builder| builder.with_single_cert(chain, private));
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => pem("key", key, "is not the certificate's".to_owned()),
        error => pem("certificate", certificate, error.to_string()),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
