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

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    /// Every command and every long option below `command`.
    fn words(command: &clap::Command, found: &mut Vec<String>) {
        for inner in command.get_subcommands() {
            found.push(inner.get_name().to_owned());
            words(inner, found);
        }
        let options = command.get_arguments().filter(|option| !option.is_hide_set());
        found.extend(options.filter_map(|option| option.get_long().map(str::to_owned)));
    }

    #[test]
    fn every_command_and_option_is_completed_in_every_shell() {
        let mut all = Vec::new();
        words(&Cli::command(), &mut all);
        assert!(all.len() > 60 && all.contains(&"init".to_owned()), "{all:?}");
        for shell in Shell::value_variants() {
            let mut script = Vec::new();
            generate(*shell, &mut Cli::command(), "outpost", &mut script);
            let script = String::from_utf8(script).unwrap();
            for word in &all {
                assert!(script.contains(word.as_str()), "{shell}: {word}");
            }
        }
    }
}
