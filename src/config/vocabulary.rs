//! Keys that aren't known: named where they stand, with the nearest one that is.

use super::reader::{MAX_PROBLEMS, Place, Reader};

/// A name longer than this isn't a mistyped key.
const MAX_NAME: usize = 64;

impl Reader<'_> {
    /// Mistyped keys, which would be ignored: whoever sets one counts on it. `what` is whose keys they are.
    pub(super) fn refuse_unknown(&mut self, what: &str) {
        let role = self.around.role;
        let known = self.keys.iter().flat_map(|key| {
            let files = key.names(role).filter(|_| key.secret).map(|name| format!("{name}_file"));
            key.names(role).map(str::to_owned).chain(files)
        });
        let known: Vec<String> = known.collect();
        let unknown = self.entries.values().filter(|entry| !known.iter().any(|name| name == entry.key));
        for entry in unknown.copied().take(MAX_PROBLEMS).collect::<Vec<_>>() {
            // The keys of a local MTA, in the wrong place, mean ours.
            let twin =
                self.keys.iter().find(|key| key.local == Some(entry.key)).map(|key| key.name.to_owned());
            let near = |name: &str| strsim::normalized_damerau_levenshtein(name, entry.key);
            let nearest = || match entry.key.len() {
                ..=MAX_NAME => known.iter().max_by(|a, b| near(a).total_cmp(&near(b))).cloned(),
                _ => None,
            };
            let help = twin.or_else(nearest).map(|name| format!("did you mean {name}?"));
            let message = format!("{} is not a key of {what}", self.shown(entry.key));
            self.report(Place::File(entry.at), message, help.as_deref());
        }
    }

    /// A key as it may be repeated: a password with its colon forgotten reads as a key as well.
    pub(super) fn shown<'k>(&self, name: &'k str) -> &'k str {
        let plain = |c: u8| c.is_ascii_lowercase() || c == b'_';
        let near = |key: &str| strsim::normalized_damerau_levenshtein(key, name) > 0.6;
        let meant = || name.starts_with("smtp_") || self.keys.iter().any(|key| near(key.name));
        let harmless = name.len() <= MAX_NAME && name.bytes().all(plain) && meant();
        if harmless { name } else { "this" }
    }
}
