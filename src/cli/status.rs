//! `outpost status`: how the relay is, on a screen.

mod screen;

use clap::Args;

use self::screen::screen;
use super::{
    Place,
    check_status::Check,
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
    #[command(flatten)]
    check: Check,
}

impl Status {
    pub(super) fn run(self, place: &Place) -> Result<Exit, Failure> {
        if self.check.check {
            return Ok(self.check.run(place));
        }
        let status: view::Status = Client::find(place)?.get("/api/v1/status")?;
        if self.json {
            output::json(&status);
        } else {
            output::say(screen(&status, Clock::System.now(), &Style::of_output(&self.colours)));
        }
        Ok(Exit::OK)
    }
}
