//! Questions on standard error, answers from whoever sits there or from a program.

use std::io::{self, BufRead as _, IsTerminal as _};

use ratatui::crossterm::{
    event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    terminal,
};

use super::super::{
    exit::{Exit, Failure},
    output,
};

/// A longer answer is none.
const LONGEST: usize = 4_096;

/// What is thought of an answer.
pub(super) enum Verdict {
    /// It is taken.
    Right,
    /// It is probably a mistake: whoever says it twice means it.
    Doubtful(String),
    /// It can't be taken.
    Wrong(String),
}

/// Asks, as often as it takes where somebody can answer again.
pub(super) struct Asker {
    terminal: bool,
}

impl Asker {
    pub(super) fn new() -> Self {
        Self { terminal: io::stdin().is_terminal() && io::stderr().is_terminal() }
    }

    /// Whether somebody sits there.
    pub(super) fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// An answer that must be there: given, or asked for. `option` gives it to whoever can't be asked.
    pub(super) fn answer(
        &mut self,
        given: Option<String>,
        option: &str,
        question: &str,
        judge: impl Fn(&str) -> Verdict,
    ) -> Result<String, Failure> {
        match given {
            Some(given) => self.given(given, judge),
            None => self.until_taken(judge, |asker| {
                output::ask(question);
                asker.line(option)
            }),
        }
    }

    /// The same where nothing is an answer too.
    pub(super) fn optional(
        &mut self,
        given: Option<String>,
        question: &str,
        judge: impl Fn(&str) -> Verdict,
    ) -> Result<String, Failure> {
        match given {
            Some(given) => self.given(given, judge),
            None => self.until_taken(judge, |_| {
                output::ask(question);
                Ok(line()?.unwrap_or_default())
            }),
        }
    }

    /// The same without showing what is typed.
    pub(super) fn secret(
        &mut self,
        option: &str,
        question: &str,
        judge: impl Fn(&str) -> Verdict,
    ) -> Result<String, Failure> {
        self.until_taken(judge, |asker| {
            if asker.terminal {
                return unseen(question);
            }
            output::ask(question);
            asker.line(option)
        })
    }

    /// An answer that nobody can be asked for again: what is doubtful about it is told in the end.
    pub(super) fn given(&self, given: String, judge: impl Fn(&str) -> Verdict) -> Result<String, Failure> {
        match judge(&given) {
            Verdict::Right | Verdict::Doubtful(_) => Ok(given),
            Verdict::Wrong(words) => Err(Failure::new(Exit::USAGE, words)),
        }
    }

    /// The next line of standard input.
    pub(super) fn line(&self, option: &str) -> Result<String, Failure> {
        line()?.ok_or_else(|| {
            let words = format!("standard input ended before this was answered: say it by {option}");
            Failure::new(Exit::USAGE, words)
        })
    }

    fn until_taken(
        &mut self,
        judge: impl Fn(&str) -> Verdict,
        ask: impl Fn(&mut Self) -> Result<String, Failure>,
    ) -> Result<String, Failure> {
        let mut before = None;
        loop {
            let answer = ask(self)?;
            if !self.terminal {
                return self.given(answer, judge);
            }
            match judge(&answer) {
                Verdict::Right => return Ok(answer),
                Verdict::Doubtful(_) if before.as_ref() == Some(&answer) => return Ok(answer),
                Verdict::Doubtful(words) => {
                    output::complain_as_is(&format!("{words}\n  (the same answer again is taken as it is)"));
                }
                Verdict::Wrong(words) => output::complain_as_is(&words),
            }
            before = Some(answer);
        }
    }
}

/// A line without its end; `None`: there is no more.
fn line() -> Result<Option<String>, Failure> {
    let mut line = String::new();
    let mut input = io::Read::take(io::stdin().lock(), LONGEST as u64);
    match input.read_line(&mut line) {
        Ok(0) => Ok(None),
        Ok(_) => Ok(Some(line.trim_end_matches(['\r', '\n']).trim().to_owned())),
        Err(error) => Err(Failure::new(Exit::NO_INPUT, format!("standard input: {error}"))),
    }
}

/// Gives the terminal back as it was, however reading ends.
struct Raw;

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = terminal::disable_raw_mode();
        output::complain_as_is("");
    }
}

/// What is typed, key by key, so that nothing of it is shown and Ctrl-C leaves the terminal whole.
fn unseen(question: &str) -> Result<String, Failure> {
    let failed = |error: io::Error| Failure::new(Exit::NO_INPUT, format!("the terminal: {error}"));
    // Before the question: whoever answers at once is not to see it either.
    terminal::enable_raw_mode().map_err(failed)?;
    let _raw = Raw;
    output::ask(question);
    let mut typed = String::new();
    loop {
        let Event::Key(key) = event::read().map_err(failed)? else { continue };
        if key.kind == KeyEventKind::Release {
            continue;
        }
        match key.code {
            KeyCode::Enter => return Ok(typed),
            KeyCode::Backspace => {
                typed.pop();
            }
            KeyCode::Char('u') if key.modifiers.contains(KeyModifiers::CONTROL) => typed.clear(),
            KeyCode::Char('c' | 'd') if key.modifiers.contains(KeyModifiers::CONTROL) => {
                return Err(Failure::new(Exit::USAGE, "nothing was written"));
            }
            KeyCode::Char(c) if typed.len() < LONGEST => typed.push(c),
            _ => {}
        }
    }
}
