//! Downloads that are continued, and servers that answer the question for the rest with something else: what is not the rest is
//! never put behind what is there, and takes nothing away. And other ends of `ringwire dmsg` that are not the usual one.
#![allow(clippy::unwrap_used, reason = "a test may fail")]

mod common;

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use common::{PATIENCE, address, server};
use ringwire::dmsg::{Session, SessionConfig, Stream};
use ringwire_dataplane::Server;
use ringwire_dataplane::entropy::OsEntropy;
use ringwire_proto::identity::{Address, PublicKey, SecretKey};
use ringwire_proto::noise::Hybrid;
use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::runtime::Runtime;

/// More than is under way anywhere, so that who reads has to.
const LARGE: usize = 3_000_000;

/// A server, a client of it in this process, and a directory.
struct Place {
    runtime: Runtime,
    server: Server,
    session: Session,
    directory: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let server = server(Hybrid::Offer);
        let config = SessionConfig::new(SecretKey::generate(&mut OsEntropy), address(&server));
        let session = runtime.block_on(Session::connect_settled(config)).unwrap();
        Self { runtime, server, session, directory: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn start(&self, words: &[&str]) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
        command.env("RINGWIRE_STATE", self.path("state")).env_remove("RINGWIRE_LOG").arg("dmsg").args(words);
        command.args(["--server", &address(&self.server).to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// Downloads to the file of this name.
    fn fetch(&self, web: &Web, name: &str, further: &[&str]) -> Output {
        let file = self.path(name);
        let words = [&["curl", "-o", file.to_str().unwrap(), &web.url], further].concat();
        self.start(&words).wait_with_output().unwrap()
    }
}

/// A web server over dmsg that answers as a test wants.
struct Web {
    url: String,
    /// The heads of the requests.
    requests: Receiver<String>,
}

impl Web {
    /// `answer` is given the number of the request; it says what is sent, and whether the connection then ends.
    fn serve(place: &Place, answer: impl Fn(usize) -> (Vec<u8>, bool) + Send + 'static) -> Self {
        let mut listener = place.session.listen(80).unwrap();
        let (heads, requests) = mpsc::channel();
        place.runtime.spawn(async move {
            let mut kept = Vec::new();
            let mut number = 0;
            while let Ok(mut stream) = listener.accept().await {
                let head = head(&mut stream).await;
                let (bytes, ends) = answer(number);
                number += 1;
                // Who has had enough closes.
                stream.write_all(&bytes).await.ok();
                stream.flush().await.ok();
                heads.send(head).ok();
                if !ends {
                    kept.push(stream);
                }
            }
        });
        Self { url: format!("dmsg://{}/file", place.session.public_key()), requests }
    }

    fn request(&self) -> String {
        self.requests.recv_timeout(PATIENCE).unwrap()
    }
}

async fn head(stream: &mut Stream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).unwrap().to_lowercase()
}

fn bytes(length: usize) -> Vec<u8> {
    (0..length).map(|number| (number % 251) as u8).collect()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn answer(status: &str, headers: &[(&str, &str)], length: usize, body: &[u8]) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n");
    for (name, value) in headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    [text.as_bytes(), b"\r\n", body].concat()
}

/// The first bytes of so many.
fn begun(body: &[u8], length: usize, tag: &str) -> Vec<u8> {
    answer("200 OK", &[("etag", tag)], length, body)
}

/// From one place to another of a document, whatever was asked for.
fn part(document: &[u8], from: usize, to: usize, tag: &str) -> Vec<u8> {
    let range = format!("bytes {from}-{}/{}", to - 1, document.len());
    let headers = [("content-range", range.as_str()), ("etag", tag)];
    answer("206 Partial Content", &headers, to - from, &document[from..to])
}

fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn an_error_takes_nothing_away_and_less_than_all_is_not_whole() {
    let place = Place::new();
    let document = bytes(LARGE);
    let web = Web::serve(&place, move |number| {
        let answer = match number {
            0 => begun(&document[..1_000_000], LARGE, "\"a\""),
            1 => answer("503 Service Unavailable", &[], 4, b"busy"),
            2 => answer("302 Found", &[("location", "/elsewhere")], 4, b"away"),
            // A server may send less than it is asked for.
            3 => part(&document, 1_000_000, 2_000_000, "\"a\""),
            _ => part(&document, 2_000_000, LARGE, "\"a\""),
        };
        (answer, true)
    });
    let fetch = |further: &[&str]| place.fetch(&web, "file", further);
    let there = || std::fs::read(place.path("file.part")).unwrap();
    assert_eq!(fetch(&[]).status.code(), Some(1));
    web.request();
    for status in ["503", "302"] {
        let output = fetch(&["--continue"]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = text(&output.stderr);
        assert!(said.contains(status) && said.contains("--continue"), "{said}");
        assert!(web.request().contains("\r\nrange: bytes=1000000-\r\n"));
        assert!(there() == bytes(LARGE)[..1_000_000], "{status}");
        assert_eq!(names(place.directory.path()), ["file.part", "file.part.json"]);
    }
    let output = fetch(&["--continue"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(text(&output.stderr).contains(&format!("2000000 of {LARGE} bytes")), "{output:?}");
    assert!(there() == bytes(LARGE)[..2_000_000]);
    let output = fetch(&["--continue"]);
    assert!(output.status.success(), "{output:?}");
    assert!(std::fs::read(place.path("file")).unwrap() == bytes(LARGE));
    assert_eq!(names(place.directory.path()), ["file"]);
}

#[test]
fn what_is_not_the_rest_begins_anew_and_says_so() {
    const CHANGED: &[u8] = b"another version, and a longer one";
    type Answer = fn() -> Vec<u8>;
    let after_ten: [(&str, Answer, usize); 5] = [
        (
            "the server has another version, or does not send parts",
            || begun(CHANGED, CHANGED.len(), "\"b\""),
            1,
        ),
        ("not the part that was asked for", || part(CHANGED, 5, CHANGED.len(), "\"a\""), 2),
        // Servers that know ranges and no If-Range.
        ("it has changed there", || part(CHANGED, 10, CHANGED.len(), "\"b\""), 2),
        ("it has changed there", || part(&CHANGED[..20], 10, 19, "W/\"a\""), 2),
        (
            "less there than what has come",
            || answer("416 Range Not Satisfiable", &[("content-range", "bytes */5")], 0, b""),
            2,
        ),
    ];
    for (reason, second, requests) in after_ten {
        let place = Place::new();
        let web = Web::serve(&place, move |number| {
            let answer = match number {
                0 => begun(b"ten bytes.", 20, "\"a\""),
                1 => second(),
                _ => begun(CHANGED, CHANGED.len(), "\"b\""),
            };
            (answer, true)
        });
        assert_eq!(place.fetch(&web, "file", &[]).status.code(), Some(1));
        web.request();
        let output = place.fetch(&web, "file", &["--continue"]);
        assert!(output.status.success(), "{reason}: {output:?}");
        assert!(text(&output.stderr).contains(reason), "{reason}: {output:?}");
        assert_eq!(std::fs::read(place.path("file")).unwrap(), CHANGED, "{reason}");
        assert_eq!(web.requests.try_iter().count(), requests, "{reason}");
        assert_eq!(names(place.directory.path()), ["file"], "{reason}");
    }
}

#[test]
fn a_download_that_is_interrupted_says_how_to_go_on() {
    let place = Place::new();
    let web = Web::serve(&place, |_| (begun(&bytes(1000), LARGE, "\"a\""), false));
    let (file, part) = (place.path("file"), place.path("file.part"));
    let child = place.start(&["curl", "-o", file.to_str().unwrap(), &web.url]);
    let started = Instant::now();
    while std::fs::metadata(&part).map_or(0, |part| part.len()) < 1000 {
        assert!(started.elapsed() < PATIENCE, "nothing comes");
        std::thread::sleep(Duration::from_millis(10));
    }
    signal(&child, Signal::INT);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    assert!(
        text(&output.stderr).contains("file.part") && text(&output.stderr).contains("--continue"),
        "{output:?}"
    );
    assert_eq!(std::fs::read(&part).unwrap(), bytes(1000));
}

fn signal(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).unwrap();
}

/// The key of a `listen` that runs, from its first line.
fn listening(child: &mut Child) -> PublicKey {
    let mut line = String::new();
    let mut byte = [0];
    // Byte by byte, so that nothing else is taken away.
    let errors = child.stderr.as_mut().unwrap();
    while !line.ends_with('\n') && errors.read(&mut byte).unwrap() == 1 {
        line.push(char::from(byte[0]));
        // A busy machine is slow to connect, and that is said.
        if line.ends_with('\n') && line.starts_with("ringwire:") {
            line.clear();
        }
    }
    let address = line.trim().rsplit(' ').next().unwrap();
    address.rsplit_once(':').unwrap().0.parse().unwrap()
}

#[test]
fn a_reader_that_goes_away_is_no_failure_of_listen_and_dial() {
    let place = Place::new();
    let mut source = place.session.listen(9).unwrap();
    place.runtime.spawn(async move {
        let mut stream = source.accept().await.unwrap();
        stream.write_all(&bytes(LARGE)).await.ok();
    });
    let target = format!("{}:9", place.session.public_key());
    for words in [&["dial", &target][..], &["listen", "10", "--once"], &["listen", "11"]] {
        let mut child = place.start(words);
        if words[0] == "listen" {
            let destination = Address { key: listening(&mut child), port: words[1].parse().unwrap() };
            let session = place.session.clone();
            place.runtime.spawn(async move {
                let mut stream = session.dial(destination).await.unwrap();
                stream.write_all(&bytes(LARGE)).await.ok();
            });
        }
        // As `head -c 9` does.
        child.stdout.take().unwrap().read_exact(&mut [0; 9]).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
        for complaint in ["pipe", "broke", "again"] {
            assert!(!text(&output.stderr).contains(complaint), "{words:?}: {output:?}");
        }
    }
}

#[test]
fn once_without_a_whole_stream_is_no_success() {
    let place = Place::new();
    let mut child = place.start(&["listen", "9", "--once"]);
    listening(&mut child);
    signal(&child, Signal::TERM);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    // One that goes on until it is told to end has ended well.
    let mut child = place.start(&["listen", "9"]);
    listening(&mut child);
    signal(&child, Signal::TERM);
    assert!(child.wait_with_output().unwrap().status.success());
}
