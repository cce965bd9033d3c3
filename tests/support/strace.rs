//! A program's calls to the file system, recorded by strace: which, in which order, and what was under way at the
//! same time. Threads overlap, so each call has a beginning and an end of its own.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::programs::require;
use super::relay::outpost;

/// What a call asked for. Only calls that succeeded are kept.
#[derive(Debug)]
pub enum Operation {
    /// A file was opened, and made if it was not there.
    Open {
        path: PathBuf,
        fd: i32,
        create: bool,
        truncate: bool,
    },
    /// Octets were written, `at` an offset or where the descriptor stood.
    Write {
        fd: i32,
        at: Option<u64>,
        octets: Vec<u8>,
    },
    /// The descriptor was moved.
    Seek {
        fd: i32,
        to: u64,
    },
    /// The file was cut or lengthened.
    Truncate {
        fd: i32,
        size: u64,
    },
    /// The file was made at least so long.
    Allocate {
        fd: i32,
        size: u64,
    },
    /// What was written to the file, or which names the directory has, was to be made durable.
    Sync {
        fd: i32,
    },
    Rename {
        from: PathBuf,
        to: PathBuf,
    },
    Unlink {
        path: PathBuf,
    },
    MakeDirectory {
        path: PathBuf,
    },
    /// A line was written to the ledger.
    Note(String),
}

/// A call begins or ends; the number is its place in [`Trace::operations`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Begins(usize),
    Ends(usize),
}

/// What happened below a directory, and what was noted in the ledger meanwhile.
#[derive(Debug, Default)]
pub struct Trace {
    pub operations: Vec<Operation>,
    pub events: Vec<Event>,
}

/// What is recorded. Reads change nothing, and the index of SQLite's WAL is mapped memory that no crash keeps.
const CALLS: &str = "trace=open,openat,creat,write,pwrite64,writev,pwritev,pwritev2,lseek,fsync,fdatasync,\
    sync_file_range,ftruncate,truncate,fallocate,rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,\
    unlinkat,rmdir,mkdir,mkdirat,copy_file_range,sendfile,io_uring_setup";

/// Puts strace in front of a command, recording to `log`.
pub fn recorded(command: &Command, log: &Path) -> Command {
    let mut traced = Command::new(require(Path::new("/usr/bin/strace")));
    traced.args(["-f", "--seccomp-bpf", "-y", "-xx", "-s", "100000000", "-e", CALLS, "-o"]).arg(log);
    traced.arg("--").arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => traced.env(name, value),
            None => traced.env_remove(name),
        };
    }
    traced
}

/// The relay's binary under strace, which brings the fault into its system calls.
pub fn injected(fault: &str) -> Command {
    let command = outpost();
    let binary = command.get_program().to_owned();
    let (calls, _) = fault.split_once(':').expect("calls, then what becomes of them");
    let mut traced = Command::new(require(Path::new("/usr/bin/strace")));
    // Without --seccomp-bpf, with which strace 6.1 brings in no signals.
    traced.args(["-f", "-o/dev/null", "-e", &format!("trace={calls}")]);
    traced.args(["-e", &format!("inject={fault}"), "--"]).arg(binary);
    for (name, _) in command.get_envs() {
        traced.env_remove(name);
    }
    traced
}

/// A fault in the system calls of a running process; it ends when dropped.
pub struct Injection(Child);

impl Injection {
    /// Attaches to all threads: `calls:fault:when=...` as strace's `inject` has it. Each thread counts for itself.
    pub fn attach(pid: u32, fault: &str) -> Self {
        Self::attach_at(pid, &[fault], &[])
    }

    /// The same with several faults, in calls on just these files; others are not counted.
    pub fn attach_at(pid: u32, faults: &[&str], files: &[PathBuf]) -> Self {
        let calls =
            faults.iter().map(|fault| fault.split_once(':').expect("calls, then what becomes of them").0);
        let calls = calls.collect::<Vec<_>>().join(",");
        let mut strace = Command::new(require(Path::new("/usr/bin/strace")));
        strace.args(["-f", "-q", "-o/dev/null", "-e", &format!("trace={calls}")]);
        for fault in faults {
            strace.args(["-e", &format!("inject={fault}")]);
        }
        for file in files {
            strace.arg("-P").arg(file);
        }
        Self::begin(strace, pid)
    }

    /// Changes nothing, and writes each of these calls to a log, with the file that it is about.
    pub fn none(pid: u32, calls: &str, log: &Path) -> Self {
        let mut strace = Command::new(require(Path::new("/usr/bin/strace")));
        strace.args(["-f", "-q", "-y", "-e", &format!("trace={calls}"), "-o"]).arg(log);
        Self::begin(strace, pid)
    }

    fn begin(mut strace: Command, pid: u32) -> Self {
        strace.args(["-p", &pid.to_string()]);
        let mut child = strace.stderr(Stdio::null()).spawn().expect("strace starts");
        super::wait::until("strace has all threads", || {
            let ended = child.try_wait().expect("our child").is_some();
            let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return Some(()) };
            let traced = threads.filter_map(Result::ok).all(|thread| {
                let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0\n")
            });
            (traced || ended).then_some(())
        });
        Self(child)
    }
}

impl Drop for Injection {
    fn drop(&mut self) {
        // By SIGINT it lets go of a process that lives; for one that has died it may wait for ever.
        let pid = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw).expect("a pid");
        let _ = kill_process(pid, Signal::INT);
        let end = Instant::now() + Duration::from_secs(1);
        while self.0.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() > end {
                let _ = self.0.kill();
            }
            sleep(Duration::from_millis(2));
        }
    }
}

impl Trace {
    /// Reads a log: what happened below `root`, and the lines written to `ledger`.
    pub fn read(log: &Path, root: &Path, ledger: &Path) -> Self {
        let text = fs::read_to_string(log).expect("strace has written its log");
        let mut trace = Self::default();
        // The first half of a call that another thread's interrupted, by thread.
        let mut unfinished: HashMap<&str, (String, usize)> = HashMap::new();
        // Where events stand that turn out not to count.
        let mut lines: Vec<(String, Option<usize>, usize)> = Vec::new();
        for line in text.lines() {
            let Some((thread, rest)) = line.split_once(' ') else { continue };
            let rest = rest.trim_start();
            if rest.starts_with("+++") || rest.starts_with("---") {
                continue;
            }
            if let Some(begun) = rest.strip_suffix("<unfinished ...>") {
                lines.push((String::new(), None, 0));
                unfinished.insert(thread, (begun.trim_end().to_owned(), lines.len() - 1));
            } else if let Some((_, ended)) =
                rest.starts_with("<...").then(|| rest.split_once(" resumed>")).flatten()
            {
                let (begun, at) = unfinished.remove(thread).expect("what resumes has begun");
                lines.push((begun + ended, Some(at), 0));
            } else {
                lines.push((rest.to_owned(), None, 0));
            }
        }
        // A call that never ended, because the process was killed in it, is left out: for a write this is one of
        // the states that a cut in front of it has as well.
        let mut events: Vec<(usize, Event)> = Vec::new();
        for (at, (line, begun_at, _)) in lines.iter().enumerate() {
            let Some(operation) = parse(line, root, ledger) else { continue };
            let number = trace.operations.len();
            trace.operations.push(operation);
            events.push((2 * begun_at.unwrap_or(at), Event::Begins(number)));
            events.push((2 * at + 1, Event::Ends(number)));
        }
        events.sort_by_key(|(at, _)| *at);
        trace.events = events.into_iter().map(|(_, event)| event).collect();
        trace
    }
}

/// One call: `name(arguments) = result`.
fn parse(line: &str, root: &Path, ledger: &Path) -> Option<Operation> {
    let (call, result) = line.rsplit_once(" = ")?;
    let result = result.trim();
    if result.starts_with('-') || result.starts_with('?') {
        return None;
    }
    let number =
        |text: &str| text.split(['<', ' ']).next().and_then(|digits| digits.trim().parse::<i64>().ok());
    let (name, arguments) = call.split_once('(')?;
    let arguments = arguments.trim_end().strip_suffix(')')?;
    let arguments: Vec<&str> = arguments.split(", ").collect();
    let argument = |at: usize| arguments.get(at).copied().unwrap_or_default();
    // `7<\x2f\x74...>`: a descriptor and what it is open on.
    let file = |at: usize| {
        let path = argument(at).split_once('<')?.1.split_once('>')?.0;
        Some((number(argument(at))? as i32, path_of(path)))
    };
    let ours = |path: &Path| path.starts_with(root);
    let absolute = |at: usize| {
        let path = path_of(argument(at).trim_matches('"'));
        assert!(path.is_absolute(), "the programs under test name their files from the root: {path:?}");
        ours(&path).then_some(path)
    };
    let operation = match name {
        "open" | "openat" => {
            let at = usize::from(name == "openat");
            let flags = argument(at + 1);
            let path = path_of(argument(at).trim_matches('"'));
            let (create, truncate) = (flags.contains("O_CREAT"), flags.contains("O_TRUNC"));
            let fd = number(result)? as i32;
            ours(&path).then_some(Operation::Open { path, fd, create, truncate })?
        }
        "write" | "pwrite64" => {
            let (fd, path) = file(0)?;
            let mut octets = octets_of(argument(1).trim_matches('"'));
            octets.truncate(number(result)? as usize);
            if path == ledger {
                return Some(Operation::Note(String::from_utf8_lossy(&octets).trim_end().to_owned()));
            }
            let at = if name == "write" { None } else { Some(number(argument(3))? as u64) };
            ours(&path).then_some(Operation::Write { fd, at, octets })?
        }
        "lseek" => {
            let (fd, path) = file(0)?;
            ours(&path).then_some(Operation::Seek { fd, to: number(result)? as u64 })?
        }
        "ftruncate" => {
            let (fd, path) = file(0)?;
            ours(&path).then_some(Operation::Truncate { fd, size: number(argument(1))? as u64 })?
        }
        "fallocate" => {
            let (fd, path) = file(0)?;
            let size = (number(argument(2))? + number(argument(3))?) as u64;
            let plain = argument(1) == "0";
            assert!(plain || !ours(&path), "the model has no such call yet: {}", brief(line));
            ours(&path).then_some(Operation::Allocate { fd, size })?
        }
        "fsync" | "fdatasync" => {
            let (fd, path) = file(0)?;
            ours(&path).then_some(Operation::Sync { fd })?
        }
        "rename" => Operation::Rename { from: absolute(0)?, to: absolute(1)? },
        "unlink" => Operation::Unlink { path: absolute(0)? },
        "unlinkat" => Operation::Unlink { path: absolute(1)? },
        "mkdir" => Operation::MakeDirectory { path: absolute(0)? },
        _ => {
            // A call that the model doesn't know must never pass for none.
            let hex: String = root.to_string_lossy().bytes().map(|byte| format!("\\x{byte:02x}")).collect();
            assert!(!line.contains(&hex), "the model has no such call yet: {}", brief(line));
            return None;
        }
    };
    Some(operation)
}

fn brief(line: &str) -> &str {
    &line[..line.len().min(200)]
}

/// `\x61\x62` to octets.
fn octets_of(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("strace writes hexadecimal") as u8;
    hex.as_bytes().chunks_exact(4).map(|code| digit(code[2]) << 4 | digit(code[3])).collect()
}

fn path_of(hex: &str) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(&octets_of(hex)).into_owned())
}
