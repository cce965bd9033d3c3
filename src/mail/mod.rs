//! The mail object of RFC 5321 §2.3.1, and what became of it.
//!
//! Plain values that three rooms speak of: the listener makes them, the queue keeps them, delivery
//! and reports explain them. No I/O here.
//!
//! - [`envelope`]: who it is from and for
//! - [`content`]: facts about the content, found while it streams by
//! - [`trace`]: the Received field
//! - [`submission`]: Date and Message-ID where they are missing
//! - [`sender`]: other senders' addresses in the From field
//! - [`sign`]: DKIM signatures
//! - [`outcome`]: what an attempt meant for each recipient, with its evidence

pub mod content;
pub mod envelope;
pub mod outcome;
pub mod sender;
pub mod sign;
pub mod submission;
pub mod trace;
