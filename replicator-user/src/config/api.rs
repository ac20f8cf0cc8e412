//! The control API's keys: where it listens.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
};

use super::reader::Field;

pub(super) const API: &[&str] = &["socket", "tcp"];
pub(super) const TCP: &[&str] = &["listen", "certificate", "key", "token-file"];

/// Where the control socket is unless told otherwise.
pub(crate) const DEFAULT_SOCKET: &str = "/run/replicator/control.sock";

/// Bytes of a unix socket's path: `sun_path` of unix(7), less its final zero.
const MAX_SOCKET_BYTES: usize = 107;

/// Where the control API listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Api {
    /// The unix socket: an absolute path of at most 107 bytes.
    pub socket: PathBuf,
    /// TCP with TLS, where it is wanted.
    pub tcp: Option<Tcp>,
}

/// The control API over TCP: always with TLS, and for those who have the token alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    /// Address and port.
    pub listen: SocketAddr,
    /// PEM file with the certificate and those that lead to its root.
    pub certificate: PathBuf,
    /// PEM file with the certificate's private key.
    pub key: PathBuf,
    /// File with the token.
    pub token_file: PathBuf,
}

impl Default for Api {
    fn default() -> Self {
        Self { socket: DEFAULT_SOCKET.into(), tcp: None }
    }
}

/// Reads the section.
pub(super) fn read(field: &Field<'_>) -> Option<Api> {
    let section = field.section(API)?;
    let socket = section.get("socket").map_or(Some(DEFAULT_SOCKET.into()), |field| {
        let path =
            absolute_path(&field, "an absolute path of at most 107 bytes, which is what a socket's has");
        path.filter(|path| {
            let fits = path.as_os_str().len() <= MAX_SOCKET_BYTES;
            if !fits {
                field.must_be("a path of at most 107 bytes, which is what a socket's has");
            }
            fits
        })
    });
    let tcp = section.get("tcp").map(|field| tcp(&field));
    Some(Api { socket: socket?, tcp: tcp.map_or(Some(None), |tcp| tcp.map(Some))? })
}

fn tcp(field: &Field<'_>) -> Option<Tcp> {
    let section = field.section(TCP)?;
    let why = "over TCP there is no API without TLS and a token";
    let listen = section.require("listen", why).and_then(|field| {
        field.parse("an IP address and a port, such as 10.0.0.1:8139 or '[2001:db8::1]:8139'", |text| {
            text.parse().ok().filter(|address: &SocketAddr| address.port() != 0)
        })
    });
    let [certificate, key, token_file] = ["certificate", "key", "token-file"].map(|key| {
        section.require(key, why).and_then(|field| absolute_path(&field, "a file's absolute path"))
    });
    Some(Tcp { listen: listen?, certificate: certificate?, key: key?, token_file: token_file? })
}

/// A path that does not depend on where the daemon was started.
pub(super) fn absolute_path(field: &Field<'_>, what: &str) -> Option<PathBuf> {
    field.parse(what, |text| {
        let path = Path::new(text);
        (path.is_absolute() && path.file_name().is_some() && !text.contains('\0')).then(|| path.to_owned())
    })
}
