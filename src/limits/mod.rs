//! What keeps us from doing too much: gates and breakers before upstreams, and limits.
//!
//! - [`gate`]: may a connection be opened now?
//! - [`breaker`]: may a message be tried, and may it bounce, after refusal after refusal?
//! - [`pace`]: how fast an upstream takes mail, learned from its complaints
//! - [`kept`]: a small state that survives a restart
//! - [`account`]: may a message be sent now, or be taken from this login? Limits that outlive a crash
//! - `budget`, `window`: the arithmetic behind it, pure; `file`: its memory
//!
//! Decides when something may be tried, never what a reply means (that is delivery's) and never what
//! becomes of a message (that is the runner's).

pub mod account;
pub mod breaker;
mod budget;
mod file;
pub mod gate;
pub mod kept;
pub mod pace;
mod window;
