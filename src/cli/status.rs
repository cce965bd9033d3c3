//! `outpost status`: how the relay is, in sentences.

use clap::Args;

use super::{Place, client::Client, exit::Failure, output};
use crate::admin::{people, view};

#[derive(Debug, Args)]
pub(super) struct Status {
    /// For programs
    #[arg(long)]
    json: bool,
}

impl Status {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        let status: view::Status = Client::find(place)?.get("/api/v1/status")?;
        if self.json {
            output::json(&status);
        } else {
            let lines: Vec<String> = status.sentences().iter().map(|line| people::printable(line)).collect();
            output::say(lines.join("\n"));
        }
        Ok(())
    }
}
