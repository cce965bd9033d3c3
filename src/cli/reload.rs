//! `outpost reload`: has the running relay read its configuration again.

use super::{Place, client::Client, exit::Failure, output};

pub(super) fn run(place: &Place) -> Result<(), Failure> {
    output::say(Client::find(place)?.act("/api/v1/reload")?);
    Ok(())
}
