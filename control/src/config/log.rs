//! What is logged: a filter as people write it, checked.
//!
//! In: text such as `info`, or `info,ringwire_dataplane=debug`. Out: a [`LogFilter`], or what would be right. The library that
//! applies filters takes a word that is no level for the name of a part, and is silent about everything else, errors included;
//! so here a level stands for everything, or behind the part it is for. What a filter says nothing of is logged as usual.

use std::fmt;
use std::str::FromStr;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// What is logged when nobody says anything.
const USUAL: &str = "warn";

/// A filter that can be applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl LogFilter {
    /// For the library that applies it.
    pub fn directives(&self) -> EnvFilter {
        EnvFilter::new(&self.0)
    }

    /// The filter in force: what the environment says (`None`: nothing), else what a file says, else the usual. Behind it what is wrong
    /// with the environment's, if anything: then everything down to `info` is logged, since whoever set it wants more
    /// than the usual.
    pub fn chosen(environment: Option<&str>, file: Option<Self>) -> (Self, Option<String>) {
        match environment.filter(|text| !text.trim().is_empty()).map(str::parse) {
            Some(Ok(filter)) => (filter, None),
            Some(Err(fault)) => (Self("info".to_owned()), Some(fault)),
            None => (file.unwrap_or_default(), None),
        }
    }
}

impl Default for LogFilter {
    fn default() -> Self {
        Self(USUAL.to_owned())
    }
}

impl FromStr for LogFilter {
    type Err = String;

    /// Nothing is the usual.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut pieces = Vec::new();
        let mut has_general = false;
        for piece in text.split(',').map(str::trim).filter(|piece| !piece.is_empty()) {
            let (part, level) = match piece.rsplit_once('=') {
                Some((part, level)) => (Some(part), level),
                None => (None, piece),
            };
            let is_part = part.is_none_or(|part| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "_:-".contains(c))
            });
            // It would take numbers, too.
            let is_level =
                level.chars().all(|c| c.is_ascii_alphabetic()) && level.parse::<LevelFilter>().is_ok();
            if !is_part || !is_level {
                return Err(wrong(piece));
            }
            has_general |= part.is_none();
            pieces.push(piece);
        }
        if !has_general {
            pieces.insert(0, USUAL);
        }
        Ok(Self(pieces.join(",")))
    }
}

fn wrong(piece: &str) -> String {
    format!(
        "`{}` is no log filter: use off, error, warn, info, debug or trace, for a part of the program with its name in front, \
         such as warn,ringwire_dataplane=debug",
        piece.escape_debug()
    )
}

impl fmt::Display for LogFilter {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_a_level_and_levels_of_parts() {
        for (text, filter) in [
            ("", "warn"),
            (" , ", "warn"),
            ("info", "info"),
            ("INFO", "INFO"),
            ("off", "off"),
            ("ringwire_dataplane=debug", "warn,ringwire_dataplane=debug"),
            ("error, ringwire::discovery=trace", "error,ringwire::discovery=trace"),
        ] {
            assert_eq!(text.parse::<LogFilter>().unwrap().to_string(), filter, "{text:?}");
        }
        for text in [
            "infos",
            "warning",
            "3",
            "info,debgu",
            "ringwire=loud",
            "=info",
            "ringwire",
            "a b=info",
            "x[y=info",
        ] {
            let error = text.parse::<LogFilter>().unwrap_err();
            assert!(
                error.contains("no log filter") && error.contains("ringwire_dataplane=debug"),
                "{text:?}: {error}"
            );
        }
        assert_eq!(
            "warn,ringwire_dataplane=debug".parse::<LogFilter>().unwrap().directives().to_string().len(),
            29
        );
    }

    #[test]
    fn the_environment_is_stronger_unless_it_says_nothing() {
        let filter = |text: &str| text.parse::<LogFilter>().unwrap();
        for (environment, file, chosen) in [
            (None, None, "warn"),
            (None, Some("error"), "error"),
            (Some(""), Some("error"), "error"),
            (Some(" "), None, "warn"),
            (Some("debug"), Some("error"), "debug"),
        ] {
            assert_eq!(LogFilter::chosen(environment, file.map(filter)), (filter(chosen), None));
        }
        let (chosen, fault) = LogFilter::chosen(Some("infos"), Some(filter("off")));
        assert_eq!(chosen, filter("info"), "not silence");
        assert!(fault.unwrap().contains("`infos`"));
    }
}
