//! `outpost check`: reads the configuration, tells what is wrong; tries the upstream if asked to.

use clap::Args;

use super::{
    Place,
    exit::{Exit, Failure},
    output,
};
use crate::{
    admin::people,
    config::{Settings, Upstream, UpstreamTls},
    delivery::{
        check::{self, Step},
        dkim::Signer,
    },
    queue::disk,
};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Also connect to the upstream, set up TLS and log in; nothing is sent
    #[arg(long)]
    connect: bool,
}

impl Check {
    pub(super) fn run(self, place: &Place) -> Result<Exit, Failure> {
        let loaded = place.load()?;
        for warning in &loaded.warnings {
            output::complain(&format!("warning: {warning}"));
        }
        let settings = loaded.settings;
        if let Some(warning) = disk::thrown_away(&settings) {
            output::complain(&format!("warning: {warning}"));
        }
        for dkim in &settings.dkim {
            Signer::load(dkim).map_err(|fault| Failure::new(Exit::CONFIG, fault))?;
        }
        output::say(format!("ok: {}", summary(&settings)));
        if !self.connect {
            return Ok(Exit::OK);
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Failure::new(Exit::UNAVAILABLE, error))?;
        let mut worst = Exit::OK;
        for upstream in &settings.upstreams {
            if settings.upstreams.len() > 1 {
                output::say(format!("{}:", upstream.name));
            }
            let end = told(&runtime.block_on(check::connect(upstream, &settings.hostname)));
            if worst == Exit::OK {
                worst = end;
            }
        }
        Ok(worst)
    }
}

fn summary(settings: &Settings) -> String {
    let listen: Vec<&str> = settings.listen.iter().map(|listen| listen.address.as_str()).collect();
    let ways: Vec<String> = settings.upstreams.iter().map(way).collect();
    format!(
        "{} takes mail on {} and relays it to {}; its data is in {}",
        settings.service,
        listen.join(", "),
        ways.join(", "),
        settings.data.display()
    )
}

fn way(upstream: &Upstream) -> String {
    let tls = match upstream.tls {
        UpstreamTls::StartTls => "over STARTTLS",
        UpstreamTls::Implicit => "over TLS",
        UpstreamTls::Opportunistic => "over TLS if it is offered",
        UpstreamTls::None => "IN CLEAR",
    };
    let login = match &upstream.login {
        Some(login) => format!("as {}", login.username),
        None => "without a login".to_owned(),
    };
    format!("{}:{} {tls} {login}", upstream.server, upstream.port)
}

/// Prints each step; the first that failed decides how to end.
fn told(steps: &[Step]) -> Exit {
    for step in steps {
        let sign = if step.ok { "ok" } else { "FAILED" };
        output::say(format!("{sign}: {}: {}", step.what, people::printable(&step.detail)));
        if let Some(help) = &step.help {
            output::say(format!("  help: {help}"));
        }
    }
    match steps.iter().find(|step| !step.ok) {
        None => Exit::OK,
        Some(step) if step.credential => Exit::NOT_PERMITTED,
        Some(_) => Exit::UNAVAILABLE,
    }
}
