//! A client behind a slow link, with bulk on its way to it: how late its pings are answered, and whether it can still be dialled.
//!
//! A measurement and no test: it needs root, network namespaces, `ip` and `tc` (sch_tbf), and a minute. Run it with
//! `cargo test --workspace --test slow_link -- --ignored --nocapture`. `RINGWIRE_LINK_KBIT` and `RINGWIRE_LINK_CC` say which link and which
//! congestion control; what is printed is for people.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use ringwire::dmsg::{ServerAddress, Session, SessionConfig};
use ringwire_dataplane::{Server, ServerConfig};
use ringwire_proto::identity::{Address, SecretKey};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// Where the server is in the network that is made for it.
const SERVER: &str = "10.77.0.1:7000";

/// How long each measures.
const LASTS: Duration = Duration::from_secs(25);

fn key(number: u8) -> SecretKey {
    SecretKey::from_bytes(&[number; 32]).unwrap()
}

fn config(number: u8) -> SessionConfig {
    let server = ServerAddress { key: key(1).public_key(), address: SERVER.to_owned() };
    SessionConfig::new(key(number), server)
}

/// A command of the system's that must succeed.
fn system(line: &str) {
    let status = Command::new("sh").args(["-c", line]).status().unwrap();
    assert!(status.success(), "{line}");
}

#[test]
#[ignore = "a measurement that needs root and a minute"]
fn pings_and_dials_behind_a_slow_link() {
    let kbit = std::env::var("RINGWIRE_LINK_KBIT").unwrap_or_else(|_| "160".to_owned());
    let control = std::env::var("RINGWIRE_LINK_CC").unwrap_or_else(|_| "cubic".to_owned());
    let (near, far) = (format!("rw-near-{}", std::process::id()), format!("rw-far-{}", std::process::id()));
    system(&format!(
        "ip netns add {near} && ip netns add {far} && ip -n {near} link set lo up && \
         ip -n {near} link add v0 type veth peer name v1 netns {far} && \
         ip -n {near} addr add 10.77.0.1/24 dev v0 && ip -n {far} addr add 10.77.0.2/24 dev v1 && \
         ip -n {near} link set v0 up && ip -n {far} link set v1 up && \
         ip -n {near} route change 10.77.0.0/24 dev v0 src 10.77.0.1 congctl {control} && \
         ip netns exec {near} ethtool -K v0 tso off gso off 2>/dev/null; \
         ip netns exec {near} tc qdisc add dev v0 root tbf rate {kbit}kbit burst 3200 limit 16384"
    ));
    let run = |name: &str, namespace: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace]).arg(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--ignored", "--nocapture"]).stdin(Stdio::null());
        command.spawn().unwrap()
    };
    let mut server = run("near", &near);
    std::thread::sleep(Duration::from_secs(1));
    let mut client = run("far", &far);
    println!("{kbit} kbit/s, {control}");
    let ended = server.wait().unwrap();
    // It stays to be dialled as long as the other measures.
    client.kill().unwrap();
    client.wait().unwrap();
    system(&format!("ip netns del {near}; ip netns del {far}"));
    assert!(ended.success(), "{ended:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the server's side of the measurement"]
async fn near() {
    let server = Server::start(ServerConfig::new(key(1), vec![SERVER.parse().unwrap()])).unwrap();
    // Frames as the Go clients write them: a frame under way is never cut, and theirs are of 4 KiB.
    let source = common::connect(SessionConfig { go_frames: true, go_writes: true, ..config(2) }).await;
    let to = Address { key: key(3).public_key(), port: 80 };
    // The client behind the link takes its time to come.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for _ in 0..4 {
        let mut stream = source.dial(to).await.unwrap();
        tokio::spawn(async move {
            let piece = vec![7; 64 * 1024];
            while stream.write_all(&piece).await.is_ok() {}
        });
    }
    let began = Instant::now();
    let (mut took, mut failed) = (Vec::new(), Vec::new());
    while began.elapsed() < LASTS {
        let asked = Instant::now();
        match source.dial(to).await {
            Ok(_) => took.push(asked.elapsed().as_secs_f64()),
            Err(error) => failed.push(error.to_string()),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
    println!("dials: {} opened, in {took:.2?} s; failed: {failed:?}", took.len());
    drop(server);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "the client's side of the measurement"]
async fn far() {
    let session = Session::connect(config(3)).await.unwrap();
    let mut listener = session.listen(80).unwrap();
    tokio::spawn(async move {
        loop {
            let mut stream = match listener.accept().await {
                Ok(stream) => stream,
                Err(error) => return println!("no longer listening: {error}"),
            };
            tokio::spawn(async move {
                let mut piece = vec![0; 64 * 1024];
                while stream.read(&mut piece).await.is_ok_and(|length| length > 0) {}
            });
        }
    });
    tokio::time::sleep(Duration::from_secs(10)).await;
    let began = Instant::now();
    let mut took = Vec::new();
    while began.elapsed() < LASTS - Duration::from_secs(8) {
        let asked = Instant::now();
        session.ping().await.unwrap();
        took.push(asked.elapsed().as_secs_f64());
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    took.sort_by(f64::total_cmp);
    println!(
        "pings: {} answered, median {:.2} s, worst {:.2} s",
        took.len(),
        took[took.len() / 2],
        took.last().unwrap()
    );
    std::future::pending::<()>().await;
}
