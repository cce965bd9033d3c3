//! A message ready to be carried: its share of the limits is taken, and it looks as its upstream gets it.

use tokio::time::Instant;

use super::lane::Job;
use crate::{
    delivery::{Dressed, Forward, Message},
    limits::account::{Permit, Spent},
    queue::entry::Recipient,
};

/// A message that may be tried now, and whose share of the limits is taken.
pub(super) struct Ready {
    pub(super) job: Job,
    pub(super) leave: Permit,
    /// When it began, as the lane's pace counts.
    pub(super) paced: Instant,
    pub(super) dressed: Dressed,
}

impl Ready {
    pub(super) fn message(&self) -> Message<'_> {
        let entry = self.job.claim.entry();
        Message {
            reverse_path: self.dressed.reverse_path.as_ref().unwrap_or(&entry.reverse_path),
            recipients: self.job.places.iter().map(|place| forward(&entry.recipients[*place])).collect(),
            handling: &entry.handling,
            content: self.job.claim.content(),
            head: self.dressed.head.as_ref(),
        }
    }

    /// Not tried after all: it goes back as it was.
    pub(super) fn give_back(self) {
        self.leave.spent(Spent::Nothing);
    }
}

fn forward(recipient: &Recipient) -> Forward<'_> {
    Forward { mailbox: &recipient.address, notify: recipient.notify, original: recipient.original.as_ref() }
}
