//! Outpost: the mail relay for people who run containers. The map, in reading order.
//!
//! The language and the things it speaks of; pure, no I/O:
//! [`smtp`] (commands, replies, framing) and [`mail`] (envelope, content facts, outcome).
//!
//! A message's way: [`listener`] takes it, [`queue`] keeps it, [`runner`] claims it,
//! [`delivery`] attempts it, and [`dsn`] reports what can't be delivered. [`limits`] decides when
//! the upstream may be bothered at all.
//!
//! Around it: [`config`] (dotcloud.yml to typed settings), [`environment`] (what apps are told),
//! [`observe`] (events and metrics), [`admin`] (API and web page), [`cli`] (what operators type),
//! [`clock`] and [`net`] (the seams to time and sockets), and [`service`], which builds everything.
//!
//! Who may know whom: listener and delivery never meet; the queue knows neither; delivery never
//! changes the queue; the runner is the only file where queue, delivery, limits and reports meet;
//! nothing points back at cli, admin or service. `tests/architecture.rs` checks the arrows.

pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod delivery;
pub mod dsn;
pub mod environment;
pub mod limits;
pub mod listener;
pub mod mail;
pub mod net;
pub mod observe;
pub mod queue;
pub mod runner;
pub mod service;
pub mod smtp;
pub mod webhook;
