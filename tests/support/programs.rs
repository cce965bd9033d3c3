//! Other people's programs that tests start.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

/// The program's path; panics with what to do where it is missing.
pub fn require(path: &Path) -> &Path {
    assert!(
        path.exists(),
        "{} is missing: run ./test, which installs the tests' peers (tests/install-peers)",
        path.display()
    );
    path
}

/// Runs a script of tests/python by the system's Python; its standard output is one JSON value.
pub fn python(script: &str, args: &[&str]) -> Value {
    run_script(require(Path::new("/usr/bin/python3")), script, args)
}

/// The same by the Python that has Django.
pub fn django(script: &str, args: &[&str]) -> Value {
    let peers = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    run_script(require(&peers.join("venv/bin/python")), script, args)
}

fn run_script(python: &Path, script: &str, args: &[&str]) -> Value {
    let script: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python").join(script);
    let output = run(Command::new(python).arg(&script).args(args));
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{} printed no JSON ({error}): {}", script.display(), shown(&output)))
}

/// Runs swaks, which must succeed.
pub fn swaks(args: &[&str]) -> Output {
    run(Command::new(require(Path::new("/usr/bin/swaks"))).args(["--timeout", "30"]).args(args))
}

/// Runs a command to its end; panics with all it said when it fails.
pub fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", shown(&output));
    output
}

/// What a command said and how it ended, for people.
pub fn shown(output: &Output) -> String {
    format!(
        "{}\n--- stdout\n{}\n--- stderr\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}
