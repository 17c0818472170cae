//! `ringwire dmsg serve --dir` and whoever asks: what is there, what is not, what is in the log.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test may fail")]

mod common;

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};

use ringwire_dataplane::Server;
use ringwire_proto::noise::Hybrid;
use serde_json::Value;

/// A directory that is served over a server of this process.
struct Place {
    server: Server,
    directory: tempfile::TempDir,
}

/// What serves; ends with the test.
struct Serving {
    child: Child,
    log: BufReader<ChildStderr>,
    url: String,
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

impl Serving {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.log.read_line(&mut line).unwrap();
        line
    }
}

/// An answer.
#[derive(Debug)]
struct Answer {
    status: u64,
    body: String,
    headers: Value,
}

impl Place {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("public")).unwrap();
        Self { server: common::server(Hybrid::Offer), directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join("public").join(name)
    }

    fn write(&self, name: &str, text: &str) {
        std::fs::create_dir_all(self.path(name).parent().unwrap()).unwrap();
        std::fs::write(self.path(name), text).unwrap();
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
        command.env("RINGWIRE_STATE", self.directory.path().join("state")).env_remove("RINGWIRE_LOG");
        command.arg("dmsg").args(words).args(["--server", &common::address(&self.server).to_string()]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn serve(&self, further: &[&str]) -> Serving {
        let mut command = self.command(&["serve", "--dir", self.path("").to_str().unwrap()]);
        let mut child = command.args(further).spawn().unwrap();
        let mut out = BufReader::new(child.stdout.take().unwrap());
        let mut ready = String::new();
        out.read_line(&mut ready).unwrap();
        let url = match serde_json::from_str::<Value>(&ready) {
            Ok(ready) => ready["url"].as_str().unwrap().to_owned(),
            Err(_) => ready.trim().strip_prefix("serving ").unwrap().to_owned(),
        };
        let log = BufReader::new(child.stderr.take().unwrap());
        Serving { child, log, url }
    }

    fn get(&self, url: &str, further: &[&str]) -> Answer {
        let output = self.command(&["curl", "--json", url]).args(further).output().unwrap();
        let report: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
        Answer {
            status: report["status"].as_u64().unwrap(),
            body: report["body"].as_str().unwrap_or_default().to_owned(),
            headers: report["headers"].clone(),
        }
    }
}

/// A FIFO that nobody writes to.
fn fifo(path: &Path) {
    use rustix::fs::{CWD, Mode, mkfifoat};
    mkfifoat(CWD, path, Mode::RUSR | Mode::WUSR).unwrap();
}

#[test]
fn a_directory_is_a_list_of_what_can_be_asked_for() {
    let place = Place::new();
    place.write("b & <i>.txt", "b");
    place.write("a.txt", "a");
    place.write(".secret", "hidden");
    place.write("sub/deep.txt", "deep");
    place.write("page/index.html", "<p>index</p>");
    fifo(&place.path("pipe"));
    let serving = place.serve(&["--quiet"]);
    let page = place.get(&serving.url, &[]);
    assert_eq!((page.status, &page.headers["content-type"][0]), (200, &"text/html; charset=utf-8".into()));
    let at = |text: &str| page.body.find(text).unwrap_or_else(|| panic!("no {text}: {}", page.body));
    assert!(at("a.txt") < at("b &amp; &lt;i&gt;.txt") && at("b &amp;") < at("sub/"), "{}", page.body);
    assert!(!page.body.contains("secret") && !page.body.contains("pipe"), "{}", page.body);
    // As the page says it.
    let link =
        page.body.split("href=\"").find(|part| part.starts_with("b%20")).unwrap().split('"').next().unwrap();
    assert_eq!(place.get(&format!("{}{link}", serving.url), &[]).body, "b");
    assert_eq!(place.get(&format!("{}page/", serving.url), &[]).body, "<p>index</p>");
    // Without its slash the names in the page would lead elsewhere.
    assert_eq!(place.get(&format!("{}sub", serving.url), &[]).status, 307);
    assert!(place.get(&format!("{}sub", serving.url), &["-L"]).body.contains("deep.txt"));

    let hidden = place.serve(&["--quiet", "--hidden"]);
    assert!(place.get(&hidden.url, &[]).body.contains(".secret"));
    assert_eq!(place.get(&format!("{}.secret", hidden.url), &[]).body, "hidden");
}

#[test]
fn what_is_not_there_says_so_and_nothing_leads_out() {
    let place = Place::new();
    place.write("a.txt", "inside");
    place.write(".secret", "hidden");
    place.write(".git/config", "hidden");
    std::fs::write(place.directory.path().join("outside"), "outside").unwrap();
    symlink("../outside", place.path("out")).unwrap();
    symlink("/etc/passwd", place.path("passwd")).unwrap();
    symlink("/proc/self/environ", place.path("magic")).unwrap();
    symlink("a.txt", place.path("in")).unwrap();
    symlink(place.path("a.txt"), place.path("absolute")).unwrap();
    symlink("round", place.path("round")).unwrap();
    fifo(&place.path("pipe"));
    symlink("pipe", place.path("to-pipe")).unwrap();
    let serving = place.serve(&["--quiet"]);
    let names = [
        "absent",
        ".secret",
        ".git/config",
        "a.txt/",
        "a.txt/b",
        "out",
        "passwd",
        "magic",
        "round",
        "pipe",
        "to-pipe",
        "../outside",
        "%2e%2e/outside",
        "..%2foutside",
        "sub/../../outside",
        "a.txt%00",
        "%2Fetc%2Fpasswd",
        "//etc/passwd",
    ];
    for name in names {
        let answer = place.get(&format!("{}{name}", serving.url), &["--max-time", "30"]);
        assert!(matches!(answer.status, 400 | 403 | 404), "{name}: {answer:?}");
        assert!(!answer.body.is_empty() && !answer.body.contains("outside"), "{name}: {answer:?}");
        assert!(!answer.body.contains("hidden") && !answer.body.contains("root:"), "{name}: {answer:?}");
    }
    for name in ["in", "absolute"] {
        assert_eq!(place.get(&format!("{}{name}", serving.url), &[]).body, "inside", "{name}");
    }
    assert_eq!(place.get(&serving.url, &["-X", "DELETE"]).status, 405);
}

#[test]
fn a_part_is_of_the_version_it_is_asked_of() {
    let place = Place::new();
    place.write("file", "0123456789");
    let serving = place.serve(&["--quiet"]);
    let url = format!("{}file", serving.url);
    let whole = place.get(&url, &[]);
    let tag = whole.headers["etag"][0].as_str().unwrap().to_owned();
    assert!(whole.headers["last-modified"][0].is_string() && whole.body == "0123456789");
    let part =
        |if_range: &str| place.get(&url, &["-H", "Range: bytes=4-", "-H", &format!("If-Range: {if_range}")]);
    let answer = part(&tag);
    assert_eq!((answer.status, &*answer.body), (206, "456789"));
    assert_eq!(answer.headers["content-range"][0], "bytes 4-9/10");
    place.write("file", "abcdefghijk");
    let answer = part(&tag);
    assert_eq!((answer.status, &*answer.body), (200, "abcdefghijk"));
    let answer = place.get(&url, &["-H", "Range: bytes=11-"]);
    assert_eq!((answer.status, &answer.headers["content-range"][0]), (416, &"bytes */11".into()));
}

#[test]
fn each_request_is_a_line_with_who_what_and_how_much() {
    let place = Place::new();
    place.write("file", "0123456789");
    let mut serving = place.serve(&[]);
    let (key_file, key) = {
        let path = place.directory.path().join("a.key").display().to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_ringwire"));
        let output = command.args(["keys", "generate", &path]).output().unwrap();
        (path, String::from_utf8(output.stdout).unwrap().trim().to_owned())
    };
    place.get(&format!("{}file", serving.url), &["--key-file", &key_file]);
    let line = serving.line();
    assert!(line.contains(&key) && line.contains("GET /file 200 10"), "{line}");
    place.get(&format!("{}a%0Ab?q=%1b[31m", serving.url), &[]);
    let line = serving.line();
    assert!(line.contains("GET /a%0Ab") && line.contains(" 404 ") && !line.contains('\u{1b}'), "{line}");

    let mut serving = place.serve(&["--json"]);
    place.get(&format!("{}file", serving.url), &["--key-file", &key_file]);
    let line: Value = serde_json::from_str(&serving.line()).unwrap();
    assert_eq!(
        (&line["event"], &line["method"], &line["path"]),
        (&"request".into(), &"GET".into(), &"/file".into())
    );
    assert_eq!((&line["status"], &line["bytes"]), (&200.into(), &10.into()), "{line}");
    assert!(line["peer"].as_str().unwrap().contains(&key) && line["time"].is_string(), "{line}");
}
