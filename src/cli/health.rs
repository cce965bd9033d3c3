//! `outpost health`: whether new mail is taken, for whoever starts and stops containers.

use super::{Place, client::Client, exit::Failure, output};

/// Says that it is, or fails with the reason.
pub(super) fn run(place: &Place) -> Result<(), Failure> {
    let said = Client::find(place)?.raw("/readyz")?;
    output::say(String::from_utf8_lossy(&said).trim());
    Ok(())
}
