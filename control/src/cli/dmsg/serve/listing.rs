//! The page that stands for a directory without an `index.html`.
//!
//! In: names with what they are. Out: HTML. Names are whatever a file system allows: each is escaped where it is shown, and
//! percent-encoded byte by byte where it is a link.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::time::{SystemTime, UNIX_EPOCH};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};

/// All but what a URL never needs to escape (RFC 3986, 2.3).
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Listed {
    pub(super) name: OsString,
    /// Bytes of a file; `None` is a directory.
    pub(super) bytes: Option<u64>,
    pub(super) modified: Option<SystemTime>,
}

/// The page of the directory `path`, a list of names. `has_more`: not all that is there is shown.
pub(super) fn page(path: &[OsString], mut listed: Vec<Listed>, has_more: bool) -> String {
    listed.sort_unstable_by(|one, other| one.name.cmp(&other.name));
    let mut title = "/".to_owned();
    for name in path {
        title.push_str(&shown(name));
        title.push('/');
    }
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>{title}</title>\n\
         <style>body {{ font-family: sans-serif }} td {{ padding-right: 2em }} td + td {{ text-align: right }}</style>\n\
         <h1>{title}</h1>\n<table>\n"
    );
    if !path.is_empty() {
        page.push_str("<tr><td><a href=\"../\">../</a>\n");
    }
    for Listed { name, bytes, modified } in &listed {
        let slash = if bytes.is_none() { "/" } else { "" };
        let bytes = bytes.map(|bytes| bytes.to_string()).unwrap_or_default();
        let modified = modified.and_then(day_and_time).unwrap_or_default();
        page.push_str(&format!(
            "<tr><td><a href=\"{}{slash}\">{}{slash}</a><td>{bytes}<td>{modified}\n",
            linked(name),
            shown(name),
        ));
    }
    page.push_str("</table>\n");
    if has_more {
        page.push_str(&format!("<p>There is more here than the {} names shown.\n", listed.len()));
    }
    page
}

/// A name as part of a URL: no byte of it can mean anything there.
pub(super) fn linked(name: &OsStr) -> String {
    percent_encode(name.as_bytes(), ESCAPED).to_string()
}

/// A name as text of a page.
fn shown(name: &OsStr) -> String {
    let mut text = String::new();
    for character in name.to_string_lossy().chars() {
        match character {
            '&' => text.push_str("&amp;"),
            '<' => text.push_str("&lt;"),
            '>' => text.push_str("&gt;"),
            '"' => text.push_str("&quot;"),
            '\'' => text.push_str("&#39;"),
            // Nor does a name turn round what stands beside it.
            control if control.is_control() => text.push(char::REPLACEMENT_CHARACTER),
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => text.push(char::REPLACEMENT_CHARACTER),
            other => text.push(other),
        }
    }
    text
}

/// To the minute, UTC.
fn day_and_time(time: SystemTime) -> Option<String> {
    // The library has no words for times after 9999, and panics at those before 1970.
    time.duration_since(UNIX_EPOCH).ok()?;
    let mut text = String::new();
    std::fmt::Write::write_fmt(&mut text, format_args!("{}", humantime::format_rfc3339_seconds(time)))
        .ok()?;
    Some(text.get(..16)?.replace('T', " "))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn file(name: &[u8], bytes: u64) -> Listed {
        let modified = Some(UNIX_EPOCH + Duration::from_secs(86_400 + 3_660));
        Listed { name: OsStr::from_bytes(name).to_owned(), bytes: Some(bytes), modified }
    }

    #[test]
    fn names_are_sorted_escaped_and_lead_where_they_say() {
        let directory = Listed { name: "docs".into(), bytes: None, modified: None };
        let names = vec![
            file(b"z", 1),
            directory,
            file(b"<script>alert('1 & \"2\"')</script>", 2),
            file(b"javascript:alert(1)", 3),
            file(b"a?b#c%d", 4),
            file(b"\xff\xfe", 5),
            file("\u{202e}gpj.exe\n".as_bytes(), 6),
        ];
        let page = page(&["<b>".into()], names, false);
        assert!(page.contains("<title>/&lt;b&gt;/</title>"), "{page}");
        assert!(!page.contains("<script") && !page.contains('\u{202e}'), "{page}");
        for row in [
            "<a href=\"../\">",
            "<a href=\"docs/\">docs/</a>",
            "<a href=\"%3Cscript%3Ealert%28%271%20%26%20%222%22%27%29%3C%2Fscript%3E\">\
             &lt;script&gt;alert(&#39;1 &amp; &quot;2&quot;&#39;)&lt;/script&gt;</a><td>2<td>1970-01-02 01:01",
            // No scheme, no query, no fragment.
            "<a href=\"javascript%3Aalert%281%29\">",
            "<a href=\"a%3Fb%23c%25d\">a?b#c%d</a>",
            "<a href=\"%FF%FE\">",
        ] {
            assert!(page.contains(row), "{row}\n{page}");
        }
        let at = |text: &str| page.find(text).unwrap();
        assert!(at("&lt;script") < at("\">a?b") && at("\">a?b") < at(">docs/") && at(">docs/") < at(">z<"));
    }

    #[test]
    fn times_that_no_calendar_has_are_left_out() {
        for time in [UNIX_EPOCH - Duration::from_secs(1), UNIX_EPOCH + Duration::from_secs(1 << 40)] {
            assert_eq!(day_and_time(time), None);
        }
    }
}
