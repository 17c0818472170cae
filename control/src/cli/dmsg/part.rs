//! A download on its way into a file: under a name of its own until it is whole, and continued where it broke off.
//!
//! In: the head of an answer and the pieces of its body. Out: `FILE.part` while it grows, beside it `FILE.part.json` with what tells
//! whether the server still has the same (its ETag or its date); both become `FILE` with the last byte. What is no plain file, such
//! as a device or a FIFO, is written to directly.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderName, IF_RANGE, LAST_MODIFIED, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tokio::fs::{File, OpenOptions};
use tokio::io::AsyncWriteExt as _;

/// Dates are of whole seconds.
const DATE_GRAIN: Duration = Duration::from_secs(1);

/// What is known of a part: enough to ask for the rest, and for nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Known {
    url: String,
    /// The value of If-Range: a strong ETag, or a date (RFC 9110, 13.1.5).
    version: String,
    /// Bytes of the whole, where the server said that.
    #[serde(default)]
    whole: Option<u64>,
}

/// A part that a former attempt has left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Left {
    pub(super) len: u64,
    version: String,
    /// Bytes of the whole, where that is known.
    whole: Option<u64>,
}

/// What an answer to the question for the rest is. What cannot be shown to be the rest of the same is not put behind what is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// What comes behind what is there, or the first of it; and how many bytes all is.
    Rest(Left),
    /// There is nothing behind what is there.
    Whole,
    /// All of it, from the start.
    All,
    /// Of no use: all of it has to be asked for.
    Useless(&'static str),
    /// No answer to the question; what is there stays.
    Other,
}

impl Left {
    /// That of `path`, if it is of `url` and the server told how to ask for the rest.
    pub(super) fn of(path: &Path, url: &str) -> Option<Self> {
        let part = temporary(&target(path))?;
        let known: Known = serde_json::from_slice(&fs::read(beside(&part)).ok()?).ok()?;
        let len = fs::metadata(&part).ok()?.len();
        (known.url == url && len > 0).then_some(Self { len, version: known.version, whole: known.whole })
    }

    /// What an answer to the question with these [`headers`](Self::headers) is.
    pub(super) fn judge(&self, status: StatusCode, headers: &HeaderMap) -> Verdict {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        match status {
            StatusCode::PARTIAL_CONTENT => {
                let Some((begin, whole)) = text(CONTENT_RANGE).and_then(content_range) else {
                    return Verdict::Useless("the server does not say which part it sends");
                };
                if begin != self.len {
                    return Verdict::Useless(
                        "the server sends a part that is not the part that was asked for",
                    );
                }
                let differs = matches!((self.whole, whole), (Some(then), Some(now)) if then != now);
                // There are servers that know Range and no If-Range; an answer names its tag (RFC 9110, 15.3.7), its date it may leave out.
                let is_same = match self.version.starts_with('"') {
                    true => text(ETAG) == Some(&*self.version),
                    false => text(LAST_MODIFIED).is_none_or(|date| date == self.version),
                };
                if differs || !is_same {
                    return Verdict::Useless("it has changed there");
                }
                Verdict::Rest(Self { whole: whole.or(self.whole), ..self.clone() })
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                let whole =
                    text(CONTENT_RANGE).and_then(|range| range.strip_prefix("bytes */")?.parse().ok());
                let is_whole = whole == Some(self.len) && self.whole.is_none_or(|then| then == self.len);
                if is_whole {
                    Verdict::Whole
                } else {
                    Verdict::Useless("there is less there than what has come")
                }
            }
            StatusCode::OK => Verdict::All,
            _ => Verdict::Other,
        }
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
    len: u64,
    /// Bytes of the whole, where an answer that need not be all of it says that.
    whole: Option<u64>,
    /// Whether a further attempt can go on behind this one.
    pub(super) can_continue: bool,
}

impl Part {
    /// Opens the file for the body of this answer, behind `left` if the answer is its [`Rest`](Verdict::Rest).
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
            let (len, whole) = (0, None);
            return Ok(Self { file, target, temporary: None, begins_at: 0, len, whole, can_continue: false });
        };
        // Whoever may write the directory may have put a link there, to somewhere else.
        let plain = OFlags::NOFOLLOW.bits().cast_signed();
        let file = OpenOptions::new().append(true).create(true).custom_flags(plain).open(&part).await?;
        // Two that write one file would both be told that it is whole.
        flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
            Errno::WOULDBLOCK => io::Error::new(io::ErrorKind::ResourceBusy, "another download writes it"),
            error => error.into(),
        })?;
        if left.is_none() {
            // Leaves nothing of what was there.
            file.set_len(0).await?;
        }
        let known = match left {
            Some(left) => {
                Some(Known { url: url.to_owned(), version: left.version.clone(), whole: left.whole })
            }
            None => version(headers).filter(|_| status == StatusCode::OK).map(|version| {
                let length =
                    headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
                Known { url: url.to_owned(), version, whole: length }
            }),
        };
        let can_continue = match known {
            Some(known) => fs::write(beside(&part), serde_json::to_vec(&known)?).is_ok(),
            None => {
                fs::remove_file(beside(&part)).ok();
                false
            }
        };
        let (len, whole) = left.map_or((0, None), |left| (left.len, left.whole));
        Ok(Self { file, target, temporary: Some(part), begins_at: len, len, whole, can_continue })
    }

    /// What is left is all there is: it gets its name.
    ///
    /// # Errors
    /// The system's.
    pub(super) async fn whole(path: &Path, url: &str, left: &Left) -> io::Result<()> {
        Self::begin(path, url, StatusCode::PARTIAL_CONTENT, &HeaderMap::new(), Some(left))
            .await?
            .finish()
            .await
    }

    /// Bytes that there are and that there should be, when they differ.
    pub(super) fn missing(&self) -> Option<(u64, u64)> {
        self.whole.filter(|whole| *whole != self.len).map(|whole| (self.len, whole))
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
        self.len += piece.len() as u64;
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

/// Where a part begins, and bytes of the whole where that is said: `bytes FIRST-LAST/WHOLE`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, whole) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let whole = match whole.trim() {
        "*" => None,
        whole => Some(whole.parse().ok()?),
    };
    (first <= last && whole.is_none_or(|whole| last < whole)).then_some((first, whole))
}

/// What tells one version of a document from another: a strong ETag, or a date that is old enough for nothing to have changed
/// within its second since (RFC 9110, 8.8.2.2).
fn version(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    let time = |text: &str| httpdate::parse_http_date(text).ok();
    let is_strong = |tag: &&str| tag.starts_with('"');
    let is_old = |date: &&str| {
        let (changed, now) = (time(date), text(DATE).and_then(time));
        changed.zip(now).is_some_and(|(changed, now)| now > changed + DATE_GRAIN)
    };
    text(ETAG).filter(is_strong).or_else(|| text(LAST_MODIFIED).filter(is_old)).map(str::to_owned)
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
        let Verdict::Rest(left) = left.judge(StatusCode::PARTIAL_CONTENT, &rest) else { panic!() };
        let mut part =
            Part::begin(&path, URL, StatusCode::PARTIAL_CONTENT, &rest, Some(&left)).await.unwrap();
        assert_eq!(part.missing(), Some((4, 7)));
        assert_eq!(part.begins_at, 4);
        part.write(b"two").await.unwrap();
        assert_eq!(part.missing(), None);
        part.finish().await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one two");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn only_the_rest_of_the_same_is_the_rest() {
        let left = Left { len: 40, version: "\"a\"".to_owned(), whole: Some(100) };
        let part = |left: &Left, range, version: (HeaderName, &'static str)| {
            left.judge(StatusCode::PARTIAL_CONTENT, &headers(&[(CONTENT_RANGE, range), version]))
        };
        for range in ["bytes 40-99/100", "bytes 40-59/100", "bytes 40-99/*"] {
            assert_eq!(part(&left, range, (ETAG, "\"a\"")), Verdict::Rest(left.clone()), "{range}");
        }
        for (range, version) in [
            ("bytes 0-99/100", (ETAG, "\"a\"")),
            ("bytes 39-99/100", (ETAG, "\"a\"")),
            ("bytes 40-98/99", (ETAG, "\"a\"")),
            ("bytes 40-100/100", (ETAG, "\"a\"")),
            ("bytes 40-30/100", (ETAG, "\"a\"")),
            ("bytes */100", (ETAG, "\"a\"")),
            ("lines 40-99/100", (ETAG, "\"a\"")),
            ("bytes 40-99/100", (ETAG, "\"b\"")),
            ("bytes 40-99/100", (ETAG, "W/\"a\"")),
            ("bytes 40-99/100", (LAST_MODIFIED, "then")),
        ] {
            assert!(
                matches!(part(&left, range, version.clone()), Verdict::Useless(_)),
                "{range} {version:?}"
            );
        }
        let dated = Left { version: "then".to_owned(), ..left.clone() };
        let rest = Verdict::Rest(dated.clone());
        assert_eq!(part(&dated, "bytes 40-99/100", (LAST_MODIFIED, "then")), rest);
        assert_eq!(part(&dated, "bytes 40-99/100", (CONTENT_LENGTH, "60")), rest);
        assert!(matches!(part(&dated, "bytes 40-99/100", (LAST_MODIFIED, "now")), Verdict::Useless(_)));
    }

    #[test]
    fn other_answers_are_what_they_are() {
        let left = Left { len: 40, version: "\"a\"".to_owned(), whole: None };
        let judged = |left: &Left, status, range| left.judge(status, &headers(&[(CONTENT_RANGE, range)]));
        let short = StatusCode::RANGE_NOT_SATISFIABLE;
        assert_eq!(judged(&left, short, "bytes */40"), Verdict::Whole);
        assert!(matches!(judged(&left, short, "bytes */39"), Verdict::Useless(_)));
        let longer = Left { whole: Some(41), ..left.clone() };
        assert!(matches!(judged(&longer, short, "bytes */40"), Verdict::Useless(_)));
        assert_eq!(judged(&left, StatusCode::OK, ""), Verdict::All);
        for status in [StatusCode::NOT_FOUND, StatusCode::BAD_GATEWAY, StatusCode::FOUND] {
            assert_eq!(judged(&left, status, ""), Verdict::Other, "{status}");
        }
    }

    #[tokio::test]
    async fn a_weak_tag_is_no_version_and_a_device_has_no_part() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("file");
        let weak = headers(&[(ETAG, "W/\"v1\"")]);
        let part = Part::begin(&path, URL, StatusCode::OK, &weak, None).await.unwrap();
        assert!(!part.can_continue && Left::of(&path, URL).is_none());
        drop(part);
        let (changed, later) = ("Tue, 01 Dec 2026 00:00:00 GMT", "Tue, 01 Dec 2026 00:00:02 GMT");
        let fresh = headers(&[(LAST_MODIFIED, changed), (DATE, changed)]);
        let part = Part::begin(&path, URL, StatusCode::OK, &fresh, None).await.unwrap();
        assert!(!part.can_continue, "it may have changed within that second");
        drop(part);
        let dated = headers(&[(ETAG, "W/\"v1\""), (LAST_MODIFIED, changed), (DATE, later)]);
        let part = Part::begin(&path, URL, StatusCode::OK, &dated, None).await.unwrap();
        assert!(part.can_continue);
        let second = Part::begin(&path, URL, StatusCode::OK, &dated, None).await.unwrap_err();
        assert!(second.to_string().contains("another download"), "{second}");
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
