//! Small file systems of their own, to be filled, taken away or cut off from their power.

use std::fs;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::programs::{require, run};

/// Set by whoever knows that this machine can't mount and wants the other tests; nothing is skipped without.
const OPT_OUT: &str = "OUTPOST_TESTS_WITHOUT_MOUNTS";

/// A mounted ext4 on a file; unmounted when dropped.
pub struct Ext4 {
    image: PathBuf,
    at: PathBuf,
}

/// Whether tests that mount are to run. They are, unless [`OPT_OUT`] is set.
#[allow(clippy::print_stderr)]
pub fn wanted() -> bool {
    if std::env::var_os(OPT_OUT).is_some() {
        eprintln!("left out, because {OPT_OUT} is set: this needs root and a loop device");
        return false;
    }
    assert!(
        rustix::process::geteuid().is_root() && Path::new("/dev/loop-control").exists(),
        "this test mounts a file system of its own, which takes root and loop devices; \
         set {OPT_OUT}=1 to leave such tests out on this machine"
    );
    true
}

impl Ext4 {
    /// Makes one of so many MiB in a file, and mounts it on the directory `at`.
    pub fn new(image: &Path, mebibytes: u64, at: &Path) -> Self {
        let file = fs::File::create(image).expect("the image's file");
        file.set_len(mebibytes * 1024 * 1024).expect("the image's size");
        let make = require(Path::new("/usr/sbin/mkfs.ext4"));
        run(Command::new(make)
            .args(["-q", "-F", "-m0", "-eremount-ro", "-Elazy_itable_init=0,lazy_journal_init=0"])
            .arg(image));
        fs::create_dir_all(at).expect("a directory to mount on");
        let disk = Self { image: image.to_owned(), at: at.to_owned() };
        disk.mount();
        disk
    }

    fn mount(&self) {
        run(Command::new("/bin/mount").args(["-o", "loop"]).arg(&self.image).arg(&self.at));
    }

    /// Gets ready to cut the power, so that it can be done at once.
    pub fn switch(&self) -> Switch {
        // EXT4_IOC_SHUTDOWN without a flush of the journal; Rust has no safe words for it.
        const SHUTDOWN: &str = "import fcntl, os, struct, sys\n\
            disk, how = os.open(sys.argv[1], os.O_RDONLY), struct.pack('I', 2)\n\
            print('ready', flush=True)\n\
            os.read(0, 1)\n\
            fcntl.ioctl(disk, 0x8004587d, how)\n";
        let mut python = Command::new(require(Path::new("/usr/bin/python3")));
        python.args(["-c", SHUTDOWN]).arg(&self.at).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut python = python.spawn().expect("Python starts");
        let mut line = [0; 6];
        python.stdout.as_mut().expect("a pipe").read_exact(&mut line).expect("it gets ready");
        Switch(python)
    }

    /// Lets the kernel meet with an error in it, and so take it for read-only at once, whoever has files open.
    pub fn turn_read_only(&self) {
        let source = run(Command::new("/usr/bin/findmnt").args(["-n", "-o", "SOURCE"]).arg(&self.at)).stdout;
        let device = String::from_utf8_lossy(&source).trim().replace("/dev/", "");
        fs::write(format!("/sys/fs/ext4/{device}/trigger_fs_error"), "a test")
            .expect("ext4's switch for tests");
    }

    /// After a cut, when nobody uses it any more: mounts what is left.
    pub fn again(&self) {
        run(Command::new("/bin/umount").arg(&self.at));
        self.mount();
    }
}

/// Any other file system, mounted; unmounted when dropped.
pub struct Mount(PathBuf);

impl Mount {
    /// Mounts one of this type, with these options, on the directory `at`.
    pub fn new(kind: &str, options: &str, at: &Path) -> Self {
        fs::create_dir_all(at).expect("a directory to mount on");
        run(Command::new("/bin/mount").args(["-t", kind, "-o", options, kind]).arg(at));
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("/bin/umount").arg("-l").arg(&self.0).output();
    }
}

/// A hand at the switch.
pub struct Switch(Child);

impl Switch {
    /// Cuts the power: what the disk has not been told to keep by now is lost. From here on every write fails,
    /// until the disk is mounted again by [`Ext4::again`].
    pub fn cut(mut self) {
        self.0.stdin.take().expect("a pipe").write_all(b"x").expect("Python waits for it");
        assert!(self.0.wait().expect("our child").success(), "the power can't be cut");
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // Lazily: whoever still has a file open shall not keep it here for ever.
        let _ = Command::new("/bin/umount").arg("-l").arg(&self.at).output();
    }
}
