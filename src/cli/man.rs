//! `outpost man`: the manual pages, made from the same words as `--help`.

use std::{io, path::PathBuf};

use clap::{Args, CommandFactory as _};
use clap_mangen::{Man as Page, generate_to};

use super::{
    Cli,
    exit::{Exit, Failure},
    output,
};

#[derive(Debug, Args)]
pub(super) struct Man {
    /// Where to write outpost.1 and a page for each command [default: print outpost.1]
    #[arg(value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self) -> Result<(), Failure> {
        let Some(directory) = self.directory else {
            let mut page = Vec::new();
            Page::new(Cli::command()).render(&mut page).map_err(|error| failed("outpost.1", &error))?;
            output::pass_on(&page);
            return Ok(());
        };
        let name = directory.display().to_string();
        std::fs::create_dir_all(&directory)
            .and_then(|()| generate_to(Cli::command(), &directory))
            .map_err(|error| failed(&name, &error))
    }
}

fn failed(place: &str, error: &io::Error) -> Failure {
    Failure::new(Exit::CANT_CREATE, format!("{place}: {error}"))
}
