//! A private Postfix. As the upstream it has STARTTLS with a certificate of a test CA, AUTH by Cyrus SASL,
//! and Maildirs; as a client it passes all on. Its configuration, spool and ports are its own; the
//! machine's mail is not touched.

use std::fs::{self, Permissions};
use std::io::Read as _;
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process, kill_process_group, test_kill_process};
use tempfile::TempDir;

use super::certs::Authority;
use super::programs::{require, run};
use super::service::Service;
use super::{ports, wait};

/// The login that this Postfix knows.
pub const USER: &str = "relay";
/// Its password.
pub const PASSWORD: &str = "postfix-sesame-5021";
/// The one recipient that it refuses for good.
pub const REFUSED: &str = "refused@example.test";
/// The words it refuses it with.
pub const REFUSAL: &str = "no such mailbox here, says the test";

/// What a daemon may take for the mail in its hands.
const STOP_WITHIN: Duration = Duration::from_secs(5);
const REALM: &str = "upstream.test";
const PROGRAM: &str = "/usr/sbin/postfix";
const DAEMONS: &str = "/usr/lib/postfix/sbin";

/// A running instance; stopped when dropped.
pub struct Postfix {
    dir: TempDir,
    pub port: u16,
}

impl Postfix {
    /// Starts one that has Maildirs for these users of example.test.
    pub fn start(users: &[&str]) -> Self {
        Self::start_with(users, |dir| {
            format!(
                "mynetworks =
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions =
    check_recipient_access texthash:{}/refusals, permit_sasl_authenticated, reject
virtual_mailbox_domains = example.test
default_transport = error:nothing leaves this Postfix
",
                dir.display()
            )
        })
    }

    /// Starts one that takes mail from loopback and passes all of it on to a port of localhost.
    /// `more` is given its directory, and adds to main.cf.
    pub fn start_as_client_of(port: u16, more: impl FnOnce(&Path) -> String) -> Self {
        Self::start_with(&[], |dir| {
            format!(
                "mynetworks = 127.0.0.1
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_recipient_restrictions =
virtual_mailbox_domains =
default_transport = smtp:[localhost]:{port}
smtp_host_lookup = native
# Longer lines than RFC 5321 has pass whole.
smtp_line_length_limit = 0
{}",
                more(dir)
            )
        })
    }

    fn start_with(users: &[&str], more: impl FnOnce(&Path) -> String) -> Self {
        require(Path::new(PROGRAM));
        assert!(rustix::process::geteuid().is_root(), "Postfix wants to be started by root");
        // Not under target: Postfix's own user must be able to get there, and a home may be closed.
        let dir = tempfile::Builder::new()
            .prefix("outpost-postfix-")
            .permissions(Permissions::from_mode(0o755))
            .tempdir_in("/var/tmp")
            .expect("a directory for Postfix");
        let postfix = Self { dir, port: ports::free() };
        postfix.write_certificate();
        postfix.write_logins();
        postfix.write_mailboxes(users);
        postfix.write_configuration(&more(postfix.dir.path()));
        run(Command::new(PROGRAM).arg("-c").arg(postfix.path("etc")).arg("start"));
        // Its master listens before a process that greets can be started.
        let end = Instant::now() + wait::DEADLINE;
        while !postfix.greets() {
            assert!(Instant::now() < end, "Postfix does not greet; its log:\n{}", postfix.log());
            sleep(Duration::from_millis(20));
        }
        postfix
    }

    fn greets(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut code = [0; 3];
        let read = stream.set_read_timeout(Some(Duration::from_secs(10)));
        read.and_then(|()| stream.read_exact(&mut code)).is_ok() && code == *b"220"
    }

    /// The CA that signed its certificate, which names localhost and 127.0.0.1.
    pub fn ca_file(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The relay's keys for this upstream.
    pub fn upstream_of(&self, service: Service) -> Service {
        service
            .set("smtp_relay_server", "localhost")
            .set("smtp_relay_port", self.port)
            .set("smtp_relay_username", USER)
            .set("smtp_relay_password", PASSWORD)
            .set("smtp_relay_tls_ca", self.ca_file().display())
    }

    /// What lies in a user's Maildir by now, as Postfix wrote it (LF line ends).
    pub fn mailbox(&self, user: &str) -> Vec<Vec<u8>> {
        let new = self.path("mail").join(user).join("new");
        let Ok(entries) = fs::read_dir(new) else {
            return Vec::new();
        };
        entries.map(|entry| fs::read(entry.expect("a Maildir's entry").path()).expect("a mail")).collect()
    }

    /// Waits for a user's first mail.
    pub fn first_mail(&self, user: &str) -> Vec<u8> {
        wait::until(&format!("mail for {user}; Postfix's log:\n{}", self.log()), || self.mailbox(user).pop())
    }

    /// Postfix's log.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path("maillog")).unwrap_or_default()
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("Postfix's directory can be written");
    }

    fn write_certificate(&self) {
        let authority = Authority::new("test CA of a private Postfix");
        let identity = authority.identity(&["localhost", "127.0.0.1"]);
        authority.write_to(&self.ca_file());
        self.write("server.pem", &format!("{}{}", identity.key_pem, identity.cert_pem));
    }

    fn write_logins(&self) {
        // Debian's Postfix looks beside its main.cf, whatever cyrus_sasl_config_path says.
        fs::create_dir_all(self.path("etc/sasl")).expect("a new directory");
        let database = self.path("etc/sasl/sasldb2");
        self.write(
            "etc/sasl/smtpd.conf",
            &format!(
                "pwcheck_method: auxprop\nauxprop_plugin: sasldb\nsasldb_path: {}\n\
                 mech_list: PLAIN LOGIN CRAM-MD5 SCRAM-SHA-256\n",
                database.display()
            ),
        );
        self.write("password", PASSWORD);
        let saslpasswd2 = require(Path::new("/usr/sbin/saslpasswd2"));
        run(Command::new(saslpasswd2)
            .args(["-p", "-c", "-u", REALM, "-f"])
            .arg(&database)
            .arg(USER)
            .stdin(fs::File::open(self.path("password")).expect("just written")));
        // smtpd reads it when it has given up root already.
        fs::set_permissions(&database, Permissions::from_mode(0o644)).expect("our own file");
    }

    fn write_mailboxes(&self, users: &[&str]) {
        fs::create_dir(self.path("mail")).expect("a new directory");
        chown(self.path("mail"), Some(id_of("-u", "nobody")), Some(id_of("-g", "nobody")))
            .expect("root may give files away");
        let lines: String = users.iter().map(|user| format!("{user}@example.test {user}/\n")).collect();
        self.write("mailboxes", &lines);
        self.write("refusals", &format!("{REFUSED} 550 5.1.1 {REFUSAL}\n"));
    }

    /// No setting stands here and in `more`: each daemon warns of that at its start, its logger too, and all
    /// stand still for ever once the logger's socket is full (net.unix.max_dgram_qlen, 10 here and there).
    fn write_configuration(&self, more: &str) {
        for name in ["spool", "data"] {
            fs::create_dir(self.path(name)).expect("a new directory");
        }
        chown(self.path("data"), Some(id_of("-u", "postfix")), Some(id_of("-g", "postfix")))
            .expect("root may give files away");
        let dir = self.dir.path().display();
        let text = format!(
            "compatibility_level = 3.6
queue_directory = {dir}/spool
data_directory = {dir}/data
daemon_directory = {DAEMONS}
maillog_file = {dir}/maillog
maillog_file_prefixes = {dir}
myhostname = {REALM}
inet_interfaces = 127.0.0.1
service_throttle_time = 1s
inet_protocols = ipv4
mydestination =
local_recipient_maps =
alias_maps =
alias_database =
# What arrives stays as it was sent.
local_header_rewrite_clients =
virtual_mailbox_base = {dir}/mail
virtual_mailbox_maps = texthash:{dir}/mailboxes
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_minimum_uid = 1
smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_received_header = yes
smtpd_tls_chain_files = {dir}/server.pem
smtpd_sasl_auth_enable = yes
smtpd_sasl_type = cyrus
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = {REALM}
smtpd_sasl_security_options = noanonymous
cyrus_sasl_config_path = {dir}/etc/sasl
smtpd_peername_lookup = no
smtpd_client_connection_count_limit = 0
{more}",
            uid = id_of("-u", "nobody"),
            gid = id_of("-g", "nobody"),
        );
        let mut keys: Vec<_> = text.lines().filter_map(|line| Some(line.split_once(" =")?.0)).collect();
        keys.sort_unstable();
        assert!(keys.is_sorted_by(|a, b| a < b), "a setting of Postfix stands twice: {keys:?}");
        self.write("etc/main.cf", &text);
        self.write("etc/master.cf", &master_cf(self.port));
    }
}

impl Drop for Postfix {
    /// Ends master and its daemons by the pid in this instance's own spool, as `postfix stop` does; that
    /// one waits without end where the instance's log can't be written.
    fn drop(&mut self) {
        let pid = fs::read_to_string(self.path("spool/pid/master.pid")).unwrap_or_default();
        let Some(pid) = pid.trim().parse().ok().and_then(Pid::from_raw) else { return };
        let _ = kill_process(pid, Signal::TERM);
        let end = Instant::now() + STOP_WITHIN;
        while test_kill_process(pid).is_ok() && Instant::now() < end {
            sleep(Duration::from_millis(10));
        }
        // Its daemons are of its group; whoever is left has had enough time.
        let _ = kill_process_group(pid, Signal::KILL);
    }
}

/// No service in a chroot, nothing for local users.
fn master_cf(port: u16) -> String {
    format!(
        "127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
flush unix n - n 1000? 0 flush
error unix - - n - - error
retry unix - - n - - error
discard unix - - n - - discard
smtp unix - - n - - smtp
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"
    )
}

fn id_of(which: &str, user: &str) -> u32 {
    let output = run(Command::new("id").args([which, user]));
    String::from_utf8_lossy(&output.stdout).trim().parse().expect("id prints a number")
}
