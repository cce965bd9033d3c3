//! Outpost, the mail relay for people who run containers.
#![doc = ""]
pub mod clock;
pub mod config;
pub mod environment;
pub mod limits;
pub mod listener;
pub mod mail;
pub mod net;
pub mod observe;
pub mod queue;
pub mod smtp;
