//! `outpost completions`: what a shell needs to complete commands and options.

use clap::{Args, CommandFactory as _};
use clap_complete::{Shell, generate};

use super::{Cli, output};

#[derive(Debug, Args)]
pub(super) struct Completions {
    /// For which shell
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) {
        let mut script = Vec::new();
        generate(self.shell, &mut Cli::command(), "outpost", &mut script);
        output::pass_on(&script);
    }
}
