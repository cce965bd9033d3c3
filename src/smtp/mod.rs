//! The language both ends speak: RFC 5321 and the extensions that Outpost offers or uses.
//!
//! Values and bytes only. Nothing in this room does I/O, asks the time or is async, so that all of
//! it can be tested by tables, properties and fuzzing.
//!
//! - [`address`]: reverse-path, forward-path
//! - [`command`]: what a client may say, parsed and written
//! - [`esmtp`]: the parameters of MAIL and RCPT, read and written
//! - [`parameter`]: the values of those that travel with a message
//! - [`pattern`]: which addresses a list means
//! - [`reply`]: what a server may say; every sentence of ours stands there
//! - [`extension`]: the EHLO keywords offered and understood
//! - [`framing`]: bytes to lines, bytes to content and back
//! - [`sasl`]: the bytes of PLAIN, LOGIN and CRAM-MD5
//! - [`scram`]: the messages of SCRAM-SHA-256

pub mod address;
pub mod command;
pub mod esmtp;
pub mod extension;
pub mod framing;
pub mod parameter;
pub mod pattern;
pub mod reply;
pub mod sasl;
pub mod scram;
