//! Which version of a file there is, and how much of it a request wants (RFC 9110, 13 and 14).
//!
//! In: a file's metadata and a request's headers. Out: a [`Choice`]. No I/O.

use std::fs::Metadata;
use std::ops::Range;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::header::{IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE};
use axum::http::{HeaderMap, HeaderName, Method};
use http_range_header::{RangeUnsatisfiableError, parse_range_header};

/// A version of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) length: u64,
    /// Another one for every other length or time of change, to the nanosecond.
    pub(super) tag: String,
    /// When it was changed, in whole seconds; `None` when that is no date of the past.
    modified: Option<SystemTime>,
}

/// What is sent of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Choice {
    All,
    Part(Range<u64>),
    NotModified,
    /// A condition does not hold.
    Failed,
    /// What is asked for lies behind its end.
    Unsatisfiable,
}

impl Version {
    pub(super) fn of(metadata: &Metadata) -> Self {
        Self::new(metadata.len(), metadata.modified().unwrap_or(UNIX_EPOCH), SystemTime::now())
    }

    fn new(length: u64, modified: SystemTime, now: SystemTime) -> Self {
        let since = modified.duration_since(UNIX_EPOCH);
        let (sign, distance) = match &since {
            Ok(distance) => ("", *distance),
            Err(error) => ("-", error.duration()),
        };
        let tag = format!("\"{length:x}-{sign}{:x}\"", distance.as_nanos());
        // RFC 9110, 8.8.2.1: nothing was changed in the future.
        let modified = since.ok().filter(|_| modified <= now);
        let modified = modified.map(|since| UNIX_EPOCH + Duration::from_secs(since.as_secs()));
        Self { length, tag, modified }
    }

    /// When it was changed, as headers have it.
    pub(super) fn date(&self) -> Option<String> {
        self.modified.map(httpdate::fmt_http_date)
    }

    /// A list of tags names this version.
    fn is_among(&self, tags: &str, weakly: bool) -> bool {
        tags.split(',').map(str::trim).any(|tag| {
            let tag = if weakly { tag.strip_prefix("W/").unwrap_or(tag) } else { tag };
            tag == "*" || tag == self.tag
        })
    }

    /// Whether it was changed after a date; `None` without a valid date on both sides.
    fn is_later(&self, date: &str) -> Option<bool> {
        Some(self.modified? > httpdate::parse_http_date(date).ok()?)
    }
}

/// What is sent of `version` to whoever asks with these headers, in the order of RFC 9110, 13.2.2.
pub(super) fn choose(method: &Method, headers: &HeaderMap, version: &Version) -> Choice {
    let all = |name: HeaderName| {
        let values: Vec<&str> =
            headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect();
        (!values.is_empty()).then(|| values.join(","))
    };
    let one = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let fails = match all(IF_MATCH) {
        Some(tags) => !version.is_among(&tags, false),
        None => one(IF_UNMODIFIED_SINCE).and_then(|date| version.is_later(date)) == Some(true),
    };
    if fails {
        return Choice::Failed;
    }
    let is_known = match all(IF_NONE_MATCH) {
        Some(tags) => version.is_among(&tags, true),
        None => one(IF_MODIFIED_SINCE).and_then(|date| version.is_later(date)) == Some(false),
    };
    if is_known {
        return Choice::NotModified;
    }
    let is_same =
        one(IF_RANGE).is_none_or(|known| known == version.tag || version.date().as_deref() == Some(known));
    match one(RANGE) {
        Some(range) if method == Method::GET && is_same => part(range, version.length),
        _ => Choice::All,
    }
}

/// One range is sent; several, and what cannot be read, are as good as none (RFC 9110, 14.2).
fn part(range: &str, length: u64) -> Choice {
    let Ok(ranges) = parse_range_header(range) else { return Choice::All };
    if ranges.ranges.len() != 1 {
        return Choice::All;
    }
    match ranges.validate(length).as_deref() {
        // Of nothing there is no first byte.
        Ok(_) if length == 0 => Choice::All,
        Ok([range]) => Choice::Part(*range.start()..range.end() + 1),
        Err(RangeUnsatisfiableError::RangeReversed) => Choice::Unsatisfiable,
        // The last so many bytes of a shorter file are all of it.
        Ok(_) | Err(_) => Choice::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHANGED: &str = "Fri, 02 Jan 1970 00:00:00 GMT";
    const BEFORE: &str = "Thu, 01 Jan 1970 00:00:00 GMT";
    const AFTER: &str = "Sat, 03 Jan 1970 00:00:00 GMT";

    fn version() -> Version {
        let changed = UNIX_EPOCH + Duration::from_millis(86_400_500);
        Version::new(100, changed, changed + Duration::from_secs(9))
    }

    fn chosen(pairs: &[(HeaderName, &str)]) -> Choice {
        let headers = pairs.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect();
        choose(&Method::GET, &headers, &version())
    }

    #[test]
    fn every_other_version_has_another_tag() {
        let at = |nanoseconds| UNIX_EPOCH + Duration::from_nanos(nanoseconds);
        let tag = |length, nanoseconds| Version::new(length, at(nanoseconds), at(u64::MAX)).tag;
        assert_ne!(tag(1, 1), tag(1, 2));
        assert_ne!(tag(1, 1), tag(2, 1));
        let before = Version::new(1, UNIX_EPOCH - Duration::from_nanos(1), at(2));
        assert!(before.tag != tag(1, 1) && before.date().is_none());
        assert_eq!(Version::new(1, at(3), at(2)).date(), None, "the future is no date of a change");
        assert_eq!(version().date().as_deref(), Some(CHANGED));
    }

    #[test]
    fn conditions_are_kept() {
        let tag = version().tag;
        let (weak, list) = (format!("W/{tag}"), format!("\"x\", {tag}"));
        for (pairs, expected) in [
            (vec![], Choice::All),
            (vec![(IF_NONE_MATCH, &*tag)], Choice::NotModified),
            (vec![(IF_NONE_MATCH, &*weak)], Choice::NotModified),
            (vec![(IF_NONE_MATCH, &*list)], Choice::NotModified),
            (vec![(IF_NONE_MATCH, "*")], Choice::NotModified),
            (vec![(IF_NONE_MATCH, "\"x\"")], Choice::All),
            // The tag decides, where there is one.
            (vec![(IF_NONE_MATCH, "\"x\""), (IF_MODIFIED_SINCE, AFTER)], Choice::All),
            (vec![(IF_MODIFIED_SINCE, CHANGED)], Choice::NotModified),
            (vec![(IF_MODIFIED_SINCE, AFTER)], Choice::NotModified),
            (vec![(IF_MODIFIED_SINCE, BEFORE)], Choice::All),
            (vec![(IF_MODIFIED_SINCE, "yesterday")], Choice::All),
            (vec![(IF_MATCH, &*tag)], Choice::All),
            (vec![(IF_MATCH, &*weak)], Choice::Failed),
            (vec![(IF_MATCH, "\"x\"")], Choice::Failed),
            (vec![(IF_UNMODIFIED_SINCE, BEFORE)], Choice::Failed),
            (vec![(IF_UNMODIFIED_SINCE, CHANGED)], Choice::All),
        ] {
            assert_eq!(chosen(&pairs), expected, "{pairs:?}");
        }
    }

    #[test]
    fn parts_are_of_this_version() {
        let tag = version().tag;
        let weak = format!("W/{tag}");
        for (range, expected) in [
            ("bytes=0-", Choice::Part(0..100)),
            ("bytes=40-", Choice::Part(40..100)),
            ("bytes=40-49", Choice::Part(40..50)),
            ("bytes=40-400", Choice::Part(40..100)),
            ("bytes=-10", Choice::Part(90..100)),
            ("bytes=-1000", Choice::All),
            ("bytes=100-", Choice::Unsatisfiable),
            ("bytes=1-2, 4-5", Choice::All),
            ("bytes=x", Choice::All),
            ("lines=1-2", Choice::All),
        ] {
            assert_eq!(chosen(&[(RANGE, range)]), expected, "{range}");
        }
        for (known, is_same) in [
            (&*tag, true),
            (&*weak, false),
            ("\"x\"", false),
            (CHANGED, true),
            (AFTER, false),
            (BEFORE, false),
        ] {
            let expected = if is_same { Choice::Part(40..100) } else { Choice::All };
            assert_eq!(chosen(&[(RANGE, "bytes=40-"), (IF_RANGE, known)]), expected, "{known}");
        }
        assert_eq!(part("bytes=0-", 0), Choice::All);
        let headers = [(RANGE, "bytes=40-".parse().unwrap())].into_iter().collect();
        assert_eq!(choose(&Method::HEAD, &headers, &version()), Choice::All);
    }
}
