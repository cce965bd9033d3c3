//! The queue's directory: for us alone, and there after a power cut.

use std::{
    fs::File,
    io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _},
    path::Path,
};

/// Makes durable the names in `directory` and those that lead to it. One that was made at this start, here or by
/// whoever opens the queue, could be gone after a power cut, and all mail with it.
pub(super) fn sync_path_to(directory: &Path) -> io::Result<()> {
    let directory = directory.canonicalize()?;
    let disk = directory.metadata()?.dev();
    for parent in directory.ancestors() {
        match File::open(parent) {
            Ok(parent) if parent.metadata()?.dev() == disk => parent.sync_all()?,
            // What we can't read we haven't made, and what another disk holds was there before.
            Err(error) if error.kind() != io::ErrorKind::PermissionDenied => return Err(error),
            _ => break,
        }
    }
    Ok(())
}

/// Makes a directory that only we can look into.
pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}
