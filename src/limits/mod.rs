//! What keeps us from doing too much: the gate before an upstream, and the budget of an account.
//!
//! - [`gate`]: may a connection be opened now?
//! - [`account`]: may a message be sent now, or be taken from this login? Limits that outlive a crash
//! - `budget`, `window`: the arithmetic behind it, pure; `file`: its memory
//!
//! Decides when something may be tried, never what a reply means (that is delivery's) and never what
//! becomes of a message (that is the runner's).

pub mod account;
mod budget;
mod file;
pub mod gate;
mod window;
