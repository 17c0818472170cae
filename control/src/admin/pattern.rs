//! Keys as people type them: whole, or as much of one as tells it from the others that are there.
//!
//! In: what was typed, and the keys there are. Out: the one that is meant, or why none is. `02fe41` is a beginning, and
//! `02fe416b1a..9f3c` a beginning and an end, as tables show keys.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use ringwire_proto::identity::PublicKey;
use thiserror::Error;

/// Fewest digits of a beginning: the first two are 02 or 03, which tells nobody from anybody.
const DIGITS_MIN: usize = 4;

/// Digits of a whole key.
const DIGITS: usize = 66;

/// Keys that are named when several are meant.
const CANDIDATES_MAX: usize = 8;

/// Why no key is meant.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PatternError {
    /// Neither a key nor a part of one.
    #[error(
        "`{0}` is not a public key nor the beginning of one: 66 hex digits, or at least {DIGITS_MIN} of the first; take one \
         from: ringwire show sessions"
    )]
    Malformed(String),
    /// Nobody has such a key.
    #[error("no key begins with {0} here; see: ringwire show sessions")]
    Nobody(Pattern),
    /// More than one.
    #[error("{pattern} can be {}: type more of it", candidates_text(.candidates, *.more))]
    Several {
        /// What was typed.
        pattern: Pattern,
        /// Those that it can be, the first of them.
        candidates: Vec<String>,
        /// How many more there are.
        more: usize,
    },
}

fn candidates_text(candidates: &[String], more: usize) -> String {
    let named = candidates.join(" or ");
    if more == 0 { named } else { format!("{named} or {more} more") }
}

/// A key, or a part of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    head: String,
    tail: String,
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let malformed = || PatternError::Malformed(text.chars().take(DIGITS + 8).collect());
        let lower = text.trim().to_ascii_lowercase();
        let (head, tail) = lower.split_once("..").unwrap_or((&lower, ""));
        let is_hex = |part: &str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
        let len = head.len() + tail.len();
        if !is_hex(head) || !is_hex(tail) || head.len() < DIGITS_MIN || len > DIGITS {
            return Err(malformed());
        }
        if head.len() == DIGITS {
            head.parse::<PublicKey>().map_err(|_| malformed())?;
        }
        Ok(Self { head: head.to_owned(), tail: tail.to_owned() })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dots = if self.tail.is_empty() { "" } else { ".." };
        write!(formatter, "{}{dots}{}", self.head, self.tail)
    }
}

impl Pattern {
    /// The key that is meant of those there are. A whole one is meant whether it is there or not.
    ///
    /// # Errors
    /// [`PatternError::Nobody`], [`PatternError::Several`].
    pub fn resolve<'a>(&self, keys: impl Iterator<Item = &'a str>) -> Result<String, PatternError> {
        if self.head.len() == DIGITS {
            return Ok(self.head.clone());
        }
        // Each once and in order: a key may have several sessions and streams.
        let meant: BTreeSet<&str> =
            keys.filter(|key| key.starts_with(&self.head) && key.ends_with(&self.tail)).collect();
        match meant.len() {
            0 => Err(PatternError::Nobody(self.clone())),
            1 => Ok(meant.into_iter().collect()),
            count => Err(PatternError::Several {
                pattern: self.clone(),
                candidates: meant.into_iter().take(CANDIDATES_MAX).map(str::to_owned).collect(),
                more: count.saturating_sub(CANDIDATES_MAX),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798";
    const B: &str = "0279be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81799";
    const C: &str = "03c6047f9441ed7d6d3045406e95c07cd85c778e4b8cef3ca7abac09b95c709ee5";

    fn resolve(typed: &str) -> Result<String, PatternError> {
        typed.parse::<Pattern>()?.resolve([A, B, C, C].into_iter())
    }

    #[test]
    fn as_much_as_tells_it_from_others_is_enough() {
        assert_eq!(resolve("03c6").unwrap(), C);
        assert_eq!(resolve(" 03C6047f ").unwrap(), C);
        assert_eq!(resolve("0279be667e..1798").unwrap(), A);
        assert_eq!(resolve(A).unwrap(), A);
        let absent = "02f9308a019258c31049344f85f89d5229b531c845836f99b08601f113bce036f9";
        assert_eq!(resolve(absent).unwrap(), absent, "a whole key is what it is");
    }

    #[test]
    fn what_can_be_several_is_refused_with_all_of_them() {
        let error = resolve("0279be").unwrap_err().to_string();
        assert!(error.contains(A) && error.contains(B) && !error.contains(C), "{error}");
        let many: Vec<String> = (0..20).map(|number| format!("0279{number:062}")).collect();
        let pattern: Pattern = "0279".parse().unwrap();
        let error = pattern.resolve(many.iter().map(String::as_str)).unwrap_err().to_string();
        assert!(error.contains("12 more") && error.matches(" or ").count() == 8, "{error}");
    }

    #[test]
    fn what_is_nobodys_or_no_key_is_told() {
        assert!(matches!(resolve("02ff"), Err(PatternError::Nobody(_))));
        assert!(matches!(resolve("03c6..1798"), Err(PatternError::Nobody(_))));
        let long = format!("{A}0");
        for typed in ["", "02", "027", "nobody", "0279be66zz", "..1798", "02&x=1", &long, &"ff".repeat(33)] {
            let error = resolve(typed).unwrap_err();
            assert!(matches!(error, PatternError::Malformed(_)), "{typed}: {error}");
        }
    }
}
