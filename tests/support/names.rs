//! A scripted name server, and a relay that asks nobody else.

use std::fs;
use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::spawn;

use tempfile::TempDir;

use super::programs::require;
use super::relay::outpost;

/// What it says of every name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Says {
    /// It is 127.0.0.1.
    Here,
    /// It is another name for other.example, which is 127.0.0.1.
    Alias,
    /// There is no such name (RCODE 3).
    NoSuchName,
    /// The name has no address.
    NoAddress,
    /// It can't tell (RCODE 2).
    Failure,
    /// Nothing.
    Nothing,
}

/// The name server. It goes on until the test's process ends.
pub struct Names {
    dir: TempDir,
    says: Arc<Mutex<Says>>,
    asked: Arc<AtomicUsize>,
}

impl Names {
    /// One that says this at first.
    pub fn start(says: Says) -> Self {
        // The port is always 53, so the address is one's own: a process has its own of 127/8.
        let pid = std::process::id();
        let (socket, address) = (0..=u8::MAX)
            .find_map(|last| {
                let address = Ipv4Addr::new(127, 53, (pid % 251) as u8, last);
                UdpSocket::bind((address, 53)).ok().map(|socket| (socket, address))
            })
            .expect("an address of loopback whose port 53 is free");
        let dir = TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).expect("a directory");
        // A server that says something is waited for.
        let timeout = if matches!(says, Says::Nothing) { 1 } else { 5 };
        let configuration = format!("nameserver {address}\noptions timeout:{timeout} attempts:1\n");
        fs::write(dir.path().join("resolv.conf"), configuration).expect("a file");
        fs::write(dir.path().join("nsswitch.conf"), "hosts: files dns\n").expect("a file");
        let names = Self { dir, says: Arc::new(Mutex::new(says)), asked: Arc::default() };
        let (says, asked) = (Arc::clone(&names.says), Arc::clone(&names.asked));
        spawn(move || {
            let mut question = [0; 512];
            while let Ok((octets, from)) = socket.recv_from(&mut question) {
                asked.fetch_add(1, Ordering::SeqCst);
                let says = *says.lock().expect("no poison");
                if let Some(answer) = answer(&question[..octets], says) {
                    let _ = socket.send_to(&answer, from);
                }
            }
        });
        names
    }

    /// Says something else from now on.
    pub fn set(&self, says: Says) {
        *self.says.lock().expect("no poison") = says;
    }

    /// How often it was asked.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The relay's binary in a mount namespace where this is the only name server.
    pub fn only(&self) -> Command {
        let relay = outpost();
        let mut command = Command::new(require(Path::new("/usr/bin/unshare")));
        let script = "mount --bind \"$1\" /etc/resolv.conf && mount --bind \"$2\" /etc/nsswitch.conf && \
                      shift 2 && exec \"$@\"";
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.args([self.file("resolv.conf"), self.file("nsswitch.conf")]).arg(relay.get_program());
        for (name, _) in relay.get_envs() {
            command.env_remove(name);
        }
        command
    }
}

/// RFC 1035 §4.1: a header of twelve octets, the question as it came, and at most one address.
fn answer(question: &[u8], says: Says) -> Option<Vec<u8>> {
    const ADDRESS: [u8; 2] = [0, 1];
    let header = question.get(..12)?;
    // Names are labels with their length before them, up to an empty one; then come type and class.
    let mut end = 12;
    while *question.get(end)? != 0 {
        end += 1 + usize::from(question[end]);
    }
    let asked = question.get(12..end + 5)?;
    let is_here = matches!(says, Says::Here | Says::Alias);
    let found = is_here && question[end + 1..end + 3] == ADDRESS;
    let code = match says {
        Says::Here | Says::Alias | Says::NoAddress => 0,
        Says::NoSuchName => 3,
        Says::Failure => 2,
        Says::Nothing => return None,
    };
    let mut answer = header[..2].to_vec();
    let alias = found && says == Says::Alias;
    answer.extend([0x81, 0x80 | code, 0, 1, 0, u8::from(found) + u8::from(alias), 0, 0, 0, 0]);
    answer.extend(asked);
    // Where the name of the address stands: in the question, or in the alias.
    let mut name = 12;
    if alias {
        // The same name, CNAME, of the Internet, good for no time.
        answer.extend([0xc0, 12, 0, 5, 0, 1, 0, 0, 0, 0, 0, 15]);
        name = u8::try_from(answer.len()).ok()?;
        answer.extend(b"\x05other\x07example\0");
    }
    if found {
        // That name, an address, of the Internet, good for no time, four octets of it.
        answer.extend([0xc0, name, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4, 127, 0, 0, 1]);
    }
    Some(answer)
}
