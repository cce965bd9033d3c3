//! Passwords of apps that were replaced and still work for a while (`smtp_password_grace`).
//!
//! The present ones are kept beside them, so that a password that was changed while the relay was stopped is known to
//! have been another. In clear, as CRAM-MD5 and SCRAM need them; in a file that is the relay's alone, and only while
//! there is a grace.

use std::{collections::BTreeMap, fs, io, path::PathBuf, time::Duration};

use secrecy::{ExposeSecret as _, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{clock::Timestamp, limits::kept::Kept};

/// Old passwords of one login; who changes it more often loses the oldest.
const OLD_MAX: usize = 3;

/// What is known of each login's passwords.
#[derive(Debug)]
pub(super) struct Passwords {
    path: PathBuf,
    logins: BTreeMap<String, Login>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Login {
    #[serde(serialize_with = "exposed", deserialize_with = "hidden")]
    password: SecretString,
    /// The latest first.
    #[serde(default)]
    old: Vec<Old>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Old {
    #[serde(serialize_with = "exposed", deserialize_with = "hidden")]
    password: SecretString,
    until: Timestamp,
}

/// For the one file that keeps them.
fn exposed<S: Serializer>(secret: &SecretString, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(secret.expose_secret())
}

fn hidden<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SecretString, D::Error> {
    String::deserialize(deserializer).map(SecretString::from)
}

impl Passwords {
    /// What was kept in this file.
    pub(super) fn kept_at(path: PathBuf) -> Self {
        let logins = Kept::at(path.clone()).read();
        Self { path, logins }
    }

    /// Goes by these passwords from now on. One that takes the place of another leaves it `grace`; without a grace no
    /// old one works any more. A login that is gone is gone at once.
    pub(super) fn change(
        &mut self,
        grace: Option<Duration>,
        present: &[(String, SecretString)],
        now: Timestamp,
    ) {
        let mut before = std::mem::take(&mut self.logins);
        // A clock that was set back must not make an old password last.
        let latest = grace.map_or(Timestamp(0), |grace| now.after(grace));
        for (name, password) in present {
            let is = |other: &SecretString| other.expose_secret() == password.expose_secret();
            let mut old = Vec::new();
            if let Some(known) = before.remove(name) {
                old = known.old;
                if !is(&known.password) {
                    if grace.is_some() {
                        tracing::info!(user = name, until = %latest, "a new password; the old one still works");
                    }
                    old.insert(0, Old { password: known.password, until: latest });
                }
            }
            for old in &mut old {
                old.until = old.until.min(latest);
            }
            old.retain(|old| old.until > now && !is(&old.password));
            old.truncate(OLD_MAX);
            self.logins.insert(name.clone(), Login { password: password.clone(), old });
        }
        match grace {
            Some(_) => Kept::at(self.path.clone()).write(&self.logins),
            None => self.forget(),
        }
    }

    fn forget(&self) {
        match fs::remove_file(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(path = %self.path.display(), %error, "old passwords can't be removed");
            }
            _ => {}
        }
    }

    /// Old passwords that still work, each with its login.
    pub(super) fn old(&self) -> Vec<(String, SecretString)> {
        let of = |(name, login): (&String, &Login)| {
            let name = name.clone();
            login.old.clone().into_iter().map(move |old| (name.clone(), old.password))
        };
        self.logins.iter().flat_map(of).collect()
    }

    /// When the next of them ends.
    pub(super) fn next_end(&self) -> Option<Timestamp> {
        self.logins.values().flat_map(|login| &login.old).map(|old| old.until).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRACE: Option<Duration> = Some(Duration::from_secs(60));

    fn logins(pairs: &[(&str, &str)]) -> Vec<(String, SecretString)> {
        pairs.iter().map(|(name, password)| ((*name).to_owned(), SecretString::from(*password))).collect()
    }

    fn old(passwords: &Passwords) -> Vec<(String, String)> {
        let shown = |(name, password): (String, SecretString)| (name, password.expose_secret().to_owned());
        passwords.old().into_iter().map(shown).collect()
    }

    #[test]
    fn old_passwords_work_for_the_grace_and_over_restarts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords.json");
        let open = || Passwords::kept_at(path.clone());
        let mut passwords = open();
        passwords.change(GRACE, &logins(&[("shop", "one"), ("blog", "b")]), Timestamp(0));
        assert!(old(&passwords).is_empty() && passwords.next_end().is_none());
        passwords.change(GRACE, &logins(&[("shop", "two"), ("blog", "b")]), Timestamp(1_000));
        assert_eq!(old(&passwords), [("shop".to_owned(), "one".to_owned())]);
        assert_eq!(passwords.next_end(), Some(Timestamp(61_000)));

        // A restart, and a change while it was stopped.
        let mut passwords = open();
        passwords.change(GRACE, &logins(&[("shop", "three"), ("blog", "b")]), Timestamp(2_000));
        assert_eq!(old(&passwords).iter().map(|(_, old)| old.as_str()).collect::<Vec<_>>(), ["two", "one"]);
        // Back to one of them: it is the present one.
        passwords.change(GRACE, &logins(&[("shop", "one"), ("blog", "b")]), Timestamp(3_000));
        assert_eq!(old(&passwords).iter().map(|(_, old)| old.as_str()).collect::<Vec<_>>(), ["three", "two"]);
        passwords.change(GRACE, &logins(&[("shop", "one")]), Timestamp(62_500));
        assert_eq!(old(&passwords).len(), 1, "each for its own time");
        passwords.change(GRACE, &logins(&[("shop", "one")]), Timestamp(70_000));
        assert!(old(&passwords).is_empty());
    }

    #[test]
    fn without_a_grace_nothing_old_works_and_nothing_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("passwords.json");
        let mut passwords = Passwords::kept_at(path.clone());
        passwords.change(GRACE, &logins(&[("shop", "one")]), Timestamp(0));
        passwords.change(GRACE, &logins(&[("shop", "two")]), Timestamp(1));
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        passwords.change(None, &logins(&[("shop", "two")]), Timestamp(2));
        assert!(old(&passwords).is_empty() && !path.exists());
        // Set together with a change, it holds for that change.
        passwords.change(GRACE, &logins(&[("shop", "three")]), Timestamp(3));
        assert_eq!(old(&passwords).len(), 1);
        let debugged = format!("{passwords:?}");
        assert!(!debugged.contains("three") && !debugged.contains("two"), "{debugged}");
        passwords.change(GRACE, &logins(&[("blog", "b")]), Timestamp(4));
        assert!(old(&passwords).is_empty(), "a login that is gone is gone");
        // A shorter grace, or a clock set back.
        passwords.change(GRACE, &logins(&[("blog", "c")]), Timestamp(1_000_000));
        passwords.change(Some(Duration::from_secs(1)), &logins(&[("blog", "c")]), Timestamp(0));
        assert_eq!(passwords.next_end(), Some(Timestamp(1_000)));
    }
}
