//! How a screen is drawn: colours, width, signs; the same words with or without any of them.

use std::io::IsTerminal as _;

use clap::{Args, ValueEnum};
use ratatui::crossterm::terminal;

/// Narrower than this nothing is wrapped any more.
const NARROWEST: usize = 40;
/// Long lines are hard to read, however wide the terminal is.
const WIDEST: usize = 110;

/// Whether to use colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum When {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Wherever it goes
    Always,
    /// Nowhere
    Never,
}

#[derive(Debug, Args)]
pub(super) struct Colours {
    /// Whether to use colours
    #[arg(long = "color", alias = "colour", value_name = "WHEN", value_enum, default_value = "auto")]
    when: When,
}

/// What colours mean. No word depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Paint {
    Good,
    Careful,
    Bad,
    Faint,
    Strong,
}

/// How to draw.
#[derive(Clone, Debug)]
pub(super) struct Style {
    pub(super) colours: bool,
    /// Characters of a line; `None`: nobody looks, so lines stay whole for programs that search them.
    pub(super) width: Option<usize>,
    /// Whether more than ASCII can be shown.
    pub(super) signs: bool,
}

impl Colours {
    /// Whether standard output gets colours.
    pub(super) fn wanted(&self) -> bool {
        // https://no-color.org: present and not empty.
        let refused = || std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        match self.when {
            When::Always => true,
            When::Never => false,
            When::Auto => std::io::stdout().is_terminal() && !refused() && !dumb(),
        }
    }
}

impl Style {
    /// For standard output.
    pub(super) fn of_output(colours: &Colours) -> Self {
        let width = || terminal::size().map_or(80, |(columns, _)| usize::from(columns));
        Self {
            colours: colours.wanted(),
            width: std::io::stdout().is_terminal().then(|| width().clamp(NARROWEST, WIDEST)),
            signs: speaks_utf8(),
        }
    }

    /// A text in a colour.
    pub(super) fn paint(&self, paint: Paint, text: &str) -> String {
        let code = match paint {
            _ if !self.colours => return text.to_owned(),
            Paint::Good => "32",
            Paint::Careful => "33",
            Paint::Bad => "31",
            Paint::Faint => "2",
            Paint::Strong => "1",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// The sign of a state: its word stands beside it.
    pub(super) fn sign(&self, paint: Paint) -> String {
        let sign = match (paint, self.signs) {
            (Paint::Good, true) => "●",
            (Paint::Careful, true) => "◐",
            (_, true) => "○",
            (Paint::Good, false) => "+",
            (Paint::Careful, false) => "-",
            (_, false) => "!",
        };
        self.paint(paint, sign)
    }

    /// A small bar of so many cells. Something is never nothing, and all is never less than full.
    pub(super) fn bar(&self, part: u64, of: u64, cells: usize, paint: Paint) -> String {
        let share = |cells: usize| (u128::from(part.min(of)) * cells as u128).div_ceil(u128::from(of.max(1)));
        let full = usize::try_from(share(cells)).unwrap_or(cells);
        let full =
            if part < of { full.min(cells.saturating_sub(1)).max(usize::from(part > 0)) } else { full };
        let (filled, empty) = if self.signs { ("█", "░") } else { ("#", ".") };
        let bar = self.paint(paint, &filled.repeat(full));
        bar + &self.paint(Paint::Faint, &empty.repeat(cells - full))
    }

    /// A text in lines that fit, each indented.
    pub(super) fn wrapped(&self, text: &str, indent: usize) -> Vec<String> {
        let width = self.width.map_or(usize::MAX, |width| width.saturating_sub(indent).max(NARROWEST / 2));
        let mut lines = vec![String::new()];
        for word in text.split(' ').filter(|word| !word.is_empty()) {
            let line = lines.last().map_or(0, |line| line.chars().count());
            if line > 0 && line + 1 + word.chars().count() > width {
                lines.push(String::new());
            }
            if let Some(line) = lines.last_mut() {
                if !line.is_empty() {
                    line.push(' ');
                }
                line.push_str(word);
            }
        }
        lines.into_iter().map(|line| format!("{:indent$}{line}", "")).collect()
    }
}

/// By the first of these variables that is set, as locale(7) has it; without any, most can today.
fn speaks_utf8() -> bool {
    let set = ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| {
        std::env::var(name).ok().filter(|value| !value.is_empty()).map(|value| value.to_ascii_lowercase())
    });
    set.is_none_or(|locale| locale.contains("utf-8") || locale.contains("utf8"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style() -> Style {
        Style { colours: false, width: Some(40), signs: true }
    }

    #[test]
    fn a_bar_shows_something_for_something_and_all_only_for_all() {
        for (part, of, bar) in [
            (0, 10, "░░░░"),
            (1, 1000, "█░░░"),
            (5, 10, "██░░"),
            (999, 1000, "███░"),
            (10, 10, "████"),
            (20, 10, "████"),
            (0, 0, "░░░░"),
            (u64::MAX - 1, u64::MAX, "███░"),
        ] {
            assert_eq!(style().bar(part, of, 4, Paint::Good), bar, "{part} of {of}");
        }
    }

    #[test]
    fn text_wraps_at_words_and_colours_are_only_added() {
        let text = "535 5.7.8 bad credentials, says a server that likes to talk";
        let lines = style().wrapped(text, 4);
        assert_eq!(lines, ["    535 5.7.8 bad credentials, says a", "    server that likes to talk"]);
        let whole = Style { width: None, ..style() };
        assert_eq!(whole.wrapped(text, 2), [format!("  {text}")]);
        let coloured = Style { colours: true, ..style() };
        assert_eq!(coloured.paint(Paint::Bad, "no"), "\x1b[31mno\x1b[0m");
        assert_eq!(style().paint(Paint::Bad, "no"), "no");
    }
}
