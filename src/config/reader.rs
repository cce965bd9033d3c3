//! Reads keys of one map, wherever they were set: environment variable, file, credential.
//!
//! A reader collects problems and goes on, so that all of them are reported at once; what it returns
//! for a faulty key is `None`, as for a missing one, and settings with problems are never used.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    Role,
    keys::Key,
    node::{At, Document, Entry, Id, Kind},
    problem::Problem,
    value::{self, Read, Wrong},
};

/// Looks up an environment variable.
pub(super) type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Who has this many problems has another one.
pub(super) const MAX_PROBLEMS: usize = 50;

/// Items of a list, logins: who has more wants a database.
pub(super) const MAX_ITEMS: usize = 10_000;

/// Where something was set.
#[derive(Clone, Debug)]
pub(super) enum Place {
    /// In the configuration file.
    File(At),
    /// `$SMTP_RELAY_PORT`, or a credential's path.
    Outside(String),
}

/// A key as it was found.
pub(super) struct Found {
    /// As written: `smtp_port`, `smtp_relay_password_file`.
    pub(super) name: String,
    pub(super) place: Place,
    pub(super) value: Value,
    /// Whether it names a file that holds the secret.
    pub(super) in_file: bool,
}

pub(super) enum Value {
    Text(String),
    Node(Id),
}

/// What all readers of one configuration have in common.
#[derive(Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) document: &'a Document,
    /// The file's name in problems.
    pub(super) file: &'a str,
    /// What relative paths in the file are relative to.
    pub(super) base: &'a Path,
    pub(super) env: Env<'a>,
    pub(super) role: Role,
}

/// A map's keys, and what is wrong with them.
pub(super) struct Reader<'a> {
    pub(super) around: Surroundings<'a>,
    pub(super) keys: &'static [Key],
    /// Where a missing key is missed.
    home: At,
    pub(super) entries: BTreeMap<&'a str, Entry<'a>>,
    pub(super) problems: Vec<Problem>,
    pub(super) warnings: Vec<Problem>,
    /// Whether a secret stands in the configuration file itself.
    pub(super) inline_secret: bool,
    /// The files that were named, there or not: a change in one of them is a change of the settings.
    pub(super) files: Vec<PathBuf>,
}

impl<'a> Reader<'a> {
    /// A reader of that map, or of nothing but the environment. `what` ends the sentence "X is not a
    /// key of …"; `ours` tells which names can be meant for us at all.
    pub(super) fn new(
        around: Surroundings<'a>,
        keys: &'static [Key],
        (home, map): (At, Option<Id>),
        what: &str,
        ours: fn(&str) -> bool,
    ) -> Self {
        let mut reader = Self {
            around,
            keys,
            home,
            entries: BTreeMap::new(),
            problems: Vec::new(),
            warnings: Vec::new(),
            inline_secret: false,
            files: Vec::new(),
        };
        let (entries, again) = map.and_then(|id| around.document.entries(id)).unwrap_or_default();
        for entry in again.iter().filter(|entry| ours(entry.key)) {
            let message = format!("{} stands here a second time", reader.shown(entry.key));
            reader.report(Place::File(entry.at), message, Some("keep one of them"));
        }
        reader.entries = entries.into_iter().filter(|e| ours(e.key)).map(|e| (e.key, e)).collect();
        reader.refuse_unknown(what);
        reader
    }

    /// A reader of a map inside this one; give it back to [`Reader::absorb`].
    pub(super) fn inside(&self, map: Id, keys: &'static [Key], what: &str) -> Self {
        let around = Surroundings { env: &|_| None, ..self.around };
        let home = around.document.node(map).at;
        Self::new(around, keys, (home, Some(map)), what, |_| true)
    }

    /// Takes over what an inner reader found.
    pub(super) fn absorb(&mut self, inner: Self) {
        self.problems.extend(inner.problems);
        self.problems.truncate(MAX_PROBLEMS);
        self.warnings.extend(inner.warnings);
        self.inline_secret |= inner.inline_secret;
        self.files.extend(inner.files);
    }

    /// Adds a problem.
    pub(super) fn report(&mut self, place: Place, message: impl Into<String>, help: Option<&str>) {
        let problem = self.problem(place, message.into(), help);
        if self.problems.len() < MAX_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Adds a hint.
    pub(super) fn warn(&mut self, place: Place, message: impl Into<String>, help: Option<&str>) {
        let problem = self.problem(place, message.into(), help);
        self.warnings.push(problem);
    }

    /// The place of a key, as an empty problem.
    pub(super) fn point(&self, key: &Key) -> Problem {
        self.problem(self.place(key), String::new(), None)
    }

    fn problem(&self, place: Place, message: String, help: Option<&str>) -> Problem {
        let (file, at) = match place {
            Place::File(at) => (self.around.file.to_owned(), Some(at)),
            Place::Outside(name) => (name, None),
        };
        let (line, column) = (at.map(|at| at.line), at.map(|at| at.column));
        Problem { file, line, column, message, help: help.map(str::to_owned) }
    }

    /// Where a key was set, or else where it could have been.
    pub(super) fn place(&self, key: &Key) -> Place {
        self.hits(key).into_iter().next().map_or(Place::File(self.home), |found| found.place)
    }

    /// Whether a key was set at all, rightly or not.
    pub(super) fn is_set(&self, key: &Key) -> bool {
        !self.hits(key).is_empty()
    }

    /// One value.
    pub(super) fn one<T>(&mut self, key: &Key, read: impl Fn(&str) -> Read<T>) -> Option<T> {
        let found = self.find(key)?;
        self.read(key, &found, &read)
    }

    /// One value or a list of them; in an environment variable, separated by commas.
    pub(super) fn many<T>(&mut self, key: &Key, read: impl Fn(&str) -> Read<T>) -> Option<Vec<T>> {
        let items = self.items(key)?;
        // To the end, for each item's problem, even after one has failed.
        let values: Vec<Option<T>> = items.iter().map(|item| self.read(key, item, &read)).collect();
        values.into_iter().collect()
    }

    /// The items of a key that may be a list, unread.
    pub(super) fn items(&mut self, key: &Key) -> Option<Vec<Found>> {
        let found = self.find(key)?;
        let item = |place: Place, value| Found { name: found.name.clone(), place, value, in_file: false };
        let items: Vec<Found> = match &found.value {
            Value::Text(text) => {
                let texts = text.split(',').map(str::trim).filter(|text| !text.is_empty());
                texts.map(|t| item(found.place.clone(), Value::Text(t.to_owned()))).collect()
            }
            Value::Node(id) => match &self.around.document.node(*id).kind {
                Kind::List(items) => {
                    items.iter().map(|&id| item(self.place_of(id), Value::Node(id))).collect()
                }
                _ => vec![item(found.place.clone(), Value::Node(*id))],
            },
        };
        let help = match items.len() {
            1..=MAX_ITEMS => return Some(items),
            0 => "the list is empty: remove the key, or fill it".to_owned(),
            _ => format!("the list is longer than {MAX_ITEMS}"),
        };
        self.complain(key, &found, Wrong::Help(help));
        None
    }

    /// A path; in the file, relative to the file's directory.
    pub(super) fn path(&mut self, key: &Key) -> Option<PathBuf> {
        let place = self.place(key);
        let path = self.one(key, value::text).map(|path| self.resolve(&place, path));
        self.files.extend(path.clone());
        path
    }

    /// Makes a path absolute as far as the place where it stands tells.
    pub(super) fn resolve(&self, place: &Place, path: String) -> PathBuf {
        match place {
            Place::File(_) => self.around.base.join(path),
            Place::Outside(_) => PathBuf::from(path),
        }
    }

    /// A key, wherever it was set; set in two ways, it is a problem.
    pub(super) fn find(&mut self, key: &Key) -> Option<Found> {
        let mut hits = self.hits(key).into_iter();
        let first = hits.next()?;
        for other in hits {
            let message = format!("{} is set beside {}, and both mean the same", other.name, first.name);
            self.report(other.place, message, Some("keep one of them"));
        }
        Some(first)
    }

    /// What a key is called in this map.
    pub(super) fn name(&self, key: &Key) -> &'static str {
        self.own(key).name(self.around.role)
    }

    /// The key as this map's table has it; a map inside another has some of its keys under shorter names.
    fn own<'k>(&self, key: &'k Key) -> &'k Key
    where
        'static: 'k,
    {
        self.keys.iter().find(|own| own.name == key.name).unwrap_or(key)
    }

    /// Where a key was set, at the strongest level that has it: variable, file, credential.
    fn hits(&self, key: &Key) -> Vec<Found> {
        let names = self.own(key).names(self.around.role);
        let names: Vec<(String, bool)> = names
            .flat_map(|name| {
                [Some((name.to_owned(), false)), key.secret.then(|| (format!("{name}_file"), true))]
            })
            .flatten()
            .collect();
        let found =
            |name: &str, place, value, in_file| Found { name: name.to_owned(), place, value, in_file };

        let variables = names.iter().filter_map(|(name, in_file)| {
            let variable = name.to_ascii_uppercase();
            // Container files often pass a variable on that nobody set.
            let text = (self.around.env)(&variable).filter(|text| !text.is_empty())?;
            Some(found(name, Place::Outside(format!("${variable}")), Value::Text(text), *in_file))
        });
        let hits: Vec<_> = variables.collect();
        if !hits.is_empty() {
            return hits;
        }
        let entries = names.iter().filter_map(|(name, in_file)| {
            let entry = self.entries.get(name.as_str())?;
            Some(found(name, self.place_of(entry.value), Value::Node(entry.value), *in_file))
        });
        let hits: Vec<_> = entries.collect();
        if !hits.is_empty() || !key.secret {
            return hits;
        }
        // systemd shows them to the service alone; to root's commands they are where its unit has them from.
        let (directory, prefix) = match (self.around.env)("CREDENTIALS_DIRECTORY") {
            Some(directory) => (PathBuf::from(directory), ""),
            None => (self.around.base.join("credentials"), "smtp_"),
        };
        let credentials = names.iter().filter(|(_, in_file)| !in_file).filter_map(|(name, _)| {
            let path = directory.join(name.strip_prefix(prefix)?);
            let text = path.to_str().filter(|_| path.exists())?.to_owned();
            Some(found(name, Place::Outside(text.clone()), Value::Text(text), true))
        });
        credentials.take(1).collect()
    }

    fn place_of(&self, id: Id) -> Place {
        Place::File(self.around.document.node(id).at)
    }

    /// Reads what was found, or says what is wrong with it.
    pub(super) fn read<T>(&mut self, key: &Key, found: &Found, read: &impl Fn(&str) -> Read<T>) -> Option<T> {
        let text = self.text(key, found)?;
        let result = match text.contains(char::is_control) {
            true => Err(Wrong::Help("it holds a line break or another control character".into())),
            false => read(&text),
        };
        result.map_err(|wrong| self.complain(key, found, wrong)).ok()
    }

    /// The text of what was found, if it is text at all.
    pub(super) fn text(&mut self, key: &Key, found: &Found) -> Option<String> {
        let kind = match &found.value {
            Value::Text(text) => return Some(text.clone()),
            Value::Node(id) => &self.around.document.node(*id).kind,
        };
        let message = match kind {
            Kind::Scalar(text) => return Some(text.clone()),
            Kind::Null => format!("{} has no value", found.name),
            other => format!("{} wants {}, but this is {}", found.name, key.wants, other.name()),
        };
        let help = match kind {
            Kind::Null => {
                "give it one, or remove the line; a value of special characters needs 'quotes'".to_owned()
            }
            Kind::Tagged => "a value that begins with ! must stand in 'single quotes'".to_owned(),
            _ => example(key, found),
        };
        self.report(found.place.clone(), message, Some(&help));
        None
    }

    /// Says why what was found isn't what the key wants.
    pub(super) fn complain(&mut self, key: &Key, found: &Found, wrong: Wrong) {
        let wants = format!("{} wants {}", found.name, key.wants);
        let (message, help) = match wrong {
            Wrong::Plain => (wants, Some(example(key, found))),
            Wrong::Help(help) => (wants, Some(help)),
            Wrong::Later(what) => (format!("{what} is not available in this version yet"), None),
        };
        self.report(found.place.clone(), message, help.as_deref());
    }
}

fn example(key: &Key, found: &Found) -> String {
    match found.place {
        Place::File(_) => format!("for example `{}: {}`", found.name, key.example),
        Place::Outside(_) => format!("for example `{}`", key.example),
    }
}
