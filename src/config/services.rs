//! Which service of the file we are.

use super::{
    Role,
    node::{At, Document, Entry, Id, Kind},
    problem::{Problem, Problems},
};

/// The service that was chosen.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) name: String,
    pub(super) role: Role,
    /// Where its name stands.
    pub(super) at: At,
    /// Its `config` map.
    pub(super) config: Option<Id>,
}

/// Chooses the service by name, or else the only one of `type: smtp`.
pub(super) fn choose(document: &Document, file: &str, name: Option<&str>) -> Result<Chosen, Problems> {
    let problem = |at: At, message: String, help: Option<String>| Problem {
        file: file.to_owned(),
        line: Some(at.line),
        column: Some(at.column),
        message,
        help,
    };
    let fail = |at, message: String, help| Err(Problems(vec![problem(at, message, help)]));

    let top = document.node(document.root()).at;
    let Some((services, again)) = document.entries(document.root()) else {
        let help = "the outermost level is a map of service names, such as `mailer:`";
        return fail(top, "this is no dotcloud.yml".to_owned(), Some(help.to_owned()));
    };
    let chosen = match name {
        Some(name) => match services.iter().find(|entry| entry.key == name) {
            Some(entry) => *entry,
            None => {
                return fail(top, format!("there is no service {name:?}"), list("services", &services));
            }
        },
        None => {
            let ours: Vec<_> = services.iter().filter(|s| is_smtp(document, s.value)).copied().collect();
            match ours.as_slice() {
                [only] => *only,
                [] => {
                    return fail(
                        top,
                        "no service here is of type: smtp".to_owned(),
                        Some(advice(document, &services)),
                    );
                }
                [_, second, ..] => {
                    let help = list("choose one with --service", &ours);
                    return fail(second.at, "more than one service is of type: smtp".to_owned(), help);
                }
            }
        }
    };

    let mut problems = Vec::new();
    for entry in again.iter().filter(|entry| entry.key == chosen.key) {
        let help = "keep one of them, or give them different names";
        problems.push(problem(entry.at, "this service stands here a second time".into(), Some(help.into())));
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-' || c == '.';
    if chosen.key.is_empty() || chosen.key.len() > 64 || !chosen.key.chars().all(legal) {
        let help = "use letters, digits and _";
        problems.push(problem(chosen.at, "this is no name for a service".into(), Some(help.into())));
    }
    let (members, again) = document.entries(chosen.value).unwrap_or_default();
    for entry in again.iter().filter(|entry| matches!(entry.key, "type" | "config")) {
        let help = Some("keep one of them".into());
        problems.push(problem(entry.at, format!("{} stands here a second time", entry.key), help));
    }
    for entry in members.iter().filter(|entry| entry.key.starts_with("smtp_")) {
        let help = Some("indent it below `config:`".into());
        problems.push(problem(entry.at, "settings of the service stand under its `config`".into(), help));
    }
    let config = members.iter().find(|entry| entry.key == "config");
    if let Some(config) = config
        && !matches!(document.node(config.value).kind, Kind::Map(_) | Kind::Null)
    {
        let found = document.node(config.value);
        let message = format!("config is a map of keys, but this is {}", found.kind.name());
        let help = Some("for example `smtp_relay_server: smtp.mailgun.org`, indented below".into());
        problems.push(problem(found.at, message, help));
    }
    if !matches!(document.node(chosen.value).kind, Kind::Map(_)) {
        let help = Some("it takes `type: smtp` and a `config` below".into());
        problems.push(problem(chosen.at, "this service is no map".into(), help));
    }
    if !problems.is_empty() {
        return Err(Problems::sorted(problems));
    }
    Ok(Chosen {
        name: chosen.key.to_owned(),
        role: if is_smtp(document, chosen.value) { Role::Relay } else { Role::LocalMta },
        at: chosen.at,
        config: config.map(|entry| entry.value),
    })
}

fn member<'a>(document: &'a Document, map: Id, key: &str) -> Option<&'a Kind> {
    let (members, _) = document.entries(map)?;
    members.iter().find(|entry| entry.key == key).map(|entry| &document.node(entry.value).kind)
}

fn is_smtp(document: &Document, service: Id) -> bool {
    matches!(member(document, service, "type"), Some(Kind::Scalar(kind)) if kind == "smtp")
}

fn has_smarthost(document: &Document, service: Id) -> bool {
    let Some((members, _)) = document.entries(service) else {
        return false;
    };
    members.iter().any(|e| e.key == "config" && member(document, e.value, "smtp_server").is_some())
}

fn advice(document: &Document, services: &[Entry<'_>]) -> String {
    let local: Vec<_> = services.iter().filter(|s| has_smarthost(document, s.value)).copied().collect();
    match list("a local MTA runs with --service", &local) {
        Some(list) => list,
        None => "add one: `mailer:` with `type: smtp` and a `config` that has smtp_relay_server".to_owned(),
    }
}

fn list(words: &str, services: &[Entry<'_>]) -> Option<String> {
    let plain =
        |name: &str| name.len() <= 64 && name.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    let names: Vec<&str> = services.iter().map(|s| s.key).filter(|name| plain(name)).take(20).collect();
    (!names.is_empty()).then(|| format!("{words}: {}", names.join(", ")))
}
