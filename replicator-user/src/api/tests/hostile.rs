//! Clients that mean no good, or are broken: others are answered meanwhile.

use std::time::{Duration, Instant};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    time::{sleep, timeout},
};

use super::fake::{Lab, map, read, talk};
use crate::{
    api::{limits::Limits, types::Code},
    map::{ExpertMap, MAX_BYTES},
};

const MILLISECOND: Duration = Duration::from_millis(1);

/// Seconds that no test comes near and no machine needs.
const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn hundreds_who_say_nothing_hold_nobody_up() {
    let limits = Limits { connections: 32, head: LONG, ..Limits::default() };
    let lab = Lab::start(limits);
    let mut silent = Vec::new();
    for _ in 0..400 {
        silent.push(lab.connect().await);
    }
    // Some of those that are still there say half a request.
    for stream in &mut silent[380..] {
        stream.write_all(b"GET /livez HT").await.unwrap();
    }
    let started = Instant::now();
    for _ in 0..20 {
        assert_eq!(lab.ask("GET", "/livez").await.status, 200);
    }
    assert!(started.elapsed() < LONG / 4, "{:?}", started.elapsed());
    // The first went, since others came.
    assert_eq!(timeout(LONG, silent[0].read(&mut [0; 8])).await.unwrap().unwrap_or(0), 0);
}

#[tokio::test]
async fn who_is_silent_goes_after_a_while() {
    let lab = Lab::start(Limits { head: 100 * MILLISECOND, ..Limits::default() });
    let mut connections = Vec::new();
    for start in [&b""[..], b"GET", b"GET /livez HTTP/1.1\r\nHost: x\r\n"] {
        let mut stream = lab.connect().await;
        stream.write_all(start).await.unwrap();
        connections.push(stream);
    }
    // One that was answered and says nothing more.
    let mut used = lab.connect().await;
    used.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    assert_eq!(read(&mut used).await.unwrap().status, 200);
    connections.push(used);
    for mut stream in connections {
        // Closed, with or without a word.
        let mut rest = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it is closed");
    }
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let lab = Lab::start(Limits {
        body: 300 * MILLISECOND,
        discard: 50 * MILLISECOND,
        connections: 64,
        ..Limits::default()
    });
    let endless = async |head: &str| {
        let mut stream = lab.connect().await;
        let head = format!("PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut from, mut to) = stream.split();
        let drip = async {
            loop {
                if to.write_all(b"1\r\n \r\n").await.is_err() {
                    std::future::pending::<()>().await;
                }
                sleep(20 * MILLISECOND).await;
            }
        };
        tokio::select! { answer = read(&mut from) => answer, () = drip => None }
    };
    let others = async {
        for _ in 0..10 {
            sleep(20 * MILLISECOND).await;
            let started = Instant::now();
            assert_eq!(lab.ask("GET", "/v1/models").await.status, 200);
            assert!(started.elapsed() < LONG);
        }
    };
    let (chunked, sized, ()) =
        tokio::join!(endless("Transfer-Encoding: chunked"), endless("Content-Length: 1000000"), others);
    for answer in [chunked.unwrap(), sized.unwrap()] {
        assert_eq!((answer.status, &answer.json()["code"]), (408, &json!("timeout")));
    }
    // And a body may come before its time is over.
    assert_eq!(lab.send("PUT", "/v1/models/m/map", map("m", 1, &[0], false).as_bytes()).await.status, 200);
}

#[tokio::test]
async fn a_body_has_so_many_bytes() {
    let lab = Lab::start(Limits { discard: 500 * MILLISECOND, ..Limits::default() });
    let too_large = |answer: &super::fake::Answer| {
        assert_eq!((answer.status, &answer.json()["code"]), (413, &json!("too-large")));
    };
    // Refused by what it says, before it is sent.
    let head = |extra: &str| {
        format!(
            "PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n{extra}\r\n",
            MAX_BYTES + 1
        )
    };
    let started = Instant::now();
    too_large(&talk(lab.connect().await, head("Expect: 100-continue\r\n").as_bytes()).await.unwrap());
    assert!(started.elapsed() < 400 * MILLISECOND, "nothing is waited for");
    // One who sends all of it reads the answer.
    let body = vec![b' '; MAX_BYTES + 1];
    too_large(&talk(lab.connect().await, &[head("").as_bytes(), &body].concat()).await.unwrap());
    // Refused when it is.
    let head = "PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1000001\r\n";
    too_large(
        &talk(lab.connect().await, &[head.as_bytes(), &body, b"\r\n0\r\n\r\n"].concat()).await.unwrap(),
    );
    // The largest is read.
    let mut largest = map("m", 1, &[0], false).into_bytes();
    largest.resize(MAX_BYTES, b' ');
    assert_eq!(lab.send("PUT", "/v1/models/m/map", &largest).await.status, 200);
}

#[tokio::test]
async fn there_is_room_for_so_many_bodies() {
    // Room for one and a half of these.
    let body = vec![b' '; 1 << 20];
    let lab = Lab::start(Limits { body_bytes: 3 << 19, discard: MILLISECOND, ..Limits::default() });
    let mut first = lab.connect().await;
    let head =
        format!("PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len() + 1);
    first.write_all(&[head.as_bytes(), &body].concat()).await.unwrap();
    // It is held once it is read, which nothing shows.
    let second = timeout(LONG, async {
        loop {
            sleep(10 * MILLISECOND).await;
            let answer = lab.send("PUT", "/v1/models/m/map", &body).await;
            if answer.status != 422 {
                return answer;
            }
        }
    });
    let second = second.await.unwrap();
    assert_eq!((second.status, second.header("retry-after")), (503, Some("1")));
    assert_eq!(second.json()["code"], "no-room");
    // The room is given back with the first.
    first.write_all(b" ").await.unwrap();
    assert_eq!(read(&mut first).await.unwrap().status, 422);
    assert_eq!(lab.send("PUT", "/v1/models/m/map", &body).await.status, 422);
}

#[tokio::test]
async fn who_leaves_in_the_middle_or_speaks_no_http_harms_nobody() {
    let lab = Lab::start(Limits::default());
    let head = "PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{";
    for request in [
        head.as_bytes(),
        b"PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"PUT /v1/models/m/map HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\0\xff\x16\x03\x01",
        b"GET / HTTP/9.9\r\n\r\n",
        &[b'a'; 100_000],
    ] {
        for _ in 0..20 {
            let mut stream = lab.connect().await;
            let _ = stream.write_all(request).await;
            let _ = stream.shutdown().await;
            let answer = timeout(LONG, read(&mut stream)).await.expect("it is answered or closed");
            assert!(answer.is_none_or(|answer| (400..500).contains(&answer.status)));
        }
    }
    let client = lab.client();
    assert_eq!(client.models().await.unwrap().models, []);
    client.push(&ExpertMap::parse(map("m", 1, &[0], false).as_bytes()).unwrap()).await.unwrap();
}

#[tokio::test]
async fn who_takes_no_answer_is_cut_off() {
    let lab = Lab::start(Limits { stall: 200 * MILLISECOND, connections: 4, ..Limits::default() });
    // A map of several hundred kilobytes: more than a socket holds.
    let layers: Vec<u16> = (0..2000).collect();
    let text = map("m", 1, &layers, false);
    let text = text.replace("[0,1,2,3]", &format!("{:?}", (0..200).map(|i| i % 4).collect::<Vec<_>>()));
    assert_eq!(lab.send("PUT", "/v1/models/m/map", text.as_bytes()).await.status, 200);
    let mut streams: Vec<UnixStream> = Vec::new();
    for _ in 0..4 {
        let mut stream = lab.connect().await;
        stream.write_all(b"GET /v1/models/m/map HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        streams.push(stream);
    }
    sleep(600 * MILLISECOND).await;
    for stream in &mut streams {
        let mut rest = Vec::new();
        let _ = timeout(LONG, stream.read_to_end(&mut rest)).await.expect("it is cut off");
        assert!(rest.len() < text.len());
    }
    let error = lab.client().map("n").await.unwrap_err();
    assert_eq!(error.problem().unwrap().code, Code::UnknownModel);
}
