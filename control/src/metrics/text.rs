//! Which of the two text formats an answer has, and the older one of them.
//!
//! In: what a request accepts; the text that the library writes, OpenMetrics. Out: the same in the format that is as old as
//! Prometheus ("0.0.4"), for those who know no other. They differ in names of counters, in types, and in an end mark.

use std::fmt::Write as _;

/// Whether a request prefers the older format: it names `text/plain` and likes it better. Who takes anything gets OpenMetrics.
pub(super) fn prefers_classic<'a>(accept: impl Iterator<Item = &'a str>) -> bool {
    let (mut open, mut classic) = (Liking::default(), Liking::default());
    for range in accept.flat_map(|value| value.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let media = parts.next().unwrap_or_default().to_ascii_lowercase();
        let weight =
            parts.find_map(|parameter| parameter.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
        open.note(&media, weight, "application", "openmetrics-text");
        classic.note(&media, weight, "text", "plain");
    }
    classic.weight > open.weight
}

/// How much one media type is liked, by the range that names it best.
#[derive(Default)]
struct Liking {
    weight: f32,
    precision: u8,
}

impl Liking {
    fn note(&mut self, media: &str, weight: f32, kind: &str, subkind: &str) {
        let precision = match media.split_once('/') {
            Some((k, s)) if k == kind && s == subkind => 3,
            Some((k, "*")) if k == kind => 2,
            Some(("*", "*")) => 1,
            _ => return,
        };
        if precision > self.precision || precision == self.precision && weight > self.weight {
            (self.weight, self.precision) = (weight, precision);
        }
    }
}

/// The older format of a text in the newer.
pub(super) fn classic(open_metrics: &str) -> String {
    let mut text = String::with_capacity(open_metrics.len() + open_metrics.len() / 8);
    let mut help = None;
    for line in open_metrics.lines() {
        if let Some(described) = line.strip_prefix("# HELP ") {
            help = described.split_once(' ');
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            // There a family has its own name, here that of its samples.
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "unknown" => ("", "untyped"),
                other => ("", other),
            };
            // Writing to a text cannot fail.
            if let Some((_, words)) = help.take().filter(|(described, _)| *described == name) {
                let _ = writeln!(text, "# HELP {name}{suffix} {words}");
            }
            let _ = writeln!(text, "# TYPE {name}{suffix} {kind}");
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_names_the_older_format_and_likes_it_better_gets_it() {
        for (accept, is_classic) in [
            (&["text/plain"][..], true),
            (&["Text/Plain; version=0.0.4; charset=utf-8"], true),
            (&["text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], true),
            (&["text/*"], true),
            (&["application/openmetrics-text;q=0.2", "text/plain;q=0.9"], true),
            (&["application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"], false),
            (&["application/openmetrics-text,text/plain"], false),
            (&["application/openmetrics-text;q=0,text/plain;q=0.1"], true),
            (&["text/plain;q=0"], false),
            (&["*/*"], false),
            (&["application/json"], false),
            (&[""], false),
            (&[], false),
        ] {
            assert_eq!(prefers_classic(accept.iter().copied()), is_classic, "{accept:?}");
        }
    }

    #[test]
    fn the_older_format_names_counters_by_their_samples_and_has_no_end() {
        let open = "# HELP a Things.\n# TYPE a counter\n# UNIT a bytes\na_total{x=\"1 # 2\"} 5\n# HELP b Level.\n# TYPE b gauge\nb 1\n\
                    # TYPE c info\nc_info{v=\"1\"} 1\n# TYPE d unknown\nd 4\n# EOF\n";
        let old = "# HELP a_total Things.\n# TYPE a_total counter\na_total{x=\"1 # 2\"} 5\n# HELP b Level.\n# TYPE b gauge\nb 1\n\
                   # TYPE c_info gauge\nc_info{v=\"1\"} 1\n# TYPE d untyped\nd 4\n";
        assert_eq!(classic(open), old);
    }
}
