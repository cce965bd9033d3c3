//! What the queue lies on: a disk, or something that is thrown away with the next restart.
//!
//! A container's own file system looks like a disk and is gone with the container, and so is memory that
//! looks like one. Nothing can be synced to where it will be after that, so whoever runs the relay is told
//! at its start rather than when the mail is gone.

use std::{fs, path::Path};

use crate::config::Settings;

/// `f_type` of statfs(2), what it is called, and what that means.
const THROWN_AWAY: &[(u64, &str, &str)] = &[
    (0x0102_1994, "tmpfs", "which is memory: it is gone when this machine or container stops"),
    (0x8584_58F6, "ramfs", "which is memory: it is gone when this machine or container stops"),
    (0x794C_7630, "overlay", "as the inside of a container does: it is gone when the container is removed"),
    (0x6175_6673, "aufs", "as the inside of a container does: it is gone when the container is removed"),
];

/// What to tell whoever runs the relay, if the queue lies where it does not last. A directory that is
/// not made yet is judged by the one that it will be made in.
pub fn thrown_away(settings: &Settings) -> Option<String> {
    let (queue, data) = (&settings.queue.directory, &settings.data);
    let (_, kind, meaning) = THROWN_AWAY.iter().find(|(magic, ..)| magic_of(queue) == Some(*magic))?;
    // The rest of what must last lies in the data directory: one volume for both, if that can be.
    let (volume, key) = if queue.starts_with(data) { (data, "--data") } else { (queue, "smtp_queue") };
    let volume = fs::canonicalize(volume).unwrap_or_else(|_| volume.clone());
    Some(format!(
        "the queue in {} lies on {kind}, {meaning}, and queued mail with it. Mount a volume on {path} (Docker: \
         `-v outpost:{path}`; Compose: `volumes: [\"outpost:{path}\"]`; Kubernetes: a PersistentVolumeClaim with \
         `mountPath: {path}`), or name a directory on a disk by {key}",
        queue.display(),
        path = volume.display(),
    ))
}

fn magic_of(directory: &Path) -> Option<u64> {
    let there = directory.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
    // The type is signed or not, and wider or not, by the machine.
    Some(rustix::fs::statfs(there).ok()?.f_type as u64 & 0xFFFF_FFFF)
}
