//! The HTTP frame against clients that are slow, wordy, many or no HTTP clients at all.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::Extension;
use axum::extract::rejection::BytesRejection;
use axum::routing::{get, post};
use ringwire::http::{Caller, HttpCounters, HttpServer, Limits, Reply, bind, body_of};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixListener, UnixStream};
use tokio::time::timeout;

/// Generous: it only tells a hang from an answer.
const PATIENCE: Duration = Duration::from_secs(60);

fn router() -> Router {
    Router::new()
        .route("/who", get(|Extension(caller): Extension<Caller>| async move { caller.to_string() }))
        .route("/echo", post(echo))
        .route(
            "/slow",
            get(|| async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                "done"
            }),
        )
        .route("/never", get(std::future::pending::<String>))
}

async fn echo(body: Result<Bytes, BytesRejection>) -> Result<Bytes, Reply> {
    body_of(body)
}

async fn started(limits: Limits) -> (HttpServer, SocketAddr, HttpCounters) {
    let mut server = HttpServer::new(router(), limits);
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    server.listen(listener);
    let counters = server.counters().clone();
    (server, address, counters)
}

/// Sends `text` and reads until the server closes.
async fn talk(address: SocketAddr, text: &[u8]) -> String {
    let mut connection = TcpStream::connect(address).await.unwrap();
    // The server may close before it has read everything.
    connection.write_all(text).await.ok();
    read_to_close(&mut connection).await
}

async fn read_to_close(connection: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut answer = Vec::new();
    // A reset after the answer is an end too.
    timeout(PATIENCE, connection.read_to_end(&mut answer)).await.expect("the server closes").ok();
    String::from_utf8(answer).unwrap()
}

fn get_text(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
}

/// Waits until what the frame opened is closed again.
async fn settled(counters: &HttpCounters) {
    let open = || {
        counters.connections_opened.get() != counters.connections_closed.get()
            || counters.requests_opened.get() != counters.requests_closed.get()
    };
    timeout(PATIENCE, async {
        while open() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("opened and closed meet");
}

#[tokio::test]
async fn answers_name_the_caller_and_what_is_not_there() {
    let (server, address, counters) = started(Limits::default()).await;
    assert!(talk(address, get_text("/who").as_bytes()).await.contains("\r\n\r\n127.0.0.1:"));
    let unknown = talk(address, get_text("/nope").as_bytes()).await;
    assert!(unknown.starts_with("HTTP/1.1 404 "), "{unknown}");
    assert!(unknown.contains("content-type: text/plain; charset=utf-8"), "{unknown}");
    assert!(unknown.ends_with("\r\n\r\n404 page not found\n"), "{unknown}");
    let method = talk(address, b"PUT /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await;
    assert!(method.starts_with("HTTP/1.1 405 ") && method.contains("allow: POST\r\n"), "{method}");
    settled(&counters).await;
    assert_eq!(counters.requests_opened.get(), 3);
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_request_ends_the_connection_and_nothing_else() {
    let (server, address, counters) = started(Limits::default()).await;
    for text in
        ["\x16\x03\x01\x02\x00\x01\x00", "SSH-2.0-x\r\n\r\n", "GET / HTTP/9.9\r\n\r\n", "GET /\r\nx\r\n\r\n"]
    {
        let answer = talk(address, text.as_bytes()).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400 "), "{text:?}: {answer}");
    }
    settled(&counters).await;
    assert_eq!(counters.connections_failed.get(), 4);
    assert!(talk(address, get_text("/who").as_bytes()).await.starts_with("HTTP/1.1 200 "));
    server.stop().await;
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_and_time() {
    let limits = Limits { head_bytes_max: 8192, ..Limits::default() };
    let (server, address, counters) = started(limits).await;
    let long = format!("GET /who HTTP/1.1\r\nX: {}\r\n\r\n", "y".repeat(9000));
    assert!(talk(address, long.as_bytes()).await.starts_with("HTTP/1.1 431 "));
    settled(&counters).await;
    assert_eq!(counters.connections_failed.get(), 1);
    server.stop().await;

    let (server, address, counters) =
        started(Limits { head: Duration::from_millis(100), ..Limits::default() }).await;
    // Silence, and a head without an end.
    for text in ["", "GET /who HT"] {
        assert_eq!(talk(address, text.as_bytes()).await, "", "{text:?}");
    }
    settled(&counters).await;
    assert_eq!(counters.connections_failed.get(), 2);
    server.stop().await;
}

#[tokio::test]
async fn bodies_are_bounded_in_bytes_and_time() {
    let (server, address, counters) = started(Limits { body_bytes_max: 100, ..Limits::default() }).await;
    let post = |length: usize, body: &str| {
        format!(
            "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
    };
    assert!(talk(address, post(3, "abc").as_bytes()).await.ends_with("\r\n\r\nabc"));
    let long = talk(address, post(101, &"z".repeat(101)).as_bytes()).await;
    assert!(long.starts_with("HTTP/1.1 413 ") && long.ends_with("\"code\":413}"), "{long}");
    let chunked = format!(
        "POST /echo HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n65\r\n{}\r\n0\r\n\r\n",
        "z".repeat(101)
    );
    assert!(talk(address, chunked.as_bytes()).await.starts_with("HTTP/1.1 413 "));
    settled(&counters).await;
    assert_eq!(counters.answers()[&413], 2);
    server.stop().await;

    let (server, address, counters) =
        started(Limits { request: Duration::from_millis(100), ..Limits::default() }).await;
    let slow = talk(address, post(3, "a").as_bytes()).await;
    assert!(slow.starts_with("HTTP/1.1 408 ") && slow.contains("connection: close"), "{slow}");
    settled(&counters).await;
    assert_eq!(counters.requests_timed_out.get(), 1);
    assert_eq!(counters.answers()[&408], 1);
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_is_too_long_is_refused_before_it_comes_and_ends_the_connection() {
    let (server, address, counters) = started(Limits { body_bytes_max: 100, ..Limits::default() }).await;
    // Whoever waits to be asked for it is not.
    let expecting = |length: usize| {
        format!("POST /echo HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: {length}\r\n\r\n")
    };
    let answer = talk(address, expecting(101).as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\"code\":413}"), "{answer}");
    assert!(answer.contains("connection: close\r\n") && answer.contains("100 bytes"), "{answer}");
    let mut asked = TcpStream::connect(address).await.unwrap();
    asked.write_all(expecting(3).as_bytes()).await.unwrap();
    let mut line = [0; 21];
    asked.read_exact(&mut line).await.unwrap();
    assert_eq!(&line, b"HTTP/1.1 100 Continue");
    drop(asked);
    // On a connection that would live on: one answer to all of it, and whoever sends it whole before he reads gets it whole.
    let long = "GET /who HTTP/1.1\r\n\r\n".repeat(40_000);
    for (head, body) in [
        (format!("Content-Length: {}", long.len()), long.clone()),
        ("Transfer-Encoding: chunked".to_owned(), format!("{:x}\r\n{long}\r\n0\r\n\r\n", long.len())),
    ] {
        let mut connection = TcpStream::connect(address).await.unwrap();
        let text = format!("POST /echo HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n{body}{}", get_text("/who"));
        connection.write_all(text.as_bytes()).await.expect("it is read to its end");
        let mut answer = String::new();
        timeout(PATIENCE, connection.read_to_string(&mut answer)).await.unwrap().expect("an end, no reset");
        assert!(answer.starts_with("HTTP/1.1 413 ") && answer.ends_with("\"code\":413}"), "{answer}");
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
        drop(connection);
    }
    settled(&counters).await;
    assert_eq!(counters.answers()[&413], 3);
    server.stop().await;
}

const V1: &str = "PROXY TCP4 203.0.113.7 192.0.2.1 40000 80\r\n";

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    header.extend([0x20 | command, family]);
    header.extend((body.len() as u16).to_be_bytes());
    header.extend(body);
    header
}

const V2_BODY: [u8; 12] = [198, 51, 100, 9, 192, 0, 2, 1, 0x9c, 0x40, 0, 80];

async fn started_behind(proxy_from: &str, limits: Limits) -> (HttpServer, SocketAddr, HttpCounters) {
    let mut server = HttpServer::new(router(), limits);
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    server.listen_behind(listener, [proxy_from.parse().unwrap()].into());
    let counters = server.counters().clone();
    (server, address, counters)
}

#[tokio::test]
async fn a_trusted_proxys_header_says_whose_connection_it_is() {
    let (server, address, counters) = started_behind("127.0.0.0/8", Limits::default()).await;
    let v6 = "PROXY TCP6 2001:db8::7 2001:db8::1 40000 80\r\n";
    for (header, caller) in [
        (V1.as_bytes(), "203.0.113.7:40000"),
        (v6.as_bytes(), "[2001:db8::7]:40000"),
        (&v2(1, 0x11, &V2_BODY), "198.51.100.9:40000"),
        (&v2(1, 0x11, &[&V2_BODY[..], &[4, 0, 200], &[0; 200]].concat()), "198.51.100.9:40000"),
        // It speaks for itself, or says nothing.
        (&v2(0, 0, &[]), "127.0.0.1:"),
        (b"PROXY UNKNOWN\r\n", "127.0.0.1:"),
        (b"", "127.0.0.1:"),
    ] {
        let answer = talk(address, &[header, get_text("/who").as_bytes()].concat()).await;
        assert!(answer.contains(&format!("\r\n\r\n{caller}")), "{caller}: {answer}");
    }
    settled(&counters).await;
    assert_eq!((counters.proxy_headers.get(), counters.connections_failed.get()), (6, 0));
    for broken in
        [b"PROXY TCP4 203.0.113 192.0.2.1 1 2\r\n", &v2(9, 0x11, &V2_BODY)[..], &v2(1, 0x11, &[0; 2000])]
    {
        assert_eq!(talk(address, &[broken, get_text("/who").as_bytes()].concat()).await, "");
    }
    settled(&counters).await;
    assert_eq!((counters.proxy_malformed.get(), counters.connections_failed.get()), (3, 3));
    server.stop().await;
}

#[tokio::test]
async fn a_proxy_header_from_anywhere_else_ends_the_connection() {
    let (server, address, counters) = started_behind("10.0.0.0/8", Limits::default()).await;
    for header in [V1.as_bytes(), &v2(1, 0x11, &V2_BODY)] {
        assert_eq!(talk(address, &[header, get_text("/who").as_bytes()].concat()).await, "");
    }
    assert!(talk(address, get_text("/who").as_bytes()).await.contains("\r\n\r\n127.0.0.1:"));
    settled(&counters).await;
    assert_eq!((counters.proxy_untrusted.get(), counters.proxy_headers.get()), (2, 0));
    server.stop().await;
}

#[tokio::test]
async fn behind_a_proxy_the_bounds_are_those_of_the_address_in_the_header() {
    let limits =
        Limits { connections_per_address_max: 1, head: Duration::from_millis(300), ..Limits::default() };
    let (server, address, counters) = started_behind("127.0.0.0/8", limits).await;
    let text = format!("{V1}GET /who HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut held = TcpStream::connect(address).await.unwrap();
    held.write_all(text.as_bytes()).await.unwrap();
    held.read_u8().await.unwrap();
    // As one that was too many from the start: closed without an answer.
    assert_eq!(talk(address, format!("{V1}{}", get_text("/who")).as_bytes()).await, "");
    assert_eq!(counters.connections_refused.get(), 1);
    let other = V1.replace("203.0.113.7", "203.0.113.8");
    assert!(talk(address, format!("{other}{}", get_text("/who")).as_bytes()).await.contains("203.0.113.8:"));
    drop(held);
    settled(&counters).await;
    // A header that does not come takes no longer than a head.
    for silent in ["", "PROXY TCP4 203.0"] {
        assert_eq!(talk(address, silent.as_bytes()).await, "");
    }
    settled(&counters).await;
    assert_eq!(counters.connections_failed.get(), 2);
    // And holds up no stop.
    let idle = TcpStream::connect(address).await.unwrap();
    timeout(PATIENCE, server.stop()).await.unwrap();
    drop(idle);
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    let (server, address, counters) = started(Limits { connections_max: 2, ..Limits::default() }).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let mut connection = TcpStream::connect(address).await.unwrap();
        connection.write_all(b"GET /who HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        // Answered, so it certainly has its slot.
        connection.read_u8().await.unwrap();
        held.push(connection);
    }
    assert_eq!(talk(address, get_text("/who").as_bytes()).await, "");
    assert_eq!(counters.connections_refused.get(), 1);
    drop(held);
    settled(&counters).await;
    assert!(talk(address, get_text("/who").as_bytes()).await.starts_with("HTTP/1.1 200 "));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_never_reads_loses_its_connection() {
    let limits = Limits {
        connection: Duration::from_millis(100),
        request: Duration::from_millis(100),
        ..Limits::default()
    };
    let (server, address, counters) = started(limits).await;
    let mut connection = TcpStream::connect(address).await.unwrap();
    let flood = async {
        // Echoes nobody reads fill both directions; then the writing stalls, until the server cuts the line.
        let body = "z".repeat(512 * 1024);
        let post = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        while connection.write_all(post.as_bytes()).await.is_ok() {}
    };
    timeout(PATIENCE, flood).await.expect("the server cuts the connection");
    settled(&counters).await;
    server.stop().await;
}

#[tokio::test]
async fn an_answer_that_nobody_reads_ends_long_before_its_connection_would() {
    let limits = Limits { unread: Duration::from_secs(2), connection: 10 * PATIENCE, ..Limits::default() };
    let router = router().route("/long", get(|| async { vec![b'z'; 64 << 20] }));
    let mut server = HttpServer::new(router, limits);
    let listener = bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
    let address = listener.local_addr().unwrap();
    server.listen(listener);
    let counters = server.counters().clone();
    let mut unread = TcpStream::connect(address).await.unwrap();
    unread.write_all(get_text("/long").as_bytes()).await.unwrap();
    while counters.connections_opened.get() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    settled(&counters).await;
    assert_eq!(counters.connections_failed.get(), 1);
    let mut read = TcpStream::connect(address).await.unwrap();
    read.write_all(get_text("/long").as_bytes()).await.unwrap();
    let bytes = read_to_close(&mut read).await.len();
    assert!(bytes > 64 << 20, "{bytes}");
    server.stop().await;
}

#[tokio::test]
async fn a_unix_socket_is_a_listener_too() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut server = HttpServer::new(router(), Limits::default());
    server.listen(UnixListener::bind(&path).unwrap());
    let mut connection = UnixStream::connect(&path).await.unwrap();
    connection.write_all(get_text("/who").as_bytes()).await.unwrap();
    assert!(read_to_close(&mut connection).await.ends_with("\r\n\r\nlocal"));
    server.stop().await;
}

#[tokio::test]
async fn a_stop_lets_requests_finish_and_cuts_off_the_endless() {
    let (server, address, counters) = started(Limits { stop: PATIENCE / 2, ..Limits::default() }).await;
    let slow = tokio::spawn(async move { talk(address, get_text("/slow").as_bytes()).await });
    let idle = TcpStream::connect(address).await.unwrap();
    while counters.requests_opened.get() < 1 || counters.connections_opened.get() < 2 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    timeout(PATIENCE, server.stop()).await.unwrap();
    assert!(slow.await.unwrap().ends_with("\r\n\r\ndone"));
    assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    drop(idle);

    let (server, address, counters) =
        started(Limits { stop: Duration::from_millis(50), ..Limits::default() }).await;
    let endless = tokio::spawn(async move { talk(address, get_text("/never").as_bytes()).await });
    while counters.requests_opened.get() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    timeout(PATIENCE, server.stop()).await.unwrap();
    assert_eq!(endless.await.unwrap(), "");
    settled(&counters).await;
}

#[tokio::test]
async fn a_taken_address_is_named_with_a_cure() {
    let (_server, address, _) = started(Limits::default()).await;
    let text = bind(address).await.unwrap_err().to_string();
    assert!(text.contains(&address.to_string()) && text.contains("choose another port"), "{text}");
}
