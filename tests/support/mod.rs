//! What the end-to-end tests stand on: the real binary as a child, real peers beside it, and a
//! scripted upstream for what no decent peer would do.
//!
//! Everything here listens on loopback, on ports of its own, in directories of its own, so that
//! tests run side by side. Whatever is started is ended by its pid when its value is dropped. A
//! peer that isn't installed fails the test; nothing is skipped in silence.

// Each test program uses its own part of this.
#![allow(dead_code, unreachable_pub)]

pub mod bytes;
pub mod certs;
pub mod client;
pub mod copy;
pub mod daemon;
pub mod disk;
pub mod http;
pub mod ledger;
pub mod mount;
pub mod names;
pub mod opensmtpd;
pub mod ports;
pub mod postfix;
pub mod programs;
pub mod relay;
pub mod seed;
pub mod service;
pub mod strace;
pub mod upstream;
pub mod wait;
pub mod workload;
