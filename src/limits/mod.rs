//! What keeps us from doing too much: the gate before an upstream, and the breaker on refusals.
//!
//! Decides when something may be tried, never what a reply means (that is delivery's) and never what
//! becomes of a message (that is the runner's).

pub mod breaker;
pub mod gate;
pub mod kept;
