//! `outpost env`: what is published in environment.json.
//!
//! The running relay is asked; while it doesn't run, the file itself.

use std::path::Path;

use clap::{Args, ValueEnum};
use serde_json::Value;

use super::{Place, client::Client, exit::Failure, output};
use crate::{
    admin,
    environment::{self, Format},
};

#[derive(Debug, Args)]
pub(super) struct Env {
    /// How to print it
    #[arg(long, value_enum, default_value = "json")]
    format: Form,
    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Form {
    Json,
    Yaml,
    Dotenv,
    Shell,
}

impl Env {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        let format = match self.format {
            Form::Json => Format::Json,
            Form::Yaml => Format::Yaml,
            Form::Dotenv => Format::Dotenv,
            Form::Shell => Format::Shell,
        };
        let asked = Client::find(place)?.get::<admin::Info>("/api/v1/info");
        let variables = match asked {
            Ok(info) => info.environment.unwrap_or_default(),
            Err(not_running) => published_earlier(place).ok_or(not_running)?,
        };
        output::say(environment::render(format, &variables));
        Ok(())
    }
}

/// What the relay has published when it ran last.
fn published_earlier(place: &Place) -> Option<Vec<(String, String)>> {
    let loaded = place.load();
    let settings = loaded.as_ref().ok().map(|loaded| &loaded.settings);
    let ours = settings.map_or("DOTCLOUD_".to_owned(), |settings| environment::prefix(&settings.service));
    let default = place.data().ok()?.join("environment.json");
    let files = settings.map_or(vec![default], |settings| settings.environment.files.clone());
    let is_json = |file: &&std::path::PathBuf| Format::of(file) == Some(Format::Json);
    let variables = files.iter().filter(is_json).find_map(|file| read(file))?;
    Some(variables.into_iter().filter(|(name, _)| name.starts_with(&ours)).collect())
}

/// The strings in a file of environment.json's kind; `None` if it can't be read.
pub(super) fn read(file: &Path) -> Option<Vec<(String, String)>> {
    let values: Value = serde_json::from_slice(&std::fs::read(file).ok()?).ok()?;
    let strings = values
        .as_object()?
        .iter()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())));
    Some(strings.collect())
}
