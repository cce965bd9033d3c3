//! A YAML document as a tree in which every node knows its place.
//!
//! Built from parser events rather than through serde, for three reasons: scalars keep their source
//! text (a password `0123` stays that), services that aren't ours may hold whatever they like, and
//! an alias is a reference to its anchor's node and never a copy.
//!
//! Bounds: nesting is limited by the parser (255), the file's size by the caller, and what aliases
//! would expand to by [`MAX_NODES`]. Nodes live in one vector, so nothing here recurses by depth.

use std::collections::{HashMap, HashSet};

use serde_saphyr::granit_parser::{ErrorKind, Event, Marker, Parser, ScalarStyle, ScanError, Tag};

/// Nodes of a document, those that its aliases stand for included. A dotcloud.yml has dozens; a
/// "billion laughs" has, well.
const MAX_NODES: u64 = 50_000;
/// How many `<<` may lie inside one another.
const MAX_MERGES: u32 = 8;

/// A place in the file: line and column from 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct At {
    pub(super) line: u32,
    pub(super) column: u32,
}

impl From<Marker> for At {
    fn from(mark: Marker) -> Self {
        let number = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        Self { line: number(mark.line()), column: number(mark.col() + 1) }
    }
}

/// Why a text isn't one YAML document.
#[derive(Debug)]
pub(super) struct Malformed {
    pub(super) at: At,
    pub(super) message: String,
    pub(super) help: Option<&'static str>,
}

/// A node of a [`Document`].
pub(super) type Id = usize;

#[derive(Debug)]
pub(super) struct Node {
    pub(super) at: At,
    pub(super) kind: Kind,
}

#[derive(Debug)]
pub(super) enum Kind {
    /// `~`, `null`, or nothing at all.
    Null,
    /// The text between the quotes, or as it stands without any.
    Scalar(String),
    /// Items.
    List(Vec<Id>),
    /// Keys and values as written: duplicates and `<<` included.
    Map(Vec<(Id, Id)>),
    /// `!something`: a type that we know nothing of.
    Tagged,
}

impl Kind {
    /// For "wants a port, but this is a list".
    pub(super) fn name(&self) -> &'static str {
        match self {
            Kind::Null => "empty",
            Kind::Scalar(_) => "a single value",
            Kind::List(_) => "a list",
            Kind::Map(_) => "a map",
            Kind::Tagged => "a value with a tag (!)",
        }
    }
}

/// One document.
#[derive(Debug)]
pub(super) struct Document {
    nodes: Vec<Node>,
    root: Id,
}

/// One entry of a map.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    pub(super) key: &'a str,
    pub(super) at: At,
    pub(super) value: Id,
}

impl Document {
    /// Reads a text that holds exactly one document.
    pub(super) fn parse(text: &str) -> Result<Self, Malformed> {
        Builder::default().run(text)
    }

    /// The outermost node.
    pub(super) fn root(&self) -> Id {
        self.root
    }

    /// A node by its number.
    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id]
    }

    /// A map's entries whose keys are text, merge keys (`<<`) followed, each key once, and the places
    /// at which a key stands again. `None` when the node is no map.
    pub(super) fn entries(&self, id: Id) -> Option<(Vec<Entry<'_>>, Vec<Entry<'_>>)> {
        let (mut entries, mut again) = (Vec::new(), Vec::new());
        let Kind::Map(_) = self.node(id).kind else {
            return None;
        };
        self.collect(id, MAX_MERGES, &mut HashSet::new(), &mut entries, &mut again);
        Some((entries, again))
    }

    fn collect<'a>(
        &'a self,
        id: Id,
        merges: u32,
        seen: &mut HashSet<&'a str>,
        entries: &mut Vec<Entry<'a>>,
        again: &mut Vec<Entry<'a>>,
    ) {
        let Kind::Map(pairs) = &self.node(id).kind else {
            return;
        };
        let mut merged = Vec::new();
        for &(key, value) in pairs {
            let Node { at, kind: Kind::Scalar(key) } = self.node(key) else {
                continue;
            };
            match &self.node(value).kind {
                Kind::Map(_) if key == "<<" => merged.push(value),
                Kind::List(items) if key == "<<" => merged.extend(items),
                _ => {
                    let entry = Entry { key, at: *at, value };
                    if seen.insert(key) { entries.push(entry) } else { again.push(entry) }
                }
            }
        }
        // What is written in the map itself wins over what is merged into it.
        let Some(merges) = merges.checked_sub(1) else {
            return;
        };
        for id in merged {
            self.collect(id, merges, seen, entries, &mut Vec::new());
        }
    }
}

/// Turns events into nodes.
#[derive(Default)]
struct Builder {
    nodes: Vec<Node>,
    /// For each node, how many there are once aliases are followed.
    weights: Vec<u64>,
    anchors: HashMap<usize, Id>,
    /// Collections that have begun and not ended, with their children so far.
    open: Vec<(Id, Vec<Id>)>,
    root: Option<Id>,
    /// What all aliases so far expand to.
    aliased: u64,
}

impl Builder {
    fn run(mut self, text: &str) -> Result<Document, Malformed> {
        let mut documents = 0;
        for event in Parser::new_from_str(text) {
            let (event, span) = event.map_err(malformed)?;
            // A tag stands before what it is about.
            let at = At::from(span.tag_start.unwrap_or(span.start));
            match event {
                Event::DocumentStart(..) => {
                    documents += 1;
                    if documents > 1 {
                        return Err(wrong(
                            at,
                            "a second document begins here",
                            "one file, one document: remove the `---`",
                        ));
                    }
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let kind = scalar(&text, style, tag.as_deref());
                    let id = self.add(at, kind, anchor);
                    self.complete(id);
                }
                Event::SequenceStart(_, anchor, tag) => {
                    self.begin(at, Kind::List(Vec::new()), anchor, tag.as_deref());
                }
                Event::MappingStart(_, anchor, tag) => {
                    self.begin(at, Kind::Map(Vec::new()), anchor, tag.as_deref());
                }
                Event::SequenceEnd | Event::MappingEnd => self.close(),
                Event::Alias(anchor) => self.alias(at, anchor)?,
                _ => {}
            }
            if self.aliased.saturating_add(self.nodes.len() as u64) > MAX_NODES {
                let help = "a dotcloud.yml has dozens of values, not tens of thousands";
                return Err(wrong(at, "the file holds far too much, aliases (*) included", help));
            }
        }
        match self.root {
            Some(root) => Ok(Document { nodes: self.nodes, root }),
            None => Err(wrong(
                At { line: 1, column: 1 },
                "the file is empty",
                "it should name services; see docs/configuration.md",
            )),
        }
    }

    fn add(&mut self, at: At, kind: Kind, anchor: usize) -> Id {
        let id = self.nodes.len();
        self.nodes.push(Node { at, kind });
        self.weights.push(1);
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        id
    }

    fn begin(&mut self, at: At, kind: Kind, anchor: usize, tag: Option<&Tag>) {
        let kind = if known(tag) { kind } else { Kind::Tagged };
        let id = self.add(at, kind, anchor);
        self.open.push((id, Vec::new()));
    }

    fn complete(&mut self, id: Id) {
        match self.open.last_mut() {
            Some((_, children)) => children.push(id),
            None => self.root = Some(id),
        }
    }

    fn close(&mut self) {
        let Some((id, children)) = self.open.pop() else {
            return;
        };
        let weight = children.iter().fold(1u64, |sum, &c| sum.saturating_add(self.weights[c]));
        self.weights[id] = weight;
        match &mut self.nodes[id].kind {
            Kind::List(items) => *items = children,
            Kind::Map(pairs) => *pairs = children.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect(),
            Kind::Null | Kind::Scalar(_) | Kind::Tagged => {}
        }
        self.complete(id);
    }

    fn alias(&mut self, at: At, anchor: usize) -> Result<(), Malformed> {
        let Some(&id) = self.anchors.get(&anchor) else {
            return Err(wrong(at, "an alias (*) without its anchor (&)", QUOTE));
        };
        if self.open.iter().any(|(open, _)| *open == id) {
            return Err(wrong(at, "an alias (*) inside the very thing it stands for", QUOTE));
        }
        self.aliased = self.aliased.saturating_add(self.weights[id]);
        self.complete(id);
        Ok(())
    }
}

const QUOTE: &str = "a value that begins with one of & * ! % @ ` must stand in 'single quotes'";

fn known(tag: Option<&Tag>) -> bool {
    tag.is_none_or(|tag| matches!(tag.core_suffix(), Some("str" | "seq" | "map")))
}

fn scalar(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Kind {
    let null =
        style == ScalarStyle::Plain && tag.is_none() && matches!(text, "" | "~" | "null" | "Null" | "NULL");
    match known(tag) {
        _ if null => Kind::Null,
        true => Kind::Scalar(text.to_owned()),
        false => Kind::Tagged,
    }
}

fn wrong(at: At, message: &str, help: &'static str) -> Malformed {
    Malformed { at, message: message.to_owned(), help: Some(help) }
}

/// The parser's words quote nothing of the source but single indicator characters.
fn malformed(error: ScanError) -> Malformed {
    let help = match error.kind() {
        ErrorKind::TabNotAllowed | ErrorKind::TabInBlockIndentation => {
            Some("indent with spaces, not with tabs")
        }
        ErrorKind::UnknownAnchor
        | ErrorKind::UnexpectedCharacter { .. }
        | ErrorKind::MissingAnchorOrAliasName
        | ErrorKind::UndeclaredTagHandle
        | ErrorKind::ExpectedNodeContent => Some(QUOTE),
        ErrorKind::SimpleKeyExpected => Some("a key is followed by a colon and a space"),
        _ => None,
    };
    Malformed { at: At::from(*error.marker()), message: format!("this is not YAML: {}", error.kind()), help }
}
