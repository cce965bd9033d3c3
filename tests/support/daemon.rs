//! A private server of somebody else's, in the foreground, with a directory of its own; ended with all its children by its pid.

use std::fs::{self, Permissions};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};
use tempfile::TempDir;

use super::certs::Authority;
use super::wait;

/// A directory that a server's own user can read, with a certificate for localhost in it.
pub fn home(name: &str) -> TempDir {
    let dir = tempfile::Builder::new()
        .prefix(&format!("outpost-{name}-"))
        .permissions(Permissions::from_mode(0o755))
        .tempdir_in("/var/tmp")
        .expect("a directory for a server");
    let authority = Authority::new("test CA of a private server");
    let identity = authority.identity(&["localhost", "127.0.0.1"]);
    authority.write_to(&dir.path().join("ca.pem"));
    for (file, pem) in [("cert.pem", &identity.cert_pem), ("key.pem", &identity.key_pem)] {
        fs::write(dir.path().join(file), pem).expect("a new file");
    }
    dir
}

/// A running server.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts it in a process group of its own, and waits until it listens.
    pub fn start(dir: &Path, command: &mut Command, port: u16) -> Self {
        let log = dir.join("output");
        let output = fs::File::create(&log).expect("a new file");
        let child = command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(output.try_clone().expect("one more descriptor"))
            .stderr(output)
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error} (tests/install-peers installs it)"));
        let daemon = Self { child, log };
        wait::until(&format!("{command:?} listens"), || TcpStream::connect(("127.0.0.1", port)).ok());
        daemon
    }

    /// What it said.
    pub fn output(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process_group(group, Signal::TERM);
            let _ = wait::ended(&mut self.child) || kill_process_group(group, Signal::KILL).is_ok();
        }
        let _ = self.child.wait();
    }
}
