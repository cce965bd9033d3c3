//! A disk that forgets: what a file system may still have after a power cut.
//!
//! Each file has what was last written to it and what was last synced; each directory the names that it has and
//! those that it had when it was last synced. What lies between may be there after a cut or not, in any part and
//! any order, torn between blocks. That is what POSIX allows; real file systems allow less.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::strace::{Operation, Trace};

/// What of the unsynced is still there after the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survives {
    /// Nothing.
    Synced,
    /// All of it.
    Everything,
    /// Each name or not, each block of each write or not, as this seed has it.
    Some { seed: u64, block: usize },
}

/// Whose syncs are taken and not done: the disk of a control.
pub type Lie = fn(&Path) -> bool;

/// A change that no sync has covered yet.
struct Pending<T> {
    change: T,
    /// A sync covers it only if it began after this.
    ended: Option<usize>,
}

enum FileChange {
    Write { at: u64, octets: Vec<u8> },
    Size(u64),
}

enum NameChange {
    Add(String, usize),
    Remove(String),
    Move { from: String, to: String, node: usize },
}

struct Versions<T, C> {
    live: T,
    durable: T,
    pending: Vec<Pending<C>>,
}

enum Node {
    File { path: PathBuf, is: Versions<Vec<u8>, FileChange> },
    Directory { path: PathBuf, is: Versions<BTreeMap<String, usize>, NameChange> },
}

/// The disk below one directory, which itself is there and stays there.
pub struct Disk {
    root: PathBuf,
    nodes: Vec<Node>,
    /// Which node a descriptor is open on, and where it stands.
    open: HashMap<i32, (usize, u64)>,
    /// Where the changes of a call that hasn't ended went: node, and place in its pending list.
    running: HashMap<usize, usize>,
    /// When each sync began.
    syncs: HashMap<usize, usize>,
    lies_about: Lie,
}

impl Disk {
    /// An empty one.
    pub fn new(root: &Path, lies_about: Lie) -> Self {
        let mut disk = Self {
            root: root.to_owned(),
            nodes: Vec::new(),
            open: HashMap::new(),
            running: HashMap::new(),
            syncs: HashMap::new(),
            lies_about,
        };
        disk.nodes.push(Node::directory(root));
        disk
    }

    /// The call `number` begins; `now` counts events.
    pub fn begins(&mut self, trace: &Trace, number: usize, now: usize) {
        match &trace.operations[number] {
            Operation::Write { fd, at, octets } => {
                let Some((node, position)) = self.open.get_mut(fd) else { return };
                let at = at.unwrap_or_else(|| {
                    *position += octets.len() as u64;
                    *position - octets.len() as u64
                });
                let node = *node;
                self.change_file(number, node, FileChange::Write { at, octets: octets.clone() });
            }
            Operation::Truncate { fd, size } => {
                let Some((node, _)) = self.open.get(fd).copied() else { return };
                self.change_file(number, node, FileChange::Size(*size));
            }
            Operation::Allocate { fd, size } => {
                let Some((node, _)) = self.open.get(fd).copied() else { return };
                if self.file(node).live.len() < *size as usize {
                    self.change_file(number, node, FileChange::Size(*size));
                }
            }
            Operation::Sync { .. } => {
                self.syncs.insert(number, now);
            }
            _ => {}
        }
    }

    /// The call `number` ends.
    pub fn ends(&mut self, trace: &Trace, number: usize, now: usize) {
        match &trace.operations[number] {
            Operation::Open { path, fd, create, truncate } => {
                let node = match self.find(path) {
                    Some(node) => node,
                    None if *create => {
                        let node = self.add(Node::file(path));
                        self.name(path, now, |name| NameChange::Add(name, node));
                        node
                    }
                    // The index of the WAL, or something that was there before.
                    None => return,
                };
                if *truncate {
                    self.change_file(number, node, FileChange::Size(0));
                    self.ended(number, now);
                }
                self.open.insert(*fd, (node, 0));
            }
            Operation::Write { .. } | Operation::Truncate { .. } | Operation::Allocate { .. } => {
                self.ended(number, now);
            }
            Operation::Seek { fd, to } => {
                if let Some((_, position)) = self.open.get_mut(fd) {
                    *position = *to;
                }
            }
            Operation::Sync { fd } => {
                let began = self.syncs.remove(&number).expect("it has begun");
                if let Some((node, _)) = self.open.get(fd).copied() {
                    self.sync(node, began);
                }
            }
            Operation::Rename { from, to } => {
                assert_eq!(from.parent(), to.parent(), "the model moves files within a directory");
                let node = self.find(from).expect("what is renamed is there");
                let old = file_name(from);
                self.name(to, now, |name| NameChange::Move { from: old, to: name, node });
            }
            Operation::Unlink { path } => self.name(path, now, NameChange::Remove),
            Operation::MakeDirectory { path } => {
                let node = self.add(Node::directory(path));
                self.name(path, now, |name| NameChange::Add(name, node));
            }
            Operation::Note(_) => {}
        }
    }

    /// Writes what may be there after a cut at this moment.
    pub fn write_image(&self, to: &Path, survives: Survives) {
        let mut dice = match survives {
            Survives::Some { seed, .. } => fastrand::Rng::with_seed(seed),
            Survives::Synced | Survives::Everything => fastrand::Rng::with_seed(0),
        };
        self.write_node(0, to, survives, &mut dice);
    }

    fn write_node(&self, node: usize, to: &Path, survives: Survives, dice: &mut fastrand::Rng) {
        match &self.nodes[node] {
            Node::File { is, .. } => {
                fs::write(to, is.after_cut(survives, dice)).expect("an image is written")
            }
            Node::Directory { is, .. } => {
                fs::create_dir_all(to).expect("an image is written");
                for (name, node) in is.after_cut(survives, dice) {
                    // Mapped memory, which SQLite makes anew.
                    if !name.ends_with("-shm") {
                        self.write_node(node, &to.join(name), survives, dice);
                    }
                }
            }
        }
    }

    fn sync(&mut self, node: usize, began: usize) {
        let lies_about = self.lies_about;
        match &mut self.nodes[node] {
            Node::File { path, is } if !lies_about(path) => is.sync(began),
            Node::Directory { path, is } if !lies_about(path) => is.sync(began),
            _ => {}
        }
    }

    fn change_file(&mut self, number: usize, node: usize, change: FileChange) {
        let is = self.file(node);
        change.apply(&mut is.live, None);
        is.pending.push(Pending { change, ended: None });
        self.running.insert(number, node);
    }

    fn ended(&mut self, number: usize, now: usize) {
        if let Some(node) = self.running.remove(&number) {
            // Calls on one file follow one another, so what has ended is the oldest that hasn't.
            let pending = self.file(node).pending.iter_mut().find(|pending| pending.ended.is_none());
            pending.expect("it has begun").ended = Some(now);
        }
    }

    fn name(&mut self, path: &Path, now: usize, change: impl FnOnce(String) -> NameChange) {
        let parent = self.find(path.parent().expect("below the root")).expect("its directory is there");
        let Node::Directory { is, .. } = &mut self.nodes[parent] else { panic!("a directory: {path:?}") };
        let change = change(file_name(path));
        change.apply(&mut is.live);
        is.pending.push(Pending { change, ended: Some(now) });
    }

    fn file(&mut self, node: usize) -> &mut Versions<Vec<u8>, FileChange> {
        match &mut self.nodes[node] {
            Node::File { is, .. } => is,
            Node::Directory { path, .. } => panic!("not a file: {path:?}"),
        }
    }

    fn add(&mut self, node: Node) -> usize {
        self.nodes.push(node);
        self.nodes.len() - 1
    }

    fn find(&self, path: &Path) -> Option<usize> {
        let mut node = 0;
        for part in path.strip_prefix(&self.root).ok()?.components() {
            let Component::Normal(name) = part else { return None };
            let Node::Directory { is, .. } = &self.nodes[node] else { return None };
            node = *is.live.get(name.to_str()?)?;
        }
        Some(node)
    }
}

impl Node {
    fn file(path: &Path) -> Self {
        Self::File { path: path.to_owned(), is: Versions::new() }
    }

    fn directory(path: &Path) -> Self {
        Self::Directory { path: path.to_owned(), is: Versions::new() }
    }
}

impl<T: Default, C> Versions<T, C> {
    fn new() -> Self {
        Self { live: T::default(), durable: T::default(), pending: Vec::new() }
    }

    /// Takes out what had ended when a sync began.
    fn covered(&mut self, began: usize) -> Vec<C> {
        let pending = std::mem::take(&mut self.pending);
        let (covered, left) =
            pending.into_iter().partition(|pending| pending.ended.is_some_and(|ended| ended < began));
        self.pending = left;
        let covered: Vec<Pending<C>> = covered;
        covered.into_iter().map(|pending| pending.change).collect()
    }
}

impl Versions<Vec<u8>, FileChange> {
    fn sync(&mut self, began: usize) {
        for change in self.covered(began) {
            change.apply(&mut self.durable, None);
        }
    }

    fn after_cut(&self, survives: Survives, dice: &mut fastrand::Rng) -> Vec<u8> {
        match survives {
            Survives::Synced => self.durable.clone(),
            Survives::Everything => self.live.clone(),
            Survives::Some { block, .. } => {
                let mut octets = self.durable.clone();
                // From hardly anything to nearly all, so that both kinds of trouble occur.
                let odds = dice.f64();
                for pending in &self.pending {
                    pending.change.apply(&mut octets, Some((block, odds, dice)));
                }
                octets
            }
        }
    }
}

impl Versions<BTreeMap<String, usize>, NameChange> {
    fn sync(&mut self, began: usize) {
        for change in self.covered(began) {
            change.apply(&mut self.durable);
        }
    }

    fn after_cut(&self, survives: Survives, dice: &mut fastrand::Rng) -> BTreeMap<String, usize> {
        match survives {
            Survives::Synced => self.durable.clone(),
            Survives::Everything => self.live.clone(),
            Survives::Some { .. } => {
                let mut names = self.durable.clone();
                for pending in &self.pending {
                    if dice.bool() {
                        pending.change.apply(&mut names);
                    }
                }
                names
            }
        }
    }
}

impl FileChange {
    /// Applies all of it, or those blocks that the dice let through.
    fn apply(&self, to: &mut Vec<u8>, torn: Option<(usize, f64, &mut fastrand::Rng)>) {
        match (self, torn) {
            (Self::Size(size), None) => to.resize(*size as usize, 0),
            (Self::Size(size), Some((_, odds, dice))) => {
                if dice.f64() < odds {
                    to.resize(*size as usize, 0);
                }
            }
            (Self::Write { at, octets }, None) => write_at(to, *at as usize, octets),
            (Self::Write { at, octets }, Some((block, odds, dice))) => {
                let (mut at, mut rest) = (*at as usize, &octets[..]);
                while !rest.is_empty() {
                    let (piece, behind) = rest.split_at(rest.len().min(block - at % block));
                    if dice.f64() < odds {
                        write_at(to, at, piece);
                    }
                    at += piece.len();
                    rest = behind;
                }
            }
        }
    }
}

impl NameChange {
    fn apply(&self, names: &mut BTreeMap<String, usize>) {
        match self {
            Self::Add(name, node) => {
                names.insert(name.clone(), *node);
            }
            Self::Remove(name) => {
                names.remove(name);
            }
            Self::Move { from, to, node } => {
                names.remove(from);
                names.insert(to.clone(), *node);
            }
        }
    }
}

fn write_at(file: &mut Vec<u8>, at: usize, octets: &[u8]) {
    let end = at + octets.len();
    if file.len() < end {
        file.resize(end, 0);
    }
    file[at..end].copy_from_slice(octets);
}

fn file_name(path: &Path) -> String {
    path.file_name().expect("a name").to_string_lossy().into_owned()
}
