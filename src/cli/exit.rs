//! How a command ends: a code of sysexits(3), and words.

use std::{fmt, process::ExitCode};

use crate::{config::Problems, service::StartError};

/// How a command ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit(pub u8);

impl Exit {
    /// All is well.
    pub const OK: Self = Self(0);
    /// The command was used wrongly.
    pub const USAGE: Self = Self(64);
    /// What was given can't be used.
    pub const DATA: Self = Self(65);
    /// What was named can't be read.
    pub const NO_INPUT: Self = Self(66);
    /// Nobody there by that name.
    pub const NO_USER: Self = Self(67);
    /// Something that is needed isn't there.
    pub const UNAVAILABLE: Self = Self(69);
    /// A file can't be written.
    pub const CANT_CREATE: Self = Self(73);
    /// It may work later.
    pub const TRY_AGAIN: Self = Self(75);
    /// Not allowed.
    pub const NOT_PERMITTED: Self = Self(77);
    /// The configuration is wrong.
    pub const CONFIG: Self = Self(78);
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}

/// A command that failed: how it ends and what it says.
#[derive(Debug, PartialEq, Eq)]
pub struct Failure {
    /// The exit code.
    pub exit: Exit,
    /// For people.
    pub words: String,
}

impl Failure {
    /// A failure that ends with `exit`.
    pub fn new(exit: Exit, words: impl fmt::Display) -> Self {
        Self { exit, words: words.to_string() }
    }
}

impl From<Problems> for Failure {
    fn from(problems: Problems) -> Self {
        Self::new(Exit::CONFIG, problems)
    }
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        Self::new(Exit(error.exit_code()), error)
    }
}
