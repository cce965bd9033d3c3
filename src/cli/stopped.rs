//! The queue of a relay that doesn't run, opened by the command itself. It is asked the same questions
//! by the same routes; nothing is started that would deliver.

use std::{os::unix::fs::MetadataExt as _, path::Path};

use hyper::{Request, Response};

use super::{
    Place,
    exit::{Exit, Failure},
};
use crate::{
    admin::{Body, Desk, QueueRoutes, SOCKET},
    clock::Clock,
    config::{self, Settings, Source},
    observe::Observer,
    queue::{OpenError, Queue, WriterThread},
    runner::{Orders, Runner},
    service::parts,
};

/// An opened queue. Dropped, it is closed and all that was done is on disk.
pub(super) struct Stopped {
    routes: Option<QueueRoutes>,
    writer: Option<WriterThread>,
}

impl Stopped {
    /// Opens the queue of the relay that would run here. With `new`, makes it if there is none yet.
    pub(super) fn open(place: &Place, data: &Path, new: bool) -> Result<Self, Failure> {
        let settings = settings(place, data)?;
        let directory = &settings.queue.directory;
        let found = std::fs::symlink_metadata(directory.join("queue.sqlite"));
        let socket = data.join(SOCKET).display().to_string();
        if found.is_err() && !new {
            let words = format!(
                "no relay runs here: nobody answers at {socket}, and there is no queue in {}\n  help: if it runs elsewhere, name its --data",
                directory.display()
            );
            return Err(Failure::new(Exit::UNAVAILABLE, words));
        }
        // Files made in it by another user would keep the relay out.
        if found.is_ok_and(|found| found.uid() != rustix::process::geteuid().as_raw()) {
            let words = format!(
                "the queue in {} belongs to another user: run this as the relay's user",
                directory.display()
            );
            return Err(Failure::new(Exit::NOT_PERMITTED, words));
        }
        let clock = Clock::System;
        let (queue, writer) = Queue::open_known(&settings.queue, clock.clone(), data).map_err(|error| match error {
            OpenError::InUse { .. } => Failure::new(
                Exit::TRY_AGAIN,
                format!("{error}, but nobody answers at {socket}\n  help: it may be starting or stopping: try again; or name its --data"),
            ),
            other => Failure::from(crate::service::StartError::Queue(other)),
        })?;
        let observer = Observer::default();
        let keeper = queue.clone();
        observer.keep_by(Box::new(move |event| {
            keeper.record(event.id.parse().ok(), event.octets());
        }));
        let runner = Runner::new(orders(settings, &clock)?, queue.clone(), observer.clone(), clock.clone());
        let routes = QueueRoutes::new(Desk { queue, runner, observer, clock });
        Ok(Self { routes: Some(routes), writer: Some(writer) })
    }

    /// Answers one request.
    pub(super) async fn ask(&self, request: Request<Body>) -> Result<Response<Body>, Failure> {
        match &self.routes {
            Some(routes) => Ok(routes.ask(request).await),
            None => Err(Failure::new(Exit::UNAVAILABLE, "the queue is closed")),
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // The writer ends when the last handle of its queue is gone.
        drop(self.routes.take());
        if let Some(writer) = self.writer.take() {
            writer.join();
        }
    }
}

/// What the relay would run by. Where that can't be read the queue is still where it always is.
fn settings(place: &Place, data: &Path) -> Result<Settings, Failure> {
    match place.load() {
        Ok(loaded) => Ok(loaded.settings),
        Err(problems) if place.named_data().is_none() => Err(problems),
        Err(_) => {
            let source = Source { data: Some(data.to_owned()), ..Source::default() };
            let unknown = "mailer: {type: smtp, config: {smtp_relay_server: unknown.invalid}}";
            let mut settings = config::parse(unknown, "settings", &source, &|_| None)?.settings;
            settings.upstreams.clear();
            Ok(settings)
        }
    }
}

/// What the upstreams are is good to know, and not needed: their files may be missing here.
fn orders(mut settings: Settings, clock: &Clock) -> Result<Orders, Failure> {
    if let Ok(orders) = parts::orders(&settings, &[], clock) {
        return Ok(orders);
    }
    settings.upstreams.clear();
    Ok(parts::orders(&settings, &[], clock)?)
}
