//! Secrets: given openly, from a file, or by systemd. Never repeated in a problem.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

use secrecy::SecretString;

use super::{
    keys::Key,
    reader::{Place, Reader},
    value,
};

/// A secret longer than this isn't one.
const MAX_SECRET: u64 = 64 * 1024;

impl Reader<'_> {
    /// A secret: given openly, from a file, or by systemd.
    pub(super) fn secret(&mut self, key: &Key) -> Option<SecretString> {
        let found = self.find(key)?;
        if found.in_file {
            let path = self.read(key, &found, &value::text)?;
            let path = self.resolve(&found.place, path);
            self.files.push(path.clone());
            return self.secret_file(found.place.clone(), &found.name, &path);
        }
        self.inline_secret |= matches!(found.place, Place::File(_));
        let text = self.text(key, &found)?;
        self.checked_secret(found.place, &found.name, text)
    }

    fn secret_file(&mut self, place: Place, name: &str, path: &Path) -> Option<SecretString> {
        // Anything but a regular file could make us wait, or never end.
        let read = || -> Result<(String, u32), String> {
            let meta = fs::metadata(path).map_err(|error| error.to_string())?;
            if !meta.is_file() || meta.len() > MAX_SECRET {
                return Err("it is no small regular file".to_owned());
            }
            let mut text = String::new();
            let file = File::open(path).map_err(|error| error.to_string())?;
            file.take(MAX_SECRET).read_to_string(&mut text).map_err(|error| error.to_string())?;
            Ok((text, meta.permissions().mode()))
        };
        let (text, mode) = match read() {
            Ok(read) => read,
            Err(error) => {
                // The path is not repeated: some write the password itself there.
                let message = format!("{name} can't be read: {error}");
                let help = "name a file that this user can read; a relative name starts at the dotcloud.yml's directory";
                self.report(place, message, Some(help));
                return None;
            }
        };
        // Container engines mount secrets readable for all, inside a container that is one user's.
        if mode & 0o004 != 0 && !path.starts_with("/run/secrets") {
            let message = format!("the file of {name} can be read by every user");
            self.warn(place.clone(), message, Some("chmod 600 it"));
        }
        let text = text.strip_suffix('\n').map_or(text.as_str(), |t| t.strip_suffix('\r').unwrap_or(t));
        self.checked_secret(place, name, text.to_owned())
    }

    fn checked_secret(&mut self, place: Place, name: &str, text: String) -> Option<SecretString> {
        let message = match text.as_str() {
            "" => format!("{name} is empty"),
            // None of them can be sent in AUTH or stand in the environment files.
            text if text.contains(['\r', '\n', '\0']) => {
                format!("{name} has more than one line, or a NUL")
            }
            _ => return Some(text.into()),
        };
        self.report(place, message, None);
        None
    }
}
