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

#[cfg(test)]
mod tests {
    use super::*;

    /// Each command's page is there and has its options.
    fn looked_up(command: &clap::Command, name: &str, directory: &std::path::Path) -> usize {
        let page = std::fs::read_to_string(directory.join(format!("{name}.1"))).expect(name);
        for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
            if let Some(long) = option.get_long() {
                let shown = format!("\\-\\-{}", long.replace('-', "\\-"));
                assert!(page.contains(&shown), "{name}: {shown}");
            }
        }
        let inner = command.get_subcommands().filter(|inner| !inner.is_hide_set());
        inner.map(|inner| looked_up(inner, &format!("{name}-{}", inner.get_name()), directory)).sum::<usize>()
            + 1
    }

    #[test]
    fn every_command_has_a_page_with_all_its_options() {
        let directory = tempfile::tempdir().unwrap();
        Man { directory: Some(directory.path().to_owned()) }.run().unwrap();
        assert!(looked_up(&Cli::command(), "outpost", directory.path()) > 25);
    }
}
