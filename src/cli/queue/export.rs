//! `outpost queue export`: messages into an archive, whole or not at all.

use std::{
    fs::File,
    io::{self, IsTerminal as _, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use serde_json::json;

use super::super::{
    client::{Client, segment, with_query},
    exit::{Exit, Failure},
    output::{self, Bar},
};
use crate::admin::{
    Filter,
    archive::{END, Half, Members, padding},
    export::{DAMAGED, NEXT},
    people,
};

#[derive(Debug, Args)]
pub(in crate::cli) struct Export {
    /// Queue ids
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    filter: Filter,
    /// All messages: the same as without any filter
    #[arg(long)]
    all: bool,
    /// Into this file, which must not be there yet [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// For programs
    #[arg(long, requires = "output")]
    json: bool,
}

/// What went into the archive, and what could not.
#[derive(Default)]
struct Exported {
    messages: u64,
    octets: u64,
    damaged: Vec<String>,
}

impl Export {
    pub(super) fn run(self, client: &Client) -> Result<(), Failure> {
        if !self.ids.is_empty() && (self.all || !self.filter.is_empty()) {
            return Err(Failure::new(Exit::USAGE, "name messages by id, or by a filter; see --help"));
        }
        let exported = match &self.output {
            Some(path) => self.write_file(client, path)?,
            None if io::stdout().is_terminal() => {
                return Err(Failure::new(Exit::USAGE, "an archive is nothing to look at: say -o FILE"));
            }
            None => self.write(client, &mut io::stdout().lock())?,
        };
        let Exported { messages, octets, damaged } = exported;
        let words = format!("{} exported ({})", people::count(messages, "message"), people::size(octets));
        match &self.output {
            Some(_) if self.json => {
                output::json(&json!({ "messages": messages, "bytes": octets, "damaged": damaged }));
            }
            Some(_) => output::say(words),
            None => output::complain(&words),
        }
        if damaged.is_empty() {
            return Ok(());
        }
        for id in &damaged {
            output::complain(&format!("{id}: damaged, and left out"));
        }
        let words = format!(
            "{} could not be exported; `outpost queue check` says what is wrong",
            people::count(damaged.len() as u64, "damaged message")
        );
        Err(Failure::new(Exit::DATA, words))
    }

    /// Under its name it is whole, and on the disk.
    fn write_file(&self, client: &Client, path: &Path) -> Result<Exported, Failure> {
        let refused =
            |error: io::Error| Failure::new(Exit::CANT_CREATE, format!("{}: {error}", path.display()));
        if path.symlink_metadata().is_ok() {
            return Err(refused(io::Error::other("there is one already; name another")));
        }
        let directory = path.parent().filter(|above| !above.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file =
            tempfile::Builder::new().prefix(".outpost-export-").tempfile_in(directory).map_err(refused)?;
        let exported = self.write(client, &mut file)?;
        file.as_file().sync_all().map_err(refused)?;
        file.persist_noclobber(path).map_err(|error| refused(error.error))?;
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(refused)?;
        Ok(exported)
    }

    fn write(&self, client: &Client, out: &mut impl Write) -> Result<Exported, Failure> {
        let mut exported = Exported::default();
        if !self.ids.is_empty() {
            for id in &self.ids {
                let path = format!("/api/v1/queue/{}/export", segment(id));
                client.block_on(take_page(client, &path, out, &mut exported))?;
            }
        } else {
            let bar = Bar::messages(self.number(client)?);
            let mut filter = self.filter.clone();
            loop {
                let path = with_query("/api/v1/queue/export", &filter);
                filter.cursor = client.block_on(take_page(client, &path, out, &mut exported))?;
                bar.set(exported.messages);
                if filter.cursor.is_none() {
                    break;
                }
            }
        }
        out.write_all(&END).and_then(|()| out.flush()).map_err(unwritable)?;
        Ok(exported)
    }

    /// How many there will be, as far as somebody looks.
    fn number(&self, client: &Client) -> Result<u64, Failure> {
        if !output::is_watched() {
            return Ok(0);
        }
        Ok(super::act::meant(client, &self.filter)?.number)
    }
}

/// Passes on the members of one answer; returns where the next ones begin.
async fn take_page(
    client: &Client,
    path: &str,
    out: &mut impl Write,
    exported: &mut Exported,
) -> Result<Option<String>, Failure> {
    let response = client.fetch(path).await?;
    let field = |name| Some(response.headers().get(name)?.to_str().ok()?.to_owned());
    let (next, damaged) = (field(NEXT), field(DAMAGED));
    exported.damaged.extend(damaged.iter().flat_map(|ids| ids.split(',')).map(str::to_owned));
    let mut members = Members::new(response.into_body());
    let cut = |error| Failure::new(Exit::UNAVAILABLE, format!("the relay's answer broke off: {error}"));
    while let Some(member) = members.next().await.map_err(cut)? {
        out.write_all(&member.header).map_err(unwritable)?;
        while let Some(piece) = members.piece().await.map_err(cut)? {
            out.write_all(&piece).map_err(unwritable)?;
        }
        out.write_all(&padding(member.size)).map_err(unwritable)?;
        if let Some((_, Half::Content)) = member.half {
            exported.messages += 1;
            exported.octets += member.size;
        }
    }
    Ok(next)
}

fn unwritable(error: io::Error) -> Failure {
    Failure::new(Exit::CANT_CREATE, format!("the archive can't be written: {error}"))
}
