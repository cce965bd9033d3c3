//! `outpost login`: a user's consent to send mail in their name, by a code typed on another device.

use clap::Args;

use super::{
    Place,
    client::Client,
    exit::{Exit, Failure},
    output,
};
use crate::{admin::people, config::OAuth, delivery::device};

#[derive(Debug, Args)]
pub(super) struct Login {
    /// The upstream, by its name [default: the only one with smtp_relay_oauth]
    #[arg(value_name = "UPSTREAM")]
    upstream: Option<String>,
}

impl Login {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        let settings = place.load()?.settings;
        let mut found: Vec<(&str, &OAuth)> = settings
            .upstreams
            .iter()
            .filter_map(|upstream| Some((upstream.name.as_str(), upstream.login.as_ref()?.oauth.as_ref()?)))
            .collect();
        if let Some(wanted) = &self.upstream {
            found.retain(|(name, _)| name == wanted);
        }
        let oauth = match found.as_slice() {
            [(_, oauth)] => *oauth,
            [] => {
                let words = "no upstream logs in by access tokens: set smtp_relay_oauth, for example \
                     `{provider: microsoft, client_id: …}`";
                return Err(Failure::new(Exit::CONFIG, words));
            }
            several => {
                let names: Vec<&str> = several.iter().map(|(name, _)| *name).collect();
                let words = format!("say which upstream: {}", names.join(", "));
                return Err(Failure::new(Exit::USAGE, words));
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::UNAVAILABLE, error))?;
        let failure = |words: String| Failure::new(Exit::UNAVAILABLE, people::printable(&words));
        runtime.block_on(async {
            let asked = device::begin(oauth).await.map_err(failure)?;
            output::say(format!(
                "Go to {} and type the code {} (good for {} minutes). Waiting …",
                people::printable(&asked.place),
                people::printable(&asked.code),
                asked.lasts.as_secs() / 60
            ));
            asked.consent().await.map_err(failure)
        })?;
        output::say(format!("Logged in: the token is kept in {}.", oauth.kept.display()));
        // A relay that waits for this need not wait for longer.
        if let Ok(said) = Client::find(place).and_then(|client| client.act("/api/v1/reload")) {
            output::say(said);
        }
        Ok(())
    }
}
