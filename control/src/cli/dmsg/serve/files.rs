//! The files of a directory, and nothing outside of it.
//!
//! In: requests. Out: files, whole or in part (RFC 9110), the page of a directory, or why not. A path is resolved by the kernel
//! beneath the directory, so that neither `..` nor a symbolic link leads out of it, whatever changes meanwhile. What is no
//! file and no directory (a FIFO, a device, a socket) is looked at without being opened, and not there for anybody.

use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{
    ACCEPT_RANGES, ALLOW, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG,
    LAST_MODIFIED, LOCATION,
};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use percent_encoding::percent_decode;
use rustix::fs::{Dir, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::ReaderStream;

use super::listing::{self, Listed};
use super::version::{Choice, Version, choose};
use crate::http::Reply;

/// What stands for a directory that has it.
const INDEX: &str = "index.html";

/// Names of a directory that are shown; the page says when there are more.
const LISTED_MAX: usize = 2000;

/// Pages of directories at a time, being made or not yet read: each holds its text. More wait.
const LISTINGS_MAX: usize = 16;

/// Bytes read of a file at once.
const READ_BYTES: usize = 64 * 1024;

/// How often a path is looked up again that changed meanwhile.
const LOOKUPS_MAX: usize = 4;

/// A directory that is served.
#[derive(Debug)]
pub(super) struct Files {
    root: OwnedFd,
    path: PathBuf,
    /// Names with a dot in front are there too.
    hidden: bool,
    listings: Arc<Semaphore>,
}

/// What is at a path.
enum Found {
    File(File, Box<Metadata>, HeaderValue),
    Directory,
    /// A directory whose path lacks the slash at its end: names in its page would lead elsewhere.
    Slashless,
}

/// Why nothing is.
enum Missing {
    Absent,
    Denied,
    Failed(io::Error),
}

impl Missing {
    fn of(errno: Errno) -> Self {
        match errno {
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::XDEV | Errno::NXIO => {
                Self::Absent
            }
            Errno::ACCESS | Errno::PERM => Self::Denied,
            other => Self::Failed(other.into()),
        }
    }
}

impl Files {
    /// Takes a directory; told now, and not at the first request.
    pub(super) fn open(path: &Path, hidden: bool) -> anyhow::Result<Self> {
        let unreadable = |error: &dyn std::fmt::Display| {
            anyhow!("cannot read {}: {error}; name a directory that this user may read", path.display())
        };
        std::fs::read_dir(path).map_err(|error| unreadable(&error))?;
        let canonical = path.canonicalize().map_err(|error| unreadable(&error))?;
        let root = File::open(&canonical).map_err(|error| unreadable(&error))?.into();
        let files = Self { root, path: canonical, hidden, listings: Arc::new(Semaphore::new(LISTINGS_MAX)) };
        files.locate(Path::new("."), OFlags::PATH).map_err(|errno| {
            anyhow!(
                "cannot keep to {}: openat2 fails: {errno}; it needs Linux 5.6, and a sandbox that allows it",
                path.display()
            )
        })?;
        Ok(files)
    }

    /// Opens what `path` leads to, if that is in the directory.
    fn locate(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC;
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        let open = |path: &Path, resolve| {
            let mut tries = 0;
            loop {
                tries += 1;
                match openat2(&self.root, path, flags, Mode::empty(), resolve) {
                    Err(Errno::AGAIN | Errno::INTR) if tries < LOOKUPS_MAX => {}
                    opened => return opened,
                }
            }
        };
        match open(path, beneath) {
            // Perhaps an absolute link that leads back in: then there is a way without links.
            Err(Errno::XDEV) => {
                let direct = self.path.join(path).canonicalize().map_err(|_| Errno::XDEV)?;
                let direct = direct.strip_prefix(&self.path).map_err(|_| Errno::XDEV)?;
                let direct = if direct.as_os_str().is_empty() { Path::new(".") } else { direct };
                open(direct, beneath | ResolveFlags::NO_SYMLINKS)
            }
            opened => opened,
        }
    }

    /// What a path leads to, which is not opened for that.
    fn look(&self, path: &Path) -> Result<Metadata, Missing> {
        let place = self.locate(path, OFlags::PATH).map_err(Missing::of)?;
        File::from(place).metadata().map_err(Missing::Failed)
    }

    fn file(&self, path: &Path) -> Result<Found, Missing> {
        // Somebody may have put something else there meanwhile: that is not waited for, and is no file either.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let file = File::from(self.locate(path, flags).map_err(Missing::of)?);
        let metadata = file.metadata().map_err(Missing::Failed)?;
        if !metadata.is_file() {
            return Err(Missing::Absent);
        }
        let guessed = mime_guess::from_path(path).first_raw().unwrap_or("application/octet-stream");
        Ok(Found::File(file, Box::new(metadata), HeaderValue::from_static(guessed)))
    }

    fn find(&self, names: &[OsString], has_slash: bool) -> Result<Found, Missing> {
        let path = path_of(names);
        let found = self.look(&path)?;
        if found.is_file() && !has_slash {
            return self.file(&path);
        }
        if !found.is_dir() {
            return Err(Missing::Absent);
        }
        if !has_slash {
            return Ok(Found::Slashless);
        }
        let index = path.join(INDEX);
        match self.look(&index) {
            Ok(found) if found.is_file() => self.file(&index),
            Ok(_) | Err(Missing::Absent) => Ok(Found::Directory),
            Err(missing) => Err(missing),
        }
    }

    /// The page of a directory: what could be asked for, and nothing else.
    fn list(&self, names: &[OsString]) -> Result<String, Missing> {
        let path = path_of(names);
        let directory = self.locate(&path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(Missing::of)?;
        let mut listed = Vec::new();
        let mut has_more = false;
        for entry in Dir::new(directory).map_err(Missing::of)? {
            let entry = entry.map_err(Missing::of)?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if !self.is_allowed(name) {
                continue;
            }
            if listed.len() == LISTED_MAX {
                has_more = true;
                break;
            }
            let Ok(found) = self.look(&path.join(name)) else { continue };
            if found.is_file() || found.is_dir() {
                let bytes = found.is_file().then_some(found.len());
                listed.push(Listed { name: name.to_owned(), bytes, modified: found.modified().ok() });
            }
        }
        Ok(listing::page(names, listed, has_more))
    }

    /// Whether a path may have this name in it.
    fn is_allowed(&self, name: &OsStr) -> bool {
        let bytes = name.as_bytes();
        let is_name = !matches!(bytes, b"" | b"." | b"..") && !bytes.contains(&b'/') && !bytes.contains(&0);
        is_name && (self.hidden || !bytes.starts_with(b"."))
    }

    /// The names of a request's path, and whether it ends in a slash.
    fn names(&self, path: &str) -> Option<(Vec<OsString>, bool)> {
        let path = path.strip_prefix('/')?;
        if path.is_empty() {
            return Some((Vec::new(), true));
        }
        let (path, has_slash) = match path.strip_suffix('/') {
            Some(path) => (path, true),
            None => (path, false),
        };
        let decoded =
            path.split('/').map(|name| OsString::from_vec(percent_decode(name.as_bytes()).collect()));
        let names: Vec<OsString> = decoded.collect();
        names.iter().all(|name| self.is_allowed(name)).then_some((names, has_slash))
    }
}

fn path_of(names: &[OsString]) -> PathBuf {
    if names.is_empty() { PathBuf::from(".") } else { names.iter().collect() }
}

/// Answers one request.
pub(super) async fn answer(State(files): State<Arc<Files>>, request: Request) -> Response {
    let (request, _) = request.into_parts();
    if !matches!(request.method, Method::GET | Method::HEAD) {
        let allowed = [(ALLOW, HeaderValue::from_static("GET, HEAD"))];
        let text = "only GET and HEAD are served here";
        return (allowed, Reply::message(StatusCode::METHOD_NOT_ALLOWED, text)).into_response();
    }
    match answer_or_miss(files, &request).await {
        Ok(response) => response,
        Err(Missing::Absent) => Reply::unknown_path().await,
        Err(Missing::Denied) => {
            Reply::message(StatusCode::FORBIDDEN, "this may not be read here").into_response()
        }
        Err(Missing::Failed(error)) => {
            let path = request.uri.path();
            tracing::warn!(path, %error, "cannot serve a file");
            Reply::message(StatusCode::SERVICE_UNAVAILABLE, "this cannot be read at the moment")
                .into_response()
        }
    }
}

async fn answer_or_miss(files: Arc<Files>, request: &Parts) -> Result<Response, Missing> {
    let (names, has_slash) = files.names(request.uri.path()).ok_or(Missing::Absent)?;
    let names = Arc::new(names);
    let found = {
        let (files, names) = (Arc::clone(&files), Arc::clone(&names));
        blocking(move || files.find(&names, has_slash)).await?
    };
    match found {
        Found::File(file, metadata, kind) => {
            send(file, &metadata, kind, request).await.map_err(Missing::Failed)
        }
        Found::Slashless => {
            let mut to: String = names.iter().map(|name| format!("/{}", listing::linked(name))).collect();
            to.push('/');
            let to = HeaderValue::try_from(to).map_err(|_| Missing::Absent)?;
            Ok((StatusCode::TEMPORARY_REDIRECT, [(LOCATION, to)]).into_response())
        }
        Found::Directory => {
            // Never closed.
            let permit = Arc::clone(&files.listings).acquire_owned().await.map_err(|_| Missing::Absent)?;
            let page = blocking(move || files.list(&names)).await?;
            Ok(show(page, permit, &request.method))
        }
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Missing> + Send + 'static,
) -> Result<T, Missing> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(Missing::Failed(io::Error::other(error))))
}

fn show(page: String, permit: OwnedSemaphorePermit, method: &Method) -> Response {
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8")),
        // Names are strangers' words to whoever reads them.
        (CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'")),
        (CONTENT_LENGTH, HeaderValue::from(page.len())),
    ];
    if *method == Method::HEAD {
        return (headers, Body::empty()).into_response();
    }
    // The permit is given back when the page is read, or nobody wants it any more.
    let body = Full::new(Bytes::from(page)).map_frame(move |frame| {
        let _held = &permit;
        frame
    });
    (headers, Body::new(body)).into_response()
}

/// A file or a part of it, as the request's conditions have it.
async fn send(file: File, metadata: &Metadata, kind: HeaderValue, request: &Parts) -> io::Result<Response> {
    let version = Version::of(metadata);
    let length = version.length;
    let (status, range) = match choose(&request.method, &request.headers, &version) {
        Choice::All => (StatusCode::OK, 0..length),
        Choice::Part(range) => (StatusCode::PARTIAL_CONTENT, range),
        Choice::NotModified => (StatusCode::NOT_MODIFIED, 0..0),
        Choice::Failed => (StatusCode::PRECONDITION_FAILED, 0..0),
        Choice::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0),
    };
    let mut headers = HeaderMap::new();
    let mut put = |name: HeaderName, value: String| {
        // Digits, dates and tags of ours are what headers may hold.
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert(name, value);
        }
    };
    put(ETAG, version.tag.clone());
    if let Some(date) = version.date() {
        put(LAST_MODIFIED, date);
    }
    match status {
        StatusCode::PARTIAL_CONTENT => {
            put(CONTENT_RANGE, format!("bytes {}-{}/{length}", range.start, range.end.saturating_sub(1)));
        }
        StatusCode::RANGE_NOT_SATISFIABLE => put(CONTENT_RANGE, format!("bytes */{length}")),
        _ => {}
    }
    headers.insert(ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    if !matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        return Ok((status, headers).into_response());
    }
    headers.insert(CONTENT_TYPE, kind);
    headers.insert(CONTENT_LENGTH, HeaderValue::from(range.end - range.start));
    if request.method == Method::HEAD {
        return Ok((status, headers).into_response());
    }
    let mut file = tokio::fs::File::from_std(file);
    if range.start > 0 {
        file.seek(SeekFrom::Start(range.start)).await?;
    }
    let pieces = ReaderStream::with_capacity(file.take(range.end - range.start), READ_BYTES);
    Ok((status, headers, Body::from_stream(pieces)).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let files = Files::open(directory.path(), false).unwrap();
        let all = Files::open(directory.path(), true).unwrap();
        let names = |files: &Files, path: &str| {
            let (names, has_slash) = files.names(path)?;
            Some((
                names.iter().map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>(),
                has_slash,
            ))
        };
        for (path, expected, has_slash) in [
            ("/", vec![], true),
            ("/a", vec!["a"], false),
            ("/a%20b/%C3%A4/", vec!["a b", "\u{e4}"], true),
            ("/a..b/c.", vec!["a..b", "c."], false),
        ] {
            let expected = expected.into_iter().map(str::to_owned).collect();
            assert_eq!(names(&files, path), Some((expected, has_slash)), "{path}");
        }
        for path in
            ["", "a", "//", "/a//b", "//a", "/..", "/a/../b", "/%2e%2e/a", "/.", "/a%2Fb", "/a%00", "/./"]
        {
            assert_eq!(names(&all, path), None, "{path}");
        }
        for path in ["/.git/config", "/a/.b", "/%2Ehidden"] {
            assert_eq!(names(&files, path), None, "{path}");
            assert!(names(&all, path).is_some(), "{path}");
        }
    }
}
