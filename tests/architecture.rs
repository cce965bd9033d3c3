//! The house rules that a compiler doesn't know: who may use whom, where a foreign crate may be spoken to, what
//! stays free of I/O, and what a file looks like. Reads the sources as text; what is under `#[cfg(test)]` may
//! do as it likes.

use std::path::{Path, PathBuf};

/// Which room may name what of the others: `queue` is all of it, `queue::Receipt` only that, `*` everything,
/// `-cli` all the same not that. What isn't listed may name nothing. ARCHITECTURE.md says why.
const ARROWS: &[(&str, &[&str])] = &[
    ("smtp/reply/said.rs", &["smtp", "queue::Receipt"]), // The proof without which there is no 250.
    ("mail", &["smtp", "clock"]),
    ("config", &["smtp", "environment::Format", "mail::outcome"]),
    ("limits", &["clock", "config", "mail", "queue::retry"]),
    ("queue", &["mail", "smtp", "config", "clock"]),
    ("listener", &["smtp", "mail", "queue", "config", "clock", "net", "observe", "limits::account"]),
    ("delivery", &["smtp", "mail", "config", "clock", "net", "environment"]),
    ("dsn", &["smtp", "mail", "clock"]),
    ("observe", &["clock"]),
    ("webhook", &["clock", "config", "delivery::post", "smtp::sasl"]),
    ("runner", &["queue", "delivery", "dsn", "limits", "mail", "clock", "observe", "config", "smtp"]),
    ("admin", &["*", "-cli", "-service"]),
    ("service", &["*", "-cli"]),
    ("cli", &["*"]),
    ("main", &["cli"]),
];

/// The only places that may name a foreign crate, or ask for what belongs behind one door.
const DOORS: &[(&str, &[&str])] = &[
    ("rusqlite", &["queue/"]),
    ("lettre", &["dsn/", "cli/", "admin/compose.rs"]),
    ("rustls", &["net.rs", "listener/", "delivery/"]),
    ("tokio_rustls", &["net.rs", "listener/", "delivery/"]),
    ("rustls_platform_verifier", &["delivery/"]),
    ("proxy_header", &["listener/proxy.rs"]),
    ("stringprep", &["smtp/scram.rs"]),
    ("pbkdf2", &["smtp/scram.rs"]),
    ("rcgen", &["listener/tls.rs", "service/dev.rs", "delivery/dkim.rs"]),
    ("mail_parser", &["mail/", "dsn/", "admin/", "cli/sendmail/"]),
    // The filter of a list is one type, whether a query string or a command line says it.
    ("clap", &["cli/", "admin/queue.rs", "admin/events.rs"]),
    ("clap_complete", &["cli/completions.rs"]),
    ("clap_mangen", &["cli/man.rs"]),
    ("axum", &["admin/"]),
    ("futures_util", &["admin/stream.rs"]),
    ("maud", &["admin/"]),
    ("tar", &["admin/archive.rs"]),
    ("indicatif", &["cli/output.rs"]),
    ("ratatui", &["cli/top/", "cli/top.rs", "cli/style.rs", "cli/init/ask.rs"]),
    ("hyper", &["admin/", "cli/", "delivery/oauth.rs", "delivery/post.rs"]),
    ("serde_saphyr", &["config/", "environment/"]),
    ("sd_notify", &["service/manager.rs", "service/doors.rs"]),
    ("listenfd", &["service/doors.rs"]),
    ("regex", &["config/replies.rs", "config/presets.rs"]),
    ("prometheus_client", &["observe.rs", "observe/metrics.rs"]),
    ("tracing_subscriber", &["observe/json.rs", "observe/style.rs", "service/parts.rs"]),
    ("SystemTime::now", &["clock.rs"]),
];

/// Values in, values out: so that tables, properties and fuzzing can reach all of it.
const PURE: &[&str] = &[
    "smtp/",
    "mail/",
    "dsn/",
    "listener/session.rs",
    "listener/policy.rs",
    "listener/auth.rs",
    "queue/retry.rs",
    "queue/entry.rs",
];

/// What the pure parts must not name.
const IMPURE: &[&str] = &[
    "async",
    "await",
    "tokio",
    "std::fs",
    "std::thread",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "UnixStream",
    "Instant",
    "SystemTime",
    "Clock",
    "std::env",
    "std::process",
];

/// Lines of a file without its tests. Past 400, look for the second noun.
const LENGTH_MAX: usize = 600;

/// What nobody finishes later.
const LEFTOVERS: &[&str] = &["FIXME", "XXX", "todo!", "unimplemented!", "dbg!"];

/// One source file.
struct Source {
    /// Below its directory: `smtp/reply.rs`.
    name: String,
    text: String,
    /// Without what is under `#[cfg(test)]`; empty for a file of tests.
    shipped: String,
}

impl Source {
    /// `smtp` of `smtp/reply.rs`, `runner` of `runner.rs`.
    fn room(&self) -> &str {
        self.name.split('/').next().unwrap_or_default().trim_end_matches(".rs")
    }

    /// Lines that ship, without comments, numbered.
    fn code(&self) -> impl Iterator<Item = (usize, &str)> {
        self.shipped.lines().enumerate().map(|(i, line)| {
            let comment = if line.trim_start().starts_with("//") { Some(0) } else { line.find(" // ") };
            (i + 1, comment.map_or(line, |at| &line[..at]))
        })
    }
}

fn sources(directory: &str) -> Vec<Source> {
    fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
        for file in std::fs::read_dir(directory).expect("a directory of sources") {
            let path = file.expect("a file").path();
            if path.is_dir() && path.file_name().is_some_and(|name| name != "target") {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = Vec::new();
    walk(&root, &mut found);
    found.sort();
    let source = |path: PathBuf| {
        let name = path.strip_prefix(&root).expect("below it").to_string_lossy().into_owned();
        let text = std::fs::read_to_string(&path).expect("a source is text");
        let is_test = name.ends_with("tests.rs") || name.contains("tests/");
        let shipped = if is_test { String::new() } else { without_tests(&text) };
        Source { name, text, shipped }
    };
    found.into_iter().map(source).collect()
}

/// Blanks each item behind `#[cfg(test)]`. It ends where its indentation does, as rustfmt writes it.
fn without_tests(text: &str) -> String {
    let mut shipped = String::new();
    let mut until: Option<String> = None;
    let mut begins = false;
    for line in text.lines() {
        let indent = &line[..line.len() - line.trim_start().len()];
        if line.trim() == "#[cfg(test)]" {
            until = Some(indent.to_owned());
            begins = true;
        } else if let Some(outer) = &until {
            let is_attribute = line.trim_start().starts_with("#[");
            let one_line = begins && !is_attribute && line.ends_with(';');
            begins &= is_attribute;
            if one_line || line == format!("{outer}}}") {
                until = None;
            }
        } else {
            shipped.push_str(line);
        }
        shipped.push('\n');
    }
    shipped.truncate(shipped.trim_end().len());
    shipped
}

/// Whether `word` stands in `line` as a word of its own.
fn names(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// The paths behind each `crate::`, groups taken apart, with the line they begin in.
fn paths_within_the_crate(source: &Source) -> Vec<(usize, String)> {
    let code: String = source.code().flat_map(|(_, line)| [line, "\n"]).collect();
    let mut paths = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '$') {
            continue;
        }
        let line = code[..at].matches('\n').count() + 1;
        let mut rest = &code[at + "crate::".len()..];
        expand(&mut rest, "", &mut |path| paths.push((line, path)));
    }
    paths
}

/// Reads `a::{b, c::d}` off the front of `rest`.
fn expand(rest: &mut &str, before: &str, give: &mut impl FnMut(String)) {
    let end = rest.find(|c: char| !(c.is_alphanumeric() || c == '_' || c == ':')).unwrap_or(rest.len());
    let path = format!("{before}{}", &rest[..end]);
    *rest = &rest[end..];
    let Some(group) = rest.strip_prefix('{') else { return give(path.trim_end_matches(':').to_owned()) };
    *rest = group;
    loop {
        *rest = rest.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if let Some(behind) = rest.strip_prefix('}') {
            *rest = behind;
            return;
        }
        expand(rest, &path, give);
        // What an item is called from here on doesn't matter.
        match rest.find([',', '}', '{']) {
            Some(end) => *rest = &rest[end..],
            None => return,
        }
    }
}

fn is_allowed(arrows: &[&str], path: &str) -> bool {
    let covers =
        |arrow: &str| path == arrow || path.strip_prefix(arrow).is_some_and(|rest| rest.starts_with("::"));
    let denied = arrows.iter().filter_map(|arrow| arrow.strip_prefix('-')).any(covers);
    !denied && arrows.iter().any(|arrow| *arrow == "*" || covers(arrow))
}

#[track_caller]
fn none(broken: Vec<String>, advice: &str) {
    assert!(broken.is_empty(), "{advice}\n\n  {}\n", broken.join("\n  "));
}

#[test]
fn each_room_knows_only_those_it_may_know() {
    let mut broken = Vec::new();
    for source in sources("src") {
        let arrows = |key: &str| ARROWS.iter().find(|(room, _)| *room == key).map_or(&[][..], |(_, to)| to);
        let allowed = [arrows(source.room()), arrows(&source.name)].concat();
        for (line, path) in paths_within_the_crate(&source) {
            let own = path.split("::").next() == Some(source.room());
            if !own && !is_allowed(&allowed, &path) {
                broken.push(format!("src/{}:{line}: crate::{path}", source.name));
            }
        }
    }
    none(
        broken,
        "A room names one that it must not know. Pass a value in from the room that knows both (mostly runner or \
         service), or move what they share down into smtp or mail. A new arrow goes into ARROWS in \
         tests/architecture.rs and into ARCHITECTURE.md, with its reason:",
    );
}

#[test]
fn each_foreign_crate_has_its_door() {
    let mut broken = Vec::new();
    for source in sources("src") {
        for (word, doors) in DOORS {
            if doors.iter().any(|door| source.name.starts_with(door)) {
                continue;
            }
            for (line, code) in source.code().filter(|(_, code)| names(code, word)) {
                let (name, code) = (&source.name, code.trim());
                broken.push(format!("src/{name}:{line}: {word} belongs into {}: {code}", doors.join(", ")));
            }
        }
    }
    none(broken, "Something foreign is used beside its door. Call the room that has the door:");
}

#[test]
fn what_decides_does_no_io_and_asks_no_clock() {
    let mut broken = Vec::new();
    for source in sources("src").iter().filter(|source| PURE.iter().any(|pure| source.name.starts_with(pure)))
    {
        for (line, code) in source.code() {
            for word in IMPURE.iter().filter(|word| names(code, word)) {
                broken.push(format!("src/{}:{line}: {word}: {}", source.name, code.trim()));
            }
        }
    }
    none(
        broken,
        "A pure file does I/O, waits or asks the time. Take the octets, the time or the answer as an argument, and \
         let the caller (connection, runner, spool) do the rest:",
    );
}

#[test]
fn each_file_says_first_what_it_is() {
    let mut broken = Vec::new();
    for directory in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        for source in sources(directory) {
            if !source.text.starts_with("//! ") {
                broken.push(format!("{directory}/{}", source.name));
            }
        }
    }
    none(broken, "Begin the file with `//!`: what it is, what it promises, what it leaves to others:");
}

#[test]
fn no_file_holds_more_than_a_reader_can() {
    let long = |source: &Source| source.shipped.lines().count() > LENGTH_MAX;
    let broken = sources("src").into_iter().filter(long);
    none(
        broken
            .map(|source| format!("src/{}: {} lines", source.name, source.shipped.lines().count()))
            .collect(),
        &format!(
            "A file has more than {LENGTH_MAX} lines without its tests: find its second noun, and give it a file:"
        ),
    );
}

#[test]
fn standards_are_quoted_in_one_form() {
    let mut broken = Vec::new();
    for directory in ["src", "tests", "fuzz/fuzz_targets"] {
        for source in sources(directory) {
            // This file has to show what is wrong.
            for (i, line) in source.text.lines().enumerate().filter(|_| source.name != "architecture.rs") {
                let Some(at) = line.find("//") else { continue };
                for (begin, _) in line[at..].match_indices("RFC") {
                    if !is_well_quoted(&line[at + begin..]) {
                        broken.push(format!("{directory}/{}:{}: {}", source.name, i + 1, line.trim()));
                    }
                }
            }
        }
    }
    none(broken, "Write `RFC 5321 §4.1.1.4`, or `RFC 5321` for all of it:");
}

/// `RFC 5321`, or `RFC 5321 §4.1`; no `RFC5321`, no `RFC 5321, section 4.1`. An RFC without a number is a word.
fn is_well_quoted(text: &str) -> bool {
    if !text["RFC".len()..].trim_start_matches([' ', '-', '_', '#']).starts_with(|c: char| c.is_ascii_digit())
    {
        return true;
    }
    let Some(number) = text.strip_prefix("RFC ") else { return false };
    let digits = number.bytes().take_while(u8::is_ascii_digit).count();
    let behind = number[digits..].trim_start_matches([',', ' ']);
    let words = ["section", "Section", "sec.", "sect.", "par.", "chapter"];
    (3..=4).contains(&digits)
        && !words.iter().any(|word| behind.starts_with(word))
        && behind.strip_prefix('§').is_none_or(|section| {
            number[digits..].starts_with(" §") && section.starts_with(|c: char| c.is_ascii_alphanumeric())
        })
}

#[test]
fn nothing_is_left_for_later() {
    let mut broken = Vec::new();
    for directory in ["src", "tests", "benches", "fuzz/fuzz_targets"] {
        for source in sources(directory).iter().filter(|source| source.name != "architecture.rs") {
            for (i, line) in source.text.lines().enumerate() {
                for word in LEFTOVERS.iter().filter(|word| line.contains(**word)) {
                    broken.push(format!("{directory}/{}:{}: {word}", source.name, i + 1));
                }
            }
        }
    }
    none(broken, "Finish it, or take it out and write an issue:");
}

#[test]
fn this_test_sees_what_it_looks_for() {
    let text = "use crate::{\n    a::{b, c::d as e},\n    f,\n};\n// crate::no\n#[cfg(test)]\nmod tests {\n    use crate::x;\n}\n\
                fn g() -> crate::h::I {}\n#[cfg(test)]\nmod tests;\n";
    let source = Source { name: "a/b.rs".into(), text: text.into(), shipped: without_tests(text) };
    let paths: Vec<String> = paths_within_the_crate(&source).into_iter().map(|(_, path)| path).collect();
    assert_eq!(paths, ["a::b", "a::c::d", "f", "h::I"]);
    assert!(is_allowed(&["*", "-cli"], "queue::Queue") && !is_allowed(&["*", "-cli"], "cli::run"));
    assert!(is_allowed(&["queue::Receipt"], "queue::Receipt") && !is_allowed(&["queue::Receipt"], "queue"));
    assert!(names("use rustls::A", "rustls") && !names("use tokio_rustls::A", "rustls"));
    assert!(
        is_well_quoted("RFC 5321 §4.1)") && is_well_quoted("RFC 5321, 2034") && is_well_quoted("RFC 5321's")
    );
    for bad in ["RFC5321", "RFC 5321 section 4", "RFC 5321, §4", "RFC 5321 § 4"] {
        assert!(!is_well_quoted(bad), "{bad}");
    }
}
