//! `outpost queue check` and `outpost queue backup`: the queue as it lies on the disk, beside a relay that
//! runs or without one. Both only read it.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use clap::Args;

use super::super::{
    Place,
    exit::{Exit, Failure},
    output::{self, Bar},
};
use crate::{
    admin::people,
    queue::{
        backup::{BackupError, backup},
        check::{Checked, check},
    },
    service::StartError,
};

/// Problems that are shown; --json has more.
const SHOWN: usize = 50;

#[derive(Debug, Args)]
pub(in crate::cli) struct Check {
    /// For programs
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(in crate::cli) struct Backup {
    /// A new directory, or an empty one
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Check {
    pub(super) fn run(&self, place: &Place) -> Result<(), Failure> {
        let directory = of_ours(place)?;
        let bar = Bar::late("messages");
        let checked = check(&directory, |done, of| bar.set_of(done, of))
            .map_err(|error| Failure::from(StartError::Queue(error)))?;
        drop(bar);
        if self.json {
            output::json(&checked);
        } else {
            tell(&checked);
        }
        if checked.damaged == 0 {
            return Ok(());
        }
        let words = format!(
            "{} in {}\n  help: look at the disk first (dmesg, smartctl). Keep a copy of the directory while the relay is stopped. What is whole can be saved: `outpost queue export -o FILE`, stop the relay, move the directory away, start it, `outpost queue import FILE`. A single damaged message, once nothing more is to be had of it: `outpost queue delete ID`",
            people::count(checked.damaged, "problem"),
            directory.display()
        );
        Err(Failure::new(Exit::DATA, words))
    }
}

fn tell(checked: &Checked) {
    for problem in checked.problems.iter().take(SHOWN) {
        let id = problem.id.map_or(String::new(), |id| format!("{id}: "));
        output::say(format!("{id}{}", people::printable(&problem.problem)));
    }
    if checked.damaged > SHOWN as u64 {
        output::say(format!("… and {} more; --json has more of them", checked.damaged - SHOWN as u64));
    }
    let all = if checked.damaged == 0 { ": all is whole" } else { "" };
    let number = people::count(checked.messages, "message");
    output::say(format!("{number} checked ({}){all}", people::size(checked.bytes)));
    if checked.stray_files > 0 {
        let files = people::count(checked.stray_files, "file");
        output::say(format!(
            "{files} of mail that is being received or has left; what a crash left is swept at the next start"
        ));
    }
}

impl Backup {
    pub(super) fn run(&self, place: &Place) -> Result<(), Failure> {
        let directory = of_ours(place)?;
        let bar = Bar::late("pages");
        let done = backup(&directory, &self.directory, |done, of| bar.set_of(done, of)).map_err(|error| {
            let exit = match error {
                BackupError::NotEmpty(_) | BackupError::Unwritable { .. } => Exit::CANT_CREATE,
                BackupError::Unreadable(_) => Exit::DATA,
            };
            Failure::new(exit, error)
        })?;
        drop(bar);
        if self.json {
            output::json(&done);
            return Ok(());
        }
        let with = if done.history { ", with the history" } else { ", without a history" };
        let number = people::count(done.messages, "message");
        let to = self.directory.display();
        output::say(format!("{number} ({}) copied to {to}{with}", people::size(done.bytes)));
        Ok(())
    }
}

/// The queue's directory. One of another user is left alone: what SQLite makes beside the database would
/// keep its relay out.
fn of_ours(place: &Place) -> Result<PathBuf, Failure> {
    let directory = place.queue()?;
    let words = |what: &str| format!("{what} {}", directory.display());
    let Ok(found) = std::fs::symlink_metadata(Path::new(&directory).join("queue.sqlite")) else {
        let help = "\n  help: name the relay's --data, or its configuration with -f";
        return Err(Failure::new(Exit::UNAVAILABLE, words("there is no queue in") + help));
    };
    if found.uid() != rustix::process::geteuid().as_raw() {
        let help = " belongs to another user: run this as the relay's user";
        return Err(Failure::new(Exit::NOT_PERMITTED, words("the queue in") + help));
    }
    Ok(directory)
}
