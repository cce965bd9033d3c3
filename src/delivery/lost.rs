//! How a connection can end before its time.

use super::phase::Phase;
use crate::{mail::outcome::Who, smtp::reply::Reply};

/// The connection ended, or what came is no reply.
#[derive(Debug)]
pub struct Lost {
    /// During what.
    pub phase: Phase,
    /// The upstream's last words, if it said goodbye (421).
    pub reply: Option<Reply>,
    pub(super) why: Why,
}

#[derive(Debug)]
pub(super) enum Why {
    Closed,
    Silent,
    Garbage(String),
    /// Replies came that answer nothing: which reply is whose is not known.
    OutOfStep(String),
    Broken(std::io::Error),
    Spool(std::io::Error),
}

impl Lost {
    pub(super) fn new(phase: Phase, why: Why) -> Self {
        Self { phase, reply: None, why }
    }

    /// Whether what was understood before can't be believed either. A final reply that is none leaves the
    /// envelope's answers as they were.
    pub(super) fn makes_void(&self) -> bool {
        match self.why {
            Why::OutOfStep(_) => true,
            Why::Garbage(_) => self.phase != Phase::FinalReply,
            _ => false,
        }
    }

    /// Who can do something about it.
    pub(super) fn who(&self) -> Who {
        if matches!(self.why, Why::Spool(_)) { Who::Operator } else { Who::Upstream }
    }

    /// What happened, in words.
    pub fn words(&self) -> String {
        let phase = self.phase.name();
        match &self.why {
            Why::Closed => format!("the upstream closed the connection during {phase}"),
            Why::Silent => format!("the upstream did not answer in time during {phase}"),
            Why::Garbage(what) | Why::OutOfStep(what) => format!("{what} during {phase}"),
            Why::Broken(error) => format!("the connection broke during {phase}: {error}"),
            Why::Spool(error) => format!("the content can't be read from the spool now: {error}"),
        }
    }
}
