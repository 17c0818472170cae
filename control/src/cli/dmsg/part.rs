//! A download on its way into a file: under a name of its own until it is whole, and continued where it broke off.
//!
//! In: the head of an answer and the pieces of its body. Out: `FILE.part` while it grows, beside it `FILE.part.json` with what tells
//! whether the server still has the same (its ETag or its date); both become `FILE` with the last byte. What is no plain file, such
//! as a device or a FIFO, is written to directly.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use axum::http::header::{CONTENT_RANGE, ETAG, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use serde::{Deserialize, Serialize};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;

/// What is known of a part: enough to ask for the rest, and for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    url: String,
    /// The value of If-Range: a strong ETag, or a date (RFC 9110, 13.1.5).
    version: String,
}

/// A part that a former attempt has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) len: u64,
    version: String,
}

impl Left {
    /// That of `path`, if it is of `url` and the server told how to ask for the rest.
    pub(super) fn of(path: &Path, url: &str) -> Option<Self> {
        let part = temporary(&target(path))?;
        let known: Known = serde_json::from_slice(&fs::read(beside(&part)).ok()?).ok()?;
        let len = fs::metadata(&part).ok()?.len();
        (known.url == url && len > 0).then_some(Self { len, version: known.version })
    }

    /// What asks for the rest, and for all if that is another by now.
    pub(super) fn headers(&self) -> Option<[(HeaderName, HeaderValue); 2]> {
        let range = HeaderValue::try_from(format!("bytes={}-", self.len)).ok()?;
        Some([(RANGE, range), (IF_RANGE, HeaderValue::try_from(&self.version).ok()?)])
    }
}

/// A file that is being written.
#[derive(Debug)]
pub(super) struct Part {
    file: File,
    target: PathBuf,
    /// Its name until it is whole; none: it has its own from the start.
    temporary: Option<PathBuf>,
    /// Where this attempt begins.
    pub(super) begins_at: u64,
    /// Whether a further attempt can go on behind this one.
    pub(super) can_continue: bool,
}

impl Part {
    /// Opens the file for the body of this answer. With `left`, what a former attempt has left is kept if the answer goes on behind it.
    ///
    /// # Errors
    /// The system's, for the name that is [`shown`](Self::shown).
    pub(super) async fn begin(
        path: &Path,
        url: &str,
        status: StatusCode,
        headers: &HeaderMap,
        left: Option<&Left>,
    ) -> io::Result<Self> {
        let target = target(path);
        let Some(part) = temporary(&target) else {
            let file = OpenOptions::new().write(true).open(&target).await?;
            return Ok(Self { file, target, temporary: None, begins_at: 0, can_continue: false });
        };
        let goes_on = left.filter(|left| continues(status, headers, left));
        let begins_at = goes_on.map_or(0, |left| left.len);
        let file = if goes_on.is_some() {
            OpenOptions::new().append(true).open(&part).await?
        } else {
            // Leaves nothing of what was there.
            File::create(&part).await?
        };
        let version = version(headers).filter(|_| status.is_success());
        let version = version.or_else(|| goes_on.map(|left| left.version.clone()));
        let can_continue = match version {
            Some(version) => {
                let known = Known { url: url.to_owned(), version };
                fs::write(beside(&part), serde_json::to_vec(&known)?).is_ok()
            }
            None => {
                fs::remove_file(beside(&part)).ok();
                false
            }
        };
        Ok(Self { file, target, temporary: Some(part), begins_at, can_continue })
    }

    /// What is left is all there is: it gets its name.
    ///
    /// # Errors
    /// The system's.
    pub(super) async fn whole(path: &Path, url: &str, left: &Left) -> io::Result<()> {
        let range = HeaderValue::try_from(format!("bytes {}-", left.len)).map_err(io::Error::other)?;
        let headers = [(CONTENT_RANGE, range)].into_iter().collect();
        Self::begin(path, url, StatusCode::PARTIAL_CONTENT, &headers, Some(left)).await?.finish().await
    }

    /// The name that it has now.
    pub(super) fn shown(&self) -> &Path {
        self.temporary.as_deref().unwrap_or(&self.target)
    }

    /// The next bytes.
    ///
    /// # Errors
    /// The system's.
    pub(super) async fn write(&mut self, piece: &[u8]) -> io::Result<()> {
        self.file.write_all(piece).await
    }

    /// It is whole: it gets its name.
    ///
    /// # Errors
    /// The system's; what was written stays under the name that it had.
    pub(super) async fn finish(mut self) -> io::Result<()> {
        self.file.flush().await?;
        if let Some(part) = &self.temporary {
            // A name that stands for half of it after a power failure would be worse than none.
            self.file.sync_all().await?;
            fs::rename(part, &self.target)?;
            fs::remove_file(beside(part)).ok();
        }
        Ok(())
    }

    /// Writes out what there is, for the next attempt.
    pub(super) async fn leave(mut self) {
        self.file.flush().await.ok();
    }
}

/// The file that a name means: behind a link, what that leads to, so that the link stays one.
fn target(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
}

/// The name of a part; none for what is there and no plain file.
fn temporary(target: &Path) -> Option<PathBuf> {
    if fs::metadata(target).is_ok_and(|found| !found.is_file()) {
        return None;
    }
    let mut name = target.file_name()?.to_owned();
    name.push(".part");
    Some(target.with_file_name(name))
}

/// The name of what is known of a part.
fn beside(part: &Path) -> PathBuf {
    let mut name = part.as_os_str().to_owned();
    name.push(".json");
    name.into()
}

/// Whether an answer is the rest behind what is left.
fn continues(status: StatusCode, headers: &HeaderMap, left: &Left) -> bool {
    let range = headers.get(CONTENT_RANGE).and_then(|range| range.to_str().ok()).unwrap_or_default();
    let begins = range.strip_prefix("bytes ").and_then(|range| range.split('-').next());
    status == StatusCode::PARTIAL_CONTENT
        && begins.and_then(|begin| begin.trim().parse().ok()) == Some(left.len)
}

/// What tells one version of a document from another.
fn version(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let is_strong = |tag: &&str| tag.starts_with('"');
    text(ETAG).filter(is_strong).or_else(|| text(LAST_MODIFIED)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "dmsg://key/file";

    fn headers(pairs: &[(HeaderName, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value))).collect()
    }

    #[tokio::test]
    async fn a_file_has_its_name_when_it_is_whole_and_goes_on_where_it_broke_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let tagged = headers(&[(ETAG, "\"v1\"")]);
        assert_eq!(Left::of(&path, URL), None);
        let mut part = Part::begin(&path, URL, StatusCode::OK, &tagged, None).await.unwrap();
        part.write(b"one ").await.unwrap();
        assert!(part.can_continue && !path.exists());
        part.leave().await;

        let left = Left::of(&path, URL).unwrap();
        assert_eq!(left.len, 4);
        let asked = left.headers().unwrap();
        assert_eq!((&asked[0].1, &asked[1].1), (&"bytes=4-".parse().unwrap(), &"\"v1\"".parse().unwrap()));
        assert_eq!(Left::of(&path, "dmsg://key/another"), None);
        let rest = headers(&[(ETAG, "\"v1\""), (CONTENT_RANGE, "bytes 4-6/7")]);
        let mut part =
            Part::begin(&path, URL, StatusCode::PARTIAL_CONTENT, &rest, Some(&left)).await.unwrap();
        assert_eq!(part.begins_at, 4);
        part.write(b"two").await.unwrap();
        part.finish().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[tokio::test]
    async fn what_is_another_by_now_begins_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let left = Left { len: 9, version: "\"v1\"".to_owned() };
        fs::write(directory.path().join("file.part"), "long ago.").unwrap();
        let elsewhere = headers(&[(CONTENT_RANGE, "bytes 3-6/7")]);
        for (status, headers) in
            [(StatusCode::OK, headers(&[(ETAG, "\"v2\"")])), (StatusCode::PARTIAL_CONTENT, elsewhere)]
        {
            let mut part = Part::begin(&path, URL, status, &headers, Some(&left)).await.unwrap();
            assert_eq!(part.begins_at, 0, "{status}");
            part.write(b"new").await.unwrap();
            part.finish().await.unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"new", "{status}");
        }
    }

    #[tokio::test]
    async fn a_weak_tag_is_no_version_and_a_device_has_no_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let weak = headers(&[(ETAG, "W/\"v1\"")]);
        let part = Part::begin(&path, URL, StatusCode::OK, &weak, None).await.unwrap();
        assert!(!part.can_continue && Left::of(&path, URL).is_none());
        let dated = headers(&[(ETAG, "W/\"v1\""), (LAST_MODIFIED, "Tue, 01 Dec 2026 00:00:00 GMT")]);
        let part = Part::begin(&path, URL, StatusCode::OK, &dated, None).await.unwrap();
        assert!(part.can_continue);
        let mut null = Part::begin(Path::new("/dev/null"), URL, StatusCode::OK, &dated, None).await.unwrap();
        null.write(b"x").await.unwrap();
        assert_eq!(null.shown(), Path::new("/dev/null"));
        null.finish().await.unwrap();
    }

    #[tokio::test]
    async fn a_link_stays_one() {
        let directory = tempfile::tempdir().unwrap();
        let (link, file) = (directory.path().join("link"), directory.path().join("file"));
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        let mut part = Part::begin(&link, URL, StatusCode::OK, &HeaderMap::new(), None).await.unwrap();
        part.write(b"new").await.unwrap();
        part.finish().await.unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read(&file).unwrap(), b"new");
    }
}
