//! Messages from an archive into the queue. None comes twice: what is queued stays as it is, and for
//! whom the history knows an end, it is over.

use axum::{Json, body::Body, extract::State};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;

use super::{
    Answer, Desk, Failed,
    archive::{ArchiveError, Half, Members},
    events::Wanted,
    extract::Query,
};
use crate::{
    observe::{Event, EventKind},
    queue::{
        Entry, Fault, QueueId,
        archive::{Archived, RECORD_MAX},
        entry::RecipientState,
        import::{Import, ImportError},
    },
};

/// Commits that are waited for at once: they share the syncs of the queue.
const AT_ONCE: usize = 100;
/// Events of a message that are looked through for who was reached.
const EVENTS: usize = 100_000;
/// Members that are named with what is wrong with them; more are only counted.
const NAMED: usize = 1_000;

/// What can be wrong with an entry of an archive before anybody looks inside.
pub const RECORD_TOO_LONG: &str = "its record is too long";
/// A content came first.
pub const NO_RECORD: &str = "there is no record in front of it";
/// A record came, and then something else.
pub const NO_CONTENT: &str = "its content is missing";
/// It has another name, or is no plain file.
pub const NO_MESSAGE: &str = "it is not a message of a queue";

/// How messages are to be imported: the query string.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wishes {
    /// All of them held, for an operator to release.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// Only said what would be taken.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
}

/// What became of an archive.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Messages that are in the queue now, on stable storage.
    pub imported: u64,
    /// Octets of their content.
    pub bytes: u64,
    /// Those that were queued here already.
    pub queued: u64,
    /// Those that have left this queue already.
    pub left: u64,
    /// What can't be used.
    pub refused: u64,
    /// The same by name, as far as there is room.
    pub failed: Vec<Failed>,
    /// Why not all of the archive was read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<Stopped>,
}

/// Why no more was imported.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Stopped {
    /// In words.
    pub reason: String,
    /// The archive is at fault, rather than this host.
    pub damaged: bool,
}

impl Imported {
    /// One more that can't be used.
    pub fn refuse(&mut self, name: impl Into<String>, error: impl ToString) {
        self.refused += 1;
        if self.failed.len() < NAMED {
            self.failed.push(Failed { id: name.into(), error: error.to_string() });
        }
    }

    /// Adds what became of a further part of the archive.
    pub fn add(&mut self, other: Self) {
        self.imported += other.imported;
        self.bytes += other.bytes;
        self.queued += other.queued;
        self.left += other.left;
        self.refused += other.refused;
        let room = NAMED.saturating_sub(self.failed.len());
        self.failed.extend(other.failed.into_iter().take(room));
        self.stopped = self.stopped.take().or(other.stopped);
    }

    fn fault(&mut self, fault: &Fault) {
        self.stopped.get_or_insert(Stopped { reason: fault.to_string(), damaged: false });
    }

    fn note(&mut self, (id, result): (QueueId, Result<Entry, ImportError>)) {
        match result {
            Ok(entry) => {
                self.imported += 1;
                self.bytes += entry.content.size;
            }
            Err(ImportError::Fault(fault)) => self.fault(&fault),
            Err(error) => self.refuse(id.to_string(), error),
        }
    }
}

pub(super) async fn import(
    State(desk): State<Desk>,
    Query(wishes): Query<Wishes>,
    body: Body,
) -> Answer<Json<Imported>> {
    let mut importer =
        Importer { desk, wishes, outcome: Imported::default(), record: None, commits: JoinSet::new() };
    let mut members = Members::new(body);
    if let Err(error) = importer.take_all(&mut members).await {
        let stopped = Stopped { reason: error.to_string(), damaged: true };
        importer.outcome.stopped.get_or_insert(stopped);
    }
    importer.end_of_message();
    importer.settle(0).await;
    members.drain().await;
    Ok(Json(importer.outcome))
}

/// What is done with the content of a message.
enum Fate {
    /// It is brought into the queue.
    Bring(Box<Archived>),
    /// It was said already why not.
    Pass,
}

struct Importer {
    desk: Desk,
    wishes: Wishes,
    outcome: Imported,
    /// The record that was read, and waits for its content.
    record: Option<(QueueId, Fate)>,
    commits: JoinSet<(QueueId, Result<Entry, ImportError>)>,
}

impl Importer {
    async fn take_all(&mut self, members: &mut Members) -> Result<(), ArchiveError> {
        while self.outcome.stopped.is_none() {
            let Some(member) = members.next().await? else { break };
            match member.half {
                Some((id, Half::Record)) => {
                    self.end_of_message();
                    let fate = match members.all(RECORD_MAX).await? {
                        Some(json) => self.judge(id, &json),
                        None => self.refused(id, RECORD_TOO_LONG),
                    };
                    self.record = Some((id, fate));
                }
                Some((id, Half::Content)) => match self.record.take() {
                    Some((of, Fate::Bring(archived))) if of == id => {
                        if archived.message.content.size == member.size {
                            self.bring(*archived, members).await?;
                        } else {
                            self.outcome
                                .refuse(id.to_string(), "its content is not as long as its record says");
                        }
                    }
                    Some((of, Fate::Pass)) if of == id => {}
                    other => {
                        self.record = other;
                        self.outcome.refuse(member.name, NO_RECORD);
                    }
                },
                None if member.is_note => {}
                None => self.outcome.refuse(member.name, NO_MESSAGE),
            }
        }
        Ok(())
    }

    /// A record whose content didn't come is of no use.
    fn end_of_message(&mut self) {
        if let Some((id, Fate::Bring(_))) = self.record.take()
            && self.outcome.stopped.is_none()
        {
            self.outcome.refuse(id.to_string(), NO_CONTENT);
        }
    }

    fn refused(&mut self, id: QueueId, error: impl ToString) -> Fate {
        self.outcome.refuse(id.to_string(), error);
        Fate::Pass
    }

    fn judge(&mut self, id: QueueId, json: &[u8]) -> Fate {
        match Archived::read(id, json, self.desk.clock.now()) {
            Ok(archived) => Fate::Bring(Box::new(archived)),
            Err(error) => self.refused(id, error),
        }
    }

    async fn bring(&mut self, archived: Archived, members: &mut Members) -> Result<(), ArchiveError> {
        let id = archived.message.id;
        let mut begun = self.begin(archived.clone()).await;
        if matches!(begun, Err(Fault::Full)) && !self.commits.is_empty() {
            // What is on its way was counted twice, or makes the truth known.
            self.settle(0).await;
            begun = self.begin(archived).await;
        }
        let mut import = match begun {
            Ok(Some(import)) => import,
            Ok(None) => return Ok(()),
            Err(fault) => {
                self.outcome.fault(&fault);
                return Ok(());
            }
        };
        while let Some(piece) = members.piece().await? {
            if let Err(fault) = import.take(&piece).await {
                self.outcome.fault(&fault);
                return Ok(());
            }
        }
        let (desk, dry) = (self.desk.clone(), self.wishes.dry_run);
        self.commits.spawn(async move {
            let result = import.commit().await;
            if let Ok(entry) = &result
                && !dry
            {
                tell(&desk, entry);
            }
            (id, result)
        });
        self.settle(AT_ONCE).await;
        Ok(())
    }

    /// Begins to bring a message back, unless it is here or was.
    async fn begin(&mut self, mut archived: Archived) -> Result<Option<Import>, Fault> {
        // First whether it is queued: if it leaves behind that look, the history knows.
        let Some(place) = self.desk.queue.place_for(archived.message.id).await? else {
            self.outcome.queued += 1;
            return Ok(None);
        };
        if self.desk.is_over(&mut archived.message).await? {
            self.outcome.left += 1;
            return Ok(None);
        }
        if self.wishes.hold && archived.message.held.is_none() {
            archived.message.held = Some("held when it was imported".to_owned());
        }
        place.receive(archived, self.wishes.dry_run).map(Some)
    }

    /// Waits for commits until so many at most are under way.
    async fn settle(&mut self, most: usize) {
        while self.commits.len() > most {
            if let Some(Ok(done)) = self.commits.join_next().await {
                self.outcome.note(done);
            }
        }
    }
}

impl Desk {
    /// Marks whom the history knows to be done with; whether there is nobody left.
    async fn is_over(&self, message: &mut Entry) -> Result<bool, Fault> {
        let wanted = Wanted { limit: Some(1_000), ..Wanted::of_message(message.id) };
        let now = self.clock.now();
        let ends = self.queue.read_history(move |history| {
            let (mut wanted, mut ends, mut seen) = (wanted, Vec::new(), 0);
            loop {
                let page = wanted.ready(now).map_err(Fault::Broken)?.page(history)?;
                seen += page.items.len();
                ends.extend(
                    page.items.into_iter().filter_map(|event| Some((end_of(event.event)?, event.recipient?))),
                );
                match page.next {
                    Some(next) if seen < EVENTS => wanted.cursor = Some(next),
                    _ => return Ok(ends),
                }
            }
        });
        let ends = ends.await?;
        let was_pending = message.pending().next().is_some();
        for (end, address) in ends {
            for recipient in &mut message.recipients {
                if recipient.state == RecipientState::Pending && recipient.address.as_str() == address {
                    recipient.state = end;
                }
            }
        }
        Ok(was_pending && message.pending().next().is_none())
    }
}

/// What became of a recipient by this event.
fn end_of(event: EventKind) -> Option<RecipientState> {
    match event {
        EventKind::Delivered => Some(RecipientState::Delivered),
        EventKind::Bounced => Some(RecipientState::Bounced),
        EventKind::Expired => Some(RecipientState::Expired),
        _ => None,
    }
}

fn tell(desk: &Desk, entry: &Entry) {
    desk.observer.emit(Event {
        sender: Some(entry.reverse_path.as_str().to_owned()),
        size: Some(entry.content.size),
        message_id: entry.message_id.clone(),
        ..Event::new(desk.clock.now(), EventKind::Imported, entry.id)
    });
}
