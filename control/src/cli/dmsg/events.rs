//! What long-running commands tell whoever started them, and how they are told to stop.

use std::io::Write as _;

use serde::Serialize;

use crate::cli::signals::{Asked, Signals};

/// Where a command reports: standard output, unless that carries its data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Output,
    Errors,
}

/// How a command reports.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reporter {
    pub(super) json: bool,
    pub(super) place: Place,
}

impl Reporter {
    /// One line: the event as JSON, or its text for people.
    pub(super) fn tell(self, event: &impl Serialize, text: &str) {
        let line = if self.json {
            // Our events have string keys and finite numbers, which always have a JSON form.
            serde_json::to_string(event).unwrap_or_default()
        } else {
            text.to_owned()
        };
        // A reader that went away is no reason to stop.
        match self.place {
            Place::Output => {
                let mut out = std::io::stdout().lock();
                writeln!(out, "{line}").and_then(|()| out.flush()).ok();
            }
            Place::Errors => {
                writeln!(std::io::stderr().lock(), "{line}").ok();
            }
        }
    }
}

/// Waits until somebody wants the end.
pub(super) async fn end_asked(signals: &mut Signals) {
    // There is nothing to reload.
    while signals.next().await != Asked::End {}
}
