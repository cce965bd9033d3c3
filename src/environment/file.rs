//! Files of variables: merged with what others wrote there, and replaced whole.
//!
//! A reader sees the old file or the new one, never a part; a crash leaves one of them. Several relays
//! may share a file: a lock beside it keeps each from losing what another just wrote.
//!
//! Symbolic links are refused, not followed: whoever can plant one could otherwise choose which file
//! we read and whom the passwords are shown to. To publish elsewhere, name the place.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{self, Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Gid, OFlags, Uid},
    io::Errno,
};
use serde_json::Value;

use super::{
    Published, SUFFIXES,
    format::{Entries, Format, render, render_values},
    prefix, variables,
};

/// Owner and group only: there are passwords in it.
const MODE: u32 = 0o640;
/// No environment is larger; we won't read anything else into memory.
const MAX_FILE: u64 = 16 << 20;
/// Others hold the lock for milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why a file couldn't be brought up to date. It stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum EnvironmentError {
    /// The system refused.
    #[error("{file}: {doing} failed: {source}")]
    Io {
        /// The file to publish.
        file: PathBuf,
        /// What was tried.
        doing: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// What stands there can't be merged with.
    #[error("{file} is no {wanted}, and stays untouched: move it away, or set smtp_environment_file")]
    Malformed {
        /// The file to publish.
        file: PathBuf,
        /// What it should be.
        wanted: &'static str,
    },
    /// See the module's head.
    #[error("{file} is a symbolic link: set smtp_environment_file to the file itself")]
    Link {
        /// The file to publish.
        file: PathBuf,
    },
    /// The ending tells no format.
    #[error("{file} should end in .json, .yml, .yaml or .env")]
    Ending {
        /// The file to publish.
        file: PathBuf,
    },
    /// Someone holds the lock and doesn't let go.
    #[error("{file} is locked by another process")]
    Locked {
        /// The file to publish.
        file: PathBuf,
    },
}

/// Brings every file up to date; one that already is isn't written.
///
/// # Errors
/// The first file's that failed; the others are published all the same.
pub fn publish(files: &[PathBuf], published: &Published) -> Result<(), EnvironmentError> {
    let results: Vec<_> = files.iter().map(|file| publish_one(file, published)).collect();
    results.into_iter().collect()
}

fn publish_one(file: &Path, published: &Published) -> Result<(), EnvironmentError> {
    let failed = |doing| move |source| EnvironmentError::Io { file: file.to_owned(), doing, source };
    let malformed = |wanted| EnvironmentError::Malformed { file: file.to_owned(), wanted };
    let format = Format::of(file).ok_or_else(|| EnvironmentError::Ending { file: file.to_owned() })?;

    let _lock = lock(file)?;
    let existing = match read(file) {
        Ok(existing) => existing,
        Err(error) if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => {
            return Err(EnvironmentError::Link { file: file.to_owned() });
        }
        Err(error) => return Err(failed("reading")(error)),
    };
    let bytes = existing.as_ref().map_or(&[][..], |(bytes, _)| bytes);
    let text = std::str::from_utf8(bytes).map_err(|_| malformed("text"))?;
    let merged = match format {
        Format::Dotenv | Format::Shell => merge_lines(text, published),
        Format::Json => merge(format, text, published).ok_or_else(|| malformed("JSON object"))?,
        Format::Yaml => merge(format, text, published).ok_or_else(|| malformed("YAML map"))?,
    };
    match existing {
        Some((bytes, meta)) if bytes == merged.as_bytes() => {
            if meta.permissions().mode() & 0o7777 != MODE {
                fs::set_permissions(file, Permissions::from_mode(MODE))
                    .map_err(failed("changing its mode"))?;
            }
            Ok(())
        }
        existing => {
            let owner = existing.map(|(_, meta)| (meta.uid(), meta.gid()));
            replace(file, merged.as_bytes(), owner).map_err(failed("writing"))
        }
    }
}

/// The file's entries with ours brought up to date: in place where they stood, else at the end.
fn merge(format: Format, text: &str, published: &Published) -> Option<String> {
    let Entries(mut entries) = Entries::parse(format, text)?;
    let mut fresh = variables(published);
    entries.retain_mut(|(name, value)| match fresh.iter().position(|(ours, _)| ours == name) {
        Some(at) => {
            *value = Value::String(fresh.remove(at).1);
            true
        }
        None => !is_ours(name, published),
    });
    entries.extend(fresh.into_iter().map(|(name, value)| (name, Value::String(value))));
    Some(render_values(format, &entries))
}

/// The same for lines, all but ours verbatim.
fn merge_lines(text: &str, published: &Published) -> String {
    let name = |line: &str| -> Option<String> {
        let line = line.trim_start();
        let (name, _) = line.strip_prefix("export ").unwrap_or(line).split_once('=')?;
        Some(name.trim().to_owned())
    };
    let mut fresh = variables(published);
    let mut merged = String::new();
    for line in text.lines() {
        match name(line) {
            Some(name) if is_ours(&name, published) => {
                if let Some(at) = fresh.iter().position(|(ours, _)| *ours == name) {
                    merged += &render(Format::Dotenv, &[fresh.remove(at)]);
                }
            }
            _ => {
                merged += line;
                merged.push('\n');
            }
        }
    }
    merged + &render(Format::Dotenv, &fresh)
}

fn is_ours(name: &str, published: &Published) -> bool {
    let suffix = name.strip_prefix(&prefix(&published.service));
    suffix.is_some_and(|suffix| SUFFIXES.contains(&suffix))
}

/// A file beside `file`, hidden, of the same disk.
fn beside(file: &Path, ending: &str) -> PathBuf {
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    file.with_file_name(format!(".{name}.{ending}"))
}

/// The lock that every publisher of this file takes; held until it is dropped. A file of its own,
/// because the published one is replaced, and a lock on the old one would keep nobody out.
fn lock(file: &Path) -> Result<File, EnvironmentError> {
    let failed = |source| EnvironmentError::Io { file: file.to_owned(), doing: "locking", source };
    let mut options = OpenOptions::new();
    options.write(true).create(true).truncate(false).mode(0o660).custom_flags(nofollow());
    let lock = options.open(beside(file, "lock")).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(lock),
            Err(Errno::WOULDBLOCK) if Instant::now() < deadline => thread::sleep(Duration::from_millis(5)),
            Err(Errno::WOULDBLOCK) => {
                return Err(EnvironmentError::Locked { file: file.to_owned() });
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
}

fn nofollow() -> i32 {
    // Not to wait for the other end of a FIFO, either.
    (OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32
}

fn read(file: &Path) -> io::Result<Option<(Vec<u8>, fs::Metadata)>> {
    let opened = OpenOptions::new().read(true).custom_flags(nofollow()).open(file);
    let opened = match opened {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    let meta = opened.metadata()?;
    if !meta.is_file() || meta.len() > MAX_FILE {
        return Err(io::Error::other("it is no regular file of a sensible size"));
    }
    let mut bytes = Vec::new();
    opened.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(Some((bytes, meta)))
}

/// Puts new content in the file's place. The order is what makes it safe: content and mode are on
/// disk under another name before the name changes, and the change itself is on disk at the end.
fn replace(file: &Path, content: &[u8], owner: Option<(u32, u32)>) -> io::Result<()> {
    let new = beside(file, "new");
    // Under the lock nobody else writes it: one that is there was left by a crash.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let write = || {
        let mut options = OpenOptions::new();
        let mut temporary =
            options.write(true).create_new(true).mode(MODE).custom_flags(nofollow()).open(&new)?;
        if let Some((uid, gid)) = owner {
            // Apps may read it by its group. Where we may not give it away, it is ours as a new one is.
            let _ = rustix::fs::fchown(&temporary, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        }
        // Whatever the umask is.
        temporary.set_permissions(Permissions::from_mode(MODE))?;
        temporary.write_all(content)?;
        temporary.sync_all()?;
        fs::rename(&new, file)
    };
    write().inspect_err(|_| {
        let _ = fs::remove_file(&new);
    })?;
    let directory = file.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}

/// The certificate's fingerprint that some relay published for this host and port.
///
/// Files that aren't there or can't be read say nothing.
pub fn published_fingerprint(files: &[PathBuf], host: &str, port: u16) -> Option<[u8; 32]> {
    files.iter().find_map(|file| {
        let format = Format::of(file).filter(|format| matches!(format, Format::Json | Format::Yaml))?;
        let (bytes, _) = read(file).ok()??;
        let Entries(entries) = Entries::parse(format, std::str::from_utf8(&bytes).ok()?)?;
        let get = |name: String| entries.iter().find(|(key, _)| *key == name)?.1.as_str();
        entries.iter().find_map(|(name, value)| {
            let prefix = name.strip_suffix("HOST")?;
            if !prefix.starts_with("DOTCLOUD_") || !prefix.ends_with("_SMTP_") {
                return None;
            }
            let same_host = value.as_str()?.eq_ignore_ascii_case(host);
            let same_port = get(format!("{prefix}PORT"))? == port.to_string();
            decode(get(format!("{prefix}TLS_FINGERPRINT"))?).filter(|_| same_host && same_port)
        })
    })
}

fn decode(hex: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if hex.len() != 64 || !hex.bytes().all(|c| c.is_ascii_hexdigit()) {
        return None;
    }
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).ok()?;
    }
    Some(bytes)
}
