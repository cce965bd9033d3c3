//! `outpost status`: how the relay is, on a screen.

mod screen;

use clap::Args;

use self::screen::screen;
use super::{
    Place,
    client::Client,
    exit::{Exit, Failure},
    output,
    style::{Colours, Style},
};
use crate::{admin::view, clock::Clock};

#[derive(Debug, Args)]
pub(super) struct Status {
    /// For programs
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    colours: Colours,
}

impl Status {
    pub(super) fn run(self, place: &Place) -> Result<Exit, Failure> {
        let status: view::Status = Client::find(place)?.get("/api/v1/status")?;
        if self.json {
            output::json(&status);
        } else {
            output::say(screen(&status, Clock::System.now(), &Style::of_output(&self.colours)));
        }
        Ok(Exit::OK)
    }
}
