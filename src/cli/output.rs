//! Standard output and standard error, and tables on them.
//!
//! A reader that went away, as `| head` does, is no error.

use std::io::{IsTerminal as _, Write as _};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

use crate::admin::people;

/// Prints lines.
pub(super) fn say(text: impl AsRef<str>) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{}", text.as_ref().trim_end_matches('\n')).and_then(|()| out.flush());
}

/// Prints octets as they are.
pub(super) fn pass_on(octets: &[u8]) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(octets).and_then(|()| out.flush());
}

/// Prints words about trouble, and whose they are.
pub(super) fn complain(text: &str) {
    complain_as_is(&format!("outpost: {text}"));
}

/// Prints words about trouble that say themselves where it is.
pub(super) fn complain_as_is(text: &str) {
    let mut out = std::io::stderr().lock();
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

/// Asks on standard error; the answer is read by whoever asks.
pub(super) fn ask(question: &str) {
    let mut out = std::io::stderr().lock();
    let _ = write!(out, "{question}").and_then(|()| out.flush());
}

/// Whether somebody sees how far it has come.
pub(super) fn is_watched() -> bool {
    std::io::stderr().is_terminal()
}

/// Shows people how far it has come; programs and files see nothing of it.
pub(super) struct Bar(ProgressBar);

impl Bar {
    /// Of so many messages; of how many is not known, if 0.
    pub(super) fn messages(of: u64) -> Self {
        Self::new(of, "{bar:30} {pos} of {len} messages, {eta} left", "{spinner} {pos} messages")
    }

    /// The same of octets.
    pub(super) fn octets(of: u64) -> Self {
        Self::new(of, "{bar:30} {bytes} of {total_bytes}, {eta} left", "{spinner} {bytes}")
    }

    fn new(of: u64, known: &str, unknown: &str) -> Self {
        // Nothing is drawn where no terminal is.
        let bar = ProgressBar::with_draw_target((of > 0).then_some(of), ProgressDrawTarget::stderr());
        let style = ProgressStyle::with_template(if of > 0 { known } else { unknown });
        Self(bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar())))
    }

    /// Of so many things as [`Self::set_of`] will say.
    pub(super) fn late(things: &str) -> Self {
        Self::new(1, &format!("{{bar:30}} {{pos}} of {{len}} {things}, {{eta}} left"), "")
    }

    /// So far, of so many.
    pub(super) fn set_of(&self, done: u64, of: u64) {
        self.0.set_length(of);
        self.0.set_position(done);
    }

    /// So far.
    pub(super) fn set(&self, done: u64) {
        self.0.set_position(done);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// Prints a value for programs.
pub(super) fn json(value: &impl Serialize) {
    say(serde_json::to_string_pretty(value).unwrap_or_default());
}

/// Aligned columns. The last isn't padded; no cell can break a line or steer a terminal.
pub(super) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    /// A longer cell pushes its row out of line rather than all rows.
    const WIDEST: usize = 40;
    let head = head.map(str::to_owned);
    let rows: Vec<[String; N]> = std::iter::once(&head)
        .chain(rows)
        .map(|row| row.each_ref().map(|cell| people::printable(cell)))
        .collect();
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.filter(|width| *width <= WIDEST).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_no_cell_breaks_out() {
        let rows = [["1".to_owned(), "a\x1b[2J\nb".to_owned()], ["222".to_owned(), "x".repeat(50)]];
        let wanted = format!("ID   SUBJECT\n1    a\u{FFFD}[2J\u{FFFD}b\n222  {}\n", "x".repeat(50));
        assert_eq!(table(["ID", "SUBJECT"], &rows), wanted);
    }
}
