//! TCP: TLS and the token.

use std::{
    fs,
    net::{SocketAddr, TcpListener as StdListener},
    os::unix::fs::PermissionsExt as _,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::json;
use tokio::{io::AsyncReadExt as _, net::TcpStream, time::timeout};
use tokio_rustls::{
    TlsConnector,
    client::TlsStream,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

use super::fake::{Answer, Fake, Folder, listeners, map, talk};
use crate::{
    api::{
        client::{Address, Client, ClientError},
        limits::Limits,
        server::{Listeners, Server},
        types::Code,
    },
    config::{Api, Tcp},
    map::ExpertMap,
};

const TOKEN: &str = "0123456789abcdef0123456789abcdef";

struct Lab {
    _fake: Fake,
    _server: Server,
    tcp: Tcp,
    folder: Folder,
}

/// Files for a server at 127.0.0.1.
fn files(folder: &Folder) -> Api {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let write = |name: &str, text: &str| -> PathBuf {
        let path = folder.path(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        path
    };
    // A port that was free a moment ago.
    let free = StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let tcp = Tcp {
        listen: free,
        certificate: write("tls.crt", &made.cert.pem()),
        key: write("tls.key", &made.signing_key.serialize_pem()),
        token_file: write("token", &format!("{TOKEN}\n")),
    };
    Api { socket: folder.path("api.sock"), tcp: Some(tcp) }
}

impl Lab {
    fn start(limits: Limits) -> Self {
        let folder = Folder::new();
        let (fake, api) = (Fake::start(), files(&folder));
        let server = listeners(&api, limits).serve(fake.control.clone());
        Self { _fake: fake, _server: server, tcp: api.tcp.unwrap(), folder }
    }

    fn client(&self, token: &str) -> Result<Client, ClientError> {
        let file = self.folder.path("other-token");
        fs::write(&file, token).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        let address: Address = format!("https://{}", self.tcp.listen).parse().unwrap();
        Client::new(address, Some(&file), Some(&self.tcp.certificate))
    }

    async fn connect(&self) -> TlsStream<TcpStream> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(&self.tcp.certificate).unwrap() {
            roots.add(certificate.unwrap()).unwrap();
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(self.tcp.listen).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        TlsConnector::from(Arc::new(config)).connect(name, stream).await.unwrap()
    }

    async fn ask(&self, path: &str, headers: &str) -> Answer {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        talk(self.connect().await, request.as_bytes()).await.unwrap()
    }
}

#[tokio::test]
async fn nothing_but_health_without_the_token() {
    let lab = Lab::start(Limits::default());
    for path in
        ["/v1/models", "/v1/stats", "/metrics", "/openapi.json", "/nowhere", "/livez/", "/v1/models/m/layers"]
    {
        for headers in [
            "",
            "Authorization: Bearer 0123456789abcdef0123456789abcdeF\r\n",
            "Authorization: Basic 0123456789abcdef0123456789abcdef\r\n",
        ] {
            let answer = lab.ask(path, headers).await;
            assert_eq!((answer.status, &answer.json()["code"]), (401, &json!("unauthorized")), "{path}");
            assert_eq!(answer.header("www-authenticate"), Some("Bearer"));
        }
    }
    assert_eq!(lab.ask("/livez", "").await.body, "ok");
    assert_eq!(lab.ask("/readyz", "").await.status, 200);
    let bearer = format!("Authorization: Bearer {TOKEN}\r\n");
    assert_eq!(lab.ask("/v1/models", &bearer).await.status, 200);
    assert_eq!(lab.ask("/nowhere", &bearer).await.status, 404);
}

#[tokio::test]
async fn the_client_brings_the_token_and_checks_the_certificate() {
    let lab = Lab::start(Limits::default());
    let client = lab.client(TOKEN).unwrap();
    let map = ExpertMap::parse(map("m", 3, &[0, 1], false).as_bytes()).unwrap();
    assert_eq!(client.push(&map).await.unwrap().epoch, 3);
    assert_eq!(client.map("m").await.unwrap(), map);
    let error = lab.client("fedcba9876543210").unwrap().push(&map).await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, Code::Unauthorized);
    // Another server's certificate.
    let other = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(&lab.tcp.certificate, other.cert.pem()).unwrap();
    let error = lab.client(TOKEN).unwrap().models().await.unwrap_err();
    assert!(matches!(error, ClientError::Unreachable { .. }), "{error}");
    // Half of what it takes.
    let address: Address = format!("https://{}", lab.tcp.listen).parse().unwrap();
    assert!(matches!(
        Client::new(address, None, Some(&lab.tcp.certificate)),
        Err(ClientError::Incomplete(_))
    ));
    assert!(matches!(lab.client("short"), Err(ClientError::Token { .. })));
}

#[tokio::test]
async fn who_makes_no_handshake_goes_and_holds_nobody_up() {
    let lab = Lab::start(Limits {
        connections: 16,
        handshake: Duration::from_millis(500),
        head: Duration::from_millis(500),
        ..Limits::default()
    });
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(lab.tcp.listen).await.unwrap());
    }
    let client = lab.client(TOKEN).unwrap();
    assert_eq!(client.models().await.unwrap().models, []);
    for mut stream in silent {
        let closed = timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await.expect("it is closed");
        assert_eq!(closed.unwrap_or(0), 0);
    }
    // HTTP without TLS is no handshake: no answer in the clear.
    let plain = TcpStream::connect(lab.tcp.listen).await.unwrap();
    let request = format!("GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n");
    assert!(talk(plain, request.as_bytes()).await.is_none());
}

#[tokio::test]
async fn what_is_not_fit_is_said_before_anything_listens() {
    let folder = Folder::new();
    let good = files(&folder);
    let tcp = || good.tcp.clone().unwrap();
    let other = rcgen::generate_simple_self_signed(["x".to_owned()]).unwrap().signing_key.serialize_pem();
    fs::write(folder.path("other.key"), other).unwrap();
    fs::write(folder.path("empty"), "").unwrap();
    fs::set_permissions(folder.path("empty"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.path("open"), TOKEN).unwrap();
    fs::set_permissions(folder.path("open"), fs::Permissions::from_mode(0o644)).unwrap();
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let listen: SocketAddr = taken.local_addr().unwrap();
    for (tcp, said) in [
        (Tcp { certificate: folder.path("none"), ..tcp() }, "`api.tcp.certificate`: "),
        (Tcp { certificate: folder.path("empty"), ..tcp() }, "has no certificate; it must be a PEM file"),
        (Tcp { key: folder.path("empty"), ..tcp() }, "has no private key in PEM"),
        (Tcp { key: folder.path("other.key"), ..tcp() }, "other.key: is not the certificate's"),
        (Tcp { token_file: folder.path("empty"), ..tcp() }, "has 0 characters; a token has at least 16"),
        (
            Tcp { token_file: folder.path("open"), ..tcp() },
            "everyone on this host may read or write it (mode 0644)",
        ),
        (Tcp { listen, ..tcp() }, "(`api.tcp.listen`): "),
    ] {
        let api = Api { tcp: Some(tcp), ..good.clone() };
        let Err(error) = Listeners::bind(&api) else { panic!("{said}") };
        assert!(error.to_string().contains(said), "{error}");
        assert!(!api.socket.exists());
    }
}
