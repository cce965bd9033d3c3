//! `outpost check`: reads the configuration, looks at the machine, and tells what is wrong; tries the
//! upstream if asked to.
//!
//! An error keeps the relay from running, or from relaying anything; a warning is worth a look.
//! docs/check.md shows the commonest of them as they are told here, and a test compares it.

mod machine;

use clap::Args;
use serde::Serialize;

use super::{
    Place,
    client::Client,
    exit::{Exit, Failure},
    output,
};
use crate::{
    admin::people,
    config::{Loaded, Problem, Settings, Upstream, UpstreamTls},
    delivery::check::{self, Step},
};

#[derive(Debug, Args)]
pub(super) struct Check {
    /// Also connect to the upstream, set up TLS and log in; nothing is sent
    #[arg(long)]
    connect: bool,
    /// For programs
    #[arg(long)]
    json: bool,
}

/// How bad something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// The relay would not run, or not relay.
    Error,
    /// Worth a look.
    Warning,
}

/// Something that was found.
#[derive(Debug)]
struct Finding {
    level: Level,
    problem: Problem,
}

/// The whole of it, for programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    ok: bool,
    errors: usize,
    warnings: usize,
    problems: Vec<Told<'a>>,
    /// With `--connect`: what came of each step.
    upstreams: Vec<Tried<'a>>,
}

/// A finding, for programs.
#[derive(Debug, Serialize)]
struct Told<'a> {
    level: Level,
    file: &'a str,
    line: Option<u32>,
    column: Option<u32>,
    message: &'a str,
    help: Option<&'a str>,
}

/// An upstream that was tried.
#[derive(Debug, Serialize)]
struct Tried<'a> {
    name: &'a str,
    steps: Vec<TriedStep<'a>>,
}

/// One step of it.
#[derive(Debug, Serialize)]
struct TriedStep<'a> {
    step: &'a str,
    ok: bool,
    detail: &'a str,
    help: Option<&'a str>,
}

impl Check {
    pub(super) fn run(self, place: &Place) -> Result<Exit, Failure> {
        let (loaded, mut findings) = match place.read() {
            Ok(loaded) => {
                let warnings = loaded.warnings.iter().map(|problem| Finding::warning(problem.clone()));
                let findings = warnings.collect();
                (Some(loaded), findings)
            }
            Err(problems) => (None, problems.0.into_iter().map(Finding::error).collect::<Vec<_>>()),
        };
        if let Some(loaded) = &loaded {
            let runs = Client::find(place).is_ok_and(|client| client.is_served());
            findings.extend(machine::look(loaded, runs));
        }
        let errors = findings.iter().filter(|found| found.level == Level::Error).count();
        let tried = match &loaded {
            Some(loaded) if self.connect && errors == 0 => tried(&loaded.settings)?,
            _ => Vec::new(),
        };
        let end = match errors {
            0 => tried.iter().map(|(_, steps)| end_of(steps)).find(|end| *end != Exit::OK),
            _ => Some(Exit::CONFIG),
        };
        if self.json {
            tell_programs(&findings, &tried, end.is_none());
        } else {
            tell(loaded.as_ref(), &findings, &tried, errors);
        }
        Ok(end.unwrap_or(Exit::OK))
    }
}

impl Finding {
    fn error(problem: Problem) -> Self {
        Self { level: Level::Error, problem }
    }

    fn warning(problem: Problem) -> Self {
        Self { level: Level::Warning, problem }
    }

    /// `dotcloud.yml:5:22: warning: …`, as compilers write it.
    fn line(&self) -> String {
        let level = if self.level == Level::Warning { "warning: " } else { "" };
        let problem = &self.problem;
        Problem { message: format!("{level}{}", problem.message), ..problem.clone() }.to_string()
    }
}

/// Tells people: what is wrong on standard error, what is right on standard output.
fn tell(loaded: Option<&Loaded>, findings: &[Finding], tried: &[(&Upstream, Vec<Step>)], errors: usize) {
    for finding in findings {
        output::complain_as_is(&finding.line());
    }
    let warnings = findings.len() - errors;
    if errors > 0 {
        let and = if warnings > 0 {
            format!(", {}", people::count(warnings as u64, "warning"))
        } else {
            String::new()
        };
        output::complain(&format!("{}{and}", people::count(errors as u64, "error")));
        return;
    }
    if let Some(loaded) = loaded {
        let beside = if warnings > 0 {
            format!(" ({})", people::count(warnings as u64, "warning"))
        } else {
            String::new()
        };
        output::say(format!("ok{beside}: {}", summary(&loaded.settings)));
    }
    for (upstream, steps) in tried {
        if tried.len() > 1 {
            output::say(format!("{}:", upstream.name));
        }
        tell_steps(steps);
    }
}

fn tell_programs(findings: &[Finding], tried: &[(&Upstream, Vec<Step>)], ok: bool) {
    let count = |level| findings.iter().filter(|found| found.level == level).count();
    let told = findings.iter().map(|Finding { level, problem }| Told {
        level: *level,
        file: &problem.file,
        line: problem.line,
        column: problem.column,
        message: &problem.message,
        help: problem.help.as_deref(),
    });
    let upstreams = tried.iter().map(|(upstream, steps)| Tried {
        name: &upstream.name,
        steps: steps
            .iter()
            .map(|step| TriedStep {
                step: &step.what,
                ok: step.ok,
                detail: &step.detail,
                help: step.help.as_deref(),
            })
            .collect(),
    });
    output::json(&Report {
        ok,
        errors: count(Level::Error),
        warnings: count(Level::Warning),
        problems: told.collect(),
        upstreams: upstreams.collect(),
    });
}

/// Connects to each upstream.
fn tried(settings: &Settings) -> Result<Vec<(&Upstream, Vec<Step>)>, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Exit::UNAVAILABLE, error))?;
    let try_one = |upstream| (upstream, runtime.block_on(check::connect(upstream, &settings.hostname)));
    Ok(settings.upstreams.iter().map(try_one).collect())
}

/// Connects to each upstream and tells what came of it; the first that failed decides how to end.
pub(super) fn connect(settings: &Settings) -> Result<Exit, Failure> {
    let tried = tried(settings)?;
    tried.iter().for_each(|(_, steps)| tell_steps(steps));
    let ends = tried.iter().map(|(_, steps)| end_of(steps));
    Ok(ends.reduce(|first, next| if first == Exit::OK { next } else { first }).unwrap_or(Exit::OK))
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

/// Prints each step.
fn tell_steps(steps: &[Step]) {
    for step in steps {
        let sign = if step.ok { "ok" } else { "FAILED" };
        output::say(format!("{sign}: {}: {}", step.what, people::printable(&step.detail)));
        if let Some(help) = &step.help {
            output::say(format!("  help: {help}"));
        }
    }
}

/// The first step that failed decides how to end.
fn end_of(steps: &[Step]) -> Exit {
    match steps.iter().find(|step| !step.ok) {
        None => Exit::OK,
        Some(step) if step.credential => Exit::NOT_PERMITTED,
        Some(_) => Exit::UNAVAILABLE,
    }
}
