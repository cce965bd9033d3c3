//! A queue's files as a kill would leave them, while it is in use.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Copies the files of a queue in use, as they stand at one moment. SQLite's index of its log is memory that no
/// crash keeps.
pub fn copy(from: &Path, to: &Path, lost: &[&str]) {
    let is_kept = |name: &str| !name.ends_with("-shm") && !lost.contains(&name);
    let look = || {
        let mut files = BTreeMap::new();
        for directory in ["", "spool"] {
            for file in fs::read_dir(from.join(directory)).expect("the queue") {
                let name = Path::new(directory).join(file.expect("a file").file_name());
                let path = from.join(&name);
                if path.is_file() && is_kept(&name.display().to_string()) {
                    files.insert(name, fs::read(path).unwrap_or_default());
                }
            }
        }
        files
    };
    // The writer may be tidying up: what is seen twice alike was so at one moment.
    let mut files = look();
    loop {
        let again = look();
        if again == files {
            break;
        }
        files = again;
    }
    fs::create_dir_all(to.join("spool")).expect("a directory");
    files.iter().for_each(|(name, octets)| fs::write(to.join(name), octets).expect("a copy"));
}
