//! The unix socket: whose it is, who may use it, and what becomes of it.

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixListener as StdListener},
    time::{Duration, Instant},
};

use super::fake::{Fake, Folder, Lab, api, listeners, map, read};
use crate::{
    api::{
        client::{Address, Client, ClientError},
        limits::Limits,
        listen::ApiError,
        server::Listeners,
        types::Code,
    },
    map::ExpertMap,
};

#[tokio::test]
async fn its_owner_and_group_may_use_it_and_it_goes_with_the_server() {
    let folder = Folder::new();
    let socket = folder.path("run/replicator/api.sock");
    let fake = Fake::start();
    let server = listeners(&api(&socket), Limits::default()).serve(fake.control.clone());
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o7777, 0o660);
    let client = Client::new(Address::Socket(socket.clone()), None, None).unwrap();
    assert_eq!(client.models().await.unwrap().models, []);
    server.shutdown().await;
    assert_eq!(fs::read_dir(socket.parent().unwrap()).unwrap().count(), 0, "nothing is left");
    let error = client.models().await.unwrap_err();
    assert!(error.is_absence() && error.to_string().contains("no daemon answers at /"), "{error}");
}

#[tokio::test]
async fn bound_and_not_served_it_keeps_who_comes_waiting() {
    let folder = Folder::new();
    let socket = folder.path("api.sock");
    let fake = Fake::start();
    let listeners = listeners(&api(&socket), Limits::default());
    let client = Client::new(Address::Socket(socket), None, None).unwrap();
    let serve = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        listeners.serve(fake.control.clone())
    };
    let (models, server) = tokio::join!(client.models(), serve);
    assert_eq!(models.unwrap().models, []);
    drop(server);
}

#[tokio::test]
async fn one_that_lives_is_left_alone_and_one_that_died_replaced() {
    let folder = Folder::new();
    let api = api(&folder.path("api.sock"));
    let first = Listeners::bind(&api).unwrap_or_else(|error| panic!("{error}"));
    let Err(error) = Listeners::bind(&api) else { panic!("two on one socket") };
    assert!(matches!(&error, ApiError::Taken { path } if *path == api.socket), "{error}");
    drop(first);
    assert!(!api.socket.exists());

    // Another program's, without our lock.
    let other = StdListener::bind(&api.socket).unwrap();
    let Err(error) = Listeners::bind(&api) else { panic!("taken from another") };
    assert!(error.to_string().contains("end it, or give this replicator its own `api.socket`"), "{error}");
    assert!(api.socket.exists());
    // Its process dies: the file stays and nobody listens.
    drop(other);
    assert!(api.socket.exists());
    let lock = api.socket.with_extension("sock.lock");
    fs::write(&lock, "").unwrap();
    let ours = Listeners::bind(&api).unwrap_or_else(|error| panic!("{error}"));

    // A file that took our socket's place is not removed.
    fs::remove_file(&api.socket).unwrap();
    fs::write(&api.socket, "mine").unwrap();
    drop(ours);
    assert_eq!(fs::read_to_string(&api.socket).unwrap(), "mine");
    let Err(error) = Listeners::bind(&api) else { panic!("replaced a file") };
    assert!(matches!(error, ApiError::NoSocket { .. }), "{error}");
}

#[tokio::test]
async fn answers_under_way_come_when_it_ends() {
    let lab = Lab::start(Limits { drain: Duration::from_secs(5), ..Limits::default() });
    let client = lab.client();
    client.push(&ExpertMap::parse(map("m", 5, &[3], false).as_bytes()).unwrap()).await.unwrap();
    let mut idle = lab.connect().await;
    let started = Instant::now();
    let end = async {
        tokio::time::sleep(Duration::from_millis(50)).await;
        lab.server.shutdown().await;
    };
    let (waited, (), silent) =
        tokio::join!(client.newer_bift_ids("m", 5, Duration::from_secs(60)), end, read(&mut idle));
    let Err(ClientError::Refused { problem, .. }) = waited else { panic!("{waited:?}") };
    assert_eq!(problem.code, Code::Ending);
    assert!(silent.is_none());
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
