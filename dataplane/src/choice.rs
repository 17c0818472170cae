//! Which driver moves a worker's bytes: chosen by the operator, or by what the kernel permits.
//!
//! In: the operator's choice (`--driver`) and, unless it is the poll driver, the outcome of io_uring's
//! [`probe`](crate::ring::probe). Out: the driver to build. Called by [`crate::Server::start`].

use std::fmt;
use std::str::FromStr;

use crate::driver::DriverError;
use crate::ring::Features;

/// What an operator may say about the driver. Text form: `auto`, `uring`, `poll`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DriverChoice {
    /// io_uring where it can be used, else the poll driver with a warning that names reason and cure.
    #[default]
    Auto,
    /// io_uring, or do not start.
    Uring,
    /// epoll, without asking for io_uring.
    Poll,
}

/// A text that names no driver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no driver is called `{0}`: use auto, uring or poll")]
pub struct UnknownDriver(String);

impl FromStr for DriverChoice {
    type Err = UnknownDriver;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "poll" => Ok(Self::Poll),
            other => Err(UnknownDriver(other.to_owned())),
        }
    }
}

impl fmt::Display for DriverChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Poll => "poll",
        })
    }
}

/// The driver a worker is built with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriverKind {
    Uring,
    Poll,
}

impl DriverKind {
    /// As in `--driver`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Uring => "uring",
            Self::Poll => "poll",
        }
    }
}

/// Outcome of a choice.
#[derive(Debug)]
pub(crate) struct Selection {
    pub(crate) kind: DriverKind,
    /// Why it is not io_uring although that would have been preferred.
    pub(crate) refusal: Option<DriverError>,
}

/// Settles a choice; `probe` is asked only where its answer matters. An error: io_uring was demanded and cannot be used.
pub(crate) fn select(
    choice: DriverChoice,
    probe: impl FnOnce() -> Result<Features, DriverError>,
) -> Result<Selection, DriverError> {
    match choice {
        DriverChoice::Poll => Ok(Selection { kind: DriverKind::Poll, refusal: None }),
        DriverChoice::Uring => probe().map(|_| Selection { kind: DriverKind::Uring, refusal: None }),
        DriverChoice::Auto => Ok(match probe() {
            Ok(_) => Selection { kind: DriverKind::Uring, refusal: None },
            Err(error) => Selection { kind: DriverKind::Poll, refusal: Some(error) },
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_form_is_read_back_and_anything_else_is_refused() {
        for choice in [DriverChoice::Auto, DriverChoice::Uring, DriverChoice::Poll] {
            assert_eq!(choice.to_string().parse(), Ok(choice));
        }
        let error = "epoll".parse::<DriverChoice>().unwrap_err();
        assert_eq!(error.to_string(), "no driver is called `epoll`: use auto, uring or poll");
    }

    #[test]
    fn the_poll_driver_is_chosen_without_a_probe() {
        let selection = select(DriverChoice::Poll, || unreachable!("nobody wants io_uring")).unwrap();
        assert_eq!(selection.kind, DriverKind::Poll);
        assert!(selection.refusal.is_none(), "nothing to warn of");
    }
}
