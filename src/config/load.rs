//! The way in: finds the file, reads it once, and has the whole of it judged.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    Role, Settings, hints,
    keys::KEYS,
    node::Document,
    problem::{Problem, Problems},
    reader::{Env, Reader, Surroundings},
    services, settings,
};

/// A dotcloud.yml larger than this isn't one.
const MAX_FILE: u64 = 1 << 20;
const TOO_LARGE: &str = "it is larger than 1 MiB, and so no dotcloud.yml";
const FILES: [&str; 2] = ["dotcloud.yml", "/etc/outpost/dotcloud.yml"];
const DATA: &str = "/var/lib/outpost";

/// What the command line says about where settings come from.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// `-f`.
    pub file: Option<PathBuf>,
    /// `--service`.
    pub service: Option<String>,
    /// `--data`.
    pub data: Option<PathBuf>,
}

/// Settings, and what came up on the way.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What to run by.
    pub settings: Settings,
    /// Hints that keep nobody from running.
    pub warnings: Vec<Problem>,
    /// The file that was read; `None`: everything came from environment variables.
    pub file: Option<PathBuf>,
    /// Where each key stands.
    pub places: Places,
}

/// Where each key stands, for what only shows once the settings meet the machine.
#[derive(Clone, Debug)]
pub struct Places(BTreeMap<&'static str, Problem>);

impl Places {
    /// Says something about a key, at the place where it was set, or where it is missed.
    pub fn problem(&self, key: &str, message: impl Into<String>, help: impl Into<String>) -> Problem {
        let nowhere = || Problem::of_file("dotcloud.yml", "", None);
        let place = self.0.get(key).cloned().unwrap_or_else(nowhere);
        Problem { message: message.into(), help: Some(help.into()), ..place }
    }
}

/// Reads the file that `source`, `OUTPOST_CONFIG` or custom names, and the environment variables.
///
/// Without any file, a set `SMTP_RELAY_SERVER` is enough: a service `mailer` of `type: smtp` is then
/// read from variables alone.
///
/// # Errors
/// Every problem that was found, in the file's order.
pub fn load(source: &Source, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Problems> {
    load_with_files(source, env).1
}

/// The same, with the files that the settings come from, also where they are not there or wrong: a change in one of
/// them is a reason to load again.
pub fn load_with_files(
    source: &Source,
    env: &dyn Fn(&str) -> Option<String>,
) -> (Vec<PathBuf>, Result<Loaded, Problems>) {
    let mut files = Vec::new();
    let loaded = load_noting(source, env, &mut files);
    files.sort();
    files.dedup();
    (files, loaded)
}

fn load_noting(source: &Source, env: Env<'_>, files: &mut Vec<PathBuf>) -> Result<Loaded, Problems> {
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    let named = source.file.clone().or_else(|| set("OUTPOST_CONFIG").map(PathBuf::from));
    let usual = || FILES.iter().map(PathBuf::from).find(|path| path.exists());
    let Some(path) = named.or_else(usual) else {
        if set("SMTP_RELAY_SERVER").is_some() || set("SMTP_RELAY_SERVER_FILE").is_some() {
            let name = source.service.as_deref().unwrap_or("mailer");
            // A JSON string is a YAML string.
            let text = format!("{}: {{type: smtp}}", serde_json::Value::from(name));
            return judge(&text, "environment", source, env, files).map(|(loaded, _)| loaded);
        }
        let message = format!("no file here, nor {}", FILES[1]);
        let help = "name one by -f or OUTPOST_CONFIG, or set SMTP_RELAY_SERVER in the environment";
        return Err(Problems::of_file(FILES[0], message, Some(help)));
    };
    files.push(path.clone());
    let name = path.display().to_string();
    let (text, mode) = read(&path).map_err(|(message, help)| Problems::of_file(&name, message, help))?;
    let (mut loaded, inline_secret) = judge(&text, &name, source, env, files)?;
    if inline_secret && mode & 0o044 != 0 {
        let message = "the file holds a password, and other users of this system can read it";
        let help =
            Some("chmod 600 it, or keep the password in a file of its own: `smtp_relay_password_file`");
        loaded.warnings.extend(Problems::of_file(&name, message, help).0);
    }
    Ok(Loaded { file: Some(path), ..loaded })
}

/// Judges a text that was read from `file_name`. Reads no file but those of secrets.
///
/// # Errors
/// As [`load`].
pub fn parse(
    text: &str,
    file_name: &str,
    source: &Source,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Loaded, Problems> {
    judge(text, file_name, source, env, &mut Vec::new()).map(|(loaded, _)| loaded)
}

fn judge(
    text: &str,
    file: &str,
    source: &Source,
    env: Env<'_>,
    files: &mut Vec<PathBuf>,
) -> Result<(Loaded, bool), Problems> {
    refuse_strange(text, file)?;
    let document = Document::parse(text).map_err(|error| {
        let (line, column) = (Some(error.at.line), Some(error.at.column));
        let help = error.help.map(str::to_owned);
        Problems(vec![Problem { file: file.to_owned(), line, column, message: error.message, help }])
    })?;
    let chosen = services::choose(&document, file, source.service.as_deref())?;
    let base = Path::new(file).parent().unwrap_or(Path::new(""));
    let around = Surroundings { document: &document, file, base, env, role: chosen.role };
    // Other services keep settings of their own software in the same map.
    let (what, ours): (_, fn(&str) -> bool) = match chosen.role {
        Role::Relay => ("a type: smtp service", |_| true),
        Role::LocalMta => ("a service's local MTA", |name| name.starts_with("smtp_")),
    };
    let mut reader = Reader::new(around, KEYS, (chosen.at, chosen.config), what, ours);
    let settings = settings::settings(&mut reader, &chosen, &data_directory(source, base, env));
    files.append(&mut reader.files);
    hints::of_all(&mut reader, &settings);
    if !reader.problems.is_empty() {
        return Err(Problems::sorted(reader.problems));
    }
    let places = Places(KEYS.iter().map(|key| (key.name, reader.point(key))).collect());
    let warnings = Problems::sorted(std::mem::take(&mut reader.warnings)).0;
    Ok((Loaded { settings, warnings, file: None, places }, reader.inline_secret))
}

/// `--data`, `OUTPOST_DATA`, the system's place for it if it is ours, else beside the file.
fn data_directory(source: &Source, base: &Path, env: Env<'_>) -> PathBuf {
    let named = || env("OUTPOST_DATA").filter(|path| !path.is_empty()).map(PathBuf::from);
    let system = || rustix::fs::access(DATA, rustix::fs::Access::WRITE_OK).ok().map(|()| PathBuf::from(DATA));
    source.data.clone().or_else(named).or_else(system).unwrap_or_else(|| base.join("outpost-data"))
}

type Unreadable = (String, Option<&'static str>);

fn read(path: &Path) -> Result<(String, u32), Unreadable> {
    let unreadable = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => ("there is no such file".to_owned(), Some("name one by -f")),
        io::ErrorKind::IsADirectory => {
            ("this is a directory".to_owned(), Some("name the file in it: dotcloud.yml"))
        }
        _ => (format!("it can't be read: {error}"), None),
    };
    let mode = fs::metadata(path).map_err(unreadable)?.permissions().mode();
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err((TOO_LARGE.to_owned(), None));
    }
    let text = String::from_utf8(bytes).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let line = before.iter().filter(|&&c| c == b'\n').count() + 1;
        (format!("line {line} isn't UTF-8"), Some("save it as UTF-8"))
    })?;
    Ok((text, mode))
}

/// What no configuration holds, before any parser sees it.
fn refuse_strange(text: &str, file: &str) -> Result<(), Problems> {
    if text.len() as u64 > MAX_FILE {
        return Err(Problems::of_file(file, TOO_LARGE, None));
    }
    let strange = |c: char| c.is_control() && !matches!(c, '\t' | '\n' | '\r' | '\u{85}');
    if let Some(at) = text.find(strange) {
        let line_start = text[..at].rfind('\n').map_or(0, |at| at + 1);
        let number = |n: usize| u32::try_from(n + 1).ok();
        return Err(Problems(vec![Problem {
            file: file.to_owned(),
            line: number(text[..at].matches('\n').count()),
            column: number(text[line_start..at].chars().count()),
            message: "a control character stands here".to_owned(),
            help: Some("remove it".to_owned()),
        }]));
    }
    Ok(())
}
