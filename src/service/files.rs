//! The files that settings come from: whether one has changed, and come to rest.
//!
//! Looked at now and then rather than watched by the kernel: that works on every file system and through the
//! symbolic links by which Kubernetes swaps a directory of files, and misses nothing that stays. Blocking.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// No file of settings is larger; what is beyond this is not compared.
const OCTETS_MAX: u64 = 1 << 20;

/// Some files, as they were last looked at.
#[derive(Debug, Default)]
pub(super) struct Watch {
    files: Vec<Watched>,
    /// How they looked a moment ago, if not as before: somebody may still be writing.
    moving: Option<Vec<Stamp>>,
}

#[derive(Debug)]
struct Watched {
    path: PathBuf,
    stamp: Stamp,
    content: Option<[u8; 32]>,
}

/// Device, inode, size, and times of content and inode; of what a link leads to. `None`: there is no such file.
type Stamp = Option<[i64; 7]>;

impl Watch {
    /// Watches these from now on. What was watched before and still is stays as it was last looked at, so that
    /// nothing falls between two looks.
    pub(super) fn follow(&mut self, mut paths: Vec<PathBuf>) {
        paths.sort();
        paths.dedup();
        let mut old = std::mem::take(&mut self.files);
        for path in paths {
            let known = old.iter().position(|watched| watched.path == path);
            self.files.push(known.map_or_else(|| Watched::new(path), |at| old.swap_remove(at)));
        }
        self.moving = None;
    }

    /// Takes them as they are now: they are about to be read.
    pub(super) fn take_as_they_are(&mut self) {
        for watched in &mut self.files {
            *watched = Watched::new(std::mem::take(&mut watched.path));
        }
        self.moving = None;
    }

    /// The files whose content has changed, once all of them have stayed the same between two looks. Each change is
    /// told once.
    pub(super) fn changed(&mut self) -> Vec<PathBuf> {
        let now: Vec<Stamp> = self.files.iter().map(|watched| stamp(&watched.path)).collect();
        if self.files.iter().map(|watched| watched.stamp).eq(now.iter().copied()) {
            self.moving = None;
            return Vec::new();
        }
        if self.moving.as_ref() != Some(&now) {
            self.moving = Some(now);
            return Vec::new();
        }
        self.moving = None;
        let mut changed = Vec::new();
        for watched in &mut self.files {
            let fresh = Watched::new(watched.path.clone());
            if fresh.content != watched.content {
                changed.push(watched.path.clone());
            }
            *watched = fresh;
        }
        changed
    }
}

impl Watched {
    fn new(path: PathBuf) -> Self {
        // Before the content: what is written in between shows at the next look.
        let stamp = stamp(&path);
        Self { content: stamp.and_then(|_| content(&path)), stamp, path }
    }
}

fn stamp(path: &Path) -> Stamp {
    let meta = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
    let identity = [meta.dev() as i64, meta.ino() as i64, meta.size() as i64];
    let [dev, ino, size] = identity;
    Some([dev, ino, size, meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec()])
}

fn content(path: &Path) -> Option<[u8; 32]> {
    let mut octets = Vec::new();
    File::open(path).ok()?.take(OCTETS_MAX).read_to_end(&mut octets).ok()?;
    Some(Sha256::digest(&octets).into())
}

#[cfg(test)]
mod tests {
    use std::slice;

    use super::*;

    fn watch(paths: &[&Path]) -> Watch {
        let mut watch = Watch::default();
        watch.follow(paths.iter().map(|path| path.to_path_buf()).collect());
        watch
    }

    #[test]
    fn a_change_is_told_once_and_only_when_the_file_has_come_to_rest() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("dotcloud.yml");
        fs::write(&file, "one").unwrap();
        let mut watch = watch(&[&file]);
        assert!(watch.changed().is_empty());
        fs::write(&file, "on").unwrap();
        assert!(watch.changed().is_empty(), "it may be half of something");
        fs::write(&file, "another").unwrap();
        assert!(watch.changed().is_empty(), "it moves still");
        assert_eq!(watch.changed(), slice::from_ref(&file));
        assert!(watch.changed().is_empty());
        fs::write(&file, "another").unwrap();
        assert!(watch.changed().is_empty() && watch.changed().is_empty(), "written again, and the same");
        fs::remove_file(&file).unwrap();
        assert!(watch.changed().is_empty());
        assert_eq!(watch.changed(), slice::from_ref(&file), "gone");
        fs::write(&file, "another").unwrap();
        assert!(watch.changed().is_empty());
        assert_eq!(watch.changed(), [file], "back");
    }

    /// As a kubelet does it: the files are links through `..data`, which is replaced by a rename.
    #[test]
    fn a_directory_of_links_is_swapped_at_once() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        for (version, content) in [("..1", "one"), ("..2", "two")] {
            fs::create_dir(at(version)).unwrap();
            fs::write(at(version).join("dotcloud.yml"), content).unwrap();
        }
        std::os::unix::fs::symlink("..1", at("..data")).unwrap();
        std::os::unix::fs::symlink("..data/dotcloud.yml", at("dotcloud.yml")).unwrap();
        let mut watch = watch(&[&at("dotcloud.yml")]);
        std::os::unix::fs::symlink("..2", at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        assert!(watch.changed().is_empty());
        assert_eq!(watch.changed(), [at("dotcloud.yml")]);
    }

    #[test]
    fn what_changes_while_the_list_of_files_does_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let (first, second) = (directory.path().join("a"), directory.path().join("b"));
        fs::write(&first, "one").unwrap();
        let mut watch = watch(&[&first]);
        fs::write(&first, "changed").unwrap();
        watch.follow(vec![first.clone(), second]);
        assert!(watch.changed().is_empty());
        assert_eq!(watch.changed(), [first]);
    }
}
