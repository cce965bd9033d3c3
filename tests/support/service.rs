//! A dotcloud.yml for tests: its services, and the directory it lies in.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempDir;

use super::ports;

/// One service of a dotcloud.yml, with the listener's and the admin page's ports already chosen.
#[derive(Clone)]
pub struct Service {
    pub name: String,
    kind: String,
    keys: Vec<(String, String)>,
    pub smtp: u16,
    pub admin: u16,
}

impl Service {
    /// A service of this type that listens on loopback and tries again after a second or two.
    pub fn new(name: &str, kind: &str) -> Self {
        let (smtp, admin) = (ports::free(), ports::free());
        let service = Self { name: name.to_owned(), kind: kind.to_owned(), keys: Vec::new(), smtp, admin };
        service
            .set("smtp_listen", format!("127.0.0.1:{smtp}"))
            .set("smtp_admin_listen", format!("127.0.0.1:{admin}"))
            .set("smtp_hostname", "relay.test")
            .set("smtp_retry", "1s..2s")
    }

    /// The usual one: `mailer`, of `type: smtp`.
    pub fn mailer() -> Self {
        Self::new("mailer", "smtp")
    }

    /// Sets a key of its `config` map, or sets it anew; `value` is YAML as it stands.
    pub fn set(self, key: &str, value: impl ToString) -> Self {
        let mut service = self.without(key);
        service.keys.push((key.to_owned(), value.to_string()));
        service
    }

    /// Takes a key out.
    pub fn without(mut self, key: &str) -> Self {
        self.keys.retain(|(name, _)| name != key);
        self
    }
}

/// A directory on a real disk, with a dotcloud.yml for the services in it.
pub struct Home {
    dir: TempDir,
}

impl Home {
    /// Writes the file; a foreign service stands in it, as it would in a real one.
    pub fn new(services: &[&Service]) -> Arc<Self> {
        let dir = tempfile::Builder::new()
            .prefix("relay-")
            .tempdir_in(env!("CARGO_TARGET_TMPDIR"))
            .expect("a directory for the relay");
        let home = Self { dir };
        home.write(services);
        Arc::new(home)
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path inside.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes the dotcloud.yml again.
    pub fn write(&self, services: &[&Service]) {
        let mut yml = String::from("db:\n  type: mysql\n");
        for service in services {
            yml.push_str(&format!("{}:\n  type: {}\n  config:\n", service.name, service.kind));
            for (key, value) in &service.keys {
                yml.push_str(&format!("    {key}: {value}\n"));
            }
        }
        fs::write(self.path("dotcloud.yml"), yml).expect("dotcloud.yml can be written");
    }
}
