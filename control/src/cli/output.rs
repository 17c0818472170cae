//! How commands print: tables for people, JSON for programs.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::anyhow;
use clap::Args;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::admin::model::Done;
use crate::admin::{Client, ClientError};
use crate::state::{STATE_VARIABLE, State};

/// What every command about a running server takes.
#[derive(Debug, Args)]
pub(super) struct Common {
    /// State directory of the server [default: $XDG_STATE_HOME/ringwire or ~/.local/state/ringwire]
    #[arg(long, value_name = "DIR", env = STATE_VARIABLE)]
    state: Option<PathBuf>,
    /// Print JSON instead of text
    #[arg(long)]
    json: bool,
}

impl Common {
    pub(super) fn state(&self) -> anyhow::Result<State> {
        Ok(State::locate(self.state.clone())?)
    }

    /// Asks the control plane.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        Ok(block_on(Client::new(&self.state()?)?.get(path))?)
    }

    /// Prints an answer as JSON or as `text` makes it.
    pub(super) fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<ExitCode> {
        let text = if self.json { serde_json::to_string(value)? + "\n" } else { text(value) };
        print_text(&text)?;
        Ok(ExitCode::SUCCESS)
    }

    /// Prints what an order did.
    pub(super) fn print_done(&self, done: &Done) -> anyhow::Result<ExitCode> {
        self.print(done, |done| format!("{}\n", done.message))
    }
}

/// Runs one question to its answer. A runtime that cannot be made shows as the system's error.
pub(super) fn block_on<T>(work: impl Future<Output = Result<T, ClientError>>) -> Result<T, ClientError> {
    match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime.block_on(work),
        Err(error) => Err(ClientError::Refused(format!("cannot ask: {error}"))),
    }
}

/// Prints text. A reader that went away, such as `head`, is no failure.
pub(super) fn print_text(text: &str) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(output_failed(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// What is said when the standard output takes nothing more.
#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
pub(super) fn output_failed(error: std::io::Error) -> anyhow::Error {
    anyhow!("cannot write to the standard output: {error}; make room there, or send it elsewhere")
}

/// Prints a value as one line of JSON.
pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print_text(&(serde_json::to_string(value)? + "\n"))
}

/// Rows of cells under headings, columns aligned; numbers to the right.
#[derive(Debug)]
pub(super) struct Table<const COLUMNS: usize> {
    rows: Vec<[String; COLUMNS]>,
}

impl<const COLUMNS: usize> Table<COLUMNS> {
    pub(super) fn new(headings: [&str; COLUMNS]) -> Self {
        Self { rows: vec![headings.map(str::to_owned)] }
    }

    pub(super) fn row(&mut self, cells: [String; COLUMNS]) {
        self.rows.push(cells);
    }

    /// As text.
    pub(super) fn render(&self) -> String {
        let widths: [usize; COLUMNS] = std::array::from_fn(|column| {
            self.rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0)
        });
        let right: [bool; COLUMNS] = std::array::from_fn(|column| {
            let cells = self.rows.iter().skip(1).map(|row| row[column].as_str());
            cells.clone().next().is_some()
                && cells.clone().all(|cell| cell.starts_with(|c: char| c.is_ascii_digit() || c == '-'))
                && cells.clone().all(|cell| !cell.contains(':'))
        });
        let mut text = String::new();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                let gap = if column == 0 { "" } else { "  " };
                let cell = if right[column] { format!("{cell:>width$}") } else { format!("{cell:<width$}") };
                line.push_str(gap);
                line.push_str(&cell);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Seconds as people say them.
pub(super) fn age(seconds: f64) -> String {
    let whole = seconds as u64;
    match whole {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        3600..86_400 => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3600),
    }
}

/// Bytes as people say them.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// So many of something that makes its plural with an s.
pub(super) fn counted(count: u64, one: &str) -> String {
    format!("{count} {one}{}", if count == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_cells_and_numbers_stand_right() {
        let mut table = Table::new(["name", "value", "address"]);
        table.row(["a".into(), "7".into(), "127.0.0.1:1".into()]);
        table.row(["longer".into(), "1000".into(), "127.0.0.1:20000".into()]);
        let expected = "name    value  address\na           7  127.0.0.1:1\nlonger   1000  127.0.0.1:20000\n";
        assert_eq!(table.render(), expected);
        assert_eq!(Table::new(["name", "value"]).render(), "name  value\n");
    }

    #[test]
    fn ages_and_sizes_are_for_people() {
        assert_eq!([0.25, 61.0, 7200.0, 180_000.0].map(age), ["0.2 s", "1 min 1 s", "2 h 0 min", "2 d 2 h"]);
        assert_eq!([5, 2048, 3 << 30].map(bytes), ["5 B", "2.0 KiB", "3.0 GiB"]);
    }
}
