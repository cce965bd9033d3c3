//! `outpost dkim`: the DNS records of the keys that sign our mail; keys that are missing are made.

use clap::Args;
use serde::Serialize;

use super::{
    Place,
    exit::{Exit, Failure},
    output,
};
use crate::{
    config::Dkim as Settings,
    delivery::dkim::{KeyFault, Signer},
};

#[derive(Debug, Args)]
pub(super) struct Dkim {
    /// For programs
    #[arg(long)]
    json: bool,
}

/// What is to be published.
#[derive(Debug, Serialize)]
struct Record {
    /// Of the TXT record.
    name: String,
    /// Its text, as forms of DNS providers take it.
    value: String,
    /// The file of the private key.
    key: String,
    /// That was made just now.
    made: bool,
    #[serde(skip)]
    strings: Vec<String>,
}

impl Dkim {
    pub(super) fn run(self, place: &Place) -> Result<(), Failure> {
        let settings = place.load()?.settings;
        if settings.dkim.is_empty() {
            let words = "no domain is to be signed for: set `smtp_dkim: {domain: example.com}`";
            return Err(Failure::new(Exit::CONFIG, words));
        }
        let records = settings.dkim.iter().map(record).collect::<Result<Vec<_>, _>>()?;
        if self.json {
            output::json(&records);
        } else {
            let zone: Vec<String> = records.iter().map(Record::in_a_zone).collect();
            output::say(zone.join("\n\n"));
        }
        Ok(())
    }
}

fn record(dkim: &Settings) -> Result<Record, Failure> {
    let failure = |fault: KeyFault| Failure::new(Exit::CONFIG, fault);
    let (signer, made) = match Signer::load(dkim) {
        Err(KeyFault::Missing { .. }) => {
            Signer::make(dkim).map_err(|fault| Failure::new(Exit::CANT_CREATE, fault))?;
            (Signer::load(dkim).map_err(failure)?, true)
        }
        loaded => (loaded.map_err(failure)?, false),
    };
    let (name, strings) = signer.record();
    Ok(Record { name, value: strings.concat(), key: dkim.key.display().to_string(), made, strings })
}

impl Record {
    /// As a zone file has it (RFC 1035 §5.1), so that all of it can be pasted there.
    fn in_a_zone(&self) -> String {
        let strings: Vec<String> = self.strings.iter().map(|part| format!("\"{part}\"")).collect();
        let made = if self.made { ", made just now: keep a copy in a safe place" } else { "" };
        format!("; private key: {}{made}\n{}. IN TXT ( {} )", self.key, self.name, strings.join("\n\t"))
    }
}
