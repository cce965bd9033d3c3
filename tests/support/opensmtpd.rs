//! A private OpenSMTPD: TLS and logins are required, and what it takes it passes on to the scripted upstream.
//! It runs in a root of its own, with the libraries of its release.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::daemon::{self, Daemon};
use super::programs::{require, run};
use super::upstream::{self, Upstream};
use super::{ports, wait};

/// A running instance; ended when dropped.
pub struct OpenSmtpd {
    daemon: Daemon,
    dir: TempDir,
    /// Where STARTTLS is required.
    pub starttls: u16,
    /// Where TLS begins at once.
    pub smtps: u16,
}

impl OpenSmtpd {
    /// Starts one that knows one login, and passes mail on to `behind`, which wants this password.
    pub fn start(behind: &Upstream, password: &str, (user, sesame): (&str, &str)) -> Self {
        assert!(rustix::process::geteuid().is_root(), "OpenSMTPD wants to be started by root");
        let peers = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
        let unpacked = peers.join("opensmtpd/root");
        require(&unpacked.join("usr/sbin/smtpd"));
        let dir = daemon::home("opensmtpd");
        let root = dir.path().join("root");
        run(Command::new("cp").arg("-a").arg(&unpacked).arg(&root));
        for name in ["cert.pem", "key.pem"] {
            let copy = root.join("etc").join(name);
            fs::copy(dir.path().join(name), &copy).expect("a new file");
            fs::set_permissions(&copy, Permissions::from_mode(0o600)).expect("our own file");
        }
        // It doesn't start without.
        fs::copy(dir.path().join("ca.pem"), root.join("etc/ssl/certs/ca-certificates.crt"))
            .expect("a new file");
        let hash = run(Command::new("openssl").args(["passwd", "-6", sesame])).stdout;
        let hash = String::from_utf8_lossy(&hash);
        let (starttls, smtps) = (ports::free(), ports::free());
        for (name, text) in [
            ("users", format!("{user} {hash}")),
            ("onward", format!("onward {}:{password}\n", upstream::USER)),
            ("smtpd.conf", configuration(starttls, smtps, behind.port)),
        ] {
            fs::write(root.join("etc").join(name), text).expect("a new file");
        }
        let mut command = Command::new("chroot");
        command.arg(&root).args(["/usr/sbin/smtpd", "-d", "-v"]);
        let daemon = Daemon::start(dir.path(), &mut command, starttls);
        let opensmtpd = Self { daemon, dir, starttls, smtps };
        wait::until_true("OpenSMTPD is ready", || opensmtpd.output().contains("smtpd: setup done"));
        opensmtpd
    }

    /// Where its certificate and the authority of that lie.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What it said.
    pub fn output(&self) -> String {
        self.daemon.output()
    }

    /// How many messages it took.
    pub fn taken(&self) -> usize {
        self.output().matches(" smtp message msgid=").count()
    }
}

fn configuration(starttls: u16, smtps: u16, behind: u16) -> String {
    format!(
        "table users file:/etc/users
table onward file:/etc/onward
pki here cert \"/etc/cert.pem\"
pki here key \"/etc/key.pem\"
listen on 127.0.0.1 port {starttls} tls-require pki here auth <users> hostname opensmtpd.test
listen on 127.0.0.1 port {smtps} smtps pki here auth <users> hostname opensmtpd.test
action \"onward\" relay host smtp+tls://onward@127.0.0.1:{behind} auth <onward> tls no-verify
match auth from any for any action \"onward\"
"
    )
}
