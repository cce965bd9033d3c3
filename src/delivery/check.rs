//! `outpost check --connect`: the way to the upstream, step by step, with nothing sent.

use super::{Agent, client::Client};
use crate::{clock::Clock, config::Upstream, mail::outcome::Scope};

/// What came of one step.
#[derive(Debug)]
pub struct Step {
    /// What was done: `connect`, `TLS`, `AUTH`.
    pub what: String,
    /// Whether it succeeded.
    pub ok: bool,
    /// What was seen.
    pub detail: String,
    /// What to do about it.
    pub help: Option<String>,
    /// The login was refused.
    pub credential: bool,
}

/// Connects, secures, logs in, says goodbye. The last step is the one that failed, if one did.
pub async fn connect(upstream: &Upstream, hostname: &str) -> Vec<Step> {
    let failed = |what: String, detail: String, help: Option<&str>, credential| Step {
        what,
        ok: false,
        detail,
        help: help.map(str::to_owned),
        credential,
    };
    let agent = match Agent::new(upstream.clone(), hostname, Clock::System) {
        Ok(agent) => agent,
        Err(fault) => return vec![failed("TLS".to_owned(), fault.words, fault.help, false)],
    };
    let mut steps = Vec::new();
    let opened = agent
        .open(|step| {
            steps.push(Step {
                what: step.what,
                ok: true,
                detail: step.detail,
                help: None,
                credential: false,
            });
        })
        .await;
    match opened {
        Ok(client) => Client::quit(client).await,
        Err(trouble) => {
            let evidence = &trouble.evidence;
            let credential = evidence.scope == Scope::Credential;
            steps.push(failed(evidence.phase.clone(), evidence.to_string(), evidence.help(), credential));
        }
    }
    steps
}
