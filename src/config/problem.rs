//! What is wrong with a configuration, where, and what to do about it.
//!
//! A problem never repeats a value: any value may be a secret that was typed on the wrong line,
//! and problems end in logs. It points instead.

use std::fmt;

/// One thing that is wrong, or worth a hint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The file; `$NAME` for an environment variable.
    pub file: String,
    /// Line, from 1.
    pub line: Option<u32>,
    /// Column in characters, from 1.
    pub column: Option<u32>,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub help: Option<String>,
}

impl Problem {
    /// A problem of a file as a whole.
    pub fn of_file(file: &str, message: impl Into<String>, help: Option<&str>) -> Self {
        Self {
            file: file.to_owned(),
            line: None,
            column: None,
            message: message.into(),
            help: help.map(str::to_owned),
        }
    }
}

/// As compilers write it, so that editors can jump there: `dotcloud.yml:7:11: message`.
impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        for number in [self.line, self.column].into_iter().flatten() {
            write!(f, ":{number}")?;
        }
        write!(f, ": {}", self.message)?;
        match &self.help {
            Some(help) => write!(f, "\n  help: {help}"),
            None => Ok(()),
        }
    }
}

/// Everything that was found wrong at once, in the file's order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// Sorted by place; problems of environment variables come last.
    pub(super) fn sorted(mut problems: Vec<Problem>) -> Self {
        problems.sort_by_key(|p| (p.line.unwrap_or(u32::MAX), p.column));
        Self(problems)
    }

    /// A problem of a file as a whole.
    pub(super) fn of_file(file: &str, message: impl Into<String>, help: Option<&str>) -> Self {
        Self(vec![Problem::of_file(file, message, help)])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.0.iter().enumerate() {
            if n > 0 {
                f.write_str("\n")?;
            }
            problem.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}
