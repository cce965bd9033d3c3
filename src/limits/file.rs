//! The file of one account: replaced whole, synced, and not trusted without its checksum.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use super::{
    budget::Stored,
    kept::{replace, sync_directory},
};

/// What stood in a file.
pub(super) enum Found {
    /// There is none: nothing was ever spent.
    Nothing,
    /// What was stored last.
    State(Stored),
    /// It can't be read, or not be trusted.
    Damaged(String),
}

/// The file of the account of that name. Names are whatever operators like, and are not file names.
pub(super) fn path(directory: &Path, of: &str) -> PathBuf {
    let digest = Sha256::digest(of.as_bytes());
    let name: String = digest.iter().take(8).map(|octet| format!("{octet:02x}")).collect();
    directory.join(name)
}

/// Reads it.
pub(super) fn read(path: &Path) -> Found {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Found::Nothing,
        Err(error) => return Found::Damaged(error.to_string()),
    };
    // Three lines, for people too: whose it is, the checksum, the state.
    let mut lines = text.lines();
    let (of, checksum, json) = (lines.next(), lines.next(), lines.next());
    match (of, checksum, json) {
        (Some(of), Some(checksum), Some(json)) if checksum == checksum_of(of, json) => {
            serde_json::from_str(json).map_or_else(|error| Found::Damaged(error.to_string()), Found::State)
        }
        _ => Found::Damaged("its checksum is wrong".to_owned()),
    }
}

/// Replaces it, durably.
pub(super) fn write(path: &Path, of: &str, stored: &Stored) -> io::Result<()> {
    let json = serde_json::to_string(stored)?;
    let of = of.replace(char::is_control, " ");
    let checksum = checksum_of(&of, &json);
    let text = format!("{of}\n{checksum}\n{json}\n");
    match replace(path, text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let directory = path.parent().unwrap_or(Path::new("."));
            DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
            sync_directory(directory.parent().unwrap_or(Path::new(".")))?;
            replace(path, text.as_bytes())
        }
        written => written,
    }
}

fn checksum_of(of: &str, json: &str) -> String {
    format!("{:08x}", crc32c::crc32c_append(crc32c::crc32c(of.as_bytes()), json.as_bytes()))
}
